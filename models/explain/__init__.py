"""Counterfactual explanations: which of a user's interactions a recommendation rests on."""

from models.explain.accent import Found, evict, walk
from models.explain.counterfactual import METHODS, ExplanationAPI, counterfactual, explainer
from models.explain.explanation import Explanations, OutOfQueries, removals
from models.explain.fia import VARIANTS, Influences, influences
from models.explain.verify import Verified, verify

__all__ = [
    "METHODS",
    "VARIANTS",
    "ExplanationAPI",
    "Explanations",
    "Found",
    "Influences",
    "OutOfQueries",
    "Verified",
    "counterfactual",
    "evict",
    "explainer",
    "influences",
    "removals",
    "verify",
    "walk",
]
