"""Which events count: minimum counts and the papers' rules that turn ratings into clicks."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from models.data import checks
from models.data.interactions import Interactions

Mode = Literal["once", "iterated"]
Threshold = float | Literal["hcars", "accent", "all"]
_PRESETS = {"hcars": (4.0, True), "accent": (3.0, False), "all": (0.0, True)}


class Kept(NamedTuple):
    """Filtered interactions with renumbered ids, and the old id of every new user and item."""

    interactions: Interactions
    users: Int[np.ndarray, " U"]
    items: Int[np.ndarray, " I"]


def min_count(data: Interactions, *, users: int = 1, items: int = 1, mode: Mode = "iterated") -> Kept:
    """Drop users and items with fewer events than asked, and number the rest anew.

    `once`: an event stays iff the *raw* counts of its user and of its item suffice, so what stays may have fewer
    (RAPU on Amazon Video). `iterated`: repeat until nothing changes, the k-core (RevAdv's Gowalla, k = 15).

    Args:
        users, items: least number of events of a user and of an item (1: only drop the empty ones).

    Raises:
        ValueError: nothing is left.

    >>> x = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 2, 0])
    >>> min_count(x, users=2, items=2, mode="once").interactions
    Interactions(2 users x 1 items, 2 events, implicit)
    """
    checks.option("mode", mode, ("once", "iterated"))
    for name, least in (("users", users), ("items", items)):
        if least < 1:
            raise ValueError(f"{name}={least}: expected at least 1")
    real = data.real()
    user, item = np.asarray(data.user), np.asarray(data.item)
    keep = real
    while True:
        count_user = np.bincount(user[keep], minlength=data.users)
        count_item = np.bincount(item[keep], minlength=data.items)
        fewer = keep & (count_user[user] >= users) & (count_item[item] >= items)
        unchanged = fewer.sum() == keep.sum()
        keep = fewer
        if mode == "once" or unchanged:
            break
    if not keep.any():
        raise ValueError(
            f"min_count(users={users}, items={items}, mode={mode!r}) leaves no event; lower the counts"
        )
    old_users, new_user = np.unique(user[keep], return_inverse=True)
    old_items, new_item = np.unique(item[keep], return_inverse=True)
    return _renumbered(data, keep, new_user, new_item, old_users, old_items)


def select_users(data: Interactions, chosen: Bool[np.ndarray, " U"]) -> Kept:
    """Only the users where `chosen` (U,) holds, numbered anew; every item stays in the catalog.

    Raises:
        ValueError: not one truth value a user, or no event is left.

    >>> x = Interactions.from_arrays([0, 1, 2], [0, 1, 1])
    >>> select_users(x, np.array([True, False, True])).interactions
    Interactions(2 users x 2 items, 2 events, implicit)
    """
    chosen = np.asarray(chosen)
    if chosen.dtype != bool or chosen.shape != (data.users,):
        raise ValueError(
            f"chosen is {chosen.dtype} of shape {chosen.shape}; expected a bool for each of {data.users} users"
        )
    user, item = np.asarray(data.user), np.asarray(data.item)
    keep = data.real() & chosen[user]
    if not keep.any():
        raise ValueError("select_users leaves no event")
    number = np.cumsum(chosen) - 1
    return _renumbered(
        data, keep, number[user[keep]], item[keep], np.flatnonzero(chosen), np.arange(data.items)
    )


def _renumbered(
    data: Interactions,
    keep: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
) -> Kept:
    kept = Interactions.from_arrays(
        user,
        item,
        np.asarray(data.weight)[keep],
        None if data.time is None else np.asarray(data.time)[keep],
        users=users.size,
        items=items.size,
        track=data.track,
    )
    return Kept(kept, users, items)


def binarize(data: Interactions, threshold: Threshold = "all", *, strict: bool = False) -> Interactions:
    """Ratings turned into clicks: `1[r >= threshold]`, with `strict` `1[r > threshold]`; users and items stay.

    Presets: "hcars" `r > 4` (Chen et al., SIGIR 2023), "accent" `r >= 3` (Tran et al., SIGIR 2021), "all" any rating.

    >>> x = Interactions.from_arrays([0, 0, 1], [0, 1, 0], [5.0, 4.0, 3.0])
    >>> [int(binarize(x, preset).count) for preset in ("hcars", "accent", "all")]
    [1, 3, 3]
    """
    if data.track == "sequence":
        raise ValueError("a sequence has no ratings to binarize; the tracks never mix silently")
    if isinstance(threshold, str):
        checks.option("threshold", threshold, tuple(_PRESETS))
        if strict:
            raise ValueError(f"strict=True is part of no preset; threshold={threshold!r} decides it itself")
        threshold, strict = _PRESETS[threshold]
    weight = np.asarray(data.weight)
    hit = (weight > 0) & ((weight > threshold) if strict else (weight >= threshold))
    time = None if data.time is None else np.asarray(data.time)[hit]
    return Interactions.from_arrays(
        np.asarray(data.user)[hit],
        np.asarray(data.item)[hit],
        time=time,
        users=data.users,
        items=data.items,
        track="implicit",
    )
