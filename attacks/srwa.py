"""SRWA: fake users that steer random walks with restart towards the targets.

Fang, Yang, Gong, Liu, "Poisoning Attacks to Graph-Based Recommender Systems", ACSAC 2018. The recommender walks from
user u on the graph of users and items, an edge as likely as its rating, and goes back to u with probability alpha:

    p_u = (1 - alpha) Q p_u + alpha e_u,      Q column-normalized,      u is shown the unseen items of the largest p_ui

Fake users are added one after the other. Of the next one, who rates all targets r_max, the other weights are learned:

    min  |w|^2 + lambda sum_{u in S} sum_t sum_{i in L_u} g(p_ui - p_ut)    over  0 <= w <= r_max,
    g(x) = 1 / (1 + exp(-x / b)),     S: users without t,     L_u: what u is shown now

by projected gradient, and the B largest become fillers. The derivative is that of the fixed point (`bilevel.implicit`).
Walks are solved for on the items alone: users, who only pass on what they get, are eliminated, which squares the factor
of convergence to `(1 - alpha)^2` a sweep.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

import bilevel
from attacks.attack import Attack, in_stages
from attacks.rating import draw_ratings, item_statistics
from attacks.threat import Goal, Ratings, ThreatModel, Track, as_ratings, fixed
from bilevel.project import column_mask, topk
from models import sparse
from models.data import Interactions, Profiles, sample
from models.recommender import counts, given, numbers


class Graph(NamedTuple):
    """What the walks of S users read, besides the weights `w` of the fake user that is being learned.

    Attributes:
        cells, value: edges between real users and items, and their weights.
        user: 1 / degree of the real users (0 for none).
        item: degree of the items, of real users only.
        rows: weights of the earlier fake users, zeros for the later ones.
        start: `(S,)` real users the walks start from.
    """

    cells: sparse.Observed
    value: Float[Array, " E"]
    user: Float[Array, " U"]
    item: Float[Array, " I"]
    rows: Float[Array, "F I"]
    start: Int[Array, " S"]


class State(NamedTuple):
    """The fake users' rows, of which the first `made` are done; the last one's loss and exposure."""

    key: Key[Array, ""]
    rows: Float[Array, "F I"]
    made: Int[Array, ""]
    loss: Float[Array, ""]
    target_hr: Float[Array, ""]


def srwa(
    *,
    fakes: int | float,
    budget: int | None = None,
    track: Track = "implicit",
    ratings: Ratings | tuple[float, float, float] | None = None,
    goal: Goal = "promote",
    steps: int = 3,
    learning_rate: float = 0.1,
    weight: float = 0.01,
    width: float = 0.01,
    restart: float = 0.3,
    k: int = 10,
    users: int | None = 1000,
    sweeps: int = 12,
    stages: int = 10,
    clicks: int | None = None,
) -> Attack:
    """SRWA: the B items whose edges to the next fake user move walks most towards the targets, found by their gradient.

    `min |w|^2 + lambda sum_u sum_t sum_{i in L_u} g(p_ui - p_ut)` over `0 <= w <= r_max`; fillers are the B largest.

    Args:
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: fillers B of a fake user, in `[0, I - T]`; all targets come on top.
        track: `"implicit"`: an edge weighs 1, `r_max = 1`; `"explicit"`: its rating.
        ratings: `(low, high, step)`, for `"explicit"`: fillers are rated `N(mu_i, sigma_i)` on the grid, targets
            `high`.
        goal: `"promote"`.
        steps: projected gradient steps for a fake user, >= 1.
        learning_rate: of them, > 0; `|w|^2` alone shrinks by `1 - 2 learning_rate` a step.
        weight: lambda > 0.
        width: b > 0.
        restart: alpha, in (0, 1).
        k: K, length of the lists, >= 1; at most I.
        users: how many users S has, >= 1, drawn anew for each fake user, those who lack a target first; None: all of
            them. Time and memory follow it; with fewer, fake users are less alike and the attack is weaker.
        sweeps: of a walk per gradient, and terms of its adjoint, >= 1; each step goes on from the last one's walk.
        stages: outer steps the fake users are divided into, >= 1: how often there is progress and a snapshot. The
            profiles do not depend on it. In a run that `on_block` ends early, fake users not made yet have the targets
            only.
        clicks: `None`, there is no sequence.

    Returns:
        An attack of `stages` outer steps; `knowledge="interactions"`. Its history has, of the last fake user made,
        `loss` and `target_hr`: the share of S shown a target, both at the last gradient step.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use here.

    Reference: Fang, Yang, Gong, Liu, ACSAC 2018.

    **Differs from the paper:** users are sampled, anew for each fake user; the gradient comes from a Neumann series
    with the walk's own matrix, not from a dense inverse; weights start at 0, and those left at 0 rank by their last
    gradient; several targets are promoted by the sum of their losses; clicks are ratings of 1. With the default
    lambda the weights stay far below r_max, so what counts is the gradient of a first thin edge, and a few steps are
    enough. Edges only add mass to a target: demotion is not offered.

    **How it is detected and what mitigates it:** all fake users rate the targets and share their fillers, so they are
    near-duplicates; the paper's classifier on rating statistics catches part of them only.
    Walks weighted by the age of an account, and limits on new accounts, bound the effect.

    >>> train = Interactions.from_dense((jnp.arange(48).reshape(6, 8) % 3 == 0).astype(float))
    >>> profiles, history = srwa(fakes=2, budget=3, steps=2, stages=2).trace(jax.random.key(0), train, jnp.array([1]))
    >>> profiles.validate(budget=3).to_rows().sum(axis=1).tolist(), history["loss"].shape
    ([4.0, 4.0], (2,))
    """
    config = {name: value for name, value in locals().items() if name != "clicks"}
    if goal != "promote":
        raise ValueError(
            f"goal is {goal!r}; srwa adds edges between fake users and its targets, which can only bring walks to "
            "them: expected 'promote'"
        )
    if track == "sequence":
        raise ValueError(
            "track is 'sequence'; srwa writes edges, which have no order: expected 'implicit' or 'explicit'"
        )
    budget = fixed("srwa", budget)
    counts("srwa", steps=steps, k=k, sweeps=sweeps, stages=stages, **given(users=users))
    numbers(
        "srwa", 0, open_end=True, learning_rate=learning_rate, weight=weight, width=width, restart=restart
    )
    if restart >= 1:
        raise ValueError(f"srwa: restart={restart!r}; expected a probability below 1")
    threat = ThreatModel(
        fakes=fakes,
        budget=budget,
        track=track,
        knowledge="interactions",
        clicks=clicks,
        ratings=None if ratings is None else as_ratings(ratings),
    )
    plan = _Plan(threat, budget, steps, learning_rate, weight, width, restart, k, users, sweeps, stages)
    return Attack(
        "srwa", config, threat, stages, plan.init, plan.step, plan.finish, show=("target_hr", "loss")
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """The checked settings, and the attack in functions of them."""

    threat: ThreatModel
    budget: int
    steps: int
    learning_rate: float
    weight: float
    width: float
    restart: float
    k: int
    users: int | None
    sweeps: int
    stages: int

    @property
    def high(self) -> float:
        """r_max."""
        return 1.0 if self.threat.ratings is None else self.threat.ratings.high

    def init(self, key, train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        """Fake users who have rated nothing but the targets."""
        rows = jnp.zeros((self.threat.count(train.users), train.items), train.weight.dtype)
        nothing = jnp.full((), jnp.nan, rows.dtype)
        return State(key, rows.at[:, targets].set(self.high), jnp.zeros((), jnp.int32), nothing, nothing)

    def step(self, state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        """The next `ceil(F / stages)` fake users."""
        state = in_stages(lambda held: self.make(held, train, targets), state, self.stages)
        return state, {"loss": state.loss, "target_hr": state.target_hr}

    def finish(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        """The rows; of fake users that are not made yet, the targets."""
        width = min(self.budget + targets.size, train.items)
        return Profiles.from_rows(
            state.rows, targets, track=self.threat.track, clicks_targets=True, width=width
        )

    def make(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> State:
        """One more fake user."""
        number = state.made
        key_users, key_ratings = jax.random.split(jax.random.fold_in(state.key, number))
        earlier = (jnp.arange(state.rows.shape[0]) < number)[:, None]
        start, open_ = draw_users(key_users, train, targets, self.users or train.users)
        graph = build(train, jnp.where(earlier, state.rows, 0), start)
        wish, loss, target_hr = self.learn(graph, train, targets, open_)
        fillers = topk(self.budget, exclude=targets)(wish)
        if self.threat.ratings is not None:
            rated = draw_ratings(key_ratings, item_statistics(train), 1, self.threat.ratings)[0]
            fillers = jnp.where(fillers > 0, rated, 0).astype(state.rows.dtype)
        rows = state.rows.at[number].set(fillers.at[targets].set(self.high))
        return State(state.key, rows, number + 1, loss, target_hr)

    def learn(self, graph: Graph, train: Interactions, targets: Int[Array, " T"], open_: Bool[Array, "S T"]):
        """How much the next fake user wants each item, and loss and exposure at the last step."""
        target = column_mask(targets, train.items)
        seen = sample.marked(sample.lists(train), graph.start, train.items)
        solve = walks(self.restart, self.sweeps)

        def total(w, walk):
            walk = solve(jnp.where(target, self.high, w), walk, graph, jax.random.key(0))
            far, target_hr = lag(walk.T, targets, open_, seen | target, k=self.k, width=self.width)
            return jnp.sum(jnp.where(target, 0, w) ** 2) + self.weight * far, (walk, target_hr)

        def descend(_, carried):
            wish, walk, _, _ = carried
            w = jnp.clip(wish, 0, self.high)
            (loss, (walk, target_hr)), gradient = jax.value_and_grad(total, has_aux=True)(w, walk)
            return w - self.learning_rate * gradient, walk, loss, target_hr

        nothing = jnp.zeros((), graph.value.dtype)
        begin = jnp.zeros_like(graph.item), jnp.zeros((train.items, graph.start.shape[0]), graph.value.dtype)
        wish, _, loss, target_hr = lax.fori_loop(0, self.steps, descend, (*begin, nothing, nothing))
        return wish, loss, target_hr


# ------------------------------------------------------------------------------------------------ the walks


def draw_users(
    key: Key[Array, ""], train: Interactions, targets: Int[Array, " T"], count: int
) -> tuple[Int[Array, " S"], Bool[Array, "S T"]]:
    """Up to `count` distinct real users, those who lack a target first, and which targets they lack."""
    lacks = ~sample.clicked(
        sample.lists(train),
        jnp.arange(train.users),
        jnp.broadcast_to(targets, (train.users, targets.size)),
        train.items,
    )
    chance = jax.random.uniform(key, (train.users,)) + jnp.any(lacks, axis=1)
    start = lax.top_k(chance, min(count, train.users))[1].astype(jnp.int32)
    return start, lacks[start]


def build(train: Interactions, rows: Float[Array, "F I"], start: Int[Array, " S"]) -> Graph:
    """The graph of real and earlier fake users; an edge weighs what the event does."""
    cells = sparse.observed(train.user, train.item, train.mask, train.users, train.items)
    value = jnp.pad(train.weight, (0, cells.row.shape[0] - train.capacity))  # in their order already
    user = jnp.zeros(train.users, value.dtype).at[train.user].add(train.weight)
    item = jnp.zeros(train.items, value.dtype).at[train.item].add(train.weight)
    return Graph(cells, value, _inverse(user), item, rows, start)


def _inverse(degree: Float[Array, " N"]) -> Float[Array, " N"]:
    return jnp.where(degree > 0, 1 / jnp.where(degree > 0, degree, 1), 0)


def at_users(
    walk: Float[Array, "I S"], w: Float[Array, " I"], graph: Graph, restart: float
) -> tuple[Float[Array, "U S"], Float[Array, "F S"], Float[Array, " S"]]:
    """Where the walks are among real, earlier fake, and the new fake user: `(1 - alpha) Q p + alpha e`.

    Args:
        walk: probability of each item (rows), for each starting user.
        w: weights of the new fake user, targets included.
        graph, restart: of the walk.
    """
    spread_out = (1 - restart) * walk * _inverse(graph.item + jnp.sum(graph.rows, axis=0) + w)[:, None]
    real = sparse.spread(graph.value, spread_out, graph.cells)
    real = real.at[graph.start, jnp.arange(graph.start.shape[0])].add(restart)
    return real, graph.rows @ spread_out, w @ spread_out


def sweep(
    walk: Float[Array, "I S"], w: Float[Array, " I"], graph: Graph, ctx=None, *, restart: float
) -> Float[Array, "I S"]:
    """One step from items to users and back: the map whose fixed point is the walk, at items."""
    real, fake, own = at_users(walk, w, graph, restart)
    back = sparse.spread_back(graph.value, graph.user[:, None] * real, graph.cells)
    back += graph.rows.T @ (_inverse(jnp.sum(graph.rows, axis=1))[:, None] * fake)
    return (1 - restart) * (back + w[:, None] * (own * _inverse(jnp.sum(w))))


def walks(restart: float, sweeps: int) -> bilevel.Solve:
    """`(w, walk0, graph, key) -> walk`, the fixed point of `sweep`, differentiable in `w`.

    Forward and adjoint series both contract by `(1 - restart)^2` a term.
    """
    inner = bilevel.fixed_point(functools.partial(sweep, restart=restart), sweeps)
    return bilevel.implicit(inner, bilevel.neumann(sweeps, step=1.0, probe=0))


def lag(
    scores: Float[Array, "S I"],
    targets: Int[Array, " T"],
    open_: Bool[Array, "S T"],
    closed: Bool[Array, "S I"],
    *,
    k: int,
    width: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far the targets are behind what users are shown, and the share of users who are shown one.

    `sum_u sum_t sum_{i in L_u} g(p_ui - p_ut)` over the targets that a user lacks; lists are held constant.

    Args:
        scores: of the users of the sample for every item.
        targets, open_: ids, and whether a user lacks them.
        closed: items that are in no list: what a user has, and targets.
        k, width: K and b.
    """
    ranked = jnp.where(closed, -jnp.inf, lax.stop_gradient(scores))
    best, shown = lax.top_k(ranked, min(k, scores.shape[1]))
    own = scores[:, targets]
    gap = jnp.take_along_axis(scores, shown, 1)[:, :, None] - own[:, None]
    counted = (best > -jnp.inf)[:, :, None] & open_[:, None]
    # A minimum, not best[:, -1:]: that slice merges with the one of top_k, and XLA sorts whole rows (10 x slower).
    hit = jnp.any(open_ & (own > jnp.min(best, axis=1, keepdims=True)), axis=1)
    return jnp.sum(jnp.where(counted, jax.nn.sigmoid(gap / width), 0)), jnp.mean(hit.astype(scores.dtype))
