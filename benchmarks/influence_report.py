"""What the rows of `influence.py` say: a table of cost and agreement for each question, what follows, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
QUESTIONS = {
    "user": "by how much a user's best score drops without each of its ratings (exact: all parameters, damping 1e-3)",
    "vector": "APT's influence vector over all items, eq. 5 (exact: all parameters, damping 1e-3)",
}
NAMES = {
    "fast": "ours, vectors of user and item (default)",
    "user": "ours, the user's vector",
    "full": "ours, CG through everything",
    "cg": "ours, CG (default)",
    "gauss-newton": "ours, CG, Gauss-Newton",
    "identity": "no inverse, the gradient",
    "lissa-published": "LiSSA as published",
    "lissa-block": "ours, LiSSA of blocks, all ratings",
    "dense": "dense Hessian",
}
CODES = {0: "OK", 1: "not converged", 2: "indefinite", 3: "singular", 4: "diverged"}
"""`bilevel.Code` in words."""
OURS = {"user": ("fast", "full"), "vector": ("cg",)}


def line(row: Row) -> str:
    """A measurement as one line."""
    task = row["task"]
    where = task.get("size") or f"{task['events']} ratings"
    who = f"{task['asked']}, {task['method']}, {where}, {task['factors']} factors"
    if "error" in row:
        return f"{who}: {row['error']}"
    if row.get("too_large"):
        return f"{who}: too large, {row['gigabytes']:,.0f} GB"
    return (
        f"{who}: {row['seconds']:.3f} s, peak {row['peak_mb']:.0f} MB, error {row['rel_error']:.2g}, "
        f"Spearman {row['spearman']:.4f}"
    )


def finished(rows: list[Row]) -> list[Row]:
    """The rows with a measurement in them."""
    return [row for row in rows if "seconds" in row]


def find(rows: list[Row], like: Row, method: str) -> Row | None:
    """The finished row of another method on the same question, size and factors."""
    same = lambda task: [task.get(name) for name in ("asked", "size", "events", "factors")]
    task = like["task"]
    mine = (r for r in rows if r["task"]["method"] == method and same(r["task"]) == same(task))
    return next((r for r in mine if "seconds" in r), None)


def said(rows: list[Row]) -> list[str]:
    """How much faster ours is than the dense solve and the published schedule, and what is too large; a line each."""
    lines = []
    for row in finished(rows):
        task = row["task"]
        if task["method"] not in OURS[task["asked"]]:
            continue
        where = f"{task['asked']}, {task['size']}, {task['factors']} factors, {task['method']}"
        for rival in ("dense", "lissa-published"):
            other = find(rows, row, rival)
            if other is not None:
                lines.append(
                    f"{where}: {other['seconds'] / row['seconds']:,.1f}x faster than {NAMES[rival]}, "
                    f"{other['peak_mb'] - other['data_mb']:,.0f} MB above the data there, "
                    f"{row['peak_mb'] - row['data_mb']:,.0f} here; rank correlation {row['spearman']:.4f} "
                    f"(there {other['spearman']:.4f})"
                )
    for row in rows:
        task = row["task"]
        if row.get("too_large"):
            lines.append(
                f"{task['asked']}, {task['size']}, {task['factors']} factors: the dense Hessian of "
                f"{row['parameters']:,} parameters is too large, {row['gigabytes']:,.1f} GB in float64"
            )
        if "undamped_rel_error" in row:
            lines.append(
                f"{task['asked']}, {task['size']}, {task['factors']} factors: H^-1 without any damping differs from "
                f"the damped answer by {row['undamped_rel_error']:.3g} of its norm, rank correlation "
                f"{row['undamped_spearman']:.3f}"
            )
    return lines


def write(path: Path, rows: list[Row], machine: dict[str, Any]) -> None:
    """The rows, the machine, and what they say."""
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps({"machine": machine, "said": said(rows), "rows": rows}, indent=1) + "\n")
    part.replace(path)


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    task = row["task"]
    drawn = " (drawn)" if row.get("source") == "drawn" else ""
    where = f"{task.get('size') or task['events']}{drawn}", str(task["factors"]), NAMES[task["method"]]
    if row.get("too_large"):
        return (*where, "too large", "", f"{1000 * row['gigabytes']:,.0f} for the matrix", "", "", "", "")
    if "seconds" not in row:
        return (*where, row["error"], "", "", "", "", "", "")
    each = f"{row['many_seconds']:.4f}" if "many_seconds" in row else ""
    own = f"{row['own_rel_error']:.1e}" if "own_rel_error" in row else ""
    return (
        *where,
        f"{row['seconds']:.3f}",
        each,
        f"{row['peak_mb'] - row['data_mb']:,.0f}",
        f"{row['rel_error']:.1e}",
        f"{row['spearman']:.4f}",
        own,
        verdict(row),
    )


def verdict(row: Row) -> str:
    """What a solver says of its own result; the factorization of a dense one."""
    if row["task"]["method"] in ("identity", "lissa-published"):
        return "unchecked"
    return row["factorization"] if "factorization" in row else CODES.get(row["code"], f"code {row['code']}")


def show(console: Any, rows: list[Row]) -> None:
    """Print a table for each question, and what follows from the rows."""
    from rich import box
    from rich.table import Table

    for asked, title in QUESTIONS.items():
        head = (
            "data",
            "factors",
            "method",
            "s",
            "s of 64",
            "MB above data",
            "rel. error",
            "Spearman",
            "own error",
            "says",
        )
        table = Table(*head, box=box.SIMPLE, title=title)
        for row in (row for row in rows if row["task"]["asked"] == asked):
            table.add_row(*cells(row))
        if table.row_count:
            console.print(table)
    clocks = sorted({row["clock"] for row in rows if "clock" in row})
    told = {"cpu": "CPU seconds on one core and one thread", "wall": "wall seconds, not pinned"}
    console.print("; ".join(told[clock] for clock in clocks) + "; compilation apart")
    console.print(
        "s of 64: seconds a user when 64 are asked for; own error: from the exact answer of the same block"
    )
    for text in said(rows):
        console.print(text)


def figure(rows: list[Row], path: Path) -> None:
    """Seconds against relative error, a panel for each question; what is exact lies at the left."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [asked for asked in QUESTIONS if any(row["task"]["asked"] == asked for row in finished(rows))]
    if not shown:
        return
    made, axes = plt.subplots(
        1, len(shown), figsize=(6 * len(shown), 4.6), layout="constrained", squeeze=False
    )
    marks = dict(zip(NAMES, "osDPX^v<*", strict=True))
    worlds = list(dict.fromkeys((r["task"].get("size"), r["task"]["factors"]) for r in finished(rows)))
    for axis, asked in zip(axes[0], shown, strict=True):
        here = [row for row in finished(rows) if row["task"]["asked"] == asked]
        for method in dict.fromkeys(row["task"]["method"] for row in here):
            axis.plot([], [], marks[method], color="0.4", label=NAMES[method])
        for n, (size, factors) in enumerate(worlds):
            for row in (r for r in here if (r["task"].get("size"), r["task"]["factors"]) == (size, factors)):
                axis.plot(row["rel_error"], row["seconds"], marks[row["task"]["method"]], color=f"C{n}")
            axis.plot([], [], "s", color=f"C{n}", label=f"{size}, {factors} factors")
        axis.set(xscale="log", yscale="log", xlabel="relative error", ylabel="seconds", title=asked)
        axis.legend(frameon=False, fontsize=7)
    made.savefig(path, dpi=120)
    plt.close(made)
