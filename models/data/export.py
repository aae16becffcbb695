"""Interactions on disk in the field's formats, so that other libraries can train on poisoned data.

    RecBole's atomic files   name.inter; with a split name.train.inter, name.valid.inter, name.test.inter
    tables                   .csv or .tsv, also .gz, with the header user, item[, rating][, time][, split]

`models.data.load` reads back what is written here. Users are written under their original ids where these are given,
fake users as fake-000, fake-001 and so on. A file is written beside its place and renamed, so that a kill leaves the
old one or the new one, and the same data give the same bytes (gzip carries no time stamp).

A user or an item without an event has no line, so it does not come back.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.data.interactions import Interactions
from models.data.split import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from models.data.load import Dataset

FAKE = "fake-"
_ENDINGS = {".csv": ",", ".tsv": "\t"}
_PARTS = ("train", "valid", "test")


def write_recbole(
    data: Interactions | Split,
    folder: str | os.PathLike[str],
    *,
    name: str,
    names: Dataset | None = None,
    fakes: int = 0,
) -> list[Path]:
    """Write RecBole's atomic files: `folder/name.inter`, or one file a part of a split (its benchmark files).

    Args:
        data: interactions or a split, poisoned or not, of any track. Ratings are written in the explicit track only.
        folder: made if missing. RecBole expects it to be called `name`; benchmark files are chosen there with
            `benchmark_filename: [train, valid, test]`.
        name: of the data set.
        names: the data set whose ids to write for the real users and the items; None: their numbers.
        fakes: how many users at the end are fake.

    Returns:
        The files, in the order train, valid, test.

    Raises:
        ValueError: users or items do not match `names` and `fakes`, a part without events, or an id that the format
            cannot hold.

    >>> import tempfile
    >>> poisoned = Interactions.from_arrays([0, 1, 2], [1, 0, 1])
    >>> print(write_recbole(poisoned, tempfile.mkdtemp(), name="toy", fakes=1)[0].read_text())
    user_id:token	item_id:token
    0	1
    1	0
    fake-0	1
    <BLANKLINE>
    """
    if not name or name != Path(name).name:
        raise ValueError(f"name={name!r}: expected the name of a data set, not a path")
    parts = (
        {f".{label}": part for label, part in _parts(data).items()} if isinstance(data, Split) else {"": data}
    )
    typed = {
        "user": "user_id:token",
        "item": "item_id:token",
        "rating": "rating:float",
        "time": "timestamp:float",
    }
    ids = _ids(parts, names, fakes)
    texts = {
        f"{name}{label}.inter": _text(
            {typed[key]: column for key, column in _columns(part, ids).items()}, "\t"
        )
        for label, part in parts.items()
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [_write(Path(folder, file), text.encode()) for file, text in texts.items()]


def write_table(
    data: Interactions | Split,
    path: str | os.PathLike[str],
    *,
    names: Dataset | None = None,
    fakes: int = 0,
) -> Path:
    """Write one CSV or TSV table (by its ending, also .gz); a split gets a split column (train, valid, test).

    Args:
        data, names, fakes: as in `write_recbole`.
        path: ends in .csv, .tsv, .csv.gz or .tsv.gz.

    Raises:
        ValueError: another ending; otherwise as in `write_recbole`.

    >>> import tempfile
    >>> from models.data import load
    >>> path = write_table(Interactions.from_arrays([0, 1], [1, 0], [3.0, 4.5]), tempfile.mkdtemp() + "/x.csv")
    >>> print(path.read_text(), load(path).interactions)
    user,item,rating
    0,1,3
    1,0,4.5
     Interactions(2 users x 2 items, 2 events, explicit)
    """
    path = Path(path)
    packed = path.name.endswith(".gz")
    ending = Path(path.name.removesuffix(".gz")).suffix
    if ending not in _ENDINGS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(_ENDINGS)}, or these with .gz")
    parts = _parts(data)
    ids = _ids(parts, names, fakes)
    made = [
        _columns(part, ids) | ({"split": [label] * _count(part)} if label else {})
        for label, part in parts.items()
    ]
    columns = {key: [value for part in made for value in part[key]] for key in made[0]}
    content = _text(columns, _ENDINGS[ending]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, gzip.compress(content, mtime=0) if packed else content)


# ---------------------------------------------------------------------------------------------------------- inside


def _parts(data: Interactions | Split) -> dict[str, Interactions]:
    """The parts by label; interactions are one part without a label."""
    if isinstance(data, Interactions):
        return {"": data}
    if not isinstance(data, Split):
        raise TypeError(
            f"data is {type(data).__name__}; expected Interactions or a Split (of a Dataset: .interactions or .split)"
        )
    parts = {label: part for label, part in zip(_PARTS, data) if part is not None}
    if len({(part.track, part.time is None) for part in parts.values()}) > 1:
        raise ValueError("the parts of a split must be of one track, all with times or all without")
    return parts


def _count(part: Interactions) -> int:
    return int(part.real().sum())


def _ids(parts: dict[str, Interactions], names: Dataset | None, fakes: int) -> tuple[np.ndarray, np.ndarray]:
    """Names of users and items as text; the last `fakes` users are fake ones."""
    users, items = max(part.users for part in parts.values()), {part.items for part in parts.values()}
    if len(items) > 1:
        raise ValueError(f"the parts of a split must hold the same items; got {sorted(items)} of them")
    for label, part in parts.items():
        if not _count(part):
            raise ValueError(f"{label.strip('.') or 'the data'}: no events to write")
    if not 0 <= fakes < users:
        raise ValueError(f"fakes={fakes}: expected 0..{users - 1} of the {users} users")
    wanted = (users - fakes, *items)
    if names is None:
        real, item = (np.arange(n).astype(str) for n in wanted)
    else:
        real, item = np.asarray(names.user_ids).astype(str), np.asarray(names.item_ids).astype(str)
        if (real.size, item.size) != wanted:
            raise ValueError(
                f"{names.name} names {real.size} users and {item.size} items; the data have {users} users, "
                f"{fakes} of them fake, and {wanted[1]} items"
            )
    width = len(str(max(fakes - 1, 0)))
    fake = np.array([f"{FAKE}{n:0{width}d}" for n in range(fakes)], dtype=str)
    taken = sorted(set(fake.tolist()) & set(real.tolist()))
    if taken:
        raise ValueError(f"a real user is called {taken[0]!r} already; rename it, or give names=None")
    return np.concatenate([real, fake]), item


def _columns(part: Interactions, ids: tuple[np.ndarray, np.ndarray]) -> dict[str, Sequence[str]]:
    """The text of every column of the real events, by role."""
    real = part.real()
    user, item = np.asarray(part.user)[real], np.asarray(part.item)[real]
    columns: dict[str, Sequence[str]] = {"user": ids[0][user].tolist(), "item": ids[1][item].tolist()}
    if part.track == "explicit":
        # The shortest text that gives the same float32 back.
        weight = np.asarray(part.weight, np.float32)[real]
        columns["rating"] = [np.format_float_positional(value, unique=True, trim="-") for value in weight]
    if part.time is not None:
        columns["time"] = [str(value) for value in np.asarray(part.time)[real].tolist()]
    return columns


def _text(columns: Mapping[str, Sequence[str]], sep: str) -> str:
    out = io.StringIO()
    if sep == "\t":  # RecBole and most readers of TSV know no quotes
        _refuse(columns, "\t\r\n\0")
        out.write("\t".join(columns) + "\n")
        out.writelines("\t".join(row) + "\n" for row in zip(*columns.values(), strict=True))
        return out.getvalue()
    _refuse(columns, "\r\n\0")
    plain = not any(_needs_quotes(value) for column in columns.values() for value in set(column))
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_MINIMAL if plain else csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return out.getvalue()


def _needs_quotes(value: str) -> bool:
    return '"' in value or "," in value or value != value.strip()


def _refuse(columns: Mapping[str, Sequence[str]], forbidden: str) -> None:
    for role, column in columns.items():
        for value in dict.fromkeys(column):
            bad = [character for character in forbidden if character in value]
            spaced = "\t" in forbidden and value != value.strip()
            if bad or spaced or not value.strip() or not _encodes(value):
                raise ValueError(
                    f"{role} {value!r} cannot be written to this format"
                    f"{f': it holds {bad[0]!r}' if bad else ''}; rename it, or use numbers (names=None)"
                )


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write(path: Path, content: bytes) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
