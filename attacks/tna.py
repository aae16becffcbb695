"""TNA and S-TNA: fake raters one after the other, each by the gradient of how far the targets are behind the lists.

Fang, Gong, Liu, "Influence Function based Data Poisoning Attacks to Top-N Recommender Systems", WWW 2020. Ratings are
factorized (`attacks.kkt`). For fake user v, with `w` its ratings relaxed to [0, r_max]:

    min_w  sum_{u in S} sum_t sum_{i in Gamma_u} g(r_ui - r_ut) + eta |w|_1,     g(x) = 1 / (1 + exp(-x / b))
    q_j = S_j^-1 (sum_{u in Omega_j} r_uj p_u + w_j p_v),    d q_j / d w_j = S_j^-1 p_v

by projected gradient, `Gamma_u` what u is shown now; the B largest become fillers, rated `N(mu_j, sigma_j)`. Users who
have rated t do not count for t. TNA: S is everybody. S-TNA: S are the users of the largest influence on the predictions
of the targets, `- grad r' H^-1 grad l(u)` (Koh, Liang, ICML 2017).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

import bilevel
from attacks import kkt
from attacks.attack import Attack, in_stages
from attacks.kkt import Factors, Ridge
from attacks.rating import draw_ratings, item_statistics, target_rating
from attacks.srwa import lag
from attacks.threat import Goal, Ratings, ThreatModel, Track, as_ratings, fixed
from bilevel.project import column_mask, topk
from models.als import solve_spd
from models.data import Interactions, Profiles, sample
from models.recommender import counts, numbers

Subset = Literal["all", "influence", "random"]


class State(NamedTuple):
    """The model with the fake users made so far, their rows, and S; loss and exposure of the last one made.

    `code` is the `bilevel.Code` of the influences that S was chosen by.
    """

    key: Key[Array, ""]
    found: Factors
    rows: Float[Array, "F I"]
    made: Int[Array, ""]
    users: Int[Array, " S"]
    code: Int[Array, ""]
    loss: Float[Array, ""]
    target_hr: Float[Array, ""]


class View(NamedTuple):
    """What the next fake user sees: factors of S, the items' equations without it, and who counts for what.

    Attributes:
        user: factors of the users of S.
        normal, item: `S_j` and `q_j` of every item without the next fake user, its own targets included in neither.
        open: which targets a user of S lacks.
        closed: items that are in no list of theirs: what they have rated, and targets.
    """

    user: Float[Array, "S D"]
    normal: Float[Array, "I D D"]
    item: Float[Array, "I D"]
    open: Bool[Array, "S T"]
    closed: Bool[Array, "S I"]


def tna(
    *,
    fakes: int | float,
    budget: int | None = None,
    ratings: Ratings | tuple[float, float, float] | None = None,
    track: Track = "explicit",
    goal: Goal = "promote",
    subset: Subset = "all",
    share: float | None = None,
    steps: int = 20,
    learning_rate: float = 0.1,
    width: float = 0.01,
    penalty: float = 0.01,
    k: int = 50,
    factors: int = 16,
    l2: float = 1.0,
    sweeps: int = 10,
    refresh: int = 2,
    linear: bilevel.LinearSolver | None = None,
    stages: int = 10,
    clicks: int | None = None,
) -> Attack:
    """TNA (`subset="all"`), S-TNA (`"influence"`) or its control S-TNA-Rand (`"random"`).

    `w <- clip(w - learning_rate (G / max |G| + penalty), 0, r_max)`, `G = d/dw sum_u sum_t sum_i g(r_ui - r_ut)`.

    Args:
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: fillers B of a fake user, in `[0, I - T]`; all targets come on top.
        ratings: `(low, high, step)`: targets get `high` (`"demote"`: `low`), fillers `N(mu_j, sigma_j)` on the grid.
        track: `"explicit"`.
        goal: `"promote"`, or `"demote"`: the differences with the opposite sign.
        subset: who is in S.
        share: |S| as a fraction of the real users, in (0, 1], at least one; default 0.4; not with `subset="all"`.
        steps: of projected gradient for a fake user, >= 1.
        learning_rate: > 0: how far the steepest relaxed rating moves in a step, in ratings divided by r_max.
        width: b > 0, in the same unit.
        penalty: eta >= 0, in units of the largest entry of the gradient.
        k: length of the lists Gamma, >= 1; at most I.
        factors, l2, sweeps: of the factorization, see `attacks.kkt.Ridge`; it starts with `sweeps` sweeps.
        refresh: sweeps after each fake user, >= 1.
        linear: how `H w = v` is solved for the influences; None: `bilevel.cg(damping=l2)`; only with "influence".
        stages: outer steps the fake users are divided into, >= 1: how often there is progress and a snapshot. The
            profiles do not depend on it. In a run that `on_block` ends early, fake users not made yet have the targets
            only.
        clicks: `None`, there is no sequence.

    Returns:
        An attack of `stages` outer steps; `knowledge="interactions"`. Its history has, of the last fake user made,
        `loss` and `target_hr`: the share of S shown a target, both in the attacker's model at the last gradient step;
        and `code`, the `bilevel.Code` of the influences (0 is fine; `NOT_STATIONARY`: more `sweeps` would change them).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use here.

    Reference: Fang, Gong, Liu, WWW 2020, sections 4.1-4.4.

    **Differs from the paper:** several targets, by the sum of their losses. The gradient is divided by its largest
    entry: with b = 0.01 it spans dozens of orders of magnitude (0 in float32 where all targets are far below the
    lists; then only the penalty moves the row, and its order stays that of the random start). A relaxed cell adds
    `w_j p_v` to the equation of its item and is not in Omega_j, as printed; targets, which are rated for sure, are.
    `p_v` is that of a rater of the B largest cells and the targets. Relaxed rows start uniform; the last iterate is
    taken. Ratings are divided by r_max and the ridge belongs to sums, so lambda = 0.01 of the paper is another number
    here. S-TNA ranks by the absolute influence on the sum of the targets' predictions; effects of a set taken as sums,
    greedy is the top. A penalty so large that the row is 0 leaves ties: every fake user then has the fillers of the
    lowest ids.

    **How it is detected and what mitigates it:** filler ratings follow the items' means, so deviation-based detectors
    (RDMA and the like) see little; the paper's classifiers on rating statistics find part of the fake users. All of
    them rate all targets r_max, a group that co-rating detectors look for. Robust training (APT, SIGIR 2021) takes
    most of the targets' exposure away on MovieLens-100K only with ratings from before the attack, which no defender
    has; with the ratings at hand a large part of it stays, most of it for unpopular targets
    (docs/results/apt-table2.md).

    >>> rated = jnp.where(jnp.arange(48).reshape(6, 8) % 3 == 0, jnp.arange(48).reshape(6, 8) % 5 + 1.0, 0)
    >>> train = Interactions.from_dense(rated, track="explicit")
    >>> attack = tna(fakes=2, budget=3, ratings=(1, 5, 1), subset="influence", factors=2, stages=2, k=2)
    >>> profiles, history = attack.trace(jax.random.key(0), train, jnp.array([1]))
    >>> profiles.validate(budget=3, ratings=(1, 5)).to_rows()[:, 1].tolist(), history["loss"].shape
    ([5.0, 5.0], (2,))
    """
    config = {name: value for name, value in locals().items() if name != "clicks"}
    _refuse(track, goal, subset, share, linear)
    budget = fixed("tna", budget)
    share = config["share"] = 0.4 if share is None else share
    counts("tna", steps=steps, k=k, refresh=refresh, stages=stages)
    numbers("tna", 0, open_end=True, learning_rate=learning_rate, width=width)
    numbers("tna", 0, penalty=penalty)
    model = Ridge(factors=factors, l2=l2, sweeps=sweeps)
    if linear is not None and not isinstance(linear, bilevel.LinearSolver):
        raise TypeError(f"linear is {linear!r}; expected a linear solver such as bilevel.cg()")
    threat = ThreatModel(
        fakes=fakes,
        budget=budget,
        goal=goal,
        track=track,
        knowledge="interactions",
        clicks=clicks,
        ratings=None if ratings is None else as_ratings(ratings),
    )
    solver = bilevel.cg(damping=l2) if linear is None else linear
    plan = _Plan(
        threat, budget, subset, share, steps, learning_rate, width, penalty, k, model, refresh, solver, stages
    )
    return Attack(
        "tna", config, threat, stages, plan.init, plan.step, plan.finish, show=("target_hr", "loss")
    )


def _refuse(track: Any, goal: Any, subset: Any, share: Any, linear: Any) -> None:
    if track != "explicit":
        raise ValueError(
            f"track is {track!r}; tna learns ratings of a factorization of ratings: expected 'explicit'. On clicks "
            "pga and revadv differentiate a factorization"
        )
    if goal == "availability":
        raise ValueError(
            "goal is 'availability', but tna moves targets past lists and knows no others: expected 'promote' or "
            "'demote'; pga serves availability"
        )
    if subset not in get_args(Subset):
        raise ValueError(f"subset is {subset!r}; expected one of {', '.join(map(repr, get_args(Subset)))}")
    if share is not None and subset == "all":
        raise ValueError(f"share is {share!r}, but subset 'all' has every user in S; leave it out")
    if linear is not None and subset != "influence":
        raise ValueError(f"linear is given, but subset {subset!r} solves for no influences; leave it out")
    if share is not None and (
        isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1
    ):
        raise ValueError(f"share is {share!r}; expected a fraction of the real users in (0, 1]")


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """The checked settings, and the attack in functions of them."""

    threat: ThreatModel
    budget: int
    subset: Subset
    share: float
    steps: int
    learning_rate: float
    width: float
    penalty: float
    k: int
    model: Ridge
    refresh: int
    solver: bilevel.LinearSolver
    stages: int

    @property
    def ratings(self) -> Ratings:
        """The grid; the explicit track always has one."""
        assert self.threat.ratings is not None
        return self.threat.ratings

    def init(self, key, train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        """The factorization of the real ratings, and S."""
        key_start, key_users, key_rows = jax.random.split(key, 3)
        rows = jnp.zeros((self.threat.count(train.users), train.items), train.weight.dtype)
        found = kkt.start(self.model, key_start, train.users, train.items, rows.shape[0])
        found = self.refit(found, rows, train, self.model.sweeps)
        users, code = self.choose(key_users, found, train, targets)
        nothing = jnp.full((), jnp.nan, rows.dtype)
        return State(key_rows, found, rows, jnp.zeros((), jnp.int32), users, code, nothing, nothing)

    def step(self, state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        """The next `ceil(F / stages)` fake users."""
        state = in_stages(lambda held: self.make(held, train, targets), state, self.stages)
        return state, {"loss": state.loss, "target_hr": state.target_hr, "code": state.code}

    def finish(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        """The rows; of fake users that are not made yet, the targets."""
        width = min(self.budget + targets.size, train.items)
        rows = state.rows.at[:, targets].set(target_rating(self.threat.goal, self.ratings))
        return Profiles.from_rows(rows, targets, track="explicit", clicks_targets=True, width=width)

    def make(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> State:
        """One more fake user: learn its relaxed row, take the largest, rate them, and train on."""
        key_begin, key_rate = jax.random.split(jax.random.fold_in(state.key, state.made))
        w = jax.random.uniform(key_begin, (train.items,), state.rows.dtype)
        w, loss, target_hr = self.learn(w, self.view(state, train, targets), targets)
        fillers = topk(self.budget, exclude=targets)(w)
        rated = draw_ratings(key_rate, item_statistics(train), 1, self.ratings)[0].astype(w.dtype)
        row = jnp.where(fillers > 0, rated, 0).at[targets].set(target_rating(self.threat.goal, self.ratings))
        rows = state.rows.at[state.made].set(row)
        found = self.refit(state.found, rows, train, self.refresh)
        return state._replace(found=found, rows=rows, made=state.made + 1, loss=loss, target_hr=target_hr)

    def refit(self, found: Factors, rows: Float[Array, "F I"], train: Interactions, sweeps: int) -> Factors:
        """Sweeps on the real ratings and the rows that are made."""
        return kkt.fit(self.model, found, rows / self.ratings.high, self.data(rows, train), sweeps)

    def data(self, rows: Float[Array, "F I"], train: Interactions) -> kkt.Data:
        """The known cells: a fake user that is not made yet has none, so its factors are 0."""
        return kkt.prepare(train, rows > 0, self.ratings.high)

    def view(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> View:
        """What does not change while the next fake user is learned."""
        data, P = self.data(state.rows, train), state.found.user
        normal = kkt.item_normals(self.model, P, data)
        item = solve_spd(normal, kkt.item_targets(self.model, P, state.rows / self.ratings.high, data))
        seen = sample.marked(sample.lists(train), state.users, train.items)
        return View(P[state.users], normal, item, ~seen[:, targets], seen | column_mask(targets, train.items))

    def learn(self, w: Float[Array, " I"], view: View, targets: Int[Array, " T"]):
        """Projected gradient from `w`; the last iterate, and loss and exposure where the last gradient was taken."""
        target = column_mask(targets, w.shape[0])
        pinned = target_rating(self.threat.goal, self.ratings) / self.ratings.high

        def descend(_, carried):
            w = jnp.where(target, pinned, carried[0])
            loss, target_hr, gradient = self.gradient(w, view, targets)
            gradient = jnp.where(target, 0, gradient)
            largest = jnp.max(jnp.abs(gradient))
            move = gradient / jnp.where(largest > 0, largest, 1) + self.penalty
            return jnp.clip(w - self.learning_rate * move, 0, 1), loss, target_hr

        nothing = jnp.zeros((), w.dtype)
        return lax.fori_loop(0, self.steps, descend, (w, nothing, nothing))

    def gradient(self, w: Float[Array, " I"], view: View, targets: Int[Array, " T"]):
        """Loss, exposure, and the loss's derivative in the relaxed row with all users' factors held.

        With `a_j = S_j^-1 p_v`: `q_j + w_j a_j`, and for a target, where v is in Omega, the rank-one update of S_j.
        """
        own = self.factors_of(w, view, targets)
        a = solve_spd(view.normal, jnp.broadcast_to(own, view.item.shape))
        rated = column_mask(targets, w.shape[0])
        a = a / jnp.where(rated, 1 + a @ own, 1)[:, None]
        Q = view.item + (w - jnp.where(rated, view.item @ own, 0))[:, None] * a
        (loss, target_hr), item_bar = jax.value_and_grad(self.behind, has_aux=True)(Q, view, targets)
        return loss, target_hr, jnp.sum(item_bar * a, axis=1)

    def factors_of(self, w: Float[Array, " I"], view: View, targets: Int[Array, " T"]) -> Float[Array, " D"]:
        """`p_v` of a rater of the B largest cells and the targets."""
        rated = topk(self.budget, exclude=targets)(w) + column_mask(targets, w.shape[0])
        normal = (
            self.model.l2 * jnp.eye(view.item.shape[1], dtype=w.dtype) + (view.item.T * rated) @ view.item
        )
        return solve_spd(normal[None], ((w * rated) @ view.item)[None])[0]

    def behind(self, Q: Float[Array, "I D"], view: View, targets: Int[Array, " T"]):
        """`sum_u sum_t sum_i g(+- (r_ui - r_ut))`, minus to demote, and the share of S that is shown a target."""
        scores = view.user @ Q.T
        sign = 1 if self.threat.goal == "promote" else -1
        return lag(scores, targets, view.open, view.closed, k=self.k, width=sign * self.width)

    def choose(
        self, key, found: Factors, train: Interactions, targets: Int[Array, " T"]
    ) -> tuple[Int[Array, " S"], Int[Array, ""]]:
        """S in ascending order, and the code of the influences."""
        fine = jnp.zeros((), jnp.int32)
        if self.subset == "all":
            return jnp.arange(train.users, dtype=jnp.int32), fine
        size = max(1, int(self.share * train.users + 1e-9))
        if self.subset == "random":
            score, code = jax.random.uniform(key, (train.users,)), fine
        else:
            solve = partial(kkt.influence, highest=self.ratings.high, solver=self.solver)
            solved = solve(self.model, found, train, targets)
            score, code = jnp.abs(solved.effect), solved.linear.code
        return jnp.sort(lax.top_k(score, size)[1]).astype(jnp.int32), code
