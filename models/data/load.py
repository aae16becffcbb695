"""One function that reads anything the field stores interactions in: `load`.

Ids of any kind are numbered from 0; the original ones are kept beside the data, so results can be told in the
user's own names. What happened to the file on the way (threshold, duplicates, track) is kept too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from models.data import checks, filters
from models.data.files import How, Layout
from models.data.formats import Column, OptionalColumn, Raw, Roles
from models.data.interactions import Duplicates, Interactions, Track
from models.data.split import Split

if TYPE_CHECKING:
    import os

    from jaxtyping import Bool

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_PARTS = {"train": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
_LONGEST = 1000  # characters of an id; more is a wrong separator


class Dataset(NamedTuple):
    """Interactions with the names they came from.

    Args:
        interactions: the events, ids numbered from 0.
        user_ids, item_ids: (U,) and (I,) original ids; `user_ids[u]` is the name of user u.
        name: short name for tables.
        provenance: where it came from and what was done to it (plain JSON).
        split: the split published with the data: a split column, or train and test files.
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
        return self._kept(kept, {"min_count": {"users": users, "items": items, "mode": mode}})

    def select_users(self, chosen: Bool[np.ndarray, " U"], rule: str) -> Dataset:
        """Only the users where `chosen` holds, renumbered, and every item; `rule` says why, for the provenance."""
        return self._kept(filters.select_users(self.interactions, chosen), {"select_users": rule})

    def _kept(self, kept: filters.Kept, done: dict[str, Any]) -> Dataset:
        names = self.user_ids[kept.users], self.item_ids[kept.items]
        return Dataset(kept.interactions, *names, self.name, {**self.provenance, **done})

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
    layout: Layout | None = None,
    threshold: float | None = None,
    strict: bool = False,
    track: Track | None = None,
    duplicates: Duplicates = "error",
    ids: Literal["sorted", "appearance"] = "sorted",
    name: str | None = None,
) -> Dataset:
    """Read interactions from a file, a folder, a data set known by name, a frame, a matrix or a tuple of arrays.

    Args:
        source: a path (CSV, TSV, MovieLens, LibRec, RecBole `.inter`, Steam, LightGCN's adjacency lists, JSON lines,
            parquet; text also .gz), a folder with one of these or with the train and test files of a split, a name
            such as "ml-100k" (see `models.data.sources`), a pandas or polars frame, a SciPy sparse or dense
            users x items matrix (whose empty rows and columns count), or a tuple (user, item[, rating[, time]]).
        user, item, rating, time, split: column names, or positions from 0. Default: found by their usual names;
            without a header the order user, item, rating, time. False leaves out rating, time or split.
        sep, header: separator and whether the first line names columns; default: detected.
        layout: "adjacency" for lines of a user and its items. Detected, but where all lines are of one length: these
            read as a table of 2 to 4 columns unless said otherwise.
        threshold, strict: keep ratings `>= threshold` (strict: `>`) as clicks. Users and items stay numbered.
        track: default "implicit" without ratings or with a threshold, else "explicit". "sequence" orders events
            by time (else by row) and keeps repeats; its ratings are dropped.
        duplicates: see `Interactions.from_arrays`.
        ids: number users and items in sorted order or by first appearance.
        name: for tables; default: the file's or the data set's.

    Raises:
        FileNotFoundError: neither a file nor a known name.
        DataError: the file and line (or row) at fault, and what to do.
        ImportError: a parquet file and no package that reads it.

    >>> data = load((["ann", "bob", "ann"], ["tea", "tea", "milk"], [5, 3, 1]), threshold=3)
    >>> data.interactions, data.user_ids.tolist(), data.item_ids.tolist()
    (Interactions(2 users x 2 items, 2 events, implicit), ['ann', 'bob'], ['milk', 'tea'])
    """
    from models.data import frames, sources

    checks.option("ids", ids, ("sorted", "appearance"))
    checks.option("duplicates", duplicates, checks.POLICIES)
    if track is not None:
        checks.option("track", track, checks.TRACKS)
    options = {"threshold": threshold, "strict": strict, "track": track, "duplicates": duplicates, "ids": ids}
    roles, how = Roles(user, item, rating, time, split), How(sep, header, layout)
    _check_roles(roles)
    if isinstance(source, str) and not Path(source).exists():
        found = sources.named(source, roles, how, options)
    elif isinstance(source, str) or hasattr(source, "__fspath__"):
        path = Path(source)
        from_path = sources.from_folder if path.is_dir() else sources.from_file
        found = from_path(path, path.name if path.is_dir() else path.name.split(".")[0], roles, how, options)
    else:
        if how != How():
            raise ValueError(f"sep, header and layout are for files, not for a {type(source).__name__}")
        raw = frames.from_memory(source, roles)
        found = build(raw, name="data", origin={"memory": raw.path}, **options)
    return found if name is None else found._replace(name=name)


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
    if raw.sizes is not None and ids != "sorted":
        raise ValueError(f"ids={ids!r}: the rows and columns of a matrix are numbered already")
    user, user_ids = _number(raw, "user", raw.user, ids)
    item, item_ids = _number(raw, "item", raw.item, ids)
    rating = None if raw.rating is None else _finite(raw, "rating", raw.rating)
    time = None if raw.time is None else _finite(raw, "time", raw.time)
    part = None if raw.split is None else _parts(raw)
    track = track or ("implicit" if rating is None or threshold is not None else "explicit")
    if track == "explicit" and threshold is not None:
        raise ValueError(
            f"threshold={threshold} makes clicks of ratings, and track='explicit' keeps ratings: leave one of them out"
        )
    keep = _kept(raw, rating, threshold, strict, track)
    weight = rating if track == "explicit" else None
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

    if part is not None and track != "sequence":
        part[keep] = _one_part(part[keep], user[keep] * len(item_ids) + item[keep])
    published = None if part is None else _published(events, keep, part)
    done = {"threshold": threshold, "strict": strict, "track": track, "duplicates": duplicates}
    done["order"] = "rows" if time is None else "time"
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
    if raw.sizes is not None:  # a matrix: the ids are its positions, also the empty ones
        return np.asarray(values, np.int64), np.arange(raw.sizes[0 if role == "user" else 1])
    if isinstance(values, np.ndarray):
        values = _whole(raw, role, values)
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.integer):
        distinct, first, codes = np.unique(values, return_index=True, return_inverse=True)
        if order == "sorted":
            return codes, distinct
        rank = np.argsort(first)
        return np.argsort(rank)[codes], distinct[rank]
    tokens = [str(value) for value in values]
    names: list[Any] = list(dict.fromkeys(tokens))
    for token in names:
        if not token.strip():
            raw.fail(tokens.index(token), f"no {role} id")
        if len(token) > _LONGEST:
            raw.fail(tokens.index(token), f"{role} id of {len(token)} characters; is the separator right?")
        if "\0" in token:  # NumPy would cut it off, and two ids would become one
            raw.fail(tokens.index(token), f"{role} id {token!r} holds a zero character")
    whole = all(_INTEGER.fullmatch(token) for token in names)
    if order == "sorted":
        names.sort(key=int if whole else None)
    index = {token: n for n, token in enumerate(names)}
    codes = np.fromiter((index[token] for token in tokens), np.int64, len(tokens))
    return codes, np.array([int(t) for t in names] if whole else names)


