"""Influence through all parameters of any differentiable recommender, graph models and autoencoders included.

Koh, Liang, ICML 2017, eq. 2, at the full-batch loss: for the K items one solve each with Hessian products, for each of
the user's interactions one gradient of what it adds to the loss,

    l_z(theta) = L(theta; D) - L(theta; D without z),     D without z: also its edge, its cell, its place in a history

which costs as many passes over the data as the user has interactions. Both losses must draw the same numbers for all
other events: each event keeps its place in the batch of all of them, whatever its place in the data (`without`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models.data.interactions import Interactions
from models.explain.blocks import Own
from models.recommender import Recommender
from models.train import Fitted

EVENTS = {"user", "item", "real"}
"""The columns by which prepared data show that a step of their loss draws for events."""
RELATIVE = 1e-4
"""The least damping where none is given, in the largest eigenvalue: above what float32 cannot tell from zero.

More of it bends what is known: where a factorization of ratings is trained until its Hessian is definite, the order of
the drops agrees with retraining for this share, and no longer for a tenth.
"""
BY_USER = ("multvae",)
"""Recommenders whose loss draws for users, who stay where they are when an event goes, but for its dropout."""


Solver = Callable[[Callable[[Any], Any], Any], bilevel.LinearResult]
"""`(v -> H v, b)` to a solution: a `bilevel.LinearSolver`, or one with a damping that is known in the run only."""


def solver_of(fitted: Fitted, train: Interactions, key: Array, damping: float | None) -> Solver:
    """Conjugate gradients for `H + d I`, with one d for all users and items: what is compared moves by one matrix.

        d = damping,  or where None  RELATIVE h_max + 2 max(0, -h_min)

    Losses are sums over cells, means over pairs or over users, so no one number suits them; and the Hessian of a
    network or a graph model is not definite where training stopped. The ends of the spectrum are those that 20
    Lanczos products find.

    Args:
        fitted, train, key: as in `drops`.
        damping: d >= 0; None: by the rule.

    Reference: Koh, Liang, ICML 2017, section 4.2, damp where the Hessian is not positive definite. **Differs from the
    paper:** by how much, which the paper leaves to the reader.

    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train, key = Interactions.from_arrays([0, 0, 1], [0, 1, 2]), jax.random.key(0)
    >>> solver = lambda: solver_of(fit(wrmf(factors=2, epochs=1), train, key), train, key, None)
    >>> jax.eval_shape(lambda: solver()(lambda v: 2 * v, jnp.ones(3))).value.shape
    (3,)
    """
    if damping is not None:
        return bilevel.cg(damping=damping, rtol=1e-4, max_steps=200)
    product = _hessian(fitted, train, key)
    added = bilevel.spectrum(product, fitted.params, steps=20).damping(RELATIVE)
    method = bilevel.cg(rtol=1e-4, max_steps=200)
    more = lambda image, v: image + added.astype(v.dtype) * v
    return lambda matvec, b: method(lambda v: jax.tree.map(more, matvec(v), v), b)


def drops(
    fitted: Fitted,
    train: Interactions,
    user: Int[Array, ""],
    items: Int[Array, " K"],
    own: Own,
    solver: Solver,
    key: Array,
    *,
    direct: bool,
) -> tuple[Float[Array, "K M"], Int[Array, " K"]]:
    """Drops of K scores without each of M events, when all parameters move; the codes of the solves.

    Args:
        fitted: any recommender trained by gradients that `check` lets pass.
        train: what it was trained on.
        user: id, may be traced.
        items: K ids.
        own: the user's events.
        solver: of the systems with the Hessian, such as `solver_of`.
        key: of the negatives in the loss.
        direct: scores read the data beside the parameters, so a removal changes them at once.

    Returns:
        The drops; NaN, with the code NON_FINITE, of an event without which the others cannot be found again.

    Reference: Koh, Liang, ICML 2017, eq. 2. **Differs from the paper:** removals that change the data at once, too. The
    loss is that of the last step; Mult-VAE's is without dropout, whose masks are drawn by places that a removal shifts.

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
    loss = _loss(fitted, train, key)
    scores = lambda params, data: model.score(model.embed(params, x, data), user[None])[0][items]
    matvec = _hessian(fitted, train, key)
    solved = lax.map(lambda slope: solver(matvec, slope), jax.jacrev(scores)(params, data))
    now = scores(params, data)

    def one(slot: Array) -> Float[Array, " K"]:
        rest = _prepared_without(model, train, slot)
        less = without(data, rest, user, train.item[slot])
        part = jax.grad(lambda p: loss(p, data) - loss(p, less.data, less.batch))(params)
        products = jax.tree.map(lambda w, g: jnp.tensordot(w, g, g.ndim), solved.value, part)
        drop = (now - scores(params, rest) if direct else 0) - jnp.asarray(sum(jax.tree.leaves(products)))
        return jnp.where(less.held, drop, jnp.nan)

    none = lambda slot: jnp.zeros_like(now)
    drop = lax.map(lambda given: lax.cond(given[1], one, none, given[0]), (own.slot, own.real)).T
    return drop, jnp.where(jnp.isnan(drop).any(1), int(bilevel.Code.NON_FINITE), solved.code)


class Rest(NamedTuple):
    """What a loss reads without an event: data, all events as a batch, and whether the others were found again."""

    data: Any
    batch: bilevel.Batch | None
    held: Bool[Array, ""] | bool


