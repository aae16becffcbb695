"""H-CARS (Chen et al., SIGIR 2023), Table 1: attacks that read counterfactual explanations (Fig. 2: hcars_fig2.py).

The victim trains on four fifths of the clicks; the attacker sees 80% or 30% of those, and an API explains to it why 60%
of the users are recommended their best item (ACCENT's sets, of the victim without an attack). H-CARS reasons with them;
the baselines take the clicks of the sets for negatives (`attacks.reasoner.as_negatives`), as the paper has it, and
`-wo-cf` is each attack without any explanation. Every attack is crafted once for a seed, at 5%: its first n fake users
are the attack with n, since none depends on a later one. TopPopular is ours, the control that costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import attacks
from attacks.attack import Attack
from attacks.hcars import collect
from attacks.reasoner import Disagreement, as_negatives, known_sets, live, reasoner
from experiments import report
from experiments.crafts import crafted
from experiments.names import RELATIONS
from experiments.papers.accent import RCF
from experiments.papers.rapu import compare
from experiments.pipeline import Case, measured, profile_facts
from experiments.published import published
from experiments.record import Record
from experiments.study import Report, Spec, Study
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
ORDER = ("hcars", "rapu-r", "dl-attack", "bandwagon")
"""The paper's order, best first."""
LOSSES: Mapping[str, Disagreement] = {
    "hcars": "contrast",
    "hcars-refit": "contrast",
    "hcars-false": "false",
    "hcars-as-printed": "as_printed",
}


Place = tuple[str, str, float]
"""Data, victim, share of the clicks that the attacker sees."""
Hits = dict[int, float]
"""Target HR@10 by seed, in percent of the users."""


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
    # 158 to 1,583 trainings of a network on a million clicks: DL-Attack is left out
    "yelp": World("hcars-yelp", "Yelp", 15, 0.68, "hcars-yelp", 2, 0.1, 0.02, ("NCF",), MAIN[:-1], 2),
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


def poisoned(
    train: Interactions, rows: np.ndarray | None, targets: np.ndarray, *, fakes: int, width: int
) -> Interactions:
    """The real users and room for `fakes` more, the first of which have these rows.

    So data with few, many or no fake users have one size: one compilation, and victims that start alike.

    >>> train = Interactions.from_arrays([0, 1], [2, 3], items=5)
    >>> poisoned(train, np.eye(1, 5), np.array([0]), fakes=2, width=3).dense().sum(1).tolist()
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
    data = poisoned(case.train, rows, targets, **sizes)
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
    makers: dict[str, Callable[[], Attack]] = {
        "top-popular": lambda: attacks.top_popular(**spent),
        "bandwagon": lambda: attacks.hcars_bandwagon(**spent),
        "rapu-r": lambda: attacks.rapu_r(registry.make("wrmf", "rapu-ml-victim"), **spent),
        "dl-attack": lambda: attacks.dl_attack(**spent, k=K),
    }
    base = name.removesuffix("-wo-cf")
    if base in makers:
        return makers[base]()
    turns: dict[str, Any] = {"refit_every": 12, "refit_epochs": 1} if name == "hcars-refit" else {}
    return attacks.hcars(surrogate_of(name, world, told), **spent, users=64, pool=facts.pool, **turns)


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
    if told is None or not name.startswith("hcars"):
        attack = _untold(name, world)
        if told is not None:
            view = as_negatives(view, told).pad(view.capacity)
    else:
        attack = method_of(name, world, told)
    made, facts = crafted(where, attack, case.keys["attack"], view, case.targets)
    rows = np.asarray(made.to_rows())[: attacks.ThreatModel(fakes=spec["fraction"]).count(case.train.users)]
    profiles = Profiles.from_rows(rows, case.targets, clicks_targets=True)
    history = {f"craft_{metric}": values[-1] for metric, values in facts["history"].items()}
    said = {**history, **profile_facts(profiles, case.train)}
    if told is not None:
        said |= {"asked": told.queries, "explained": int(told.found.sum())}
        said |= {"set_size": float(told.sizes[told.found].mean()) if told.found.any() else 0.0}
    if told is not None and name.startswith("hcars"):
        said["live"] = spoken(world, view, told)
    return profiles, said


def spoken(world: str, view: Interactions, told: Explanations) -> float:
    """The share of the explained sets of which the surrogate's premises hold an item."""
    asked, surrogate = known_sets(told), surrogate_of("hcars", world, told)
    if asked is None:
        return 0.0
    return float(jnp.mean(live(surrogate.prepare(view), asked, surrogate.config["history"])))


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


# ------------------------------------------------------------------------------------------------------- Table 1


