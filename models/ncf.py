"""NCF: GMF and NeuMF, which put a network where matrix factorization has a dot product.

He, Liao, Zhang, Nie, Hu, Chua, *Neural collaborative filtering*, WWW 2017, eqs 7-12; as the victim of RevAdv
(RecSys 2020), RAPU (KDD 2021) and PoisonRec (ICDE 2020):

    GMF      s_ui = h . (p_u * q_i) + b
    NeuMF    s_ui = h . [p_u * q_i; tower([p'_u; q'_i])] + b,    tower of ReLU layers over its own embeddings

trained as a classifier: binary cross-entropy of sigmoid(s) for clicks against `negatives` sampled items each. Or of
ratings, as Tran, Ghazimatin and Saha Roy, SIGIR 2021 (ACCENT) explain it: the mean of (r_ui - s_ui)^2.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from models import mf, pairs
from models.recommender import Recommender, counts, flat, given, numbers, one_of, settings

Objective = Literal["clicks", "ratings"]
Initial = Literal["uniform", "truncated"]

CELLS = 1 << 23
"""Hidden values of the tower held at once when every item is scored: 32 MiB in float32."""


class Network(nnx.Module):
    """Embeddings of users, items and fakes for the product and for the tower, the tower, and the last layer."""

    def __init__(
        self,
        users: int,
        items: int,
        fakes: int,
        factors: int,
        tower: int,
        hidden: Sequence[int],
        scale: float,
        initial: Initial,
        *,
        rngs: nnx.Rngs,
    ):
        kind = jax.random.normal if initial == "uniform" else _truncated
        draw = lambda rows, width: nnx.Param(scale * kind(rngs.params(), (rows, width)))
        self.user, self.item, self.fake = (draw(rows, factors) for rows in (users, items, fakes))
        width = factors
        if tower:
            self.tower_user, self.tower_item, self.tower_fake = (
                draw(rows, tower) for rows in (users, items, fakes)
            )
            widths = [2 * tower, *hidden]
            self.layers = nnx.List([_linear(*pair, initial, rngs) for pair in itertools.pairwise(widths)])
            width += widths[-1]
        self.last = _linear(width, 1, initial, rngs)


def _truncated(key, shape, dtype=float):
    """TensorFlow's: a normal without what lies beyond two standard deviations."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


def _linear(inputs: int, outputs: int, initial: Initial, rngs: nnx.Rngs) -> nnx.Linear:
    bound = inputs**-0.5  # PyTorch's and, up to a constant, Keras' LeCun initialization
    draw = lambda key, shape, dtype, *_: jax.random.uniform(key, shape, dtype, -bound, bound)
    bias, precision = draw, jnp.result_type(float)
    if initial == "truncated":
        draw, bias = (
            lambda key, shape, dtype, *_: bound * _truncated(key, shape, dtype),
            nnx.initializers.zeros,
        )
    return nnx.Linear(inputs, outputs, kernel_init=draw, bias_init=bias, param_dtype=precision, rngs=rngs)


def neumf(
    *,
    factors: int = 8,
    tower: int = 32,
    hidden: Sequence[int] = (32, 16, 8),
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    summed_penalty: bool = False,
    weight_decay: float = 0.0,
    epochs: int = 100,
    batch: int | None = 256,
    negatives: int = 4,
    scale: float = 0.01,
    objective: Objective = "clicks",
    initial: Initial = "uniform",
) -> Recommender:
    """NeuMF trained by Adam, as a `Recommender`.

    Args:
        factors: width of the product's embeddings, >= 1.
        tower: width of the tower's embeddings of a user and of an item, >= 1.
        hidden: widths of the tower's ReLU layers after the concatenated `2 * tower`; may be empty: the last layer then
            reads the embeddings themselves.
        learning_rate: of Adam, > 0.
        l2: of all embeddings a batch looks up, gradient `l2 * theta`, >= 0.
        summed_penalty: the penalty is summed over the batch (RevAdv's code) instead of averaged.
        weight_decay: of all parameters, looked up or not, gradient `weight_decay * theta` before Adam, as PyTorch's
            Adam has it, >= 0.
        epochs: passes over the clicks, >= 1.
        batch: clicks per step; None: all of them.
        negatives: items drawn for each click, >= 1. The cross-entropy is averaged over `1 + negatives`.
        scale: standard deviation of the initial embeddings, > 0.
        objective: "clicks": cross-entropy. "ratings": squared error of the ratings as they are; nothing is drawn.
        initial: "uniform": layers within `1 / sqrt(inputs)`, embeddings normal. "truncated": both normal, cut at two
            standard deviations (of `1 / sqrt(inputs)` and `scale`), biases 0.

    Raises:
        ValueError: a number outside its range, an unknown name; clicks where ratings are learned, or the other way.

    Reference: He et al., WWW 2017, eqs 7-12, and their code (PoisonRec's reference); the code of RevAdv and ACCENT.

    **Differs from the paper:** no pretraining of the two branches; dense layers start as in PyTorch. ACCENT's biases
    are not decayed; here `weight_decay` is of all parameters.

    >>> model = neumf(factors=2, tower=3, hidden=(4,))
    >>> model.init(jax.random.key(0), 5, 6, 0)["last"]["kernel"].shape
    (6, 1)
    """
    hidden = tuple(hidden)
    config = dict(locals())
    counts("neumf", tower=tower, **{f"hidden[{k}]": width for k, width in enumerate(hidden)})
    return _ncf("neumf", config, tower, hidden)


