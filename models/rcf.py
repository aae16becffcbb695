"""RCF: what a user clicked is read through what it shares with the item at hand.

Xin, He, Zhang, Zhang, Jose, *Relational collaborative filtering: Modeling multiple item relations for recommendation*,
SIGIR 2019, as in the released code of Tran, Ghazimatin, Saha Roy, SIGIR 2021 (ACCENT). For user u and item i, every
item j != i of the user's history fills one slot of type k for each value e of that type that i and j share, and one
slot of type 0 if they share nothing:

    alpha = softmax_k( w . gelu(W (p_u * e_k) + b) )                                   attention on types
    l_je  = v_k . tanh(W1_k q_i + W2_k q_j + W3_k e)                                   (no e for type 0)
    a_je  = exp(l_je) / (sum of exp(l) over the slots of type k)^0.5                   attention on slots
    m_ui  = p_u + sum_k alpha_k sum over the slots (j, e) of type k of a_je q_j,       s_ui = MLP(m_ui * q_i)

    L = mean of -log sigmoid(s_ui - s_ux)  +  relation_weight * mean of -log sigmoid(r(i, e, j) - r(i, e, y)),
    r(i, e, j) = q_i . ((e_k + e) * q_j)

with `x` an item that u did not click and, for each type, (j, e) a slot of the click and `y` an item without the value.
How the slots are found is in `models.data.slots`, how they are attended to in `models.relational`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models import pairs, relational, sparse
from models.data import sample, slots
from models.data.interactions import Interactions
from models.data.relations import Relations
from models.data.sample import Lists
from models.data.slots import Index
from models.recommender import Recommender, counts, flat, given, numbers, one_of, settings, xavier
from models.relational import Catalog

Divisor = Literal["batch", "data"]


class Data(NamedTuple):
    """Events to learn from, the histories that are read, also by value, the catalog, the unused mask of fake cells."""

    pairs: pairs.Data
    history: Lists
    index: Index
    catalog: Catalog
    observed: Bool[Array, "F I"] | None


class Network(nnx.Module):
    """Embeddings of users, items, types and values; the two attentions; the layers of the score."""

    def __init__(
        self,
        users: int,
        relations: Relations,
        factors: int,
        attention: int,
        hidden: Sequence[int],
        scale: float,
        *,
        rngs: nnx.Rngs,
    ):
        D, A, types = factors, attention, relations.types + 1
        normal = lambda *shape: nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.user, self.item = normal(users, D), normal(relations.items, D)
        self.type, self.value = normal(types, D), normal(relations.values, D)
        even = lambda a, b, *shape: nnx.Param(_glorot(a, b, rngs.params(), shape))
        self.choice, self.choice_bias = even(D, A, D, A), nnx.Param(jnp.zeros(A))
        self.choice_out, self.slot_out = even(A, 1, A), even(A, 1, types, A)
        self.target, self.other, self.shared = (even(D, A, n, D, A) for n in (types, types, types - 1))
        widths = [D, *hidden]
        self.layers = nnx.List([_layer(a, b, rngs) for a, b in pairwise(widths)])
        self.last = nnx.Param(xavier(widths[-1], 1) * jax.random.normal(rngs.params(), (widths[-1],)))


def _glorot(inputs: int, outputs: int, key: Array, shape: tuple[int, ...]) -> Array:
    bound = (6 / (inputs + outputs)) ** 0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _layer(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    normal = nnx.initializers.normal(xavier(inputs, outputs))  # the bias too, as in the code
    precision = jnp.result_type(float)
    return nnx.Linear(inputs, outputs, kernel_init=normal, bias_init=normal, param_dtype=precision, rngs=rngs)


def rcf(
    relations: Relations,
    *,
    factors: int = 64,
    attention: int = 32,
    hidden: Sequence[int] = (64,),
    relation_weight: float = 0.01,
    smoothing: float = 0.5,
    max_history: int | None = None,
    learning_rate: float = 0.05,
    epochs: int = 50,
    batch: int | None = 512,
    negatives: int = 1,
    divide_by: Divisor = "batch",
    scale: float = 0.05,
) -> Recommender:
    """RCF trained by Adagrad, as a `Recommender`.

    Args:
        relations: attributes of the items, one row an item of the data.
        factors: width D of all embeddings, >= 1.
        attention: width of both attentions, >= 1.
        hidden: widths of the GELU layers of the score; may be empty.
        relation_weight: of the relation loss, >= 0; 0 leaves it out.
        smoothing: exponent of the sum in the attention on slots, in [0, 1]; 1 is softmax.
        max_history: clicks of a user that are read, >= 1: its latest, or a fixed random choice where the data have no
            times. None: all of them. The others are still learned from.
        learning_rate: of Adagrad, > 0.
        epochs: passes over the clicks, >= 1.
        batch: clicks per step; None: all of them.
        negatives: items drawn for each click, >= 1; their losses are averaged.
        divide_by: "batch": the losses are means over the batch. "data": their sums over the batch are divided by the
            size of all data, as in the code: gradients are smaller against Adagrad's initial accumulator of 1e-8.
        scale: standard deviation of the initial embeddings, > 0.

    Raises:
        ValueError: a number outside its range; relations without values; ratings, data of other items than the
            relations tell of, or fake rows: a relaxed history has no slots (inject hard profiles).

    Reference: Xin et al., SIGIR 2019, sections 3 and 4; ACCENT's released code for the slots and the defaults.

    **Differs from the paper:** the code's negative is one fixed disliked item for each click, which clicks do not tell
    of; here it is drawn anew from the items not clicked. The code's triples, of which there is one for each click and
    type whose item shares something with the rest of the history, are drawn once; here anew for each batch, (j, e)
    uniform over the slots of the type and y over the items without e. With `divide_by="data"` an epoch is taken to have
    as many triples a click as the batch. Under `vmap` even chunks without a slot are computed: `lax.map` is faster.

    >>> from models.data.relations import clusters
    >>> params = rcf(clusters([0, 0, 1]), factors=4).init(jax.random.key(0), 5, 3, 0)
    >>> params["user"].shape, params["value"].shape, params["shared"].shape
    ((5, 4), (2, 4), (1, 4, 32))
    """
    hidden = tuple(hidden)
    config = dict(locals())
    sizes = {f"hidden[{k}]": width for k, width in enumerate(hidden)}
    sizes |= given(max_history=max_history, batch=batch)
    counts("rcf", factors=factors, attention=attention, epochs=epochs, negatives=negatives, **sizes)
    numbers("rcf", 0, open_end=True, learning_rate=learning_rate, scale=scale)
    numbers("rcf", 0, relation_weight=relation_weight, smoothing=smoothing)
    if smoothing > 1:
        raise ValueError(f"rcf: smoothing={smoothing!r}; expected a number in [0, 1]")
    one_of("rcf", "divide_by", divide_by, get_args(Divisor))
    if not isinstance(relations, Relations) or relations.values < 1:
        raise ValueError(
            f"rcf: relations={relations!r}; expected models.data.relations.Relations with values"
        )
    objective = partial(loss, negatives=negatives, relation_weight=relation_weight, divide_by=divide_by)
    adagrad = optax.adagrad(learning_rate, initial_accumulator_value=1e-8, eps=0.0)
    descend = pairs.trainer("rcf", objective, adagrad, epochs, batch)

    def init(key, users, items, fakes):
        _check(relations, items, fakes)
        return flat(Network(users, relations, factors, attention, hidden, scale, rngs=nnx.Rngs(params=key)))

    def trainer(users, items, fakes, events=0):
        _check(relations, items, fakes)
        return descend(users, items, fakes, events)

    return Recommender(
        name="rcf",
        config=config,
        prepare=partial(prepare, relations=relations, smoothing=smoothing, max_history=max_history),
        init=init,
        loss=objective,
        embed=embed,
        score=score,
        trainer=trainer,
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "accent": {
        "factors": 64,
        "attention": 32,
        "hidden": (64,),
        "relation_weight": 0.01,
        "smoothing": 0.5,
        "learning_rate": 0.05,
        "epochs": 50,
        "batch": 512,
        "negatives": 1,
        "divide_by": "data",
        "scale": 0.05,
    },
}
"""Our settings, with losses averaged over the batch, and those of ACCENT's released code."""