def table1_cells(quick: bool) -> list[Spec]:
    """MovieLens, NCF, 3%, 80% visible, five seeds, slow crafts last; then other budgets, RCF, 30%, Yelp."""
    first: Place = ("ml", "NCF", 0.8)
    if quick:
        return [_cell(*first, name, 0.03, 0) for name in MAIN[:5]]
    seeds, slow = range(WORLDS["ml"].seeds), ("dl-attack", *MORE)
    found = [_cell(*first, name, 0.03, seed) for seed in seeds for name in MAIN if name not in slow]
    found += [_cell(*first, name, 0.03, seed) for seed in seeds for name in slow]
    places: list[Place] = [
        first,
        ("ml", "RCF", 0.8),
        ("ml", "NCF", 0.3),
        ("ml", "RCF", 0.3),
        ("yelp", "NCF", 0.8),
        ("yelp", "NCF", 0.3),
    ]
    for place in places:
        world = WORLDS[place[0]]
        found += [
            _cell(*place, name, fraction, seed)
            for fraction in FRACTIONS
            for seed in range(world.seeds)
            for name in world.attacks
        ]
    return list({str(spec): spec for spec in found}.values())  # the clean victim has no budget and no view


def _cell(world: str, victim: str, visible: float, attack: str, fraction: float, seed: int) -> Spec:
    spec = {"study": "hcars-table1", "data": world, "victim": victim, "attack": attack, "seed": seed}
    return spec if attack == "none" else {**spec, "visible": visible, "fraction": fraction}


def hits(records: list[Record], place: Place, attack: str, fraction: float) -> Hits:
    """Target HR@10 by seed of a row of the table, in percent."""
    wanted = {"data": place[0], "victim": place[1], "attack": attack}
    if attack != "none":
        wanted |= {"visible": place[2], "fraction": fraction}
    return {
        record.spec["seed"]: 100 * record.result["hr_any"]
        for record in records
        if all(record.spec.get(name) == value for name, value in wanted.items())
    }


def _places(records: list[Record]) -> list[tuple[Place, float]]:
    """Where there is an attack, in the order of the paper."""
    there = {
        ((r.spec["data"], r.spec["victim"], r.spec["visible"]), r.spec["fraction"])
        for r in records
        if r.spec["attack"] != "none"
    }
    rank = lambda at: (at[0][0], at[0][1], -at[0][2], at[1])
    return sorted(there, key=rank)


def shown(fraction: float) -> str:
    """A share as the paper prints it.

    >>> shown(0.03), shown(0.005)
    ('3%', '0.5%')
    """
    return f"{100 * fraction:g}%"


def printed(place: Place, attack: str, fraction: float) -> float | None:
    """The number of the paper's Table 1, None where it has none."""
    if attack not in PAPER:
        return None
    at = (shown(place[2]), WORLDS[place[0]].table, place[1], PAPER[attack], shown(fraction))
    return published("hcars", "table1", "values", *at)


def table1_report(records: list[Record], folder: Path) -> Report:
    """Ours beside the published cell, and which orderings hold."""
    header = [
        "data",
        "victim",
        "visible",
        "fakes",
        "attack",
        "seeds",
        "HR@10 ours",
        "published",
        "popularity",
    ]
    header += ["similarity", "explained"]
    rows, claims = [], []
    for place, fraction in _places(records):
        for attack in (*MAIN, *MORE):
            found = hits(records, place, attack, fraction)
            if found:
                rows.append(_row(records, place, attack, fraction, found))
        claims += _claims(records, place, fraction)
    notes = [
        "ours: share of real users with a target among their 10 best unseen items (hr_any), the definition in the "
        "paper's text, in percent; mean over seeds with a 95% bootstrap interval",
        "published: as printed under HR@10 x 100, which would be percent; the text contradicts that unit. The paper "
        "has no row without an attack",
        "differences are paired by seed; below five seeds there is no verdict, and none is corrected for how many are "
        "looked at",
        "targets: five drawn from all items for each seed; the paper does not say which. They differ by more than "
        "attacks do: means over different seeds cannot be compared, paired differences (below, and in the picture) can",
        "explanations: of the victim without an attack, ACCENT's rule (another item becomes the best), asked about the "
        "best item of 60% of the users (2% on Yelp); similarity: mean cosine between two fake users",
        "NCR learns for 10 epochs (2 on Yelp), of Adam at the paper's rate; H-CARS looks at 64 users for each fake one "
        "and on Yelp chooses from the most clicked tenth; DL-Attack is left out on Yelp",
        "RCF is half as wide as ACCENT's and reads the latest 30 clicks, for speed",
        "no code of H-CARS was found: victims and surrogates have settings of ours where the paper gives none",
        *claims,
    ]
    for record in records:
        notes += [f"{WORLDS[record.spec['data']].table}: {text}" for text in record.result["notes"]]
    pictures = [_picture(records, folder)] if rows else []
    return Report("H-CARS, Table 1", header, rows, list(dict.fromkeys(notes)), pictures)


