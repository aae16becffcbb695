"""CML: collaborative metric learning, where a user is close to the items it clicked.

Hsieh, Yang, Cui, Lin, Belongie, Estrin, *Collaborative metric learning*, WWW 2017; as a victim of Tang, Wen, Wang,
RecSys 2020 (RevAdv):

    s_ui = -|p_u - q_i|^2,    L = mean over clicks of w_ui [margin + |p_u - q_i|^2 - min_j |p_u - q_j|^2]_+

the minimum over `negatives` sampled items `j` that `u` did not click.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from models import bpr, pairs
from models.recommender import Recommender, counts, given, numbers, settings


def cml(
    *,
    factors: int = 256,
    learning_rate: float = 1e-3,
    margin: float = 10.0,
    l2: float = 1e-4,
    epochs: int = 100,
    batch: int | None = 512,
    negatives: int = 10,
    scale: float = 1.0,
    unit_ball: bool = False,
    rank_weight: bool = False,
) -> Recommender:
    """CML trained by Adam, as a `Recommender`.

    Args:
        factors: D >= 1.
        learning_rate: of Adam, > 0.
        margin: of squared distances, > 0.
        l2: `l2/2 |theta|^2` of all embeddings a batch looks up, summed, not averaged, >= 0.
        epochs: passes over the clicks, >= 1.
        batch: clicks per step; None: all of them.
        negatives: items drawn for each click, >= 1; the closest one counts.
        scale: standard deviation of the initial embeddings, > 0.
        unit_ball: put every embedding back into the unit ball after each step (the original).
        rank_weight: weigh a click by `log(1 + I M / N)`, M of the N negatives being within the margin: an estimate of
            the click's rank (the original). A constant for derivatives.

    Raises:
        ValueError: a number outside its range.

    Reference: Hsieh et al., WWW 2017, eqs 1-4; RevAdv's released code for the preset "revadv".

    **Differs from the paper:** by default RevAdv's form, without unit ball and rank weights (a margin of 10 cannot be
    met in the unit ball); preset "original" has both. The original sums the loss and
    trains by Adagrad; its feature loss and covariance penalty are left out.

    >>> cml(factors=4).init(jax.random.key(0), 3, 5, 0)["item"].shape
    (5, 4)
    """
    config = dict(locals())
    counts("cml", factors=factors, epochs=epochs, negatives=negatives, **given(batch=batch))
    numbers("cml", 0, open_end=True, learning_rate=learning_rate, margin=margin, scale=scale)
    numbers("cml", 0, l2=l2)
    objective = partial(loss, margin=margin, l2=l2, negatives=negatives, rank_weight=rank_weight)
    optimizer = optax.adam(learning_rate)
    if unit_ball:
        optimizer = optax.chain(optimizer, into_unit_ball())

    return Recommender(
        name="cml",
        config=config,
        prepare=partial(pairs.prepare, name="cml"),
        init=partial(bpr.init, factors=factors, scale=scale),
        loss=objective,
        embed=pairs.embed,
        score=score,
        trainer=pairs.trainer("cml", objective, optimizer, epochs, batch),
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "revadv": {},
    "original": {
        "factors": 100,
        "margin": 0.5,
        "l2": 0.0,
        "negatives": 10,
        "scale": 0.1,
        "unit_ball": True,
        "rank_weight": True,
    },
}
"""The settings of RevAdv's released code, and the form of the original paper."""


def preset(name: str, **changes: Any) -> Recommender:
    """CML with the settings of a paper; `changes` replace some of them.

    >>> preset("original").config["unit_ball"]
    True
    """
    return cml(**settings("cml", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def loss(
    params: Any,
    x: Float[Array, "F I"],
    data: pairs.Data,
    ctx: Any,
    *,
    margin: float,
    l2: float,
    negatives: int,
    rank_weight: bool,
) -> Float[Array, ""]:
    """The objective over the pairs of the step."""
    found = pairs.draw(data, x, ctx, negatives)
    p = pairs.joined(params["user"], params["fake"])[found.user]
    q, other = params["item"][found.item], params["item"][found.negative]
    near = jnp.sum((p - q) ** 2, 1)
    far = jnp.sum((p[:, None] - other) ** 2, 2)
    lost = jax.nn.relu(margin + near - jnp.min(far, 1))
    if rank_weight:
        within = jnp.mean(margin + near[:, None] > far, 1, dtype=near.dtype)
        lost *= jax.lax.stop_gradient(jnp.log1p(params["item"].shape[0] * within))
    looked_up = jnp.sum(p**2, 1) + jnp.sum(q**2, 1) + jnp.sum(other**2, (1, 2))
    return data.sound * (pairs.mean(found.weight, lost) + l2 / 2 * jnp.vdot(found.weight, looked_up))


def score(params: Any, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """`-|p_u - q_i|^2` for every item, without a (B, I, D) array."""
    p, q = params["user"][users], params["item"]
    return 2 * p @ q.T - jnp.sum(p**2, 1)[:, None] - jnp.sum(q**2, 1)


def into_unit_ball() -> optax.GradientTransformation:
    """The last link of an optax chain: rows that an update makes longer than 1 are scaled back to norm 1.

    >>> step = into_unit_ball()
    >>> step.update(jnp.array([[3.0, 0.0]]), step.init(None), jnp.array([[0.0, 4.0]]))[0].round(2).tolist()
    [[0.60..., -3.20...]]
    """

    def update(updates, state, params=None):
        def inside(step, rows):
            moved = rows + step
            square = jnp.sum(moved**2, -1, keepdims=True)
            longer = square > 1
            return jnp.where(longer, moved * jnp.where(longer, square, 1) ** -0.5, moved) - rows

        return jax.tree.map(inside, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
