"""One function that reads anything the field stores interactions in: `load`.

Ids of any kind are numbered from 0; the original ones are kept beside the data, so results can be told in the
user's own names. What happened to the file on the way (threshold, duplicates, track) is kept too.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from models.data import checks, filters
from models.data.formats import Column, DataError, OptionalColumn, Raw, Roles, by_name, read
from models.data.interactions import Duplicates, Interactions, Track
from models.data.split import Split

if TYPE_CHECKING:
    import os

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_PARTS = {"train": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}


class Dataset(NamedTuple):
    """Interactions with the names they came from.

    Args:
        interactions: the events, ids numbered from 0.
        user_ids, item_ids: (U,) and (I,) original ids; `user_ids[u]` is the name of user u.
        name: short name for tables.
        provenance: where it came from and what was done to it (plain JSON).
        split: the split published with the data, when the file has a split column.
    """

    interactions: Interactions
    user_ids: np.ndarray
    item_ids: np.ndarray
    name: str
    provenance: dict[str, Any]
    split: Split | None = None

    def min_count(self, *, users: int = 1, items: int = 1, mode: filters.Mode = "iterated") -> Dataset:
        """Only users and items with enough events, renumbered; see `filters.min_count`."""
        kept = filters.min_count(self.interactions, users=users, items=items, mode=mode)
        done = {"min_count": {"users": users, "items": items, "mode": mode}}
        return Dataset(
            kept.interactions,
            self.user_ids[kept.users],
            self.item_ids[kept.items],
            self.name,
            {**self.provenance, **done},
        )

    def binarize(self, threshold: filters.Threshold = "all", *, strict: bool = False) -> Dataset:
        """Ratings turned into clicks; see `filters.binarize`."""
        clicks = filters.binarize(self.interactions, threshold, strict=strict)
        provenance = {**self.provenance, "binarize": {"threshold": threshold, "strict": strict}}
        return self._replace(interactions=clicks, provenance=provenance, split=None)


def load(
    source: str | os.PathLike[str] | Any,
    *,
    user: Column = None,
    item: Column = None,
    rating: OptionalColumn = None,
    time: OptionalColumn = None,
    split: OptionalColumn = None,
    sep: str | None = None,
    header: bool | None = None,
    threshold: float | None = None,
    strict: bool = False,
    track: Track | None = None,
    duplicates: Duplicates = "error",
    ids: Literal["sorted", "appearance"] = "sorted",
    name: str | None = None,
) -> Dataset:
    """Read interactions from a file, a data set known by name, a frame, a matrix or a tuple of arrays.

    Args:
        source: a path (MovieLens, RecBole `.inter`, CSV, TSV, also .gz), a name such as "ml-100k" (see
            `models.data.sources`), a pandas or polars frame, a SciPy sparse or dense users x items matrix, or a
            tuple (user, item[, rating[, time]]) of arrays.
        user, item, rating, time, split: column names, or positions from 0. Default: found by their usual names;
            without a header the order user, item, rating, time. False leaves out rating, time or split.
        sep, header: separator and whether the first line names columns; default: detected.
        threshold, strict: keep ratings `>= threshold` (strict: `>`) as clicks. Users and items stay numbered.
        track: default "implicit" without ratings or with a threshold, else "explicit". "sequence" orders events
            by time (else by row) and keeps repeats; its ratings are dropped.
        duplicates: see `Interactions.from_arrays`.
        ids: number users and items in sorted order or by first appearance.

    Raises:
        FileNotFoundError: neither a file nor a known name.
        DataError: the file and line (or row) at fault, and what to do.

    >>> data = load((["ann", "bob", "ann"], ["tea", "tea", "milk"], [5, 3, 1]), threshold=3)
    >>> data.interactions, data.user_ids.tolist(), data.item_ids.tolist()
    (Interactions(2 users x 2 items, 2 events, implicit), ['ann', 'bob'], ['milk', 'tea'])
    """
    checks.option("ids", ids, ("sorted", "appearance"))
    checks.option("duplicates", duplicates, checks.POLICIES)
    if track is not None:
        checks.option("track", track, checks.TRACKS)
    options = {"threshold": threshold, "strict": strict, "track": track, "duplicates": duplicates, "ids": ids}
    roles = Roles(user, item, rating, time, split)
    if isinstance(source, str) and not Path(source).exists():
        from models.data import sources

        return sources.named(source, roles, options)
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        path = Path(source)
        if path.is_dir():
            from models.data import sources

            return sources.from_folder(path, name or path.name, roles, options)
        raw = read(path, roles, sep=sep, header=header)
        origin = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        return build(raw, name=name or path.name.split(".")[0], origin=origin, **options)
    raw = from_memory(source, roles)
    return build(raw, name=name or "data", origin={"memory": raw.path}, **options)


def from_memory(source: Any, roles: Roles) -> Raw:
    """Columns of a frame, a SciPy sparse or dense matrix, or a tuple of arrays."""
    if hasattr(source, "columns"):
        names = [str(column) for column in source.columns]
        where = by_name(names, roles, "frame")
        picked = [None if at is None else np.asarray(source[source.columns[at]]) for at in where]
        return _rows("frame", picked)
    if hasattr(source, "tocoo"):
        cells = source.tocoo()
        return _rows("sparse matrix", [cells.row, cells.col, cells.data, None, None])
    if isinstance(source, tuple | list) and 2 <= len(source) <= 4 and np.ndim(source[0]) == 1:
        given = [np.asarray(column) for column in source]
        return _rows("arrays", [*given, *[None] * (5 - len(given))])
    if isinstance(source, np.ndarray) and source.ndim == 2:
        values = checks.matrix(source)
        at = np.nonzero(values)
        return _rows("matrix", [*at, values[at], None, None])
    raise TypeError(
        f"cannot load a {type(source).__name__}: expected a path, a data set's name, a frame, a users x items "
        "matrix (NumPy or SciPy), or a tuple (user, item[, rating[, time]]) of arrays"
    )


def build(
    raw: Raw,
    *,
    name: str,
    origin: dict[str, Any],
    threshold: float | None,
    strict: bool,
    track: Track | None,
    duplicates: Duplicates,
    ids: str,
) -> Dataset:
    """Number the ids, apply the threshold and make checked interactions; errors name the line."""
    user, user_ids = _number(raw, "user", raw.user, ids)
    item, item_ids = _number(raw, "item", raw.item, ids)
    rating = None if raw.rating is None else _finite(raw, "rating", raw.rating)
    time = None if raw.time is None else _finite(raw, "time", raw.time)
    part = None if raw.split is None else _parts(raw)
    track = track or ("implicit" if rating is None or threshold is not None else "explicit")
    keep = _kept(raw, rating, threshold, strict, track)
    weight = rating if track == "explicit" and threshold is None else None
    if track != "sequence" and duplicates == "error":
        _refuse_repeats(raw, user, item, user_ids, item_ids, keep)

    def events(chosen: np.ndarray) -> Interactions:
        return Interactions.from_arrays(
            user[chosen],
            item[chosen],
            None if weight is None else weight[chosen],
            None if time is None else time[chosen],
            users=len(user_ids),
            items=len(item_ids),
            track=track,
            duplicates=duplicates,
        )

    published = None if part is None else _published(events, keep, part)
    done = {"threshold": threshold, "strict": strict, "track": track, "duplicates": duplicates}
    return Dataset(events(keep), user_ids, item_ids, name, {**origin, **done}, published)


def _kept(
    raw: Raw, rating: np.ndarray | None, threshold: float | None, strict: bool, track: Track
) -> np.ndarray:
    """Rows that are events, after the checks that depend on the track."""
    rows = np.arange(len(raw.user))
    if rating is None:
        if threshold is not None:
            raise ValueError(
                f"threshold={threshold} needs ratings; {raw.path} has no rating column (rating=...)"
            )
        if track == "explicit":
            raise ValueError(f"track='explicit' needs ratings; {raw.path} has no rating column (rating=...)")
        return rows
    if threshold is not None:
        return rows[(rating > threshold) if strict else (rating >= threshold)]
    if strict:
        raise ValueError("strict=True has no effect without threshold=")
    if track == "explicit":
        bad = np.flatnonzero(~((rating.astype(np.float32) > 0) & np.isfinite(rating.astype(np.float32))))
        if bad.size:
            raw.fail(
                int(bad[0]),
                f"rating {rating[bad[0]]:g}: explicit ratings must be positive, 0 means 'not rated'; "
                "shift the scale or pass threshold= to make clicks",
            )
    elif track == "implicit" and np.any(rating != 1):
        bad = int(np.flatnonzero(rating != 1)[0])
        raw.fail(
            bad,
            f"rating {rating[bad]:g} in the implicit track; pass threshold= to make clicks of ratings, "
            "or rating=False to take every row as a click",
        )
    return rows


def _number(raw: Raw, role: str, values: Any, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids counted from 0, and the original ones (integers where all of them are)."""
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.integer):
        distinct, first, codes = np.unique(values, return_index=True, return_inverse=True)
        if order == "sorted":
            return codes, distinct
        rank = np.argsort(first)
        return np.argsort(rank)[codes], distinct[rank]
    if isinstance(values, np.ndarray):
        missing = [row for row, value in enumerate(values) if value is None or value != value]  # NaN != NaN
        if missing:
            raw.fail(missing[0], f"no {role} id ({values[missing[0]]})")
    tokens = [str(value) for value in values]
    names: list[Any] = list(dict.fromkeys(tokens))
    for token in names:
        if not token.strip():
            raw.fail(tokens.index(token), f"no {role} id")
        if len(token) > 1000:
            raw.fail(tokens.index(token), f"{role} id of {len(token)} characters; is the separator right?")
    whole = all(_INTEGER.fullmatch(token) for token in names)
    if order == "sorted":
        names.sort(key=int if whole else None)
    index = {token: n for n, token in enumerate(names)}
    codes = np.fromiter((index[token] for token in tokens), np.int64, len(tokens))
    return codes, np.array([int(t) for t in names] if whole else names)


