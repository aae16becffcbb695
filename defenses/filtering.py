"""Filter, then train: the users that a detector finds most suspicious do not enter the training.

    flagged = users whose score lies above the (1 - level) quantile;  train' = train without their events

The number of fakes is never told: at a level of 5%, 5% of the users are lost whether anybody attacked or not, which is
the price of this defense and belongs into every table. `soft_filter` is the same idea as a differentiable weight, so
that an attacker who knows of it can be built: a defense is only believed against that one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bilevel import precompose
from defenses.detectors import Detector
from models.data import Interactions
from models.recommender import Recommender, numbers


def flagged(scores: Float[np.ndarray, " U"], level: float = 0.05) -> Bool[np.ndarray, " U"]:
    """The share `level` of users with the highest scores; of equal ones those of a fixed lot, whatever their ids.

    Injected users come last in data made here: a rule by id would know who they are.

    Args:
        scores: one a user, higher is more suspicious.
        level: share of users flagged, in [0, 1].

    Returns:
        (U,) truth values, `round(level U)` of them True.

    Raises:
        ValueError: a level outside its range.

    >>> flagged(np.array([0.1, 0.9, 0.5, 0.6]), 0.5).tolist()
    [False, True, False, True]
    """
    if not 0 <= level <= 1:
        raise ValueError(f"flagged: level={level}; expected a share in [0, 1]")
    lot = np.random.default_rng(0).permutation(scores.size)
    order = np.lexsort((lot, scores))
    found = np.zeros(scores.size, bool)
    found[order[scores.size - round(level * scores.size) :]] = True
    return found


def without(train: Interactions, users: Bool[np.ndarray, " U"]) -> Interactions:
    """`train` without the events of some users, who stay in the catalog as users without a click.

    >>> train = Interactions.from_arrays([0, 1], [0, 1])
    >>> int(without(train, np.array([True, False])).count)
    1
    """
    return train.keep(jnp.asarray(~np.asarray(users, bool))[train.user])


def filtered(
    train: Interactions, detector: Detector, level: float = 0.05
) -> tuple[Interactions, Bool[np.ndarray, " U"]]:
    """What is left to train on after a detector, and who was flagged.

    Args:
        train: interactions, with or without fake users among them.
        detector: from `defenses.detectors`.
        level: share of users flagged.

    **Differs from the paper:** the literature removes as many users as there are fakes, which nobody knows.

    >>> from defenses.detectors import duplicate
    >>> left, users = filtered(Interactions.from_arrays([0, 1, 2], [1, 0, 1]), duplicate, level=0.67)
    >>> users.tolist(), int(left.count)
    ([True, False, True], 1)
    """
    users = flagged(detector(train), level)
    return without(train, users), users


def soft_filter(
    model: Recommender,
    suspicion: Callable[[Float[Array, "F I"], Any], Float[Array, " F"]],
    *,
    cut: float,
    temperature: float = 0.05,
) -> Recommender:
    """`model` trained on fake rows that are scaled by how unsuspicious they look, a differentiable filter.

        x'_f = w(z_f) x_f,  w(z) = 1 / (1 + exp(-z)),  z_f = (cut - s(x_f)) / temperature

    A row far beyond the cut is not in the training at all, and w' = w (1 - w) is 0 there in floating point: nothing
    would move. Below z = -4 the derivative is therefore the larger of w' and 1 / (2 + |z|)^2.

    Use it as the surrogate of an adaptive attack (`attacks.revadv(soft_filter(...), ...)`): the derivative goes through
    the filter. Real users are not filtered, which favors the defender.

    Args:
        model: any recommender that takes fake rows.
        suspicion: `(x, data) -> (F,)` differentiable scores, such as those of `defenses.suspicion`, or `likeness`.
        cut: the score at which half is left, such as a quantile of the real users' scores.
        temperature: how soft, > 0, in the unit of the scores.

    Raises:
        ValueError: a number outside its range.

    **Differs from the paper:** not in a paper.

    **What it does not show:** far beyond the cut the derivative is alive but need not lead back: its sign is that of
    what a row of weight 0 would do to the loss, which is little. Copies of real users (RevAdv's `random_users`) are
    far beyond the cut of `duplicate`; hand the attack rows that pass (`initial=`). And a row at w = 0.1 is no tenth of
    a user: where a model weighs cells by whether they are clicked (WRMF), it is clicks of 0.1 at full weight.

    >>> from models.wrmf import wrmf
    >>> soft_filter(wrmf(), likeness, cut=0.5).name
    'filtered-wrmf'
    """
    numbers("soft_filter", 0, open_end=True, temperature=temperature)

    def left(x: Array, data: Any) -> Array:
        if x.shape[0] == 0:
            return x
        return x * _passes((cut - suspicion(x, data)) / temperature)[:, None]

    return dataclasses.replace(
        model,
        name=f"filtered-{model.name}",
        config={**model.config, "cut": cut, "temperature": temperature},
        loss=lambda params, x, data, ctx: model.loss(params, left(x, data), data, ctx),
        embed=lambda params, x, data: model.embed(params, left(x, data), data),
        trainer=lambda users, items, fakes, events=0: precompose(
            model.trainer(users, items, fakes, events), left
        ),
    )


@jax.custom_jvp
def _passes(z: Float[Array, " F"]) -> Float[Array, " F"]:
    """The logistic function, whose derivative stays alive far below 0."""
    return jax.nn.sigmoid(z)


@_passes.defjvp
def _(at, along):
    (z,), (way,) = at, along
    left = jax.nn.sigmoid(z)
    tail = jnp.where(z < -4, 1 / (2 + jnp.abs(z)) ** 2, 0)
    return left, jnp.maximum(left * (1 - left), tail) * way


def likeness(x: Float[Array, "F I"], data: Any = None) -> Float[Array, " F"]:
    """The largest cosine to another fake row: the differentiable side of `duplicate` and `deg_sim`.

    >>> likeness(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])).tolist()
    [1.0, 1.0, 0.0]
    """
    norm = jnp.sqrt(jnp.sum(x**2, 1, keepdims=True) + 1e-12)
    near = (x / norm) @ (x / norm).T
    return jnp.max(jnp.where(jnp.eye(x.shape[0], dtype=bool), 0.0, near), 1, initial=0.0)
