"""What the rows of `attacks.py` say: the table of crafts, growth, RAPU's Table 1, PoisonRec's tree, and the picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PAPER = {3000: (1.41, 1.93), 30_000: (2.33, 15.69)}
"""Seconds a step of PoisonRec with the tree and without, by items: Song et al., ICDE 2020, section IV-F."""
USERS = 2000
"""Real users of drawn clicks, whose fake users or items grow."""
MOST = 50
"""Iterations that an EM of RAPU-G may make (attacks.pgm.Pgm)."""
Term = Callable[[float, float], float]
PARAMETERS: Term = lambda fakes, items: USERS + fakes + items
CELLS: Term = lambda fakes, items: USERS * items
COMPLEXITIES: Mapping[str, tuple[str, tuple[Term, ...]]] = {
    "rapu-g": ("O(T (tau |theta| + E |U| |I|))", (PARAMETERS, CELLS)),
    "rapu-r": ("O(|U'| |I|)", (lambda fakes, items: fakes * items,)),
    "revadv": ("O(T tau |theta|)", (PARAMETERS,)),
}
"""RAPU's Table 1 (Zhang et al., KDD 2021): what is printed, and its terms in the fake users |U'| and the items |I|.

|theta| is a vector of each user, real or fake, and of each item.
"""


def line(row: Row) -> str:
    """A measurement as one line."""
    task = row["task"]
    if "tree" in task:
        who, what = f"PoisonRec {task['tree']}, {task['items']:,} items", "step_seconds"
    else:
        where = task.get("size") or f"{task['fakes']} fakes, {task['items']:,} items"
        where += f", EM of {task['em']}" if "em" in task else ""
        who, what = f"{task['attack']}, {where}", "seconds"
    if "error" in row:
        return f"{who}: {row['error']}"
    return f"{who}: {row[what]:.2f} s {'a step' if what == 'step_seconds' else 'a craft'}, peak {row['peak_mb']:.0f} MB"


def good(rows: list[Row], key: str) -> list[Row]:
    """The finished measurements whose task has such a value."""
    return [row for row in rows if key in row["task"] and "error" not in row]


def growth(rows: list[Row], over: str) -> dict[str, list[tuple[int, float]]]:
    """By attack: `fakes` or `items` and the seconds of a craft, the other being the value that most rows share."""
    other = {"fakes": "items", "items": "fakes"}[over]
    found: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for row in good(rows, "items"):
        task = row["task"]
        if "attack" in task:
            found.setdefault(task["attack"], {}).setdefault(task[other], []).append(
                (task[over], row["seconds"])
            )
    return {name: sorted(max(groups.values(), key=len)) for name, groups in found.items()}


def ends(rows: list[Row], over: str) -> dict[str, list[tuple[int, float]]]:
    """The two largest points of each attack's growth, where there are two."""
    return {name: points[-2:] for name, points in growth(rows, over).items() if len(points) > 1}


def exponents(rows: list[Row], over: str) -> dict[str, float]:
    """Slope of log seconds over log `fakes` or `items` between the two largest; 1 is proportional."""
    return {name: slope(*pair) for name, pair in ends(rows, over).items()}


