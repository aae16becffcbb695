"""A study is a list of cells, one function that runs a cell, and one that turns records into a table and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.record import Record, Records

Spec = dict[str, Any]


class Report(NamedTuple):
    """What a study has to show: a table (header, rows), notes, and the pictures written."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    pictures: list[Path]


class Study(NamedTuple):
    """A study.

    Attributes:
        name: what `scripts/reproduce.py` calls it.
        title: one line.
        cells: `(quick) -> list of specs`, the most informative first.
        run: `spec -> result`, in terms of JSON.
        report: `(records of the study, folder for pictures) -> Report`.
        minutes: of the whole study on 2 cores, roughly; and of the quick one.
    """

    name: str
    title: str
    cells: Callable[[bool], list[Spec]]
    run: Callable[[Spec], dict[str, Any]]
    report: Callable[[list[Record], Path], Report]
    minutes: tuple[float, float]


def work(
    study: Study, records: Records, *, quick: bool, hours: float | None, say: Callable[[str], None]
) -> int:
    """Run the cells that have no record yet, until done or the time is up.

    Args:
        study: what to run.
        records: where records lie and go.
        quick: the short list of cells.
        hours: stop before a cell that would not fit, judged by the mean time so far; None: no limit.
        say: told one line a cell.

    Returns:
        how many cells are still missing.
    """
    cells = study.cells(quick)
    missing = [spec for spec in cells if records.get(spec) is None]
    say(f"{study.name}: {len(cells)} cells, {len(cells) - len(missing)} done before")
    began = time.perf_counter()
    for number, spec in enumerate(missing):
        spent = time.perf_counter() - began
        if hours is not None and spent + spent / max(number, 1) > 3600 * hours:
            say(
                f"time is up; {len(missing) - number} cells left. The same command goes on where this one stopped"
            )
            return len(missing) - number
        start = time.perf_counter()
        result = study.run(spec)
        records.put(spec, result)
        left = (time.perf_counter() - began) / (number + 1) * (len(missing) - number - 1)
        what = " ".join(f"{name}={value}" for name, value in spec.items() if name != "study")
        say(
            f"[{number + 1}/{len(missing)}] {what}: {time.perf_counter() - start:.0f} s, about {left / 60:.0f} min left"
        )
    return 0
