"""APT (Wu et al., SIGIR 2021), one cell: a defense of matrix factorization against fake raters.

The setting of the released code: ratings, leave one out, MF by Adagrad, 25 epochs, one set of fake users an attack, and
seeds that change the training only. Fake users are injected into the data, where no defense can tell them apart. The
columns `apt` and `apt-rand` are as published: helpful users take their ratings from the data before the attack, which
only an experimenter has. `apt-own` and `apt-rand-own` take them from the data at hand. All seeds of a cell are trained
in one compiled call. The tables are in apt_tables.py, the ablation and Figs. 2 and 3 in apt_figs.py.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import attacks
from attacks.attack import Attack
from defenses.adversarial import adversarial
from defenses.apt import PRESETS, apt
from experiments.crafts import crafted
from experiments.pipeline import profile_facts
from experiments.study import Spec
from models import registry
from models.data import PUBLISHED, Interactions, Profiles, inject, pick_targets
from models.data.protocols import Prepared, prepared
from models.evaluation import evaluate, rank_shift
from models.train import Fitted, fit


class World(NamedTuple):
    """One data set: its name in the tables, published targets by kind, list length, attack size, seeds."""

    table: str
    targets: dict[str, str]
    k: int
    size: float
    seeds: int


WORLDS = {
    "ml-100k": World("ML-100K", {"random": "ml-100k/rapu", "unpopular": "ml-100k/apt"}, 50, 0.03, 10),
    "filmtrust": World(
        "FilmTrust",
        {"random": "filmtrust/apt-random", "unpopular": "filmtrust/apt-unpopular"},
        50,
        0.03,
        10,
    ),
    "ml-1m": World("ML-1M", {}, 50, 0.03, 3),
    "yelp": World("Yelp", {}, 1000, 0.05, 3),
}
KINDS = ("random", "unpopular")
ATTACKS = {"average": "Average", "random": "Random", "pga": "PGA", "aush": "AUSH", "tna": "TNA"}
"""Our names and the paper's; quick ones first."""
DEFENSES = ("none", "at", "apt", "apt-own", "apt-rand", "apt-rand-own", "pcmf", "pcmf-centered")
PAPER = {"none": "Attack", "pcmf": "PCMF", "at": "AT", "apt-rand": "APT-rand", "apt": "APT"}
VARIANTS: dict[str, dict[str, Any]] = {
    "apt": {},
    "apt-rand": {"selection": "random"},
    "apt-lissa": {"solver": "lissa"},
    "apt-block": {"solver": "lissa_block"},
    "apt-identity": {"solver": "identity"},
    "apt-gauss-newton": {"solver": "gauss_newton"},
    "apt-paper-risk": {"risk": "paper"},
}
"""What of `apt` a variant changes; the ending `-own` takes ratings from the data at hand."""


@functools.lru_cache
def _data(name: str) -> Prepared:
    """The data with the ratings as they were given, the attackers' unit."""
    made = prepared(f"apt-{name}")
    raw = lambda part: replace(part, weight=jnp.round(part.weight * (made.levels or 1)))
    return made._replace(split=made.split._replace(train=raw(made.split.train)))


def targets_of(name: str, kind: str) -> np.ndarray:
    """The published five, or five drawn once from the stratum where the release's ids are not those at hand."""
    where = WORLDS[name].targets.get(kind)
    if where is not None:
        return np.array(PUBLISHED[where], np.int32)
    return np.asarray(pick_targets(_data(name).split.train, kind, 5, 0, preset="apt"))


@functools.lru_cache
def _attack(attack: str, name: str, size: float) -> Attack:
    train = _data(name).split.train
    spent = {
        "fakes": int(size * train.users),  # rounded down, as in the code
        "budget": round(float(train.count) / train.users),
        "ratings": (1.0, float(_data(name).levels or 1), 1.0),
    }
    makers: dict[str, Callable[[], Attack]] = {
        "average": lambda: attacks.average(**spent),
        "random": lambda: attacks.random(**spent, track="explicit"),
        "pga": lambda: attacks.pga(**spent),
        "aush": lambda: attacks.aush(**spent, track="explicit"),
        "tna": lambda: attacks.tna(**spent, subset="influence"),
    }
    return makers[attack]()


