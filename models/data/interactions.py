"""Who clicked what: the sparse, padded record every recommender learns from.

Nothing in this project copies or mutates a recommender to poison it: poison is data. `Interactions` is that
data. It is checked once on the host, where errors can be read, and is a plain pytree afterwards: sizes are
static, events are arrays, and events of weight 0 are padding, so that all the poisoned sets of an experiment
have one shape and share one compiled victim.

Layout: the real events come first, sorted by (user, item), a sequence by (user, time); then the padding.
Padding carries the last user and the last item, so ids stay in range and in order: a gather reads a real row
and multiplies it by 0, a segment sum may be told that its ids are sorted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from models.data import checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import scipy.sparse

Track = Literal["implicit", "explicit", "sequence"]
Duplicates = Literal["error", "max", "sum", "first", "last"]


def is_concrete(*values: Any) -> bool:
    """True when no leaf of `values` is being traced, so host checks can read the numbers.

    >>> is_concrete(jnp.ones(2))
    True
    """
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Interactions:
    """The events of `users` users on `items` items, sorted and padded; a pytree under `jit` and `vmap`.

    Args (build one with `from_arrays`, `from_dense` or `from_frame`, which check; this constructor does not):
        user: (E,) int32 in [0, users).
        item: (E,) int32 in [0, items).
        weight: (E,) float32; 1 for a click, the rating in the explicit track, 0 for padding.
        time: (E,) int32 seconds or order, or None.
        users, items, track: static. Track is "implicit", "explicit" or "sequence" (order counts, repeats allowed).

    >>> x = Interactions.from_arrays([1, 0, 1], [2, 1, 0], users=3)
    >>> x
    Interactions(3 users x 3 items, 3 events, implicit)
    >>> x.user.tolist(), x.item.tolist()
    ([0, 1, 1], [1, 0, 2])
    """

    user: Int[Array, " E"]
    item: Int[Array, " E"]
    weight: Float[Array, " E"]
    time: Int[Array, " E"] | None
    users: int = field(metadata={"static": True})
    items: int = field(metadata={"static": True})
    track: Track = field(default="implicit", metadata={"static": True})

    # ---------------------------------------------------------------- what it holds

    @property
    def capacity(self) -> int:
        """Static number of slots E, padding included."""
        return self.user.shape[-1]

    @property
    def mask(self) -> Bool[Array, " E"]:
        """True for a real event, False for padding."""
        return self.weight > 0

    @property
    def count(self) -> Int[Array, ""]:
        """Number of real events (an array, so it may be traced)."""
        return jnp.sum(self.mask, axis=-1, dtype=jnp.int32)

    def dense(self) -> Float[Array, "U I"]:
        """The matrix of weights, `X[u, i] = sum of the weights of (u, i)`; 0 where nothing was observed.

        >>> Interactions.from_arrays([0, 1], [1, 0]).dense().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
        """
        zeros = jnp.zeros((self.users, self.items), self.weight.dtype)
        return zeros.at[self.user, self.item].add(self.weight)

    def popularity(self) -> Int[Array, " I"]:
        """Events of each item, `c_i`.

        >>> Interactions.from_arrays([0, 1, 1], [1, 0, 1]).popularity().tolist()
        [1, 2]
        """
        return jnp.zeros(self.items, jnp.int32).at[self.item].add(self.mask.astype(jnp.int32))

    def degrees(self) -> Int[Array, " U"]:
        """Events of each user, `n_u`."""
        return jnp.zeros(self.users, jnp.int32).at[self.user].add(self.mask.astype(jnp.int32))

    def row_pointers(self) -> Int[Array, " U+1"]:
        """Where each user's events begin: those of user u are slots `p[u]` to `p[u + 1] - 1`.

        >>> Interactions.from_arrays([0, 2, 2], [0, 0, 1]).pad(5).row_pointers().tolist()
        [0, 1, 1, 3]
        """
        zero = jnp.zeros(1, jnp.int32)
        return jnp.concatenate([zero, jnp.cumsum(self.degrees(), dtype=jnp.int32)])

    # ---------------------------------------------------------------- shapes

    def pad(self, capacity: int) -> Interactions:
        """The same events in `capacity` slots (at least `self.capacity`); `trim` is its inverse."""
        extra = capacity - self.capacity
        if extra < 0:
            raise ValueError(
                f"pad(capacity={capacity}): the record has {self.capacity} slots; give at least that many, "
                "or trim() it first"
            )

        # NumPy where it can be: an eager jnp.pad would compile anew for every size.
        concrete = is_concrete(self.weight)

        def fill(values: Array, value: int) -> Array:
            if not concrete:
                return jnp.pad(values, (0, extra), constant_values=value)
            return jax.device_put(np.pad(values, (0, extra), constant_values=value))

        return replace(
            self,
            user=fill(self.user, self.users - 1),
            item=fill(self.item, self.items - 1),
            weight=fill(self.weight, 0),
            time=None if self.time is None else fill(self.time, 0),
        )

    def trim(self) -> Interactions:
        """The same events without padding (host only: the new size is read from the data)."""
        n = max(int(self.real().sum()), 1)
        return jax.tree.map(lambda values: jax.device_put(np.asarray(values)[:n]), self)

    def keep(self, mask: Bool[Array, " E"]) -> Interactions:
        """Only the events where `mask` holds, in the same capacity; works under `jit`.

        >>> x = Interactions.from_arrays([0, 0, 1], [0, 1, 1])
        >>> x.keep(x.item == 1).dense().tolist()
        [[0.0, 1.0], [0.0, 1.0]]
        """
        kept = mask & self.mask
        order = jnp.argsort(~kept, stable=True)  # real events first, in their order
        real = kept[order]
        return replace(
            self,
            user=jnp.where(real, self.user[order], self.users - 1),
            item=jnp.where(real, self.item[order], self.items - 1),
            weight=jnp.where(real, self.weight[order], 0),
            time=None if self.time is None else jnp.where(real, self.time[order], 0),
        )

    def select(self, chosen: np.ndarray) -> Interactions:
        """The events at the given positions or where a mask holds, without padding (host only)."""
        chosen = np.asarray(chosen)
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else np.sort(chosen)
        rows = rows[self.real()[rows]]
        picked = jax.tree.map(lambda values: jax.device_put(np.asarray(values)[rows]), self)
        return picked if rows.size else picked.pad(1)

    def real(self) -> np.ndarray:
        """`mask` in NumPy, for host code (an eager jnp operation compiles anew for every size)."""
        return np.asarray(self.weight) > 0

    # ---------------------------------------------------------------- host: in and out

    def validate(self, *, empty_users: Literal["allow", "error"] = "allow") -> Interactions:
        """Check every promise of this record on the host and return it.

        Raises:
            ValueError: naming the first event (or user, with `empty_users="error"`) that breaks a promise.
        """
        checks.validate(self, empty_users=empty_users)
        return self

    @classmethod
    def from_arrays(
        cls,
        user: ArrayLike | Sequence[int],
        item: ArrayLike | Sequence[int],
        weight: ArrayLike | Sequence[float] | None = None,
        time: ArrayLike | Sequence[float] | None = None,
        *,
        users: int | None = None,
        items: int | None = None,
        track: Track | None = None,
        duplicates: Duplicates = "error",
        capacity: int | None = None,
    ) -> Interactions:
        """Checked and sorted interactions from integer ids (`models.data.load` takes ids of any kind).

        Args:
            user, item: (E,) integers counted from 0.
            weight: (E,) positive and finite; None means 1 each.
            time: (E,) finite. Whole numbers within int32 are kept, others become their rank: only order counts.
            users, items: sizes; default largest id + 1. With both given there may be no event at all.
            track: default "implicit" when all weights are 1, else "explicit".
            duplicates: what to do with a repeated (user, item) pair: refuse, or keep the largest weight, the sum,
                the first or the last (by time where known, else in the order given). A sequence keeps repeats.
            capacity: slots to pad to.

        Raises:
            ValueError, TypeError: what was given, what was expected, what to do.

        >>> Interactions.from_arrays([0, 0], [1, 1], [3.0, 5.0], duplicates="max").weight.tolist()
        [5.0]
        >>> Interactions.from_arrays([0, 0], [1, 1])
        Traceback (most recent call last):
        ...
        ValueError: (user 0, item 1) appears more than once, at events 0 and 1; pass duplicates="max", "sum", \