def _whole(raw: Raw, role: str, values: np.ndarray) -> np.ndarray:
    """An array of ids without a missing one; floats that are whole numbers, as frames with gaps hold them, as such."""
    if np.issubdtype(values.dtype, np.floating):
        missing = np.isnan(values)
    else:
        missing = (
            np.array([_is_missing(value) for value in values])
            if values.dtype == object
            else np.zeros(1, bool)
        )
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raw.fail(row, f"no {role} id ({values[row]})")
    if np.issubdtype(values.dtype, np.floating) and np.all(
        (values == np.round(values)) & (np.abs(values) < 2**53)
    ):
        return values.astype(np.int64)
    return values


def _is_missing(value: Any) -> bool:
    # None, NaN, and pandas' NA and NaT, which must not be compared
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and value != value)
    )


def _finite(raw: Raw, role: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        numbers = values.astype(np.float64)
    else:
        numbers = np.empty(len(values))
        for row, value in enumerate(values):
            try:
                numbers[row] = float(value)
            except (TypeError, ValueError, OverflowError):
                hint = "; if this line names the columns, pass user=... and item=..." if row == 0 else ""
                raw.fail(row, f"{role} {value!r} is not a number{hint}")
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raw.fail(int(bad[0]), f"{role} is {numbers[bad[0]]}; expected a finite number")
    return numbers


def _check_roles(roles: Roles) -> None:
    for role, column in zip(Roles._fields, roles):
        left_out = column is False and role not in ("user", "item")
        place = isinstance(column, str | int | np.integer) and not isinstance(column, bool)
        if not (column is None or left_out or place):
            raise TypeError(f"{role}={column!r}: expected a column's name or its position from 0")


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


def _one_part(part: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Parts without a common pair: one repeated in a later part counts in the first, so train holds no test event."""
    _, which = np.unique(pair, return_inverse=True)
    first = np.full(which.max(initial=0) + 1, len(_PARTS))
    np.minimum.at(first, which, part)
    return first[which]


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
        other = "" if raw.path_of(first) == raw.path_of(later) else f"{raw.path_of(first)}, "
        raw.fail(
            later,
            f"user {user_ids[user[later]]}, item {item_ids[item[later]]} is a repeat of {other}{raw.unit} "
            f'{raw.lines[first]}; pass duplicates="max", "first" or "last" to merge repeats (or track="sequence")',
        )
