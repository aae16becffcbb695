"""PCMF: ratings completed through a projection learned by multiplicative updates; APT's robust baseline.

Bampis, Rusu, Hajj, Bovik, *Robust matrix factorization for collaborative filtering in recommender systems*, Asilomar
2017, with the settings of the authors' released code; as in Wu et al. (APT), SIGIR 2021:

    repeat: fill the missing cells of Y with (U U' Y)_ui;
            20 times  U <- U * |q|^eta sign(q),   q = 2 A U / (U (U' A U) + A U (U' U)),   A = Y_filled Y_filled'
    prediction: U U' Y + biases

Neither `A` nor `Y_filled` is formed: what is filled in has the rank of U, so `Y_filled = U (U' Y) + R` with `R` the
part of `Y - U U' Y` on known cells, and `A U = Y_filled (Y_filled' U)` is made of thin and sparse products.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models import sparse
from models.data.interactions import Interactions
from models.recommender import Recommender, counts, numbers, ratings_only, sound
from models.sparse import Observed


class Data(NamedTuple):
    """The rated cells, their E ratings in that order, the mask of fake cells, 1 or NaN, and whether to center."""

    cells: Observed
    rating: Float[Array, " E"]
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]
    center: Float[Array, ""]


class Ratings(NamedTuple):
    """Numbers at the known cells of `[real users; fake users]`: at the E rated ones, and (F, I) with 0 elsewhere."""

    cells: Observed
    real: Float[Array, " E"]
    fake: Float[Array, "F I"]


class Centered(NamedTuple):
    """Ratings with mean and biases taken off, which fake cells are known, and what was taken off."""

    ratings: Ratings
    known: Bool[Array, "F I"]
    item: Float[Array, " I"]
    user: Float[Array, " U"]


def pcmf(
    *, rank: int = 12, fills: int = 50, updates: int = 20, exponent: float = 0.5, center: bool = True
) -> Recommender:
    """PCMF as a `Recommender` of ratings.

    Args:
        rank: columns r of U, >= 1.
        fills: times the missing cells are filled in, >= 1.
        updates: multiplicative updates after each, >= 1.
        exponent: eta of the signed power, in (0, 1].
        center: take off the mean, then the items', then the users' mean residual. False: Y as it is, missing cells 0,
            as APT's numbers suggest: the baseline `pcmf` of the studies of APT and of `run_defense.py`. What centering
            leaves of the recommender is on the page of `apt-table2`.

    Raises:
        ValueError: a number outside its range; data without ratings.

    Reference: Bampis et al., Asilomar 2017; compared with in APT (SIGIR 2021), section 5.

    **Differs from the paper:** nothing known if centered; APT does not say whether its baseline is, and prints U with
    one column a rated item, where its code has r. Entries of U change sign where A U is negative, as in the code. Work
    and memory follow the ratings, and the cells of fake rows, which hold ratings as they are given, 0 where there is
    none. The signed root has no derivative where its argument crosses 0: this is a victim, not a surrogate. Hundreds of
    updates multiply a change of the last digit until the parameters have nothing in common.

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
    """The ratings by user; works under `jit` and `vmap`."""
    train = ratings_only("pcmf", train)
    layout = sparse.observed(train.user, train.item, train.mask, train.users, train.items)
    rating = jnp.where(train.mask, train.weight, 0)  # one event a cell in row order: slot k is event k
    rating = jnp.pad(rating, (0, layout.row.shape[0] - rating.shape[0]))
    return Data(layout, rating, None, sound(train), jnp.asarray(center, rating.dtype))


