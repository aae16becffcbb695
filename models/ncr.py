"""NCR: recommendation as a sentence of neural logic, "if u liked a and b, or ..., then x".

Chen, Shi, Li, Zhang, *Neural collaborative reasoning*, WWW 2021; as the surrogate of Chen, Silvestri, Wang, Zhang,
Tolomei, SIGIR 2023 (H-CARS), eqs 2-6:

    e_uj = EVENT([h_u; h_j]),    c = OR(OR(... OR(not e_1, not e_2) ..., not e_n), e_x),    s_ux = 10 cos(c, 1)
    L = -sum log sigmoid(s_ux - s_uz)  +  logic * R  +  l2/2 |theta|^2

with `z` sampled from the items `u` did not click, `1` a fixed vector that means true, EVENT, NOT, OR and AND networks
of one hidden layer, and R the mean violation of 15 laws of Boolean algebra (`laws`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models import pairs
from models.data import sample
from models.data.interactions import Interactions
from models.data.sample import Lists
from models.recommender import Recommender, clicks_only, counts, flat, given, numbers, settings, sound

SCALE = 10.0  # of the cosine, in training and in scores
CELLS = 1 << 22
"""Values of the last OR held at once when every item is scored."""


class Data(NamedTuple):
    """Events in the order of (user, time), where each user begins, each user's items, the unused mask, 1 or NaN."""

    user: Int[Array, " E"]
    item: Int[Array, " E"]
    real: Bool[Array, " E"]
    start: Int[Array, " U+1"]
    lists: Lists
    observed: Bool[Array, "F I"] | None
    sound: Float[Array, ""]


class Network(nnx.Module):
    """Embeddings of users and items, and the modules; everything N(0, 0.01^2)."""

    def __init__(self, users: int, items: int, factors: int, *, rngs: nnx.Rngs):
        self.user = nnx.Param(0.01 * jax.random.normal(rngs.params(), (users, factors)))
        self.item = nnx.Param(0.01 * jax.random.normal(rngs.params(), (items, factors)))
        self.event, self.either, self.both = (_Module(2 * factors, factors, rngs) for _ in range(3))
        self.negation = _Module(factors, factors, rngs)


class _Module(nnx.Module):
    """`linear -> ReLU -> linear`."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        normal, precision = nnx.initializers.normal(0.01), jnp.result_type(float)
        make = lambda a: nnx.Linear(
            a, width, kernel_init=normal, bias_init=normal, param_dtype=precision, rngs=rngs
        )
        self.first, self.second = make(inputs), make(width)


class Logic(NamedTuple):
    """NOT, OR and AND on vectors, and the vector that means true."""

    negation: Callable[[Array], Array]
    either: Callable[[Array, Array], Array]
    both: Callable[[Array, Array], Array]
    true: Float[Array, " D"]


def ncr(
    *,
    factors: int = 64,
    learning_rate: float = 1e-3,
    l2: float = 1e-4,
    logic: float = 0.1,
    max_history: int = 5,
    epochs: int = 100,
    batch: int | None = 128,
    clip: float = 50.0,
) -> Recommender:
    """NCR trained by Adam, as a `Recommender`.

    Args:
        factors: D >= 1.
        learning_rate: of Adam, > 0.
        l2: gradient `l2 * theta` of all parameters, >= 0.
        logic: weight of the logical regularizer, >= 0.
        max_history: items before x that are premises, >= 1, in training and in scores.
        epochs: passes over the clicks, >= 1.
        batch: clicks per step; None: all of them.
        clip: gradients are cut to +-clip, entry by entry, > 0.

    Raises:
        ValueError: a number outside its range; ratings, or fake rows: the order of their clicks is not defined (inject
            them).

    Reference: Chen et al., WWW 2021; Chen et al. (H-CARS), SIGIR 2023, eqs 2-6; NCR's released code for the defaults.

    **Differs from the paper:** H-CARS prints -log(sim+ - sim-), which is undefined where sim- is larger; this is NCR's
    loss. The premises of a click are the items before it (by time, or by position where there is none), in random order
    in training and as stored when scoring; the first click of a user has none and is not learned. The code penalizes
    the parameters twice, in the loss (gradient 2 l2 theta) and in the optimizer (l2 theta); here it is l2 theta.

    >>> ncr(factors=4).init(jax.random.key(0), 3, 5, 0)["event"]["first"]["kernel"].shape
    (8, 4)
    """
    config = dict(locals())
    counts("ncr", factors=factors, epochs=epochs, max_history=max_history, **given(batch=batch))
    numbers("ncr", 0, open_end=True, learning_rate=learning_rate, clip=clip)
    numbers("ncr", 0, l2=l2, logic=logic)
    objective = partial(loss, l2=l2, logic=logic, max_history=max_history)
    optimizer = optax.chain(optax.clip(clip), optax.adam(learning_rate))
    descend = pairs.trainer("ncr", objective, optimizer, epochs, batch)

    def trainer(users, items, fakes, events=0):
        if fakes:
            raise ValueError("ncr: fake rows have no order; inject hard profiles into the training data")
        return descend(users, items, fakes, events)

    return Recommender(
        name="ncr",
        config=config,
        prepare=prepare,
        init=lambda key, users, items, fakes: flat(Network(users, items, factors, rngs=nnx.Rngs(params=key))),
        loss=objective,
        embed=partial(embed, max_history=max_history),
        score=score,
        trainer=trainer,
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "original": {},
    "hcars-ml": {"logic": 1e-4},
    "hcars-yelp": {"logic": 1e-5},
}
"""The settings of NCR's code, and those of H-CARS (SIGIR 2023)."""


