"""Matrix factorization by ridge regressions in turn, and what its optimality conditions say about a fake rating.

The model both attacks on factorization solve inside: Li, Wang, Singh, Vorobeychik, "Data Poisoning Attacks on
Factorization-Based Collaborative Filtering", NIPS 2016 (PGA); Fang, Gong, Liu, "Influence Function based Data
Poisoning Attacks to Top-N Recommender Systems", WWW 2020 (TNA); for clicks Hu, Koren, Volinsky, ICDM 2008.

    min  sum_ui c_ui (r_ui - p_u . q_i)^2 + l2 (|P|^2 + |Q|^2),     c = w on known cells, w0 on the others (r = 0)
    p_u = (l2 E + sum_i c_ui q_i q_i')^-1 sum_i c_ui r_ui q_i,      q_i alike from the users, real and fake
    S_j = l2 E + sum_u c_uj p_u p_u',    d q_j / d x_fj = w S_j^-1 p_f       the KKT condition of item j, P held

Ratings are divided by the largest: w = 1, w0 = 0. Clicks: w > 1, w0 = 1. A half step costs `known cells x D^2`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

import bilevel
from models import sparse
from models.als import solve_spd
from models.cells import weighted_moments
from models.data import Interactions, sample
from models.recommender import counts, numbers, sound
from models.sparse import Observed


class Data(NamedTuple):
    """The known cells of the real users, their values in [0, 1], which fake cells are known, and 1 or NaN."""

    cells: Observed
    values: Float[Array, " E"]
    known: Bool[Array, "F I"]
    sound: Float[Array, ""]


class Factors(NamedTuple):
    """`user` has the real users' rows first, then the fakes'."""

    user: Float[Array, "U+F D"]
    item: Float[Array, "I D"]


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Settings of the factorization.

    Args:
        factors: D >= 1.
        l2: ridge of every factor row, > 0.
        sweeps: users and items are solved for that often, >= 1.
        weight: w of a known cell, > 0.
        rest: w0 of the others, 0 for ratings (not in the sum), 1 for clicks.
        scale: standard deviation of the items' initial factors, > 0.

    Raises:
        ValueError: a number outside its range.

    >>> Ridge(factors=8, l2=0.0)
    Traceback (most recent call last):
    ...
    ValueError: surrogate: l2=0.0; expected a number above 0
    """

    factors: int = 16
    l2: float = 0.1
    sweeps: int = 10
    weight: float = 1.0
    rest: float = 0.0
    scale: float = 0.1

    def __post_init__(self) -> None:
        counts("surrogate", factors=self.factors, sweeps=self.sweeps)
        numbers("surrogate", 0, open_end=True, l2=self.l2, weight=self.weight, scale=self.scale)
        numbers("surrogate", 0, rest=self.rest)


def prepare(train: Interactions, known: Bool[Array, "F I"], highest: float) -> Data:
    """What the half steps read: real cells `r / highest` and which cells of the fake rows are known.

    >>> data = prepare(Interactions.from_arrays([0, 1], [1, 0], [5.0, 2.0]), jnp.zeros((1, 2), bool), highest=5.0)
    >>> [round(float(v), 3) for v in data.values[:2]]
    [1.0, 0.4]
    """
    cells = sparse.observed(train.user, train.item, train.mask, train.users, train.items)
    # Events are sorted as the cells are, and a pair is there once: slot k of the one is slot k of the other.
    values = jnp.pad(train.weight / highest, (0, cells.row.shape[0] - train.capacity))
    return Data(cells, values, known, sound(train))


def start(model: Ridge, key: Key[Array, ""], users: int, items: int, fakes: int) -> Factors:
    """Factors to begin with: the items' drawn, the users' 0, as they are solved for first."""
    item = model.scale * jax.random.normal(key, (items, model.factors))
    return Factors(jnp.zeros((users + fakes, model.factors)), item)


def objective(model: Ridge, found: Factors, x: Float[Array, "F I"], data: Data) -> Float[Array, ""]:
    """What no half step increases; `x` is 0 on cells that are not known."""
    P, Q = found
    real, fake = _split(P, data)
    r = sparse.sampled(real, Q, data.cells)
    w, w0 = model.weight, model.rest
    on_real = jnp.sum((w - w0) * r**2 - 2 * w * data.values * r + w * data.values**2)
    r = fake @ Q.T
    on_fake = jnp.sum((w - w0) * data.known * r**2 - 2 * w * x * r + w * x**2)
    every = w0 * jnp.vdot(P.T @ P, Q.T @ Q)
    return on_real + on_fake + every + model.l2 * (jnp.sum(P**2) + jnp.sum(Q**2))


def solve_users(
    model: Ridge, Q: Float[Array, "I D"], x: Float[Array, "F I"], data: Data
) -> Float[Array, "U+F D"]:
    """The half step of real and fake users."""
    ones = jnp.ones_like(data.values)
    real = weighted_moments(Q, lambda M: sparse.spread(ones, M, data.cells))
    fake = weighted_moments(Q, lambda M: data.known.astype(M.dtype) @ M)
    target = jnp.concatenate([sparse.spread(data.values, Q, data.cells), x @ Q])
    normal = _base(model, Q) + (model.weight - model.rest) * jnp.concatenate([real, fake])
    return data.sound * solve_spd(normal, model.weight * target)


def solve_items(
    model: Ridge, P: Float[Array, "U+F D"], x: Float[Array, "F I"], data: Data
) -> Float[Array, "I D"]:
    """The half step of the items. `x` enters by `sum_f w x_fj p_f`, known or not, so its derivative is that of a
    cell about to be chosen; give 0 where nothing is known.
    """
    return solve_spd(item_normals(model, P, data), item_targets(model, P, x, data))


