"""What recommenders learn from: interactions, fake profiles, files, splits, target sets and synthetic data."""

from models.data.interactions import Interactions
from models.data.profiles import Profiles, check_targets, inject
from models.data.synthetic import Toy, toy

__all__ = ["Interactions", "Profiles", "Toy", "check_targets", "inject", "toy"]