def preset(name: str, **changes: Any) -> Recommender:
    """NCR with the settings of a paper; `changes` replace some of them.

    >>> preset("hcars-ml").config["logic"]
    0.0001
    """
    return ncr(**settings("ncr", PRESETS, name, changes))


# ------------------------------------------------------------------------------------------------ logic


def true_vector(factors: int) -> Float[Array, " D"]:
    """The vector that means true: drawn once from U(0, 0.1), the same for everybody, never trained."""
    return jax.random.uniform(jax.random.key(42), (factors,), maxval=0.1)


def logic_of(params: Any) -> Logic:
    """The modules as functions."""
    either, both = (partial(module, params[name]) for name in ("either", "both"))
    return Logic(partial(module, params["negation"]), either, both, true_vector(params["item"].shape[1]))


def module(layers: Any, *inputs: Float[Array, "*#B D"]) -> Float[Array, "*B D"]:
    """`linear -> ReLU -> linear` of the concatenated inputs.

    The first layer is a sum over the inputs, so that one that many sentences share is multiplied once; inputs
    broadcast against each other.
    """
    kernels = jnp.split(layers["first"]["kernel"], len(inputs))
    h = sum(one @ kernel for one, kernel in zip(inputs, kernels)) + layers["first"]["bias"]
    return jax.nn.relu(h) @ layers["second"]["kernel"] + layers["second"]["bias"]


