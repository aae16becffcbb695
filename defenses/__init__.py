"""Defenses of recommenders against injected users: hardened training, detectors, filters, and bounds."""

import models
from bilevel.layout import check_layout

check_layout("models", models.__file__)  # a models.py beside a notebook would shadow ours: better named here
