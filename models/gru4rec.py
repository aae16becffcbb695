"""GRU4Rec: the next item of a session from a recurrent state of what came before.

Hidasi, Karatzoglou, Baltrunas, Tikk, *Session-based recommendations with recurrent neural networks*, ICLR 2016;
Hidasi, Karatzoglou, *Recurrent neural networks with top-k gains for session-based recommendations*, CIKM 2018; as the
victim of Song et al., ICDE 2020 (PoisonRec), where a user's history is one session:

    z, r = sigmoid(x_t W_z,r + h U_z,r + b),    g = tanh(x_t W_h + (r * h) U_h + b)
    h <- (1 - z) h + z g,    s_i = h . o_i + b_i

With `tied` items have one vector each, `x_t = o_i` before the gates' own product (the code's constrained embedding).

Training is session-parallel: `batch` lanes walk through their own sessions one event at a time, the state is set to 0
where a session begins and is not differentiated from one event to the next (as in the authors' code). The negatives of
an event are the targets of the other lanes and `samples` items drawn with probability ~ count^alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

import bilevel
from models.data.interactions import Interactions
from models.recommender import Recommender, counts, numbers, one_of, settings, sound

BLOCK = 256  # users whose sessions are read together when everybody is scored

Loss = Literal["top1", "bpr", "cross-entropy", "top1-max", "bpr-max"]


class Data(NamedTuple):
    """Items in the order of (user, time), where each session begins, the law of drawn negatives, 1 or NaN."""

    item: Int[Array, " E"]
    start: Int[Array, " U+1"]
    user: Int[Array, " E"]
    cumulative: Float[Array, " I"]
    sound: Float[Array, ""]


class Place(NamedTuple):
    """What the lanes see at a step: the item at hand, the next one, whether it counts and whether a session begins."""

    item: Int[Array, " B"]
    target: Int[Array, " B"]
    counts: Bool[Array, " B"]
    begins: Bool[Array, " B"]


def gru4rec(
    *,
    hidden: int = 100,
    objective: Loss = "bpr-max",
    regularization: float = 1.0,
    learning_rate: float = 0.1,
    epochs: int = 10,
    batch: int = 32,
    samples: int = 2048,
    alpha: float = 0.75,
    tied: bool = False,
    dropout: float = 0.0,
) -> Recommender:
    """GRU4Rec of one layer trained by Adagrad, as a `Recommender` of sequences.

    Args:
        hidden: width of the state, >= 1.
        objective: loss of an event against its negatives, see `LOSSES`.
        regularization: of the scores in "bpr-max", >= 0.
        learning_rate: of Adagrad, > 0.
        epochs: passes over the events, >= 1.
        batch: lanes, >= 2 (the others' targets are negatives).
        samples: further negatives of a step, shared by its lanes, >= 0.
        alpha: exponent of their popularity, >= 0: 0 draws uniformly. What is drawn often is pushed down often: with an
            exponent above 0 popular items score lower than their share.
        tied: the vector of an item in the output layer is also what the state reads of it (the code's
            `constrained_embedding`), instead of a table for each gate.
        dropout: share of the entries of a read vector left out in training, in [0, 1); only with `tied`.

    Raises:
        ValueError: a number outside its range, an unknown objective; data without an order, or fake rows (inject click
            sequences).

    Reference: Hidasi et al., ICLR 2016; Hidasi, Karatzoglou, CIKM 2018; their code for the defaults.

    **Differs from the paper:** PoisonRec cites the ICLR paper (TOP1) and links the code, whose default, and ours, is
    BPR-max.
    Lanes take whole sessions of about equal total length instead of the next free one, and begin again at the end, so
    short lanes see their sessions a little more often; `epochs` times the events is what all lanes see together. The
    loss is a mean over the lanes whose event counts, not over all. The state is carried by computing an event again
    with the parameters it led to, where the authors keep the one from before the step.

    >>> gru4rec(hidden=4).init(jax.random.key(0), 3, 5, 0)["out"].shape
    (5, 4)
    """
    config = dict(locals())
    counts("gru4rec", hidden=hidden, epochs=epochs, batch=batch, **({"samples": samples} if samples else {}))
    if batch < 2:
        raise ValueError(
            "gru4rec: batch=1; expected at least 2 lanes, whose targets are each other's negatives"
        )
    numbers("gru4rec", 0, open_end=True, learning_rate=learning_rate)
    numbers("gru4rec", 0, regularization=regularization, alpha=alpha)
    one_of("gru4rec", "objective", objective, get_args(Loss))
    numbers("gru4rec", 0, dropout=dropout)
    if dropout >= 1 or (dropout and not tied):
        raise ValueError(
            f"gru4rec: dropout={dropout!r}, tied={tied}; expected a share in [0, 1), 0 where items have no vector of "
            "their own (tied=False)"
        )
    judged = partial(
        loss,
        lanes=batch,
        samples=samples,
        ranked=LOSSES[objective],
        regularization=regularization,
        dropout=dropout,
    )

    def trainer(users, items, fakes, events=0):
        if fakes:
            raise ValueError(
                "gru4rec: fake rows have no order; inject click sequences into the training data"
            )
        if events < 1:
            raise ValueError(
                "gru4rec: give its trainer the capacity of the training data as the fourth argument"
            )
        adagrad = optax.adagrad(learning_rate, initial_accumulator_value=0.0, eps=1e-6)
        state = bilevel.Aux(
            lambda params, x, data, key: jnp.zeros((batch, hidden), params["out"].dtype),
            partial(advance, lanes=batch),
        )
        each = -(-events // batch)
        return bilevel.gradient_descent(judged, adagrad, epochs * each, aux=state, epoch=each)

    return Recommender(
        name="gru4rec",
        config=config,
        prepare=partial(prepare, alpha=alpha),
        init=partial(init, hidden=hidden, tied=tied),
        loss=judged,
        embed=embed,
        score=lambda embedding, users: embedding["state"][users] @ embedding["out"].T + embedding["bias"],
        trainer=trainer,
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "poisonrec": {},
    "iclr2016": {"objective": "top1", "samples": 0, "batch": 50},
}
"""The settings of the authors' code (which PoisonRec links), and the loss of the first paper."""


def preset(name: str, **changes: Any) -> Recommender:
    """GRU4Rec with the settings of a paper; `changes` replace some of them.

    >>> preset("iclr2016").config["objective"]
    'top1'
    """
    return gru4rec(**settings("gru4rec", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ losses of an event
# s: (B,) scores of the targets; o: (B, N) of the negatives; own: (B, N) True where a negative is one.


def _softmax(o: Array, own: Array) -> Array:
    return jax.nn.softmax(jnp.where(own, o, -jnp.inf), axis=1)


def _mean(values: Array, own: Array) -> Array:
    return jnp.sum(jnp.where(own, values, 0), 1) / jnp.maximum(jnp.sum(own, 1), 1)


def _top1(s, o, own, regularization):
    return _mean(jax.nn.sigmoid(o - s[:, None]) + jax.nn.sigmoid(o**2), own)


def _bpr(s, o, own, regularization):
    return _mean(jax.nn.softplus(o - s[:, None]), own)


def _cross_entropy(s, o, own, regularization):
    every = jnp.concatenate([s[:, None], jnp.where(own, o, -jnp.inf)], 1)
    return jax.nn.logsumexp(every, axis=1) - s


def _top1_max(s, o, own, regularization):
    terms = jax.nn.sigmoid(o - s[:, None]) + jax.nn.sigmoid(o**2)
    return jnp.sum(_softmax(o, own) * terms, 1)


def _bpr_max(s, o, own, regularization):
    p = _softmax(o, own)
    gain = jnp.sum(p * jax.nn.sigmoid(s[:, None] - o), 1)
    return -jnp.log(gain + 1e-24) + regularization * jnp.sum(p * o**2, 1)


LOSSES: Mapping[str, Callable[..., Float[Array, " B"]]] = {
    "top1": _top1,
    "bpr": _bpr,
    "cross-entropy": _cross_entropy,
    "top1-max": _top1_max,
    "bpr-max": _bpr_max,
}
"""TOP1 (ICLR 2016): `mean_j sigmoid(s_j - s) + sigmoid(s_j^2)`; BPR-max (CIKM 2018): `-log sum_j p_j sigmoid(s - s_j) +
regularization sum_j p_j s_j^2` with `p` the softmax of the negatives; "bpr", "cross-entropy", "top1-max" likewise."""


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions, *, alpha: float) -> Data:
    """Sessions in order; works under `jit` and `vmap`."""
    if train.track != "sequence":
        raise ValueError(
            f"gru4rec learns from the order of clicks, but the data are of track {train.track!r}; "
            "load them with track='sequence' and their times"
        )
    clicks = train.popularity()
    law = jnp.where(clicks > 0, clicks.astype(train.weight.dtype) ** alpha, 0)
    return Data(train.item, train.row_pointers(), train.user, jnp.cumsum(law) / jnp.sum(law), sound(train))


def init(key: Array, users: int, items: int, fakes: int, *, hidden: int, tied: bool = False) -> Any:
    """Uniform in +-sqrt(6 / (rows + columns)), biases 0; a user has no parameters."""
    keys = jax.random.split(key, 4)

    def draw(key, rows, columns, blocks=1):
        bound = (6 / (rows + columns)) ** 0.5
        return jax.random.uniform(key, (rows, blocks * columns), minval=-bound, maxval=bound)

    return {
        # of the candidate, the reset and the update gate
        ("read" if tied else "input"): draw(keys[0], hidden if tied else items, hidden, 3),
        "gates": draw(keys[1], hidden, hidden, 2),
        "state": draw(keys[2], hidden, hidden),
        "bias": jnp.zeros(3 * hidden),
        "out": draw(keys[3], items, hidden),
        "out_bias": jnp.zeros(items),
    }


def cell(
    params: Any, h: Float[Array, "B H"], item: Int[Array, " B"], kept: Float[Array, "B H"] | float = 1.0
) -> Float[Array, "B H"]:
    """The state after an item; `kept` scales the entries of its vector where there is one (dropout)."""
    width = h.shape[1]
    given = (kept * params["out"][item]) @ params["read"] if "read" in params else params["input"][item]
    candidate, gates = jnp.split(given + params["bias"], [width], axis=1)
    reset, update = jnp.split(jax.nn.sigmoid(gates + h @ params["gates"]), 2, axis=1)
    new = jnp.tanh(candidate + (reset * h) @ params["state"])
    return (1 - update) * h + update * new


def place(data: Data, step: Any, lanes: int) -> Place:
    """What each lane sees: its sessions are whole, and it begins again after the last."""
    events, slots = data.start[-1], data.item.shape[0]
    cut = (jnp.arange(lanes) * (events / lanes)).astype(jnp.int32)
    first = data.start[data.user[jnp.minimum(cut, slots - 1)]]  # of the session that the cut falls into
    length = jnp.append(first[1:], events) - first
    slot = jnp.minimum(first + step % jnp.maximum(length, 1), slots - 1)
    after = jnp.minimum(slot + 1, slots - 1)
    same = (after < events) & (after > slot) & (data.user[after] == data.user[slot])
    begins = slot == data.start[data.user[slot]]
    return Place(data.item[slot], data.item[after], same & (length > 0), begins)


def advance(state: Float[Array, "B H"], params: Any, x: Any, data: Data, ctx: Any, *, lanes: int) -> Array:
    """The state before this step's event: the last one's, moved by the item it saw."""
    last = place(data, jnp.maximum(ctx.step - 1, 0), lanes)
    moved = cell(params, jnp.where(last.begins[:, None], 0, state), last.item)
    return jnp.where(ctx.step == 0, state, moved)


def loss(
    params: Any,
    x: Float[Array, "F I"],
    data: Data,
    ctx: Any,
    *,
    lanes: int,
    samples: int,
    ranked: Callable[..., Float[Array, " B"]],
    regularization: float,
    dropout: float = 0.0,
) -> Float[Array, ""]:
    """The mean loss over the lanes whose event has a successor in its session."""
    now = place(data, ctx.step, lanes)
    before, kept, key = jnp.where(now.begins[:, None], 0, ctx.aux), 1.0, ctx.key
    if dropout:
        key, drop = jax.random.split(key)
        kept = jax.random.bernoulli(drop, 1 - dropout, before.shape) / (1 - dropout)
    h = cell(params, before, now.item, kept)
    drawn = jnp.searchsorted(data.cumulative, jax.random.uniform(key, (samples,), data.cumulative.dtype))
    others = jnp.concatenate([now.target, jnp.minimum(drawn, data.cumulative.shape[0] - 1).astype(jnp.int32)])
    known = jnp.concatenate([now.counts, jnp.ones(samples, bool)])
    own = known & (
        others != now.target[:, None]
    )  # a lane's own target is no negative of it, wherever it comes from
    s = jnp.sum(h * params["out"][now.target], 1) + params["out_bias"][now.target]
    o = h @ params["out"][others].T + params["out_bias"][others]
    usable = now.counts & jnp.any(own, axis=1)
    safe = own | ~usable[:, None]
    lost = jnp.where(usable, ranked(s, o, safe, regularization), 0)
    return data.sound * jnp.sum(lost) / jnp.maximum(jnp.sum(usable), 1)


def embed(params: Any, x: Float[Array, "F I"], data: Data) -> Any:
    """The state of every user after its whole session, and the output layer."""
    state = states(params, data, jnp.arange(data.start.shape[0] - 1))
    return {"state": state, "out": params["out"], "bias": params["out_bias"]}


def states(params: Any, data: Data, users: Int[Array, " B"]) -> Float[Array, "B H"]:
    """The state of some users after their whole sessions, 0 of one without clicks.

    Users are read in blocks of about equal sessions, so the items read are at most their events and `BLOCK` times the
    longest session.
    """
    begin = data.start[users]
    length = data.start[users + 1] - begin
    count, last = users.shape[0], data.item.shape[0] - 1
    size = min(BLOCK, count)
    order = jnp.argsort(-length)
    split = lambda of_user: jnp.pad(of_user[order], (0, -count % size)).reshape(-1, size)

    def read(block):
        first, length = block

        def item(t, h):
            return jnp.where(
                (t < length)[:, None], cell(params, h, data.item[jnp.minimum(first + t, last)]), h
            )

        start = jnp.zeros((size, params["state"].shape[0]), params["out"].dtype)
        return lax.fori_loop(0, jnp.max(length), item, start)

    sorted_ = lax.map(read, (split(begin), split(length)))
    return data.sound * sorted_.reshape(-1, sorted_.shape[2])[jnp.argsort(order)]
