"""PoisonRec (Song et al., ICDE 2020): Table III (RecNum of attacks on eight rankers), Table IV, Figs. 4 to 6.

A ranker of a data set is trained once and then attacked by everybody: what is random in it (candidates, initial
parameters) is the same for all attacks of a seed. Data whose order is not known (Steam, Phone, MovieLens-1M here) have
no cells of the two rankers that learn from order, and none of ConsLOP, which plans its clicks from the co-visits of
neighboring events. Fig. 6 is in poisonrec_strategy.py.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

import attacks
from attacks.attack import Attack
from attacks.environment import Environment, World, environment
from attacks.poisonrec import fresh
from experiments import report
from experiments.crafts import FOLDER
from experiments.papers.poisonrec_claims import HEURISTICS, TARGETS, Places, gains, table4, wandering
from experiments.papers.poisonrec_strategy import notes_of, planes, strategy
from experiments.published import published
from experiments.record import Record, Records
from experiments.study import Report, Spec, Study
from models import registry
from models.data import Interactions, Profiles, new_items
from models.data.protocols import prepared

FAKES, CLICKS, DRAWS = 20, 20, 10
CANDIDATES, LIST = 92, 10
DATA = {
    "clothing": ("poisonrec-clothing", "Clothing", True),
    "steam": ("poisonrec-steam", "Steam", False),
    "phone": ("poisonrec-phone", "Phone", False),
    "ml-1m": ("poisonrec-ml-1m", "MovieLens", False),
}
"""Preset, the paper's name, and whether the order of the events is known."""
RANKERS: dict[str, tuple[str, str | None]] = {
    "ItemPop": ("itempop", None),
    "CoVisitation": ("covisitation", None),
    "PMF": ("pmf", "poisonrec"),
    "BPR": ("bpr", None),
    "NeuMF": ("neumf", "poisonrec"),
    "AutoRec": ("autorec", "poisonrec"),
    "GRU4Rec": ("gru4rec", "poisonrec"),
    "NGCF": ("ngcf", "brief"),
}
ORDERED = ("CoVisitation", "GRU4Rec")
TABLELESS = ("ItemPop", "CoVisitation", "AutoRec")
ATTACKS = (*HEURISTICS, "ConsLOP", "AppGrad", "PoisonRec")
DESIGNS = ("bcbt-popular", "bcbt-random", "bplain", "plain")
DIRECTIONS = "svd"
"""AppGrad's directions, as in its paper."""
STEPS = 100
SAMPLE = 1000
"""Users, drawn anew for each step, of whose lists a learning attack is told; the RecNum reported is of all."""


# ------------------------------------------------------------------------------------------------------- one cell


@functools.lru_cache(maxsize=1)
def _data(name: str) -> tuple[Interactions, Array, tuple[str, ...]]:
    """Training events with the new items in the catalog, their ids, and notes."""
    made = prepared(DATA[name][0])
    assert made.data.split is not None
    train, targets = new_items(made.data.split.train, TARGETS)
    assert isinstance(train, Interactions)
    return train, targets, made.notes


@functools.lru_cache(maxsize=16)
def _box(
    ranker: str, users: int | None = None, ft_epochs: int = 10, ft_batch: int | None = None
) -> Environment:
    name, preset = RANKERS[ranker]
    return environment(
        registry.make(name, preset),
        ft_epochs=ft_epochs,
        ft_batch=ft_batch,
        candidates=CANDIDATES,
        k=LIST,
        users=users,
    )


@functools.lru_cache(maxsize=2)
def _world(data: str, ranker: str, seed: int) -> World:
    """The clean ranker and the candidates of a seed, shared by all attacks."""
    train, targets, _ = _data(data)
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return jax.block_until_ready(_box(ranker).open(key, train, targets, FAKES))


