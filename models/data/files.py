"""One file of interactions, or a folder of train and test files, whatever the format: `read` and `read_parts`.

    tables            models.data.formats: CSV, TSV, MovieLens, LibRec, RecBole, Steam
    adjacency lists   LightGCN, NGCF: a line `user item item item` for each user
    JSON lines        Amazon reviews: one `{"reviewerID": ..., "asin": ...}` a line
    parquet           models.data.frames

Text may be gzipped. A split published as files is a folder with one file a part: train.txt and test.txt (LightGCN),
train.csv and test.csv, name.train.rating and name.test.rating (NCF, APT), name.train.inter, name.valid.inter and
name.test.inter (RecBole's benchmark files).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from models.data import checks, formats, frames
from models.data.formats import DataError, Raw, Roles, by_name, decode, lines_of, named_roles, show

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

Layout = Literal["table", "adjacency"]

_LIST = re.compile(r"(?:0|[1-9][0-9]{0,17})(?: (?:0|[1-9][0-9]{0,17}))*")
_PARTS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_ENDINGS = (".txt", ".csv", ".tsv")
_NAMED_ENDINGS = (".inter", ".rating")


class How(NamedTuple):
    """How a text file is to be read: its separator, whether the first line names columns, its layout; None: detect."""

    sep: str | None = None
    header: bool | None = None
    layout: Layout | None = None


DETECT = How()


def check(how: How, roles: Roles) -> None:
    """Raise where the options contradict each other; nothing given may be ignored."""
    if how.sep is not None and (how.sep == "" or "\n" in how.sep):
        raise ValueError(f"sep={how.sep!r}: expected a separator such as '\\t', ',' or '::'")
    if how.layout is None:
        return
    checks.option("layout", how.layout, ("table", "adjacency"))
    if how.layout == "adjacency" and (
        named_roles(roles) or how.header is not None or how.sep not in (None, " ")
    ):
        raise ValueError(
            "layout='adjacency' is lines of a user and its items, separated by spaces: it has no columns, "
            "header or other separator to name"
        )


def read(
    path: str | os.PathLike[str], roles: Roles, how: How = DETECT, *, content: bytes | None = None
) -> tuple[Raw, Layout]:
    """Columns of a file (or of `content`, then `path` only names it in errors) and the layout they were found in.

    Raises:
        FileNotFoundError: no such file.
        DataError: truncated gzip, not text, empty file, wrong separator, missing column, uneven rows.
        ImportError: a parquet file, and nothing that reads it.
    """
    check(how, roles)
    shown = str(path)
    data = Path(path).read_bytes() if content is None else content
    if frames.is_parquet(shown):
        if how != DETECT:
            raise ValueError(f"{shown} is a parquet file: sep, header and layout do not apply")
        return frames.read_parquet(data, shown, roles), "table"
    text = decode(data, shown)
    if how == DETECT and text.lstrip()[:1] == "{":
        return json_lines(text, shown, roles), "table"
    detect = how == DETECT and not named_roles(roles)
    if how.layout == "adjacency" or (detect and _looks_like_lists(text)):
        return adjacency(text, shown), "adjacency"
    return formats.read(text, shown, roles, sep=how.sep, header=how.header), "table"


def adjacency(text: str, path: str) -> Raw:
    """Events of `user item item ...` lines, in their order; a line with only a user holds none.

    >>> raw = adjacency("0 7 9\\n1 7\\n", "train.txt")
    >>> raw.user.tolist(), raw.item.tolist(), raw.lines.tolist()
    ([0, 0, 1], [7, 9, 7], [1, 1, 2])
    """
    lines, numbers = lines_of(text, path)
    rows = [" ".join(lines[n - 1].split()) for n in numbers]
    for n, row in zip(numbers, rows):
        if not _LIST.fullmatch(row):
            raise DataError(
                path, n, f"{show(lines[n - 1])}: expected a user and its items, whole numbers and spaces"
            )
    flat = np.array(" ".join(rows).split(" "), dtype=np.int64)
    sizes = np.array([row.count(" ") for row in rows])
    first = np.cumsum(sizes + 1) - sizes - 1  # where each line's user stands
    if not sizes.any():
        raise DataError(path, numbers[0], "no events: no line holds an item")
    return Raw(
        np.repeat(flat[first], sizes),
        np.delete(flat, first),
        None,
        None,
        None,
        path,
        np.repeat(np.array(numbers), sizes),
    )


def _looks_like_lists(text: str) -> bool:
    """Whole numbers and spaces, lines of different lengths, every line another user: no table looks like this."""
    lines = [line for line in text.split("\n") if line.strip()]
    for some in (lines[:20], lines):  # the first lines tell nearly all tables apart
        rows = [" ".join(line.split()) for line in some]
        if not all(_LIST.fullmatch(row) for row in rows):
            return False
        if len({row.partition(" ")[0] for row in rows}) < len(rows):
            return False
    return len({row.count(" ") for row in rows}) > 1


def json_lines(text: str, path: str, roles: Roles) -> Raw:
    """Events of one JSON object a line; the first line's names say which field is what.

    >>> raw = json_lines('{"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 9}', "r.json", Roles())
    >>> raw.user, raw.item, raw.rating, raw.time
    (['A'], ['B'], [5.0], [9])
    """
    lines, numbers = lines_of(text, path)
    names: list[str] = []
    where: list[int | None] = []
    columns: list[list] = [[] for _ in Roles._fields]
    for n in numbers:
        event = _json_object(lines[n - 1], path, n)
        if not where:
            names = list(event)
            where = by_name(names, roles, path, n)
        for role, at, column in zip(Roles._fields, where, columns):
            if at is None:
                continue
            value = event.get(names[at])
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise DataError(path, n, f"{role} {names[at]!r} is {value!r}; expected a text or a number")
            column.append(value)
    return Raw(*[None if at is None else c for at, c in zip(where, columns)], path, numbers)  # type: ignore[arg-type]


def _json_object(line: str, path: str, number: int) -> dict:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(path, number, f"not JSON ({error}); expected one object a line") from error
    if not isinstance(event, dict):
        raise DataError(path, number, f"{show(line)} is no JSON object; expected one object a line")
    return event


# ------------------------------------------------------------------------------------------------ folders of parts


def find_parts(folder: Path, split: str | None = None) -> dict[str, Path]:
    """The files of a published split in a folder, by part; empty when there is no train and test file.

    Args:
        folder: the folder.
        split: which, such as "ml*.rating" for ml.train.rating and ml.test.rating; None: the only one.

    Raises:
        ValueError: several splits lie there and it is not said which.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        stem, part, ending = _part_of(file.name)
        if part and file.is_file() and split in (None, f"{stem}*{ending}"):
            found.setdefault(f"{stem}*{ending}", {}).setdefault(part, file)
    whole = {name: parts for name, parts in found.items() if {"train", "test"} <= parts.keys()}
    if len(whole) > 1:
        raise ValueError(
            f"{folder} holds several splits: {', '.join(sorted(whole))}; put each into a folder of its own"
        )
    parts = next(iter(whole.values()), {})
    return {part: parts[part] for part in _PARTS if part in parts}