def stacked(x: Float[Array, "F I"], data: Data) -> Centered:
    """Real and fake rows, less the mean of all ratings, then the items' and then the users' mean residual."""
    cells, users, items = data.cells, data.cells.row_start.shape[0] - 1, x.shape[1]
    rated = x > 0 if data.observed is None else data.observed
    inside = jnp.arange(cells.row.shape[0]) < cells.row_start[-1]
    per_item = jnp.diff(cells.col_start) + jnp.sum(rated, 0)
    per_user, per_fake = jnp.diff(cells.row_start), jnp.sum(rated, 1)
    by_item = lambda real: sparse.spread_back(real, jnp.ones((users, 1), real.dtype), cells)[:, 0]
    by_user = lambda real: sparse.spread(real, jnp.ones((items, 1), real.dtype), cells)[:, 0]
    less = lambda real, of_real, fake, of_fake: (
        jnp.where(inside, real - of_real, 0),
        jnp.where(rated, fake - of_fake, 0),
    )
    real, fake = less(data.rating, 0, x, 0)
    level = data.center * (jnp.sum(real) + jnp.sum(fake)) / jnp.maximum(jnp.sum(per_item), 1)
    real, fake = less(real, level, fake, level)
    item = data.center * (by_item(real) + jnp.sum(fake, 0)) / jnp.maximum(per_item, 1)
    real, fake = less(real, item[cells.col], fake, item)
    user = data.center * by_user(real) / jnp.maximum(per_user, 1)
    own = data.center * jnp.sum(fake, 1) / jnp.maximum(per_fake, 1)
    real, fake = less(real, user[cells.row], fake, own[:, None])
    return Centered(Ratings(cells, real, fake), rated, level + item, user)


def forth(Y: Ratings, B: Float[Array, "I r"]) -> Float[Array, "U+F r"]:
    """`Y B`."""
    return jnp.concatenate([sparse.spread(Y.real, B, Y.cells), Y.fake @ B])


def back(Y: Ratings, U: Float[Array, "U+F r"]) -> Float[Array, "I r"]:
    """`Y' U`."""
    users = Y.cells.row_start.shape[0] - 1
    return sparse.spread_back(Y.real, U[:users], Y.cells) + Y.fake.T @ U[users:]


def missed(made: Centered, U: Float[Array, "U+F r"], B: Float[Array, "I r"]) -> Ratings:
    """`R = Y - U B'` on the known cells."""
    Y, users = made.ratings, made.user.shape[0]
    real = Y.real - sparse.sampled(U[:users], B, Y.cells)
    return Ratings(Y.cells, real, jnp.where(made.known, Y.fake - U[users:] @ B.T, 0))


def refill(
    params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, updates: int, exponent: float
) -> Any:
    """One round: fill the missing cells, then the multiplicative updates."""
    old, made = _both(params), stacked(x, data)
    B = back(made.ratings, old)
    R = missed(made, old, B)

    def update(U, _):
        turned = B @ (old.T @ U) + back(R, U)  # Y_filled' U
        image = old @ (B.T @ turned) + forth(R, turned)
        below = U @ (U.T @ image) + image @ (U.T @ U)
        q = 2 * image / jnp.where(jnp.abs(below) > 1e-12, below, 1e-12)
        return U * jnp.sign(q) * jnp.maximum(jnp.abs(q), 1e-30) ** exponent, None

    U, _ = jax.lax.scan(update, old, None, length=updates)
    users = params["user"].shape[0]
    return {"user": data.sound * U[:users], "fake": U[users:]}


def residual(params: Any, x: Float[Array, "F I"], data: Data) -> Float[Array, ""]:
    """What is left of the known ratings: `sum over known cells of (Y - U U' Y)^2`."""
    U, made = _both(params), stacked(x, data)
    R = missed(made, U, back(made.ratings, U))
    return data.sound * (jnp.vdot(R.real, R.real) + jnp.vdot(R.fake, R.fake))


def embed(params: Any, x: Float[Array, "F I"], data: Data) -> Any:
    """`U`, `Y' U` and the biases."""
    made = stacked(x, data)
    product = back(made.ratings, _both(params))
    return {"user": params["user"], "item": product, "item_bias": made.item, "user_bias": made.user}


def _both(params: Any) -> Float[Array, "U+F r"]:
    return jnp.concatenate([params["user"], params["fake"]])


def score(embedding: Any, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """`(U U' Y)_u + biases`."""
    product = embedding["user"][users] @ embedding["item"].T
    return product + embedding["item_bias"] + embedding["user_bias"][users][:, None]
