"""What recommenders learn from: interactions, fake profiles, files, splits, target sets and synthetic data.

`models.data.observe` has the attacker's views, `models.data.protocols` the data as each paper used them.
"""

from models.data import observe, protocols
from models.data.export import write_recbole, write_table
from models.data.filters import binarize, min_count
from models.data.formats import DataError
from models.data.interactions import Interactions
from models.data.load import Dataset, load
from models.data.profiles import Profiles, check_targets, inject
from models.data.protocols import PROTOCOLS, Prepared, prepared
from models.data.sources import dataset
from models.data.split import Split, holdout_one, random_events, revadv_split
from models.data.strata import PUBLISHED, NewItems, new_items, pick_targets, strata
from models.data.synthetic import Toy, toy

__all__ = [
    "Interactions",
    "Profiles",
    "inject",
    "check_targets",
    "Dataset",
    "DataError",
    "load",
    "dataset",
    "prepared",
    "Prepared",
    "PROTOCOLS",
    "protocols",
    "write_recbole",
    "write_table",
    "observe",
    "Split",
    "revadv_split",
    "holdout_one",
    "random_events",
    "min_count",
    "binarize",
    "strata",
    "pick_targets",
    "PUBLISHED",
    "new_items",
    "NewItems",
    "Toy",
    "toy",
]
