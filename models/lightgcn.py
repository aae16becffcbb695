"""LightGCN: matrix factorization whose factors are smoothed over the graph of clicks.

He, Deng, Wang, Li, Zhang, Wang, *LightGCN: Simplifying and powering graph convolution network for recommendation*,
SIGIR 2020, eqs 7-15; as the victim of Zhang et al., KDD 2021 (RAPU):

    E^(k+1) = D^-1/2 A D^-1/2 E^(k),    E = mean over k = 0..L of E^(k),    s_ui = E_u . E_i

trained by BPR with a penalty on the layer-0 embeddings of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from models import bpr, cells, graph, pairs, wrmf
from models.cells import Form
from models.data.interactions import Interactions
from models.graph import Edges
from models.recommender import Recommender, counts, given, numbers, one_of, settings

Penalty = Literal["squared", "norm"]


class Data(NamedTuple):
    """The events to sample from, the edges to smooth over, and the mask that freezes which fake cells are clicks."""

    pairs: pairs.Data
    edges: Edges
    observed: Bool[Array, "F I"] | None


def lightgcn(
    *,
    factors: int = 64,
    layers: int = 3,
    learning_rate: float = 1e-3,
    l2: float = 1e-4,
    penalty: Penalty = "squared",
    epochs: int = 100,
    batch: int | None = 2048,
    negatives: int = 1,
    scale: float | None = None,
    form: Form = "auto",
) -> Recommender:
    """LightGCN trained by Adam, as a `Recommender`.

    Args:
        factors: D >= 1.
        layers: L >= 1 (with none it is BPR-MF, `models.bpr`).
        learning_rate: of Adam, > 0.
        l2: of the layer-0 embeddings a pair looks up, >= 0.
        penalty: "squared": `l2/2 |e|^2`, averaged over the pairs (the paper); "norm": `l2 |E_batch|_F / B` for each
            block of embeddings (users, items, each of the negatives), not squared (RecBole's, hence RAPU's).
        epochs, batch, negatives: as in `bpr`. Every step propagates over the whole graph.
        scale: standard deviation of the initial embeddings, > 0; None: uniform by Xavier, as in RecBole.
        form: how products with the clicks are computed, as in `wrmf`.

    Raises:
        ValueError: a number outside its range, or an unknown option.

    Reference: He et al., SIGIR 2020; RAPU (KDD 2021), Table 4, which ran RecBole.

    **Differs from the paper:** nothing; negatives and batches are drawn as in `models.pairs`.

    >>> model = preset("rapu-victim")
    >>> {name: rows.shape for name, rows in model.init(jax.random.key(0), 3, 5, 1).items()}
    {'user': (3, 64), 'item': (5, 64), 'fake': (1, 64)}
    """
    config = dict(locals())
    counts(
        "lightgcn", factors=factors, layers=layers, epochs=epochs, negatives=negatives, **given(batch=batch)
    )
    numbers("lightgcn", 0, open_end=True, learning_rate=learning_rate, **given(scale=scale))
    numbers("lightgcn", 0, l2=l2)
    one_of("lightgcn", "penalty", penalty, ("squared", "norm"))
    one_of("lightgcn", "form", form, cells.FORMS)
    objective = partial(loss, layers=layers, l2=l2, penalty=penalty, negatives=negatives)

    return Recommender(
        name="lightgcn",
        config=config,
        prepare=partial(prepare, form=form, name="lightgcn"),
        init=partial(init, factors=factors, scale=scale),
        loss=objective,
        embed=partial(embed, layers=layers),
        score=wrmf.score,
        trainer=pairs.trainer("lightgcn", objective, optax.adam(learning_rate), epochs, batch),
    )


_RAPU: Mapping[str, Any] = {"factors": 64, "layers": 3, "learning_rate": 1e-2, "l2": 1e-5, "penalty": "norm"}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"factors": 64, "layers": 3, "learning_rate": 1e-3, "l2": 1e-4, "batch": 2048, "epochs": 1000},
    "rapu-victim": {**_RAPU, "epochs": 100, "batch": 2048},
    "recbole": {**_RAPU, "layers": 2, "learning_rate": 1e-3, "epochs": 300, "batch": 2048},
}
"""The settings of papers and libraries, by name."""


def preset(name: str, **changes: Any) -> Recommender:
    """LightGCN with the settings of a paper or a library; `changes` replace some of them.

    >>> preset("rapu-victim", epochs=5).config["layers"]
    3
    """
    return lightgcn(**settings("lightgcn", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions, *, form: Form, name: str) -> Data:
    """Events and edges; works under `jit` and `vmap`."""
    return Data(pairs.prepare(train, name=name), graph.edges_of(cells.build(train, form=form)), None)


def init(key: Array, users: int, items: int, fakes: int, *, factors: int, scale: float | None) -> Any:
    """Layer-0 embeddings of users, items and fake users."""
    if scale is not None:
        return bpr.init(key, users, items, fakes, factors=factors, scale=scale)
    bound = lambda rows: (6 / (rows + factors)) ** 0.5
    for_user, for_item, for_fake = jax.random.split(key, 3)
    draw = lambda key, rows, b: jax.random.uniform(key, (rows, factors), minval=-b, maxval=b)
    return {
        "user": draw(for_user, users, bound(users)),
        "item": draw(for_item, items, bound(items)),
        "fake": draw(for_fake, fakes, bound(users)),
    }


def smoothed(params: Any, x: Float[Array, "F I"], edges: Edges, layers: int) -> graph.Table:
    """The mean of the layers, for real users, fake users and items."""
    made = graph.build(edges, x)
    table = total = (params["user"], params["fake"], params["item"])
    for _ in range(layers):
        table = graph.propagate(made, table)
        total = jax.tree.map(jnp.add, total, table)
    return jax.tree.map(lambda rows: rows / (layers + 1), total)


def loss(
    params: Any,
    x: Float[Array, "F I"],
    data: Data,
    ctx: Any,
    *,
    layers: int,
    l2: float,
    penalty: Penalty,
    negatives: int,
) -> Float[Array, ""]:
    """BPR of the smoothed embeddings over the pairs of the step, and the penalty of the layer-0 ones."""
    found = pairs.draw(data.pairs._replace(observed=data.observed), x, ctx, negatives)
    user, fake, item = smoothed(params, x, data.edges, layers)
    ranked = bpr.ranking(pairs.joined(user, fake), item, found, 0.0)
    return data.pairs.sound * (ranked + penalized(params, found, l2, penalty))


def penalized(params: Any, found: pairs.Pairs, l2: float, penalty: Penalty) -> Float[Array, ""]:
    """The penalty of the embeddings that the pairs look up."""
    p = pairs.joined(params["user"], params["fake"])[found.user]
    q, other = params["item"][found.item], params["item"][found.negative]
    if penalty == "squared":
        each = jnp.sum(p**2, 1) + jnp.sum(q**2, 1) + jnp.mean(jnp.sum(other**2, 2), 1)
        return l2 / 2 * pairs.mean(found.weight, each)
    norm = lambda rows: jnp.sqrt(jnp.vdot(found.weight, jnp.sum(rows**2, -1)) + 1e-30)
    return (
        l2
        * (norm(p) + norm(q) + sum(norm(other[:, n]) for n in range(other.shape[1])))
        / jnp.maximum(jnp.sum(found.weight), 1)
    )


def embed(params: Any, x: Float[Array, "F I"], data: Data, *, layers: int) -> Any:
    """`{"user", "item"}` whose products are the scores; both read the fake rows through the graph."""
    user, _, item = smoothed(params, x, data.edges, layers)
    return {"user": data.pairs.sound * user, "item": item}
