"""Influence through all parameters of any differentiable recommender, graph models and autoencoders included.

Koh, Liang, ICML 2017, eq. 2, at the full-batch loss: for the K items one solve each with Hessian products, for each of
the user's interactions one gradient of what it adds to the loss,

    l_z(theta) = L(theta; D) - L(theta; D without z),     D without z: also its edge, its cell, its place in a history

which costs as many passes over the data as the user has interactions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models.data.interactions import Interactions
from models.explain.blocks import Own
from models.train import Fitted


def drops(
    fitted: Fitted,
    train: Interactions,
    user: Int[Array, ""],
    items: Int[Array, " K"],
    own: Own,
    solver: bilevel.LinearSolver,
    key: Array,
    *,
    direct: bool,
) -> tuple[Float[Array, "K M"], Int[Array, " K"]]:
    """Drops of K scores without each of M events, when all parameters move; the codes of the solves.

    Args:
        fitted: any recommender trained by gradients.
        train: what it was trained on.
        user: id, may be traced.
        items: K ids.
        own: the user's events.
        solver: of the systems with the Hessian.
        key: of the negatives in the loss.
        direct: scores read the data beside the parameters, so a removal changes them at once.

    Reference: Koh, Liang, ICML 2017, eq. 2. **Differs from the paper:** removals that change the data at once, too.

    >>> from models.explain.blocks import own
    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2])
    >>> user, key = jnp.array(0), jax.random.key(0)
    >>> given = train, user, jnp.array([2]), own(train, user, 2), bilevel.cg(), key
    >>> found = lambda: drops(fit(wrmf(factors=2, epochs=1), train, key), *given, direct=False)[0]
    >>> jax.eval_shape(found).shape
    (1, 2)
    """
    model, params, x, data = fitted.model, fitted.params, fitted.x, fitted.data
    ctx = bilevel.Ctx(key, jnp.asarray(0))
    loss = lambda params, data: model.loss(params, x, data, ctx)
    scores = lambda params, data: model.score(model.embed(params, x, data), user[None])[0][items]
    matvec = jax.linearize(lambda p: jax.grad(loss)(p, data), params)[1]
    solved = lax.map(lambda slope: solver(matvec, slope), jax.jacrev(scores)(params, data))
    now = scores(params, data)

    def one(slot: Array) -> Float[Array, " K"]:
        keep = jnp.arange(train.capacity) != slot
        less = masked(data, model.prepare(train.keep(keep)), keep)
        part = jax.grad(lambda p: loss(p, data) - loss(p, less))(params)
        products = jax.tree.map(lambda w, g: jnp.tensordot(w, g, g.ndim), solved.value, part)
        return (now - scores(params, less) if direct else 0) - jnp.asarray(sum(jax.tree.leaves(products)))

    none = lambda slot: jnp.zeros_like(now)
    drop = lax.map(lambda given: lax.cond(given[1], one, none, given[0]), (own.slot, own.real))
    return drop.T, solved.code


def masked(data: Any, less: Any, keep: Bool[Array, " E"]) -> Any:
    """The prepared data without some events: columns of events stay in place and are masked, the rest is prepared anew.

    So the events that stay keep their place in the order in which negatives are drawn, and thereby their negatives.
    """
    if not hasattr(data, "_fields"):
        return less
    if {"user", "item", "real"} <= set(data._fields):
        return data._replace(real=data.real & keep)
    return type(data)(*(masked(a, b, keep) for a, b in zip(data, less, strict=True)))
