"""AppGrad: click counts learned by gradient descent, the gradient estimated from what a black box answers.

Christakopoulou, Banerjee, "Adversarial Attacks on an Oblivious Recommender", RecSys 2019; for click sequences as the
baseline of Song et al. (PoisonRec), ICDE 2020, section IV-A. With f = -RecNum and `Z` (N, I) the clicks of N attackers:

    g  = 1/q sum_k [f(Z + c V_k) - f(Z - c V_k)] / (2 c) V_k          2q trials: directions V_k of rank one
    Z <- Proj(Z - eta g / max |g|),    Proj onto rows >= 0 that sum to T

What is tried are whole clicks: of each row the nearest T counts, `argmin |z - n|^2` over integers `n >= 0` that sum to
T, in random order (the attack knows none).
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attacks.asktell import AskTell, Best, against, better, no_best
from attacks.attack import Attack
from attacks.environment import Environment
from attacks.policy import target_share
from attacks.threat import Goal, ThreatModel
from attacks.tracks import one_track
from bilevel.project import simplex

Directions = Literal["svd", "gaussian"]


class State(NamedTuple):
    """The relaxed counts, the best set so far, targets, and a key."""

    Z: Float[Array, "N I"]
    best: Best
    targets: Int[Array, " T"]
    key: Key[Array, ""]


class Proposal(NamedTuple):
    """Directions, and the trials: forwards along each of them, then backwards."""

    directions: Float[Array, "q N I"]
    clicks: Int[Array, "M N T"]


@one_track("sequence", "appgrad learns the order of clicks, as its black boxes read them")
def appgrad(
    environment: Environment,
    *,
    fakes: int | float = 20,
    clicks: int = 20,
    queries: int = 3200,
    directions: int | None = None,
    kind: Directions = "svd",
    radius: float = 1.0,
    learning_rate: float = 0.5,
    goal: Goal = "promote",
) -> Attack:
    """AppGrad against an environment: `Z <- Proj(Z - eta g / max |g|)` with g from differences of RecNum.

    Args:
        environment: the black box, from `attacks.environment`.
        fakes: attackers N, or fraction of the real users in (0, 1).
        clicks: T, clicks of each, >= 1.
        queries: trials in all, at least `2 * directions`; there are `queries // (2 * directions)` steps.
        directions: q, >= 1; for "svd" at most N. None: 16, or `fakes` where that is a smaller
            whole number.
        kind: "svd": the leading singular directions of Z, each with a largest entry of 1, which do not leave the items
            clicked now (beyond the rank of Z there are none: those trials are of Z itself); "gaussian": `V = a b'` with
            standard normal `a`, `b`, for catalogs of tens of items.
        radius: c > 0, in clicks; above 0.5 for "svd": from whole counts, less is rounded away.
        learning_rate: eta > 0, in clicks: the most that an entry moves in a step.
        goal: `"promote"`: f = -RecNum; `"demote"`: f = RecNum. RecNum knows no availability.

    Returns:
        An attack on the `"sequence"` track; `knowledge="items"`. Its profiles are the best set tried. History:
        `mean_reward`, `best_reward` (of the step's trials), `target_share`, `loss` (`-mean_reward`), `grad_norm`,
        `lost` (share of users whose scores an update broke).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of its range.

    Reference: Christakopoulou, Banerjee, RecSys 2019; Song et al., ICDE 2020, section IV-A.

    **Differs from the paper:** the paper starts from samples of a generative network trained on real profiles; here, as
    in PoisonRec's comparison, half of the clicks are on targets and the others on any item. The gradient is divided by
    its largest entry, rows keep their sum, and whole clicks are the nearest T counts. The best set tried is returned.
    Random directions of rank one are ours. Their mean is the gradient of a smoothed f, but over thousands of items
    their largest entries outweigh the clicks on targets when all are rounded, and the reward falls from step to step.

    **How it is detected and what mitigates it:** as `attacks.poisonrec`: repeated clicks of few accounts on
    cold items, and thousands of trials. Random directions spread clicks over items that nobody clicks together, which
    detectors by co-occurrence see.

    >>> from attacks.environment import environment
    >>> from models.data import Interactions
    >>> from models.itempop import itempop
    >>> data = Interactions.from_arrays([0, 0, 1], [0, 1, 1], items=6, time=[0, 1, 0], track="sequence")
    >>> attack = appgrad(environment(itempop(), candidates=3, k=1), fakes=2, clicks=3, queries=9, directions=2)
    >>> attack.steps, attack.threat.queries
    (2, 8)
    """
    config = {**locals(), "directions": _count(directions, fakes, kind)}
    if not isinstance(environment, Environment):
        raise TypeError(
            f"environment is {environment!r}; expected attacks.environment(model, ...). A victim outside "
            "JAX is played with appgrad_learner and attacks.play"
        )
    learner = appgrad_learner(**{name: value for name, value in config.items() if name != "environment"})
    return against(learner, environment, config)


@one_track("sequence", "appgrad learns the order of clicks, as its black boxes read them")
def appgrad_learner(
    *,
    fakes: int | float = 20,
    clicks: int = 20,
    queries: int = 3200,
    directions: int | None = None,
    kind: Directions = "svd",
    radius: float = 1.0,
    learning_rate: float = 0.5,
    goal: Goal = "promote",
) -> AskTell:
    """AppGrad in ask/tell form, for a victim outside JAX.

    Args:
        fakes, clicks, queries, directions, kind, radius, learning_rate, goal: as in `appgrad`.

    Returns:
        An `AskTell`, such as `attacks.play` plays. Rewards are told as they are to be maximized: RecNum, or for
        `goal="demote"` its negative (`attacks.play` does that).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of its range.

    Reference: Christakopoulou, Banerjee, RecSys 2019.

    **Differs from the paper:** see `appgrad`.

    **How it is detected and what mitigates it:** see `appgrad`: by the trials first, which here are real ones.

    >>> learner = appgrad_learner(fakes=2, clicks=3, queries=8, directions=2)
    >>> state = learner.init(jax.random.key(0), jnp.zeros(6, int), jnp.array([0]), 2)
    >>> learner.ask(state).clicks.shape
    (4, 2, 3)
    """
    config = {**locals(), "directions": _count(directions, fakes, kind)}
    _check(config)
    q = config["directions"]
    steps = queries // (2 * q)
    legal = simplex(float(clicks))

    def init(key, popularity: Int[Array, " I"], targets: Int[Array, " T"], attackers: int) -> State:
        targets = jnp.asarray(targets, jnp.int32)
        if kind == "svd" and q > attackers:
            raise ValueError(_too_many(q, attackers))
        for_start, rest = jax.random.split(key)
        start = counts(
            first_clicks(for_start, targets, attackers, clicks, popularity.shape[0]), popularity.shape[0]
        )
        return State(start, no_best(attackers, clicks, targets), targets, rest)

    def propose(state: State) -> Proposal:
        for_directions, for_order = jax.random.split(jax.random.fold_in(state.key, 0))
        V = draw_directions(for_directions, state.Z, q, kind)
        moved = jnp.concatenate([state.Z + radius * V, state.Z - radius * V])
        whole = lambda one: whole_clicks(one[0], clicks, one[1])
        return Proposal(V, lax.map(whole, (moved, jax.random.split(for_order, 2 * q))))

    def learn(
        state: State, proposal: Proposal, rewards: Float[Array, " M"]
    ) -> tuple[State, dict[str, Array]]:
        g = estimate(proposal.directions, -rewards[:q], -rewards[q:], radius)
        largest = jnp.max(jnp.abs(g))
        Z = legal(state.Z - learning_rate * g / jnp.where(largest > 0, largest, 1))
        metrics = {
            "loss": -jnp.mean(rewards),
            "mean_reward": jnp.mean(rewards),
            "best_reward": jnp.max(rewards),
            "target_share": target_share(proposal.clicks, state.targets),
            "grad_norm": jnp.linalg.norm(g),
        }
        best = better(state.best, proposal.clicks, rewards)
        return State(Z, best, state.targets, jax.random.fold_in(state.key, 1)), metrics

    of = lambda state: (state.targets, state.Z.shape[1])
    threat = ThreatModel(
        fakes=fakes, goal=goal, track="sequence", knowledge="items", clicks=clicks, queries=2 * q * steps
    )
    return AskTell("appgrad", config, threat, steps, init, propose, learn, lambda state: state.best, of)


# ------------------------------------------------------------------------------------------------ the estimate


def draw_directions(
    key: Key[Array, ""], Z: Float[Array, "N I"], count: int, kind: Directions
) -> Float[Array, "q N I"]:
    """`count` directions of rank one, random or the leading singular ones of Z."""
    if kind == "svd":
        left, values, right = jnp.linalg.svd(Z, full_matrices=False)
        V = left.T[:count, :, None] * right[:count, None]
        V = jnp.where((values > 1e-5 * values[0])[:count, None, None], V, 0)  # others point at any item
        largest = jnp.max(jnp.abs(V), (1, 2), keepdims=True)
        return V / jnp.where(largest > 0, largest, 1)
    for_left, for_right = jax.random.split(key)
    left = jax.random.normal(for_left, (count, Z.shape[0]))
    return left[:, :, None] * jax.random.normal(for_right, (count, Z.shape[1]))[:, None]


def estimate(
    directions: Float[Array, "q N I"],
    forwards: Float[Array, " q"],
    backwards: Float[Array, " q"],
    radius: float,
) -> Float[Array, "N I"]:
    """`g = mean_k [f(Z + c V_k) - f(Z - c V_k)] / (2 c) V_k`.

    For a quadratic f and random directions the mean of g is the gradient of f, whatever c.

    Reference: Christakopoulou, Banerjee, RecSys 2019.

    >>> V = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> estimate(V, jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0]), 0.5).tolist()
    [[1.0, 0.0]]
    """
    slopes = (forwards - backwards) / (2 * radius)
    return jnp.tensordot(slopes, directions, 1) / directions.shape[0]


# ------------------------------------------------------------------------------------------------ whole clicks


def first_clicks(
    key: Key[Array, ""], targets: Int[Array, " T"], fakes: int, clicks: int, items: int
) -> Int[Array, "N T"]:
    """Every click on a target with probability 1/2, else on any item."""
    for_side, for_target, for_item = jax.random.split(key, 3)
    shape = (fakes, clicks)
    target = targets[jax.random.randint(for_target, shape, 0, targets.shape[0])]
    return jnp.where(
        jax.random.bernoulli(for_side, shape=shape), target, jax.random.randint(for_item, shape, 0, items)
    )


def counts(clicks: Int[Array, "N T"], items: int) -> Float[Array, "N I"]:
    """How often each attacker clicks each item.

    >>> counts(jnp.array([[2, 0, 2]]), 3).tolist()
    [[1.0, 0.0, 2.0]]
    """
    return jnp.zeros((clicks.shape[0], items)).at[jnp.arange(clicks.shape[0])[:, None], clicks].add(1)


def whole_clicks(Z: Float[Array, "N I"], clicks: int, key: Key[Array, ""]) -> Int[Array, "N T"]:
    """The T clicks of each row whose counts are nearest to it, in random order.

    Each click takes the item with the most left, `argmax z - n`, which minimizes `|z - n|^2` over whole `n >= 0`.

    >>> sorted(whole_clicks(jnp.array([[2.2, 0.4, 0.6]]), 3, jax.random.key(0))[0].tolist())
    [0, 0, 2]
    """

    def click(left, _):
        item = jnp.argmax(left, axis=1).astype(jnp.int32)
        return left.at[jnp.arange(left.shape[0]), item].add(-1), item

    _, chosen = lax.scan(click, Z, None, length=clicks)
    return jax.random.permutation(key, chosen.T, axis=1, independent=True)


def _count(directions: int | None, fakes: int | float, kind: Directions) -> int:
    """How many directions there are, where nobody says; singular ones are no more than attackers.

    >>> _count(None, 20, "svd"), _count(None, 3, "svd"), _count(None, 3, "gaussian"), _count(None, 0.1, "svd")
    (16, 3, 16, 16)
    """
    if directions is not None:
        return directions
    return min(16, int(fakes)) if kind == "svd" and isinstance(fakes, Integral) and fakes >= 1 else 16


def _too_many(directions: int, attackers: int) -> str:
    return f"directions is {directions}, but {attackers} attackers have at most as many singular ones"


def _check(config: dict[str, Any]) -> None:
    for name in ("directions", "queries", "clicks"):
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an integer >= 1")
    if config["queries"] < 2 * config["directions"]:
        raise ValueError(
            f"queries is {config['queries']}, less than the {2 * config['directions']} of one step; lower directions"
        )
    for name in ("radius", "learning_rate"):
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; expected a finite number > 0")
    if config["kind"] not in get_args(Directions):
        raise ValueError(f"kind is {config['kind']!r}; expected 'gaussian' or 'svd'")
    if (
        config["kind"] == "svd"
        and isinstance(config["fakes"], Integral)
        and config["directions"] > config["fakes"]
    ):
        raise ValueError(_too_many(config["directions"], int(config["fakes"])))
    if config["kind"] == "svd" and config["radius"] <= 0.5:
        raise ValueError(
            f"radius is {config['radius']!r}; expected more than 0.5 for kind='svd', such as 1: from whole counts, a "
            "step of half a click is rounded away and nothing is learned"
        )
    if config["goal"] == "availability":
        raise ValueError(
            "goal is 'availability', but RecNum counts targets: it serves 'promote' and 'demote'"
        )
