"""Records: one small JSON file a cell, written at once and never half; tables are made from records only.

A cell is a spec in terms of JSON: which study, which arguments, which seed. Its file is named by a hash of
the spec, so that a killed study continues where it stopped and two workers on one folder lose or double
nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.atomic import lock, plain, write_json_atomic
from bilevel.devices import environment, peak_rss

VERSION = 1
ROOT = Path(__file__).resolve().parent.parent
"""The checkout that this code runs from."""
_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "lineax")


class Record(NamedTuple):
    """One finished cell: `spec` asked for it, `result` came out, `about` says on what it ran."""

    spec: dict[str, Any]
    result: dict[str, Any]
    about: dict[str, Any]


class Records:
    """The records of a folder.

    Args:
        folder: where the files lie; made when the first record is written.

    >>> import tempfile
    >>> records = Records(tempfile.mkdtemp())
    >>> records.put({"study": "demo", "seed": 0}, {"hr": 0.5})
    >>> records.get({"seed": 0, "study": "demo"}).result
    {'hr': 0.5}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        commit()  # of the code that runs now, not of what lies there when the first cell is done

    def path(self, spec: Mapping[str, Any]) -> Path:
        """The file of a cell."""
        text = json.dumps(plain(dict(spec)), sort_keys=True)
        return (
            self.folder / f"{spec.get('study', 'cell')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        )

    def get(self, spec: Mapping[str, Any]) -> Record | None:
        """The record of a cell, None if it has not been run."""
        path = self.path(spec)
        return _read(path) if path.exists() else None

    @contextlib.contextmanager
    def claim(self, spec: Mapping[str, Any]) -> Iterator[None]:
        """Hold a cell while it runs, so that two workers never run it at once; a dead process holds nothing.

        Raises:
            FolderLocked: another process is at it.
        """
        folder = self.folder / ".claims" / self.path(spec).stem
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            yield

    def put(
        self, spec: Mapping[str, Any], result: Mapping[str, Any], *, seconds: float | None = None
    ) -> None:
        """Write a finished cell, with commit, versions, device, peak memory and the seconds it took."""
        self._write(spec, result, about() | ({} if seconds is None else {"seconds": seconds}))

    def copy(self, record: Record, spec: Mapping[str, Any]) -> None:
        """Write what another study found for the same cell, with where it ran and from which study it is."""
        self._write(spec, record.result, record.about | {"copied_from": record.spec["study"]})

    def beside(self, study: str) -> Records:
        """The records of another study, in the folder beside this one."""
        return Records(self.folder.parent / study)

    def _write(self, spec: Mapping[str, Any], result: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = {"spec": spec, "result": result, "about": about}
        write_json_atomic(
            self.path(spec),
            {"version": VERSION, **{name: plain(dict(part)) for name, part in parts.items()}},
        )

    def __iter__(self) -> Iterator[Record]:
        """All records, seed after seed and within a seed in the order of their file names."""
        found = [_read(path) for path in sorted(self.folder.glob("*-????????????.json"))]
        return iter(sorted(found, key=lambda record: record.spec.get("seed", 0)))

    def select(self, **wanted: Any) -> list[Record]:
        """The records whose spec has these values."""
        return [
            record for record in self if all(record.spec.get(name) == value for name, value in wanted.items())
        ]


def about() -> dict[str, Any]:
    """On what this process runs: commit, versions, device, peak memory so far in bytes.

    Cells of different commits may differ by more than their methods do; fake users kept from an earlier run may be of
    an earlier commit than the record. Records from before this was kept have no commit.

    >>> sorted(about())
    ['commit', 'device', 'peak_rss', 'python', 'versions']
    """
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "commit": commit(),
        "device": environment(),
        "peak_rss": peak_rss(),
        "python": platform.python_version(),
        "versions": versions,
    }


@functools.cache
def commit(root: Path = ROOT) -> str | None:
    """The commit of a checkout, asked once a process; None without git, or where `root` is not the top of a checkout.

    It ends in `-dirty` where a tracked file of code (`*.py`) is not as committed; records and pages may differ.

    >>> import tempfile
    >>> commit(Path(tempfile.mkdtemp())) is None
    True
    """
    # without locks: nothing is written into a checkout that others use
    ask = ("git", "--no-optional-locks", "-C", str(root))
    try:
        asked = subprocess.run(
            [*ask, "rev-parse", "--show-toplevel", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*ask, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True, check=False
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    top, found = asked.stdout.splitlines()
    if Path(top).resolve() != root.resolve():
        return None
    return found + "-dirty" * (changed.returncode != 0)


def _read(path: Path) -> Record:
    try:
        body = json.loads(path.read_text())
        if body["version"] != VERSION:
            raise ValueError(
                f"{path}: a record of version {body['version']}, this code reads {VERSION}; run the cell again"
            )
        return Record(body["spec"], _numbers(body["result"]), body["about"])
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a record ({error!r}); delete it and run the cell again") from error


def _numbers(value: Any) -> Any:
    """Results hold numbers: what JSON has as null was written as NaN."""
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float("nan") if value is None else value
