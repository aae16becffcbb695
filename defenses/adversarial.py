"""Adversarial training: the recommender is trained at the worst small change of its embeddings as well.

He, He, Du, Chua, *Adversarial personalized ranking for recommendation*, SIGIR 2018 (APR), eqs 6-9; the baseline AT
of Wu et al. (APT), SIGIR 2021, eq. 2:

    Delta = epsilon g / |g|,  g = the gradient of L in an embedding, row by row
    minimize  L(theta) + weight L(theta + Delta),  Delta held constant
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bilevel import with_loss
from models.recommender import Params, Recommender, numbers


def adversarial(
    model: Recommender,
    *,
    epsilon: float = 0.03,
    weight: float = 1.0,
    start: int = 0,
    tables: Sequence[str] = ("user", "item", "fake"),
) -> Recommender:
    """A recommender hardened by adversarial training, to be fitted, attacked and judged like any other.

    Args:
        model: any recommender trained by gradient descent with embeddings among its parameters.
        epsilon: length of the change of a row, >= 0. APT's 0.03 is about 5% of its parameters' size; APR has 0.5.
        weight: of the loss at the changed embeddings, >= 0.
        start: epochs of plain training before, >= 0. Rows that begin near 0 (GMF's are 0.08 long) may never leave it
            under changes of their own length: on MovieLens-100K GMF learns nothing at 0.03 from the first epoch.
        tables: names of the parameters that are changed, at any depth.

    Returns:
        `model` with another loss; initialization, optimizer, batches and scores are its own.

    Raises:
        ValueError: a number outside its range; when trained, no parameter of these names, or a model without a
            gradient-descent loop (ALS).

    Reference: He et al., SIGIR 2018; Wu et al., SIGIR 2021, eq. 2.

    **Differs from the paper:** APR takes `g` without the L2 term and begins after BPR has converged (give `start`);
    APT's table names neither a weight nor a start: 1, and from the first epoch. An attack that differentiates through
    the training takes the change `Delta` as constant in its rows, as the training does in the parameters.

    **What it does not stop:** small changes of parameters are not what injected users make; in APT's tables it lowers
    the target hit rate little. An attacker who knows of it uses `adversarial(surrogate)` as surrogate.

    >>> from models.wrmf import wrmf
    >>> adversarial(wrmf(factors=4), epsilon=0.1).name
    'adversarial-wrmf'
    """
    numbers("adversarial", 0, epsilon=epsilon, weight=weight)
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise ValueError(f"adversarial: start={start!r}; expected a number of epochs, an integer >= 0")
    tables = tuple(tables)

    def loss(params, x, data, ctx, since=0):
        value, slope = jax.value_and_grad(model.loss)(
            lax.stop_gradient(params), lax.stop_gradient(x), data, ctx
        )
        del value
        moved = jax.tree.map(jnp.add, params, worst(slope, epsilon, tables))
        much = weight if since == 0 else jnp.where(ctx.step < since, 0.0, weight)
        return model.loss(params, x, data, ctx) + much * model.loss(moved, x, data, ctx)

    def trainer(users, items, fakes, events=0):
        inner = model.trainer(users, items, fakes, events)
        try:
            return with_loss(inner, functools.partial(loss, since=start * inner.steps_per_epoch))
        except TypeError as problem:
            raise ValueError(f"adversarial: {model.name} is not trained by gradient descent") from problem

    return dataclasses.replace(
        model,
        name=f"adversarial-{model.name}",
        config={
            **model.config,
            "epsilon": epsilon,
            "adversarial_weight": weight,
            "start": start,
            "tables": tables,
        },
        loss=loss,
        trainer=trainer,
    )


def worst(slope: Params, epsilon: float, tables: Sequence[str]) -> Params:
    """The change of the parameters of each row that raises the loss most, to first order: length `epsilon`, or 0.

    Raises:
        ValueError: no parameter has one of the names.

    >>> worst({"user": jnp.array([[3.0, 4.0], [0.0, 0.0]])}, 0.5, ["user"])["user"].tolist()
    [[0.30..., 0.40...], [0.0, 0.0]]
    """
    found = []

    def one(path, g):
        if not any(getattr(key, "key", None) in tables for key in path):
            return jnp.zeros_like(g)
        found.append(path)
        return lax.stop_gradient(epsilon * _unit(g))

    change = jax.tree_util.tree_map_with_path(one, slope)
    if not found:
        known = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(slope)]
        raise ValueError(f"adversarial: tables={tuple(tables)!r}, but the parameters are {', '.join(known)}")
    return change


def _unit(g: Float[Array, "... D"]) -> Float[Array, "... D"]:
    norm = jnp.sqrt(jnp.sum(g**2, -1, keepdims=True))
    return jnp.where(norm > 0, g / jnp.where(norm > 0, norm, 1), 0)
