"""How the empirical risk of a recommender answers to the ratings of a user: APT's influence vector.

Wu, Lian, Ge, Zhu, Chen, Yuan (APT), SIGIR 2021, eqs 4 and 5, after Koh, Liang, ICML 2017:

    I_j = -(1/n) grad L_ER' H^-1 d/dz_j grad L(z),    L(z) = (1/I) sum_j (z_j - s_zj)^2

H is the Hessian of the training loss, s_zj the score of item j for an existing user z, whose row is taken dense with 0
for a missing rating. `d/dz_j grad L(z) = -(2/I) grad s_zj`, so `I_j = 2 / (n I) (J v)_zj`, `v = H^-1 grad L_ER`: for
matrix factorization `2 / (n I) (q_j . v_P[z] + p_z . v_Q[j])`, for any other recommender one forward-mode product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import bilevel
from models import mf, ncf, pairs
from models.data import Interactions
from models.recommender import Params, Recommender
from models.train import Start

Solver = Literal["cg", "gauss_newton", "lissa", "lissa_block", "identity"]
Risk = Literal["code", "paper"]


class Point(NamedTuple):
    """Where influences are asked for: a training, its current parameters, the rows beside it, and the data."""

    start: Start
    params: Params
    x: Float[Array, "F I"]
    train: Interactions


def influence_vector(
    model: Recommender,
    at: Point,
    *,
    solver: Solver | bilevel.LinearSolver,
    risk: Risk,
    references: int,
    highest: float,
) -> tuple[Float[Array, " I"], Int[Array, ""]]:
    """`I_j = (2 / (n I)) sum_z d s_zj / d theta . v` with `v = H^-1 grad L_ER`, eq. 5, summed over reference users.

    Args:
        model, at: the training and where it stands.
        solver, risk, references: as in `apt`; the risk of "paper" is that of the events in `train`. For "code" the
            slope is that of L itself: `sigmoid(L)` has the same direction, and none at all in float32 where L is a sum.
        highest: the largest rating, by which ratings are divided; 1 for clicks.

    Returns:
        (I,) influences, negative where a higher cell lowers the risk, and the solver's code (0: OK). Where conjugate
        gradients met negative curvature (`INDEFINITE`), or a series for another loss than that of ratings left its
        bounds (`DIVERGED`), the answer is refused, and the influences are those of the plain gradient.

    Raises:
        ValueError: a recommender that follows no gradient of a loss (with AT inside there is no Hessian: "identity"
            only), or "gauss_newton" on one whose loss is not a mean squared error of ratings, see `SQUARED`.

    Reference: Wu et al., SIGIR 2021, eq. 5. **Differs from the paper:** its n, the number of ratings, is a factor; here
    it is the number of users. The errors of the risk of "paper" are those that the recommender learns from: of
    ratings less their mean, where it takes that off.
    """
    ctx = at.start.inner.final_context(at.start.key)
    loss = lambda params: model.loss(params, at.x, at.start.data, ctx)
    slope = jax.grad(loss if risk == "code" else _sum_of_risks(model, at, highest))(at.params)
    moved, code = _inverse(model, at, ctx, loss, slope, solver)
    users = smallest(at.train, references)
    scores = lambda params: model.scores(params, at.x, at.start.data, users)
    along = jax.jvp(scores, (at.params,), (moved,))[1]
    return 2 / (at.train.users * at.train.items) * jnp.sum(along, 0), code


def smallest(train: Interactions, count: int) -> Int[Array, " n"]:
    """The `count` users with ratings whose rows have the smallest norms, as in the released code.

    >>> smallest(Interactions.from_arrays([0, 0, 1, 2], [0, 1, 0, 1], [1.0, 1.0, 5.0, 1.0]), 2).tolist()
    [2, 0]
    """
    size = jnp.zeros(train.users).at[train.user].add(train.weight**2)
    return jnp.argsort(jnp.where(train.degrees() > 0, size, jnp.inf))[:count].astype(jnp.int32)


def _sum_of_risks(model: Recommender, at: Point, highest: float) -> Callable[[Params], Array]:
    """`sum sigmoid(e^2)` less their number: `-sigmoid(-e^2)` keeps a slope where `sigmoid` has reached 1."""
    target = at.train.weight / highest - _level(model, at)

    def risk(params):
        error = target - _observed(model, at, params)
        return -jnp.sum(jnp.where(at.train.mask, jax.nn.sigmoid(-(error**2)), 0))

    return risk


CENTERED = ("pmf", "autorec")
"""Recommenders that learn ratings, in their own unit, less the mean of all."""


def _level(model: Recommender, at: Point) -> Float[Array, ""] | float:
    """What the recommender takes off ratings: the mean of all, real and fake, or nothing."""
    if at.train.track != "explicit" or model.name.rpartition("-")[2] not in CENTERED:
        return 0.0
    total = jnp.sum(at.train.weight) + jnp.sum(jnp.maximum(at.x, 0))
    return total / jnp.maximum(at.train.count + jnp.sum(at.x > 0), 1)


def _observed(model: Recommender, at: Point, params: Params) -> Float[Array, " E"]:
    """The scores of the real events: of factor models by products of rows, of others from all cells."""
    embedding = model.embed(params, at.x, at.start.data)
    user, item = at.train.user, at.train.item
    if isinstance(embedding, dict) and set(embedding) == {"user", "item"}:
        return jnp.sum(embedding["user"][user] * embedding["item"][item], 1)
    return model.score(embedding, jnp.arange(at.train.users))[user, item]


SQUARED = ("mf", "pmf", "gmf", "neumf")
"""Recommenders whose loss of ratings is the mean squared error of the observed ones and a penalty."""


def _positive(model: Recommender, at: Point, ctx, loss) -> Callable[[Params], Array]:
    """A function whose Hessian at `at.params` is the positive part of the loss's: Gauss-Newton and the penalty.

    With residuals `e` held at their values, `mean (r - s)^2 + penalty + 2 mean e s` has the Hessian `2 mean grad s grad
    s' + that of the penalty`: the last term cancels the curvature of the scores, `-2 mean e Hess s`.
    """
    user, item, rating, weight = mf.drawn(at.start.data, at.x, ctx, at.params["user"].shape[0])

    def predicted(params):
        if "last" in params:
            return ncf.rated(params, user, item[:, None])[0][:, 0]
        return jnp.sum(pairs.joined(params["user"], params["fake"])[user] * params["item"][item], 1)

    residual = rating - _level(model, at) - predicted(at.params)
    return lambda params: loss(params) + 2 * pairs.mean(weight, residual * predicted(params))


def _inverse(
    model: Recommender, at: Point, ctx, loss, slope: Params, solver
) -> tuple[Params, Int[Array, ""]]:
    """`H^-1 slope` and what the solver says of it."""
    if at.start.inner.loss is None:
        raise ValueError(
            f"apt: {model.name} follows no gradient of a loss, so its parameters have no influence"
        )
    if isinstance(solver, str) and solver == "identity":
        return slope, jnp.zeros((), jnp.int32)
    if not at.start.inner.structure.gradient:
        raise ValueError(
            f"apt: the steps of {model.name} follow no gradient (adversarial training), so that there is no Hessian to "
            "invert; give solver='identity'"
        )
    explicit = at.train.track == "explicit"
    if solver == "gauss_newton" and not (explicit and model.name in SQUARED):
        raise ValueError(
            f"apt: solver='gauss_newton' is that of a mean squared error of ratings ({', '.join(SQUARED)}), not of "
            f"{model.name} on {at.train.track} data; expected 'cg', 'lissa', 'lissa_block', 'identity' or a solver of "
            "bilevel"
        )
    judged = _positive(model, at, ctx, loss) if solver == "gauss_newton" else loss
    product = jax.linearize(jax.grad(judged), at.params)[1]
    if solver == "lissa_block":
        product = functools.partial(_by_leaf, product)
    if isinstance(solver, str) and not (explicit and model.name == "mf"):
        found, bad = _by_spectrum(product, slope, series="lissa" in solver), (_INDEFINITE, _DIVERGED)
    else:
        method = solver if isinstance(solver, bilevel.LinearSolver) else _of_ratings(series="lissa" in solver)
        found, bad = method(product, slope), (_INDEFINITE,) if method.name == "cg" else ()
    refused = jnp.isin(found.code, jnp.array(bad, jnp.int32))
    value = jax.tree.map(lambda plain, solved: jnp.where(refused, plain, solved), slope, found.value)
    return value, jnp.asarray(found.code, jnp.int32)


DAMPING, SERIES = 1e-3, 1000
"""Of `mf`'s error of scaled ratings, and terms of LiSSA's series there, which act like this damping (1 / SERIES)."""
RELATIVE = 0.1
"""Of other losses, in their largest eigenvalue: about what `DAMPING` is on the ratings of MovieLens-100K (0.0086)."""


_INDEFINITE, _DIVERGED = int(bilevel.Code.INDEFINITE), int(bilevel.Code.DIVERGED)


def _of_ratings(*, series: bool) -> bilevel.LinearSolver:
    """The published series, or conjugate gradients with the damping it acts like."""
    if series:
        return bilevel.lissa(SERIES, scale=1.0, probe=0)
    return bilevel.cg(damping=DAMPING, max_steps=100, rtol=1e-4, probe=0)


def _by_spectrum(product, slope: Params, *, series: bool) -> bilevel.LinearResult:
    """`(H + d I)^-1 slope` where the size of the loss, a sum over cells or over draws, is anything.

    `d = RELATIVE h_max + 2 max(0, -h_min)` with the ends of the spectrum that 20 Lanczos products find, begun at the
    slope: the spaces in which conjugate gradients work. Everything is divided by `1.05 h_max + d`, LiSSA's scale.
    """
    ends = bilevel.spectrum(product, slope, steps=20, start=slope)
    largest = jnp.maximum(ends.largest, 0)
    damping = ends.damping(RELATIVE)
    top = 1.05 * largest + damping  # Ritz values lie inside the spectrum
    unit = 1 / jnp.where(top > 0, top, 1)
    scaled = lambda v: jax.tree.map(lambda a, b: unit * (a + damping * b), product(v), v)
    method = (
        bilevel.lissa(100, scale=1.0, probe=0)  # the smallest eigenvalue is at least a twelfth of the largest
        if series
        else bilevel.cg(max_steps=100, rtol=1e-4, probe=0)
    )
    return method(scaled, jax.tree.map(lambda leaf: unit * leaf, slope))


def _by_leaf(product: Callable[[Params], Params], v: Params) -> Params:
    """The product with the blocks of each parameter with itself only."""
    leaves, shape = jax.tree.flatten(v)
    alone = lambda at: shape.unflatten(
        [leaf if k == at else jnp.zeros_like(leaf) for k, leaf in enumerate(leaves)]
    )
    mine = lambda at: jax.tree.leaves(product(alone(at)))[at] if leaves[at].size else leaves[at]
    return shape.unflatten([mine(at) for at in range(len(leaves))])
