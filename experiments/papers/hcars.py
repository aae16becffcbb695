"""H-CARS (Chen et al., SIGIR 2023), one cell: an attack that reads counterfactual explanations.

The victim trains on four fifths of the clicks; the attacker sees 80% or 30% of those, and an API explains to it why 60%
of the users are recommended their best item (ACCENT's sets, of the victim without an attack). H-CARS reasons with them;
the baselines take the clicks of the sets for negatives (`attacks.explained.as_negatives`; RAPU-R's WRMF and DL-Attack's
NeuMF with the weight of a click, `emphasized`), as the paper has it, and `-wo-cf` is each attack without any
explanation. Every attack is crafted once for a seed, at 5%: its first n fake users are the attack with n, since none
depends on a later one.
TopPopular is ours, the control that costs nothing. The tables are in hcars_table1.py and hcars_fig2.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import attacks
from attacks.attack import Attack
from attacks.explained import as_negatives, collect, emphasized
from attacks.reasoner import Disagreement, known_sets, live, reasoner
from experiments.crafts import crafted
from experiments.names import RELATIONS
from experiments.papers.accent import RCF
from experiments.pipeline import Case, measured, profile_facts
from experiments.study import Spec
from models import ncr, registry
from models.data import Interactions, Profiles, inject, pick_targets, relations, sources
from models.data.observe import partial
from models.data.protocols import Prepared, prepared
from models.explain import ExplanationAPI, Explanations
from models.recommender import Recommender
from models.train import Fitted, fit, top_k

K = 10
FRACTIONS = (0.03, 0.05, 0.01, 0.005)
LARGEST = max(FRACTIONS)
VISIBLE = (0.8, 0.3)
MAIN = ("none", "top-popular", "bandwagon", "rapu-r", "hcars", "hcars-wo-cf", "dl-attack")
MORE = (
    "hcars-false",
    "hcars-as-printed",
    "hcars-refit",
    "bandwagon-wo-cf",
    "rapu-r-wo-cf",
    "dl-attack-wo-cf",
)
PAPER = {"dl-attack": "DL-Attack", "rapu-r": "RAPU-R", "hcars": "H-CARS", "bandwagon": "Bandwagon"}
"""Our names and the paper's; the others are ours."""
LOSSES: Mapping[str, Disagreement] = {
    "hcars": "contrast",
    "hcars-refit": "contrast",
    "hcars-false": "false",
    "hcars-as-printed": "as_printed",
}


Place = tuple[str, str, float]
"""Data, victim, share of the clicks that the attacker sees."""


class World(NamedTuple):
    """One data set of the paper.

    Attributes:
        preset: of the data.
        table: name in the paper.
        budget: clicks of a fake user beside the targets.
        weight, logic: lambda_1, and the preset of NCR with lambda_2.
        epochs: of NCR.
        pool: share of the items that H-CARS chooses from.
        asked: share of the users whose best item is explained.
        victims, attacks, seeds: what the table has of it.
    """

    preset: str
    table: str
    budget: int
    weight: float
    logic: str
    epochs: int
    pool: float
    asked: float
    victims: tuple[str, ...]
    attacks: tuple[str, ...]
    seeds: int


WORLDS = {
    "ml": World("hcars-ml-100k", "MovieLens", 100, 0.76, "hcars-ml", 10, 1.0, 0.6, ("NCF", "RCF"), MAIN, 5),
    "yelp": World("hcars-yelp", "Yelp", 15, 0.68, "hcars-yelp", 2, 0.1, 0.02, ("NCF",), MAIN, 2),
}


# ------------------------------------------------------------------------------------------------------- one case


@functools.lru_cache(maxsize=2)
def _data(world: str, seed: int) -> Prepared:
    return prepared(WORLDS[world].preset, jax.random.fold_in(jax.random.key(seed), 0))


@functools.lru_cache(maxsize=4)
def case_of(world: str, seed: int) -> Case:
    """The repetition of a seed: split, and five targets drawn from all items."""
    parts, key = _data(world, seed).split, jax.random.key(seed)
    targets = np.asarray(pick_targets(parts.train, "random", 5, jax.random.fold_in(key, 3), preset="apt"))
    return Case(parts.train, parts.test, targets, None, key)


@functools.lru_cache(maxsize=4)
def view_of(world: str, seed: int, visible: float) -> Interactions:
    """What the attacker sees."""
    return partial(visible)(case_of(world, seed).train, jax.random.fold_in(jax.random.key(seed), 2))


