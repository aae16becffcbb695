"""How each recommender takes injected clicks in, and what it then says of a few items: the inside of a black box.

Song, Zhao et al., "PoisonRec", ICDE 2020, Alg. 1, `DataPoisoning`, and section IV-A: the clean ranker is reloaded,
updated with the attackers' clicks only, and ranks a handful of candidates for every user.

| ranker               | the update                                                      | read at candidates |
|----------------------|-----------------------------------------------------------------|--------------------|
| ItemPop              | counts are added                                                | counts             |
| CoVisitation         | co-visits and visits are added                                  | counts kept apart  |
| PMF, BPR, NeuMF, ... | its own loss on the clicks of the attackers, who are new users  | product or network |
| AutoRec (by user)    | the same; its rows are the attackers'                           | product            |
| GRU4Rec              | the same; its sessions are the attackers'                       | product            |
| NGCF, LightGCN       | the same; the pairs are the attackers', the graph is everybody's | product           |
| others               | trained again on all clicks (`update="scratch"`)                | picked from all    |

The real users' rows get no gradient from the attackers' clicks, so they are left out of the training and its cost is
that of the clicks and the item table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

import bilevel
from models import covisitation, gru4rec, lightgcn, ncf, pairs, sparse, wrmf
from models.data import Interactions, Profiles, inject
from models.recommender import Params, Recommender
from models.train import fit, grow

Update = Literal["poison", "replay", "scratch"]


class Offer(NamedTuple):
    """What is ranked: `users` (n,), and for each of them `item` (n, C), candidates and then targets."""

    users: Int[Array, " n"]
    item: Int[Array, "n C"]


class Ranker(NamedTuple):
    """A recommender behind the black box, as static functions.

    Attributes:
        open: `(key, train, fakes, offer) -> base`, the clean ranker; `fakes` is the number of attackers.
        clean: `base -> tuned`, what is read of it without any poison.
        update: `(base, clicks (N, T), key) -> tuned`, reloaded and updated.
        read: `(base, tuned, rows, offer) -> (B, C)` scores of the rows `rows` (B,) of the offer, `offer` being those.
    """

    open: Callable[[Key[Array, ""], Interactions, int, Offer], Any]
    clean: Callable[[Any], Any]
    update: Callable[[Any, Int[Array, "N T"], Key[Array, ""]], Any]
    read: Callable[[Any, Any, Int[Array, " B"], Offer], Float[Array, "B C"]]


def ranker(model: Recommender, *, update: Update = "poison", epochs: int = 10) -> Ranker:
    """How `model` is updated and read.

    Args:
        model: any recommender of `models`.
        update: "poison": fine-tuned on the attackers' clicks, its optimizer fresh; "replay": with the last clicks of
            as many real users, drawn anew, among them; "scratch": trained again on everything.
        epochs: passes over the clicks of a fine-tuning, >= 1.

    Raises:
        ValueError: an unknown `update`, or one that has no meaning for the model.
    """
    if update not in get_args(Update):
        raise ValueError(f"update is {update!r}; expected one of {', '.join(map(repr, get_args(Update)))}")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"ft_epochs is {epochs!r}; expected an integer >= 1")
    if model.name in ("itempop", "covisitation"):
        if update != "poison":
            raise ValueError(
                f"update={update!r}: {model.name} only counts; leave it out, clicks are added exactly"
            )
        return _popularity() if model.name == "itempop" else _covisits(model)
    if update == "scratch":
        return _retrained(model)
    return _tuned(model, update == "replay", epochs)


# ------------------------------------------------------------------------------------------------ those that count


def _popularity() -> Ranker:
    return Ranker(
        open=lambda key, train, fakes, offer: train.popularity(),
        clean=lambda base: base,
        update=lambda base, clicks, key: base.at[clicks.ravel()].add(1),
        read=lambda base, tuned, rows, offer: tuned[offer.item].astype(float),
    )


class Covisits(NamedTuple):
    """`visits` of items; `recent`, `known` (n, H): the last visits of the users; `between` (n, H, C): co-visits of each
    of them and each item offered.
    """

    visits: Int[Array, " I"]
    recent: Int[Array, "n H"]
    known: Float[Array, "n H"]
    between: Float[Array, "n H C"]


class NewVisits(NamedTuple):
    """`place` of an item among the clicked ones (the last: none), co-visits `between` those, `visits` of all items."""

    place: Int[Array, " I"]
    between: Float[Array, "P P"]
    visits: Int[Array, " I"]


def _covisits(model: Recommender) -> Ranker:
    over = model.config["normalization"]

    def open_(key, train: Interactions, fakes: int, offer: Offer) -> Covisits:
        data = covisitation.prepare(train, normalization="none", history=model.config["history"])
        recent, known = data.recent[offer.users], data.known[offer.users]
        between = lax.map(lambda row: _count(data.pairs, row[0][:, None], row[1][None]), (recent, offer.item))
        return Covisits(train.popularity(), recent, known, between.astype(known.dtype))

    def update(base: Covisits, clicks: Int[Array, "N T"], key) -> NewVisits:
        every = clicks.size
        at = jnp.arange(every, dtype=jnp.int32)
        place = jnp.full(base.visits.shape, every, jnp.int32).at[clicks.ravel()].set(at)
        a, b = place[clicks[:, :-1]], place[clicks[:, 1:]]
        follows = (a != b).astype(base.between.dtype)  # the same item twice in a row is no co-visit
        between = jnp.zeros((every + 1, every + 1), base.between.dtype).at[a, b].add(follows)
        return NewVisits(place, between + between.T, base.visits.at[clicks.ravel()].add(1))

    def clean(base: Covisits) -> NewVisits:
        nothing = jnp.zeros(base.visits.shape, jnp.int32)
        return NewVisits(nothing, jnp.zeros((1, 1), base.between.dtype), base.visits)

    def read(base: Covisits, tuned: NewVisits, rows, offer: Offer) -> Float[Array, "B C"]:
        recent, item = base.recent[rows], offer.item
        together = (
            base.between[rows] + tuned.between[tuned.place[recent][:, :, None], tuned.place[item][:, None]]
        )
        visits = jnp.maximum(tuned.visits, 1).astype(together.dtype)
        weight = base.known[rows] / (jnp.sqrt(visits[recent]) if over == "cosine" else 1)
        scores = jnp.einsum("bhc,bh->bc", together, weight)
        return scores / {"cosine": jnp.sqrt(visits[item]), "none": 1, "target": visits[item]}[over]

    return Ranker(open_, clean, update, read)


def _count(cells: sparse.Observed, row: Int[Array, "*B"], col: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """How often each cell is among the known ones, by bisection in its row."""
    row, col = jnp.broadcast_arrays(row, col)

    def places(past):  # the first slot of the row whose column is not below `col` (past: above it)
        def halve(_, span):
            low, high = span
            middle = (low + high) // 2
            found = cells.col[jnp.minimum(middle, cells.col.shape[0] - 1)]
            below = (found <= col) if past else (found < col)
            return jnp.where((low < high) & below, middle + 1, low), jnp.where(
                (low < high) & ~below, middle, high
            )

        span = (cells.row_start[row], cells.row_start[row + 1])
        return lax.fori_loop(0, cells.col.shape[0].bit_length() + 1, halve, span)[0]

    return places(True) - places(False)


# ------------------------------------------------------------------------------------------------ those that learn


class Learned(NamedTuple):
    """A trained ranker: its parameters for the real users, the rows that the attackers begin with (of each parameter
    that has rows of users), the clean data, and what the model reads of them when it scores.
    """

    params: Params
    fresh: list[Array]
    train: Interactions
    data: Any


def _tuned(model: Recommender, replay: bool, epochs: int) -> Ranker:
    """Fine-tuned on the clicks of the attackers, whose rows are the only ones of a user that are trained."""
    kind = _kind(model)
    whole = replay or kind == "graph"  # the real users take part: their clicks, or the graph over them

    def open_(key, train: Interactions, fakes: int, offer: Offer) -> Learned:
        for_fit, for_fresh = jax.random.split(key)
        fitted = fit(model, train, for_fit)
        every = grow(model, fitted.params, for_fresh, users=train.users + fakes, items=train.items)
        rows = _rows(model, train.items, every)
        fresh = [lax.slice_in_dim(leaf, train.users, train.users + fakes, axis=axis) for axis, leaf in rows]
        data = fitted.data
        if kind == "sessions":  # only those that are ranked for have to be read
            ranked = jnp.zeros(train.users, bool).at[offer.users].set(True)
            data = model.prepare(train.keep(ranked[train.user]))
        return Learned(fitted.params, fresh, train, data)

    def update(base: Learned, clicks: Int[Array, "N T"], key):
        for_replay, for_training = jax.random.split(key)
        U, I, N = base.train.users, base.train.items, clicks.shape[0]
        few = _events(clicks, first=U if whole else 0, items=I)
        few = _mixed(for_replay, base.train, few, clicks.shape[1]) if replay else few
        data = _read_by(model, kind, base.train, few, clicks)
        real = _rows(model, I, base.params)
        rows = [jnp.concatenate([leaf, new], axis) for (axis, leaf), new in zip(real, base.fresh)]
        start = _with_rows(model, I, base.params, rows if whole else base.fresh)
        inner = _passes(model, U + N if whole else N, I, few.capacity, epochs)
        params = bilevel.detached(inner)(jnp.zeros((0, I)), start, data, for_training)
        if kind == "graph":
            return model.embed(params, jnp.zeros((0, I)), data)
        if whole:
            real = [(a, lax.slice_in_dim(leaf, 0, U, axis=a)) for a, leaf in _rows(model, I, params)]
        return embed(base, _with_rows(model, I, params, [leaf for _, leaf in real]))

    def embed(base: Learned, params: Params):
        if model.embed is pairs.embed:
            return params  # what it returns, without a copy of every table
        return model.embed(params, jnp.zeros((0, base.train.items)), base.data)

    clean = lambda base: embed(base, base.params)
    return Ranker(open_, clean, update, lambda base, tuned, rows, offer: _read(model, tuned, offer))


Kind = Literal["rows", "graph", "sessions"]


def _kind(model: Recommender) -> Kind:
    """What a fine-tuning on the attackers' clicks has to know of a model; an error where it has no meaning."""
    two = Interactions.from_arrays([0, 1], [0, 1], time=[0, 1], track="sequence")
    data = jax.eval_shape(model.prepare, two)
    if "epochs" in model.config:
        if isinstance(data, lightgcn.Data):
            return "graph"
        if isinstance(data, gru4rec.Data):
            return "sessions"
        if isinstance(data, pairs.Data) or (model.name == "autorec" and model.config["by"] == "user"):
            return "rows"
    raise ValueError(
        f"{model.name} does not learn from the clicks of single users, so it cannot be fine-tuned on the attackers' "
        'alone; use update="scratch"'
    )


