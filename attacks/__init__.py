"""Data-poisoning attacks on recommenders, as values: what a defender has to expect and to measure against."""

import models
from bilevel.layout import check_layout

check_layout("models", models.__file__)  # a models.py beside a notebook would shadow ours: better named here

from attacks.appgrad import appgrad, appgrad_learner
from attacks.asktell import AskTell
from attacks.attack import Attack
from attacks.aush import aush
from attacks.bandwagon import bandwagon, hcars_bandwagon, popular
from attacks.blackbox import BlackBox, JaxBox, OverBudget, Retrained, Unexplained
from attacks.checks import check
from attacks.covisitation import covisitation
from attacks.dl_attack import dl_attack
from attacks.driver import Run, run
from attacks.environment import Environment, environment
from attacks.hcars import hcars
from attacks.heuristic import average, middle, random, top_popular
from attacks.neighbors import power_item, segment
from attacks.objective import make_objective, promotion
from attacks.pga import pga
from attacks.play import play
from attacks.poisonrec import poisonrec, poisonrec_learner
from attacks.presets import revadv_preset
from attacks.rapu_g import rapu_g
from attacks.rapu_r import rapu_r
from attacks.reasoner import reasoner
from attacks.revadv import revadv
from attacks.service import Service, serve
from attacks.srwa import srwa
from attacks.threat import Ratings, ThreatModel
from attacks.tna import tna

__all__ = [
    "AskTell",
    "Attack",
    "BlackBox",
    "Environment",
    "JaxBox",
    "OverBudget",
    "Ratings",
    "Retrained",
    "Run",
    "Service",
    "ThreatModel",
    "Unexplained",
    "appgrad",
    "appgrad_learner",
    "aush",
    "average",
    "bandwagon",
    "check",
    "covisitation",
    "dl_attack",
    "environment",
    "hcars",
    "hcars_bandwagon",
    "make_objective",
    "middle",
    "pga",
    "play",
    "poisonrec",
    "poisonrec_learner",
    "popular",
    "power_item",
    "promotion",
    "random",
    "rapu_g",
    "rapu_r",
    "reasoner",
    "revadv",
    "revadv_preset",
    "run",
    "segment",
    "serve",
    "srwa",
    "tna",
    "top_popular",
]
