"""WRMF by SGD: weighted regularized matrix factorization of clicks, trained by Adam on all cells.

Hu, Koren, Volinsky, *Collaborative filtering for implicit feedback datasets*, ICDM 2008; Pan et al., *One-class
collaborative filtering*, ICDM 2008; as the surrogate of Tang, Wen, Wang, RecSys 2020 (RevAdv), eq. 5, and of Zhang et
al., KDD 2021 (RAPU), eq. 10:

    L = sum over all u, i of w_ui (x_ui - p_u . q_i)^2 + l2/2 (|P|^2 + |Q|^2),    w = weight where x > 0, else 1

Users are real or fake. The real rows are sparse inside `data` (`models.cells` picks the faster form), the fake rows are
the dense, relaxed argument `x`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

import bilevel
from models import cells
from models.cells import Cells, Form
from models.data.interactions import Interactions
from models.recommender import (
    Recommender,
    cell_weights,
    clicks_only,
    counts,
    flat,
    given,
    numbers,
    one_of,
    over_rows,
    settings,
    sound,
)


class Data(NamedTuple):
    """What WRMF reads: the clicks, an optional (F, I) mask that freezes the weights, and 1 (NaN: events were lost)."""

    cells: Cells
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]


class Factors(nnx.Module):
    """User, item and fake-user factors, N(0, scale^2). The real users' do not depend on how many fakes there are."""

    def __init__(self, users: int, items: int, fakes: int, factors: int, scale: float, *, rngs: nnx.Rngs):
        draw = lambda rows: nnx.Param(scale * jax.random.normal(rngs.params(), (rows, factors)))
        self.user, self.item, self.fake = draw(users), draw(items), draw(fakes)


def wrmf(
    *,
    factors: int = 64,
    learning_rate: float = 1e-2,
    weight: float = 20.0,
    l2: float = 1e-5,
    epochs: int = 100,
    batch: int | None = 2048,
    scale: float = 0.1,
    form: Form = "auto",
) -> Recommender:
    """WRMF trained by Adam, as a `Recommender`.

    Args:
        factors: D >= 1.
        learning_rate: of Adam, > 0.
        weight: w+ of a click, >= 1 (other cells weigh 1).
        l2: gradient `l2 * theta` added before Adam, as PyTorch's weight decay, >= 0.
        epochs: passes over all rows, >= 1.
        batch: users (real and fake) per step, every item in the loss; a table with no more rows takes one full
            step per epoch. None: always the full batch.
        scale: standard deviation of the initial factors, > 0.
        form: how the loss is computed, "auto" by the measured rule; "dense" and "observed" give the same numbers.

    Raises:
        ValueError: a number outside its range, or an unknown form.

    Reference: Hu, Koren, Volinsky, ICDM 2008, eq. 3; RevAdv (RecSys 2020) eq. 5.

    **Differs from the paper:** eq. 5 prints `l2 |theta|^2`; the released code hands `l2` to Adam as coupled weight
    decay, which is `l2/2 |theta|^2`, and so do we. Losses are summed, not averaged, as in the code.

    >>> model = preset("revadv-toy")
    >>> params = model.init(jax.random.key(0), 900, 300, 100)
    >>> {name: rows.shape for name, rows in params.items()}
    {'fake': (100, 16), 'item': (300, 16), 'user': (900, 16)}
    """
    config = dict(locals())
    _check(**config)
    constants = {"weight": weight, "l2": l2}
    objective = partial(loss, **constants)

    def init(key, users, items, fakes):
        return flat(Factors(users, items, fakes, factors, scale, rngs=nnx.Rngs(params=key)))

    def trainer(users, items, fakes, events=0):
        structure = bilevel.Structure(
            product=partial(product, **constants), blocks=partial(blocks, **constants)
        )
        adam = optax.adam(learning_rate)
        return over_rows(objective, adam, epochs, users + fakes, batch, structure=structure)

    return Recommender(
        name="wrmf",
        config=config,
        prepare=partial(prepare, form=form),
        init=init,
        loss=objective,
        embed=lambda params, x, data: params,
        score=score,
        trainer=trainer,
    )


def _check(*, factors, learning_rate, weight, l2, epochs, batch, scale, form) -> None:
    counts("wrmf", factors=factors, epochs=epochs, **given(batch=batch))
    numbers("wrmf", 0, open_end=True, learning_rate=learning_rate, scale=scale)
    numbers("wrmf", 1, weight=weight)
    numbers("wrmf", 0, l2=l2)
    one_of("wrmf", "form", form, cells.FORMS)


