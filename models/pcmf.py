"""PCMF: ratings completed through a projection learned by multiplicative updates; APT's robust baseline.

Bampis, Rusu, Hajj, Bovik, *Robust matrix factorization for collaborative filtering in recommender systems*, Asilomar
2017, with the settings of the authors' released code; as in Wu et al. (APT), SIGIR 2021:

    repeat: fill the missing cells of Y with (U U' Y)_ui;
            20 times  U <- U * |q|^eta sign(q),   q = 2 A U / (U (U' A U) + A U (U' U)),   A = Y_filled Y_filled'
    prediction: U U' Y + biases

`A` is never formed: `A U = Y_filled (Y_filled' U)`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models.data.interactions import Interactions
from models.recommender import Recommender, counts, numbers, ratings_only, sound


class Data(NamedTuple):
    """Ratings, 0 where missing, where they are, the mask of fake cells, 1 or NaN, and whether to center."""

    rating: Float[Array, "U I"]
    known: Bool[Array, "U I"]
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]
    center: Float[Array, ""]


class Centered(NamedTuple):
    """The rows of real and fake users with mean and biases taken off, where they are known, and what was taken off."""

    rating: Float[Array, "U+F I"]
    known: Bool[Array, "U+F I"]
    item: Float[Array, " I"]
    user: Float[Array, " U+F"]


def pcmf(
    *, rank: int = 12, fills: int = 50, updates: int = 20, exponent: float = 0.5, center: bool = True
) -> Recommender:
    """PCMF as a `Recommender` of ratings.

    Args:
        rank: columns r of U, >= 1.
        fills: times the missing cells are filled in, >= 1.
        updates: multiplicative updates after each, >= 1.
        exponent: eta of the signed power, in (0, 1].
        center: take off the mean, then the items', then the users' mean residual. False: Y as it is, missing cells 0.

    Raises:
        ValueError: a number outside its range; data without ratings.

    Reference: Bampis et al., Asilomar 2017; compared with in APT (SIGIR 2021), section 5.

    **Differs from the paper:** nothing known; APT prints U with one column a rated item, its code has r. Entries of U
    change sign where A U is negative, as in the code. Y is dense: users x items numbers in memory. Fake rows
    hold ratings as they are given, 0 where there is none. The signed root has no derivative where its argument crosses
    0: this is a victim, not a surrogate.

    >>> pcmf(rank=2).init(jax.random.key(0), 3, 5, 1)["user"].shape
    (3, 2)
    """
    config = dict(locals())
    counts("pcmf", rank=rank, fills=fills, updates=updates)
    numbers("pcmf", 0, open_end=True, exponent=exponent)
    if exponent > 1:
        raise ValueError(f"pcmf: exponent={exponent!r}; expected a number in (0, 1]")

    def init(key, users, items, fakes):
        real, fake = jax.random.split(key)
        return {
            "user": jax.random.normal(real, (users, rank)),
            "fake": jax.random.normal(fake, (fakes, rank)),
        }

    loop = bilevel.fixed_point(partial(refill, updates=updates, exponent=exponent), fills)
    return Recommender(
        name="pcmf",
        config=config,
        prepare=partial(prepare, center=center),
        init=init,
        loss=lambda params, x, data, ctx: residual(params, x, data),
        embed=embed,
        score=score,
        trainer=lambda users, items, fakes, events=0: loop,
    )


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions, *, center: bool) -> Data:
    """The dense matrix of ratings; works under `jit` and `vmap`."""
    train = ratings_only("pcmf", train)
    rating = train.dense()
    return Data(rating, rating > 0, None, sound(train), jnp.asarray(center, rating.dtype))


def stacked(x: Float[Array, "F I"], data: Data) -> Centered:
    """Real and fake rows, less the mean of all ratings, then the items' and then the users' mean residual."""
    rated = x > 0 if data.observed is None else data.observed
    Y = jnp.concatenate([data.rating, jnp.where(rated, x, 0)])
    known = jnp.concatenate([data.known, rated])
    over = lambda values, axis: (
        jnp.sum(jnp.where(known, values, 0), axis) / jnp.maximum(jnp.sum(known, axis), 1)
    )
    level = data.center * over(Y, None)
    item = data.center * over(Y - level, 0)
    user = data.center * over(Y - level - item, 1)
    centered = jnp.where(known, Y - level - item - user[:, None], 0)
    return Centered(centered, known, level + item, user)


def refill(
    params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, updates: int, exponent: float
) -> Any:
    """One round: fill the missing cells, then the multiplicative updates."""
    U, (Y, known, _, _) = _both(params), stacked(x, data)
    full = jnp.where(known, Y, U @ (U.T @ Y))

    def update(U, _):
        image = full @ (full.T @ U)
        below = U @ (U.T @ image) + image @ (U.T @ U)
        q = 2 * image / jnp.where(jnp.abs(below) > 1e-12, below, 1e-12)
        return U * jnp.sign(q) * jnp.maximum(jnp.abs(q), 1e-30) ** exponent, None

    U, _ = jax.lax.scan(update, U, None, length=updates)
    users = params["user"].shape[0]
    return {"user": data.sound * U[:users], "fake": U[users:]}


def residual(params: Any, x: Float[Array, "F I"], data: Data) -> Float[Array, ""]:
    """What is left of the known ratings: `sum over known cells of (Y - U U' Y)^2`."""
    U, (Y, known, _, _) = _both(params), stacked(x, data)
    return data.sound * jnp.sum(jnp.where(known, Y - U @ (U.T @ Y), 0) ** 2)


def embed(params: Any, x: Float[Array, "F I"], data: Data) -> Any:
    """`U`, `Y' U` and the biases."""
    made = stacked(x, data)
    users = params["user"].shape[0]
    product = made.rating.T @ _both(params)
    return {"user": params["user"], "item": product, "item_bias": made.item, "user_bias": made.user[:users]}


def _both(params: Any) -> Float[Array, "U+F r"]:
    return jnp.concatenate([params["user"], params["fake"]])


def score(embedding: Any, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """`(U U' Y)_u + biases`."""
    product = embedding["user"][users] @ embedding["item"].T
    return product + embedding["item_bias"] + embedding["user_bias"][users][:, None]
