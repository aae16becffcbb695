"""Tables and pictures, from records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from models.evaluation import bootstrap

SEEDS = "means over seeds with 95% bootstrap intervals, below three seeds the values themselves"
"""What a page says of the numbers `interval` writes."""


class Table(NamedTuple):
    """A further table of a page, under a heading of its own."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def interval(
    values: Sequence[float], digits: int = 3, statistic: Literal["median", "mean"] = "median"
) -> str:
    """Median (or mean) and its 95% bootstrap interval, as text; of one or two values, which have none, the values.

    >>> interval([0.5])
    '0.500'
    >>> interval([0.5, 0.25])
    '0.500, 0.250'
    >>> interval([0.5, 0.5, 0.5])
    '0.500 [0.500, 0.500]'
    """
    values = [value for value in values if value == value]  # NaN: not measured
    if not values:
        return "-"
    if len(values) < 3:
        return ", ".join(f"{value:.{digits}f}" for value in values)
    found = bootstrap(np.asarray(values), statistic=statistic)
    return f"{found.estimate:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "|".join(line) + "|" for line in lines
    )


def page(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    pictures: Sequence[Path],
    foot: str,
    further: Sequence[Table] = (),
) -> str:
    """A page of docs/results: the table, the notes as a list, the pictures, further tables, and how it is made."""
    lines = [f"# {title}", "", markdown(header, rows), "", *(f"- {note}" for note in notes), ""]
    lines += [*(f"![{p.stem}]({p.name})" for p in pictures), ""]
    for table in further:
        lines += [f"## {table.title}", "", markdown(table.header, table.rows), ""]
    return "\n".join([*lines, foot, ""])


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table, numbers to the right, words to the left, notes below."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for name, cells in zip(header, zip(*rows) if rows else [()] * len(header)):
        numbers = any(cells) and all(cell[:1] in "0123456789+-." for cell in cells)
        table.add_column(name, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a log has no width of its own; wrapped headers are hard to search
    console.print(table)
    for note in notes:
        console.print(f"[dim]{note}[/dim]")


def figure(rows: int = 1, columns: int = 1, width: float = 5.0, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its axes in the project's plain style, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return made, axes


def save(made: Any, path: str | Path) -> Path:
    """Write a figure as PNG and give the path back."""
    import matplotlib.pyplot as plt

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=130)
    plt.close(made)
    return path


def curves(axis: Any, series: Mapping[str, Sequence[Any]], *, x: Sequence[float] | None = None) -> None:
    """Median lines with the band between the quartiles, one a name; each series is (repetitions, points)."""
    for name, values in series.items():
        array = np.asarray(values, dtype=float)
        at = np.arange(array.shape[1]) if x is None else np.asarray(x)
        line = axis.plot(at, np.median(array, axis=0), label=name, linewidth=1.8)[0]
        if len(array) > 1:
            low, high = np.quantile(array, [0.25, 0.75], axis=0)
            axis.fill_between(at, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def bars(
    axis: Any,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    reference: float | None = None,
    like: Any = None,
) -> None:
    """Median bars with a dot for every repetition.

    Args:
        axis: where they are drawn.
        names, values: of the bars, and the repetitions of each.
        reference: height of a dashed line (the clean value).
        like: axes with `curves` of some of the names, whose colors these bars have; the others are gray.
    """
    colors = {} if like is None else {line.get_label(): line.get_color() for line in like.lines}
    for number, (name, repetitions) in enumerate(zip(names, values, strict=True)):
        color = None if like is None else colors.get(name, "0.6")
        axis.bar(number, np.median(repetitions), width=0.62, alpha=0.75, color=color)
        axis.plot([number] * len(repetitions), repetitions, "k.", markersize=4, alpha=0.6)
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
    if reference is not None:
        axis.axhline(reference, color="k", linewidth=1, linestyle="--", alpha=0.6)
