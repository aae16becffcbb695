"""The helpful users of APT: which items they rate, and how.

Wu, Lian, Ge, Zhu, Chen, Yuan (APT), SIGIR 2021, section 4.1; scaling and rounding as in the released code:

    items    m* of {I_j < 0} without replacement, p ~ exp(-t I_j), I scaled to [-1, 0]
    ratings  min(round(clip(N(mu_j, sigma_j), 0, 1)) + bonus, 1)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from models.data import Interactions


def levels(train: Interactions, highest: float) -> tuple[Array, Array]:
    """Mean and deviation of every item's ratings divided by the highest; 1 and 0 where it has none, as in the code.

    >>> train = Interactions.from_arrays([0, 1], [0, 0], [2.0, 4.0], items=2)
    >>> [found.tolist() for found in levels(train, 4.0)]
    [[0.75, 1.0], [0.25, 0.0]]
    """
    total = lambda values: (
        jnp.zeros(train.items, values.dtype).at[train.item].add(jnp.where(train.mask, values, 0))
    )
    scaled, count = train.weight / highest, total(jnp.ones_like(train.weight))
    mean = total(scaled) / jnp.maximum(count, 1)
    deviation = jnp.sqrt(total((scaled - mean[train.item]) ** 2) / jnp.maximum(count, 1))
    return jnp.where(count == 0, 1.0, mean), jnp.where(count == 0, 0.0, deviation)


def choose(
    key: Key[Array, ""], influence: Float[Array, " I"], temperature: float, items: int, number: int
) -> Array:
    """`(number, I)` truth values: `items` of those with negative influence, without replacement, by their weights.

    The weights are `exp(-t Inorm)`, `Inorm` the negative influences scaled to [-1, 0]. The items of the highest
    `log weight + Gumbel noise` are such a draw. Where fewer are negative, all of them are taken.

    >>> chosen = choose(jax.random.key(0), jnp.array([-1.0, 2.0, -0.5, 1.0]), 20.0, 3, 2)
    >>> chosen.tolist()
    [[True, False, True, False], [True, False, True, False]]
    """
    negative = influence < 0
    low = jnp.min(jnp.where(negative, influence, jnp.inf))
    high = jnp.max(jnp.where(negative, influence, -jnp.inf))
    scaled = (influence - high) / jnp.maximum(high - low, jnp.finfo(influence.dtype).tiny)
    log_weight = jnp.where(negative, -temperature * scaled, -jnp.inf)

    def one(key):
        height = log_weight + jax.random.gumbel(key, influence.shape, influence.dtype)
        best, item = lax.top_k(height, items)
        return jnp.zeros(influence.shape, bool).at[item].set(best > -jnp.inf)

    return jax.vmap(one)(jax.random.split(key, number))


def rows(
    key: Array,
    influence: Array,
    level: tuple[Array, Array] | None,
    number: int,
    *,
    items: int,
    temperature: float,
    bonus: float,
    grid: tuple[float, float] | None,
) -> Float[Array, "n I"]:
    """The rows of the helpful users, ratings or clicks."""
    for_items, for_ratings = jax.random.split(key)
    chosen = choose(for_items, influence, temperature, items, number)
    if level is None or grid is None:
        return chosen.astype(influence.dtype)
    return jnp.where(chosen, ratings(for_ratings, level, number, bonus=bonus, grid=grid), 0)


def ratings(
    key: Key[Array, ""],
    level: tuple[Float[Array, " I"], Float[Array, " I"]],
    number: int,
    *,
    bonus: float,
    grid: tuple[float, float],
) -> Float[Array, "n I"]:
    """`highest min(round(clip(N(mu, sigma), 0, 1)) + bonus, 1)` on the grid, never 0; `level` are mu, sigma in [0, 1].

    >>> ratings(jax.random.key(0), (jnp.array([0.5, 1.0]), jnp.zeros(2)), 1, bonus=1.0, grid=(4.0, 1.0)).tolist()
    [[3.0, 4.0]]
    """
    highest, step = grid
    mean, deviation = level
    drawn = jnp.clip(mean + deviation * jax.random.normal(key, (number, mean.shape[0]), mean.dtype), 0, 1)
    rounded = jnp.round(drawn * highest / step) * step
    return jnp.clip(rounded + bonus, step, highest)
