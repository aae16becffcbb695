"""Influence through few parameters: of one user, or of one user and one item, everything else held.

A user's own problem is a data set with one user: its interactions, its vectors, the item side as it was trained. That
makes it small, whatever the size of the data, and the same for every recommender whose scores rest on vectors of users
(Cheng, Shen, Huang, KDD 2019, eq. 9, and ACCENT's two recipes). The systems are at most a few hundred unknowns, solved
directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models.data import sample
from models.data.interactions import Interactions
from models.explain import attention
from models.train import Fitted

USER, ITEM, FAKE = ("user", "tower_user"), ("item", "tower_item"), ("fake", "tower_fake")
"""The names of embeddings in a tree of parameters."""


class Own(NamedTuple):
    """A user's M events: slot in the data, item, weight; False where there is none."""

    slot: Int[Array, " M"]
    item: Int[Array, " M"]
    weight: Float[Array, " M"]
    real: Bool[Array, " M"]


def own(train: Interactions, user: Int[Array, ""], size: int) -> Own:
    """The events of a user, padded to `size`.

    >>> own(Interactions.from_arrays([0, 1, 1], [4, 0, 2]), jnp.array(1), 3).item.tolist()
    [0, 2, 4]
    """
    pointers, places = train.row_pointers(), jnp.arange(size)
    real = places < pointers[user + 1] - pointers[user]
    slot = jnp.where(real, pointers[user] + places, 0)
    item = jnp.where(real, train.item[slot], train.items - 1)
    return Own(slot, item, jnp.where(real, train.weight[slot], 0), real)


def one_user(train: Interactions, own: Own) -> Interactions:
    """The same events as a data set with one user."""
    none = jnp.zeros(own.item.shape, jnp.int32)
    return Interactions(none, own.item, own.weight, None, 1, train.items, train.track)


def _tables(params: Any, block: Any) -> Any:
    """The parameters with the vectors of a block as the only rows of their tables, and no fake users."""
    rows = {name: row[None] for name, row in block.items()}
    return {**params, **rows, **{name: params[name][:0] for name in FAKE if name in params}}


def _vectors(params: Any, names: tuple[str, ...], row: Int[Array, ""]) -> dict[str, Array]:
    return {name: params[name][row] for name in names if name in params}


# ------------------------------------------------------------------------------------------------ of one user


class Problem(NamedTuple):
    """A user's own problem in its vectors: the loss, the part of event j in it, the scores of all items."""

    loss: Callable[[Any], Array]
    part: Callable[[Any, Array], Array]
    scores: Callable[[Any], Array]


def problem(fitted: Fitted, train: Interactions, own: Own, key: Array) -> Problem:
    """The training loss as a function of a user's vectors, on the scale of a mean over its events.

    Losses over events are sums of rows; each row keeps its own key, hence its negatives, whatever else is removed.
    Losses over all cells of a user are compared with and without a click.

    Args:
        fitted: a recommender whose scores rest on vectors of users.
        train: what it was trained on.
        own: the user's events.
        key: of the negatives.

    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2])
    >>> fitted = fit(wrmf(factors=2, epochs=1), train, jax.random.key(0))
    >>> mine = problem(fitted, train, own(train, jnp.array(0), 2), jax.random.key(0))
    >>> mine.scores({"user": jnp.zeros(2)}).tolist()
    [0.0, 0.0, 0.0]
    """
    model, params, mine = fitted.model, fitted.params, one_user(train, own)
    x, data = jnp.zeros((0, train.items)), model.prepare(mine)
    scores = lambda block: model.score(model.embed(_tables(params, block), x, data), jnp.zeros(1, int))[0]
    if not hasattr(data, "real"):

        def at(block, data):
            return model.loss(_tables(params, block), x, data, bilevel.Ctx(key, jnp.asarray(0)))

        def without(block, j):
            kept = mine.keep(jnp.arange(own.item.shape[0]) != j)
            return at(block, data) - at(block, model.prepare(kept))

        return Problem(lambda block: at(block, data), without, scores)

    n = jnp.maximum(jnp.sum(own.real), 1).astype(x.dtype)
    total = train.count.astype(x.dtype)

    def row(block, j, there):
        batch = bilevel.Batch(jnp.atleast_1d(j), jnp.atleast_1d(there))
        ctx = bilevel.Ctx(jax.random.fold_in(key, j), jnp.asarray(0), batch)
        return model.loss(_tables(params, block), x, data, ctx)

    penalty = lambda block: row(
        block, jnp.asarray(0), jnp.asarray(False)
    )  # of parameters, whatever is looked up
    part = lambda block, j: (row(block, j, own.real[j]) - penalty(block)) / n

    def loss(block):
        parts = jax.vmap(part, (None, 0))(block, jnp.arange(own.item.shape[0]))
        return jnp.sum(parts) + total / n * penalty(block)

    return Problem(loss, part, scores)