def preset(name: str, **changes: Any) -> Recommender:
    """RCF with the settings of a paper; `changes` replace some of them, and hold `relations`.

    >>> from models.data.relations import clusters
    >>> preset("accent", relations=clusters([0, 1, 0])).config["divide_by"]
    'data'
    """
    return rcf(**settings("rcf", PRESETS, name, changes))


def _check(relations: Relations, items: int, fakes: int) -> None:
    if items != relations.items:
        raise ValueError(
            f"rcf: the data have {items} items, its relations tell of {relations.items}; "
            "make relations with one row an item of the data"
        )
    if fakes:
        raise ValueError(
            f"rcf: {fakes} fake rows, but a relaxed history has no slots; inject hard profiles into the training data"
        )


# ------------------------------------------------------------------------------------------------ data


def prepare(train: Interactions, *, relations: Relations, smoothing: float, max_history: int | None) -> Data:
    """Events and histories; works under `jit` and `vmap`."""
    _check(relations, train.items, 0)
    events = pairs.prepare(train, name="rcf")
    history = events.lists if max_history is None else sample.lists(slots.latest(train, max_history))
    known = slots.index(history, relations, max_history)
    catalog = Catalog(relations, slots.index(slots.everything(train.items), relations), smoothing)
    return Data(events, history, known, catalog, None)


# ------------------------------------------------------------------------------------------------ attention


def on_types(params: Any, p: Float[Array, "N D"]) -> Float[Array, "N K+1"]:
    """`alpha`: the user's attention on types, which sums to 1 over all of them."""
    h = (p[:, None] * params["type"]) @ params["choice"] + params["choice_bias"]
    return jax.nn.softmax(jax.nn.gelu(h) @ params["choice_out"], axis=-1)