def slope(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Of the line through two points, on logarithmic axes."""
    return math.log(high[1] / low[1]) / math.log(high[0] / low[0])


def printed(rows: list[Row], name: str, over: str) -> list[float]:
    """Exponents of the terms of an attack's printed complexity between the points that `exponents` measures."""
    (a, _), (b, _) = ends(rows, over)[name]
    shared = next(
        row["task"][{"fakes": "items", "items": "fakes"}[over]]
        for row in good(rows, "items")
        if row["task"].get("attack") == name and row["task"][over] == b
    )
    at = lambda term, value: term(value, shared) if over == "fakes" else term(shared, value)
    return [slope((a, at(term, a)), (b, at(term, b))) for term in COMPLEXITIES[name][1]]


def complexities(rows: list[Row]) -> list[str]:
    """A line for each row of RAPU's Table 1 that was measured: the growth that each printed term has, and ours."""
    lines = []
    for name, (formula, _) in COMPLEXITIES.items():
        told = []
        for over in ("fakes", "items"):
            measured = exponents(rows, over).get(name)
            if measured is not None:
                terms = " and ".join(f"{value:.2f}" for value in printed(rows, name, over))
                told.append(f"{over} {measured:.2f} (printed: {terms})")
        if told:
            lines.append(f"RAPU's Table 1, {name}, {formula}: exponent of {', of '.join(told)}")
    return lines


def trees(rows: list[Row]) -> dict[int, float]:
    """Seconds of one softmax over those of the tree, by items."""
    found: dict[int, dict[str, float]] = {}
    for row in good(rows, "tree"):
        found.setdefault(row["task"]["items"], {})[row["task"]["tree"]] = row["step_seconds"]
    return {items: s["plain"] / s["bcbt-popular"] for items, s in found.items() if len(s) == 2}


def faster(rows: list[Row]) -> dict[str, float]:
    """RevAdv's seconds (truncated) over RAPU-R's at the same surrogate, by size; the goal is 10."""
    by = {(row["task"]["attack"], row["task"]["size"]): row["seconds"] for row in whole(good(rows, "attack"))}
    sizes = dict.fromkeys(size for _, size in by)
    return {
        s: by["revadv", s] / by["rapu-r", s] for s in sizes if ("revadv", s) in by and ("rapu-r", s) in by
    }


def whole(rows: list[Row]) -> list[Row]:
    """Those of an attack as it comes, at a size."""
    return [row for row in rows if "size" in row["task"] and "em" not in row["task"]]


def em(rows: list[Row]) -> list[str]:
    """What an iteration of RAPU-G's EM takes in a craft, from two measurements that differ in how many there are."""
    lines = []
    for size in dict.fromkeys(row["task"].get("size") for row in good(rows, "em")):
        cut = sorted((r["task"]["em"], r["seconds"]) for r in good(rows, "em") if r["task"]["size"] == size)
        (few, less), (many, more) = cut[0], cut[-1]
        if few < many and less < more:
            each = (more - less) / (many - few)
            lines.append(
                f"RAPU-G, {size}: {less:,.0f} s a craft where every EM ends after {few}, and {each:,.0f} s with each "
                f"further iteration; if all of them made the {MOST} they may make, {less + (MOST - few) * each:,.0f} s"
            )
    return lines


def crafts(rows: list[Row]) -> str:
    """Seconds and peak memory of a craft at each size, a line an attack, as Markdown."""
    sized = whole(rows)
    sizes = list(dict.fromkeys(row["task"]["size"] for row in sized))
    found = {(row["task"]["attack"], row["task"]["size"]): row for row in sized}
    lines = [
        "| attack | " + " | ".join(f"{size}, s | {size}, MB" for size in sizes) + " |",
        "|---" * (1 + 2 * len(sizes)) + "|",
    ]
    fastest = lambda name: next(found[name, s].get("seconds", math.inf) for s in sizes if (name, s) in found)
    for name in sorted(dict.fromkeys(name for name, _ in found), key=fastest):
        cells = []
        for size in sizes:
            row = found.get((name, size), {"error": ""})
            cells += ["-", "-"] if "error" in row else [_seconds(row["seconds"]), f"{row['peak_mb']:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(value: float) -> str:
    """Three digits, whole from 100 on.

    >>> _seconds(0.04394), _seconds(132_070.8)
    ('0.0439', '132,071')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def said(rows: list[Row]) -> list[str]:
    """Growth, RAPU's Table 1, the tree and the comparison of RAPU-R with RevAdv, a line each."""
    lines = []
    for over in ("fakes", "items"):
        slopes = exponents(rows, over)
        if slopes:
            lines.append(
                f"seconds ~ {over}^e, e: "
                + ", ".join(f"{name} {value:.2f}" for name, value in slopes.items())
            )
    lines += complexities(rows) + em(rows)
    for items, ratio in trees(rows).items():
        tree, plain = PAPER[items]
        lines.append(
            f"PoisonRec, {items:,} items: one softmax takes {ratio:.2f}x the tree's seconds a step "
            f"(paper {plain / tree:.2f}x)"
        )
    for size, ratio in faster(rows).items():
        goal = "passed" if ratio >= 10 else "missed"
        lines.append(f"RAPU-R at least 10x faster than RevAdv, {size}: {goal}: {ratio:.1f}x")
    return lines


def write(path: Path, rows: list[Row], machine: dict[str, Any]) -> None:
    """The rows, the machine, and what they say."""
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps({"machine": machine, "said": said(rows), "rows": rows}, indent=1) + "\n")
    part.replace(path)


def show(console: Any, rows: list[Row]) -> None:
    """Print the table of crafts and what follows from the rows."""
    from rich import box
    from rich.table import Table

    head = (
        "data",
        "attack",
        "fakes",
        "clicks each",
        "s a craft",
        "steps",
        "s a step",
        "compile s",
        "peak MB",
    )
    table = Table(*head, box=box.SIMPLE)
    for row in whole(rows):
        task = row["task"]
        if "error" in row:
            table.add_row(task["size"], task["attack"], row["error"])
            continue
        table.add_row(
            f"{task['size']}{' (drawn)' if row['source'] == 'drawn' else ''}",
            task["attack"],
            str(row["fakes"]),
            f"{row['clicks']:.0f}",
            f"{row['seconds']:.2f}",
            str(row["steps"]),
            f"{row['step_seconds']:.3f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_mb']:.0f}",
        )
    console.print(table)
    clocks = sorted({row["clock"] for row in rows if "clock" in row})
    told = {"cpu": "CPU seconds on one core and one thread", "wall": "wall seconds, not pinned"}
    console.print(
        "; ".join(told[clock] for clock in clocks) + "; compilation apart; steps timed in part and scaled"
    )
    for text in said(rows):
        console.print(text)


def figure(rows: list[Row], path: Path) -> None:
    """Seconds of a craft at each size, and growth with fake users and items."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=(2, 1, 1))
    sized = whole(good(rows, "attack"))
    names = list(dict.fromkeys(row["task"]["attack"] for row in sized))
    for size in dict.fromkeys(row["task"]["size"] for row in sized):
        here = [row for row in sized if row["task"]["size"] == size]
        at = [names.index(row["task"]["attack"]) for row in here]
        axes[0].plot(at, [row["seconds"] for row in here], "o", label=size)
    axes[0].set(yscale="log", ylabel="seconds a craft", xticks=range(len(names)))
    axes[0].set_xticklabels(names, rotation=60, ha="right")
    for axis, over in ((axes[1], "fakes"), (axes[2], "items")):
        for name, points in growth(rows, over).items():
            axis.plot(*zip(*points), "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel=over, ylabel="seconds a craft")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    made.savefig(path, dpi=120)
    plt.close(made)
