"""The page of the defense grid: its table, its heat map, and what it allows to say.

What a defense changes, what an attack gains over Random behind it, and what knowing of the defense gains are
differences paired by seed (experiments/paired.py), a table each; none is corrected for how many are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bilevel import Code
from experiments import report
from experiments.paired import Gap, gap
from experiments.papers.defense_grid import (
    ADAPTIVE,
    ATTACKS,
    BLIND,
    CONTROLS,
    DEFENSES,
    LEVEL,
    LONGER,
    VICTIMS,
    cells,
    run,
)
from experiments.record import Record
from experiments.report import Table
from experiments.study import Report, Study

REASONS = (
    'apt follows the plain gradient (`solver="identity"`); apt-cg is APT as it comes (`solver="cg"`), its damping '
    "relative to the spectrum",
    "no row for hcars, poisonrec and appgrad: they are made of a victim's answers (explanations of its lists; the "
    "exposure after every trial), which this setting's attackers do not get, and behind each defense a victim answers "
    "otherwise, so that each would be crafted anew for each of them; undefended they belong to hcars-table1 and "
    "poisonrec-table3",
    "lof and knn, as detectors and in the filter, look at the first singular directions of the clicks at hand, not at "
    "the victim's vectors of the users",
    "left out: average and tna, which need ratings, and so PCMF among the defenses; middle and H-CARS's bandwagon, "
    "heuristics between random and bandwagon; the supervised detectors as filters: they learn from labeled fake users, "
    "which a filter here is not given (see detectors)",
)
"""Why the grid is as it is."""
Place = tuple[str, str, str]
"""Victim, attack, defense."""


def table(records: list[Record], folder: Path) -> Report:
    """A row an attack, a column a defense: target HR, and the recall that is left."""
    grid = _grid(records, lambda victim: victim["hr_any"])
    recall = _grid(records, lambda victim: victim["recall"])
    header = ["victim", "attack", "seeds", *DEFENSES]
    rows = []
    for victim in VICTIMS:
        for attack in ATTACKS:
            mine = [grid.get((victim, attack, defense), []) for defense in DEFENSES]
            if any(mine):
                shown = (report.interval(v, 3, "mean") for v in mine)
                rows.append([victim, attack, str(max(map(len, mine))), *shown])
        clean = [recall.get((victim, "none", defense), []) for defense in DEFENSES]
        if any(clean):
            shown = (report.interval(v, 3, "mean") for v in clean)
            rows.append([victim, "recall@50, no attack", str(max(map(len, clean))), *shown])
    notes = [
        f"target HR@50 (hr_any) on MovieLens-100K, 3% fake users; {report.SEEDS}",
        f"a filter leaves out the {LEVEL:.0%} of users with the highest scores, attacked or not; it is not told how "
        "many fakes there are",
        "adaptive: RevAdv, or RAPU-G without its model, with the defense inside its surrogate (WRMF, whatever the "
        "victim): AT's change, held in the derivative, APT's helpful users renewed in the surrogate's training (held: "
        "those of one training), the soft side of the filter's detector with the cut of the attacker's view; it begins "
        "with the fake users of the same attack without that knowledge, or, where fewer of those pass the filter, with "
        "Random's",
        "longer: the controls of adaptive, as many steps from the same start with no defense inside; minus longer is "
        "what the derivative through the defense adds, the choice of the start being in both",
        "limits of adaptive: truncated at 20, on one draw of the surrogate's training; a gradient that need not lead "
        "back from far beyond a cut; against NCF it is carried over from WRMF. What it does not break is not shown to "
        "hold",
        *REASONS,
        *_worst(grid),
        *_stood(records),
        *_broken(recall),
        *_helped(records),
        *_best(records),
    ]
    return Report(
        "Defenses against attacks, MovieLens-100K",
        header,
        rows,
        notes,
        [_picture(grid, next(iter(_areas(records)), ""), folder)],
        [each for each in (*_paired(records), _kept(records), _seen(records)) if each.rows],
    )


def _paired(records: list[Record]) -> list[Table]:
    """What changes by a defense, over Random behind it, and by knowing of it, on the seeds that both have."""
    hits: dict[Place, dict[int, float]] = {}
    for record in records:
        if "victim" in record.result:
            place = record.spec.get("victim", VICTIMS[0]), record.spec["attack"], record.spec["defense"]
            hits.setdefault(place, {})[record.spec["seed"]] = record.result["victim"]["hr_any"]

    def between(one: Place, other: Place) -> Gap | None:
        return gap(hits.get(one, {}), hits.get(other, {}))

    blind = [attack for attack in ATTACKS if attack not in (*ADAPTIVE, *CONTROLS)]
    over = [attack for attack in ATTACKS if attack not in ("none", "random")]
    changes = {
        (v, a): [between((v, a, d), (v, a, "none")) for d in DEFENSES[1:]] for v in VICTIMS for a in blind
    }
    gains = {(v, a): [between((v, a, d), (v, "random", d)) for d in DEFENSES] for v in VICTIMS for a in over}
    knows = {
        (v, a, other[a]): [between((v, a, d), (v, other[a], d)) for d in DEFENSES[1:]]
        for v in VICTIMS
        for a in ADAPTIVE
        for other in (BLIND, LONGER)
    }
    return [
        _gaps("A defense minus none", ["victim", "attack", *DEFENSES[1:]], changes),
        _gaps("An attack minus random, both behind the same defense", ["victim", "attack", *DEFENSES], gains),
        _gaps(
            "Who knows the defense minus the attack as it is, and minus its control",
            ["victim", "knows", "minus", *DEFENSES[1:]],
            knows,
        ),
    ]


def _gaps(title: str, header: list[str], rows: dict[tuple[str, ...], list[Gap | None]]) -> Table:
    """Rows of paired differences, those with none left out."""
    shown = [[*of, *map(_said, gaps)] for of, gaps in rows.items() if any(gaps)]
    return Table(f"{title} (target HR@50, paired by seed)", header, shown)


def _said(found: Gap | None) -> str:
    """A paired difference; where every seed has the very same rate, nothing is undecided."""
    if found is None:
        return "-"
    return f"the same ({found.seeds} seeds)" if found.low == found.high == 0 else found.said(3)


def _stood(records: list[Record]) -> list[str]:
    """Adaptive attacks whose best step, in their own simulation, is the one they began with."""
    told = {
        f"{r.spec['attack']}, {r.spec['defense']}, seed {r.spec['seed']}": r.result["own_hr"]
        for r in records
        if "own_hr" in r.result
    }
    stood = [name for name, (first, best) in told.items() if best <= first]
    if not told:
        return []
    return [
        f"of {len(told)} crafts of one who knows the defense {len(stood)} ended with what they began with, in their "
        f"own simulation{': ' if stood else ''}{'; '.join(stood)}"
    ]


def _worst(grid: dict[Place, list[float]]) -> list[str]:
    """What each defense lets through at most, over the attacks with two seeds or more behind it."""
    said = []
    for victim in VICTIMS:
        shown = []
        for defense in DEFENSES:
            known = {a: grid.get((victim, a, defense), []) for a in ATTACKS if a != "none"}
            means = {attack: np.mean(values) for attack, values in known.items() if len(values) > 1}
            if means and (clean := grid.get((victim, "none", defense))):
                worst = max(means, key=lambda attack: means[attack])
                shown.append(f"{defense} {means[worst]:.3f} ({worst}; no attack {np.mean(clean):.3f})")
        what = "the most that gets through, by the mean of an attack over its two seeds or more, unpaired"
        said += [f"{victim}, {what}: {', '.join(shown)}"] if shown else []
    return said


def _broken(recall: dict[Place, list[float]]) -> list[str]:
    """Defenses that cost more than half of the recall: there is no recommender left to attack."""
    said = []
    for (victim, attack, defense), values in recall.items():
        whole = np.mean(recall.get((victim, "none", "none"), [np.nan]))
        if attack == "none" and np.mean(values) < whole / 2:
            said.append(
                f"{victim} behind {defense} recommends nothing any more (recall {np.mean(values):.3f} of {whole:.3f}): "
                "its hit rates say nothing about attacks"
            )
    return said


def _grid(records: list[Record], read: Callable[[dict[str, Any]], float]) -> dict[Place, list[float]]:
    found: dict[Place, list[float]] = {}
    for record in records:
        if "victim" in record.result:
            victim = record.spec.get("victim", VICTIMS[0])
            place = victim, record.spec["attack"], record.spec["defense"]
            found.setdefault(place, []).append(read(record.result["victim"]))
    return found


def _kept(records: list[Record]) -> Table:
    """Filters among the users they left in: those without clicks are shown the popular, attacked or not."""
    found: dict[Place, list[float]] = {}
    for record in records:
        if "kept_hr" in record.result:
            place = record.spec.get("victim", VICTIMS[0]), record.spec["attack"], record.spec["defense"]
            found.setdefault(place, []).append(record.result["kept_hr"])
    filters = [defense for defense in DEFENSES if defense.startswith("filter:")]
    rows = [
        [v, a, *(f"{np.mean(found[v, a, d]):.3f}" if (v, a, d) in found else "-" for d in filters)]
        for v in VICTIMS
        for a in ATTACKS
        if any((v, a, d) in found for d in filters)
    ]
    title = "Target HR@50 of the users whom a filter left in (means)"
    return Table(title, ["victim", "attack", *filters], rows)


def _areas(records: list[Record]) -> dict[str, dict[str, list[float]]]:
    """ROC areas by detector and attack, the best detector on average first."""
    areas: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for name, values in record.result.get("detectors", {}).items():
            areas.setdefault(name, {}).setdefault(record.spec["attack"], []).append(values["auc"])
    return dict(sorted(areas.items(), key=lambda one: -_average(one[1])))


def _average(by: dict[str, list[float]]) -> float:
    return float(np.mean([np.mean(values) for values in by.values()]))


def _best(records: list[Record]) -> list[str]:
    return [
        f"best detector on average over these attacks (known only afterwards): {name}, area {_average(by):.2f}"
        for name, by in list(_areas(records).items())[:1]
    ]


def _seen(records: list[Record]) -> Table:
    """The area of every detector, the best on average first, by attack."""
    areas = _areas(records)
    of = [attack for attack in ATTACKS if any(attack in by for by in areas.values())]
    rows = [
        [attack, *(f"{np.mean(by[attack]):.2f}" if attack in by else "-" for by in areas.values())]
        for attack in of
    ]
    return Table("ROC area of each detector (means)", ["attack", *areas], rows)


def _helped(records: list[Record]) -> list[str]:
    """How many items helpful users clicked behind APT, and how often it had to do without the inverse."""
    said = []
    for defense in ("apt", "apt-cg"):
        mine = [r for r in records if r.spec["defense"] == defense and "negative" in r.result]
        if not mine:
            continue
        clicked = np.mean(np.concatenate([r.result["items"] for r in mine]))
        said.append(f"{defense}: a helpful user clicked {clicked:.0f} items on average")
        for victim in VICTIMS if defense == "apt-cg" else ():
            codes = [r.result["code"] for r in mine if r.spec.get("victim", VICTIMS[0]) == victim]
            if codes:
                refused = np.concatenate(codes) == Code.INDEFINITE
                said.append(
                    f"apt-cg, {victim}: {refused.sum()} of {refused.size} renewals met negative curvature and took the "
                    "plain gradient"
                )
    return said


def _picture(grid: dict[Place, list[float]], best: str, folder: Path) -> Path:
    columns = [f"{name}\n(best detector)" if name == f"filter:{best}" else name for name in DEFENSES]
    victims = [victim for victim in VICTIMS if any(place[0] == victim for place in grid)]
    made, axes = report.figure(1, max(1, len(victims)), width=7.5, height=7)
    for axis, victim in zip(axes[0], victims):
        values = np.array([[np.mean(grid.get((victim, a, d), [np.nan])) for d in DEFENSES] for a in ATTACKS])
        axis.grid(visible=False)
        shown = axis.imshow(values, cmap="magma_r", vmin=0, aspect="auto")
        for (line, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "w" if value > 0.6 * np.nanmax(values) else "k"
                axis.text(column, line, f"{value:.3f}", ha="center", va="center", color=color, fontsize=7)
        axis.set_xticks(range(len(DEFENSES)), columns, rotation=40, ha="right", fontsize=8)
        axis.set_yticks(range(len(ATTACKS)), ATTACKS, fontsize=8)
        axis.set_title(victim)
        made.colorbar(shown, label="target HR@50")
    return report.save(made, folder / "defense-grid.png")


STUDIES = (
    Study(
        "defense-grid", "every defense against every attack, and an adaptive one", cells, run, table, (60, 4)
    ),
)
