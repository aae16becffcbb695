"""APT (Wu et al., SIGIR 2021): what the inverse Hessian is worth, and Figs. 2 and 3: attack sizes and helpful users.

The setting is that of apt.py. The paper has no ablation over the solver; ours asks whether `H^-1` selects other items
than the plain gradient does. Its figures print no numbers, so there is nothing to stand beside ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import report
from experiments.papers.apt import KINDS, VARIANTS, WORLDS, run
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models.evaluation import paired_t, robustness_improvement

SOLVERS = ("none", *(name for name in VARIANTS if name != "apt-rand"))
SIZES = (0.01, 0.02, 0.03, 0.04, 0.05)
HELPERS = (0.01, 0.02, 0.05, 0.1, 0.2)
SMALL = ("ml-100k", "filmtrust")
MADE = ("apt", "apt-own")


def ablation_cells(quick: bool) -> list[Spec]:
    """The Average attack behind APT with each inverse; the series, which is slow, last."""
    slow = ("apt-lissa", "apt-block")
    order = [*(name for name in SOLVERS if name not in slow), *slow]
    if quick:
        return [_cell("apt-ablation", "ml-100k", "unpopular", name, 2) for name in ("apt", "apt-identity")]
    return [
        _cell("apt-ablation", data, kind, name + ending, 3 if name in slow else 10)
        for data in SMALL
        for name in order
        for ending in (("", "-own") if name in ("apt", "apt-identity") else ("",))
        for kind in KINDS
    ]


def _cell(study: str, data: str, kind: str, defense: str, seeds: int, **more: Any) -> Spec:
    return {
        "study": study,
        "data": data,
        "attack": "average",
        "targets": kind,
        "defense": defense,
        "seeds": seeds,
        **more,
    }


def ablation_report(records: list[Record], folder: Path) -> Report:
    """A row an inverse; the verdict is the paired difference to CG on the full Hessian."""
    found = {tuple(r.spec[name] for name in ("data", "targets", "defense")): r for r in records}
    header = ["data", "targets", "inverse", "target HR", "test HR", "s a seed", "HR - CG's", "p"]
    rows = []
    for (data, kind, defense), record in sorted(found.items()):
        base = found.get((data, kind, "apt-own" if defense.endswith("-own") else "apt"))
        values = {name: np.array(record.result[name]) for name in ("hr_mean", "hr_test")}
        shown = [
            f"{v.mean():.4f} ± {v.std(ddof=1):.3f}" if len(v) > 1 else f"{v.mean():.4f}"
            for v in values.values()
        ]
        against = ["-", "-"]
        if base and base is not record and defense != "none" and len(values["hr_mean"]) > 1:
            shared = min(record.spec["seeds"], base.spec["seeds"])  # seeds are numbered from 0
            test = paired_t(values["hr_mean"][:shared], base.result["hr_mean"][:shared])
            against = [f"{test.difference:+.4f}", f"{test.p:.2g}"]
        seconds = record.result["train_seconds"] / record.spec["seeds"]
        rows.append([data, kind, defense, *shown, f"{seconds:.1f}", *against])
    notes = [
        "Average attack, 3%; target hr_mean@50 and HR@50 of the held-out item; p: paired t-test, shared seeds",
        "apt: CG with damping 1e-3 on the full Hessian; apt-block: the released code's series, without its batches; "
        "apt-identity: the plain gradient; apt-paper-risk: eq. 4's risk",
        "-own: helpful users take their ratings from the data at hand",
    ]
    return Report("APT, which inverse Hessian", header, rows, notes, [])


def figs_cells(quick: bool) -> list[Spec]:
    """Fig. 3, then Fig. 2; the undefended model and both ways to draw ratings at every attack size."""
    if quick:
        return [_cell("apt-figs", "ml-100k", "unpopular", "apt", 2, helpers=share) for share in (0.01, 0.05)]
    fig3 = [
        _cell("apt-figs", data, "unpopular", defense, 5, helpers=share)
        for data in SMALL
        for share in HELPERS
        for defense in MADE
    ]
    fig2 = [
        _cell("apt-figs", data, kind, defense, 5, size=size)
        for data in SMALL
        for kind in KINDS
        for size in SIZES
        for defense in ("none", *MADE)
    ]
    origin = [
        {**_cell("apt-figs", data, kind, "none", 5), "attack": "none"} for data in SMALL for kind in KINDS
    ]
    return [*origin, *fig3, *fig2]


def figs_report(records: list[Record], folder: Path) -> Report:
    """RI by attack size, target HR by number of helpful users."""
    rows, sweeps = [], {}
    for record in records:
        spec = record.spec
        name = "helpers" if "helpers" in spec else "size" if "size" in spec else None
        if name:
            place = (name, spec["data"], spec["targets"], spec["defense"])
            sweeps.setdefault(place, {})[spec[name]] = np.array(record.result["hr_mean"])
    clean = {
        (r.spec["data"], r.spec["targets"]): np.mean(r.result["hr_mean"])
        for r in records
        if r.spec["attack"] == "none"
    }
    for (name, data, kind, defense), points in sorted(sweeps.items()):
        plain, origin = sweeps.get((name, data, kind, "none"), {}), clean.get((data, kind))
        for at, values in sorted(points.items()):
            ri = "-"
            if at in plain and origin is not None and defense != "none":
                improved = robustness_improvement(values.mean(), plain[at].mean(), origin)
                ri = f"{float(improved.value):.3f}"
            rows.append(
                [name, data, kind, defense, f"{at:.0%}", report.interval(values.tolist(), 4, "mean"), ri]
            )
    notes = [
        "Average attack; size: fake users, helpers: helpful users, both as a share of the real ones; mean target "
        "hr_mean@50 [95% bootstrap interval]",
        "RI = 1 - (HR defended - HR clean) / (HR attacked - HR clean)",
    ]
    header = ["sweep", "data", "targets", "defense", "at", "target HR", "RI"]
    return Report("APT, Figs. 2 and 3", header, rows, notes, [_picture(sweeps, folder)])


def _picture(sweeps: dict[tuple[str, str, str, str], dict[float, np.ndarray]], folder: Path) -> Path:
    made, axes = report.figure(2, len(SMALL), width=4.4)
    for (name, data, kind, defense), points in sorted(sweeps.items()):
        axis = axes[int(name == "size"), SMALL.index(data)]
        at = sorted(points)
        label = f"{defense}, {kind}"
        axis.plot([100 * a for a in at], [points[a].mean() for a in at], "o-", label=label, markersize=4)
        what = "fake users" if name == "size" else "helpful users"
        axis.set(title=WORLDS[data].table, xlabel=f"{what}, % of real", ylabel="target HR@50")
        axis.legend(frameon=False, fontsize=7)
    return report.save(made, folder / "apt-figs.png")


STUDIES = (
    Study(
        "apt-ablation",
        "APT: CG, LiSSA, blocks, identity; two risks",
        ablation_cells,
        run,
        ablation_report,
        (120, 3),
    ),
    Study(
        "apt-figs",
        "APT, Figs. 2 and 3: attack sizes and helpful users",
        figs_cells,
        run,
        figs_report,
        (90, 3),
    ),
)