def gmf(
    *,
    factors: int = 64,
    learning_rate: float = 1e-2,
    l2: float = 1e-5,
    summed_penalty: bool = False,
    weight_decay: float = 0.0,
    epochs: int = 100,
    batch: int | None = 2048,
    negatives: int = 4,
    scale: float = 0.01,
    objective: Objective = "clicks",
) -> Recommender:
    """GMF trained by Adam, as a `Recommender`: NeuMF without the tower.

    Args:
        factors, learning_rate, l2, summed_penalty, weight_decay, epochs, batch, negatives, scale, objective: as in
            `neumf`.

    Raises:
        ValueError: a number outside its range.

    Reference: He et al., WWW 2017, eqs 8-9; RAPU (KDD 2021), section 5.1.3 and Table 4.

    **Differs from the paper:** RAPU says NCF is GMF and gives width, rate, L2 and epochs only. Its presets take the
    rest from RecBole 0.2.1, the library it names: one negative, batches of 2048 that count the negatives, and L2 as
    Adam's weight decay of all parameters, which RAPU's own code has too. The defaults here are older guesses: 4
    negatives, 2048 clicks, L2 of what is looked up.

    >>> gmf(factors=4).init(jax.random.key(0), 3, 5, 1)["fake"].shape
    (1, 4)
    """
    config = dict(locals())
    return _ncf("gmf", config, 0, ())


def _ncf(name: str, config: Mapping[str, Any], tower: int, hidden: tuple[int, ...]) -> Recommender:
    factors, epochs, batch, negatives = (config[k] for k in ("factors", "epochs", "batch", "negatives"))
    counts(name, factors=factors, epochs=epochs, negatives=negatives, **given(batch=batch))
    numbers(name, 0, open_end=True, learning_rate=config["learning_rate"], scale=config["scale"])
    numbers(name, 0, l2=config["l2"], weight_decay=config["weight_decay"])
    one_of(name, "objective", config["objective"], get_args(Objective))
    initial = config.get("initial", "uniform")
    one_of(name, "initial", initial, get_args(Initial))
    optimizer = optax.adam(config["learning_rate"])
    penalties = {
        "l2": config["l2"],
        "summed": config["summed_penalty"],
        "weight_decay": config["weight_decay"],
    }
    if config["objective"] == "clicks":
        objective = partial(loss, negatives=negatives, **penalties)
        prepare = partial(pairs.prepare, name=name)
    else:
        objective = partial(loss_of_ratings, **penalties)
        prepare = partial(mf.prepare, highest=1.0, name=name)

    def init(key, users, items, fakes):
        shape = (factors, tower, hidden, config["scale"], initial)
        return flat(Network(users, items, fakes, *shape, rngs=nnx.Rngs(params=key)))

    return Recommender(
        name=name,
        config=config,
        prepare=prepare,
        init=init,
        loss=objective,
        embed=pairs.embed,
        score=score,
        trainer=pairs.trainer(name, objective, optimizer, epochs, batch),
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "revadv": {
        "factors": 256,
        "tower": 64,
        "hidden": (),
        "learning_rate": 3e-4,
        "l2": 1e-4,
        "summed_penalty": True,
        "epochs": 90,
        "batch": 512,
        "negatives": 5,
        "scale": 1.0,
    },
    "poisonrec": {},
    "recbole": {
        "factors": 64,
        "tower": 64,
        "hidden": (128, 64),
        "batch": 2048,
        "negatives": 1,
        "epochs": 300,
    },
    "accent": {
        "factors": 16,
        "tower": 16,
        "hidden": (16, 8),
        "weight_decay": 1e-3,
        "epochs": 2449,
        "batch": 1246,
        "scale": 0.25,
        "objective": "ratings",
        "initial": "truncated",
    },
}
"""NeuMF's settings of papers and libraries, by name."""

_RAPU: Mapping[str, Any] = {"l2": 0.0, "weight_decay": 1e-5, "batch": 1024, "negatives": 1}

GMF_PRESETS: Mapping[str, Mapping[str, Any]] = {"rapu-ml": _RAPU, "rapu-video": {**_RAPU, "epochs": 200}}
"""GMF's settings of RAPU (KDD 2021; Table 4, the rest RecBole's), by data set."""


