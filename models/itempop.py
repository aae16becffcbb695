"""ItemPop: everybody is recommended the most clicked items.

    s_ui = number of clicks on i

In a sequence repeats count, so clicking a target again and again is an attack (Song et al., ICDE 2020, PoisonRec).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.data.interactions import Interactions
from models.recommender import Recommender, clicks_only, sound, untrained


def itempop() -> Recommender:
    """ItemPop as a `Recommender`; nothing is learned.

    Reference: Song et al. (PoisonRec), ICDE 2020, section IV-A.

    **Differs from the paper:** nothing.

    >>> data = Interactions.from_arrays([0, 1, 1], [2, 2, 0])
    >>> model = itempop()
    >>> model.scores({}, jnp.zeros((0, 3)), model.prepare(data), jnp.array([1])).tolist()
    [[1.0, 0.0, 2.0]]
    """
    return untrained("itempop", {}, prepare, embed, score)


def prepare(train: Interactions) -> Float[Array, " I"]:
    """Clicks of each item; works under `jit` and `vmap`."""
    train = clicks_only("itempop", train)
    return sound(train) * train.popularity().astype(train.weight.dtype)


def embed(params: Any, x: Float[Array, "F I"], data: Float[Array, " I"]) -> Float[Array, " I"]:
    """Clicks of each item with those of the fake rows."""
    return data + jnp.sum(x, 0)


def score(popularity: Float[Array, " I"], users: Any) -> Float[Array, "B I"]:
    """The same row for every user."""
    return jnp.broadcast_to(popularity, (*users.shape, popularity.shape[0]))
