"""RAPU (Zhang et al., KDD 2021), Table 2: attacks against three victims, by the number of fake users; see rapu.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import report
from experiments.paired import gap
from experiments.papers import rapu_claims
from experiments.papers.rapu import AT, EVERY, FRACTIONS, MAIN, PAPER, REST, WORLDS, K, hits, run
from experiments.papers.rapu_claims import CONTROLS
from experiments.published import published
from experiments.record import Record
from experiments.study import Report, Spec, Study


def table2_cells(quick: bool) -> list[Spec]:
    """MovieLens at 3% first, victim by victim, the quick ones first; then the other fractions, then the other data.

    A craft is kept under runs/crafts, so that every victim of a seed meets the same fake users. WRMF at 3% has five
    seeds, for a verdict on the orderings.
    """
    if quick:
        return [_cell2("ml", name, 0.03, 0, "WRMF") for name in MAIN]
    order = [
        ("ml", 0.03),
        *(("ml", fraction) for fraction in FRACTIONS[1:]),
        *(("video", f) for f in FRACTIONS),
    ]
    return [
        _cell2(world, name, fraction, seed, victim)
        for world, fraction in order
        for victim in WORLDS[world].victims
        for seed in range(5 if (world, fraction, victim) == ("ml", 0.03, "WRMF") else 3)
        for name in (EVERY if (world, victim) == ("ml", "WRMF") else (*MAIN, *REST))
        if name != "none" or fraction == FRACTIONS[0]
    ]


def _cell2(world: str, attack: str, fraction: float, seed: int, victim: str) -> Spec:
    spec = {"study": "rapu-table2", "data": world, "attack": attack, "seed": seed, "victims": [victim]}
    return spec if attack == "none" else {**spec, "fraction": fraction}


def table2_report(records: list[Record], folder: Path) -> Report:
    """Ours beside the published cell, and which orderings hold."""
    header = [
        "data",
        "victim",
        "attack",
        "fakes",
        "seeds",
        "HR@50 ours",
        "published",
        *(f"minus {name}" for name in CONTROLS),
        "popularity",
        "craft s",
    ]
    rows, claims, columns = [], [], {}
    for world, facts in WORLDS.items():
        for victim in facts.victims:
            for attack in EVERY:
                for fraction in sorted(FRACTIONS) if attack != "none" else [None]:
                    row = _row2(records, world, victim, attack, fraction)
                    rows += [row] if row else []
            where, points = f"{world}, {victim}", _points(records, world, victim)
            adds = rapu_claims.model(points)
            claims += _agreement(records, world, victim) + ([f"{where}, {adds}"] if adds else [])
            columns |= {f"{where}, {at}": by for at, by in points.items()}
    notes = [
        f"{report.SEEDS}; HR: share of real users with a target in their list (hr_any)",
        "the attacker crafts on 80% of a view (90% of the clicks, 10% false ones, random walk); victims train on 80% "
        "of the true clicks",
        "targets: the published five on MovieLens; on Amazon Video five drawn from all items for each seed, because "
        "the published ids are of another edition",
        f"the row without an attack is compared with the controls at {_label(AT)}",
        *rapu_claims.NOTES,
        "victims train for all of their epochs; the 10% of validation events are not used to choose one",
        *rapu_claims.summary(columns),
        *claims,
    ]
    for record in records:
        notes += [f"{record.spec['data']}: {text}" for text in record.result["notes"]]
    pictures = [_picture2(records, folder)]
    return Report(
        "RAPU, Table 2", header, rows, list(dict.fromkeys(notes)), pictures, rapu_claims.tables(columns)
    )


def _printed(world: str, victim: str, attack: str, fraction: float | None) -> float:
    """The published cell; without an attack it is the same for all budgets."""
    at = (WORLDS[world].table, victim, PAPER[attack], _label(fraction or AT))
    return published("rapu", "table2", "values", *at)


def _agreement(records: list[Record], world: str, victim: str) -> list[str]:
    """How far our means are from the published cells, over those of three seeds or more; the same data only."""
    if world != "ml":
        return []
    ratio: dict[str, float] = {}
    for attack in (name for name in (*MAIN, *REST) if name in PAPER):
        for fraction in sorted(FRACTIONS) if attack != "none" else [None]:
            wanted: dict[str, Any] = {"data": world, "attack": attack}
            wanted |= {} if fraction is None else {"fraction": fraction}
            found = hits(records, **wanted).get(victim, {})
            if len(found) >= 3:
                label = attack if fraction is None else f"{attack} {_label(fraction)}"
                ours = float(np.mean(list(found.values())))
                ratio[label] = ours / _printed(world, victim, attack, fraction) - 1
    if not ratio:
        return []
    low, high = min(ratio, key=ratio.__getitem__), max(ratio, key=ratio.__getitem__)
    return [
        f"{world}, {victim}: over the {len(ratio)} cells with three seeds or more, ours is off the published figure by "
        f"{np.median(np.abs(list(ratio.values()))):.1%} in the median, from {ratio[low]:+.0%} ({low}) to "
        f"{ratio[high]:+.0%} ({high})"
    ]


def _row2(
    records: list[Record], world: str, victim: str, attack: str, fraction: float | None
) -> list[str] | None:
    wanted: dict[str, Any] = {"data": world, "attack": attack} | (
        {} if fraction is None else {"fraction": fraction}
    )
    found = hits(records, **wanted).get(victim)
    if not found:
        return None
    mine = [r for r in records if all(r.spec.get(name) == value for name, value in wanted.items())]
    mine = list({r.spec["seed"]: r for r in mine}.values())  # victims share a seed's fake users
    shown = f"{_printed(world, victim, attack, fraction):.4f}" if attack in PAPER else "-"
    value = lambda name: report.interval([float(np.mean([r.result.get(name, np.nan) for r in mine]))], 0)
    controls = _by(records, world, victim, fraction or AT, CONTROLS)
    gaps = [gap(found, controls[name]) for name in CONTROLS]
    at = "" if fraction else f" (at {_label(AT)})"
    ours = report.interval(list(found.values()), 4, statistic="mean")
    return [
        world,
        victim,
        attack,
        "-" if fraction is None else _label(fraction),
        str(len(found)),
        ours,
        shown,
        *(
            "-" if attack == name or each is None else f"{each}{at}"
            for name, each in zip(CONTROLS, gaps, strict=True)
        ),
        value("popularity"),
        value("craft_seconds"),
    ]


def _by(
    records: list[Record],
    world: str,
    victim: str,
    fraction: float,
    names: Sequence[str] = EVERY,
) -> rapu_claims.Hits:
    """By attack, by seed, at a share of fake users."""
    return {name: hits(records, data=world, attack=name, fraction=fraction).get(victim, {}) for name in names}


def _points(records: list[Record], world: str, victim: str) -> dict[str, rapu_claims.Hits]:
    """By share of fake users, by attack, by seed."""
    return {_label(fraction): _by(records, world, victim, fraction) for fraction in sorted(FRACTIONS)}


def _label(fraction: float) -> str:
    """A share as the paper prints it.

    >>> _label(0.03), _label(0.005)
    ('3%', '0.5%')
    """
    return f"{100 * fraction:g}%"


def _picture2(records: list[Record], folder: Path) -> Path:
    made, axes = report.figure(len(WORLDS), 3, width=4.4)
    for line, world in enumerate(WORLDS):
        for column, victim in enumerate(WORLDS[world].victims):
            axis = axes[line, column]
            for attack in EVERY[1:]:
                at = {
                    f: hits(records, data=world, attack=attack, fraction=f).get(victim)
                    for f in sorted(FRACTIONS)
                }
                points = {f: np.mean(list(values.values())) for f, values in at.items() if values}
                if points:
                    axis.plot(
                        [100 * f for f in points], list(points.values()), "o-", label=attack, markersize=4
                    )
            clean = hits(records, data=world, attack="none").get(victim)
            if clean:
                axis.axhline(float(np.mean(list(clean.values()))), color="k", linestyle="--", linewidth=1)
            axis.set(
                title=f"{WORLDS[world].table}, {victim}",
                xlabel="fake users, % of real",
                ylabel=f"target HR@{K}",
            )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        axes[0, 0].legend(handles, labels, frameon=False, fontsize=7)
    return report.save(made, folder / "rapu-table2.png")


STUDIES = (
    Study(
        "rapu-table2",
        "RAPU, Table 2: attacks x victims x fake users, MovieLens-100K and Amazon Video",
        table2_cells,
        run,
        table2_report,
        (480, 8),
    ),
)
