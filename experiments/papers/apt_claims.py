"""What APT's tables claim, held against ours: stars, robustness improvement, golden values, and what undermines them.

Records in, sentences out, for the pages of apt_tables.py and apt_figs.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.paired import Gap, gap
from experiments.papers.apt import ATTACKS, DEFENSES, KINDS, PAPER, VARIANTS, WORLDS
from experiments.published import published
from experiments.record import Record
from models.evaluation import paired_t, robustness_improvement

Place = tuple[str, str, str]
"""Data, attack and kind of targets."""
Cells = dict[tuple[str, str, str, str], Record]
"""A record a place and defense."""
TABLES = {"hr_mean": "table2", "hr_test": "table3"}
RIVALS = {"apt": ("at", "pcmf", "apt-rand"), "apt-own": ("at", "pcmf", "apt-rand-own")}
"""The paper's baselines; what takes its ratings from the data at hand is compared with what does too."""
LEVELS = (0.05, 0.01, 0.001)
"""A star for each that p is below, as in the captions."""
GOLDEN: Mapping[str, Mapping[tuple[str, str, str], tuple[float, float | None]]] = {
    "hr_mean": {
        ("random", "none", "none"): (0.048, 0.028),
        ("random", "average", "none"): (0.446, 0.043),
        ("random", "random", "none"): (0.208, 0.053),
        ("random", "average", "apt-block"): (0.061, 0.025),
        ("random", "average", "apt-paper-risk"): (0.057, 0.029),
        ("random", "average", "apt-identity"): (0.050, 0.012),
        ("random", "average", "apt-rand"): (0.192, 0.041),
        ("unpopular", "none", "none"): (0.0, None),
        ("unpopular", "average", "none"): (0.910, 0.050),
        ("unpopular", "random", "none"): (0.408, 0.139),
        ("unpopular", "average", "apt-block"): (0.0006, None),
        ("unpopular", "average", "apt-paper-risk"): (0.0006, None),
        ("unpopular", "average", "apt-identity"): (0.0007, None),
        ("unpopular", "average", "apt-rand"): (0.066, 0.036),
    },
    "hr_test": {("random", "none", "none"): (0.209, None), ("random", "average", "apt-block"): (0.220, None)},
}
"""Golden values on MovieLens-100K by targets, attack and defense: mean and standard deviation (None: not kept).

They are runs of a separate NumPy version of the released code's recipe on its released split, six seeds or more; none
of this library's code is in it. Its APT inverts by the released code's series on the blocks of H.
"""
STAND_IN = {"apt": "apt-block"}
"""Whose golden value another solver has to reach: the paper's APT has one inverse, and ours by default another."""


def by_cell(records: list[Record]) -> Cells:
    """Records by data, attack, kind of targets and defense; of several those with the most seeds."""
    few_first = sorted(records, key=lambda record: record.spec["seeds"])
    return {tuple(r.spec[name] for name in ("data", "attack", "targets", "defense")): r for r in few_first}


def places() -> Iterator[Place]:
    """Every row of a table, in its order."""
    return ((data, attack, kind) for data in WORLDS for kind in KINDS for attack in ATTACKS)


def printed(table: str, place: Place) -> dict[str, Any]:
    """The row of the paper: its numbers, and `stars`."""
    data, attack, kind = place
    both = published("apt", table, "values", WORLDS[data].table, ATTACKS[attack])
    return {**both[kind], "stars": both["stars"][kind]}


# ---------------------------------------------------------------------------------------------------------- stars


