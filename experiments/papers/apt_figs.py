"""APT (Wu et al., SIGIR 2021): what the inverse Hessian is worth, and Figs. 2 and 3: attack sizes and helpful users.

The setting is that of apt.py. The paper has no ablation over the solver; ours asks whether `H^-1` selects other items
than the plain gradient does. Its figures print no numbers, so there is nothing to stand beside ours. Which attacks they
show it says only in part: sections 5.3 and 5.5 speak of ML-100K, ML-1M, Yelp and of AUSH. Ours are Average and AUSH.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import report
from experiments.papers import apt_claims
from experiments.papers.apt import KINDS, VARIANTS, WORLDS, run
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models.evaluation import paired_t, robustness_improvement

SOLVERS = ("none", *(name for name in VARIANTS if name != "apt-rand"))
SIZES = (0.01, 0.02, 0.03, 0.04, 0.05)
HELPERS = (0.01, 0.02, 0.05, 0.1, 0.2)
SMALL = ("ml-100k", "filmtrust")
LARGE = ("ml-1m", "yelp")
MADE = ("apt", "apt-own")
FIGURED = ("average", "aush")
COLORS = {"none": "0.4", "apt": "C0", "apt-own": "C1"}
UNCLEAR = "effect unclear"
"""In place of RI."""


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
    header = ["data", "targets", "inverse", "seeds", "target HR", "test HR", "s a seed", "HR - CG's", "p"]
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
        rows.append([data, kind, defense, str(record.spec["seeds"]), *shown, f"{seconds:.1f}", *against])
    notes = [
        *_verdicts(found),
        *_beside_cg(found),
        "Average attack, 3%; target hr_mean@50 and HR@50 of the held-out item; p: paired t-test, shared seeds",
        "apt: CG on the full, damped Hessian; apt-block: the released code's series, without its batches; "
        "apt-identity: the plain gradient; apt-paper-risk: eq. 4's risk",
        "-own: helpful users take their ratings from the data at hand",
        *apt_claims.solves(apt_claims.by_cell(records)),
        *apt_claims.golden(apt_claims.by_cell(records), "hr_mean"),
    ]
    return Report("APT, which inverse Hessian", header, rows, notes, [])


def _verdicts(found: dict[tuple[str, ...], Record]) -> list[str]:
    """A sentence for each data set and kind of targets: does the inverse defend otherwise than the plain gradient?"""
    said = []
    for data, kind in ((data, kind) for data in SMALL for kind in KINDS):
        parts = []
        for ending, label in (("", "ratings of before the attack"), ("-own", "own ratings")):
            pair = [found.get((data, kind, name + ending)) for name in ("apt", "apt-identity")]
            if pair[0] is None or pair[1] is None:
                continue
            n = min(record.spec["seeds"] for record in pair if record)
            if n < 3:
                continue
            test = paired_t(*(record.result["hr_mean"][:n] for record in pair if record))
            if not test.p <= 0.05:  # or undefined
                verdict = "undecided"
            else:
                verdict = (
                    "the inverse lets "
                    + ("more" if test.difference > 0 else "less")
                    + " of the attack through"
                )
            p = f"p {test.p:.2g}" if test.p == test.p else "all differences equal"
            parts.append(f"with {label} {test.difference:+.4f} ({n} seeds, {p}): {verdict}")
        if parts:
            start = f"{data}, {kind} targets: target HR with the inverse Hessian (CG) minus with the plain gradient, "
            said.append(start + "; ".join(parts))
    return said


def _beside_cg(found: dict[tuple[str, ...], Record]) -> list[str]:
    """A sentence for each data set and kind of targets: which inverse lets more or less through than CG, for sure."""
    said = []
    for data, kind in ((data, kind) for data in SMALL for kind in KINDS):
        base, sort = found.get((data, kind, "apt")), {"more": [], "less": [], "undecided": []}
        for name in SOLVERS[1:]:
            other = found.get((data, kind, name))
            n = min(r.spec["seeds"] for r in (base, other)) if base and other and other is not base else 0
            if n < 3:
                continue
            test = paired_t(*(r.result["hr_mean"][:n] for r in (other, base) if r))
            verdict = "undecided" if not test.p <= 0.05 else "more" if test.difference > 0 else "less"
            sort[verdict].append(f"{name} {test.difference:+.4f} ({n} seeds)")
        told = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in sort.items() if names)
        said += (
            [f"{data}, {kind} targets, how much of the attack gets through beside CG: {told}"] if told else []
        )
    return said


def figs_cells(quick: bool) -> list[Spec]:
    """Fig. 3, then Fig. 2; the undefended model and both ways to draw ratings at every attack size."""
    if quick:
        return [_cell("apt-figs", "ml-100k", "unpopular", "apt", 2, helpers=share) for share in (0.01, 0.05)]
    small = [spec for attack in FIGURED for spec in _sweeps(SMALL, attack, 5)]
    large = [spec for attack in FIGURED for spec in _sweeps(LARGE, attack, 3)]
    return [*_origins(SMALL, 5), *small, *_origins(LARGE, 3), *large]


def _origins(names: Iterable[str], seeds: int) -> list[Spec]:
    return [
        {**_cell("apt-figs", data, kind, "none", seeds), "attack": "none"} for data in names for kind in KINDS
    ]


def _sweeps(names: Iterable[str], attack: str, seeds: int) -> list[Spec]:
    """Fig. 3 of these data, then Fig. 2. What stands undefended in Fig. 3 is the cell of Fig. 2 at the usual size."""
    cell = lambda data, kind, defense, **at: {
        **_cell("apt-figs", data, kind, defense, seeds, **at),
        "attack": attack,
    }
    fig3 = [
        cell(data, "unpopular", defense, helpers=share)
        for data in names
        for share in HELPERS
        for defense in MADE
    ]
    fig2 = [
        cell(data, kind, defense, size=size)
        for data in names
        for kind in KINDS
        for size in SIZES
        for defense in ("none", *MADE)
    ]
    return [*fig3, *fig2]


Sweeps = dict[tuple[str, str, str, str, str], dict[float, np.ndarray]]
"""Target HRs by seed, by sweep, data, attack, targets and defense, and there by the share of users."""


def figs_report(records: list[Record], folder: Path) -> Report:
    """RI and target HR by attack size and by number of helpful users."""
    sweeps: Sweeps = {}
    for record in records:
        spec = record.spec
        name = "helpers" if "helpers" in spec else "size" if "size" in spec else None
        if name:
            place = (name, *(spec[part] for part in ("data", "attack", "targets", "defense")))
            sweeps.setdefault(place, {})[spec[name]] = np.array(record.result["hr_mean"])
    clean = {
        (r.spec["data"], r.spec["targets"]): np.array(r.result["hr_mean"])
        for r in records
        if r.spec["attack"] == "none"
    }
    rows = []
    for (name, data, attack, kind, defense), points in sorted(sweeps.items()):
        for at, values in sorted(points.items()):
            ratio = None
            if defense != "none":
                ratio = _ratio(sweeps, clean, (name, data, attack, kind), at, values)
            ri = "-" if ratio is None else UNCLEAR if np.isnan(ratio) else f"{ratio:.3f}"
            shown = report.interval(values.tolist(), 4, "mean")
            rows.append([name, data, attack, kind, defense, f"{at:.0%}", str(len(values)), shown, ri])
    usual = ", ".join(f"{WORLDS[data].table} {WORLDS[data].size:.0%}" for data in (*SMALL, *LARGE))
    notes = [
        "size: fake users, helpers: helpful users, both as a share of the real ones; mean target hr_mean@50 (Yelp: "
        f"@{WORLDS['yelp'].k}) [95% bootstrap interval over seeds]",
        "RI = 1 - (HR defended - HR clean) / (HR attacked - HR clean); helpers: HR attacked is that of the size sweep "
        f"at the usual attack size ({usual}); {UNCLEAR}: HR attacked - HR clean is not above 0 by its 95% t-interval "
        "over seeds",
        "the paper does not say in print which attacks its figures show, besides AUSH on Yelp; ours: Average and AUSH",
        *_missing(sweeps, clean),
    ]
    header = ["sweep", "data", "attack", "targets", "defense", "at", "seeds", "target HR", "RI"]
    return Report("APT, Figs. 2 and 3", header, rows, notes, [_picture(sweeps, clean, folder)])


def _ratio(
    sweeps: Sweeps,
    clean: Mapping[tuple[str, str], np.ndarray],
    place: tuple[str, str, str, str],
    at: float,
    values: np.ndarray,
) -> float | None:
    """RI; NaN where it is not known that the attack does anything, None where a cell that it needs is missing."""
    (name, data, attack, kind), origin = place, clean.get((place[1], place[3]))
    plain = _undefended(sweeps, name, data, attack, kind, at)
    if plain is None or origin is None:
        return None
    if apt_claims.effect(plain.tolist(), origin.tolist()).verdict != "above":
        return np.nan
    return float(robustness_improvement(values.mean(), plain.mean(), origin.mean()).value)


def _undefended(sweeps: Sweeps, name: str, data: str, attack: str, kind: str, at: float) -> np.ndarray | None:
    """The undefended model under the same fake users; helpers face the usual number of them."""
    size = at if name == "size" else WORLDS[data].size
    return sweeps.get(("size", data, attack, kind, "none"), {}).get(size)


def _missing(sweeps: Sweeps, clean: Mapping[tuple[str, str], np.ndarray]) -> list[str]:
    """For which sweeps RI waits for a cell."""
    waits = [
        f"{name}, {data}, {attack}, {kind}"
        for name, data, attack, kind, defense in sorted(sweeps)
        if defense == MADE[0]
        and (
            (data, kind) not in clean
            or any(
                _undefended(sweeps, name, data, attack, kind, at) is None
                for at in sweeps[name, data, attack, kind, defense]
            )
        )
    ]
    return [f"RI waits for an undefended or a clean cell: {'; '.join(waits)}"] if waits else []


def _picture(sweeps: Sweeps, clean: Mapping[tuple[str, str], np.ndarray], folder: Path) -> Path:
    """Target HR by helpful users (Fig. 3), and RI by fake users (Fig. 2) over the target HR it is made of."""
    columns = [
        (data, attack)
        for data in (*SMALL, *LARGE)
        for attack in FIGURED
        if any(place[1:3] == (data, attack) for place in sweeps)
    ]
    made, axes = report.figure(3, max(len(columns), 1), width=4.4)
    for (name, data, attack, kind, defense), points in sorted(sweeps.items()):
        column, at = columns.index((data, attack)), sorted(points)
        label, what = f"{defense}, {kind}", "fake users" if name == "size" else "helpful users"
        drawn = {2 * int(name == "size"): {share: points[share].mean() for share in at}}
        if name == "size" and defense != "none":
            ri = {
                share: _ratio(sweeps, clean, (name, data, attack, kind), share, points[share]) for share in at
            }
            drawn[1] = {share: value for share, value in ri.items() if value is not None}
        for line, values in drawn.items():
            axis = axes[line, column]
            style = {"color": COLORS[defense], "linestyle": "-" if kind == KINDS[0] else "--"}
            at_percent = [100 * share for share in values]
            axis.plot(at_percent, [*values.values()], marker="o", markersize=4, label=label, **style)
            axis.set(
                title=f"{WORLDS[data].table}, {attack}",
                xlabel=f"{what}, % of real",
                ylabel="RI" if line == 1 else f"target HR@{WORLDS[data].k}",
            )
    for axis, (data, attack) in zip(axes[0], columns, strict=False):
        plain = _undefended(sweeps, "helpers", data, attack, "unpopular", 0)
        if plain is not None:
            axis.axhline(float(plain.mean()), color="k", linestyle="-.", linewidth=1, label="undefended")
        if (data, "unpopular") in clean and axis.lines:
            axis.axhline(
                float(clean[data, "unpopular"].mean()), color="k", linestyle=":", linewidth=1, label="clean"
            )
    for axis in axes.flat:
        axis.set_visible(bool(axis.lines))
        if axis.lines:
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
        (600, 3),
    ),
)