def cosine(a: Float[Array, "*B D"], b: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """The cosine of two vectors, 0 where one of them vanishes."""
    square = jnp.sum(a**2, -1) * jnp.sum(b**2, -1)
    return jnp.sum(a * b, -1) * jnp.where(square > 1e-24, jnp.where(square > 1e-24, square, 1) ** -0.5, 0)


def clause(
    logic: Logic, premises: Float[Array, "*B N D"], known: Bool[Array, "*B N"]
) -> tuple[Float[Array, "*B D"], Float[Array, "*B N D"]]:
    """`OR(... OR(not e_1, not e_2) ..., not e_n)` over the known premises, and every prefix of it.

    Padding is skipped: it changes no number. Without premises the vector is 0.
    """
    negated = logic.negation(premises)

    def add(carry, one):
        so_far, begun = carry
        vector, here = one
        joined = jnp.where(begun[..., None], logic.either(so_far, vector), vector)
        now = jnp.where(here[..., None], joined, so_far)
        return (now, begun | here), now

    first = (jnp.zeros_like(negated[..., 0, :]), jnp.zeros(known.shape[:-1], bool))
    steps = (jnp.moveaxis(negated, -2, 0), jnp.moveaxis(known, -1, 0))
    (last, _), prefixes = lax.scan(add, first, steps)
    return last, jnp.moveaxis(prefixes, 0, -2)


def laws(logic: Logic, v: Float[Array, "N D"], weight: Float[Array, " N"]) -> Float[Array, ""]:
    """Violation of 15 laws of Boolean algebra by vectors `v`, each in [0, 2], summed; 0 for exact logic.

    Identity, annihilation, idempotence and complement of AND and OR, double negation, and that a thing and its negation
    are opposite: `near(a, b) = mean(1 - cos(a, b))`, `far(a, b) = mean(1 + cos(a, b))`, the mean weighted by `weight`.

    Args:
        logic: the modules.
        v: N vectors.
        weight: of each, >= 0.

    Reference: NCR's released code. **Differs from the paper:** nothing.

    >>> number = lambda truth: jnp.stack([truth, 0 * truth], -1)  # (1, 0) is true, (-1, 0) false
    >>> either = lambda a, b: number(jnp.maximum(a[..., 0], b[..., 0]))
    >>> both = lambda a, b: number(jnp.minimum(a[..., 0], b[..., 0]))
    >>> exact = Logic(lambda a: -a, either, both, jnp.array([1.0, 0.0]))
    >>> float(laws(exact, jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.ones(2)))
    0.0
    """
    true, no, either, both = logic.true[None], logic.negation, logic.either, logic.both
    false, not_v = no(true), no(v)
    mean = lambda values: pairs.mean(weight, jnp.broadcast_to(values, weight.shape))
    near, far = (lambda a, b: mean(1 - cosine(a, b))), (lambda a, b: mean(1 + cosine(a, b)))
    negation = (
        near(no(false), true) + near(no(not_v), v) + far(not_v, v) + far(no(not_v), not_v) + far(true, false)
    )
    conjunction = near(both(v, true), v) + near(both(v, false), false) + near(both(v, v), v)
    conjunction += near(both(v, not_v), false) + near(both(not_v, v), false)
    disjunction = near(either(v, true), true) + near(either(v, false), v) + near(either(v, v), v)
    disjunction += near(either(v, not_v), true) + near(either(not_v, v), true)
    return negation + conjunction + disjunction


# ------------------------------------------------------------------------------------------------ pure functions


def prepare(train: Interactions) -> Data:
    """Events in time order; works under `jit` and `vmap`."""
    train = clicks_only("ncr", train)
    user, item = train.user, train.item
    if train.time is not None and train.track != "sequence":  # sequences are in this order already
        far = jnp.where(train.mask, user, train.users)
        order = jnp.lexsort((train.time, far))
        user, item = user[order], item[order]
    return Data(user, item, train.mask, train.row_pointers(), sample.lists(train), None, sound(train))


def premises(
    data: Data, user: Int[Array, " B"], stop: Int[Array, " B"], length: int
) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
    """The last `length` items of each user before slot `stop`, oldest first, and which of them there are."""
    slot = jnp.maximum(data.start[user], stop - length)[:, None] + jnp.arange(length)
    known = slot < stop[:, None]
    return data.item[jnp.where(known, slot, 0)], known


def event(params: Any, user: Float[Array, "*#B D"], item: Float[Array, "*#B D"]) -> Float[Array, "*B D"]:
    """`EVENT([h_u; h_j])`."""
    return module(params["event"], user, item)


def loss(
    params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, *, l2: float, logic: float, max_history: int
) -> Float[Array, ""]:
    """The objective over the clicks of the step."""
    for_negative, for_order = jax.random.split(ctx.key)
    index, real = (jnp.arange(data.user.shape[0]), True) if ctx.batch is None else ctx.batch
    user = data.user[index]
    history, known = premises(data, user, index, max_history)
    rest = 1 + jax.random.permutation(
        for_order, max_history - 1
    )  # one order a batch; the oldest begins the chain
    order = jnp.concatenate([jnp.zeros(1, rest.dtype), rest])
    history, known = history[:, order], known[:, order]
    weight = (data.real[index] & real & jnp.any(known, 1)).astype(x.dtype)
    items = x.shape[1]
    negative = sample.negatives(for_negative, data.lists, user, 1, items)[:, 0]
    system = logic_of(params)
    h = params["user"][user]
    events = event(params, h[:, None], params["item"][history])
    so_far, prefixes = clause(system, events, known)
    heads = [event(params, h, params["item"][what]) for what in (data.item[index], negative)]
    ends = [system.either(so_far, head) for head in heads]
    s, z = (SCALE * cosine(end, system.true) for end in ends)
    # What the sentences of x and z share is counted for both; the first prefix is the first negation.
    shared = jnp.concatenate([events, system.negation(events), prefixes[:, 1:]], 1)
    there = jnp.concatenate([known, known, known[:, 1:]], 1) * weight[:, None]
    vectors = jnp.concatenate([shared.reshape(-1, h.shape[1]), *heads, *ends])
    weights = jnp.concatenate([2 * there.ravel(), *[weight] * 4])
    penalty = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
    regular = logic * laws(system, vectors, weights) + l2 / 2 * penalty
    return data.sound * (jnp.vdot(weight, jax.nn.softplus(z - s)) + regular)


def embed(params: Any, x: Float[Array, "F I"], data: Data, *, max_history: int) -> Any:
    """The parameters and each user's clause of its last items, to which scores add every item."""
    users = jnp.arange(data.start.shape[0] - 1)
    history, known = premises(data, users, data.start[1:], max_history)
    so_far, _ = clause(
        logic_of(params), event(params, params["user"][:, None], params["item"][history]), known
    )
    return {"params": params, "clause": data.sound * so_far}


def whole(params: Any, data: Data, *, chunk: int = 64) -> Float[Array, "U D"]:
    """Each user's clause of all its items, oldest first, as eqs 4 and 10-12 of H-CARS have it.

    Users are taken in the order of their histories' lengths, `chunk` at once, and a chunk is done when its longest
    history is: at most `E + chunk * longest` ORs, whatever the number of items, in one compiled loop (which has no
    gradient in reverse mode).

    Args:
        params: of NCR.
        data: from `prepare`.
        chunk: users at once, >= 1.

    Returns:
        Their clauses; 0 for a user without items.

    Reference: Chen et al. (H-CARS), SIGIR 2023, eq. 4. **Differs from the paper:** nothing.

    >>> data = prepare(Interactions.from_arrays([0, 0, 0, 1], [3, 1, 2, 0], items=4))
    >>> params = ncr(factors=2).init(jax.random.key(0), 2, 4, 0)
    >>> last = lambda: embed(params, jnp.zeros((0, 4)), data, max_history=3)["clause"]
    >>> bool(jax.jit(lambda: jnp.allclose(whole(params, data), last()))())
    True
    """
    system, length = logic_of(params), jnp.diff(data.start)
    users = length.shape[0]
    rows = -(-users // chunk)
    nobody = rows * chunk - users
    order = jnp.pad(jnp.argsort(length), (nobody, 0), constant_values=users)

    def of(some: Int[Array, " C"]) -> Float[Array, "C D"]:
        at = jnp.minimum(some, users - 1)
        h, begin, stop = params["user"][at], data.start[at], jnp.where(some < users, length[at], 0)

        def add(n, so_far):
            premise = event(params, h, params["item"][data.item[jnp.where(n < stop, begin + n, 0)]])
            negated = system.negation(premise)
            joined = jnp.where(n > 0, system.either(so_far, negated), negated)
            return jnp.where((n < stop)[:, None], joined, so_far)

        return lax.fori_loop(0, jnp.max(stop), add, jnp.zeros_like(h))

    clauses = lax.map(of, order.reshape(rows, chunk)).reshape(rows * chunk, -1)
    return data.sound * jnp.zeros_like(params["user"]).at[order].set(clauses, mode="drop")


def score(embedding: Any, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """`10 cos(OR(clause, e_ux), 1)` for every item x, a few users at a time."""
    params = embedding["params"]
    system = logic_of(params)

    def of(one):
        h, so_far = one
        heads = event(params, h, params["item"])
        return SCALE * cosine(system.either(so_far, heads), system.true)

    chunk = max(1, CELLS // (params["item"].size * 4))
    return lax.map(of, (params["user"][users], embedding["clause"][users]), batch_size=chunk)