def place(items: int) -> int:
    """The place in a list of the whole catalog that puts an item among the 10 best of the 100 that are offered."""
    return max(LIST, LIST * items // (CANDIDATES + TARGETS))


def attack_of(name: str, box: Environment, items: int, design: str, steps: int) -> Attack:
    """The attack of a row; those that ask have the same number of queries."""
    spent: dict[str, Any] = {"fakes": FAKES, "clicks": CLICKS}
    plain: dict[str, Any] = dict(
        zip(HEURISTICS, (attacks.random, attacks.popular, attacks.middle, attacks.power_item), strict=True)
    )
    if name in plain:
        return plain[name](track="sequence", **spent)
    if name == "ConsLOP":
        return attacks.covisitation(track="sequence", k=place(items), **spent)
    if name == "AppGrad":
        return attacks.appgrad(box, **spent, queries=32 * steps, kind=DIRECTIONS)
    return attacks.poisonrec(box, design=design, steps=steps, **spent)  # type: ignore[arg-type]


def run(spec: Spec) -> dict[str, Any]:
    """RecNum without an attack and with one: the mean over ten draws (of the profiles, or of the final policy)."""
    train, targets, notes = _data(spec["data"])
    tuning = {name: spec[name] for name in ("ft_epochs", "ft_batch") if name in spec}
    box, world = _box(spec["ranker"], **tuning), _world(spec["data"], spec["ranker"], spec["seed"])
    asked = _box(spec["ranker"], spec.get("users"), **tuning).at(world)  # whoever learns is told an estimate
    attack = attack_of(
        spec["attack"], asked, train.items, spec.get("design", DESIGNS[0]), spec.get("steps", STEPS)
    )
    key, for_draws, for_rewards = jax.random.split(jax.random.fold_in(jax.random.key(spec["seed"]), 1), 3)
    found: dict[str, Any] = {
        "notes": list(notes),
        "clean": float(box.clean(world).recnum),
        "users": train.users,
    }
    if attack.steps:
        last: dict[str, Any] = {}
        where = FOLDER / Records(FOLDER).path(spec).stem  # a killed cell goes on, also from its very end
        seen = lambda block: last.update(state=block.state)
        done = attacks.run(attack, key, train, targets, block=5, progress=seen, store=where)
        clicks = _final(spec["attack"], last["state"], for_draws, done.profiles)
        shutil.rmtree(where)
        found |= {name: np.asarray(values).tolist() for name, values in done.history.items()}
        best = box.judge(world, _clicks(done.profiles), for_rewards)
        found |= {"best": float(best.recnum), "craft_seconds": done.seconds}
    else:
        keys = jax.random.split(for_draws, DRAWS)
        clicks = jnp.stack([_clicks(attack(one, train, targets)) for one in keys])
    outcome = jax.jit(box.rewards)(world, clicks, for_rewards)
    rewards = outcome.recnum
    share = np.isin(np.asarray(clicks), np.asarray(targets)).mean()
    if spec["attack"] == "PoisonRec" and spec["seed"] == 0:
        table, found["space"] = _table(spec, world)
        found |= strategy(np.asarray(clicks), np.asarray(targets), table, train)
    return {
        **found,
        "recnum": float(jnp.mean(rewards)),
        "draws": np.asarray(rewards).tolist(),
        "share": float(share),
        "diverged": float(jnp.mean(outcome.lost)),
    }


def _table(spec: Spec, world: World) -> tuple[np.ndarray, str]:
    """Vectors of the items in the ranker's space; if it has none, those of PMF on the same data and seed."""
    name = "PMF" if spec["ranker"] in TABLELESS else spec["ranker"]
    params = (world if name == spec["ranker"] else _world(spec["data"], name, spec["seed"])).base.params
    return np.asarray(params["out" if name == "GRU4Rec" else "item"]), name


def _final(name: str, state: Any, key: Array, best: Profiles) -> Int[Array, "M N T"]:
    """What is reported: fresh sets of the final policy; AppGrad ends with one set."""
    if name != "PoisonRec":
        return _clicks(best)[None]
    return fresh(state.own, key, sets=DRAWS)


def _clicks(profiles: Profiles) -> Int[Array, "N T"]:
    assert profiles.clicks is not None  # sequences
    return profiles.clicks


# ------------------------------------------------------------------------------------------------------ Table III


def table3_cells(quick: bool) -> list[Spec]:
    """The data whose order is known first; all attacks of a ranker together, because they share its training.

    AppGrad, which takes longer than all others together, comes when they are done.
    """
    if quick:
        return [cell("steam", "ItemPop", name, 0, 5) for name in ATTACKS if name != "ConsLOP"]
    quick_ones = tuple(name for name in ATTACKS if name != "AppGrad")
    return [
        cell(data, ranker, attack, seed, STEPS)
        for seed in range(3)
        for data, (_, _, ordered) in DATA.items()
        for names in (quick_ones, ("AppGrad",))
        for ranker in RANKERS
        for attack in names
        if ordered or (ranker not in ORDERED and attack != "ConsLOP")
    ]


def cell(data: str, ranker: str, attack: str, seed: int, steps: int) -> Spec:
    """The spec of a cell of Table III; only those that learn have steps and users, AppGrad its directions."""
    spec = {"study": "poisonrec-table3", "data": data, "ranker": ranker, "attack": attack, "seed": seed}
    if attack in HEURISTICS or attack == "ConsLOP":
        return spec
    learns = {**spec, "steps": steps, "users": SAMPLE}
    return {**learns, "kind": DIRECTIONS} if attack == "AppGrad" else learns


def values_of(records: list[Record], name: str, **wanted: Any) -> list[float]:
    """A result of the records whose specs have these values."""
    return [r.result[name] for r in records if all(r.spec.get(k) == v for k, v in wanted.items())]


def table3_report(records: list[Record], folder: Path) -> Report:
    """A row a ranker of a data set, a column an attack: ours / published; and a second table of what they gain."""
    header, places = ["data", "ranker", "seeds", "clean", *ATTACKS], _places(records)
    rows = [_row(data, ranker, of) for (data, ranker), of in places.items()]
    notes = [
        f"RecNum, ours / published; {report.SEEDS}; a seed: the mean of ten draws (PoisonRec: of its final policy; "
        "AppGrad: its best set); 20 attackers, 20 clicks each, 8 new items, 92 + 8 candidates, lists of 10",
        "the paper states neither the number of training steps nor the epochs of an update: ours are "
        f"{STEPS} (or those of the record) and 10",
        f"attacks that learn are told RecNum as estimated from {SAMPLE} users, drawn anew for each step (curves show "
        "what is told); the table's is of all users",
        "steam, phone, ml-1m: the order of the events is not known, so CoVisitation and GRU4Rec, which learn from it, "
        "and ConsLOP, which plans from the co-visits of neighboring events, have no cells",
        "ConsLOP plans for the place in an item's list of the catalog that is among the 10 best of 100 candidates",
        *wandering([record for of in places.values() for record in of["AppGrad"]]),
        "NGCF is trained for 120 epochs of batches of 8192 at rate 0.001, the rate of its updates too (its own code: "
        "400 epochs of 1024 at 0.0001, hours)",
        "steps in the records: "
        + ", ".join(sorted({str(r.spec["steps"]) for r in records if "steps" in r.spec})),
        table4(places, len(DATA) * len(RANKERS)),
        *gains(places),
    ]
    for data in DATA:
        facts = dict.fromkeys(text for r in records if r.spec["data"] == data for text in r.result["notes"])
        if facts:
            notes.append(f"{data}: {'; '.join(facts)}")
    for record in records:
        if record.result.get("diverged", 0) > 0:
            place_ = ", ".join(str(record.spec[name]) for name in ("data", "ranker", "attack"))
            notes.append(
                f"{place_}: the update broke the scores of {record.result['diverged']:.0%} of the users"
            )
    notes += notes_of(records)
    pictures = [*_pictures(records, folder), *planes(records, folder)]
    return Report("PoisonRec, Table III", header, rows, list(dict.fromkeys(notes)), pictures)


def _places(records: list[Record]) -> Places:
    """The records, in the paper's order of data and rankers."""
    found = {(data, ranker): {name: [] for name in ATTACKS} for data in DATA for ranker in RANKERS}
    for record in records:
        found[record.spec["data"], record.spec["ranker"]][record.spec["attack"]].append(record)
    return {place_: of for place_, of in found.items() if any(of.values())}


def _row(data: str, ranker: str, of: dict[str, list[Record]]) -> list[str]:
    """A row of Table III; an attack may have fewer seeds than another."""
    shown = [
        f"{report.interval([r.result['recnum'] for r in found], 0, 'mean')} / "
        f"{published('poisonrec', 'table3', 'values', DATA[data][1], ranker, attack):,}"
        for attack, found in of.items()
    ]
    seen = {r.spec["seed"]: r.result["clean"] for found in of.values() for r in found}
    seeds = sorted({len(found) for found in of.values() if found})
    spread = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return [data, ranker, spread, report.interval(list(seen.values()), 0, "mean"), *shown]


def _pictures(records: list[Record], folder: Path) -> list[Path]:
    """Learning curves (Fig. 4) and ratios of clicks on targets (Fig. 5)."""
    learned = [r for r in records if r.spec["attack"] == "PoisonRec"]
    if not learned:
        return []
    made, axes = report.figure(1, 2, width=6)
    for ranker in RANKERS:
        for name, axis in (("mean_reward", axes[0, 0]), ("target_share", axes[0, 1])):
            for data in DATA:
                curves = [
                    r.result[name] for r in learned if (r.spec["ranker"], r.spec["data"]) == (ranker, data)
                ]
                if curves:
                    users = max(r.result["users"] for r in learned if r.spec["data"] == data)
                    scale = 1 / (TARGETS * users) if name == "mean_reward" else 1
                    report.curves(axis, {f"{ranker}, {data}": (scale * np.array(curves)).tolist()})
    axes[0, 0].set(xlabel="training step", ylabel="RecNum / 8U", title="PoisonRec")
    axes[0, 1].set(xlabel="training step", ylabel="clicks on targets", ylim=(0, 1))
    axes[0, 1].legend(frameon=False, fontsize=7)
    return [report.save(made, folder / "poisonrec-table3.png")]


# ---------------------------------------------------------------------------------------------------------- Fig. 4


def designs_cells(quick: bool) -> list[Spec]:
    """The four action spaces on Steam; BPR, which nothing moves within an update, last."""
    rankers, steps = (
        (("ItemPop",), 5) if quick else (("ItemPop", "PMF", "NeuMF", "AutoRec", "NGCF", "BPR"), STEPS)
    )
    return [
        {**cell("steam", ranker, "PoisonRec", seed, steps), "study": "poisonrec-designs", "design": design}
        for seed in range(1 if quick else 3)
        for ranker in rankers
        for design in DESIGNS
    ]


def designs_report(records: list[Record], folder: Path) -> Report:
    """A learning curve a design."""
    header, rows = (
        ["ranker", "design", "seeds", "RecNum, final policy", "best set", "clicks on targets", "s / step"],
        [],
    )
    rankers = list(dict.fromkeys(r.spec["ranker"] for r in records))
    made, axes = report.figure(1, len(rankers))
    for column, ranker in enumerate(rankers):
        for design in DESIGNS:
            found = [r.result for r in records if (r.spec["ranker"], r.spec["design"]) == (ranker, design)]
            if not found:
                continue
            means = [report.interval([r[name] for r in found], digits, "mean") for name, digits in _SHOWN]
            pace = report.interval([r["craft_seconds"] / len(r["mean_reward"]) for r in found], 2, "mean")
            rows.append([ranker, design, str(len(found)), *means, pace])
            report.curves(axes[0, column], {design: [r["mean_reward"] for r in found]})
        axes[0, column].set(title=f"{ranker}, Steam", xlabel="training step", ylabel="RecNum")
    axes[0, 0].legend(frameon=False, fontsize=7)
    notes = [f"{report.SEEDS}; the paper shows curves only (its Fig. 4)"]
    picture = report.save(made, folder / "poisonrec-designs.png")
    return Report("PoisonRec: four action spaces", header, rows, notes, [picture])


_SHOWN = (("recnum", 0), ("best", 0), ("share", 2))

STUDIES = (
    Study(
        "poisonrec-table3",
        "PoisonRec, Table III: attacks x rankers, RecNum",
        table3_cells,
        run,
        table3_report,
        (900, 6),
    ),
    Study(
        "poisonrec-designs",
        "PoisonRec, Fig. 4: four action spaces",
        designs_cells,
        run,
        designs_report,
        (360, 5),
    ),
)
