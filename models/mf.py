"""Matrix factorization of ratings, trained by Adagrad: the victim of APT.

Wu, Lian, Ge, Zhu, Chen, Yuan, *Fight fire with fire: Towards robust recommender systems via adversarial poisoning
training*, SIGIR 2021, eq. 1:

    L = mean over observed (u, i) of (r_ui / r_max - p_u . q_i)^2  +  l2 (mean p^2 + mean q^2),    no biases

The means run over the batch. Predictions are on the scaled range (0, 1] and are not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from models import lightgcn, pairs, wrmf
from models.data.interactions import Interactions
from models.recommender import Recommender, counts, given, numbers, ratings_only, settings, sound


class Data(NamedTuple):
    """E ratings divided by the largest, an optional (F, I) mask of the fake cells that are ratings, and 1 or NaN."""

    user: Int[Array, " E"]
    item: Int[Array, " E"]
    rating: Float[Array, " E"]
    real: Bool[Array, " E"]
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]


def mf(
    *,
    factors: int = 64,
    learning_rate: float = 10.0,
    l2: float = 1e-12,
    highest: float = 5.0,
    epochs: int = 25,
    batch: int | None = 4096,
) -> Recommender:
    """Matrix factorization of ratings by Adagrad, as a `Recommender`.

    Args:
        factors: D >= 1.
        learning_rate: of Adagrad, > 0. It is large because the loss is a mean: a row's gradient is of order 1/batch.
        l2: of the looked-up factors, >= 0.
        highest: the largest rating r_max, > 0, by which ratings are divided.
        epochs: passes over the ratings, >= 1.
        batch: ratings per step; None: all of them.

    Raises:
        ValueError: a number outside its range.

    Reference: Wu et al. (APT), SIGIR 2021, eq. 1 and section 5.1; its released code for rate, batch and initialization.

    **Differs from the paper:** eq. 1 is printed with sums; the code averages, and so do we. Fake rows `x` hold scaled
    ratings, 0 where there is none; a cell above 0 counts as observed, and derivatives hold that constant.

    >>> preset("apt-filmtrust").config["highest"]
    8.0
    """
    config = dict(locals())
    counts("mf", factors=factors, epochs=epochs, **given(batch=batch))
    numbers("mf", 0, open_end=True, learning_rate=learning_rate, highest=highest)
    numbers("mf", 0, l2=l2)
    objective = partial(loss, l2=l2)
    adagrad = optax.adagrad(learning_rate, initial_accumulator_value=0.1, eps=1e-10)

    return Recommender(
        name="mf",
        config=config,
        prepare=partial(prepare, highest=highest, name="mf"),
        init=partial(lightgcn.init, factors=factors, scale=None),
        loss=objective,
        embed=pairs.embed,
        score=wrmf.score,
        trainer=pairs.trainer("mf", objective, adagrad, epochs, batch),
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "apt-ml-100k": {},
    "apt-ml-1m": {},
    "apt-filmtrust": {"highest": 8.0},
    "apt-yelp": {"learning_rate": 15.0},
}
"""The settings of APT's released code, by name."""


def preset(name: str, **changes: Any) -> Recommender:
    """MF with the settings of a paper; `changes` replace some of them.

    >>> preset("apt-yelp").config["learning_rate"]
    15.0
    """
    return mf(**settings("mf", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions, *, highest: float, name: str) -> Data:
    """The ratings of the real users, scaled; works under `jit` and `vmap`."""
    train = ratings_only(name, train)
    return Data(train.user, train.item, train.weight / highest, train.mask, None, sound(train))


def drawn(
    data: Data, x: Float[Array, "F I"], ctx: Any, users: int
) -> tuple[Int[Array, " B"], Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Row of `[real users; fake users]`, item, rating and weight (0: not observed) of what the step sees."""
    slots = data.user.shape[0]
    index, real = (jnp.arange(slots), True) if ctx.batch is None else ctx.batch
    own = (
        data.user[index],
        data.item[index],
        data.rating[index].astype(x.dtype),
        (data.real[index] & real).astype(x.dtype),
    )
    if x.shape[0] == 0:
        return own
    fake, item, inside = pairs.share(x, ctx, slots, index.shape[0])
    rated = x > 0 if data.observed is None else data.observed
    cells = (fake + users, item, x[fake, item], (rated[fake, item] & inside).astype(x.dtype))
    user, item, rating, weight = (jnp.concatenate(two) for two in zip(own, cells))
    return user, item, rating, weight


def level(data: Data, x: Float[Array, "F I"]) -> Float[Array, ""]:
    """The mean of all ratings, real and fake: a fake user's are ratings like any other.

    >>> data = prepare(Interactions.from_arrays([0, 1], [0, 1], [2.0, 4.0]), highest=1.0, name="mf")
    >>> float(level(data, jnp.array([[0.0, 3.0], [3.0, 0.0]])))
    3.0
    """
    rated = (x > 0 if data.observed is None else data.observed).astype(x.dtype)
    total = jnp.sum(jnp.where(data.real, data.rating, 0)) + jnp.sum(rated * x)
    return total / jnp.maximum(jnp.sum(data.real) + jnp.sum(rated), 1)


def loss(params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, l2: float) -> Float[Array, ""]:
    """The objective over the ratings of the step."""
    user, item, rating, weight = drawn(data, x, ctx, params["user"].shape[0])
    p, q = pairs.joined(params["user"], params["fake"])[user], params["item"][item]
    error = (rating - jnp.sum(p * q, 1)) ** 2
    return data.sound * pairs.mean(weight, error + l2 * (jnp.mean(p**2, 1) + jnp.mean(q**2, 1)))