_RAPU: Mapping[str, Any] = {"learning_rate": 1e-2, "weight": 20.0, "l2": 1e-5}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "revadv-gowalla": {"factors": 128, "learning_rate": 1e-2, "weight": 20.0, "l2": 1e-5, "epochs": 50},
    "revadv-toy": {
        "factors": 16,
        "learning_rate": 0.5,
        "weight": 20.0,
        "l2": 0.0,
        "epochs": 100,
        "batch": None,
        "scale": 1.0,
    },
    "rapu-ml-surrogate": {**_RAPU, "factors": 64, "epochs": 200},
    "rapu-ml-victim": {**_RAPU, "factors": 64, "epochs": 100},
    "rapu-video-surrogate": {**_RAPU, "factors": 32, "epochs": 200},
    "rapu-video-victim": {**_RAPU, "factors": 32, "epochs": 100, "learning_rate": 2e-2},
}
"""The settings of the papers, by name (RevAdv: released code; RAPU: Table 4)."""


def preset(name: str, **changes: Any) -> Recommender:
    """WRMF with the settings of a paper; `changes` replace some of them.

    >>> preset("rapu-ml-victim", epochs=5).config["factors"]
    64
    """
    return wrmf(**settings("wrmf", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions, *, form: Form = "auto", name: str = "wrmf") -> Data:
    """The clicks of the real users in the form the loss reads; works under `jit` and `vmap`. `name`: who asks."""
    return Data(cells.build(clicks_only(name, train), form=form), None, sound(train))


def loss(
    params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, weight: float, l2: float
) -> Float[Array, ""]:
    """The objective over the rows of `ctx.batch` (None: all), all items, and the penalty of all parameters."""
    P, Q, F = params["user"], params["item"], params["fake"]
    chosen, index, counts = cells.take(data.cells, ctx.batch)
    w = cell_weights(x, data.observed, weight) * _fakes_in(ctx.batch, P.shape[0], F)
    total = cells.loss(P[index] * counts, Q, chosen, weight) + cells.block_loss(F, Q, x, w)
    penalty = sum(jnp.vdot(rows, rows) for rows in jax.tree.leaves(params))
    return data.sound * total + l2 / 2 * penalty


def product(
    params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, v: Any, *, weight: float, l2: float
) -> tuple[Any, Float[Array, "F I"]]:
    """`(H v, d/dx <grad loss, v>)` by hand: 7 products of the matrix's size, against 3 of a step."""
    P, Q, F = params["user"], params["item"], params["fake"]
    chosen, index, counts = cells.take(data.cells, ctx.batch)
    w = cell_weights(x, data.observed, weight) * _fakes_in(ctx.batch, P.shape[0], F)
    user, item = cells.product(P[index] * counts, Q, v["user"][index] * counts, v["item"], chosen, weight)
    fake, item_too, mixed = cells.block_product(F, Q, v["fake"], v["item"], x, w)
    if ctx.batch is not None:
        user = jnp.zeros_like(P).at[index].add(user * counts)
    through = {"user": user, "item": item + item_too, "fake": fake}
    return jax.tree.map(lambda h, v: data.sound * h + l2 * v, through, v), data.sound * mixed


def blocks(params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, weight: float, l2: float) -> Any:
    """The D x D diagonal blocks of the Hessian, full batch: twice the matrices that ALS solves with."""
    P, Q, F = params["user"], params["item"], params["fake"]
    w = cell_weights(x, data.observed, weight)
    ridge = l2 / 2 * jnp.eye(Q.shape[1], dtype=Q.dtype)
    gram = ridge + Q.T @ Q
    made = {
        "user": gram + (weight - 1) * cells.moments(Q, data.cells),
        "item": ridge + P.T @ P + (weight - 1) * cells.moments(P, cells.turned(data.cells)),
        "fake": ridge + cells.weighted_moments(Q, lambda M: w @ M),
    }
    made["item"] += cells.weighted_moments(F, lambda M: w.T @ M)
    return jax.tree.map(lambda block: 2 * data.sound * block, made)


def score(params: Any, users: Any) -> Float[Array, "B I"]:
    """`P[users] Q'`."""
    return params["user"][users] @ params["item"].T


def _fakes_in(batch: bilevel.Batch | None, users: int, F: Float[Array, "F D"]) -> Float[Array, "F 1"] | float:
    """1 for the fake users of a batch: rows from `users` on."""
    if batch is None:
        return 1.0
    slot = jnp.where(batch.mask & (batch.index >= users), batch.index - users, F.shape[0])
    return jnp.zeros((F.shape[0], 1), F.dtype).at[slot].set(1, mode="drop")
