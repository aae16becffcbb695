"""RAPU (Zhang et al., KDD 2021): its setting, and one cell of its tables and figures.

The attacker sees a view of the data (90% of the true clicks and 10% false ones), holds out a fifth of it for itself,
and crafts on the rest; the victim trains on the true 80% and the fake users, as in RAPU's code. All methods of a seed
share split, view, targets and the victims' starts, so differences are paired. TopPopular is ours: the control that
costs nothing, without which the tables say little. Table 2 is in rapu_table2.py, Table 5 and the figures in
rapu_sweeps.py, what pages say of orders and controls in rapu_claims.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import attacks
from attacks.attack import Attack
from experiments.crafts import crafted
from experiments.pipeline import Case, measured, profile_facts, trained
from experiments.record import Record
from experiments.study import Spec
from models import registry
from models.data import PUBLISHED, Interactions, Profiles, pick_targets, random_events
from models.data.observe import perturbed
from models.data.protocols import Prepared, prepared
from models.recommender import Recommender

K = 50
FRACTIONS = (0.03, 0.01, 0.05, 0.005)
AT = FRACTIONS[0]
"""The share whose controls stand beside the row without an attack."""
MAIN = ("none", "random", "popular", "top-popular", "revadv", "rapu-g", "rapu-r")
REST = ("rapu-g-no-pgm", "pga", "covis", "srwa")
OURS = ("pga-unrolled",)
"""PGA with a gradient in its fillers, which the paper's form has not on clicks; on MovieLens, against WRMF."""
EVERY = (*MAIN, *REST, *OURS)
PAPER = {
    "none": "None",
    "random": "Random",
    "popular": "Popular",
    "pga": "PGA",
    "srwa": "SRWA",
    "covis": "CoVis",
    "revadv": "RevAdv",
    "rapu-g": "RAPU-G",
    "rapu-r": "RAPU-R",
}
"""Our names and the paper's; the others are ours."""


class World(NamedTuple):
    """One data set of the paper: preset, name in the table, published targets, proxies, presets of the models."""

    preset: str
    table: str
    targets: str | None
    budget: int
    surrogate: tuple[str, str]
    victims: Mapping[str, tuple[str, str]]


WORLDS = {
    "ml": World(
        "rapu-ml-100k",
        "MovieLens",
        "ml-100k/rapu",
        100,
        ("wrmf", "rapu-ml-surrogate"),
        {
            "WRMF": ("wrmf", "rapu-ml-victim"),
            "NCF": ("gmf", "rapu-ml"),
            "LightGCN": ("lightgcn", "rapu-victim"),
        },
    ),
    "video": World(
        "rapu-amazon-video",
        "Amazon-Video",
        None,
        10,
        ("wrmf", "rapu-video-surrogate"),
        {
            "WRMF": ("wrmf", "rapu-video-victim"),
            "NCF": ("gmf", "rapu-video"),
            "LightGCN": ("lightgcn", "rapu-victim"),
        },
    ),
}


# ------------------------------------------------------------------------------------------------------- one cell


def method_of(name: str, world: World, fraction: float, budget: int) -> Attack | None:
    """The attack of a row, with the paper's settings; None for the clean victim."""
    spent: dict[str, Any] = {"fakes": fraction, "budget": budget}
    learned = lambda: {"surrogate": _model(*world.surrogate), **spent, "k": K}
    makers: dict[str, Callable[[], Attack | None]] = {
        "none": lambda: None,
        "random": lambda: attacks.random(**spent),
        "popular": lambda: attacks.popular(**spent),
        "top-popular": lambda: attacks.top_popular(**spent),
        "pga": lambda: attacks.pga(**spent, track="implicit"),
        "pga-unrolled": lambda: attacks.pga(**spent, track="implicit", gradient="unrolled"),
        "covis": lambda: attacks.covisitation(**spent),
        "srwa": lambda: attacks.srwa(**spent, track="implicit"),
        "revadv": lambda: attacks.revadv(
            **learned(), projection="topk", click_targets=True, estimator="truncated", tau=20
        ),
        "rapu-g": lambda: attacks.rapu_g(**learned()),
        "rapu-g-no-pgm": lambda: attacks.rapu_g(**learned(), pgm=False),
        "rapu-r": lambda: attacks.rapu_r(_model(*world.victims["WRMF"]), **spent),
    }
    return makers[name]() if name in makers else getattr(attacks, name.replace("-", "_"))(**spent)