def of_user(
    fitted: Fitted,
    train: Interactions,
    user: Int[Array, ""],
    items: Int[Array, " K"],
    own: Own,
    damping: float,
    key: Array,
) -> tuple[Float[Array, "K M"], Int[Array, " K"]]:
    """Drops of K scores without each of M events, when the user's vectors move; and the codes of the solves.

    Args:
        fitted, train, own, key: as in `problem`.
        user: id, may be traced.
        items: K ids.
        damping: added to the Hessian.

    Reference: Cheng, Shen, Huang, KDD 2019, eq. 9. **Differs from the paper:** an item's vectors are held.

    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2])
    >>> user, key = jnp.array(0), jax.random.key(0)
    >>> fitted = lambda: fit(wrmf(factors=2, epochs=1), train, key)
    >>> drops = lambda: of_user(fitted(), train, user, jnp.array([2]), own(train, user, 2), 0.1, key)[0]
    >>> jax.eval_shape(drops).shape
    (1, 2)
    """
    of = problem(fitted, train, own, key)
    block = _vectors(fitted.params, USER, user)
    matvec = jax.linearize(jax.grad(of.loss), block)[1]
    slopes = jax.jacrev(lambda block: of.scores(block)[items])(block)
    solved = jax.vmap(lambda slope: bilevel.dense(damping=damping)(matvec, slope))(slopes)
    parts = jax.vmap(jax.grad(of.part), (None, 0))(block, jnp.arange(own.item.shape[0]))
    return -_products(solved.value, parts), solved.code


def _products(left: Any, right: Any) -> Float[Array, "K M"]:
    """`sum over leaves of left_k . right_m`."""
    flat = lambda leaf: leaf.reshape(leaf.shape[0], -1)
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jnp.asarray(sum(flat(a) @ flat(b).T for a, b in pairs))


# ------------------------------------------------------------------------------------------------ of pairs


def of_pairs(
    fitted: Fitted,
    train: Interactions,
    user: Int[Array, ""],
    items: Int[Array, " K"],
    own: Own,
    damping: float,
    at_item: int,
) -> tuple[Float[Array, "K M"], Int[Array, " K"]]:
    """Drops when the vectors of user and item move, from the ratings that share one of them (ACCENT's NCF).

    The pair is not in the data, so the Hessian has two blocks: the user's, which all items share up to its ridge, and
    the item's, through which only the penalty of a removed row acts.

    Args:
        fitted, train, user, items, own, damping: as in `of_user`, of a recommender of ratings.
        at_item: at least the most ratings of one item.

    Reference: Cheng, Shen, Huang, KDD 2019, eq. 9; ACCENT's code for NCF. **Differs from the paper:** nothing.

    >>> from models.ncf import gmf
    >>> from models.train import fit
    >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2], [5.0, 3.0, 1.0])
    >>> fitted = lambda: fit(gmf(factors=2, epochs=1, objective="ratings"), train, jax.random.key(0))
    >>> user = jnp.array(0)
    >>> drops = lambda: of_pairs(fitted(), train, user, jnp.array([2]), own(train, user, 2), 0.1, 1)[0]
    >>> jax.eval_shape(drops).shape
    (1, 2)
    """
    model, params = fitted.model, fitted.params
    decay = model.config.get("weight_decay", 0.0)
    u = _vectors(params, USER, user)
    of_item = lambda item: _vectors(params, ITEM, item)
    n, count = jnp.sum(own.real).astype(float), train.popularity()[items].astype(float)
    related = jnp.maximum(n + count, 1)

    def rows(of: Any, others: Any, rating: Array, real: Array, flip: bool) -> Callable[[Any], Array]:
        """Losses of single ratings as a function of one side."""
        one = lambda b, other, r: _rating(fitted, *((other, b) if flip else (b, other)), r)
        return lambda b: jnp.where(real, jax.vmap(one, (None, 0, 0))(b, others, rating), 0)

    mine = rows(u, jax.vmap(of_item)(own.item), own.weight, own.real, False)
    hessian = _matrix(lambda b: jnp.sum(mine(b)), u)
    slopes = jax.vmap(lambda i: jax.grad(_pair, (1, 2))(fitted, u, of_item(i)))(items)
    ridge = count * decay + related * damping
    solved = jax.vmap(_solve, (None, 0, 0))(hessian, slopes[0], ridge)
    gradients = jax.vmap(lambda j, r: jax.grad(_rating, 1)(fitted, u, of_item(j), r))(own.item, own.weight)
    drop = -_products(solved.value, gradients)
    if decay:
        order = jnp.argsort(jnp.where(train.mask, train.item, train.items))
        begin = jnp.searchsorted(
            train.item[order] + train.items * ~train.mask[order], jnp.arange(train.items)
        )

        def through_item(i, slope, ridge):
            real = jnp.arange(at_item) < train.popularity()[i]
            slot = order[jnp.where(real, begin[i] + jnp.arange(at_item), 0)]
            others = jax.vmap(lambda v: _vectors(params, USER, v))(train.user[slot])
            q = of_item(i)
            theirs = rows(q, others, train.weight[slot], real, True)
            value = _solve(_matrix(lambda b: jnp.sum(theirs(b)), q), slope, ridge).value
            return decay * bilevel.trees.dot(value, q)

        drop -= lax.map(
            lambda given: through_item(*given), (items, slopes[1], n * decay + related * damping)
        )[:, None]
    return drop, solved.code