@functools.lru_cache
def _victim(world: str, name: str) -> Recommender:
    """ACCENT's NeuMF as a classifier of clicks; RCF half as wide as ACCENT's, which reads the latest 30 clicks."""
    if name == "NCF":
        return registry.make(
            "neumf", factors=16, tower=16, hidden=(16, 8), epochs=40 if world == "ml" else 10
        )
    path = sources.beside(*RELATIONS["ml-100k"])
    if path is None:
        raise FileNotFoundError(f"RCF reads the attributes of films from {'/'.join(RELATIONS['ml-100k'])}")
    known = relations.load(path, _data(world, 0).data.item_ids).relations
    return registry.make("rcf", relations=known, epochs=20, **RCF)


def with_room(
    train: Interactions, rows: np.ndarray | None, targets: np.ndarray, *, fakes: int, width: int
) -> Interactions:
    """The real users and room for `fakes` more, the first of which have these rows.

    So data with few, many or no fake users have one size: one compilation, and victims that start alike.

    >>> train = Interactions.from_arrays([0, 1], [2, 3], items=5)
    >>> with_room(train, np.eye(1, 5), np.array([0]), fakes=2, width=3).dense().sum(1).tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    room = np.zeros((fakes, train.items), np.float32)
    if rows is not None:
        room[: len(rows)] = rows
    return inject(train, Profiles.from_rows(room, targets, width=width))


def trained(world: str, seed: int, victim: str, rows: np.ndarray | None) -> tuple[Fitted, Interactions]:
    """A victim of a repetition, and what it was trained on."""
    case, targets = case_of(world, seed), np.asarray(case_of(world, seed).targets)
    sizes = {"fakes": int(LARGEST * case.train.users), "width": WORLDS[world].budget + targets.size}
    data = with_room(case.train, rows, targets, **sizes)
    return jax.block_until_ready(fit(_victim(world, victim), data, case.keys["victim"])), data


@functools.lru_cache(maxsize=4)
def clean(world: str, seed: int, victim: str) -> tuple[Fitted, Interactions]:
    """The victim of a repetition without an attack, trained once."""
    return trained(world, seed, victim, None)


@functools.lru_cache(maxsize=4)
def explanations_of(world: str, seed: int, victim: str) -> Explanations:
    """What the API answers: without which clicks another item would be the best one, for a share of the users."""
    fitted, data = clean(world, seed, victim)
    real = jnp.arange(case_of(world, seed).train.users)
    best = np.asarray(top_k(fitted, real, 1, exclude=data))[:, 0]
    return collect(ExplanationAPI(fitted, data, k=1), best, share=WORLDS[world].asked, seed=seed)


# ------------------------------------------------------------------------------------------------------- one cell


def surrogate_of(name: str, world: str, told: Explanations | None) -> Recommender:
    """The surrogate of an attack (or, for "wrmf", the one that Fig. 2 compares with)."""
    if name == "wrmf":
        return registry.make("wrmf", "rapu-ml-victim")
    facts = WORLDS[world]
    plain = ncr.preset(facts.logic, epochs=facts.epochs)
    loss = LOSSES.get(name, "contrast")
    return reasoner(told, surrogate=plain, loss=loss, counterfactual=facts.weight)


def method_of(name: str, world: str, told: Explanations | None) -> Attack:
    """The attack of a row, at the largest number of fake users."""
    facts = WORLDS[world]
    spent: dict[str, Any] = {"fakes": LARGEST, "budget": facts.budget}
    plain = registry.make("wrmf", "rapu-ml-victim")
    makers: dict[str, Callable[[], Attack]] = {
        "top-popular": lambda: attacks.top_popular(**spent),
        "bandwagon": lambda: attacks.hcars_bandwagon(**spent),
        "rapu-r": lambda: attacks.rapu_r(plain if told is None else emphasized(plain, told), **spent),
        "dl-attack": lambda: _dl_attack(told, **spent, k=K),
    }
    base = name.removesuffix("-wo-cf")
    if base in makers:
        return makers[base]()
    turns: dict[str, Any] = {"refit_every": 12, "refit_epochs": 1} if name == "hcars-refit" else {}
    return attacks.hcars(surrogate_of(name, world, told), **spent, users=64, pool=facts.pool, **turns)


def _dl_attack(told: Explanations | None, **spent: Any) -> Attack:
    """DL-Attack, whose own model takes the clicks of the sets for zeros."""
    plain = attacks.dl_attack(**spent)
    if told is None:
        return plain
    return attacks.dl_attack(surrogate=emphasized(plain.config["surrogate"], told), **spent)


@functools.lru_cache
def _untold(name: str, world: str) -> Attack:
    """One value a setting for attacks that hold no explanations, so that seeds share a compilation."""
    return method_of(name, world, None)


def fakes_of(spec: Spec) -> tuple[Profiles, dict[str, Any]]:
    """The fake users of a cell: the first ones of the craft at the largest number."""
    world, name, seed = spec["data"], spec["attack"], spec["seed"]
    case, view = case_of(world, seed), view_of(world, seed, spec["visible"])
    told = None
    if not name.endswith("-wo-cf") and name != "top-popular":
        told = explanations_of(world, seed, spec["victim"])
    where = {"paper": "hcars", **{part: spec[part] for part in ("data", "seed", "visible")}}
    where |= {"attack": name, "explained": None if told is None else spec["victim"]}
    holds = told is not None and name.startswith(("hcars", "rapu-r", "dl-attack"))
    attack = method_of(name, world, told) if holds else _untold(name, world)
    if name.startswith("hcars"):
        where |= {"premises": "whole"}  # crafts from before reasoned about the last five clicks
    elif told is not None:
        view = as_negatives(view, told).pad(view.capacity)
    made, facts = crafted(where, attack, case.keys["attack"], view, case.targets)
    rows = np.asarray(made.to_rows())[: attacks.ThreatModel(fakes=spec["fraction"]).count(case.train.users)]
    profiles = Profiles.from_rows(rows, case.targets, clicks_targets=True)
    history = {f"craft_{metric}": values[-1] for metric, values in facts["history"].items()}
    said = {**history, **profile_facts(profiles, case.train)}
    if told is not None:
        said |= {"asked": told.queries, "explained": int(told.found.sum())}
        said |= {"set_size": float(told.sizes[told.found].mean()) if told.found.any() else 0.0}
        said |= {"unsound": int((told.found & ~told.sound).sum())}
    if told is not None and name.startswith("hcars"):
        said["live"] = spoken(world, view, told)
    return profiles, said


def spoken(world: str, view: Interactions, told: Explanations) -> float:
    """The share of the explained sets of which the surrogate's premises hold an item."""
    asked, surrogate = known_sets(told), surrogate_of("hcars", world, told)
    if asked is None:
        return 0.0
    return float(jnp.mean(live(surrogate.prepare(view), asked, surrogate.config["history"])))


