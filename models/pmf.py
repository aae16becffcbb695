"""PMF: probabilistic matrix factorization, by gradient descent with momentum.

Salakhutdinov, Mnih, *Probabilistic matrix factorization*, NIPS 2007, eq. 4; as the victim of Song et al., ICDE 2020
(PoisonRec):

    L = mean over observed (u, i) of (r_ui - p_u . q_i)^2 + l2/2 (|p_u|^2 + |q_i|^2)

Ratings have their mean taken off, which predictions do not need back: it changes no ranking. Of clicks alone a constant
1 is the optimum, so to the term of each click those of `negatives` items not clicked are added, whose value is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from models import bpr, mf, pairs, wrmf
from models.data.interactions import Interactions
from models.recommender import Recommender, counts, given, numbers, settings


def pmf(
    *,
    factors: int = 64,
    learning_rate: float = 5.0,
    momentum: float = 0.8,
    l2: float = 0.05,
    epochs: int = 50,
    batch: int | None = 1000,
    negatives: int = 4,
    scale: float = 0.1,
) -> Recommender:
    """PMF on clicks or on ratings, as a `Recommender`.

    Args:
        factors: D >= 1.
        learning_rate: of gradient descent on the *mean* loss of a batch, > 0.
        momentum: in [0, 1).
        l2: of the looked-up factors, gradient `l2 * theta`, >= 0.
        epochs: passes over the events, >= 1.
        batch: events per step; None: all of them.
        negatives: zeros drawn for each click, >= 1; of no use for ratings, which are learned alone.
        scale: standard deviation of the initial factors, > 0.

    Raises:
        ValueError: a number outside its range.

    Reference: Salakhutdinov, Mnih, NIPS 2007, eq. 4.

    **Differs from the paper:** no sigmoid around the product. The zeros for clicks are ours, and so are rate and
    penalty: a rate of 50, which goes with batches of 100,000 ratings, diverges with batches of 1,000. Fake rows hold
    ratings as they are given, 0 where there is none.

    >>> import jax
    >>> pmf(factors=4).init(jax.random.key(0), 3, 5, 0)["user"].shape
    (3, 4)
    """
    config = dict(locals())
    counts("pmf", factors=factors, epochs=epochs, negatives=negatives, **given(batch=batch))
    numbers("pmf", 0, open_end=True, learning_rate=learning_rate, scale=scale)
    numbers("pmf", 0, l2=l2, momentum=momentum)
    if momentum >= 1:
        raise ValueError(f"pmf: momentum={momentum!r}; expected a number in [0, 1)")
    optimizer = optax.sgd(learning_rate, momentum=momentum)
    objective = partial(loss, l2=l2, negatives=negatives)

    return Recommender(
        name="pmf",
        config=config,
        prepare=prepare,
        init=partial(bpr.init, factors=factors, scale=scale),
        loss=objective,
        embed=pairs.embed,
        score=wrmf.score,
        trainer=pairs.trainer("pmf", objective, optimizer, epochs, batch),
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {"poisonrec": {}}
"""The settings of papers, by name (PoisonRec names the algorithm and no setting)."""


def preset(name: str, **changes: Any) -> Recommender:
    """PMF with the settings of a paper; `changes` replace some of them.

    >>> preset("poisonrec", epochs=5).config["momentum"]
    0.8
    """
    return pmf(**settings("pmf", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions) -> pairs.Data | mf.Data:
    """Clicks to draw zeros for, or ratings; works under `jit` and `vmap`."""
    if train.track != "explicit":
        return pairs.prepare(train, name="pmf")
    return mf.prepare(train, highest=1.0, name="pmf")


def loss(
    params: Any, x: Float[Array, "F I"], data: Any, ctx: Any, *, l2: float, negatives: int
) -> Float[Array, ""]:
    """The objective over the events of the step."""
    user, item = pairs.joined(params["user"], params["fake"]), params["item"]
    if isinstance(data, mf.Data):
        at, what, rating, weight = mf.drawn(data, x, ctx, params["user"].shape[0])
        errors = _squares(user[at], item[what], rating - mf.level(data, x), l2)
        return data.sound * pairs.mean(weight, errors)
    found = pairs.draw(data, x, ctx, negatives)
    p = user[found.user]
    errors = _squares(p, item[found.item], jnp.ones(()), l2)
    errors += jnp.sum(_squares(p[:, None], item[found.negative], jnp.zeros(()), l2), 1)
    return data.sound * pairs.mean(found.weight, errors)


def _squares(p: Array, q: Array, target: Array, l2: float) -> Array:
    return (target - jnp.sum(p * q, -1)) ** 2 + l2 / 2 * (jnp.sum(p**2, -1) + jnp.sum(q**2, -1))