def preset(name: str, **changes: Any) -> Recommender:
    """NeuMF, or for RAPU's names GMF, with the settings of a paper; `changes` replace some of them.

    >>> preset("revadv").config["hidden"], preset("rapu-ml").name
    ((), 'gmf')
    """
    if name in GMF_PRESETS:
        return gmf(**settings("gmf", GMF_PRESETS, name, changes))
    return neumf(**settings("neumf", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def loss(
    params: Any,
    x: Float[Array, "F I"],
    data: pairs.Data,
    ctx: Any,
    *,
    l2: float,
    negatives: int,
    summed: bool,
    weight_decay: float = 0.0,
) -> Float[Array, ""]:
    """The objective over the pairs of the step, and the penalty of all parameters."""
    found = pairs.draw(data, x, ctx, negatives)
    items = jnp.concatenate([found.item[:, None], found.negative], 1)
    s, looked_up = rated(params, found.user, items)
    entropy = (jax.nn.softplus(-s[:, 0]) + jnp.sum(jax.nn.softplus(s[:, 1:]), 1)) / (1 + negatives)
    penalty = jnp.vdot(found.weight, looked_up) if summed else pairs.mean(found.weight, looked_up)
    total = data.sound * (pairs.mean(found.weight, entropy) + l2 / 2 * penalty)
    return total + _decay(params, weight_decay)


def loss_of_ratings(
    params: Any,
    x: Float[Array, "F I"],
    data: mf.Data,
    ctx: Any,
    *,
    l2: float,
    summed: bool,
    weight_decay: float = 0.0,
) -> Float[Array, ""]:
    """The squared error over the ratings of the step, and the penalty of all parameters."""
    user, item, rating, weight = mf.drawn(data, x, ctx, params["user"].shape[0])
    s, looked_up = rated(params, user, item[:, None])
    penalty = jnp.vdot(weight, looked_up) if summed else pairs.mean(weight, looked_up)
    total = data.sound * (pairs.mean(weight, (rating - s[:, 0]) ** 2) + l2 / 2 * penalty)
    return total + _decay(params, weight_decay)


def _decay(params: Any, weight_decay: float) -> Float[Array, ""] | float:
    """Touches every row in every step, so it is left out where it is 0."""
    if not weight_decay:
        return 0.0
    return weight_decay / 2 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))


def rated(
    params: Any, user: Int[Array, " B"], items: Int[Array, "B N"]
) -> tuple[Float[Array, "B N"], Float[Array, " B"]]:
    """Scores of rows of `[real users; fake users]` and items, and the squared norm of the embeddings looked up."""
    p, q = pairs.joined(params["user"], params["fake"])[user][:, None], params["item"][items]
    looked_up = jnp.sum(p**2, (1, 2)) + jnp.sum(q**2, (1, 2))
    hidden = [p * q]
    if "layers" in params or "tower_user" in params:
        a = pairs.joined(params["tower_user"], params["tower_fake"])[user][:, None]
        b = params["tower_item"][items]
        looked_up += jnp.sum(a**2, (1, 2)) + jnp.sum(b**2, (1, 2))
        hidden.append(through(params, jnp.concatenate([jnp.broadcast_to(a, b.shape), b], -1)))
    return _last(params, jnp.concatenate(hidden, -1)), looked_up


def through(params: Any, h: Float[Array, "*B H"]) -> Float[Array, "*B H2"]:
    """The tower."""
    for layer in params.get("layers", {}).values():
        h = jax.nn.relu(h @ layer["kernel"] + layer["bias"])
    return h


def _last(params: Any, h: Float[Array, "*B H"]) -> Float[Array, "*B"]:
    return (h @ params["last"]["kernel"])[..., 0] + params["last"]["bias"]


def score(params: Any, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """Logits for every item; the tower sees a few users at a time, so memory does not follow B x I x width."""
    D = params["item"].shape[1]
    head = params["last"]["kernel"][:, 0]
    product = (params["user"][users] * head[:D]) @ params["item"].T + params["last"]["bias"]
    if "tower_user" not in params:
        return product
    first, *rest = params.get("layers", {}).values() or (None,)
    a, b = params["tower_user"][users], params["tower_item"]
    if first is None:  # no hidden layer: the last one is linear in both embeddings
        width = a.shape[1]
        return product + (a @ head[D : D + width])[:, None] + b @ head[D + width :]
    width = a.shape[
        1
    ]  # the first layer mixes user and item before its ReLU, but its two products need no pairs
    a, b = a @ first["kernel"][:width] + first["bias"], b @ first["kernel"][width:]

    def of(user):
        h = jax.nn.relu(user + b)
        for layer in rest:
            h = jax.nn.relu(h @ layer["kernel"] + layer["bias"])
        return h @ head[D:]

    return product + lax.map(of, a, batch_size=max(1, min(len(users), CELLS // b.size)))
