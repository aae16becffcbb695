"""Host checks behind `Interactions`: every error is raised here, before anything is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from models.data.interactions import Duplicates, Interactions, Track

TRACKS = ("implicit", "explicit", "sequence")
POLICIES = ("error", "max", "sum", "first", "last")
_INT32 = 2**31 - 1


class Events(NamedTuple):
    """Checked, sorted columns of NumPy arrays, ready to become `Interactions`."""

    user: np.ndarray
    item: np.ndarray
    weight: np.ndarray
    time: np.ndarray | None
    users: int
    items: int
    track: Track


def option(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise unless `value` is one of the names in `allowed`.

    >>> option("track", "implict", ("implicit", "explicit"))
    Traceback (most recent call last):
    ...
    ValueError: track='implict': expected one of 'implicit', 'explicit'
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")


def events(
    user: Any,
    item: Any,
    weight: Any,
    time: Any,
    users: int | None,
    items: int | None,
    track: Track | None,
    duplicates: Duplicates,
) -> Events:
    """Check the columns of `Interactions.from_arrays`, merge duplicates and sort; see there."""
    option("duplicates", duplicates, POLICIES)
    if track is not None:
        option("track", track, TRACKS)
    user, users = ids("user", user, users)
    item, items = ids("item", item, items)
    weight = np.ones(user.size) if weight is None else _numbers("weight", weight)
    for name, column in (("item", item), ("weight", weight)):
        if column.shape != user.shape:
            raise ValueError(f"{name} has {column.size} entries, user has {user.size}; they must match")
    _positive(user, item, weight)
    track = track or ("implicit" if bool(np.all(weight == 1)) else "explicit")
    if track == "implicit":
        _clicks(user, item, weight, duplicates)
    when = _times(time, user.size, track)
    order = np.lexsort((when if track == "sequence" and when is not None else item, user))
    columns = [user[order], item[order], weight[order], None if when is None else when[order]]
    if track != "sequence":
        columns = _merge(*columns, order, duplicates)  # type: ignore[arg-type]
    return Events(*columns, users, items, track)  # type: ignore[arg-type]


def ids(role: str, values: Any, size: int | None) -> tuple[np.ndarray, int]:
    """The ids as int64 and the number of users or items, or an error that names the first bad one."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{role} must be one-dimensional (one id an event); got shape {values.shape}")
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise TypeError(
            f"{role} ids must be integers counted from 0; got {values.dtype}. "
            "models.data.load accepts ids of any kind and numbers them"
        )
    if size is None and values.size == 0:
        raise ValueError(f"no events: with an empty {role} array give users= and items= as well")
    size = int(values.max()) + 1 if size is None else _size(f"{role}s", size)
    bad = np.flatnonzero((values < 0) | (values >= size))
    if bad.size:
        raise ValueError(
            f"{role} id {values[bad[0]]} of event {bad[0]} is outside 0..{size - 1} ({size} {role}s)"
        )
    if size > _INT32:
        raise ValueError(f"{size} {role}s: ids must fit in int32; number them with models.data.load")
    return values.astype(np.int64), size


def matrix(values: Any) -> np.ndarray:
    """A (U, I) array of finite numbers >= 0."""
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"expected a users x items matrix; got shape {values.shape}")
    if values.dtype == object or not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise TypeError(f"expected a matrix of numbers; got {values.dtype}")
    values = values.astype(np.float32)
    bad = np.argwhere(~(np.isfinite(values) & (values >= 0)))
    if bad.size:
        u, i = bad[0]
        raise ValueError(f"cell (user {u}, item {i}) is {values[u, i]}; expected a finite number >= 0")
    return values


def validate(data: Interactions, *, empty_users: str) -> None:
    """Check the promises of an `Interactions` record; see `Interactions.validate`."""
    option("empty_users", empty_users, ("allow", "error"))
    option("track", data.track, TRACKS)
    weight = np.asarray(data.weight)
    if weight.ndim != 1 or any(np.shape(c) != weight.shape for c in (data.user, data.item)):
        shapes = [tuple(np.shape(c)) for c in (data.user, data.item, data.weight)]
        raise ValueError(f"user, item and weight must be one-dimensional and equally long; got {shapes}")
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if bad.size:
        raise ValueError(f"weight of event {bad[0]} is {weight[bad[0]]}; expected a finite number >= 0")
    count = int(np.sum(weight > 0))
    if not np.all(weight[:count] > 0):
        raise ValueError("padding (weight 0) must come after the events; use keep(mask) to drop events")
    user, _ = ids("user", data.user, data.users)
    item, _ = ids("item", data.item, data.items)
    time = None if data.time is None else np.asarray(data.time)[:count]
    if data.track == "sequence" and time is None:
        raise ValueError("a sequence needs a time (or order) for every event; got time=None")
    _sorted(user[:count], item[:count], time, data.track)
    if data.track == "implicit" and not np.all(weight[:count] == 1):
        raise ValueError("track 'implicit' has weights other than 1; use binarize() or track='explicit'")
    empty = np.flatnonzero(np.bincount(user[:count], minlength=data.users) == 0)
    if empty_users == "error" and empty.size:
        raise ValueError(f"user {empty[0]} has no event ({empty.size} such users); filter them out first")