def told_in(results: Sequence[Mapping[str, Any]]) -> str:
    """What the explainer said in the records of a row: sets of questions, and what they are good for.

    "live" is the share of the sets of which H-CARS's premises hold an item, "unsound" counts those from a linear solve
    that did not hold; each from the records that tell of it.

    >>> told_in([{"asked": 9, "explained": 8, "live": 0.5, "unsound": 1}, {"asked": 9, "explained": 6}])
    '14/18, live 0.50, unsound 1 (1 of 2 records tell)'
    >>> told_in([{"recall": 0.1}])
    '-'
    """
    asked = [one for one in results if "asked" in one]
    if not asked:
        return "-"
    total = lambda name: sum(one[name] for one in asked)
    text = f"{total('explained')}/{total('asked')}"
    live = [(one["live"], one["explained"]) for one in asked if "live" in one and one["explained"]]
    if live:
        shares, sets = zip(*live, strict=True)
        text += f", live {np.average(shares, weights=sets):.2f}"
    known = [one["unsound"] for one in asked if "unsound" in one]
    if known:
        text += f", unsound {sum(known)}"
        text += f" ({len(known)} of {len(asked)} records tell)" if len(known) < len(asked) else ""
    return text


def soundness(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The share of sets whose linear solve did not hold, and of how many views of victims that is known.

    >>> soundness([{"asked": 9, "explained": 8, "unsound": 2}, {"asked": 9, "explained": 6}, {"recall": 0.1}])
    ['unsound, sets from a linear solve that did not hold: 25.0% (1 of 2 views tell)']
    """
    asked = [one for one in results if "asked" in one]
    known = [one for one in asked if "unsound" in one]
    if not asked:
        return []
    sets = sum(one["explained"] for one in known)
    share = f"{sum(one['unsound'] for one in known) / sets:.1%}" if sets else "unknown"
    what = "unsound, sets from a linear solve that did not hold"
    return [f"{what}: {share} ({len(known)} of {len(asked)} views tell)"]


def run(spec: Spec) -> dict[str, Any]:
    """Craft on the attacker's view, inject into the victim's data, train the victim and judge it."""
    world, seed, victim = spec["data"], spec["seed"], spec["victim"]
    case, facts = case_of(world, seed), {}
    if spec["attack"] == "none":
        fitted, _ = clean(world, seed, victim)
    else:
        profiles, facts = fakes_of(spec)
        fitted, _ = trained(world, seed, victim, np.asarray(profiles.to_rows()))
    notes = list(_data(world, seed).notes)
    return {
        **measured(fitted, case, k=K),
        "targets": np.asarray(case.targets).tolist(),
        "notes": notes,
        **facts,
    }
