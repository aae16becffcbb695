"""Data made from a key: the paper's toy, and large sparse sets for benchmarks.

The toy is section 3 of "Revisiting Adversarially Learned Injection Attacks Against Recommender Systems"
(Tang, Wen, Wang, RecSys 2020): users and items are Gaussian vectors, a click is a large inner product, and the
initial fake users are drawn from the same law as the real ones.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from models.data.interactions import Interactions, is_concrete
from models.data.split import generator

_REDRAWS = 200


class Toy(NamedTuple):
    """One draw of the toy: everything the attack of the paper needs."""

    train: Interactions  # users x items, without each user's held-out event
    test: Interactions  # the held-out event of each user
    initial: Float[Array, "F I"]  # rows the fake users start from
    target: Int[Array, ""]  # item 0

    @property
    def dense(self) -> Float[Array, "U I"]:
        """The training matrix, 0 or 1."""
        return self.train.dense()

    @property
    def targets(self) -> Int[Array, " 1"]:
        """The target as the one-item list that attacks take."""
        return self.target[None]


def toy(
    key: Key[Array, ""],
    *,
    users: int = 900,
    fakes: int = 100,
    items: int = 300,
    rank: int = 20,
    threshold: float = 5.0,
    capacity: int | None = None,
) -> Toy:
    """Draw the toy data: `X = 1[A C > threshold]`, `A ~ N(0,1)^((U+F) x rank)`, `C ~ N(0,1)^(rank x I)`.

    One random positive of each real user is held out as its test event. Pure: works under `jit` and `vmap` over
    keys, with one static shape for all draws.

    Args:
        key: typed JAX key.
        users, fakes, items, rank: sizes U, F, I and the rank of the product.
        threshold: a cell is a click where the product exceeds it.
        capacity: slots of `train`; default leaves half as many again as expected (all cells when small).

    Returns:
        Toy(train, test, initial, target), target = item 0.

    Raises:
        ValueError: sizes below 1, or a threshold that leaves users without a click.
            In a trace such a draw, or one that exceeds `capacity`, has NaN weights.

    Reference: Tang, Wen, Wang, RecSys 2020, section 3.

    **Differs from the paper:** a row without any positive is drawn again (the official code fails on it).

    >>> data = toy(jax.random.key(0), users=6, fakes=2, items=5, rank=3, threshold=1.0)
    >>> data.train.users, data.test.count.item(), data.initial.shape
    (6, 6, (2, 5))
    """
    for name, value in (("users", users), ("items", items), ("rank", rank)):
        if value < 1:
            raise ValueError(f"toy({name}={value}): expected at least 1")
    if fakes < 0:
        raise ValueError(f"toy(fakes={fakes}): expected 0 or more")
    density = expected_density(rank, threshold)
    if density * items < 0.05:
        raise ValueError(
            f"toy(threshold={threshold}, rank={rank}): a user would click {density * items:.2g} of {items} items "
            "on average; lower the threshold"
        )
    cells = users * items
    if capacity is None:
        capacity = cells if cells <= 2**14 else min(cells, math.ceil(1.5 * density * cells) + users)
    made = _toy(key, users, fakes, items, rank, threshold, capacity)
    if is_concrete(made.train.weight) and bool(jnp.any(jnp.isnan(made.train.weight))):
        raise ValueError(
            f"toy: the draw does not fit capacity={capacity} or left a user without a click; "
            "raise capacity= or lower threshold="
        )
    return made


@functools.lru_cache
def expected_density(rank: int, threshold: float) -> float:
    """Share of clicks: `E[Q(threshold / sqrt(s))]`, s chi-squared with `rank` degrees (Q: Gaussian tail).

    >>> round(expected_density(20, 5.0), 3)
    0.127
    """
    import scipy.stats

    middles = (np.arange(2000) + 0.5) / 2000
    squares = scipy.stats.chi2.ppf(middles, rank)
    return float(scipy.stats.norm.sf(threshold / np.sqrt(squares)).mean())


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 6))
def _toy(
    key: Key[Array, ""], users: int, fakes: int, items: int, rank: int, threshold: float, capacity: int
) -> Toy:
    key_items, key_rows, key_test = jax.random.split(key, 3)
    factors = jax.random.normal(key_items, (rank, items), jnp.float32)

    def draw(state: tuple[Array, Array]) -> tuple[Array, Array]:
        attempt, rows = state
        keys = jax.vmap(lambda u: jax.random.fold_in(jax.random.fold_in(key_rows, u), attempt))
        mixed = jax.vmap(lambda k: jax.random.normal(k, (rank,), jnp.float32))(
            keys(jnp.arange(users + fakes))
        )
        fresh = mixed @ factors > threshold
        return attempt + 1, jnp.where(rows.any(1, keepdims=True), rows, fresh)

    def unfinished(state: tuple[Array, Array]) -> Array:
        attempt, rows = state
        return (attempt < _REDRAWS) & ~jnp.all(rows.any(1))

    nothing = jnp.zeros((users + fakes, items), bool)
    _, rows = jax.lax.while_loop(unfinished, draw, (jnp.int32(0), nothing))
    real, initial = rows[:users], rows[users:].astype(jnp.float32)

    scores = jnp.where(real, jax.random.uniform(key_test, real.shape, jnp.float32), -1.0)
    held = jnp.argmax(scores, axis=1)  # a uniform choice among the positives of the row
    left = real & (jnp.arange(items) != held[:, None])
    train = Interactions.from_dense(left.astype(jnp.float32), track="implicit", capacity=capacity)
    ids = jnp.arange(users, dtype=jnp.int32)
    test = Interactions(ids, held.astype(jnp.int32), jnp.ones(users, jnp.float32), None, users, items)
    failed = ~jnp.all(rows.any(1))
    weight = jnp.where(failed, jnp.nan, train.weight)
    train = Interactions(train.user, train.item, weight, None, users, items)
    return Toy(train, test, initial, jnp.int32(0))


def zipf(
    key: Key[Array, ""] | int,
    *,
    users: int,
    items: int,
    density: float = 0.01,
    topics: int = 16,
    exponent: float = 0.8,
    taste: float = 1.5,
) -> Interactions:
    """Clicks of the size and shape of real data, for benchmarks; drawn on the host in `O(E log E)`.

    Users have log-normal activity and a favorite of `topics` topics, from which 7 of 10 clicks come. Within a topic
    `P(i) ~ rank_i^-exponent exp(taste g_ti)`, g standard normal: popularity follows Zipf's law and the expected
    matrix has rank `topics`, so there is something to learn.

    Args:
        key: seed or typed JAX key.
        users, items: sizes U, I.
        density: share of cells that are clicks, in (0, 0.3]; exactly `round(density U I)` events are made.
        topics, exponent, taste: as above.

    Raises:
        ValueError: a size, density or exponent out of range.

    >>> zipf(0, users=50, items=40, density=0.1)
    Interactions(50 users x 40 items, 200 events, implicit)
    """
    for name, value in (("users", users), ("items", items), ("topics", topics)):
        if value < 1:
            raise ValueError(f"zipf({name}={value}): expected at least 1")
    events = round(density * users * items)
    if not 0 < density <= 0.3 or events < 1:
        raise ValueError(
            f"zipf(density={density}): expected a share in (0, 0.3] that gives at least one event"
        )
    if exponent < 0 or taste < 0:
        raise ValueError(f"zipf(exponent={exponent}, taste={taste}): expected numbers >= 0")
    rng = generator(key)
    activity = np.cumsum(np.minimum(rng.lognormal(0, 1, users), 10.0))
    favorite = rng.integers(0, topics, users)
    popularity = -exponent * np.log(rng.permutation(items) + 1)
    law = np.cumsum(np.exp(popularity + taste * rng.normal(size=(topics, items))), axis=1)
    law /= law[:, -1:]
    pairs = np.empty(0, np.int64)
    attempt = 0
    while pairs.size < events:
        wanted = math.ceil(1.3 * (events - pairs.size)) + 16
        user = np.minimum(np.searchsorted(activity, rng.random(wanted) * activity[-1]), users - 1)
        topic = np.where(rng.random(wanted) < 0.7, favorite[user], rng.integers(0, topics, wanted))
        if attempt < 20:
            item = _draw_items(law, topic, rng.random(wanted))
        else:  # popular cells are full: spread the rest evenly
            user, item = rng.integers(0, users, wanted), rng.integers(0, items, wanted)
        pairs = np.union1d(pairs, user * items + item)
        attempt += 1
    pairs = rng.choice(pairs, events, replace=False, shuffle=False)
    return Interactions.from_arrays(pairs // items, pairs % items, users=users, items=items, track="implicit")


def _draw_items(law: np.ndarray, topic: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    item = np.empty(topic.size, np.int64)
    for t in range(law.shape[0]):
        here = topic == t
        item[here] = np.searchsorted(law[t], uniform[here])
    return np.minimum(item, law.shape[1] - 1)
