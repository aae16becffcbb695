"""Rankers that learn, inside a black box: fine-tuned on the attackers' clicks, or trained again on everything.

Song, Zhao et al., "PoisonRec", ICDE 2020, Alg. 1, `DataPoisoning`: reload the ranker, update it with the poison. The
attackers are new users. The real users' rows get no gradient from their clicks, so they are left out of the training,
whose cost is that of the clicks and of the parameters that everybody shares.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

import bilevel
from attacks.counted import Offer, Ranker
from models import autorec, gru4rec, itemae, lightgcn, ncf, pairs, wrmf
from models.data import Interactions, Profiles, inject
from models.recommender import Params, Recommender
from models.train import fit, grow


class Learned(NamedTuple):
    """A trained ranker: its parameters for the real users, the rows that the attackers begin with (of each parameter
    that has rows of users), the clean data, and what the model reads of them when it scores.
    """

    params: Params
    fresh: list[Array]
    train: Interactions
    data: Any


def tuned(model: Recommender, replay: bool, epochs: int, batch: int | None) -> Ranker:
    """Fine-tuned on the clicks of the attackers, whose rows are the only ones of a user that are trained."""
    kind = _kind(model)
    whole = replay or kind == "graph"  # the real users take part: their clicks, or the graph over them

    def open_(key, train: Interactions, fakes: int, offer: Offer) -> Learned:
        for_fit, for_fresh = jax.random.split(key)
        fitted = fit(model, train, for_fit)
        every = grow(model, fitted.params, for_fresh, users=train.users + fakes, items=train.items)
        rows = _rows(model, train.items, every)
        fresh = [lax.slice_in_dim(leaf, train.users, train.users + fakes, axis=axis) for axis, leaf in rows]
        return Learned(fitted.params, fresh, train, fitted.data)

    def update(base: Learned, clicks: Int[Array, "N T"], key):
        for_replay, for_training = jax.random.split(key)
        U, I, N = base.train.users, base.train.items, clicks.shape[0]
        few = events(clicks, first=U if whole else 0, items=I)
        few = mixed(for_replay, base.train, few, clicks.shape[1]) if replay else few
        data = _read_by(model, kind, base.train, few, clicks, replay)
        real = _rows(model, I, base.params)
        rows = [jnp.concatenate([leaf, new], axis) for (axis, leaf), new in zip(real, base.fresh)]
        start = _with_rows(model, I, base.params, rows if whole else base.fresh)
        inner = _passes(model, U + N if whole else N, I, few.capacity, epochs, batch)
        params = bilevel.detached(inner)(jnp.zeros((0, I)), start, data, for_training)
        if kind == "graph":
            return model.embed(params, jnp.zeros((0, I)), data)
        if whole:
            real = [(a, lax.slice_in_dim(leaf, 0, U, axis=a)) for a, leaf in _rows(model, I, params)]
        return embed(base, _with_rows(model, I, params, [leaf for _, leaf in real]))

    def embed(base: Learned, params: Params):
        if model.embed is pairs.embed or kind in ("sessions", "histories"):
            return params  # what it returns, without a copy of every table; of the others, who is asked for is read
        return model.embed(params, jnp.zeros((0, base.train.items)), base.data)

    clean = lambda base: embed(base, base.params)

    def read(base: Learned, tuned, rows, offer: Offer) -> Float[Array, "B C"]:
        if kind == "sessions":
            states = gru4rec.states(tuned, base.data, offer.users)
            tuned = {"state": states, "out": tuned["out"], "bias": tuned["out_bias"]}
            offer = Offer(jnp.arange(offer.users.shape[0]), offer.item)
        elif kind == "histories":
            tuned = {"user": autorec.states(tuned, base.data, offer.users), "item": itemae.decoder(tuned)}
            offer = Offer(jnp.arange(offer.users.shape[0]), offer.item)
        return read_few(model, tuned, offer)

    return Ranker(open_, clean, update, read)


Kind = Literal["rows", "histories", "graph", "sessions"]


def _kind(model: Recommender) -> Kind:
    """What a fine-tuning on the attackers' clicks has to know of a model; an error where it has no meaning."""
    data = _data_of(model)
    if "epochs" in model.config:
        if isinstance(data, lightgcn.Data):
            return "graph"
        if isinstance(data, gru4rec.Data):
            return "sessions"
        if isinstance(data, pairs.Data):
            return "rows"
        if isinstance(data, autorec.Data) and model.config["by"] == "user":
            return "histories"
    raise ValueError(
        f"{model.name} does not learn from the clicks of single users, so it cannot be fine-tuned on the attackers' "
        'alone; use update="scratch"'
    )


def _data_of(model: Recommender) -> Any:
    """What the model makes of data, in shapes only: its type says how it learns."""
    two = Interactions.from_arrays([0, 1], [0, 1], time=[0, 1], track="sequence")
    return jax.eval_shape(model.prepare, two)


def of_pairs(model: Recommender) -> bool:
    """Whether a model learns from single clicks beside sampled negatives, in batches of them."""
    return isinstance(_data_of(model), pairs.Data | lightgcn.Data)


def _read_by(
    model: Recommender, kind: Kind, train: Interactions, few: Interactions, clicks: Array, replay: bool
) -> Any:
    """What the loss of a fine-tuning reads: the few clicks, in the world of all of them where the model has one.

    Of replayed users these are the last clicks: the older ones are no negatives of theirs.
    """
    data = model.prepare(few)
    if kind == "histories" or (kind == "rows" and not replay):
        return data
    everything = model.prepare(_poisoned(train, clicks))
    if kind == "rows":
        return data._replace(lists=everything.lists)
    if kind == "graph":
        return everything._replace(pairs=data.pairs._replace(lists=everything.pairs.lists))
    return data._replace(cumulative=everything.cumulative)  # of all clicks: whence the negatives are drawn


