"""NGCF: embeddings that pass messages along the clicks, each layer with its own weights.

Wang, He, Wang, Feng, Chua, *Neural graph collaborative filtering*, SIGIR 2019, eqs 3-9; as the victim of Song et al.,
ICDE 2020 (PoisonRec):

    E^(k+1) = LeakyReLU((A_n E + E) W1 + (A_n E * E) W2 + b),    A_n = D^-1/2 A D^-1/2
    E* = [E^(0), n(E^(1)), ..., n(E^(L))],  n: rows scaled to norm 1,    s_ui = E*_u . E*_i

trained by BPR with a penalty on the final embeddings of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from models import bpr, cells, graph, lightgcn, pairs, wrmf
from models.cells import Form
from models.recommender import Recommender, counts, flat, given, numbers, one_of, settings

SLOPE = 0.2  # of LeakyReLU below 0


class Network(nnx.Module):
    """Embeddings, Xavier-uniform, and for each layer the weights of the sum and of the product message."""

    def __init__(
        self, users: int, items: int, fakes: int, factors: int, layers: Sequence[int], *, rngs: nnx.Rngs
    ):
        start = lightgcn.init(rngs.params(), users, items, fakes, factors=factors, scale=None)
        self.user, self.item, self.fake = (nnx.Param(start[name]) for name in ("user", "item", "fake"))
        widths = [factors, *layers]
        xavier, precision = nnx.initializers.xavier_uniform(), jnp.result_type(float)
        draw = lambda a, b: nnx.Linear(a, b, kernel_init=xavier, param_dtype=precision, rngs=rngs)
        plain = lambda a, b: nnx.Linear(
            a, b, use_bias=False, kernel_init=xavier, param_dtype=precision, rngs=rngs
        )
        steps = list(itertools.pairwise(widths))
        self.sum, self.product = nnx.List([draw(*s) for s in steps]), nnx.List([plain(*s) for s in steps])


def ngcf(
    *,
    factors: int = 64,
    layers: Sequence[int] = (64, 64, 64),
    learning_rate: float = 1e-4,
    l2: float = 1e-5,
    dropout: float = 0.1,
    epochs: int = 400,
    batch: int | None = 1024,
    negatives: int = 1,
    form: Form = "auto",
) -> Recommender:
    """NGCF trained by Adam, as a `Recommender`.

    Args:
        factors: width of the embeddings, >= 1.
        layers: width of each layer's output, at least one.
        learning_rate: of Adam, > 0.
        l2: of the final embeddings a pair looks up, `l2/2 |e|^2`, averaged, >= 0.
        dropout: share of message entries set to 0 in training, in [0, 1).
        epochs, batch, negatives: as in `bpr`. Every step propagates over the whole graph.
        form: how products with the clicks are computed, as in `wrmf`.

    Raises:
        ValueError: a number outside its range.

    Reference: Wang et al., SIGIR 2019, eqs 3-12 and section 4.2.3.

    **Differs from the paper:** no node dropout (0 in its settings). The released code takes LeakyReLU of the two
    messages apart and normalizes the adjacency by rows; this is the paper's form.

    >>> model = ngcf(factors=4, layers=(3, 2))
    >>> model.init(jax.random.key(0), 5, 6, 0)["product"][1]["kernel"].shape
    (3, 2)
    """
    layers = tuple(layers)
    config = dict(locals())
    if not layers:
        raise ValueError("ngcf: layers=(); expected at least one, for instance (64, 64, 64)")
    counts("ngcf", factors=factors, epochs=epochs, negatives=negatives, **given(batch=batch))
    counts("ngcf", **{f"layers[{k}]": width for k, width in enumerate(layers)})
    numbers("ngcf", 0, open_end=True, learning_rate=learning_rate)
    numbers("ngcf", 0, l2=l2, dropout=dropout)
    if dropout >= 1:
        raise ValueError(f"ngcf: dropout={dropout!r}; expected a share in [0, 1)")
    one_of("ngcf", "form", form, cells.FORMS)
    objective = partial(loss, l2=l2, dropout=dropout, negatives=negatives)

    return Recommender(
        name="ngcf",
        config=config,
        prepare=partial(lightgcn.prepare, form=form, name="ngcf"),
        init=lambda key, users, items, fakes: flat(
            Network(users, items, fakes, factors, layers, rngs=nnx.Rngs(params=key))
        ),
        loss=objective,
        embed=embed,
        score=wrmf.score,
        trainer=pairs.trainer("ngcf", objective, optax.adam(learning_rate), epochs, batch),
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "poisonrec": {},
    "brief": {"learning_rate": 1e-3, "epochs": 120, "batch": 8192},
    "recbole": {"learning_rate": 1e-3, "epochs": 300, "batch": 2048},
}
"""The settings of papers and libraries, by name (PoisonRec points to NGCF's own code). "brief" takes about a 26th of
the paper's steps at ten times its rate: every step passes over the whole graph, and theirs take hours on a CPU.
"""


def preset(name: str, **changes: Any) -> Recommender:
    """NGCF with the settings of a paper or a library; `changes` replace some of them.

    >>> preset("paper", epochs=5).config["layers"]
    (64, 64, 64)
    """
    return ngcf(**settings("ngcf", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def convolved(
    params: Any, x: Float[Array, "F I"], edges: graph.Edges, dropout: float = 0.0, key: Array | None = None
) -> graph.Table:
    """The concatenated layers, for real users, fake users and items."""
    made = graph.build(edges, x)
    table = (params["user"], params["fake"], params["item"])
    kept = [table]
    for k in params["sum"]:
        table = _layer(params["sum"][k], params["product"][k], table, graph.propagate(made, table))
        if dropout:
            a, b, c = jax.random.split(jax.random.fold_in(key, k), 3)  # pyright: ignore[reportArgumentType]
            table = jax.tree.map(partial(_drop, dropout), table, (a, b, c))
        kept.append(jax.tree.map(_unit, table))
    return jax.tree.map(lambda *rows: jnp.concatenate(rows, 1), *kept)


def _layer(sums: Any, product: Any, table: graph.Table, near: graph.Table) -> graph.Table:
    def of(own, around):
        message = (own + around) @ sums["kernel"] + (own * around) @ product["kernel"] + sums["bias"]
        return jax.nn.leaky_relu(message, SLOPE)

    return jax.tree.map(of, table, near)


def _drop(share: float, rows: Float[Array, "N D"], key: Array) -> Float[Array, "N D"]:
    return jnp.where(jax.random.bernoulli(key, 1 - share, rows.shape), rows / (1 - share), 0)


def _unit(rows: Float[Array, "N D"]) -> Float[Array, "N D"]:
    square = jnp.sum(rows**2, 1, keepdims=True)
    return rows * jnp.where(square > 1e-24, jnp.where(square > 1e-24, square, 1) ** -0.5, 0)


def loss(
    params: Any,
    x: Float[Array, "F I"],
    data: lightgcn.Data,
    ctx: Any,
    *,
    l2: float,
    dropout: float,
    negatives: int,
) -> Float[Array, ""]:
    """BPR of the final embeddings over the pairs of the step, with the penalty of what they look up."""
    found = pairs.draw(data.pairs._replace(observed=data.observed), x, ctx, negatives)
    user, fake, item = convolved(
        params, x, data.edges, dropout, jax.random.fold_in(ctx.key, 2)
    )  # 0, 1: pairs.draw
    return data.pairs.sound * bpr.ranking(pairs.joined(user, fake), item, found, l2)


def embed(params: Any, x: Float[Array, "F I"], data: lightgcn.Data) -> Any:
    """`{"user", "item"}` whose products are the scores; both read the fake rows through the graph."""
    user, _, item = convolved(params, x, data.edges)
    return {"user": data.pairs.sound * user, "item": item}