def through(params: Any, h: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """The layers of the score."""
    for layer in params.get("layers", {}).values():
        h = jax.nn.gelu(h @ layer["kernel"] + layer["bias"])
    return h @ params["last"]


def rated(
    params: Any,
    data: Data,
    users: Int[Array, " N"],
    items: Int[Array, " N"],
    *,
    without: Int[Array, " N"] | None = None,
) -> Float[Array, " N"]:
    """Scores of pairs of user and item; `without` as in `relational.attended`."""
    p = params["user"][users]
    alpha = on_types(params, p)
    read = relational.attended(params, data.index, data.catalog, users, items, alpha=alpha, without=without)
    return through(params, (p + read) * params["item"][items])


# ------------------------------------------------------------------------------------------------ training


def loss(
    params: Any,
    x: Float[Array, "F I"],
    data: Data,
    ctx: Any,
    *,
    negatives: int,
    relation_weight: float,
    divide_by: Divisor,
) -> Float[Array, ""]:
    """The objective over the pairs of the step."""
    _check(data.catalog.relations, x.shape[1], x.shape[0])
    for_pairs, for_relations = jax.random.split(ctx.key)
    found = pairs.draw(data.pairs, x, ctx._replace(key=for_pairs), negatives)
    items = jnp.concatenate([found.item[:, None], found.negative], 1)
    users = jnp.repeat(found.user, 1 + negatives)
    s = rated(params, data, users, items.ravel()).reshape(items.shape)
    total = pairs.mean(found.weight, jnp.mean(jax.nn.softplus(s[:, 1:] - s[:, :1]), 1))
    if relation_weight:
        known = (data.index, data.history, data.catalog.index, data.catalog.relations)
        drawn = slots.triples(for_relations, *known, found.user, found.item)
        total += relation_weight * related(params, found.item, drawn, found.weight)
    if divide_by == "data":
        total *= jnp.sum(found.weight) / jnp.maximum(jnp.sum(data.pairs.real), 1)
    return data.pairs.sound * total


def related(
    params: Any, head: Int[Array, " B"], known: slots.Triples, weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """BPR of triples that DistMult scores, `r(i, e, j) = q_i . ((e_k + e) * q_j)`; the mean over those that exist."""
    q, link = params["item"], params["type"][known.type] + params["value"][known.value]
    gap = jnp.sum(q[head][:, None] * link * (q[known.tail] - q[known.negative]), -1)
    return pairs.mean((weight[:, None] * known.exists).ravel(), jax.nn.softplus(-gap).ravel())


# ------------------------------------------------------------------------------------------------ scores


def embed(params: Any, x: Float[Array, "F I"], data: Data) -> Any:
    """The parameters, and the histories as cells; what all users read of all items would not fit in memory."""
    _check(data.catalog.relations, x.shape[1], x.shape[0])
    owner, real = slots.owner_of(data.history)
    users, items = data.history.start.shape[0] - 1, data.catalog.relations.items
    cells = sparse.observed(owner, data.history.item, real, users, items)
    return {"params": {**params, "last": data.pairs.sound * params["last"]}, "data": data, "cells": cells}


def score(embedding: Any, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """Scores for every item: pair by pair for a few users, item by item over the whole catalog for many."""
    params, data = embedding["params"], embedding["data"]
    total, items = data.history.start.shape[0] - 1, data.catalog.relations.items
    if users.shape[0] * data.history.item.shape[0] >= items * total:  # more clicks than items
        return _many(params, data, embedding["cells"], users)
    return lax.map(lambda user: rated(params, data, jnp.full(items, user), jnp.arange(items)), users)


def _many(params: Any, data: Data, cells: sparse.Observed, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """The slots between any two items, a block of items at a time; then sparse products with the users' clicks."""
    catalog, B, I = data.catalog, users.shape[0], data.catalog.relations.items
    distinct, back = jnp.unique(users, return_inverse=True, size=B, fill_value=-1)
    own = sparse.select(cells, jnp.maximum(distinct, 0), distinct >= 0)
    p, known = params["user"][distinct], relational.table(params, catalog.relations)
    alpha, ones = on_types(params, p), jnp.ones(own.row.shape, p.dtype)

    @jax.checkpoint
    def one(item, mass):
        weight = alpha * relational.smoothed(sparse.spread(ones, mass, own), catalog.smoothing)
        m = p + sparse.spread(sparse.sampled(weight, mass, own), params["item"], own)
        return through(params, m * params["item"][item])

    @jax.checkpoint
    def block(items):
        mass = relational.exponentials(known, catalog.index, catalog, 0 * items, items, 0 * items - 1)
        return lax.map(lambda row: one(row[0], row[1].T), (items, mass))

    size, blocks = relational.in_blocks(I, known)
    items = jnp.pad(jnp.arange(I), (0, blocks * size - I)).reshape(blocks, size)
    return lax.map(block, items).reshape(-1, B)[:I, back].T