def _read_by(model: Recommender, kind: Kind, train: Interactions, few: Interactions, clicks: Array) -> Any:
    """What the loss of a fine-tuning reads: the few clicks, in the world of all of them where the model has one."""
    data = model.prepare(few)
    if kind == "rows":
        return data
    everything = model.prepare(_poisoned(train, clicks))
    if kind == "graph":
        return everything._replace(pairs=data.pairs)
    return data._replace(cumulative=everything.cumulative)  # of all clicks: whence the negatives are drawn


def _passes(model: Recommender, users: int, items: int, events: int, epochs: int) -> bilevel.Inner:
    """The model's own training, for a few passes over `events` events."""
    inner = model.trainer(users, items, 0, events)
    return dataclasses.replace(inner, steps=epochs * (inner.steps // model.config["epochs"]))


def _events(clicks: Int[Array, "N T"], *, first: int, items: int) -> Interactions:
    """The clicks of the attackers as the data of users `first`, `first + 1`, ..."""
    N, T = clicks.shape
    user = first + jnp.repeat(jnp.arange(N, dtype=jnp.int32), T)
    time = jnp.tile(jnp.arange(T, dtype=jnp.int32), N)
    ones = jnp.ones(N * T, jnp.float32)
    return Interactions(user, clicks.ravel(), ones, time, users=first + N, items=items, track="sequence")


def _mixed(key: Array, train: Interactions, new: Interactions, clicks: int) -> Interactions:
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


def _retrained(model: Recommender) -> Ranker:
    """Trained from the beginning on the clean and the injected clicks."""

    class Start(NamedTuple):
        train: Interactions
        clean: Any

    def open_(key, train: Interactions, fakes: int, offer: Offer) -> Start:
        return Start(train, fit(model, train, key).embedding)

    def update(base: Start, clicks: Int[Array, "N T"], key):
        return fit(model, _poisoned(base.train, clicks), key).embedding

    return Ranker(
        open_, lambda base: base.clean, update, lambda base, tuned, rows, offer: _read(model, tuned, offer)
    )


# ------------------------------------------------------------------------------------------------ reading a few scores


def _read(model: Recommender, embedding: Any, offer: Offer) -> Float[Array, "B C"]:
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