def _row(records: list[Record], place: Place, attack: str, fraction: float, found: Hits) -> list[str]:
    at = {"data": place[0], "victim": place[1], "attack": attack}
    if attack != "none":
        at |= {"visible": place[2], "fraction": fraction}
    mine = [r.result for r in records if all(r.spec.get(name) == value for name, value in at.items())]
    value = lambda name, digits: report.interval([r.get(name, np.nan) for r in mine], digits, "mean")
    told = [f"{r['explained']}/{r['asked']}" for r in mine if "asked" in r]
    paper = printed(place, attack, fraction)
    return [
        place[0],
        place[1],
        shown(place[2]),
        shown(fraction),
        attack,
        str(len(found)),
        report.interval(list(found.values()), 2, "mean"),
        "-" if paper is None else f"{paper:.2f}",
        value("popularity", 0),
        value("similarity", 2),
        told[0] if told else "-",
    ]


def gap(one: Hits, other: Hits) -> str | None:
    """The mean paired difference; what five seeds say of it, and below that nothing.

    >>> gap({0: 3.0}, {0: 2.5}), gap({0: 3.0}, {1: 2.5})
    ('+0.500 (1 seed)', None)
    """
    shared = sorted(set(one) & set(other))
    if len(shared) == 1:
        return f"{one[shared[0]] - other[shared[0]]:+.3f} (1 seed)"
    return compare(one, other)


def _claims(records: list[Record], place: Place, fraction: float) -> list[str]:
    """The paper's order pair by pair, what explanations are worth, and whether anything beats TopPopular."""
    found = {name: hits(records, place, name, fraction) for name in (*MAIN, *MORE)}
    said = []
    where = f"{place[0]}, {place[1]}, {shown(place[2])} visible, {shown(fraction)}"
    pairs = [(one, other) for number, one in enumerate(ORDER) for other in ORDER[number + 1 :]]
    for one, other in pairs:
        text = gap(found[one], found[other])
        if text:
            paper = [printed(place, name, fraction) or 0.0 for name in (one, other)]
            says = (
                "equal"
                if paper[0] == paper[1]
                else f"{one} ahead"
                if paper[0] > paper[1]
                else f"{other} ahead"
            )
            agree = "same sign" if (float(text.split()[0]) > 0) == (paper[0] > paper[1]) else "other sign"
            said.append(f"{where}: {one} - {other} = {text}; paper: {says}, {agree}")
    pairs = [("hcars", name) for name in ("hcars-wo-cf", "hcars-false", "hcars-as-printed", "hcars-refit")]
    pairs += [(name, f"{name}-wo-cf") for name in ORDER[1:]]
    pairs += [(name, base) for base in ("top-popular", "none") for name in (*ORDER, "hcars-wo-cf")]
    for one, other in pairs:
        text = gap(found[one], found[other])
        said += [f"{where}: {one} - {other} = {text}"] if text else []
    for base, what in (("top-popular", "top-popular"), ("none", "no attack")):
        texts = {name: gap(found[name], found[base]) for name in (*MAIN, *MORE) if name not in (base, "none")}
        known = {name: float(text.split()[0]) for name, text in texts.items() if text}
        if known:
            ahead = [name for name, difference in known.items() if difference > 0]
            said.append(f"{where}: means above {what} on the seeds they share: {', '.join(ahead) or 'none'}")
    return said


def _picture(records: list[Record], folder: Path) -> Path:
    """What each attack adds to no attack, on the seeds that have both: targets of seeds differ more than attacks."""
    places = list(dict.fromkeys(place for place, _ in _places(records)))
    made, axes = report.figure(1, len(places), width=4.4)
    for axis, place in zip(axes[0], places, strict=True):
        base = hits(records, place, "none", 0.0)
        for attack in MAIN[1:]:
            points = {f: gap(hits(records, place, attack, f), base) for f in sorted(FRACTIONS)}
            points = {100 * f: float(text.split()[0]) for f, text in points.items() if text}
            if points:
                axis.plot(list(points), list(points.values()), "o-", label=attack, markersize=4)
        axis.axhline(0, color="k", linestyle="--", linewidth=1)
        title = f"{WORLDS[place[0]].table}, {place[1]}, {shown(place[2])} visible"
        axis.set(title=title, xlabel="fake users, % of real", ylabel=f"target HR@{K} - no attack's, %")
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend(frameon=False, fontsize=7)
    return report.save(made, folder / "hcars-table1.png")


STUDIES = (
    Study(
        "hcars-table1",
        "H-CARS, Table 1: attacks with and without explanations x fake users, MovieLens-100K and Yelp",
        table1_cells,
        run,
        table1_report,
        (900, 8),
    ),
)
