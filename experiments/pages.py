"""The page of a study: what its records say now, as Markdown with its pictures beside it. Nothing is run here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from experiments import report
from experiments.record import Records
from experiments.study import Report, Study, absent


class Page(NamedTuple):
    """What was written: the title with how much is there, the report behind it, the file, and cells done and wanted."""

    title: str
    report: Report
    path: Path
    done: int
    wanted: int


def write(study: Study, records: Records, folder: Path, *, quick: bool = False) -> Page | None:
    """Make the page of a study from the records it has.

    Args:
        study: of `experiments.papers.STUDIES`.
        records: where its records are.
        folder: of the page and the pictures; made if it is not there.
        quick: the cells of the quick study, whose page always says that it is partial.

    Returns:
        What was written; None where no cell has a record, and nothing was written.
    """
    cells = study.cells(quick)
    wanted = {records.path(spec) for spec in cells}
    found = [record for record in records if records.path(record.spec) in wanted]
    if not found:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    made = study.report(found, folder)
    lacking = absent(cells, found)
    notes = [*made.notes, lacking] if lacking else made.notes
    title = made.title + (f" (partial: {len(found)} of {len(wanted)} cells)" if lacking or quick else "")
    path = folder / f"{study.name}.md"
    command = f"python scripts/reproduce.py {study.name}{' --quick' if quick else ''}"
    foot = f"Made by `{command}` from {len(found)} records."
    path.write_text(report.page(title, made.header, made.rows, notes, made.pictures, foot, made.further))
    return Page(title, made._replace(notes=notes), path, len(found), len(wanted))