class Versus(NamedTuple):
    """A defense minus its rival, paired by seed: the mean difference, p of the t-test, and if it is for the better."""

    rival: str
    difference: float
    p: float
    good: bool

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `undecided`, also where the test is undefined.

        >>> Versus("at", -0.1, 0.004, good=True).verdict, Versus("at", -0.1, float("nan"), good=True).verdict
        ('better', 'undecided')
        """
        return "undecided" if not self.p < LEVELS[0] else "better" if self.good else "worse"

    def __str__(self) -> str:
        """As a cell of a table.

        >>> print(Versus("at", -0.1, 0.004, good=True))
        -0.1000 (at), better **
        """
        stars = "".join("*" for level in LEVELS if self.p < level)
        return f"{self.difference:+.4f} ({self.rival}), {self.verdict} {stars}".rstrip()


def versus(found: Cells, place: Place, defense: str, metric: str, *, near: bool = False) -> Versus | None:
    """The paper's paired t-test: of target hit rates against the best baseline, of test hit rates against clean.

    Args:
        found: all cells.
        place, defense: which of them.
        metric: "hr_mean" (Table 2) or "hr_test" (Table 3).
        near: of target hit rates the best is the nearest to the clean model of the same seed; False: the lowest.

    Returns:
        None where the defense, the clean model or a baseline is missing, or there is one seed.

    **Differs from the paper:** which does not say in what the best baseline is the best.
    """
    data, _, kind = place
    clean, mine = found.get((data, "none", kind, "none")), found.get((*place, defense))
    if clean is None or mine is None or mine.spec["seeds"] < 2:
        return None
    values = lambda record: np.array(record.result[metric])
    if metric == "hr_test":
        n = min(mine.spec["seeds"], clean.spec["seeds"])  # seeds are numbered from 0
        test = paired_t(values(mine)[:n], values(clean)[:n])
        return Versus("clean", test.difference, test.p, test.difference > 0)
    rivals = {name: found.get((*place, name)) for name in RIVALS[defense]}
    there = {name: record for name, record in rivals.items() if record is not None}
    if len(there) < len(rivals):
        return None
    n = min(record.spec["seeds"] for record in (mine, clean, *there.values()))
    zero = values(clean)[:n] if near else np.zeros(n)
    cost = lambda record: np.abs(values(record)[:n] - zero)
    best = min(there, key=lambda name: float(np.mean(cost(there[name]))))
    test = paired_t(cost(mine), cost(there[best]))
    return Versus(best, test.difference, test.p, test.difference < 0)


def tally(found: Cells, metric: str) -> list[str]:
    """In how many cells APT is better or worse, and whether the printed stars say the same."""
    targets = metric == "hr_mean"
    said = []
    for defense, rivals in RIVALS.items():
        for near in (False, True) if targets else (False,):
            made = {place: versus(found, place, defense, metric, near=near) for place in places()}
            there = {place: each for place, each in made.items() if each is not None}
            if not there:
                continue
            counts = ", ".join(
                f"{word} in {sum(each.verdict == word for each in there.values())}"
                for word in ("better", "worse", "undecided")
            )
            best = f"the best of {', '.join(rivals)} " + ("(nearest to clean)" if near else "(lowest)")
            said.append(
                f"{defense} against {best if targets else 'the clean model'}, of {len(there)} cells: {counts}"
                + (_agreement(there, TABLES[metric]) if defense in PAPER else "")
            )
    return said


def _agreement(there: Mapping[Place, Versus], table: str) -> str:
    """In how many cells a significant improvement is both printed and found, or neither."""
    stars = {place: printed(table, place)["stars"] > 0 for place in there}
    ours = {place: each.verdict == "better" for place, each in there.items()}
    same = sum(stars[place] == ours[place] for place in there)
    only = sum(stars[place] > ours[place] for place in there)
    return (
        f". The printed stars and ours agree on an improvement, or on none, in {same} of {len(there)} "
        f"(printed only in {only}, here only in {len(there) - same - only})"
    )


def odd_stars() -> list[str]:
    """Rows of Table 2 whose stars cannot be against the best printed baseline."""
    names = [PAPER[name] for name in RIVALS["apt"]]
    rows = {place: printed("table2", place) for place in places()}
    odd = [
        ", ".join(place)
        for place, row in rows.items()
        if row["stars"] and row["APT"] >= min(row[name] for name in names)
    ]
    return [f"stars printed where a printed baseline is lower than APT: {'; '.join(odd)}"] if odd else []


def broken(found: Cells) -> list[str]:
    """Defenses that leave less than half of the clean test hit rate: there is no recommender left to defend."""
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (data, attack, kind, defense), record in found.items():
        clean = found.get((data, "none", kind, "none"))
        if clean is not None and attack != "none":
            pair = float(np.mean(record.result["hr_test"])), float(np.mean(clean.result["hr_test"]))
            rates.setdefault((defense, data), []).append(pair)
    said = []
    for defense, data in ((defense, data) for defense in DEFENSES for data in WORLDS):
        pairs = rates.get((defense, data), [])
        lost = [pair for pair in pairs if pair[0] < pair[1] / 2]
        if lost:
            left, whole = np.mean(lost, 0)
            said.append(
                f"{defense} on {data} ({left:.4f} of {whole:.4f}, in {len(lost)} of {len(pairs)} cells)"
            )
    return [f"less than half of the clean test hit rate is left by {'; '.join(said)}"] if said else []


# ---------------------------------------------------------------------------------------------- minus random attack


def against_random(found: Cells) -> list[str]:
    """A line a method: what it reaches beyond random fillers on the undefended model, by data and kind of targets."""
    said = []
    for attack in ATTACKS:
        made = []
        for data, kind in ((data, kind) for data in WORLDS for kind in KINDS):
            pair = [found.get((data, name, kind, "none")) for name in (attack, "random")]
            if attack != "random" and pair[0] is not None and pair[1] is not None:
                mine, other = (dict(enumerate(record.result["hr_mean"])) for record in pair if record)
                between = gap(mine, other)
                made += [f"{data}, {kind} {between.said()}"] if between else []
        said += [f"{attack} minus random, no defense: {'; '.join(made)}"] if made else []
    if said:
        said.append(
            "each attack is crafted once for all seeds, so these intervals are over victims and not over crafts; pga's "
            "integrity has no gradient in a filler while users' factors are held (attacks/pga.py): its fillers stay "
            "random, and what sets it apart from random is one draw against another"
        )
    return said


# -------------------------------------------------------------------------------------------------------------- RI


def effect(attacked: Sequence[float], clean: Sequence[float]) -> Gap:
    """What an attack does to hit rates by seed; RI is told where it is `above`.

    >>> effect([0.5, 0.6, 0.4, 0.5], [0.1, 0.1, 0.2, 0.1]).verdict, effect([0.1, 0.1, 0.3], [0.1, 0.1, 0.1]).verdict
    ('above', 'undecided')
    """
    found = gap(dict(enumerate(attacked)), dict(enumerate(clean)))
    assert found is not None  # both have the seed 0
    return found


def improvements(found: Cells) -> list[str]:
    """The paper's mean RI, over the cells where the attack does something; its own mean over the same cells.

    RI divides by the attack's effect: near 0 it is of any size, below 0 of the wrong sign. A cell counts where the
    95% t-interval of attacked minus clean over seeds lies above 0.
    """
    said = []
    for kind in KINDS:
        attacked = [place for place in places() if place[2] == kind and (*place, "none") in found]
        rates = lambda *cell: found[cell].result["hr_mean"]
        effects = {
            place: effect(rates(*place, "none"), rates(place[0], "none", kind, "none"))
            for place in attacked
            if (place[0], "none", kind, "none") in found
        }
        clear = [place for place, its in effects.items() if its.verdict == "above"]
        shared = [place for place in clear if all((*place, name) in found for name in PAPER)]
        shown = lambda place, effects=effects: f"{', '.join(place[:2])} ({effects[place].text(4)})"
        out = [shown(place) for place in effects if place not in clear]
        out += [f"{', '.join(place[:2])} (a column is missing)" for place in clear if place not in shared]
        if effects:
            least = min(shared, key=lambda place, effects=effects: effects[place].mean) if shared else None
            said.append(
                f"RI, {kind} targets: the mean (and median) over the {len(shared)} of {len(effects)} cells where "
                "the attack's effect, attacked minus clean, is above 0 by its 95% t-interval over seeds; left out: "
                f"{'; '.join(out) or 'none'}"
                + (f"; the least effect, by which RI divides: {shown(least)}" if least else "")
            )
        said += [text for name in DEFENSES[1:] for text in _improvement(found, shared, kind, name)]
    return said


def _improvement(found: Cells, shared: list[Place], kind: str, defense: str) -> list[str]:
    mine = [place for place in shared if (*place, defense) in found]
    if not mine:
        return []
    mean = lambda *cell: float(np.mean(found[cell].result["hr_mean"]))
    ours = [
        [mean(*place, defense), mean(*place, "none"), mean(place[0], "none", kind, "none")] for place in mine
    ]
    text = f"RI, {kind} targets, {defense}: {_centers(ours)}"
    if defense in PAPER:
        rows = [printed("table2", place) for place in mine]
        text += (
            f", published {_centers([[row[PAPER[defense]], row['Attack'], row['origin']] for row in rows])}"
        )
    return [text + ("" if len(mine) == len(shared) else f", over {len(mine)}")]


def _centers(triples: list[list[float]]) -> str:
    """Mean and median RI of triples of defended, attacked and clean hit rates."""
    found = robustness_improvement(*np.array(triples).T)
    return f"{float(found.mean):.3f} ({float(np.median(np.asarray(found.value))):.3f})"


# ----------------------------------------------------------------------------------------- golden values, solves


def golden(found: Cells, metric: str) -> list[str]:
    """Golden value, ours, and whether ours is within two standard deviations of it."""
    said: dict[str, list[str]] = {}
    kept, total = 0, 0
    for (kind, attack, name), (value, deviation) in GOLDEN[metric].items():
        for defense in (name, *(other for other, of in STAND_IN.items() if of == name)):
            record = found.get(("ml-100k", attack, kind, defense))
            if record is None or record.spec["seeds"] < 2:
                continue
            ours = np.array(record.result[metric])
            own = float(ours.std(ddof=1))
            within = abs(ours.mean() - value) <= 2 * (own if deviation is None else deviation)
            kept, total = kept + within, total + 1
            spread = "" if deviation is None else f" ± {deviation:.3f}"
            label = defense if defense == name else f"{defense} (golden: {name})"
            said.setdefault(kind, []).append(
                f"{attack}, {label} {value:.4f}{spread}, ours {ours.mean():.4f} ± {own:.3f}: "
                f"{'within' if within else 'outside'}"
            )
    if not said:
        return []
    return [
        "golden values on ML-100K are those of a separate NumPy version of the released code's recipe on its released "
        "split, six seeds or more: ours is within two standard deviations (theirs or, where they have none, ours) in "
        f"{kept} of {total}",
        *(f"golden, {kind} targets: {'; '.join(lines)}" for kind, lines in said.items()),
    ]


def solves(found: Cells) -> list[str]:
    """The share of APT's renewals whose linear solve did not hold, by data and defense, as far as the records say."""
    shares: dict[tuple[str, str], list[float]] = {}
    for (data, _, _, defense), record in sorted(found.items(), key=lambda cell: cell[0]):
        changes = VARIANTS.get(defense.removesuffix("-own"), {})
        solved = changes.get("solver") != "identity" and changes.get("selection") != "random"
        if solved and "unsolved" in record.result:
            shares.setdefault((data, defense), []).append(record.result["unsolved"])
    if not shares:
        return []
    bad = [
        f"{data}, {defense} {np.mean([share for share in of if share > 0]):.0%} "
        f"(in {sum(share > 0 for share in of)} of {len(of)})"
        for (data, defense), of in shares.items()
        if max(of) > 0
    ]
    total = sum(map(len, shares.values()))
    return [
        f"linear solves of APT that did not hold, as a share of the renewals, in the {total} cells that say: "
        f"{'; '.join(bad) or 'none'}. Where conjugate gradients meet negative curvature the plain gradient is taken "
        "in their place; a series is used as far as it went"
    ]
