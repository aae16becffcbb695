"""RAPU (Zhang et al., KDD 2021), Table 5 and Figs. 2-4, 6, 7: targets, what the attacker sees, proxies, list length.

On MovieLens-100K at 3%, against WRMF; where data are removed (Figs. 2 and 7) against NCF and LightGCN too. Cells run as
in rapu.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import report
from experiments.papers import rapu_claims
from experiments.papers.rapu import MAIN, PAPER, REST, K, hits, run
from experiments.published import published
from experiments.record import Record
from experiments.study import Report, Spec, Study

STRATA = ("most_popular", "popular", "ordinary", "unpopular", "most_unpopular")

# ------------------------------------------------------------------------------------------------------- Table 5


def table5_cells(quick: bool) -> list[Spec]:
    """Five strata against WRMF at 3%."""
    names, seeds = (("none", "random", "top-popular", "rapu-r"), 1) if quick else ((*MAIN, *REST), 3)
    return [
        {
            "study": "rapu-table5",
            "data": "ml",
            "attack": name,
            "stratum": stratum,
            "seed": seed,
            "victims": ["WRMF"],
        }
        for seed in range(seeds)
        for name in names
        for stratum in STRATA
    ]


def table5_report(records: list[Record], folder: Path) -> Report:
    """A row an attack, a column a stratum; ours and the published figure."""
    keys = ("Most Pop.", "Popular", "Ordinary", "Unpopular", "Most Unp.")
    header = ["attack", "seeds", *(f"{key} ours / published" for key in keys)]
    rows, lines = [], {}
    for attack in (*MAIN, *REST):
        cells, seeds = [], 0
        for stratum, key in zip(STRATA, keys, strict=True):
            found = list(hits(records, attack=attack, stratum=stratum).get("WRMF", {}).values())
            seeds = max(seeds, len(found))
            paper = published("rapu", "table5", "values", PAPER[attack], key) if attack in PAPER else None
            cells.append(f"{report.interval(found, 3, 'mean')} / {'-' if paper is None else f'{paper:.4f}'}")
            lines.setdefault(attack, []).append(float(np.mean(found)) if found else np.nan)
        rows += [[attack, str(seeds), *cells]] if seeds else []
    made, axes = report.figure(width=7)
    for attack, values in lines.items():
        if not np.all(np.isnan(values)):
            axes[0, 0].plot(keys, np.maximum(values, 1e-4), "o-", label=attack, markersize=4)
    axes[0, 0].set(
        yscale="log", ylabel=f"target HR@{K} (at least 1e-4)", title="WRMF, MovieLens-100K, 3% fake users"
    )
    axes[0, 0].legend(frameon=False, fontsize=7)
    columns = {
        key: {name: hits(records, attack=name, stratum=stratum).get("WRMF", {}) for name in (*MAIN, *REST)}
        for stratum, key in zip(STRATA, keys, strict=True)
    }
    notes = [
        f"{report.SEEDS}; five targets of the stratum drawn for each seed (the paper's are not published)",
        *rapu_claims.NOTES,
        *rapu_claims.summary(columns),
    ]
    picture = report.save(made, folder / "rapu-table5.png")
    title = "RAPU, Table 5: popularity of the targets"
    return Report(title, header, rows, notes, [picture], rapu_claims.tables(columns))


# ----------------------------------------------------------------------------------------------- Figs. 2-4, 6, 7

SWEEPS: dict[str, list[dict[str, Any]]] = {
    "removed": [{"rho": rho, "pert": 0.0} for rho in (1.0, 0.9, 0.8, 0.7, 0.6)],
    "perturbed": [{"rho": 1.0, "pert": pert} for pert in (0.0, 0.05, 0.1, 0.15, 0.2)],
    "proxies": [{"budget": budget} for budget in (0, 20, 40, 60, 80, 100)],
    "length": [{"lengths": [10, 20, 30, 40, 50, 100]}],
}
LINES = ("random", "top-popular", "revadv", "rapu-g", "rapu-r")
BASELINES = ("popular", "pga", "srwa", "covis")
"""The paper's other lines, of each seed behind the first ones."""
PANELS = (*((sweep, "WRMF") for sweep in SWEEPS), ("removed", "NCF"), ("removed", "LightGCN"))


def figs_cells(quick: bool) -> list[Spec]:
    """Sweeps over what is removed, what is false, the proxies and the length of the list; WRMF first."""
    groups, seeds = ((("random", "rapu-r"),), 1) if quick else ((LINES, BASELINES), 3)
    return [
        {
            "study": "rapu-figs",
            "data": "ml",
            "attack": name,
            "seed": seed,
            "sweep": sweep,
            "victims": [victim],
            **at,
        }
        for seed in range(seeds)
        for names in groups
        for sweep, victim in (PANELS[: len(SWEEPS)] if quick else PANELS)
        for name in names
        for at in SWEEPS[sweep]
    ]


def figs_report(records: list[Record], folder: Path) -> Report:
    """One panel a sweep and victim."""
    header, rows, said = ["sweep", "victim", "at", "attack", "seeds", "HR ours"], [], []
    made, axes = report.figure(2, 3)
    for axis, (sweep, victim) in zip(axes.flat, PANELS, strict=True):
        points = _points(records, sweep, victim)
        for attack in (*LINES, *BASELINES):
            line = {at: list(by[attack].values()) for at, by in points.items() if by[attack]}
            for at, found in line.items():
                shown = report.interval(found, 4, "mean")
                rows.append([sweep, victim, f"{at:g}", attack, str(len(found)), shown])
            if line:
                axis.plot(
                    list(line), [np.mean(found) for found in line.values()], "o-", label=attack, markersize=4
                )
        axis.set(xlabel=sweep, ylabel="target HR", title=victim)
        text = rapu_claims.along({f"{at:g}": by for at, by in points.items()})
        said += [f"{sweep}, {victim}, {text}"] if text else []
    axes[0, 0].legend(frameon=False, fontsize=7)
    notes = [
        f"{report.SEEDS}; the paper has these as figures only, without numbers",
        *rapu_claims.NOTES,
        *said,
    ]
    return Report(
        "RAPU, Figs. 2, 3, 4, 6 and 7", header, rows, notes, [report.save(made, folder / "rapu-figs.png")]
    )


def _points(records: list[Record], sweep: str, victim: str) -> dict[float, rapu_claims.Hits]:
    """By place on the axis of a panel, by attack, by seed: target hit rate."""
    return {
        k if "lengths" in at else _at(sweep, at): {
            name: hits(records, at=k, attack=name, sweep=sweep, **at).get(victim, {})
            for name in (*LINES, *BASELINES)
        }
        for at in SWEEPS[sweep]
        for k in at.get("lengths", [K])
    }


def _at(sweep: str, at: Mapping[str, Any]) -> float:
    return {
        "removed": lambda: 1 - at["rho"],
        "perturbed": lambda: at["pert"],
        "proxies": lambda: at["budget"],
    }[sweep]()


STUDIES = (
    Study(
        "rapu-table5",
        "RAPU, Table 5: targets of five popularity strata",
        table5_cells,
        run,
        table5_report,
        (90, 5),
    ),
    Study(
        "rapu-figs",
        "RAPU, Figs. 2-4, 6, 7: removal, perturbation, proxies and list length",
        figs_cells,
        run,
        figs_report,
        (240, 5),
    ),
)
