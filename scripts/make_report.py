"""Make the pages of docs/results again, from the records there are; nothing is run.

    python scripts/make_report.py                                # every study that has records
    python scripts/make_report.py rapu-table2 defense-grid       # these
    python scripts/make_report.py --out runs/pages               # elsewhere, to compare

Each page has its tables, notes and pictures, and says which cells have no record. The table of a single study, and the
cells it lacks: reproduce.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from experiments.reading import plainly, teller

ROOT = Path(__file__).resolve().parent.parent


def main(
    studies: Annotated[list[str], tyro.conf.Positional],
    /,
    *,
    records: Path = ROOT / "experiments" / "records",
    out: Path = ROOT / "docs" / "results",
    quiet: bool = False,
) -> None:
    """Write pages and list them.

    Args:
        studies: names as in reproduce.py --list; none: all.
        records: folder with a folder of records for each study.
        out: folder of the pages and pictures.
        quiet: no progress.
    """
    from experiments import pages, report
    from experiments.papers import STUDIES
    from experiments.record import Records
    from models.registry import nearest

    chosen = [STUDIES[nearest("study", name, STUDIES)] for name in studies or STUDIES]
    say, rows = teller(quiet), []
    for number, study in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {study.name}")
        page = pages.write(study, Records(records / study.name), out)
        done = "no records" if page is None else f"{page.done} of {page.wanted}"
        rows.append([study.name, study.title, done, "-" if page is None else page.path.name])
    if all(row[-1] == "-" for row in rows):
        raise ValueError(
            f"none of {', '.join(s.name for s in chosen)} has records in {records}; see reproduce.py"
        )
    report.show(f"pages in {out}", ["study", "what", "cells", "page"], rows)


if __name__ == "__main__":
    with plainly("make_report"):
        tyro.cli(main, description=__doc__)