def _rating(fitted: Fitted, u: Any, q: Any, rating: Float[Array, ""]) -> Float[Array, ""]:
    """The training loss of one rating in the vectors of its user and item, penalties included."""
    model, params = fitted.model, fitted.params
    zero = jnp.zeros(1, jnp.int32)
    data = model.prepare(Interactions(zero, zero, rating[None], None, 1, 1, "explicit"))
    return model.loss(
        _tables(params, u | q), jnp.zeros((0, 1)), data, bilevel.Ctx(jax.random.key(0), jnp.asarray(0))
    )


def _pair(fitted: Fitted, u: Any, q: Any) -> Float[Array, ""]:
    """Its score."""
    zero = jnp.zeros(1, jnp.int32)
    data = fitted.model.prepare(Interactions(zero, zero, jnp.ones(1), None, 1, 1, "explicit"))
    made = fitted.model.embed(_tables(fitted.params, u | q), jnp.zeros((0, 1)), data)
    return fitted.model.score(made, zero)[0, 0]


def _matrix(loss: Callable[[Any], Array], at: Any) -> Float[Array, "D D"]:
    flat, tree = ravel_pytree(at)
    return jax.hessian(lambda b: loss(tree(b)))(flat)


def _solve(matrix: Float[Array, "D D"], b: Any, ridge: Float[Array, ""]) -> bilevel.LinearResult:
    """`(matrix + ridge I) w = b` for a tree `b` of D numbers in all."""
    flat, tree = ravel_pytree(b)
    found = bilevel.dense()(lambda v: matrix @ v + ridge * v, flat)
    return found._replace(value=tree(found.value))


# ------------------------------------------------------------------------------------------------ of RCF


def of_rcf(
    fitted: Fitted,
    train: Interactions,
    user: Int[Array, ""],
    items: Int[Array, " K"],
    own: Own,
    damping: float,
    key: Array,
) -> tuple[Float[Array, "K M"], Int[Array, " K"]]:
    """Drops of RCF's scores: without a click the vector moves, and the click is no longer read (ACCENT's RCF).

    The Hessian is the user's mean over its clicks with exact second derivatives; it, the gradient of the removed click
    and the new scores all read the shortened history. The score is computed again, not extrapolated.

    Args:
        fitted: an RCF.
        train, user, items, own, damping, key: as in `of_user`.

    Reference: ACCENT's code for RCF. **Differs from the paper:** nothing where all clicks are read; with `max_history`
    the older click that is read in place of a removed one is not counted.

    >>> from models import rcf
    >>> from models.data.relations import clusters
    >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2])
    >>> user, key, model = jnp.array(0), jax.random.key(0), rcf.rcf(clusters([0, 0, 1]), factors=2)
    >>> fitted = Fitted(model, model.init(key, 2, 3, 0), model.prepare(train), jnp.zeros((0, 3)), None)
    >>> drops = lambda: of_rcf(fitted, train, user, jnp.array([2]), own(train, user, 2), 0.1, key)[0]
    >>> jax.eval_shape(drops).shape
    (1, 2)
    """
    params, data = fitted.params, fitted.data
    smoothing, p = data.catalog.smoothing, params["user"][user]
    M = own.item.shape[0]
    negative = sample.negatives(key, data.pairs.lists, jnp.full(M, user), 1, train.items)[:, 0]
    asked = jnp.concatenate([items, jnp.where(own.real, own.item, 0), negative])
    seen = attention.view(params, data, user, asked, own.item, own.real)
    cut = lambda a, b: seen._replace(item=seen.item[a:b], mass=seen.mass[a:b])
    K = items.shape[0]
    shown, liked, others = cut(0, K), cut(K, K + M), cut(K + M, K + 2 * M)
    n = jnp.maximum(jnp.sum(own.real), 1).astype(p.dtype)
    now = attention.rated(params, p, shown, own.real, smoothing)

    def losses(p, kept):
        score = lambda part: attention.rated(params, p, part, kept, smoothing)
        return jnp.where(own.real, jax.nn.softplus(score(others) - score(liked)), 0)

    def without(j):
        kept = own.real & (jnp.arange(M) != j)
        matvec = jax.linearize(jax.grad(lambda p: jnp.sum(losses(p, kept)) / n), p)[1]
        moved = bilevel.dense(damping=damping)(matvec, jax.grad(lambda p: losses(p, kept)[j])(p))
        return now - attention.rated(params, p + moved.value / n, shown, kept, smoothing), moved.code

    none = lambda j: (jnp.zeros(K, now.dtype), jnp.int32(0))
    drop, code = lax.map(lambda j: lax.cond(own.real[j], without, none, j), jnp.arange(M))
    return drop.T, jnp.full(K, jnp.max(code))
