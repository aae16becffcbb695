"""Data-poisoning attacks on recommenders, as values: what a defender has to expect and to measure against."""

import models
from bilevel.layout import check_layout

check_layout("models", models.__file__)  # a models.py beside a notebook would shadow ours: better named here

from attacks.attack import Attack
from attacks.aush import aush
from attacks.bandwagon import bandwagon, hcars_bandwagon, popular
from attacks.checks import check
from attacks.covisitation import covisitation
from attacks.dl_attack import dl_attack
from attacks.driver import Run, run
from attacks.heuristic import average, middle, random, top_popular
from attacks.neighbors import power_item, segment
from attacks.objective import make_objective, promotion
from attacks.pga import pga
from attacks.presets import revadv_preset
from attacks.rapu_g import rapu_g
from attacks.rapu_r import rapu_r
from attacks.revadv import revadv
from attacks.srwa import srwa
from attacks.threat import Ratings, ThreatModel
from attacks.tna import tna

__all__ = [
    "Attack",
    "Ratings",
    "Run",
    "ThreatModel",
    "aush",
    "average",
    "bandwagon",
    "check",
    "covisitation",
    "dl_attack",
    "hcars_bandwagon",
    "make_objective",
    "middle",
    "pga",
    "popular",
    "power_item",
    "promotion",
    "random",
    "rapu_g",
    "rapu_r",
    "revadv",
    "revadv_preset",
    "run",
    "segment",
    "srwa",
    "tna",
    "top_popular",
]
