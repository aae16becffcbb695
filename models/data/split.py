"""Train, validation and test: the protocols of the five papers, drawn on the host from a JAX key.

All parts keep the users and items of the whole, so ids, factor matrices and compiled code fit each of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from models.data import checks
from models.data.interactions import Interactions


class Split(NamedTuple):
    """Disjoint parts of one data set over the same users and items."""

    train: Interactions
    validation: Interactions | None
    test: Interactions


def generator(key: Key[Array, ""] | int) -> np.random.Generator:
    """A NumPy generator drawn from a typed JAX key; a whole number n stands for `jax.random.key(n)`.

    >>> generator(3).random() == generator(jax.random.key(3)).random()
    True
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        key = jax.random.key(int(key))
    if not isinstance(key, jax.Array) or not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"expected a seed or a typed key from jax.random.key; got {key!r}")
    if key.ndim:
        raise ValueError(f"expected one key; got keys of shape {key.shape}")
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def revadv_split(data: Interactions, key: Key[Array, ""] | int, *, fraction: float = 0.2) -> Split:
    """Hold out `floor(fraction * n_u)` random events of every user.

    Reference: Tang, Wen, Wang, RecSys 2020, section 4.1 ("random 20%"; the released test file holds
    floor(0.2 n_u) events of each user). No validation part.

    **Differs from the paper:** nothing (33 of its 13,149 users have one test event less than the rule).

    >>> x = Interactions.from_arrays([0] * 10 + [1] * 4, [*range(10), *range(4)])
    >>> revadv_split(x, 0).test.degrees().tolist()
    [2, 0]
    """
    _fraction("fraction", fraction)
    n, rank = _shuffled_rank(data, generator(key))
    # 1e-9: 29% of 100 events are 29, but 0.29 * 100 falls just below.
    held = rank < np.floor(fraction * n + 1e-9)
    return Split(data.select(~held), None, data.select(held))


def holdout_one(
    data: Interactions,
    key: Key[Array, ""] | int,
    *,
    order: Literal["random", "last"] = "random",
    validation: bool = False,
    least: int = 2,
) -> Split:
    """Leave one out: one event of each user is the test, and one more the validation on request.

    Args:
        order: "random" (toy, APT, NCF) or "last" by time, the last before it being validation (PoisonRec).
        least: users with fewer events keep them all in training.

    Raises:
        ValueError: `order="last"` on data without times.

    References: the toy of Tang et al., RecSys 2020; Wu et al. (APT), SIGIR 2021; Song et al. (PoisonRec), ICDE 2020.

    >>> x = Interactions.from_arrays([0, 0, 0, 1], [0, 1, 2, 0], time=[5, 9, 7, 1])
    >>> holdout_one(x, 0, order="last").test.item.tolist()
    [1]
    """
    checks.option("order", order, ("random", "last"))
    if least < 1:
        raise ValueError(f"least={least}: expected at least 1")
    rng = generator(key)
    if order == "last" and data.time is None:
        raise ValueError("order='last' needs times; this data has none, use order='random'")
    last = -np.asarray(data.time, np.int64) if order == "last" else None
    n, rank = _shuffled_rank(data, rng, last)
    judged = n >= least
    test = judged & (rank == 0)
    valid = judged & (rank == 1) if validation else np.zeros_like(test)
    parts = [data.select(chosen) for chosen in (~test & ~valid, valid, test)]
    return Split(parts[0], parts[1] if validation else None, parts[2])


def random_events(
    data: Interactions,
    key: Key[Array, ""] | int,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Split:
    """Split the events at random, whoever's they are, into train, validation and test.

    Reference: Zhang et al. (RAPU), KDD 2021, released code (80/10/10 over events).

    >>> x = Interactions.from_arrays([0] * 10, range(10))
    >>> [int(part.count) for part in random_events(x, 0)]
    [8, 1, 1]
    """
    for value in fractions:
        if not 0 <= value <= 1:
            raise ValueError(f"fractions={fractions}: each must lie in 0..1")
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(
            f"fractions={fractions}: expected three parts (train, validation, test) that sum to 1"
        )
    n = int(data.real().sum())
    order = generator(key).permutation(n)
    first, second = (round(float(np.sum(fractions[:k])) * n) for k in (1, 2))
    train, valid, test = (data.select(order[a:b]) for a, b in ((0, first), (first, second), (second, n)))
    return Split(train, valid if fractions[1] > 0 else None, test)


def _shuffled_rank(
    data: Interactions, rng: np.random.Generator, first: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For every slot: events of its user, and its place among them when ordered by `first`, then at random.

    Padding gets a user without events (n = 0) and a rank no rule selects, and `select` drops it from training.
    """
    real = data.real()
    user = np.where(real, np.asarray(data.user), data.users)
    draw = rng.random(user.size)
    keys = (draw, user) if first is None else (draw, first, user)
    order = np.lexsort(keys)
    counts = np.bincount(user, minlength=data.users + 1)
    begin = np.cumsum(counts) - counts
    rank = np.empty(user.size, np.int64)
    rank[order] = np.arange(user.size) - begin[user[order]]
    n = np.where(real, counts[user], 0)
    return n, np.where(real, rank, np.iinfo(np.int64).max)


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: expected a share between 0 and 1")
