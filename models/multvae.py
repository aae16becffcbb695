"""Mult-VAE: a variational autoencoder of users whose output is a distribution over items.

Liang, Krishnan, Hoffman, Jebara, *Variational autoencoders for collaborative filtering*, WWW 2018, eqs 2-6; as a victim
of Tang, Wen, Wang, RecSys 2020 (RevAdv):

    (mu, log sigma^2) = encoder(x_u / |x_u|),    z = mu + sigma * eps,    pi = softmax(decoder(z))
    L = mean over users of  -sum_i x_ui log pi_i  +  beta KL(N(mu, sigma^2) | N(0, 1))

Only the first and the last layer are as wide as the items. The first is a sum over clicks, and of the log-likelihood
only the normalizer needs every item.
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
from models import cells, sparse, wrmf
from models.cells import Cells
from models.data.interactions import Interactions
from models.recommender import (
    Recommender,
    clicks_only,
    counts,
    flat,
    given,
    numbers,
    over_rows,
    settings,
    sound,
)


class Data(NamedTuple):
    """The clicks of the real users, an unused mask (a relaxed cell is a weight here), and 1 or NaN."""

    cells: Cells
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]


class Network(nnx.Module):
    """`items -> hidden -> (mu, log sigma^2)` and `latent -> hidden -> items`; Xavier weights, biases near 0."""

    def __init__(self, items: int, hidden: int, latent: int, *, rngs: nnx.Rngs):
        self.inward, self.code = _linear(items, hidden, rngs), _linear(hidden, 2 * latent, rngs)
        self.back, self.outward = _linear(latent, hidden, rngs), _linear(hidden, items, rngs)


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    small = nnx.initializers.truncated_normal(1e-3)
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.initializers.xavier_uniform(),
        bias_init=small,
        param_dtype=jnp.result_type(float),
        rngs=rngs,
    )


def multvae(
    *,
    hidden: int = 600,
    latent: int = 200,
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    beta: float = 0.2,
    beta_step: float = 5e-6,
    dropout: float = 0.5,
    noise: float = 1.0,
    normalize: bool = True,
    per_click: bool = False,
    epochs: int = 200,
    batch: int | None = 500,
) -> Recommender:
    """Mult-VAE trained by Adam, as a `Recommender`.

    Args:
        hidden: width of the encoder's and of the decoder's tanh layer, >= 1.
        latent: width of z, >= 1.
        learning_rate: of Adam, > 0.
        l2: gradient `l2 * theta` added before Adam, >= 0.
        beta: largest weight of the KL term, >= 0; `min(beta, beta_step * updates)` counts.
        beta_step: its growth per update, > 0.
        dropout: share of input clicks left out in training, in [0, 1).
        noise: standard deviation of eps in training, >= 0; RecBole's code has 0.01, which makes the code almost exact.
        normalize: divide the input by its norm.
        per_click: divide a user's log-likelihood by its number of clicks (RevAdv's code).
        epochs: passes over the users, >= 1.
        batch: users (real and fake) per step; None: all of them.

    Raises:
        ValueError: a number outside its range.

    Reference: Liang et al., WWW 2018; their released code for the defaults, RevAdv's and RecBole's for the presets.

    **Differs from the paper:** nothing for the original. RevAdv's code raises beta before the first update uses it,
    ours after, and starts its layers as PyTorch does, not by Xavier.

    >>> model = multvae(hidden=4, latent=2)
    >>> model.init(jax.random.key(0), 3, 7, 0)["code"]["kernel"].shape
    (4, 4)
    """
    config = dict(locals())
    counts("multvae", hidden=hidden, latent=latent, epochs=epochs, **given(batch=batch))
    numbers("multvae", 0, open_end=True, learning_rate=learning_rate, beta_step=beta_step)
    numbers("multvae", 0, l2=l2, beta=beta, dropout=dropout, noise=noise)
    if dropout >= 1:
        raise ValueError(f"multvae: dropout={dropout!r}; expected a share in [0, 1)")
    constants = {"beta": beta, "beta_step": beta_step, "dropout": dropout, "noise": noise}
    objective = partial(loss, l2=l2, normalize=normalize, per_click=per_click, **constants)

    def trainer(users, items, fakes, events=0):
        return over_rows(objective, optax.adam(learning_rate), epochs, users + fakes, batch)

    return Recommender(
        name="multvae",
        config=config,
        prepare=prepare,
        init=lambda key, users, items, fakes: flat(Network(items, hidden, latent, rngs=nnx.Rngs(params=key))),
        loss=objective,
        embed=partial(embed, normalize=normalize),
        score=wrmf.score,
        trainer=trainer,
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "original": {},
    "revadv": {
        "hidden": 512,
        "latent": 256,
        "l2": 1e-6,
        "beta": 1.0,
        "beta_step": 1e-4,
        "dropout": 0.0,
        "normalize": False,
        "per_click": True,
        "epochs": 70,
        "batch": 1024,
    },
    "recbole": {"latent": 64, "noise": 0.01, "epochs": 300, "batch": 2048},
}
"""The settings of papers and libraries, by name (RecBole's width of 128 counts the mean and the variance)."""


def preset(name: str, **changes: Any) -> Recommender:
    """Mult-VAE with the settings of a paper; `changes` replace some of them.

    >>> preset("revadv").config["per_click"]
    True
    """
    return multvae(**settings("multvae", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions) -> Data:
    """The clicks with users as rows; works under `jit` and `vmap`."""
    return Data(cells.build(clicks_only("multvae", train), form="observed"), None, sound(train))


def loss(
    params: Any,
    x: Float[Array, "F I"],
    data: Data,
    ctx: Any,
    *,
    l2: float,
    beta: float,
    beta_step: float,
    dropout: float,
    noise: float,
    normalize: bool,
    per_click: bool,
) -> Float[Array, ""]:
    """The objective over the users of the step."""
    users = data.cells.shape[0]
    everyone = jnp.arange(users + x.shape[0], dtype=jnp.int32)
    batch = bilevel.Batch(everyone, jnp.ones(everyone.shape, bool)) if ctx.batch is None else ctx.batch
    for_drop, for_noise = jax.random.split(ctx.key)
    rows = _Rows(*cells.take(data.cells, batch)[:1], x, batch, users)
    h = rows.sums(params["inward"]["kernel"], dropout, for_drop)
    h = jnp.tanh(h * rows.scale(normalize) + params["inward"]["bias"])
    mu, log_variance = jnp.split(_dense(params["code"], h), 2, axis=1)
    z = mu + noise * jnp.exp(log_variance / 2) * jax.random.normal(for_noise, mu.shape, mu.dtype)
    last = _with_one(jnp.tanh(_dense(params["back"], z)))
    out = decoder(params)
    clicks = rows.sums(jnp.ones((out.shape[0], 1), out.dtype))[:, 0]
    likelihood = jnp.sum(last * rows.sums(out), 1) - clicks * jax.nn.logsumexp(last @ out.T, axis=1)
    if per_click:
        likelihood /= jnp.where(clicks > 0, clicks, 1)
    weight = jnp.minimum(beta, beta_step * ctx.step)
    each = jnp.where(batch.mask, weight * divergence(mu, log_variance) - likelihood, 0)
    penalty = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
    return data.sound * (jnp.sum(each) / jnp.sum(batch.mask)) + l2 / 2 * penalty


class _Rows(NamedTuple):
    """The users of a batch: real ones by their clicks, fake ones by their relaxed rows."""

    clicks: Cells
    x: Float[Array, "F I"]
    batch: bilevel.Batch
    users: int

    def sums(
        self, B: Float[Array, "I K"], dropout: float = 0.0, key: Array | None = None
    ) -> Float[Array, "B K"]:
        """`sum_i x_ui B_i` for every user, a share of the clicks left out at random and the rest scaled up."""
        observed, x = self.clicks.observed, self.x
        assert observed is not None
        kept = jnp.ones(observed.row.shape, B.dtype)
        if dropout:
            real, fake = jax.random.split(key)  # pyright: ignore[reportArgumentType]
            stays = lambda key, shape: jax.random.bernoulli(key, 1 - dropout, shape) / (1 - dropout)
            kept, x = kept * stays(real, kept.shape), x * stays(fake, x.shape)
        return sparse.spread(kept, B, observed) + self._fakes(x @ B)

    def scale(self, normalize: bool) -> Float[Array, "B 1"] | float:
        """`1 / |x_u|`, 0 for a user without clicks."""
        if not normalize:
            return 1.0
        square = self._fakes(jnp.sum(self.x**2, 1, keepdims=True))
        square += cells.gather(jnp.ones((self.x.shape[1], 1), self.x.dtype), self.clicks)
        return jnp.where(square > 0, jnp.where(square > 0, square, 1) ** -0.5, 0)

    def _fakes(self, values: Float[Array, "F K"]) -> Float[Array, "B K"] | float:
        """A value of each fake user put where the batch has it, 0 elsewhere."""
        if self.x.shape[0] == 0:
            return 0.0
        at = self.batch.index - self.users
        here = (at >= 0) & self.batch.mask
        return jnp.where(here[:, None], values[jnp.where(here, at, 0)], 0)


def divergence(mu: Float[Array, "B Z"], log_variance: Float[Array, "B Z"]) -> Float[Array, " B"]:
    """`KL(N(mu, sigma^2) | N(0, 1)) = 1/2 sum (sigma^2 + mu^2 - 1 - log sigma^2)`.

    >>> float(divergence(jnp.zeros((1, 3)), jnp.zeros((1, 3)))[0])
    0.0
    """
    return jnp.sum(jnp.exp(log_variance) + mu**2 - 1 - log_variance, 1) / 2


def decoder(params: Any) -> Float[Array, "I H+1"]:
    """The output layer as one row `[W_i, b_i]` per item."""
    return jnp.concatenate([params["outward"]["kernel"].T, params["outward"]["bias"][:, None]], 1)


def embed(params: Any, x: Float[Array, "F I"], data: Data, *, normalize: bool) -> Any:
    """`{"user": (U, H+1), "item": (I, H+1)}` whose products are the logits, from the mean code and all clicks."""
    users = data.cells.shape[0]
    everyone = jnp.arange(users, dtype=jnp.int32)
    rows = _Rows(data.cells, x[:0], bilevel.Batch(everyone, everyone >= 0), users)
    h = rows.sums(params["inward"]["kernel"]) * rows.scale(normalize)
    mu = jnp.split(_dense(params["code"], jnp.tanh(h + params["inward"]["bias"])), 2, axis=1)[0]
    return {"user": data.sound * _with_one(jnp.tanh(_dense(params["back"], mu))), "item": decoder(params)}


def _dense(layer: Any, h: Array) -> Array:
    return h @ layer["kernel"] + layer["bias"]


def _with_one(h: Float[Array, "B H"]) -> Float[Array, "B H+1"]:
    return jnp.concatenate([h, jnp.ones((h.shape[0], 1), h.dtype)], 1)
