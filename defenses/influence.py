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
        gradients met negative curvature (`INDEFINITE`) their answer is refused, and the influences are those of the
        plain gradient.

    Raises:
        ValueError: a recommender that follows no gradient of a loss (with AT inside there is no Hessian: "identity"
            only), or "gauss_newton" on one whose loss is not the mean squared error of ratings.

    Reference: Wu et al., SIGIR 2021, eq. 5. **Differs from the paper:** its n, the number of ratings, is a factor; here
    it is the number of users.
    """
    ctx = at.start.inner.final_context(at.start.key)
    loss = lambda params: model.loss(params, at.x, at.start.data, ctx)
    slope = jax.grad(loss if risk == "code" else _sum_of_risks(model, at, highest))(at.params)
    moved, code = _inverse(model, at, loss, slope, solver)
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

    def risk(params):
        error = at.train.weight / highest - _observed(model, at, params)
        return -jnp.sum(jnp.where(at.train.mask, jax.nn.sigmoid(-(error**2)), 0))

    return risk


def _observed(model: Recommender, at: Point, params: Params) -> Float[Array, " E"]:
    """The scores of the real events: of factor models by products of rows, of others from all cells."""
    embedding = model.embed(params, at.x, at.start.data)
    user, item = at.train.user, at.train.item
    if isinstance(embedding, dict) and set(embedding) == {"user", "item"}:
        return jnp.sum(embedding["user"][user] * embedding["item"][item], 1)
    return model.score(embedding, jnp.arange(at.train.users))[user, item]


def _inverse(model: Recommender, at: Point, loss, slope: Params, solver) -> tuple[Params, Int[Array, ""]]:
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
    if solver == "gauss_newton" and (model.name != "mf" or at.train.track != "explicit"):
        raise ValueError(
            f"apt: solver='gauss_newton' is that of a mean squared error of ratings (mf), not of {model.name} on "
            f"{at.train.track} data; expected 'cg', 'identity' or a solver of bilevel"
        )
    full = jax.linearize(jax.grad(loss), at.params)[1]
    if solver == "gauss_newton":
        # Only the curvature of the squared errors counts, which the ratings do not change.
        outer = lambda scores: jnp.sum(jnp.where(at.train.mask, scores**2, 0)) / at.train.count
        product = lambda v: bilevel.gauss_newton_product(
            lambda p: _observed(model, at, p), outer, at.params, v
        )
    elif solver == "lissa_block":
        product = functools.partial(_by_leaf, full)
    else:
        product = full
    series = {"lissa": 1000, "lissa_block": 1000}
    if not isinstance(solver, str):
        method = solver
    elif solver in series:
        method = bilevel.lissa(series[solver], scale=1.0, probe=0)
    else:
        method = bilevel.cg(damping=1e-3, max_steps=100, rtol=1e-4, probe=0)
    found = method(product, slope)
    refused = jnp.asarray(method.name == "cg") & (found.code == bilevel.Code.INDEFINITE)
    value = jax.tree.map(lambda plain, solved: jnp.where(refused, plain, solved), slope, found.value)
    return value, jnp.asarray(found.code, jnp.int32)


def _by_leaf(product: Callable[[Params], Params], v: Params) -> Params:
    """The product with the blocks of each parameter with itself only."""
    leaves, shape = jax.tree.flatten(v)
    alone = lambda at: shape.unflatten(
        [leaf if k == at else jnp.zeros_like(leaf) for k, leaf in enumerate(leaves)]
    )
    mine = lambda at: jax.tree.leaves(product(alone(at)))[at] if leaves[at].size else leaves[at]
    return shape.unflatten([mine(at) for at in range(len(leaves))])
