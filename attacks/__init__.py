"""Data-poisoning attacks on recommenders, as values: what a defender has to expect and to measure against."""

import models
from bilevel.layout import check_layout

check_layout("models", models.__file__)  # a models.py beside a notebook would shadow ours: better named here

from attacks.attack import Attack, check
from attacks.heuristic import random, top_popular
from attacks.objective import promotion
from attacks.threat import ThreatModel

__all__ = ["Attack", "ThreatModel", "check", "promotion", "random", "top_popular"]
