"""Host checks behind `evaluate`: every error is raised here, before anything is traced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.data.interactions import Interactions, is_concrete


def call(
    scores: Any, train: Any, test: Any, targets: Any, k: Any, block: Any, users: Any, ties: Any
) -> tuple[int, ...]:
    """Raise for anything that would give a wrong number later; return the list lengths as a tuple."""
    if not callable(scores):
        raise TypeError(
            f"scores must be a function of user ids (B,) that returns scores (B, I); got {type(scores).__name__}. "
            "For a table of scores pass lambda users: table[users]"
        )
    if test is None and targets is None:
        raise ValueError("nothing to evaluate: give test=, targets= or both")
    _check_choice("users", users, ("all", "with_test"))
    _check_choice("ties", ties, ("id", "worst"))
    if users == "with_test" and test is None:
        raise ValueError('users="with_test" averages over the users with test items; give test=')
    if not _is_count(block):
        raise ValueError(f"block={block!r}: expected a whole number of users >= 1")
    _check_interactions(train, test)
    ks = k if isinstance(k, tuple) else (k,)
    if not ks or not all(_is_count(each) for each in ks):
        raise ValueError(f"k={k!r}: expected a whole number >= 1 or a tuple of them")
    if max(ks) > train.items:
        raise ValueError(
            f"k={max(ks)} is longer than the list of all {train.items} items; give k <= {train.items}"
        )
    if targets is not None:
        _check_targets(targets, train.items)
    _check_scores(scores, train, min(block, train.users))
    return ks


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def _check_interactions(train: Any, test: Any) -> None:
    for name, data in (("train", train), ("test", test)):
        if data is None and name == "test":
            continue
        if not isinstance(data, Interactions):
            raise TypeError(f"{name} must be Interactions; got {type(data).__name__}")
        if is_concrete(data.user, data.weight):
            real = np.asarray(data.weight) > 0  # in NumPy: in a trace even a constant's `mask` is a tracer
            user = np.asarray(data.user)[real]
            if np.any(np.diff(user) < 0) or not np.all(real[: user.size]):
                raise ValueError(
                    f"{name} is not sorted by user with its padding last; build it with Interactions.from_arrays"
                )
            if name == "test" and user.size == 0:
                raise ValueError("test has no event, so no user can be judged by it; leave test= out")
    if test is not None and (test.users, test.items) != (train.users, train.items):
        raise ValueError(
            f"train has {train.users} users x {train.items} items but test has {test.users} x {test.items}: both must "
            "number the same real users and items. Judge by the clean training set, not by one with fake users"
        )


def _check_targets(targets: Any, items: int) -> None:
    targets = targets if isinstance(targets, jax.Array) else np.asarray(targets)
    shape, dtype = targets.shape, targets.dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"targets must be integer item ids; got {dtype}")
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            f"targets must be a list of at least one item id, shape (T,); got shape {shape}. For several target sets "
            "use jax.vmap"
        )
    if not is_concrete(targets):
        return
    ids = np.asarray(targets)
    outside = ids[(ids < 0) | (ids >= items)]
    if outside.size:
        raise ValueError(f"target {outside[0]} is outside 0..{items - 1} ({items} items)")
    unique, times = np.unique(ids, return_counts=True)
    if np.any(times > 1):
        raise ValueError(f"target {unique[times > 1][0]} is given more than once; targets must be distinct")


def _check_scores(scores: Any, train: Interactions, size: int) -> None:
    out = jax.eval_shape(scores, jax.ShapeDtypeStruct((size,), jnp.int32))
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != (size, train.items) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"scores of {size} users returned {out}; expected floats of shape ({size}, {train.items}): a row for each "
            f"user, a column for each of the {train.items} items"
        )