def _passes(
    model: Recommender, users: int, items: int, events: int, epochs: int, batch: int | None
) -> bilevel.Inner:
    """The model's own training, for a few passes over `events` events, in batches of its own or of a given size."""
    inner = model.trainer(users, items, 0, events)
    if batch is None:
        return dataclasses.replace(inner, steps=epochs * (inner.steps // model.config["epochs"]))
    batches = bilevel.minibatches(events, min(batch, events))
    return dataclasses.replace(inner, steps=epochs * batches.per_epoch, batches=batches)


def events(clicks: Int[Array, "N T"], *, first: int, items: int) -> Interactions:
    """The clicks of the attackers as the data of users `first`, `first + 1`, ..."""
    N, T = clicks.shape
    user = first + jnp.repeat(jnp.arange(N, dtype=jnp.int32), T)
    time = jnp.tile(jnp.arange(T, dtype=jnp.int32), N)
    ones = jnp.ones(N * T, jnp.float32)
    return Interactions(user, clicks.ravel(), ones, time, users=first + N, items=items, track="sequence")


def mixed(key: Array, train: Interactions, new: Interactions, clicks: int) -> Interactions:
    """`new`, and before it the last `clicks` clicks of as many real users that have any."""
    degrees, pointers = train.degrees(), train.row_pointers()
    count = min(new.users - train.users, train.users)
    best, user = lax.top_k(jnp.where(degrees > 0, jax.random.uniform(key, degrees.shape), -1), count)
    order = jnp.argsort(user)
    user, usable = user[order], best[order] >= 0
    slot = pointers[user + 1][:, None] - clicks + jnp.arange(clicks)
    real = ((slot >= pointers[user][:, None]) & usable[:, None]).ravel()
    joined = lambda old, fresh: jnp.concatenate([old.astype(fresh.dtype), fresh])
    return dataclasses.replace(
        new,
        user=joined(jnp.repeat(user, clicks), new.user),
        item=joined(train.item[jnp.maximum(slot, 0).ravel()], new.item),
        weight=joined(real, new.weight),
        time=joined(jnp.tile(jnp.arange(clicks), count), new.time),
    ).keep(joined(real, new.weight) > 0)


def _poisoned(train: Interactions, clicks: Int[Array, "N T"]) -> Interactions:
    return inject(train, Profiles.from_clicks(clicks, jnp.zeros(0, jnp.int32), items=train.items))


def _rows(model: Recommender, items: int, params: Params) -> list[tuple[int, Array]]:
    """The parameters that have rows of users, each with the axis that counts them."""
    axes = jax.tree.leaves(_axes(model, items))
    return [(axis, leaf) for axis, leaf in zip(axes, jax.tree.leaves(params)) if axis >= 0]


def _with_rows(model: Recommender, items: int, params: Params, rows: list[Array]) -> Params:
    """`params` with other rows of users."""
    new = iter(rows)
    return jax.tree.map(lambda axis, leaf: leaf if axis < 0 else next(new), _axes(model, items), params)


def _axes(model: Recommender, items: int) -> Any:
    """The axis of each parameter that counts users, read off its shapes for two numbers of them; -1: none."""
    shape = lambda users: jax.eval_shape(lambda key: model.init(key, users, items, 0), jax.random.key(0))
    differs = lambda a, b: next((axis for axis, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n), -1)
    return jax.tree.map(differs, shape(1), shape(2))


def retrained(model: Recommender) -> Ranker:
    """Trained from the beginning on the clean and the injected clicks."""

    class Start(NamedTuple):
        train: Interactions
        clean: Any

    def open_(key, train: Interactions, fakes: int, offer: Offer) -> Start:
        return Start(train, fit(model, train, key).embedding)

    def update(base: Start, clicks: Int[Array, "N T"], key):
        return fit(model, _poisoned(base.train, clicks), key).embedding

    return Ranker(
        open_, lambda base: base.clean, update, lambda base, tuned, rows, offer: read_few(model, tuned, offer)
    )


# ------------------------------------------------------------------------------------------------ reading a few scores


def read_few(model: Recommender, embedding: Any, offer: Offer) -> Float[Array, "B C"]:
    """Scores of what is offered: of these items alone where the model is known to allow it, else picked from all."""
    if model.score is wrmf.score:
        return jnp.einsum("bd,bcd->bc", embedding["user"][offer.users], embedding["item"][offer.item])
    if model.name == "gru4rec":
        products = jnp.einsum("bd,bcd->bc", embedding["state"][offer.users], embedding["out"][offer.item])
        return products + embedding["bias"][offer.item]
    if model.name in ("neumf", "gmf"):
        return _network(embedding, offer)
    return jnp.take_along_axis(model.score(embedding, offer.users), offer.item, axis=1)


def _network(params: Params, offer: Offer) -> Float[Array, "B C"]:
    """NCF's logits of a few items."""
    hidden = [params["user"][offer.users][:, None] * params["item"][offer.item]]
    if "tower_user" in params:
        a, b = params["tower_user"][offer.users][:, None], params["tower_item"][offer.item]
        hidden.append(ncf.through(params, jnp.concatenate([jnp.broadcast_to(a, b.shape), b], -1)))
    last = params["last"]
    return (jnp.concatenate(hidden, -1) @ last["kernel"])[..., 0] + last["bias"]
