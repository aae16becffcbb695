"""A study is a list of cells, one function that runs a cell, and one that turns records into a table and a picture."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.atomic import FolderLocked
from experiments.record import Record, Records
from experiments.report import Table

Spec = dict[str, Any]


class Report(NamedTuple):
    """What a study has to show: a table (header, rows), notes, the pictures written, and further tables."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    pictures: list[Path]
    further: Sequence[Table] = ()


class Study(NamedTuple):
    """A study.

    Attributes:
        name: what `scripts/reproduce.py` calls it.
        title: one line.
        cells: `(quick) -> list of specs`, the most informative first.
        run: `spec -> result`, in terms of JSON.
        report: `(records of the study, folder for pictures) -> Report`.
        minutes: of the whole study on 2 cores, roughly; and of the quick one.
        twins: other studies whose cells with the same values are the same cells, by one function: what they
            have on record is copied.
    """

    name: str
    title: str
    cells: Callable[[bool], list[Spec]]
    run: Callable[[Spec], dict[str, Any]]
    report: Callable[[list[Record], Path], Report]
    minutes: tuple[float, float]
    twins: tuple[str, ...] = ()


def work(
    study: Study,
    records: Records,
    *,
    quick: bool,
    hours: float | None,
    say: Callable[[str], None],
    only: Mapping[str, str] | None = None,
    again: bool = False,
) -> int:
    """Run the cells that have no record yet, until done or the time is up.

    Several workers may share the records: a cell that another one is at is left to it.

    Args:
        study: what to run.
        records: where records lie and go.
        quick: the short list of cells.
        hours: skip a cell that is not expected to fit; None: no limit. See `Expectation`.
        say: told one line a cell.
        only: values that a cell's spec must have, as text; None: all cells.
        again: run cells that have a record once more, and replace it.

    Returns:
        how many of the cells are still missing.

    Raises:
        ValueError: no cell has the values of `only`; says which there are.
    """
    cells = chosen(study.cells(quick), only)
    todo = [spec for spec in cells if again or records.get(spec) is None]
    say(f"{study.name}: {len(cells)} cells, {len(cells) - len(todo)} done before")
    if not again:
        todo = [spec for spec in todo if not _copied(study, records, spec, say)]
    fresh = 60 * study.minutes[quick] / len(study.cells(quick))
    began, skipped, done = time.perf_counter(), 0, 0
    for number, spec in enumerate(todo):
        expected = Expectation(records, fresh)
        if hours is not None and time.perf_counter() - began + expected(spec) > 3600 * hours:
            skipped += 1
            continue
        start = time.perf_counter()
        try:
            with records.claim(spec):
                if not again and records.get(spec) is not None:
                    continue  # another worker has been quicker
                result = study.run(spec)
                seconds = time.perf_counter() - start
                records.put(spec, result, seconds=seconds)
        except FolderLocked:
            say(f"another worker is at {_text(spec)}")
            continue
        done += 1
        left = sum(map(expected, todo[number + 1 :]))
        say(f"[{number + 1}/{len(todo)}] {_text(spec)}: {seconds:.0f} s, about {left / 60:.0f} min left")
    if skipped:
        say(f"time is up; {skipped} cells left. The same command goes on where this one stopped")
    return sum(records.get(spec) is None for spec in cells)


def _copied(study: Study, records: Records, spec: Spec, say: Callable[[str], None]) -> bool:
    """Whether a twin beside the records has the cell, which is then copied."""
    for name in study.twins:
        found = records.beside(name).get({**spec, "study": name})
        if found is not None:
            records.copy(found, spec)
            say(f"{_text(spec)}: as in {name}")
            return True
    return False


def chosen(cells: list[Spec], only: Mapping[str, str] | None) -> list[Spec]:
    """The cells whose spec has these values, compared as text.

    >>> chosen([{"seed": 0}, {"seed": 1}], {"seed": "1"})
    [{'seed': 1}]
    """
    if not only:
        return cells
    found = [spec for spec in cells if all(str(spec.get(name)) == value for name, value in only.items())]
    if not found:
        known = {name: list(dict.fromkeys(str(spec.get(name)) for spec in cells)) for name in only}
        raise ValueError(
            "no such cell; "
            + "; ".join(f"{name} has {', '.join(values[:12])}" for name, values in known.items())
        )
    return found


class Expectation:
    """Seconds a cell will take: the median of cells that differ in the seed only, else of all, else `fresh`.

    >>> Expectation([], 60.0)({"seed": 0})
    60.0
    """

    def __init__(self, records: Iterable[Record], fresh: float):
        self._like: dict[str, list[float]] = {}
        for record in records:
            if "seconds" in record.about:
                self._like.setdefault(self._kind(record.spec), []).append(record.about["seconds"])
        every = [seconds for found in self._like.values() for seconds in found]
        self._other = statistics.median(every) if every else fresh

    def __call__(self, spec: Mapping[str, Any]) -> float:
        found = self._like.get(self._kind(spec))
        return statistics.median(found) if found else self._other

    @staticmethod
    def _kind(spec: Mapping[str, Any]) -> str:
        return json.dumps({**spec, "seed": 0}, sort_keys=True)


def absent(cells: list[Spec], records: Iterable[Record]) -> str | None:
    """Which cells have no record: of each name of a spec, the values that lack some, and how many of their cells.

    >>> cells = [{"attack": name, "seed": seed} for name in ("random", "revadv") for seed in (0, 1)]
    >>> absent(cells, [Record(cells[0], {}, {}), Record(cells[1], {}, {}), Record(cells[2], {}, {})])
    'without a record: attack: revadv 1 of 2; seed: 1 1 of 2'
    >>> absent(cells[:1], [Record(cells[0], {}, {})]) is None
    True
    """
    have = {json.dumps(record.spec, sort_keys=True) for record in records}
    lacking = [spec for spec in cells if json.dumps(spec, sort_keys=True) not in have]
    if not lacking:
        return None
    said = []
    for name in dict.fromkeys(name for spec in cells for name in spec):
        value = lambda spec, name=name: str(spec[name]).strip("[]'") if name in spec else None
        every, gone = (Counter(map(value, found)) for found in (cells, lacking))
        if len(every) > 1:
            told = (
                f"{which} {gone[which]} of {n}"
                for which, n in every.items()
                if which is not None and gone[which]
            )
            said.append(f"{name}: {', '.join(told)}")
    return "without a record: " + "; ".join(said)


def _text(spec: Spec) -> str:
    return " ".join(f"{name}={value}" for name, value in spec.items() if name != "study")
