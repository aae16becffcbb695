"""WRMF by alternating least squares: users and items are solved for in turn.

Hu, Koren, Volinsky, *Collaborative filtering for implicit feedback datasets*, ICDM 2008, eqs 4-5; as the surrogate
"WRMF+ALS" of Tang, Wen, Wang, RecSys 2020 (RevAdv):

    p_u = (Q'C_u Q + l2 I)^-1 Q'C_u x_u,    q_i = (G'C_i G + l2 I)^-1 G'C_i x_i,    G = users and fake users

with `C = diag(w)` and `Q'C_u Q = Q'Q + (w+ - 1) sum over clicks of q q'`. A sweep is the users, the fake users, then
the items. Scores recompute the items' half step from the held user factors, so they read `x`: with the parameters
held (`bilevel.detached`) their derivative is the closed form of RevAdv, `C_i G (G'C_i G + l2 I)^-1 G' (dL/dr_i)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

import bilevel
from models import cells, wrmf
from models.cells import Cells
from models.recommender import Recommender, cell_weights, counts, flat, numbers, settings
from models.wrmf import Data

BLOCK = 64 << 20  # bytes of normal matrices solved at a time


def als(
    *,
    factors: int = 128,
    weight: float = 20.0,
    l2: float = 5e-2,
    sweeps: int = 10,
    scale: float = 0.1,
) -> Recommender:
    """WRMF trained by ALS, as a `Recommender`.

    Args:
        factors: D >= 1.
        weight: w+ of a click, >= 1.
        l2: ridge added to every normal matrix, > 0 (0 can be singular).
        sweeps: times users and items are solved for, >= 1.
        scale: standard deviation of the initial factors, > 0; only the items' matter, users are solved for first.

    Raises:
        ValueError: a number outside its range.

    Reference: Hu, Koren, Volinsky, ICDM 2008; RevAdv (RecSys 2020), section 4.

    **Differs from the paper:** RevAdv prints the solution without the weights C; its code has them, and so have we.
    Its objective is `sum w (x - p.q)^2 + l2 |theta|^2`, twice the penalty of `wrmf` at equal `l2`.

    >>> als(factors=4, sweeps=2).trainer(3, 5, 1)
    fixed_point(steps=2)
    """
    config = dict(locals())
    counts("als", factors=factors, sweeps=sweeps)
    numbers("als", 0, open_end=True, l2=l2, scale=scale)
    numbers("als", 1, weight=weight)
    constants = {"weight": weight, "l2": l2}
    step = partial(sweep, **constants)

    return Recommender(
        name="als",
        config=config,
        prepare=partial(wrmf.prepare, form="observed", name="als"),
        init=lambda key, users, items, fakes: flat(
            wrmf.Factors(users, items, fakes, factors, scale, rngs=nnx.Rngs(params=key))
        ),
        loss=partial(objective, **constants),
        embed=partial(embed, **constants),
        score=wrmf.score,
        trainer=lambda users, items, fakes, events=0: bilevel.fixed_point(step, sweeps),
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "revadv-gowalla": {"factors": 128, "weight": 20.0, "l2": 5e-2, "sweeps": 10},
    "revadv-toy": {"factors": 16, "weight": 20.0, "l2": 5e-2, "sweeps": 10, "scale": 1.0},
}
"""The settings of the papers, by name (RevAdv: released code; the toy is ours, the paper has no ALS there)."""


def preset(name: str, **changes: Any) -> Recommender:
    """ALS with the settings of a paper; `changes` replace some of them.

    >>> preset("revadv-gowalla", sweeps=3).config["l2"]
    0.05
    """
    return als(**settings("als", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def objective(
    params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, weight: float, l2: float
) -> Array:
    """What no half sweep increases: `sum w (x - p.q)^2 + l2 |theta|^2` over real and fake rows."""
    return wrmf.loss(params, x, data, ctx, weight=weight, l2=2 * l2)


def sweep(params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, weight: float, l2: float) -> Any:
    """One sweep: real users, fake users, items."""
    w = cell_weights(x, data.observed, weight)
    held = {**params, **solve_users(params["item"], x, w, data, weight, l2)}
    return {**held, "item": solve_items(held, x, w, data, weight, l2)}


def embed(params: Any, x: Float[Array, "F I"], data: Data, *, weight: float, l2: float) -> Any:
    """The factors with the items solved for once more from the held users: this is where scores read `x`."""
    w = cell_weights(x, data.observed, weight)
    return {**params, "item": solve_items(params, x, w, data, weight, l2)}


def solve_users(Q: Float[Array, "I D"], x: Array, w: Array, data: Data, weight: float, l2: float) -> Any:
    """The half step of real and fake users: `{"user": (U, D), "fake": (F, D)}`."""
    user = solve_rows(Q, data.cells, weight, l2)
    fake = solve_spd(_ridge(Q, l2) + cells.weighted_moments(Q, lambda M: w @ M), (w * x) @ Q)
    return {"user": data.sound * user, "fake": fake}


def solve_items(params: Any, x: Array, w: Array, data: Data, weight: float, l2: float) -> Float[Array, "I D"]:
    """The half step of the items from the factors of real and fake users."""
    extra = (params["fake"], x.T, w.T)
    return data.sound * solve_rows(params["user"], cells.turned(data.cells), weight, l2, extra)


def solve_rows(
    B: Float[Array, "C D"],
    clicks: Cells,
    weight: float,
    l2: float,
    extra: tuple[Array, Array, Array] | None = None,
) -> Float[Array, "R D"]:
    """`a_r = (B'C_r B + l2 I)^-1 B'C_r x_r` for every row, in blocks of rows that bound the memory.

    `extra = (F (F, D), x (R, F), w (R, F))` adds dense columns: the fake users in the items' half step.
    """
    rows, D = clicks.shape[0], B.shape[1]
    gram = _ridge(B, l2) + B.T @ B

    def solve(chosen: Cells, index):
        normal = gram + (weight - 1) * cells.moments(B, chosen)
        target = weight * cells.gather(B, chosen)
        if extra is not None:
            F, x, w = extra[0], extra[1][index], extra[2][index]
            normal += cells.weighted_moments(F, lambda M: w @ M)
            target += (w * x) @ F
        return solve_spd(normal, target)

    size = max(1, BLOCK // (D * D * B.dtype.itemsize))
    if rows <= size:
        return solve(clicks, slice(None))

    def block(first):
        at = jnp.minimum(first + jnp.arange(size), rows - 1)
        return solve(cells.stretch(clicks, first, size), at)

    return lax.map(block, jnp.arange(0, rows, size, dtype=jnp.int32)).reshape(-1, D)[:rows]


def _ridge(B: Float[Array, "C D"], l2: float) -> Float[Array, "D D"]:
    return l2 * jnp.eye(B.shape[1], dtype=B.dtype)


def solve_spd(normal: Float[Array, "R D D"], target: Float[Array, "R D"]) -> Float[Array, "R D"]:
    """Batched symmetric positive definite solve; the derivative reuses the factorization."""
    lower = jnp.linalg.cholesky(lax.stop_gradient(normal))

    def solve(_, b):
        half = lax.linalg.triangular_solve(lower, b[..., None], left_side=True, lower=True)
        whole = lax.linalg.triangular_solve(lower, half, left_side=True, lower=True, transpose_a=True)
        return whole[..., 0]

    multiply = lambda z: jnp.einsum("rij,rj->ri", normal, z)
    return lax.custom_linear_solve(multiply, target, solve=solve, symmetric=True)
