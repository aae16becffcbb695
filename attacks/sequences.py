"""Which order: click sequences of fake users.

Song et al., "PoisonRec", ICDE 2020, section IV-A, whose heuristic attackers click T = 20 times: a target and
another item in turn (Random, Popular, PowerItem), or at each step an item of a random kind (Middle). Targets
and repeats count as clicks.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

TargetMode = Literal["all", "split"]


def target_clicks(
    key: Key[Array, ""], targets: Int[Array, " T"], fakes: int, clicks: int, mode: TargetMode
) -> Int[Array, "F C"]:
    """A target for every step: drawn uniformly (`"all"`), or the one of the fake user, `f mod T` (`"split"`).

    >>> target_clicks(jax.random.key(0), jnp.array([7, 9]), 3, 2, "split").tolist()
    [[7, 7], [9, 9], [7, 7]]
    """
    if mode == "split":
        own = targets[jnp.arange(fakes) % targets.shape[-1]]
        return jnp.broadcast_to(own[:, None], (fakes, clicks))
    return draw(key, targets, fakes, clicks)


def draw(key: Key[Array, ""], pool: Int[Array, " N"], fakes: int, clicks: int) -> Int[Array, "F C"]:
    """An item for every step, uniform over the pool, with repeats.

    >>> draw(jax.random.key(0), jnp.array([4]), 1, 3).tolist()
    [[4, 4, 4]]
    """
    return pool[jax.random.randint(key, (fakes, clicks), 0, pool.shape[-1])]


def shuffled(key: Key[Array, ""], chosen: Float[Array, "F I"], count: int, clicks: int) -> Int[Array, "F C"]:
    """The `count` items of each row in random order, again from the start when they are through.

    >>> sorted(shuffled(jax.random.key(0), jnp.array([[0.0, 1, 0, 1]]), 2, 4)[0].tolist())
    [1, 1, 3, 3]
    """
    chance = jnp.where(chosen > 0, jax.random.uniform(key, chosen.shape), -1.0)
    _, item = lax.top_k(chance, count)
    return item[:, jnp.arange(clicks) % count].astype(jnp.int32)


def alternate(first: Int[Array, "F C"], second: Int[Array, "F D"]) -> Int[Array, "F C"]:
    """`first` at the steps 0, 2, 4, ..., and between them the items of `second` in their order.

    >>> alternate(jnp.full((1, 5), 9), jnp.array([[1, 2]])).tolist()
    [[9, 1, 9, 2, 9]]
    """
    step = jnp.arange(first.shape[-1])
    return jnp.where(step % 2 == 0, first, second[:, step // 2 % second.shape[-1]])


def mixed(key: Key[Array, ""], *kinds: Int[Array, "F C"]) -> Int[Array, "F C"]:
    """At every step the item of one of the kinds, all with the same chance.

    >>> mixed(jax.random.key(0), jnp.array([[3, 4]])).tolist()
    [[3, 4]]
    """
    which = jax.random.randint(key, kinds[0].shape, 0, len(kinds))
    return jnp.take_along_axis(jnp.stack(kinds), which[None], axis=0)[0]
