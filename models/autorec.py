"""AutoRec: an autoencoder of users or of items with one hidden layer.

Sedhain, Menon, Sanner, Xie, *AutoRec: Autoencoders meet collaborative filtering*, WWW 2015, eqs 1-3; as the victim of
Song et al., ICDE 2020 (PoisonRec):

    r_hat = W2 sigmoid(W1 r + b1) + b2,    L = sum over the cells (r - r_hat)^2 + l2/2 (|W1|^2 + |W2|^2)

Ratings: the observed cells only. Clicks: all cells with weight 1, since of clicks alone a constant 1 is the optimum.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models import cells, itemae, sparse, wrmf
from models.cells import Cells
from models.data.interactions import Interactions
from models.recommender import Recommender, counts, flat, given, numbers, one_of, over_rows, settings, sound

By = Literal["user", "item"]


class Data(NamedTuple):
    """Observed cells with users or items as rows, their values (None: clicks), the mask of fake cells, 1 or NaN."""

    cells: Cells
    value: Float[Array, " E"] | None
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]


def autorec(
    *,
    by: By = "user",
    hidden: int = 500,
    learning_rate: float = 1e-3,
    l2: float = 1e-3,
    epochs: int = 100,
    batch: int | None = 512,
) -> Recommender:
    """AutoRec on clicks or on ratings, trained by Adam, as a `Recommender`.

    Args:
        by: whose rows are encoded: "user" (U-AutoRec) or "item" (I-AutoRec).
        hidden: width of the sigmoid layer, >= 1.
        learning_rate: of Adam, > 0.
        l2: of the two weight matrices, gradient `l2 * W`, >= 0.
        epochs: passes over the rows, >= 1.
        batch: rows per step; None: all of them.

    Raises:
        ValueError: a number outside its range, an unknown `by`.

    Reference: Sedhain et al., WWW 2015, eqs 1-3 and section 3.

    **Differs from the paper:** users are encoded unless `by="item"` is given, which the paper has for ratings
    (`preset("original")`); Adam instead of L-BFGS or Rprop; the form for clicks is ours. Ratings have their mean
    taken off, which changes no ranking; fake rows hold ratings as they are given, 0 where there is none.

    >>> autorec(hidden=4).init(jax.random.key(0), 3, 5, 1)["layers"][0]["kernel"].shape
    (5, 4)
    """
    config = dict(locals())
    counts("autorec", hidden=hidden, epochs=epochs, **given(batch=batch))
    numbers("autorec", 0, open_end=True, learning_rate=learning_rate)
    numbers("autorec", 0, l2=l2)
    one_of("autorec", "by", by, ("user", "item"))
    objective = partial(loss, by=by, l2=l2)

    def init(key, users, items, fakes):
        wide = items if by == "user" else users + fakes
        return flat(itemae.AutoEncoder(wide, (hidden,), rngs=nnx.Rngs(params=key)))

    def trainer(users, items, fakes, events=0):
        rows = users + fakes if by == "user" else items
        return over_rows(objective, optax.adam(learning_rate), epochs, rows, batch)

    return Recommender(
        name="autorec",
        config=config,
        prepare=partial(prepare, by=by),
        init=init,
        loss=objective,
        embed=partial(embed, by=by),
        score=wrmf.score,
        trainer=trainer,
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {"poisonrec": {}, "original": {"by": "item"}}
"""The settings of papers, by name (PoisonRec names the algorithm and no setting)."""


def preset(name: str, **changes: Any) -> Recommender:
    """AutoRec with the settings of a paper; `changes` replace some of them.

    >>> preset("original").config["by"]
    'item'
    """
    return autorec(**settings("autorec", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions, *, by: By) -> Data:
    """Clicks or ratings with users or items as rows; works under `jit` and `vmap`."""
    made = cells.build(train, form="observed")
    value = None
    if train.track == "explicit":  # one event a cell in row order: slot k is event k
        assert made.observed is not None
        value = jnp.where(train.mask, train.weight, 0)
        value = jnp.pad(value, (0, made.observed.row.shape[0] - value.shape[0]))
        value = value if by == "user" else value[made.observed.order]
    return Data(made if by == "user" else cells.turned(made), value, None, sound(train))


def centered(data: Data, x: Float[Array, "F I"]) -> tuple[Data, Float[Array, "F I"]]:
    """The same with the mean of all ratings, real and fake, taken off; clicks as they are."""
    if data.value is None:
        return data, x
    assert data.cells.observed is not None
    real = jnp.arange(data.value.shape[0]) < data.cells.observed.row_start[-1]
    rated = _rated(data, x)
    total = jnp.sum(data.value) + jnp.sum(rated * x)
    level = total / jnp.maximum(jnp.sum(real) + jnp.sum(rated), 1)
    value = jnp.where(real, data.value - level, 0)
    return data._replace(value=value, observed=rated > 0), rated * (x - level)


def loss(params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, by: By, l2: float) -> Float[Array, ""]:
    """The objective over the rows of `ctx.batch` (None: all) and the penalty of the weights."""
    step = _by_user if by == "user" else _by_item
    data, x = centered(data, x)
    weights = sum(jnp.vdot(layer["kernel"], layer["kernel"]) for layer in params["layers"].values())
    return data.sound * step(params, x, data, ctx.batch) + l2 / 2 * weights


def _by_user(
    params: Any, x: Float[Array, "F I"], data: Data, batch: bilevel.Batch | None
) -> Float[Array, ""]:
    """Squared errors of the users of a batch; fake users are rows beside the real ones."""
    out, users = itemae.decoder(params), data.cells.shape[0]
    real = _errors(_hidden(params, *_take(data, batch)), out, data, batch)
    if x.shape[0] == 0:
        return real
    at = (
        None
        if batch is None
        else jnp.where(batch.mask & (batch.index >= users), batch.index - users, x.shape[0])
    )
    here = 1.0 if at is None else jnp.zeros((x.shape[0], 1), x.dtype).at[at].set(1, mode="drop")
    weight = _rated(data, x)
    first, _ = params["layers"].values()
    h = _with_one(jax.nn.sigmoid((weight * x) @ first["kernel"] + first["bias"]))
    return real + cells.block_loss(h, out, x, weight * here)


def _by_item(
    params: Any, x: Float[Array, "F I"], data: Data, batch: bilevel.Batch | None
) -> Float[Array, ""]:
    """Squared errors of the items of a batch; fake users are columns of every row."""
    out, users = itemae.decoder(params), data.cells.shape[1]
    _, index, counted = cells.take(data.cells, batch)
    weight = _rated(data, x).T[index] * counted
    fakes = x.T[index]
    h = _hidden(params, *_take(data, batch), weight * fakes)
    return _errors(h, out[:users], data, batch) + cells.block_loss(h, out[users:], fakes, weight)


def _take(data: Data, batch: bilevel.Batch | None) -> tuple[sparse.Observed, Float[Array, " E"]]:
    """The cells of a batch's rows and their values."""
    assert data.cells.observed is not None
    value = jnp.ones(data.cells.observed.row.shape, data.sound.dtype) if data.value is None else data.value
    if batch is None:
        return data.cells.observed, value
    rows = data.cells.shape[0]
    real = batch.mask & (batch.index < rows)
    return sparse.select_values(data.cells.observed, value, jnp.where(real, batch.index, 0), real)