def _sorted(user: np.ndarray, item: np.ndarray, time: np.ndarray | None, track: str) -> None:
    second = time if track == "sequence" and time is not None else item
    step, within = np.diff(user), np.diff(second.astype(np.int64))
    bad = np.flatnonzero((step < 0) | ((step == 0) & (within < 0 if track == "sequence" else within <= 0)))
    if bad.size:
        at = int(bad[0]) + 1
        raise ValueError(
            f"event {at} (user {user[at]}, item {item[at]}) is out of order or a repeat of the one before; "
            "build the record with Interactions.from_arrays"
        )


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number >= 1")
    return int(value)


def _numbers(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional (one an event); got shape {values.shape}")
    if values.size and not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise TypeError(f"{name} must be numbers; got {values.dtype}")
    values = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{name} of event {bad[0]} is {values[bad[0]]}; expected a finite number")
    return values


def _positive(user: np.ndarray, item: np.ndarray, weight: np.ndarray) -> None:
    # Compared as float32, the stored type: a weight that underflows would turn into padding.
    bad = np.flatnonzero(~(weight.astype(np.float32) > 0) | ~np.isfinite(weight.astype(np.float32)))
    if bad.size:
        n = bad[0]
        raise ValueError(
            f"weight of event {n} (user {user[n]}, item {item[n]}) is {weight[n]:g}; expected a positive float32: "
            "0 means 'not observed', so drop such events or shift the ratings"
        )


def _clicks(user: np.ndarray, item: np.ndarray, weight: np.ndarray, duplicates: str) -> None:
    bad = np.flatnonzero(weight != 1)
    if bad.size:
        n = bad[0]
        raise ValueError(
            f"track='implicit' expects weights of 1; event {n} (user {user[n]}, item {item[n]}) has {weight[n]:g}. "
            "Use track='explicit', or binarize() to turn ratings into clicks"
        )
    if duplicates == "sum":
        raise ValueError(
            "duplicates='sum' counts clicks, which the implicit track cannot hold; use duplicates='max' "
            "or track='explicit'"
        )


def _times(time: Any, size: int, track: str) -> np.ndarray | None:
    if time is None:
        return np.arange(size) if track == "sequence" else None
    time = _numbers("time", time)
    if time.size != size:
        raise ValueError(f"time has {time.size} entries, user has {size}; they must match")
    whole = bool(np.all(time == np.round(time))) and bool(np.all(np.abs(time) <= _INT32))
    return time.astype(np.int64) if whole else np.unique(time, return_inverse=True)[1]


def _merge(
    user: np.ndarray,
    item: np.ndarray,
    weight: np.ndarray,
    time: np.ndarray | None,
    origin: np.ndarray,
    duplicates: str,
) -> list[np.ndarray | None]:
    """One event a pair; the columns are sorted by (user, item), `origin` is each event's place in the input."""
    same = (np.diff(user) == 0) & (np.diff(item) == 0)
    if not same.any():
        return [user, item, weight, time]
    if duplicates == "error":
        at = int(np.flatnonzero(same)[np.argmin(origin[1:][same])])
        raise ValueError(
            f"(user {user[at]}, item {item[at]}) appears more than once, at events {origin[at]} and "
            f'{origin[at + 1]}; pass duplicates="max", "sum", "first" or "last" to merge repeats, '
            'or track="sequence" to keep them'
        )
    order = np.lexsort((origin if time is None else time, item, user))
    user, item, weight = user[order], item[order], weight[order]
    time = None if time is None else time[order]
    begin = np.flatnonzero(np.r_[True, (np.diff(user) != 0) | (np.diff(item) != 0)])
    last = np.r_[begin[1:], user.size] - 1
    pick = begin if duplicates == "first" else last
    merged = {"max": np.maximum.reduceat, "sum": np.add.reduceat}.get(duplicates)
    new = weight[pick] if merged is None else merged(weight, begin)
    return [user[pick], item[pick], new, None if time is None else time[pick]]
