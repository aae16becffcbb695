"""What an attack refuses before it starts.

What can be checked without looking at traced values is checked always; ids and rows are checked whenever they are
concrete. Inside `jit` and `vmap` a wrong id cannot be seen (JAX drops and clamps silently), so call `check` yourself on
what is passed in.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from attacks.threat import Goal, ThreatModel
from models.data import Interactions, check_targets
from models.data.interactions import is_concrete


def check(
    threat: ThreatModel,
    key: Key[Array, ""],
    train: Interactions,
    targets: Int[ArrayLike, " T"],
    *,
    initial: Float[ArrayLike, "F I"] | None = None,
    starts: bool = True,
    only: Int[np.ndarray, " T"] | None = None,
    test: Interactions | None = None,
) -> Int[Array, " T"]:
    """Refuse on the host what the attack cannot work on; values are looked at only where they are concrete.

    Args:
        threat: what the attack may do.
        key, train, targets, initial, test: as in `Attack.trace`.
        starts: whether the attack starts from rows, so that `initial` is allowed.
        only: the targets it is tied to; `None`: none.

    Returns:
        The targets as an `int32` array.

    Raises:
        TypeError: the key is not one typed key, the targets are not integers, or `train` is not `Interactions`.
        ValueError: targets empty (on availability: not empty), repeated, out of range or others than `only`; a budget
            above the number of other items; another track; initial rows of the wrong shape, not binary, or for an
            attack that does not start from rows; a test set of other users or items.

    Reference: none.

    **Differs from the paper:** nothing.

    >>> check(ThreatModel(fakes=1, budget=2), jax.random.key(0), Interactions.from_dense(np.eye(3)), [3])
    Traceback (most recent call last):
    ...
    ValueError: target 3 is outside 0..2 (3 items)
    """
    if not isinstance(train, Interactions):
        raise TypeError(
            f"train is {type(train).__name__}; expected Interactions (see models.data.Interactions.from_arrays)"
        )
    _check_key(key)
    if train.track != threat.track:
        raise ValueError(
            f"train is of track {train.track!r}, but the attack is for the {threat.track!r} track; "
            "convert the interactions explicitly first"
        )
    targets = _check_targets(targets, train.items, threat.goal)
    if only is not None and is_concrete(targets) and not np.array_equal(targets, only):
        raise ValueError(
            f"targets are {np.asarray(targets)}, but the environment's world has {only}: give these, or open another"
        )
    budget = threat.budget
    if budget is not None and budget > train.items - targets.size:
        raise ValueError(
            f"budget is {budget}, but only {train.items - targets.size} of the {train.items} items are not targets; "
            "lower the budget"
        )
    fakes = threat.count(train.users)
    if initial is not None:
        _check_initial(starts, initial, fakes, train.items)
    if test is not None and (test.users, test.items) != (train.users, train.items):
        raise ValueError(
            f"test has {test.users} users and {test.items} items, train has {train.users} and {train.items}; "
            "split one set of interactions so that the ids agree"
        )
    return targets


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"key is {type(key).__name__}; expected a typed key, as from jax.random.key(0)")
    if jnp.shape(key) != ():
        raise TypeError(f"key has shape {jnp.shape(key)}; expected one key (use jax.vmap for several)")


def _check_targets(targets: Any, items: int, goal: Goal) -> Int[Array, " T"]:
    if goal == "availability":
        if np.size(targets):
            raise ValueError(
                f"{np.size(targets)} targets for an attack on availability, which has none; give an empty list"
            )
        return jnp.zeros(0, jnp.int32)
    if is_concrete(targets):  # before the conversion to int32, which would wrap a large id
        check_targets(np.asarray(targets), items)
    array = jnp.asarray(targets)
    if array.ndim != 1 or not 0 < array.size <= items or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"targets is {array.dtype}{list(array.shape)}; expected one to {items} integer item ids, shape (T,)"
        )
    return array.astype(jnp.int32)


def _check_initial(starts: bool, initial: Any, fakes: int, items: int) -> None:
    if not starts:
        raise ValueError("this attack does not start from rows; leave initial= out")
    check_rows(initial)
    if jnp.shape(initial) != (fakes, items):
        raise ValueError(
            f"initial has shape {jnp.shape(initial)}; expected ({fakes}, {items}), a row for every fake user"
        )


def check_rows(rows: Any) -> None:
    """Refuse rows that are not a binary matrix.

    Args:
        rows: fake rows, `(F, I)`; their values are looked at only where they are concrete.

    Raises:
        ValueError: not two-dimensional, or an entry other than 0 and 1.
    """
    if jnp.ndim(rows) != 2:
        raise ValueError(f"initial has shape {jnp.shape(rows)}; expected rows (F, I)")
    if is_concrete(rows) and not np.isin(np.asarray(rows), (0, 1)).all():
        raise ValueError("initial has entries other than 0 and 1; expected binary rows (implicit clicks)")