def _hidden(
    params: Any, chosen: sparse.Observed, value: Float[Array, " E"], fakes: Float[Array, "B F"] | None = None
) -> Float[Array, "B H+1"]:
    """The hidden layer of each row, with a 1 for the output's bias."""
    first, _ = params["layers"].values()
    width = chosen.col_start.shape[0] - 1
    h = sparse.spread(value, first["kernel"][:width], chosen) + first["bias"]
    if fakes is not None:
        h += fakes @ first["kernel"][width:]
    return _with_one(jax.nn.sigmoid(h))


def _errors(
    h: Float[Array, "B H+1"], out: Float[Array, "C H+1"], data: Data, batch: bilevel.Batch | None
) -> Array:
    """Squared errors of all cells (clicks) or of the observed ones (ratings) of the real rows of a batch."""
    chosen, value = _take(data, batch)
    if data.value is None:
        _, _, counted = cells.take(data.cells, batch)
        return cells.loss(h * counted, out, Cells(None, chosen), 1.0)
    real = jnp.arange(value.shape[0]) < chosen.row_start[-1]
    return jnp.sum(jnp.where(real, value - sparse.sampled(h, out, chosen), 0) ** 2)


def _rated(data: Data, x: Float[Array, "F I"]) -> Float[Array, "F I"]:
    """1 where a fake cell is an observation, as a constant: every cell of clicks, the cells above 0 of ratings."""
    if data.value is None:
        return jnp.ones_like(x)
    return (x > 0 if data.observed is None else data.observed).astype(x.dtype)


def _with_one(h: Float[Array, "B H"]) -> Float[Array, "B H+1"]:
    return jnp.concatenate([h, jnp.ones((h.shape[0], 1), h.dtype)], 1)


def states(params: Any, data: Data, users: Int[Array, " B"]) -> Float[Array, "B H+1"]:
    """`embed`'s rows of a few real users, by users and without fake ones: in floats their cells only, in integers all.

    >>> from models.data import Interactions
    >>> data = prepare(Interactions.from_arrays([0, 1, 2, 2], [0, 3, 1, 3], items=4), by="user")
    >>> params, some = autorec(hidden=2).init(jax.random.key(0), 3, 4, 0), jnp.array([2, 0, 2])
    >>> every = embed(params, jnp.zeros((0, 4)), data, by="user")["user"]
    >>> bool(jnp.allclose(jax.jit(states)(params, data, some), every[some]))
    True
    """
    distinct, place = jnp.unique(users, return_inverse=True, size=users.shape[0], fill_value=0)
    there = jnp.arange(users.shape[0]) <= jnp.max(place)
    data, _ = centered(data, jnp.zeros((0, data.cells.shape[1]), data.sound.dtype))
    return data.sound * _hidden(params, *_take(data, bilevel.Batch(distinct, there)))[place]


def embed(params: Any, x: Float[Array, "F I"], data: Data, *, by: By) -> Any:
    """`{"user", "item"}` whose products are the predictions for real users; by item, the items read the fake rows."""
    out = itemae.decoder(params)
    data, x = centered(data, x)
    if by == "user":
        return {"user": data.sound * _hidden(params, *_take(data, None)), "item": out}
    h = _hidden(params, *_take(data, None), _rated(data, x).T * x.T)
    return {"user": data.sound * out[: data.cells.shape[1]], "item": h}
