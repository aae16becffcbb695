"""Fake users and how they enter the data: `Profiles` and `inject`.

A profile has one of two forms. *Rows* `(F, I)` say how strongly each fake user marks each item: relaxed while an
attack learns them, hard when it is done. *Clicks* `(F, C)` with a mask say which item was clicked when: order
and repeats matter to sequence recommenders (PoisonRec, CoVisitation, GRU4Rec).

Poisoning adds users and leaves the rest alone: `inject` keeps every real event, byte for byte and in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from models.data import checks, store
from models.data.interactions import Interactions, Track, is_concrete

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Profiles:
    """The profiles of F fake users; a pytree. Build one with `from_rows` or `from_clicks`.

    Args:
        rows: (F, I) float, or None when the clicks form is used.
        clicks, mask: (F, C) int32 items in click order and bool (False: no click), or None.
        targets: (T,) int32 items the attack promotes or demotes; none (T = 0) if it is on availability.
        items, track: static, as in `Interactions`.
        clicks_targets: static; the attack promises that every profile clicks every target.
        width: static; most clicks a row holds, targets included (None: not known, I). It sizes `inject`.

    >>> Profiles.from_rows(jnp.eye(2, 3), targets=[0])
    Profiles(2 fakes x 3 items, implicit, rows)
    """

    rows: Float[Array, "F I"] | None
    clicks: Int[Array, "F C"] | None
    mask: Bool[Array, "F C"] | None
    targets: Int[Array, " T"]
    items: int = field(metadata={"static": True})
    track: Track = field(default="implicit", metadata={"static": True})
    clicks_targets: bool = field(default=False, metadata={"static": True})
    width: int | None = field(default=None, metadata={"static": True})

    @classmethod
    def from_rows(
        cls,
        rows: ArrayLike,
        targets: ArrayLike,
        *,
        track: Track = "implicit",
        clicks_targets: bool = False,
        width: int | None = None,
    ) -> Profiles:
        """Profiles from a (F, I) matrix; only shapes are checked here, so it works in a trace."""
        checks.option("track", track, ("implicit", "explicit"))
        rows = jnp.asarray(rows)
        if rows.ndim != 2:
            raise ValueError(f"rows must be fakes x items; got shape {rows.shape}")
        rows = rows if jnp.issubdtype(rows.dtype, jnp.floating) else rows.astype(jnp.float32)
        if width is not None and not 0 <= width <= rows.shape[1]:
            raise ValueError(f"width={width}: expected 0..{rows.shape[1]}, the most clicks a row can hold")
        return cls(rows, None, None, _targets(targets), rows.shape[1], track, clicks_targets, width)

    @classmethod
    def from_clicks(
        cls,
        clicks: ArrayLike,
        targets: ArrayLike,
        *,
        items: int,
        mask: ArrayLike | None = None,
        track: Track = "sequence",
        clicks_targets: bool = False,
    ) -> Profiles:
        """Profiles from (F, C) item ids in click order; `mask` (F, C) says which are clicks (None: all).

        >>> made = Profiles.from_clicks([[2, 0, 2]], targets=[2], items=3)
        >>> made.to_rows().tolist()
        [[1.0, 0.0, 1.0]]
        """
        checks.option("track", track, ("implicit", "sequence"))
        clicks = jnp.asarray(clicks, jnp.int32)
        if clicks.ndim != 2:
            raise ValueError(f"clicks must be fakes x clicks; got shape {clicks.shape}")
        mask = jnp.ones(clicks.shape, bool) if mask is None else jnp.asarray(mask, bool)
        if mask.shape != clicks.shape:
            raise ValueError(f"mask has shape {mask.shape}, clicks have {clicks.shape}; they must match")
        width = min(clicks.shape[1], items)
        return cls(None, clicks, mask, _targets(targets), items, track, clicks_targets, width)

    @property
    def fakes(self) -> int:
        """Static number of fake users F."""
        form = self.rows if self.rows is not None else self.clicks
        assert form is not None  # one form is always there, see the constructors
        return form.shape[-2]

    def to_rows(self) -> Float[Array, "F I"]:
        """The (F, I) matrix: the rows, or 1 wherever an item was clicked."""
        if self.rows is not None:
            return self.rows
        assert self.clicks is not None
        assert self.mask is not None
        hit = self.mask.astype(jnp.float32)
        who = jnp.arange(self.fakes)[:, None]
        return jnp.zeros((self.fakes, self.items)).at[who, self.clicks].max(hit)

    def validate(
        self,
        *,
        budget: int | None = None,
        clicks: int | None = None,
        fakes: int | None = None,
        ratings: tuple[float, float] | None = None,
    ) -> Profiles:
        """Check the output contract of an attack on the host and return the profiles.

        Args:
            budget: B; a profile may hold at most B clicks on items that are not targets, so `B + T` in all. In the
                clicks form repeats count, of targets too.
            clicks: clicks that each profile of the clicks form has to hold, targets and repeats included.
            fakes: expected number of fake users.
            ratings: (lowest, highest) rating allowed in the explicit track.

        Raises:
            ValueError: naming the first fake user, item and value at fault.

        >>> Profiles.from_rows(jnp.ones((1, 3)), targets=[0]).validate(budget=1)
        Traceback (most recent call last):
        ...
        ValueError: fake user 0 holds 3 clicks; the budget allows 1 + 1 targets = 2
        """
        if fakes is not None and fakes != self.fakes:
            raise ValueError(f"{self.fakes} fake users; expected {fakes}")
        targets = np.asarray(self.targets)
        if targets.size:  # an attack on availability has none
            check_targets(targets, self.items)
        rows = _check_rows(self, ratings) if self.rows is not None else _check_clicks(self)
        held = rows.astype(bool).sum(1) if self.mask is None else np.asarray(self.mask).sum(1)
        limit = None if budget is None else budget + targets.size
        others = _on_others(self, rows, targets)
        for count, bound, what in (
            (held, limit, f"clicks; the budget allows {budget} + {targets.size} targets = {limit}"),
            (others, budget, f"clicks on items that are not targets; the budget allows {budget}"),
            (
                held,
                self.width if self.mask is None else None,
                f"clicks; its width promises at most {self.width}",
            ),
        ):
            over = np.flatnonzero(count > bound) if bound is not None else np.empty(0)
            if over.size:
                raise ValueError(f"fake user {over[0]} holds {count[over[0]]} {what}")
        if clicks is not None and np.any(held != clicks):
            who = np.flatnonzero(held != clicks)[0]
            raise ValueError(f"fake user {who} holds {held[who]} clicks; expected exactly {clicks}")
        if self.clicks_targets and not np.all(rows[:, targets]):
            who, which = np.argwhere(rows[:, targets] == 0)[0]
            raise ValueError(
                f"clicks_targets=True but fake user {who} does not click target {targets[which]}"
            )
        return self

    def save(self, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None) -> None:
        """Write the profiles and `meta` (anything JSON can hold) to one small file, atomically, same bytes each time.

        Implicit rows take one bit a cell, explicit rows are stored sparse, clicks as they are; no pickle.
        """
        store.save(path, self, dict(meta or {}))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> tuple[Profiles, dict[str, Any]]:
        """Read what `save` wrote: the profiles and their metadata.

        Raises:
            ValueError: not a profiles file, a damaged one, or one of a newer version.
        """
        return store.load(path)

    def __repr__(self) -> str:
        form = "rows" if self.rows is not None else "clicks"
        return f"Profiles({self.fakes} fakes x {self.items} items, {self.track}, {form})"


def check_targets(targets: ArrayLike, items: int) -> None:
    """Raise unless `targets` are distinct item ids (host only: a trace clamps bad ids without a word).

    >>> check_targets(np.array([5]), items=5)
    Traceback (most recent call last):
    ...
    ValueError: target 5 is outside 0..4 (5 items)
    """
    targets = np.asarray(targets)
    if targets.ndim != 1 or targets.size == 0:
        raise ValueError(f"targets must be a one-dimensional list of items; got shape {targets.shape}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets must be integer item ids; got {targets.dtype}")
    bad = targets[(targets < 0) | (targets >= items)]
    if bad.size:
        raise ValueError(f"target {bad[0]} is outside 0..{items - 1} ({items} items)")
    values, counts = np.unique(targets, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(f"target {values[counts > 1][0]} is given more than once")


def inject(train: Interactions, profiles: Profiles, capacity: int | None = None) -> Interactions:
    """The poisoned data: `train` with the fake users appended as users U..U+F-1.

    The real events keep their slots and their bytes. Works under `jit` and `vmap` (over profiles or over both).

    Args:
        train: real interactions; its track must be the profiles' (clicks may also enter the implicit track,
            where repeats collapse and order is dropped).
        profiles: hard profiles. In the implicit track every marked cell becomes a click of weight 1.
        capacity: static slots of the result; default `train.capacity + F * width`, always enough.

    Raises:
        ValueError: tracks or item counts differ; relaxed implicit rows or too small a capacity, when concrete.
            In a trace too small a capacity makes every weight NaN, never a silent loss.

    >>> train = Interactions.from_arrays([0, 1], [0, 2])
    >>> poisoned = inject(train, Profiles.from_rows([[1.0, 1.0, 0.0]], targets=[1]))
    >>> poisoned.users, poisoned.dense().tolist()[2]
    (3, [1.0, 1.0, 0.0])
    """
    _same_world(train, profiles)
    sequence = train.track == "sequence"
    item, weight, place = _sequence_events(profiles) if sequence else _row_events(train, profiles)
    per_row = item.shape[1] if sequence or profiles.width is None else min(profiles.width, profiles.items)
    size = train.capacity + profiles.fakes * per_row if capacity is None else capacity
    user = jnp.broadcast_to(train.users + jnp.arange(profiles.fakes)[:, None], item.shape)
    marked = (weight > 0).ravel()
    count = train.count + jnp.sum(marked)
    if is_concrete(count) and int(count) > size:
        raise ValueError(f"{int(count)} events after injection exceed the capacity {size}; raise capacity=")
    slot = jnp.where(marked, train.count + jnp.cumsum(marked) - 1, size)  # slot `size` is dropped
    real = jnp.arange(size) < train.count

    def merge(values: Array, added: Array, filler: int) -> Array:
        values = jnp.pad(values, (0, max(size - train.capacity, 0)))[:size]
        base = jnp.where(real, values, jnp.asarray(filler, values.dtype))
        return base.at[slot].set(added.ravel().astype(values.dtype), mode="drop")

    time = train.time
    if time is not None:
        latest = jnp.max(jnp.where(train.mask, time, 0))
        time = merge(time, latest + 1 + place, 0)
    new_weight = merge(train.weight, weight, 0)
    return Interactions(
        user=merge(train.user, user, train.users + profiles.fakes - 1),
        item=merge(train.item, item, train.items - 1),
        weight=jnp.where(count > size, jnp.nan, new_weight),
        time=time,
        users=train.users + profiles.fakes,
        items=train.items,
        track=train.track,
    )


def _row_events(train: Interactions, profiles: Profiles) -> tuple[Array, Array, Array]:
    rows = profiles.to_rows()
    if is_concrete(rows):
        _check_rows(profiles, None, rows)
    weight = (rows > 0).astype(train.weight.dtype) if train.track == "implicit" else rows
    item = jnp.broadcast_to(jnp.arange(profiles.items), rows.shape)
    return item, weight, jnp.zeros_like(item)


def _sequence_events(profiles: Profiles) -> tuple[Array, Array, Array]:
    assert profiles.clicks is not None
    assert profiles.mask is not None
    place = jnp.broadcast_to(jnp.arange(profiles.clicks.shape[1]), profiles.clicks.shape)
    return profiles.clicks, profiles.mask.astype(jnp.float32), place


def _same_world(train: Interactions, profiles: Profiles) -> None:
    if train.items != profiles.items:
        raise ValueError(f"train has {train.items} items, the profiles {profiles.items}; they must match")
    clicks_as_rows = train.track == "implicit" and profiles.rows is None
    if train.track != profiles.track and not clicks_as_rows:
        raise ValueError(
            f"{profiles.track} profiles cannot enter {train.track} data: the tracks never mix silently. "
            "Craft the attack on this track, or binarize() the data"
        )
    if train.track == "sequence" and profiles.clicks is None:
        raise ValueError("sequence data needs profiles in the clicks form: rows have no order")


def _targets(targets: ArrayLike) -> Int[Array, " T"]:
    if is_concrete(targets) and not np.issubdtype(np.asarray(targets).dtype, np.integer):
        raise TypeError(f"targets must be integer item ids; got {np.asarray(targets).dtype}")
    targets = jnp.asarray(targets, jnp.int32)
    if targets.ndim != 1:
        raise ValueError(f"targets must be one-dimensional; got shape {targets.shape}")
    return targets


def _check_rows(
    profiles: Profiles, ratings: tuple[float, float] | None, rows: ArrayLike | None = None
) -> np.ndarray:
    rows = np.asarray(profiles.rows if rows is None else rows)
    low, high = ratings or (0, np.inf)
    if profiles.track != "explicit":
        good, expected = (rows == 0) | (rows == 1), "0 or 1 (project relaxed rows first)"
    elif ratings is None:
        good, expected = np.isfinite(rows) & (rows >= 0), "0 or a positive rating"
    else:
        good, expected = (rows == 0) | ((rows >= low) & (rows <= high)), f"0 or a rating in {low}..{high}"
    bad = np.argwhere(~good)
    if bad.size:
        who, which = bad[0]
        raise ValueError(f"fake user {who}, item {which}: {rows[who, which]}; expected {expected}")
    return rows


def _on_others(profiles: Profiles, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Clicks of every fake user on items that are not targets."""
    if profiles.clicks is None:
        return np.delete(rows, targets, axis=1).astype(bool).sum(1)
    return (np.asarray(profiles.mask) & ~np.isin(np.asarray(profiles.clicks), targets)).sum(1)


def _check_clicks(profiles: Profiles) -> np.ndarray:
    clicks, mask = np.asarray(profiles.clicks), np.asarray(profiles.mask)
    bad = np.argwhere(mask & ((clicks < 0) | (clicks >= profiles.items)))
    if bad.size:
        who, when = bad[0]
        raise ValueError(
            f"fake user {who}, click {when}: item {clicks[who, when]} is outside 0..{profiles.items - 1}"
        )
    return np.asarray(profiles.to_rows())