def _finite(raw: Raw, role: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.number):
        numbers = values.astype(np.float64)
    else:
        numbers = np.empty(len(values))
        for row, value in enumerate(values):
            try:
                numbers[row] = float(value)
            except (TypeError, ValueError):
                hint = "; if this line names the columns, pass user=... and item=..." if row == 0 else ""
                raw.fail(row, f"{role} {value!r} is not a number{hint}")
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raw.fail(int(bad[0]), f"{role} is {numbers[bad[0]]}; expected a finite number")
    return numbers


def _parts(raw: Raw) -> np.ndarray:
    assert raw.split is not None
    labels = [str(label).strip().lower() for label in raw.split]
    for row, label in enumerate(labels):
        if label not in _PARTS:
            raw.fail(row, f"split {label!r}: expected train, validation or test")
    return np.array([_PARTS[label] for label in labels])


def _published(events: Any, keep: np.ndarray, part: np.ndarray) -> Split:
    train, validation, test = (events(keep[part[keep] == n]) for n in range(3))
    return Split(train, validation if np.any(part == 1) else None, test)


def _refuse_repeats(
    raw: Raw,
    user: np.ndarray,
    item: np.ndarray,
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    keep: np.ndarray,
) -> None:
    pair = user[keep] * len(item_ids) + item[keep]
    order = np.argsort(pair, kind="stable")
    again = np.flatnonzero(np.diff(pair[order]) == 0)
    if again.size:
        later = int(np.min(keep[order[again + 1]]))  # the first repeat in file order
        first = int(keep[np.flatnonzero(pair == user[later] * len(item_ids) + item[later])[0]])
        raw.fail(
            later,
            f"user {user_ids[user[later]]}, item {item_ids[item[later]]} is a repeat of {raw.unit} "
            f'{raw.lines[first]}; pass duplicates="max", "first" or "last" to merge repeats (or track="sequence")',
        )


def _rows(path: str, columns: list[np.ndarray | None]) -> Raw:
    sizes = {len(column) for column in columns if column is not None}
    if len(sizes) > 1:
        raise ValueError(f"{path}: columns of different lengths {sorted(sizes)}")
    size = sizes.pop()
    if size == 0:
        raise DataError(path, 1, "no events", "row")
    return Raw(*columns, path, np.arange(1, size + 1), "row")  # type: ignore[arg-type]