def without(data: Any, rest: Any, user: Int[Array, ""], item: Int[Array, ""]) -> Rest:
    """The data without an event, and a batch in which the others have the places they had: so they draw the same.

    The lists that negatives are drawn from stay what they were; everything else is prepared anew.

    Args:
        data: prepared with the event, in any order of events.
        rest: prepared without it.
        user, item: of the event.

    Returns:
        `Rest`; without a batch where the data have no columns of events.

    >>> from models.ncr import prepare
    >>> train = Interactions.from_arrays([0, 0, 0], [1, 2, 3], time=[9, 5, 7])
    >>> gone = lambda item: (prepare(train), prepare(train.keep(train.item != item)), jnp.array(0), item)
    >>> less = jax.jit(lambda item: without(*gone(item)))(3)  # by time the items are 2, 3, 1
    >>> less.batch.mask.tolist(), less.data.item[less.batch.index].tolist(), bool(less.held)
    ([True, False, True], [2, 2, 1], True)
    """
    events, left = _events(data), _events(rest)
    if events is None:
        return Rest(rest, None, True)
    keep = events.real & ~((events.user == user) & (events.item == item))
    index = jnp.maximum(jnp.cumsum(keep) - 1, 0)
    same = (left.user[index] == events.user) & (left.item[index] == events.item) & left.real[index]
    held = jnp.all(same | ~keep) & (jnp.sum(keep) == jnp.sum(left.real))
    return Rest(_with_lists(rest, data), bilevel.Batch(index, keep), held)


def check(fitted: Fitted, train: Interactions, key: Array) -> None:
    """Refuse a recommender whose loss could not draw the same numbers for all other events when one goes (host only).

    Args:
        fitted, train, key: as in `drops`.

    Raises:
        ValueError: its loss draws, but the data show no events; or they do, but the loss does not read `ctx.batch` as
            their slots, or their order is another one when an event goes.

    **Differs from the paper:** which has no such losses.

    >>> from models.wrmf import wrmf
    >>> train, model, key = Interactions.from_arrays([0, 0, 1], [0, 1, 2]), wrmf(factors=2), jax.random.key(0)
    >>> check(Fitted(model, model.init(key, 2, 3, 0), model.prepare(train), jnp.zeros((0, 3)), None), train, key)
    """
    name, shown = fitted.model.name, f"columns {', '.join(sorted(EVENTS))} of events"
    if _events(fitted.data) is None:
        if name not in BY_USER and np.unique(_draws(fitted, train, key)).size > 1:
            raise ValueError(
                f"influences: the loss of {name} draws numbers, and its data show no events to draw the same ones for "
                f"when one goes; give them {shown}, and a loss that reads ctx.batch as their slots"
            )
        return
    plain, everything, nothing, held = map(np.asarray, _reads(fitted, train, key))
    if not np.allclose(plain, everything, equal_nan=True) or everything == nothing:
        raise ValueError(
            f"influences: the data of {name} have {shown}, but its loss does not read ctx.batch as their slots: it is "
            f"{plain} without a batch, {everything} with all of them in one and {nothing} with none"
        )
    if not held:
        raise ValueError(
            f"influences: the data of {name} have {shown}, but not those of the training data, or in another order "
            "when one goes; prepare them in an order that does not depend on the other events"
        )


def _loss(fitted: Fitted, train: Interactions, key: Array) -> Any:
    """`(params, data, batch) -> loss` of the last step, with the same draws in every call."""
    model, x = fitted.model, fitted.x
    of = partial(model.loss, dropout=0.0) if model.name in BY_USER else model.loss
    steps = model.trainer(train.users, train.items, x.shape[0], train.capacity).steps
    return lambda params, data, batch=None: of(
        params, x, data, bilevel.Ctx(key, jnp.asarray(steps - 1), batch)
    )


def _hessian(fitted: Fitted, train: Interactions, key: Array) -> Callable[[Any], Any]:
    """`v -> H v` of the loss at the trained parameters, linearized once."""
    loss = _loss(fitted, train, key)
    return jax.linearize(lambda p: jax.grad(loss)(p, fitted.data), fitted.params)[1]


def _prepared_without(model: Recommender, train: Interactions, slot: Int[Array, ""]) -> Any:
    return model.prepare(train.keep(jnp.arange(train.capacity) != slot))


def _events(data: Any) -> Any:
    """The part of the data with the columns of events; None where there is none."""
    if not hasattr(data, "_fields"):
        return None
    if set(data._fields) >= EVENTS:
        return data
    return next((found for found in map(_events, data) if found is not None), None)


def _with_lists(rest: Any, data: Any) -> Any:
    """`rest` with the lists beside the columns of events as they are in `data`."""
    if not hasattr(data, "_fields"):
        return rest
    if set(data._fields) >= EVENTS:
        return rest._replace(lists=data.lists) if hasattr(data, "lists") else rest
    return type(data)(*map(_with_lists, rest, data))


@jax.jit
def _draws(fitted: Fitted, train: Interactions, key: Array) -> list[Array]:
    """The loss with two keys."""
    return [_loss(fitted, train, k)(fitted.params, fitted.data) for k in (key, jax.random.fold_in(key, 1))]


@jax.jit
def _reads(fitted: Fitted, train: Interactions, key: Array) -> tuple[Array, ...]:
    """The loss without a batch, with all events and with none in one; whether one could go and the others be found."""
    slots = jnp.arange(_events(fitted.data).user.shape[0])
    batches = (None, bilevel.Batch(slots, slots >= 0), bilevel.Batch(slots, slots < 0))
    losses = [_loss(fitted, train, key)(fitted.params, fitted.data, batch) for batch in batches]
    middle = train.count // 2
    rest = _prepared_without(fitted.model, train, middle)
    return *losses, jnp.asarray(without(fitted.data, rest, train.user[middle], train.item[middle]).held)
