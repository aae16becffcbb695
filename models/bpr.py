"""BPR-MF: matrix factorization trained so that a clicked item scores above one that was not.

Rendle, Freudenthaler, Gantner, Schmidt-Thieme, *BPR: Bayesian personalized ranking from implicit feedback*, UAI 2009:

    s_ui = p_u . q_i
    L = mean over clicks (u, i) of  -log sigmoid(s_ui - s_uj)  +  l2/2 (|p_u|^2 + |q_i|^2 + |q_j|^2)

with `j` drawn uniformly from the items `u` did not click.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from models import pairs, wrmf
from models.recommender import Recommender, counts, given, numbers, settings, xavier


def bpr(
    *,
    factors: int = 64,
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    epochs: int = 100,
    batch: int | None = 2048,
    negatives: int = 1,
    scale: float | None = None,
) -> Recommender:
    """BPR-MF trained by Adam, as a `Recommender`.

    Args:
        factors: D >= 1.
        learning_rate: of Adam, > 0.
        l2: of the factors a pair looks up, gradient `l2 * theta`, >= 0.
        epochs: passes over the clicks, >= 1.
        batch: clicks per step; None: all of them.
        negatives: items drawn for each click, >= 1; their losses are averaged.
        scale: standard deviation of the initial factors, > 0; None: Xavier's, sqrt(2 / (users + D)) for users and
            sqrt(2 / (items + D)) for items.

    Raises:
        ValueError: a number outside its range.

    Reference: Rendle et al., UAI 2009, sections 4 and 5.

    **Differs from the paper:** Adam over shuffled clicks instead of SGD on bootstrapped triples; the loss is a mean.

    >>> bpr(factors=4).init(jax.random.key(0), 3, 5, 1)["item"].shape
    (5, 4)
    """
    config = dict(locals())
    counts("bpr", factors=factors, epochs=epochs, negatives=negatives, **given(batch=batch))
    numbers("bpr", 0, open_end=True, learning_rate=learning_rate, **given(scale=scale))
    numbers("bpr", 0, l2=l2)
    objective = partial(loss, l2=l2, negatives=negatives)

    return Recommender(
        name="bpr",
        config=config,
        prepare=partial(pairs.prepare, name="bpr"),
        init=partial(init, factors=factors, scale=scale),
        loss=objective,
        embed=pairs.embed,
        score=wrmf.score,
        trainer=pairs.trainer("bpr", objective, optax.adam(learning_rate), epochs, batch),
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "recbole": {"factors": 64, "learning_rate": 1e-3, "l2": 0.0, "batch": 2048, "epochs": 300},
}
"""The settings of papers and libraries, by name."""


def preset(name: str, **changes: Any) -> Recommender:
    """BPR-MF with the settings of a paper or a library; `changes` replace some of them.

    >>> preset("recbole", epochs=5).config["batch"]
    2048
    """
    return bpr(**settings("bpr", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def init(key: Array, users: int, items: int, fakes: int, *, factors: int, scale: float | None = None) -> Any:
    """Factors of users, items and fake users; the real users' do not depend on how many fakes there are."""
    for_user, for_item, for_fake = jax.random.split(key, 3)
    draw = lambda key, rows, like: (
        (xavier(like, factors) if scale is None else scale) * jax.random.normal(key, (rows, factors))
    )
    return {
        "user": draw(for_user, users, users),
        "item": draw(for_item, items, items),
        "fake": draw(for_fake, fakes, users),
    }


def loss(
    params: Any, x: Float[Array, "F I"], data: pairs.Data, ctx: Any, *, l2: float, negatives: int
) -> Float[Array, ""]:
    """The objective over the pairs of the step."""
    found = pairs.draw(data, x, ctx, negatives)
    user, item = pairs.joined(params["user"], params["fake"]), params["item"]
    return data.sound * ranking(user, item, found, l2)


def ranking(
    user: Float[Array, "R D"], item: Float[Array, "I D"], found: pairs.Pairs, l2: float
) -> Float[Array, ""]:
    """BPR's loss of given pairs for dot products of two tables, with the penalty of what they look up."""
    p, q, other = user[found.user], item[found.item], item[found.negative]
    gap = jnp.sum(p * q, 1)[:, None] - jnp.einsum("bd,bnd->bn", p, other)
    lost = jnp.mean(jax.nn.softplus(-gap), 1)
    penalty = jnp.sum(p**2, 1) + jnp.sum(q**2, 1) + jnp.mean(jnp.sum(other**2, 2), 1)
    return pairs.mean(found.weight, lost + l2 / 2 * penalty)
