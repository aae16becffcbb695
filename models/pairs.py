"""Clicks beside sampled negatives: what pairwise and pointwise recommenders learn from, a minibatch at a time.

A step sees `B` of the E slots of real events, each with `N` items its user did not click, and as many of the F x I
relaxed cells of the fake users as there are steps in an epoch: every event and every cell once an epoch, so the work
follows the observed interactions. A real event weighs 1, a cell `x_fi`: a hard fake row is an ordinary user, and the
loss of a pair is a differentiable function of the relaxed one through its weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models.data import sample
from models.data.interactions import Interactions
from models.data.sample import Lists
from models.recommender import clicks_only, in_epochs, sound

TRIES = 16  # draws until an item is one that a fake user did not click


class Data(NamedTuple):
    """The E events, each user's items, a mask (F, I) or None that freezes which fake cells are clicks, 1 or NaN."""

    user: Int[Array, " E"]
    item: Int[Array, " E"]
    real: Bool[Array, " E"]
    lists: Lists
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]


class Pairs(NamedTuple):
    """`B` clicks: row of `[real users; fake users]`, item, `N` items not clicked, and the weight (0: padding)."""

    user: Int[Array, " B"]
    item: Int[Array, " B"]
    negative: Int[Array, "B N"]
    weight: Float[Array, " B"]


def prepare(train: Interactions, *, name: str) -> Data:
    """The clicks of the real users; works under `jit` and `vmap`."""
    train = clicks_only(name, train)
    return Data(train.user, train.item, train.mask, sample.lists(train), None, sound(train))


def batches(events: int, batch: int | None, name: str) -> bilevel.Minibatches | None:
    """Batches of event slots; None: all of them in every step."""
    if batch is None:
        return None
    if events < 1:
        raise ValueError(
            f"{name} learns from batches of events: give its trainer the capacity of the training data as the fourth "
            "argument, model.trainer(users, items, fakes, train.capacity)"
        )
    return bilevel.minibatches(events, min(batch, events))


def trainer(
    name: str,
    objective: Callable[..., Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch: int | None,
) -> Callable[..., bilevel.Inner]:
    """A `Recommender`'s trainer: every event slot once an epoch, in batches of `batch`.

    >>> objective = lambda params, x, data, ctx: jnp.sum(params**2)
    >>> trainer("bpr", objective, optax.sgd(0.1), epochs=3, batch=4)(5, 6, 0, 10)  # 3 batches of 10 events
    gradient_descent(steps=9)
    """
    return lambda users, items, fakes, events=0: in_epochs(
        objective, optimizer, epochs, batches(events, batch, name)
    )


def draw(data: Data, x: Float[Array, "F I"], ctx: Any, negatives: int) -> Pairs:
    """The pairs of a step, with fresh negatives from its key.

    Args:
        data: from `prepare`.
        x: (F, I) fake rows.
        ctx: of the step. `ctx.batch` picks among the event slots; None: all of them, and all cells.
        negatives: N.
    """
    users, items = data.lists.start.shape[0] - 1, x.shape[1]
    index, real = (jnp.arange(data.user.shape[0]), True) if ctx.batch is None else ctx.batch
    for_real, for_fake = jax.random.split(ctx.key)
    user = data.user[index]
    pairs = Pairs(
        user=user,
        item=data.item[index],
        negative=sample.negatives(for_real, data.lists, user, negatives, items),
        weight=(data.real[index] & real).astype(x.dtype),
    )
    if x.shape[0] == 0:
        return pairs
    fakes = _fakes(for_fake, data, x, ctx, index.shape[0], negatives, users)
    return Pairs(*(jnp.concatenate(both) for both in zip(pairs, fakes)))


def _fakes(key, data: Data, x: Float[Array, "F I"], ctx: Any, size: int, negatives: int, users: int) -> Pairs:
    """The step's share of the relaxed cells, each with items its fake user did not click."""
    I = x.shape[1]
    fake, item, inside = share(x, ctx, data.user.shape[0], size)
    clicks = jax.lax.stop_gradient(x) > 0 if data.observed is None else data.observed
    tried = jax.random.randint(key, (fake.shape[0], negatives, TRIES), 0, I)
    first = jnp.argmin(clicks[fake[:, None, None], tried], axis=2, keepdims=True)  # False sorts first
    negative = jnp.take_along_axis(tried, first, axis=2)[..., 0]
    return Pairs(fake + users, item, negative, jnp.where(inside, x[fake, item], 0))


def share(
    x: Float[Array, "F I"], ctx: Any, slots: int, size: int
) -> tuple[Int[Array, " N"], Int[Array, " N"], Bool[Array, " N"]]:
    """Fake row, item and whether it counts, of the cells of `x` that a step sees: each once in an epoch.

    >>> ctx = bilevel.Ctx(None, 1)
    >>> fake, item, inside = share(jnp.zeros((2, 3)), ctx, slots=8, size=2)  # 4 steps an epoch
    >>> fake.tolist(), item.tolist(), inside.tolist()
    ([0, 1], [1, 2], [True, True])
    """
    F, I = x.shape
    steps = -(-slots // size)
    cell = jnp.arange(-(-F * I // steps)) * steps + (0 if steps == 1 else ctx.step % steps)
    inside = cell < F * I
    return *jnp.divmod(jnp.where(inside, cell, 0), I), inside


def mean(weight: Float[Array, " B"], values: Float[Array, " B"]) -> Float[Array, ""]:
    """The weighted mean over the pairs of a step; 0 where no pair counts.

    >>> float(mean(jnp.array([1.0, 0.0, 1.0]), jnp.array([2.0, 9.0, 4.0])))
    3.0
    """
    total = jnp.sum(weight)
    return jnp.vdot(weight, values) / jnp.where(total > 0, total, 1)


def embed(params: Any, x: Float[Array, "F I"], data: Any) -> Any:
    """The parameters: scores read nothing else. NaN throughout if events were lost, also in rows no event looks up."""
    return jax.tree.map(lambda leaf: data.sound * leaf, params)


def joined(real: Float[Array, "U D"], fake: Float[Array, "F D"]) -> Float[Array, "U+F D"]:
    """The rows of real and fake users in one table; no copy where there is no fake user."""
    return real if fake.shape[0] == 0 else jnp.concatenate([real, fake])