def fakes_of(spec: Spec) -> tuple[Profiles | None, dict[str, Any]]:
    """The fake users of a cell, crafted once for all its seeds and all defenses."""
    if spec["attack"] == "none":
        return None, {}
    train, targets = _data(spec["data"]).split.train, targets_of(spec["data"], spec["targets"])
    attack = _attack(spec["attack"], spec["data"], spec.get("size", WORLDS[spec["data"]].size))
    where = {"paper": "apt", "data": spec["data"], "targets": spec["targets"]}
    profiles, facts = crafted(where, attack, jax.random.key(0), train, targets)
    return profiles, {"craft_seconds": facts["craft_seconds"], **profile_facts(profiles, train)}


@functools.lru_cache
def trainer(
    name: str, defense: str, helpers: float
) -> Callable[[Array, Interactions, Interactions], tuple[Fitted, dict[str, Array]]]:
    """`(keys, data at hand, data before the attack) -> (fitted models, told)`, one a key, compiled once a shape."""
    model = registry.make("mf", f"apt-{name}")
    if defense.startswith("pcmf"):
        model = registry.make("pcmf", center=defense == "pcmf-centered")
    if defense == "at":
        model = adversarial(model)
    if not defense.startswith("apt"):
        one = lambda key, data, clean: (fit(model, data, key), {})
    else:
        changes = VARIANTS[defense.removesuffix("-own")]
        hardened = apt(model, users=helpers, **PRESETS[name], **changes)
        own = defense.endswith("-own")
        one = lambda key, data, clean: hardened.trace(data, key, None if own else clean)
    return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


@functools.lru_cache(maxsize=4)
def _origin(name: str, seeds: int) -> Fitted:
    train = _data(name).split.train
    return trainer(name, "none", 0.05)(keys_of(seeds), train, train)[0]


def keys_of(seeds: int) -> Array:
    """One key a seed; the first ones are the same however many there are."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(jnp.arange(seeds))


def run(spec: Spec) -> dict[str, Any]:
    """Craft, inject, train all seeds behind the defense and judge each of them."""
    world, made = WORLDS[spec["data"]], _data(spec["data"])
    train, seeds = made.split.train, spec["seeds"]
    profiles, facts = fakes_of(spec)
    data = train if profiles is None else inject(train, profiles)
    began = time.perf_counter()
    train_all = trainer(spec["data"], spec["defense"], spec.get("helpers", 0.05))
    fitted, told = jax.block_until_ready(train_all(keys_of(seeds), data, train))
    seconds = time.perf_counter() - began
    found: dict[str, list[float]] = {"hr_mean": [], "hr_any": [], "hr_test": []}
    shifts = []
    if "code" in told:
        facts["unsolved"] = float(np.mean(np.asarray(told["code"]) != 0))
    for seed in range(seeds):
        judged, before = (
            _judged(made, spec, models, seed) for models in (fitted, _origin(spec["data"], seeds))
        )
        for metric, values in found.items():
            values.append(float(getattr(judged, metric)))
        moved = np.asarray(rank_shift(before.per_user.target_rank, judged.per_user.target_rank))
        shifts.append(moved[np.isfinite(moved)])
    spread = np.quantile(np.concatenate(shifts), [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    notes = [f"{world.table}: {note}" for note in made.notes]
    return {**found, "rank_shift": spread, "train_seconds": seconds, "notes": notes, **facts}


def _judged(made: Prepared, spec: Spec, fitted: Fitted, seed: int) -> Any:
    one = jax.tree.map(lambda leaf: leaf[seed], fitted)
    return evaluate(
        jax.tree_util.Partial(Fitted.scores, one),
        made.split.train,
        test=made.split.test,
        targets=targets_of(spec["data"], spec["targets"]),
        k=WORLDS[spec["data"]].k,
        per_user=True,
    )
