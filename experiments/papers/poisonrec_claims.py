"""What PoisonRec's page says of its attacks, from records: Table IV, who beats Random, where learning goes astray.

Differences between attacks are paired by seed, with the one rule of experiments/paired.py. Table IV's winner is told
within a seed, by Welch's interval over the ten draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import report
from experiments.paired import ENOUGH, Gap, gap
from experiments.papers.poisonrec_strategy import HABITS, habits
from experiments.published import published
from experiments.record import Record

TARGETS = 8
"""New items: the most places in its list that a user can give to RecNum."""
HEURISTICS: tuple[str, ...] = ("Random", "Popular", "Middle", "PowerItem")
LEARNERS = ("PoisonRec", "AppGrad", "ConsLOP")
"""The attacks that a victim was made for or that learn from one."""
MOVED, FULL, EARLY = 0.001, 0.95, 0.1
"""Shares of the 8U places that an attack has to add to move a ranker, and that fill it; of the steps that are early."""
STILL, SATURATED, OTHERS = "nothing moves the ranker", "Random fills the lists", "made for CoVisitation"
FALLING, FEW, UNKNOWN = "mean reward falls", "too few seeds", "below Random, cause not known"
CAUSES = {
    STILL: f"no attack brings RecNum above its clean value by more than {MOVED:.1%} of the 8U places within the 10 "
    "epochs of the update, so there is next to no reward to learn from; what longer updates and smaller batches do is "
    "what poisonrec-updates asks",
    SATURATED: f"it has {FULL:.0%} of the 8U places or more, so nobody can be far ahead",
    OTHERS: "ConsLOP plans against counts of co-visits, which this ranker does not have",
    FALLING: "what AppGrad is told ends below what it began with, in every record of the cell",
    FEW: "fewer than three, or an interval that holds 0",
    UNKNOWN: "",
}
"""Why an attack is not above Random for sure, and what is meant."""
BEST = ("PoisonRec, best set", "minus AppGrad, best sets")
Places = dict[tuple[str, str], dict[str, list[Record]]]
"""The records of each ranker of a data set, by attack."""


def table4(places: Places, cells: int) -> str:
    """How often each heuristic is the best of the four, counted where there is a best one."""
    best, complete = dict.fromkeys(HEURISTICS, 0), 0
    for of in places.values():
        seeds = set.intersection(*({r.spec["seed"] for r in of[name]} for name in HEURISTICS))
        complete += bool(seeds)
        winners = {
            _winner([r for name in HEURISTICS for r in of[name] if r.spec["seed"] == seed]) for seed in seeds
        }
        separate = winners.pop() if len(winners) == 1 else None
        if separate is not None:
            best[separate] += 1
    printed = {name: published("poisonrec", "table4", "values", name, "All") for name in HEURISTICS}
    count = lambda of: ", ".join(f"{name} {number}" for name, number in of.items())
    return (
        f"best of the four heuristics (Table IV), ours: {count(best)}; of {complete} complete cells, "
        f"{complete - sum(best.values())} without a separate winner; paper: {count(printed)}, of "
        f"{cells} cells. A winner is separate where it is the same on every seed, its draws are "
        "above the runner-up's and the clean value by a 95% interval (Welch), and its RecNum is above the clean value "
        f"by more than {MOVED:.1%} of the 8U places"
    )


def _winner(rivals: list[Record]) -> str | None:
    """Of records of one seed, the attack that is above the runner-up and the clean value for sure, or None."""
    first, second = sorted(rivals, key=lambda r: r.result["recnum"], reverse=True)[:2]
    draws, clean = first.result["draws"], [first.result["clean"]]
    if _moved(first) and above(draws, second.result["draws"]) and above(draws, clean):
        return first.spec["attack"]
    return None


def above(one: list[float], other: list[float]) -> bool:
    """Whether Welch's 95% interval of the difference of two means lies above 0; a single value is known exactly.

    >>> above([3.0, 4.0, 5.0], [1.0]), above([3.0, 4.0, 5.0], [2.0, 4.0, 6.0]), above([1.0, 1.0], [0.5, 0.5])
    (True, False, True)
    """
    from scipy import stats

    ahead = float(np.mean(one) - np.mean(other))
    parts = [np.var(v, ddof=1) / len(v) if len(v) > 1 else 0.0 for v in (one, other)]
    if sum(parts) == 0:
        return ahead > 0
    freedom = sum(parts) ** 2 / sum(part**2 / max(len(v) - 1, 1) for part, v in zip(parts, (one, other)))
    return ahead > float(stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts)))


def _moved(record: Record) -> bool:
    """Whether RecNum is above that of the clean ranker by more than `MOVED` of the places for targets."""
    return record.result["recnum"] - record.result["clean"] > MOVED * TARGETS * record.result["users"]


def gains(places: Places) -> list[str]:
    """A table of paired differences and of what the final policy clicks; where each attack beats Random, or why not."""
    rows: list[list[str]] = []
    said: dict[str, dict[str, list[str]]] = {
        name: {why: [] for why in ("above", *CAUSES)} for name in LEARNERS
    }
    for (data, ranker), of in places.items():
        value = {name: {r.spec["seed"]: r.result["recnum"] for r in found} for name, found in of.items()}
        gaps = {name: gap(value[name], value["Random"]) for name in LEARNERS}
        for name, against in gaps.items():
            if against is not None:
                why = "above" if against.verdict == "above" else _cause(name, ranker, of, against)
                said[name][why].append(f"{data} {ranker}")
        row = [*(_told(each) for each in gaps.values()), _lead(value), *_best(of), *habits(of["PoisonRec"])]
        if set(row) != {"-"}:
            rows.append([data, ranker, *row])
    if not rows:
        return []
    header = ["data", "ranker", *(f"{name} minus Random" for name in LEARNERS)]
    header += ["PoisonRec minus the best that asks nothing", *BEST, *HABITS]
    table = "\n".join(f"  {line}" for line in report.markdown(header, rows).splitlines())
    lines = [
        f"{name} minus Random: " + "; ".join(f"{why}: {', '.join(at)}" for why, at in found.items() if at)
        for name, found in said.items()
        if any(found.values())
    ]
    causes = {why for found in said.values() for why, at in found.items() if at}
    return [
        "differences paired by seed with Student's 95% intervals and a verdict from three seeds on, not corrected for "
        "how many there are; and shares of what PoisonRec's final policy clicks (seed 0):\n\n"
        f"{table}\n",
        *lines,
        *(f"{why}: {meant}" for why, meant in CAUSES.items() if meant and why in causes),
    ]


def _cause(name: str, ranker: str, of: dict[str, list[Record]], against: Gap) -> str:
    """Why an attack is not above Random for sure, as far as records tell."""
    if not any(_moved(record) for found in of.values() for record in found):
        return STILL
    if np.mean([r.result["recnum"] / (TARGETS * r.result["users"]) for r in of["Random"]]) >= FULL:
        return SATURATED
    if against.sign <= 0 or against.seeds >= ENOUGH:
        if name == "ConsLOP" and ranker != "CoVisitation":
            return OTHERS
        if name == "AppGrad" and all(_fell(r.result) for r in of[name]):
            return FALLING
    return UNKNOWN if against.verdict == "below" else FEW


def _lead(value: dict[str, dict[int, float]]) -> str:
    """PoisonRec minus the best of those that ask nothing, and which that is."""
    gaps = {name: gap(value["PoisonRec"], value[name]) for name in (*HEURISTICS, "ConsLOP")}
    known = {name: each for name, each in gaps.items() if each}
    if not known:
        return "-"
    best = min(known, key=lambda name: known[name].mean)
    return f"{best}: {_told(known[best])}"


def _best(of: dict[str, list[Record]]) -> list[str]:
    """The best set that PoisonRec met while it learned, and its lead on AppGrad's: the cells of `BEST`."""
    ours, theirs = ({r.spec["seed"]: r.result["best"] for r in of[name]} for name in ("PoisonRec", "AppGrad"))
    return [report.interval(list(ours.values()), 0, "mean"), _told(gap(ours, theirs))]


def _told(found: Gap | None) -> str:
    return "-" if found is None else found.said(0)


def wandering(found: list[Record]) -> list[str]:
    """How often AppGrad's mean reward ends below its first value, a line a kind of directions."""
    said = []
    for kind in dict.fromkeys(r.spec["kind"] for r in found):
        mine = [r.result for r in found if r.spec["kind"] == kind]
        fell = [result for result in mine if _fell(result)]
        early = sum(np.argmax(r["best_reward"]) < EARLY * len(r["best_reward"]) for r in fell)
        said.append(
            f"AppGrad ({kind} directions): its mean reward ends below its first value in {len(fell)} of {len(mine)} "
            "records"
            + (f"; the best set of {early} of these is of the first {EARLY:.0%} of the steps" if fell else "")
        )
    return said


def _fell(result: dict[str, Any]) -> bool:
    return result["mean_reward"][-1] < result["mean_reward"][0]
