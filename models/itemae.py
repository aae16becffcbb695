"""ItemAE: an autoencoder of items, each described by who clicked it.

Tang, Wen, Wang, RecSys 2020 (RevAdv), section 3.3; after Sedhain et al., *AutoRec*, WWW 2015:

    r_i = D(E(x_i)),    L = sum over all i, u of w_ui (x_ui - r_ui)^2 + l2/2 |theta|^2,    x_i the column over users

Real and fake users are inputs and outputs of the network, so its parameters change shape with the number of
fakes, and its predictions read the fake rows: `dL/dx` is not zero with the parameters held, which makes it the
surrogate of RevAdv's partial derivative (PD).

Only the first and the last layer are as wide as the users. The first is the matrix of clicks times a kernel, and the
last, bias included, is a factorization `[h, 1] . [W_u, b_u]`, so both follow the clicks where that is cheaper
(`models.cells`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from models import cells, wrmf
from models.cells import Form
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
from models.wrmf import Data

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "selu": jax.nn.selu,
    "relu": jax.nn.relu,
}


class AutoEncoder(nnx.Module):
    """Dense layers `users -> hidden ... -> users`, kernels and biases uniform in +-1/sqrt(inputs) as in PyTorch."""

    def __init__(self, users: int, hidden: Sequence[int], *, rngs: nnx.Rngs):
        widths = [users, *hidden, users]
        self.layers = nnx.List([_linear(*pair, rngs) for pair in itertools.pairwise(widths)])


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    bound = inputs**-0.5
    draw = lambda key, shape, dtype, *_: jax.random.uniform(key, shape, dtype, -bound, bound)
    precision = jnp.result_type(float)  # float64 where JAX has it enabled
    return nnx.Linear(inputs, outputs, kernel_init=draw, bias_init=draw, param_dtype=precision, rngs=rngs)


def itemae(
    *,
    hidden: Sequence[int] = (256, 128, 256),
    activation: str = "tanh",
    learning_rate: float = 1e-3,
    weight: float = 20.0,
    l2: float = 1e-6,
    epochs: int = 50,
    batch: int | None = 2048,
    form: Form = "auto",
) -> Recommender:
    """ItemAE trained by Adam, as a `Recommender`.

    Args:
        hidden: widths of the hidden layers, at least one.
        activation: of the hidden layers: "tanh", "selu" or "relu". The output is linear.
        learning_rate: of Adam, > 0.
        weight: w+ of a click, >= 1.
        l2: gradient `l2 * theta` added before Adam (PyTorch's weight decay), >= 0; biases included.
        epochs: passes over the items, >= 1.
        batch: items per step, all users in the loss; no more items than that take one full step per epoch. None: full.
        form: how products with the clicks are computed, as in `wrmf`.

    Raises:
        ValueError: a number outside its range, an unknown activation or form.

    Reference: RevAdv (RecSys 2020), section 3.3, and its released code for widths and rates.

    **Differs from the paper:** nothing known.

    >>> model = itemae(hidden=(8,), epochs=3)
    >>> params = model.init(jax.random.key(0), 5, 7, 2)
    >>> [layer["kernel"].shape for layer in params["layers"].values()]
    [(7, 8), (8, 7)]
    """
    hidden = tuple(hidden)
    config = dict(locals())
    _check(**config)
    act = ACTIVATIONS[activation]
    objective = partial(loss, act=act, weight=weight, l2=l2)

    def trainer(users, items, fakes, events=0):
        return over_rows(objective, optax.adam(learning_rate), epochs, items, batch)

    return Recommender(
        name="itemae",
        config=config,
        prepare=partial(prepare, form=form),
        init=lambda key, users, items, fakes: flat(
            AutoEncoder(users + fakes, hidden, rngs=nnx.Rngs(params=key))
        ),
        loss=objective,
        embed=partial(embed, act=act),
        score=wrmf.score,
        trainer=trainer,
    )


def _check(*, hidden, activation, learning_rate, weight, l2, epochs, batch, form) -> None:
    if not hidden:
        raise ValueError(
            "itemae: hidden=(); expected at least one hidden layer, for instance (256, 128, 256)"
        )
    counts("itemae", epochs=epochs, **given(batch=batch))
    counts("itemae", **{f"hidden[{k}]": width for k, width in enumerate(hidden)})
    numbers("itemae", 0, open_end=True, learning_rate=learning_rate)
    numbers("itemae", 1, weight=weight)
    numbers("itemae", 0, l2=l2)
    one_of("itemae", "activation", activation, ACTIVATIONS)
    one_of("itemae", "form", form, cells.FORMS)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "revadv-gowalla": {
        "hidden": (256, 128, 256),
        "activation": "tanh",
        "learning_rate": 1e-3,
        "l2": 1e-6,
        "epochs": 50,
    },
    "revadv-toy": {
        "hidden": (64, 32, 64),
        "activation": "selu",
        "learning_rate": 1e-2,
        "l2": 0.0,
        "epochs": 100,
        "batch": None,
    },
}
"""The settings of RevAdv's released code, by name."""


def preset(name: str, **changes: Any) -> Recommender:
    """ItemAE with the settings of a paper; `changes` replace some of them.

    >>> preset("revadv-toy").config["activation"]
    'selu'
    """
    return itemae(**settings("itemae", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions, *, form: Form = "auto") -> Data:
    """The clicks with items as rows; works under `jit` and `vmap`."""
    return Data(cells.build(clicks_only("itemae", train), by="item", form=form), None, sound(train))


def encode(params: Any, x: Float[Array, "B F"], clicks: cells.Cells, act: Callable) -> Float[Array, "B H+1"]:
    """The last hidden layer of each item, with a 1 for the output's bias. `x` holds the items' fake columns."""
    first, *middle, _ = params["layers"].values()
    users = clicks.shape[1]
    h = act(cells.gather(first["kernel"][:users], clicks) + x @ first["kernel"][users:] + first["bias"])
    for layer in middle:
        h = act(h @ layer["kernel"] + layer["bias"])
    return jnp.concatenate([h, jnp.ones((h.shape[0], 1), h.dtype)], 1)


def loss(
    params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, act: Callable, weight: float, l2: float
) -> Float[Array, ""]:
    """The objective over the items of `ctx.batch` (None: all), all real and fake users, and the penalty."""
    chosen, index, counts = cells.take(data.cells, ctx.batch)
    fakes = x.T[index] * counts
    w = cell_weights(x, data.observed, weight).T[index] * counts
    h = encode(params, fakes, chosen, act) * counts
    out, users = decoder(params), data.cells.shape[1]
    total = cells.loss(h, out[:users], chosen, weight) + cells.block_loss(h, out[users:], fakes, w)
    penalty = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
    return data.sound * total + l2 / 2 * penalty


def decoder(params: Any) -> Float[Array, "U+F H+1"]:
    """The output layer as one row `[W_u, b_u]` per user."""
    *_, last = params["layers"].values()
    return jnp.concatenate([last["kernel"].T, last["bias"][:, None]], 1)


def embed(params: Any, x: Float[Array, "F I"], data: Data, *, act: Callable) -> Any:
    """`{"user": (U, H+1), "item": (I, H+1)}` whose products are the predictions for real users; the items read `x`."""
    item = data.sound * encode(params, x.T, data.cells, act)
    return {"user": decoder(params)[: data.cells.shape[1]], "item": item}