"first" or "last" to merge repeats, or track="sequence" to keep them
        """
        columns = checks.events(user, item, weight, time, users, items, track, duplicates)
        # From here on the arrays are right; an empty record keeps one slot of padding so no array has size 0.
        made = cls(
            user=jax.device_put(columns.user.astype(np.int32)),  # jnp.asarray would compile for each size
            item=jax.device_put(columns.item.astype(np.int32)),
            weight=jax.device_put(columns.weight.astype(np.float32)),
            time=None if columns.time is None else jax.device_put(columns.time.astype(np.int32)),
            users=columns.users,
            items=columns.items,
            track=columns.track,
        )
        made = made.pad(1) if made.capacity == 0 else made
        return made if capacity is None else made.pad(capacity)

    @classmethod
    def from_dense(
        cls, matrix: ArrayLike, *, track: Track | None = None, capacity: int | None = None
    ) -> Interactions:
        """Interactions from a (U, I) matrix whose nonzero cells are events; jit-able when `capacity` is given.

        In a trace nothing can be checked: more events than `capacity` make every weight NaN, never a silent loss.

        >>> Interactions.from_dense([[0, 1], [1, 1]]).item.tolist()
        [1, 0, 1]
        """
        if is_concrete(matrix):
            values = checks.matrix(matrix)
            user, item = np.nonzero(values)
            weight = values[user, item]
            users, items = values.shape
            return cls.from_arrays(
                user, item, weight, users=users, items=items, track=track, capacity=capacity
            )
        if capacity is None:
            raise ValueError("from_dense of a traced matrix needs capacity=, a static bound on the events")
        return _from_traced(jnp.asarray(matrix), track or "implicit", capacity)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        user: str = "user",
        item: str = "item",
        weight: str | None = None,
        time: str | None = None,
        **options: Any,
    ) -> Interactions:
        """Interactions from a pandas or polars frame with integer ids; `options` as in `from_arrays`.

        >>> import pandas as pd
        >>> Interactions.from_frame(pd.DataFrame({"user": [0, 1], "item": [1, 0]}))
        Interactions(2 users x 2 items, 2 events, implicit)
        """
        have = [str(name) for name in frame.columns]
        wanted = {"user": user, "item": item, "weight": weight, "time": time}
        for role, name in wanted.items():
            if name is not None and name not in have:
                raise ValueError(f"no column {name!r} for {role}; the frame has {', '.join(have)}")
        columns = {role: None if n is None else np.asarray(frame[n]) for role, n in wanted.items()}
        return cls.from_arrays(**columns, **options)  # type: ignore[arg-type]

    def to_frame(self) -> pd.DataFrame:
        """The real events as a pandas frame with columns user, item, weight (and time)."""
        import pandas as pd

        real = self.real()
        columns = {"user": self.user, "item": self.item, "weight": self.weight, "time": self.time}
        return pd.DataFrame({k: np.asarray(v)[real] for k, v in columns.items() if v is not None})

    def to_csr(self) -> scipy.sparse.csr_matrix:
        """The (U, I) matrix of weights in SciPy's compressed rows."""
        import scipy.sparse

        real = self.real()
        at = np.asarray(self.user)[real], np.asarray(self.item)[real]
        return scipy.sparse.csr_matrix((np.asarray(self.weight)[real], at), shape=(self.users, self.items))

    def __repr__(self) -> str:
        sizes = f"{self.users} users x {self.items} items"
        if not isinstance(self.weight, jax.Array | np.ndarray) or not is_concrete(self.weight):
            return f"Interactions({sizes}, {self.track}, traced)"
        if np.ndim(self.weight) != 1:
            return f"Interactions({sizes}, {self.track}, batch of {np.shape(self.weight)})"
        n = self.real().sum()
        padded = "" if n == self.capacity else f", capacity {self.capacity}"
        return f"Interactions({sizes}, {n} events, {self.track}{padded})"


def _from_traced(matrix: Float[Array, "U I"], track: Track, capacity: int) -> Interactions:
    users, items = matrix.shape
    user, item = jnp.nonzero(matrix, size=capacity, fill_value=(users - 1, items - 1))
    count = jnp.sum(matrix != 0)
    real = jnp.arange(capacity) < count
    weight = jnp.where(real, matrix[user, item], 0).astype(jnp.float32)
    return Interactions(
        user=user.astype(jnp.int32),
        item=item.astype(jnp.int32),
        weight=jnp.where(count > capacity, jnp.nan, weight),
        time=jnp.where(real, jnp.arange(capacity), 0).astype(jnp.int32) if track == "sequence" else None,
        users=users,
        items=items,
        track=track,
    )