@functools.lru_cache
def _model(name: str, preset: str) -> Recommender:
    return registry.make(name, preset)


@functools.lru_cache
def _attack(name: str, world: str, fraction: float, budget: int) -> Attack | None:
    """One value a setting, so that seeds share a compilation."""
    return method_of(name, WORLDS[world], fraction, budget)


@functools.lru_cache(maxsize=2)
def _data(world: str, seed: int) -> Prepared:
    return prepared(WORLDS[world].preset, jax.random.fold_in(jax.random.key(seed), 0))


@functools.lru_cache(maxsize=4)
def _view(world: str, seed: int, rho: float, pert: float) -> Interactions:
    """What the attacker crafts on: four fifths of a view of the whole data."""
    key = jax.random.fold_in(jax.random.key(seed), 2)
    seen = perturbed(rho, pert)(_data(world, seed).data.interactions, jax.random.fold_in(key, 0))
    return random_events(seen, jax.random.fold_in(key, 1)).train


def targets_of(world: str, seed: int, stratum: str | None) -> np.ndarray:
    """The published set, or five items drawn from a stratum (from all items, where no set can be used)."""
    fixed, train = WORLDS[world].targets, _data(world, seed).split.train
    if stratum is None and fixed is not None:
        return np.array(PUBLISHED[fixed], np.int32)
    key = jax.random.fold_in(jax.random.key(seed), 3)
    return np.asarray(pick_targets(train, stratum or "random", 5, key, preset="rapu" if stratum else "apt"))


def setting(spec: Spec) -> tuple[Case, Profiles | None, dict[str, Any]]:
    """The repetition of a cell, the fake users crafted on the attacker's view, and facts about them."""
    world, seed = WORLDS[spec["data"]], spec["seed"]
    parts = _data(spec["data"], seed).split
    targets = targets_of(spec["data"], seed, spec.get("stratum"))
    case = Case(parts.train, parts.test, targets, None, jax.random.key(seed))
    attack = _attack(
        spec["attack"], spec["data"], spec.get("fraction", 0.03), spec.get("budget", world.budget)
    )
    if attack is None:
        return case, None, {}
    view = _view(spec["data"], seed, spec.get("rho", 0.9), spec.get("pert", 0.1))
    where = {name: spec[name] for name in ("data", "seed", "stratum", "rho", "pert") if name in spec}
    profiles, facts = crafted(where, attack, case.keys["attack"], view, targets)
    return case, profiles, {"craft_seconds": facts["craft_seconds"], **profile_facts(profiles, parts.train)}


def run(spec: Spec) -> dict[str, Any]:
    """Craft on the view, inject into the true data, train every victim of the cell and judge it."""
    case, profiles, facts = setting(spec)
    victims = {}
    for name in spec["victims"]:
        fitted, seconds = trained(_model(*WORLDS[spec["data"]].victims[name]), case, profiles)
        lists = {str(k): measured(fitted, case, k=k) for k in spec.get("lengths", [K])}
        victims[name] = {"seconds": seconds, **lists}
    notes = list(_data(spec["data"], spec["seed"]).notes)
    return {"victims": victims, "targets": np.asarray(case.targets).tolist(), "notes": notes, **facts}


def hits(records: list[Record], *, at: int = K, **wanted: Any) -> dict[str, dict[int, float]]:
    """By victim, by seed: target hr_any in lists of `at` items, of the records whose spec has these values."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        if wanted.items() <= record.spec.items():
            for victim, judged in record.result["victims"].items():
                found.setdefault(victim, {})[record.spec["seed"]] = judged[str(at)]["hr_any"]
    return found
