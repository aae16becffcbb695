"""What benchmarks/hypergradient.py shows: a table per problem, the goals, and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wrmf_goals
from rich.console import Console
from rich.table import Table

COLORS = {
    "forward": "#9aa0a6",
    "exact": "#1f6fb4",
    "truncated": "#4aa564",
    "implicit": "#c77f2a",
    "partial": "#8e6bb0",
    "peer": "#c0392b",
}


def rows(problem: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Variants and peers of a problem by name, in the order they were measured."""
    peers = {f"PyTorch {name}": row for name, row in problem.get("peers", {}).items()}
    return {**problem["variants"], **peers}


def ratio(name: str, row: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]]) -> float:
    """Seconds as a multiple of the forward run of the same path (peers: of PyTorch's own)."""
    del name
    base = "PyTorch forward" if row["kind"] == "peer" else f"{row['path']} forward"
    return row["seconds"] / table[base]["seconds"]


def print_problem(console: Console, name: str, problem: Mapping[str, Any]) -> None:
    """One table: seconds, ratio to forward, memory and error of every variant and peer."""
    found = rows(problem)
    table = Table(
        title=f"{name}: {problem['shape']} - {problem['source']}, {problem['rounds']} rounds",
        title_justify="left",
    )
    for heading in ("variant", "s", "x forward", "temp MB", "peak RSS MB", "rel. error", "cosine", "code"):
        table.add_column(heading, justify="left" if heading in ("variant", "code") else "right")
    kind = None
    for label, row in found.items():
        if kind is not None and row["kind"] in ("forward", "peer") and kind != row["kind"]:
            table.add_section()
        kind = row["kind"]
        table.add_row(
            label,
            f"{row['seconds']:.3f}",
            f"{ratio(label, row, found):.2f}",
            _number(row.get("temp_mb"), ".0f"),
            _number(row.get("peak_rss_mb"), ".0f"),
            _number(row.get("relative_error"), ".1e"),
            _number(row.get("cosine"), ".3f"),
            row.get("code", ""),
        )
    console.print(table)


def print_goals(console: Console, goals: Sequence[wrmf_goals.Goal]) -> None:
    """The goals with their verdicts, and what stands behind each."""
    table = Table(title="Goals", title_justify="left")
    for heading in ("goal", "measured", "limit", "verdict", "evidence"):
        table.add_column(heading, overflow="fold")
    colors = {"pass": "green", wrmf_goals.FALL_SHORT: "red", wrmf_goals.MISSING: "yellow"}
    for goal in goals:
        measured = _number(None if goal.value != goal.value else goal.value, ".3g")
        verdict = f"[{colors[goal.verdict]}]{goal.verdict}[/]"
        table.add_row(goal.text, measured, f"{goal.sense} {goal.limit:.3g}", verdict, goal.evidence)
    console.print(table)


def figure(results: Mapping[str, Any], path: Path) -> None:
    """Time and memory of every variant and peer, one row of panels a problem."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    problems = results["problems"]
    tallest = max(len(rows(problem)) for problem in problems.values())
    size = (13, (1.2 + 0.26 * tallest) * len(problems))
    canvas, panels = plt.subplots(len(problems), 2, figsize=size, squeeze=False, layout="constrained")
    for (name, problem), (left, right) in zip(problems.items(), panels):
        found = rows(problem)
        _bars(left, found, {label: ratio(label, row, found) for label, row in found.items()})
        left.set(
            title=f"{name}: {problem['shape']}", xlabel="time, multiples of the forward run of the same path"
        )
        _bars(right, found, {label: row.get("peak_rss_mb") or 0.0 for label, row in found.items()})
        right.set(
            title=problem["source"], xlabel="peak resident memory over start, MB (ours: with compilation)"
        )
        right.set_yticklabels([])
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _bars(axes: Any, found: Mapping[str, Mapping[str, Any]], values: Mapping[str, float]) -> None:
    """Horizontal bars colored by kind, the value written at the end of each."""
    labels = list(found)
    bars = axes.barh(
        labels, [values[label] for label in labels], color=[COLORS[found[label]["kind"]] for label in labels]
    )
    axes.bar_label(
        bars,
        labels=[f"{values[label]:.3g}" if values[label] else "" for label in labels],
        padding=3,
        fontsize=7,
    )
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or value != value else format(value, form)
