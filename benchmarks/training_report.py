"""What the rows of `training.py` say: the table beside the peers, growth, goals, and the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LIMIT = 6 * 2**30 / 1e6  # MB that an epoch of WRMF on Gowalla may take
SLOPE = 1.15  # of log seconds over log events, "near 1"
TIE = 1.02  # a RecBole epoch may be shorter than ours by this much before ours counts as slower


def find(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """The row of a finished measurement with these values in its task."""
    good = (row for row in rows if "error" not in row)
    return next((row for row in good if all(row["task"].get(k) == v for k, v in wanted.items())), None)


def line(row: Row) -> str:
    """A measurement as one line."""
    task = row["task"]
    who = f"{task.get('size') or format(task['events'], '.0e')} {task['side']} {task['model']}"
    if "error" in row:
        return f"{who}: {row['error']}"
    part = f" (on {row['timed_steps']} of {row['steps']} steps)" if piece(row) else ""
    return f"{who}: {row['seconds']:.3f} s an epoch{part}, peak {row['peak_mb']:.0f} MB"


def piece(row: Row) -> bool:
    """Was only a part of the epoch timed?"""
    return row.get("timed_steps", 0) < row.get("steps", 0)


def exponents(rows: list[Row]) -> dict[str, float]:
    """Slope of log seconds over log events between the two largest sizes of each model; 1 is proportional."""
    found = {}
    grown = [row for row in rows if "events" in row["task"] and "error" not in row]
    for model in dict.fromkeys(row["task"]["model"] for row in grown):
        good = sorted((row["events"], row["seconds"]) for row in grown if row["task"]["model"] == model)
        if len(good) > 1:
            (a, s), (b, t) = good[-2:]
            found[model] = math.log(t / s) / math.log(b / a)
    return found


def ratios(rows: list[Row]) -> dict[str, float]:
    """RecBole's seconds over ours, by model and size."""
    found = {}
    for row in rows:
        task = row["task"]
        own = find(rows, side="ours", model=task["model"], size=task.get("size"))
        if task["side"] == "recbole" and "error" not in row and own is not None:
            found[f"{task['model']} ({task['size']})"] = row["seconds"] / own["seconds"]
    return found


def goals(rows: list[Row]) -> dict[str, str]:
    """Each goal with passed, missed or not measured, and what was measured."""
    slopes, whole, beside = (
        exponents(rows),
        find(rows, side="ours", model="wrmf", size="gowalla"),
        ratios(rows),
    )
    said = lambda values, unit="": ", ".join(f"{name} {value:.2f}{unit}" for name, value in values.items())
    steep = {name: slope for name, slope in slopes.items() if slope > SLOPE}
    slow = {name: ratio for name, ratio in beside.items() if ratio * TIE < 1}
    judge = lambda known, bad: "not measured" if not known else "missed" if bad else "passed"
    return {
        f"cost grows with an exponent near 1 (at most {SLOPE})": f"{judge(slopes, steep)}: {said(steep or slopes)}",
        "an epoch of WRMF on Gowalla (15-core) under 6 GiB": judge(
            whole, whole is not None and whole["peak_mb"] >= LIMIT
        )
        + ("" if whole is None else f": {whole['peak_mb'] * 1e6 / 2**30:.2f} GiB"),
        "no model slower than RecBole's on the same work": f"{judge(beside, slow)}: {said(slow or beside, 'x')}",
    }


def show(console: Any, rows: list[Row]) -> list[str]:
    """Print the table of epochs beside the peers'; lines on growth and goals."""
    from rich import box
    from rich.table import Table

    head = ("data", "model", "s an epoch", "compile s", "peak MB", "implicit s", "RecBole s", "MB", "/ ours")
    table = Table(*head, box=box.SIMPLE)
    for row in (row for row in rows if row["task"]["side"] == "ours" and "size" in row["task"]):
        model, size = row["task"]["model"], row["task"]["size"]
        if "error" in row:
            table.add_row(size, model, row["error"])
            continue
        implicit, other = (find(rows, side=side, model=model, size=size) for side in ("implicit", "recbole"))
        cells = [f"{row['seconds']:.3f}{'*' if piece(row) else ''}", f"{row['compile_seconds']:.1f}"]
        cells += [f"{row['peak_mb']:.0f}", "-" if implicit is None else f"{implicit['seconds']:.3f}"]
        if other is None:
            cells += ["-", "-", "-"]
        else:
            cells += [f"{other['seconds']:.3f}{'*' if piece(other) else ''}", f"{other['peak_mb']:.0f}"]
            cells += [f"{other['seconds'] / row['seconds']:.1f}x"]
        table.add_row(f"{size}{' (drawn)' if row['source'] == 'drawn' else ''}", model, *cells)
    console.print(table)
    clocks = sorted({row["clock"] for row in rows if "clock" in row})
    told = {
        "cpu": "CPU seconds, all measurements on one core and one thread",
        "wall": "wall seconds, not pinned",
    }
    lines = [f"{'; '.join(told[clock] for clock in clocks)}. *: part of an epoch, scaled"]
    for name in ("als-cg",):
        found = [row for row in rows if row["task"]["model"] == name and "error" not in row]
        lines += [
            f"implicit with its 3 steps of CG, {row['task']['size']}: {row['seconds']:.3f} s" for row in found
        ]
    lines += [f"growth of {model}: seconds ~ events^{slope:.2f}" for model, slope in exponents(rows).items()]
    return lines + [f"{goal}: {outcome}" for goal, outcome in goals(rows).items()]


def figure(rows: list[Row], path: Path) -> None:
    """Seconds of an epoch beside the peers', and the growth curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    made, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(2, 1))
    good = [row for row in rows if "error" not in row]
    sized = [row for row in good if "size" in row["task"]]
    names = list(dict.fromkeys(row["task"]["model"] for row in sized if row["task"]["side"] == "ours"))
    colors = {size: f"C{k}" for k, size in enumerate(dict.fromkeys(row["task"]["size"] for row in sized))}
    marks = {"ours": ("o", -0.15), "recbole": ("s", 0.05), "implicit": ("^", 0.25)}
    for side, (mark, shift) in marks.items():
        for size, color in colors.items():
            here = [row for row in sized if row["task"]["side"] == side and row["task"]["size"] == size]
            here = [row for row in here if row["task"]["model"] in names]
            at = [names.index(row["task"]["model"]) + shift for row in here]
            face = color if side == "ours" else "none"
            left.plot(at, [row["seconds"] for row in here], mark, color=color, markerfacecolor=face)
    for size, color in colors.items():
        left.plot([], [], "o", color=color, label=size)
    for side in ("recbole", "implicit"):
        left.plot([], [], marks[side][0], color="0.4", markerfacecolor="none", label=side)
    left.set(yscale="log", ylabel="seconds an epoch", xticks=range(len(names)), title="filled: ours")
    left.set_xticklabels(names, rotation=60, ha="right")
    left.legend(frameon=False, ncols=2)
    for model, slope in exponents(good).items():
        here = [row for row in good if "events" in row["task"] and row["task"]["model"] == model]
        at = [(row["events"], row["seconds"]) for row in here]
        right.plot(*zip(*at), "o-", label=f"{model}, exponent {slope:.2f}")
    right.set(xscale="log", yscale="log", xlabel="interactions", ylabel="seconds an epoch", title="growth")
    if exponents(good):
        right.legend(frameon=False)
    made.savefig(path, dpi=120)
    plt.close(made)