def _part_of(name: str) -> tuple[str, str, str]:
    """Stem, part and ending of the name of a part: ("ml", "train", ".inter") of ml.train.inter.gz; else no part."""
    name = name.removesuffix(".gz")
    words = {word: part for part, names in _PARTS.items() for word in names}
    for ending in (*_ENDINGS, *_NAMED_ENDINGS):
        if not name.endswith(ending):
            continue
        stem, _, word = name.removesuffix(ending).rpartition(".")
        if word in words and bool(stem) == (ending in _NAMED_ENDINGS):
            return stem, words[word], ending
    return "", "", ""


def read_parts(
    contents: Mapping[str, tuple[str, bytes]], roles: Roles, how: How = DETECT
) -> tuple[Raw, Layout]:
    """Columns of all parts of a split, one after the other, with a split column.

    Args:
        contents: for each part ("train", "valid", "test") the file's name for errors and its bytes. A layout that is
            detected in the first part holds for all: in a test file every user may have the same number of items.
        roles, how: as in `read`; a split column is made here, so none may be named.
    """
    if roles.split:
        raise ValueError("split=...: these files are the parts of a split themselves")
    raws: list[Raw] = []
    for name, content in contents.values():
        raw, layout = read(name, roles, how, content=content)
        how = how._replace(layout=layout)
        raws.append(raw)
    sizes = [len(raw.user) for raw in raws]
    labels = [label for label, size in zip(contents, sizes) for _ in range(size)]
    columns: list[Sequence | np.ndarray | None] = []
    for role in ("user", "item", "rating", "time"):
        pieces = [getattr(raw, role) for raw in raws]
        missing = [raw.path for raw, piece in zip(raws, pieces) if piece is None]
        if missing and len(missing) < len(raws):
            raise DataError(missing[0], 1, f"no {role}, unlike the other parts of the split")
        columns.append(None if missing else _join(pieces))
    begins = tuple((int(row), raw.path) for row, raw in zip(np.cumsum([0, *sizes[:-1]]), raws))
    lines = np.concatenate([np.asarray(raw.lines) for raw in raws])
    made = Raw(*columns, labels, raws[0].path, lines, begins=begins)  # type: ignore[arg-type]
    return made, how.layout or "table"


def _join(pieces: list[Sequence | np.ndarray]) -> Sequence | np.ndarray:
    if all(isinstance(piece, np.ndarray) for piece in pieces):
        return np.concatenate(pieces)
    return [value for piece in pieces for value in piece]