def item_normals(model: Ridge, P: Float[Array, "U+F D"], data: Data) -> Float[Array, "I D D"]:
    """`S_j` of every item; memory is `I x D^2`."""
    real, fake = _split(P, data)
    ones = jnp.ones_like(data.values)
    known = weighted_moments(real, lambda M: sparse.spread_back(ones, M, data.cells))
    known += weighted_moments(fake, lambda M: data.known.T.astype(M.dtype) @ M)
    return _base(model, P) + (model.weight - model.rest) * known


def item_targets(
    model: Ridge, P: Float[Array, "U+F D"], x: Float[Array, "F I"], data: Data
) -> Float[Array, "I D"]:
    """`sum_u c_uj r_uj p_u` of every item."""
    real, fake = _split(P, data)
    return data.sound * model.weight * (sparse.spread_back(data.values, real, data.cells) + x.T @ fake)


def sweep(model: Ridge, Q: Float[Array, "I D"], x: Float[Array, "F I"], data: Data) -> Factors:
    """Users, then items."""
    P = solve_users(model, Q, x, data)
    return Factors(P, solve_items(model, P, x, data))


def loop(model: Ridge) -> bilevel.Inner:
    """The sweeps as an inner loop of the engine, to be differentiated as a whole."""
    return bilevel.fixed_point(lambda found, x, data, ctx: sweep(model, found.item, x, data), model.sweeps)


def fit(model: Ridge, found: Factors, x: Float[Array, "F I"], data: Data, sweeps: int) -> Factors:
    """`sweeps` sweeps from given factors."""
    return jax.lax.fori_loop(0, sweeps, lambda _, held: sweep(model, held.item, x, data), found)


def rating_gradient(
    model: Ridge, found: Factors, data: Data, item_bar: Float[Array, "I D"]
) -> Float[Array, "F I"]:
    """Derivative of a scalar of the predictions in every fake cell, by the KKT condition of its item.

    `d L / d x_fj = w p_f' S_j^-1 (dL / dq_j)`, user factors held: what PGA and TNA differentiate.

    Args:
        model: the factorization's settings.
        found: its factors; those of the items do not enter.
        data: known cells. A cell that is not known gets the derivative of one about to be chosen.
        item_bar: `dL / dQ` with the user factors held, (I, D).

    Returns:
        (F, I), per unit of a scaled rating.

    Reference: Li et al., NIPS 2016, "attacking alternating minimization"; Fang et al., WWW 2020, section 4.

    **Differs from the paper:** nothing; both hold the users' factors. (`bilevel.truncated` over `sweep` does not.)
    """
    pulled = solve_spd(item_normals(model, found.user, data), item_bar)
    return model.weight * (_split(found.user, data)[1] @ pulled.T)


def _split(P: Float[Array, "U+F D"], data: Data) -> tuple[Float[Array, "U D"], Float[Array, "F D"]]:
    users = data.cells.row_start.shape[0] - 1
    return P[:users], P[users:]


def _base(model: Ridge, B: Float[Array, "N D"]) -> Float[Array, "D D"]:
    """What every normal matrix has: the ridge, and `w0 B'B` of all cells."""
    return model.l2 * jnp.eye(B.shape[1], dtype=B.dtype) + model.rest * (B.T @ B)


def influence(
    model: Ridge,
    found: Factors,
    train: Interactions,
    targets: Int[Array, " T"],
    *,
    highest: float,
    solver: bilevel.LinearSolver,
) -> bilevel.Influence:
    """How the targets' predictions answer to the weight of each real user's ratings.

    `- grad r' H^-1 grad l(u)`: `r = sum of p_u . q_t` over the users u who lack t, `l(u)` the squared errors of user u,
    H the Hessian of the training loss at `found`.

    Args:
        model: settings of a factorization of ratings.
        found: its factors on the real ratings; rows of fake users are not used.
        train, targets: real ratings, item ids.
        highest: r_max.
        solver: of `H w = v`. The loss of a factorization is not convex: away from a solution H has negative curvature,
            which a damping has to outweigh; the code says where it does not.

    Returns:
        `effect` (U,): change of r per unit of weight, removing user u changes r by about minus that; and the solve.

    Reference: Fang, Gong, Liu, WWW 2020, section 4.4; Koh, Liang, ICML 2017, eq. 2.

    **Differs from the paper:** one solve for all users, as the scalar is the sum of the predictions.
    """
    data = prepare(train, jnp.zeros((0, train.items), bool), highest)
    every = jnp.arange(train.users)
    wanted = jnp.broadcast_to(targets, (train.users, targets.size))
    lacks = ~sample.clicked(sample.lists(train), every, wanted, train.items)
    real = Factors(found.user[: train.users], found.item)

    def loss(theta: Factors, weight, held: Data, ctx):
        r = sparse.sampled(theta.user, theta.item, held.cells)
        errors = jnp.where(jnp.arange(r.shape[0]) < held.cells.row_start[-1], (held.values - r) ** 2, 0)
        penalty = model.l2 * (jnp.sum(theta.user**2) + jnp.sum(theta.item**2))
        return jnp.sum(weight[held.cells.row] * errors) + penalty

    def predicted(theta: Factors, weight, held: Data):
        return jnp.sum(jnp.where(lacks, theta.user @ theta.item[targets].T, 0))

    weight = jnp.ones(train.users, real.user.dtype)
    return bilevel.influence(loss, predicted, real, weight, data, solver=solver)
