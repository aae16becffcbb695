"""Reproduce a study: run the cells that have no record yet, then print the table and draw the picture from
the records.

    python scripts/reproduce.py --list
    python scripts/reproduce.py revadv-toy-wrmf --quick
    python scripts/reproduce.py revadv-movielens --hours 1
    python scripts/reproduce.py revadv-movielens --cell method=random,seed=3 --again

Records are small JSON files; a killed run goes on where it stopped. The table is also written as markdown, the picture
as PNG.

Without --quick these are the published ones: new records are added to experiments/records/STUDY, and the page and the
pictures of the study in docs/results/ are made again, in place. --records FOLDER --out FOLDER keep a copy of your own
instead; --quick has folders of its own under runs/quick/, which are not committed. All pages at once, from the records
there are: make_report.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from experiments.reading import plainly

ROOT = Path(__file__).resolve().parent.parent


def main(
    study: Annotated[str, tyro.conf.Positional] = "",
    /,
    *,
    list: bool = False,
    quick: bool = False,
    report_only: bool = False,
    hours: float | None = None,
    cell: str | None = None,
    again: bool = False,
    records: Path | None = None,
    out: Path | None = None,
) -> None:
    """Run a study and show its table.

    Args:
        study: name of the study, see --list.
        list: print the studies with their cells and rough minutes, and stop.
        quick: a few cells, minutes on 2 cores; its records lie apart and its table says that it is partial.
        report_only: no cell is run; the table is made from the records there are.
        hours: leave out cells that are not expected to fit, by the seconds of the records there are.
        cell: only the cells with these values, such as seed=0 or method=random,seed=3.
        again: run cells that have a record once more, and replace it.
        records: folder of the records; default the published ones, experiments/records/STUDY (quick: runs/quick/STUDY).
        out: folder of the table and the picture; default the published ones, docs/results (quick: runs/quick).
    """
    from experiments import pages, report
    from experiments.papers import STUDIES
    from experiments.record import Records
    from experiments.study import work
    from models.registry import nearest

    if list or not study:
        rows = [
            [s.name, s.title, str(len(s.cells(False))), f"{s.minutes[0]:g} / {s.minutes[1]:g}"]
            for s in STUDIES.values()
        ]
        report.show("studies", ["name", "what", "cells", "minutes (full / quick)"], rows)
        return
    chosen = STUDIES[nearest("study", study, STUDIES)]
    base = ROOT / "runs" / "quick" if quick else None
    store = Records(records or (base / study if base else ROOT / "experiments" / "records" / study))
    folder = out or base or ROOT / "docs" / "results"
    if not report_only:
        only = None if cell is None else values_of(cell)
        work(chosen, store, quick=quick, hours=hours, say=print, only=only, again=again)
    page = pages.write(chosen, store, folder, quick=quick)
    if page is None:
        todo = (
            "run it without --report-only first"
            if report_only
            else "no cell fitted into --hours, give it more"
        )
        raise ValueError(f"{study} has no records in {store.folder}; {todo}")
    made = page.report
    report.show(page.title, made.header, made.rows, made.notes)
    for table in made.further:
        print(f"also on the page: {table.title}")
    print(f"written: {page.path}, {', '.join(map(str, made.pictures))}")


def values_of(text: str) -> dict[str, str]:
    """`method=random,seed=3` as a dictionary."""
    parts = [part.partition("=") for part in text.split(",")]
    for name, equals, _ in parts:
        if not equals:
            raise ValueError(f"--cell {text}: {name!r} is not name=value")
    return {name.strip(): value.strip() for name, _, value in parts}


if __name__ == "__main__":
    with plainly("reproduce"):
        tyro.cli(main, description=__doc__)
