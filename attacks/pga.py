"""PGA: projected gradient ascent on what the attacker wants of a matrix factorization's predictions.

Li, Wang, Singh, Vorobeychik, "Data Poisoning Attacks on Factorization-Based Collaborative Filtering", NIPS 2016:

    U(X) = mu1 sum_{(u,i) not rated} (r_ui - clean r_ui)^2  +  mu2 sum_u sum_t (+-) r_ut        availability, integrity
    X <- Proj(X + s dU/dX),    dU/dx_fj = p_f' S_j^-1 (dU/dq_j)                                 KKT, `attacks.kkt`

where `Proj` keeps the B largest ratings of a fake user and the targets at theirs. The factorization is solved anew,
from the same start, in every step. For clicks it is WRMF by ALS, as RAPU (KDD 2021) uses the attack.

**What the KKT gradient sees.** With all users' factors held, a rating of item j moves item j alone. So integrity has no
gradient in any filler, and PGA that only promotes is random fillers with r_max on the targets: the light version, which
is how RAPU describes it. Availability, the hybrid, or `gradient="unrolled"`, which lets the fake users' factors follow
their ratings, do move fillers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import bilevel
from attacks import kkt
from attacks.attack import Attack
from attacks.kkt import Factors, Ridge
from attacks.objective import over_blocks
from attacks.rating import RatingRule, draw_ratings, item_statistics, rate, target_rating, to_grid
from attacks.threat import Goal, Ratings, ThreatModel, Track, as_ratings, fixed
from bilevel.project import column_mask, set_columns, topk
from models.data import Interactions, Profiles, sample
from models.recommender import counts, numbers

Gradient = Literal["kkt", "unrolled"]
_DEFAULTS = {"explicit": {"l2": 1.0, "weight": 1.0}, "implicit": {"l2": 0.05, "weight": 20.0}}


class Rows(NamedTuple):
    """Relaxed ratings of every item, divided by r_max, and which of them count: an item not chosen gathers score."""

    values: Float[Array, "F I"]
    rated: Bool[Array, "F I"]


class State(NamedTuple):
    """The rows, the best ones that were scored, and what every training starts from."""

    rows: Rows
    best: Rows
    utility: Float[Array, ""]
    start: Factors
    clean: Factors


class Parts(NamedTuple):
    """The two utilities, before their weights."""

    availability: Float[Array, ""]
    integrity: Float[Array, ""]


def pga(
    *,
    fakes: int | float,
    budget: int | None = None,
    track: Track = "explicit",
    ratings: Ratings | tuple[float, float, float] | None = None,
    goal: Goal = "promote",
    availability: float | None = None,
    integrity: float | None = None,
    steps: int = 15,
    learning_rate: float = 0.2,
    gradient: Gradient = "kkt",
    tau: int | None = None,
    initial: RatingRule = "global",
    factors: int = 16,
    l2: float | None = None,
    weight: float | None = None,
    sweeps: int = 10,
    clicks: int | None = None,
) -> Attack:
    """PGA: `X <- Proj(X + s dU/dX)` with `U = mu1 availability + mu2 integrity` of a factorization's predictions.

    Args:
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: fillers B of a fake user, in `[0, I - T]`; all targets come on top.
        track: `"explicit"`, or `"implicit"`: clicks, weighted least squares over all cells (WRMF).
        ratings: `(low, high, step)` for `"explicit"`; targets get `high` (`"demote"`: `low`).
        goal: `"promote"`, `"demote"` (ratings only: a click is no low rating), or `"availability"`.
        availability: mu1 >= 0; default 0, 1 if the goal is availability. Above 0 beside a target goal: the hybrid.
        integrity: mu2 >= 0; default 1; for target goals.
        steps: T, >= 1; iterates 0..T-1 are scored.
        learning_rate: s > 0: how far the rating of the steepest filler moves in a step, in ratings divided by r_max.
        gradient: `"kkt"`: the paper's, users' factors held; `"unrolled"`: exact through the last `tau` sweeps.
        tau: for `"unrolled"`, in [1, sweeps]; default 1.
        initial: ratings of the random fillers at the start, see `attacks.rating.draw_ratings`; of use on ratings.
        factors, sweeps: of the factorization, see `attacks.kkt.Ridge`.
        l2: ridge > 0; default 1 for ratings (divided by r_max), 0.05 for clicks.
        weight: of a click, >= 1, default 20; for `"implicit"`.
        clicks: `None`, there is no sequence.

    Returns:
        An attack; `knowledge="interactions"`. Its history has `loss` (minus the utility), of `availability` and
        `integrity` those that count (without their weights), `grad_norm` and `exchanged` (share of fillers that the
        step replaced).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use here.

    Reference: Li, Wang, Singh, Vorobeychik, NIPS 2016: utilities, and the attack on alternating minimization.

    **Differs from the paper:** the gradient is divided by its largest entry, as its size follows the numbers of users
    and items (on MovieLens-100K a step of 0.2 gradients throws most ratings to an end of the scale, and halves the
    availability). Fillers start at random, an item that is not chosen at 0; all items keep adding up their steps, in
    [0, 1], and the B largest are chosen anew in each step (APT: "the first m' items with the largest ratings").
    Integrity is summed over the targets with weight 1. The best scored rows are returned, rounded to the grid (clicks:
    all that is chosen). The ridge belongs to sums of ratings divided by r_max. `"unrolled"` and the form for clicks are
    ours.

    **How it is detected and what mitigates it:** the paper finds plain PGA's ratings far from real ones (its remedy,
    SGLD, pulls them towards the items' normal distributions): rating deviation detects it. Targets at r_max in every
    profile form a group. Robust factorization, APT (SIGIR 2021), and limits on accounts bound the effect.

    >>> rated = jnp.where(jnp.arange(48).reshape(6, 8) % 3 == 0, jnp.arange(48).reshape(6, 8) % 5 + 1.0, 0)
    >>> train = Interactions.from_dense(rated, track="explicit")
    >>> attack = pga(fakes=2, budget=3, ratings=(1, 5, 1), availability=1.0, steps=3, factors=2)
    >>> profiles, history = attack.trace(jax.random.key(0), train, jnp.array([1]))
    >>> profiles.validate(budget=3, ratings=(1, 5)).to_rows()[:, 1].tolist(), history["loss"].shape
    ([5.0, 5.0], (3,))
    """
    config = {name: value for name, value in locals().items() if name != "clicks"}
    _refuse(track, goal, gradient, initial)
    budget = fixed("pga", budget)
    both = _weights(goal, availability, integrity)
    counts("pga", steps=steps)
    numbers("pga", 0, open_end=True, learning_rate=learning_rate)
    if weight is not None:
        numbers("pga", 1, weight=weight)
        if track == "explicit":
            raise ValueError(f"weight is {weight}, of a click; ratings have none: leave it out")
    own = {name: value for name, value in (("l2", l2), ("weight", weight)) if value is not None}
    rest = 0.0 if track == "explicit" else 1.0
    model = Ridge(factors=factors, sweeps=sweeps, rest=rest, **{**_DEFAULTS[track], **own})
    threat = ThreatModel(
        fakes=fakes,
        budget=budget,
        goal=goal,
        track=track,
        knowledge="interactions",
        clicks=clicks,
        ratings=None if ratings is None else as_ratings(ratings),
    )
    plan = _Plan(threat, budget, both, learning_rate, _unrolled(gradient, tau, sweeps), initial, model)
    return Attack("pga", config, threat, steps, plan.init, plan.step, plan.finish, show=("loss", "exchanged"))


def _refuse(track: Any, goal: Any, gradient: Any, initial: Any) -> None:
    if track == "sequence":
        raise ValueError(
            "track is 'sequence'; pga factorizes a matrix, which has no order: expected 'explicit' or 'implicit'"
        )
    if goal == "demote" and track == "implicit":
        raise ValueError(
            "goal is 'demote' on clicks, but pga demotes by low ratings of the targets, and a click is none: use the "
            "'explicit' track, or revadv"
        )
    for name, value, options in (("gradient", gradient, Gradient), ("initial", initial, RatingRule)):
        if value not in get_args(options):
            raise ValueError(
                f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(options)))}"
            )
    if track == "implicit" and initial != "global":
        raise ValueError(f"initial is {initial!r}, but clicks have no ratings to start from; leave it out")


def _weights(goal: Goal, availability: Any, integrity: Any) -> Parts:
    """`mu1` and `mu2`; what a goal has no use for is refused."""
    if goal == "availability" and integrity is not None:
        raise ValueError(
            f"integrity is {integrity}, but an attack on availability has no targets; leave it out"
        )
    mu1 = float(goal == "availability") if availability is None else availability
    mu2 = float(goal != "availability") if integrity is None else integrity
    numbers("pga", 0, availability=mu1, integrity=mu2)
    if mu1 == 0 == mu2:
        raise ValueError("availability and integrity are both 0: there is nothing to ascend")
    return Parts(mu1, mu2)  # pyright: ignore[reportArgumentType]


def _unrolled(gradient: Gradient, tau: Any, sweeps: int) -> int:
    """Sweeps to differentiate; 0 stands for the KKT gradient."""
    if gradient == "kkt":
        if tau is not None:
            raise ValueError(f"tau is {tau}, but gradient 'kkt' unrolls nothing; leave it out")
        return 0
    tau = 1 if tau is None else tau
    counts("pga", tau=tau)
    if tau > sweeps:
        raise ValueError(f"tau is {tau}, but the factorization takes {sweeps} sweeps only; lower tau")
    return tau


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """The checked settings, and the attack in functions of them."""

    threat: ThreatModel
    budget: int
    weights: Parts
    learning_rate: float
    tau: int
    initial: RatingRule
    model: Ridge

    @property
    def grid(self) -> Ratings:
        """The grid of the data; clicks are ratings of 1."""
        return self.threat.ratings or Ratings(1.0, 1.0, 1.0)

    def init(self, key, train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        """Random fillers, the factors every training starts from, and the clean model where it is compared with."""
        key_items, key_rates, key_start = jax.random.split(key, 3)
        shape = (self.threat.count(train.users), train.items)
        fillers = topk(self.budget, exclude=targets)(jax.random.uniform(key_items, shape))
        if self.threat.track == "explicit":
            drawn = draw_ratings(key_rates, item_statistics(train), shape[0], self.grid, rule=self.initial)
            values = fillers * drawn / self.grid.high
        else:
            values = fillers
        rows = self.with_targets(Rows(values.astype(train.weight.dtype), fillers > 0), targets)
        start = kkt.start(self.model, key_start, train.users, train.items, shape[0])
        clean = (
            self.train(Rows(jnp.zeros_like(rows.values), jnp.zeros_like(rows.rated)), start, train)
            if self.weights.availability
            else start
        )
        return State(rows, rows, jnp.full((), -jnp.inf, values.dtype), start, clean)

    def step(self, state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        """Solve on the rows, score them, ascend, choose the fillers again."""
        parts, gradient = self.ascent(state, train, targets)
        utility = self.weights.availability * parts.availability + self.weights.integrity * parts.integrity
        better = utility > state.utility
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.rows, state.best)
        rows = self.project(state.rows, gradient, targets)
        left = jnp.sum(state.rows.rated & ~rows.rated) / max(1, self.budget * rows.rated.shape[0])
        shown = {"loss": -utility, "grad_norm": jnp.linalg.norm(gradient), "exchanged": left}
        used = {name: value for name, value in parts._asdict().items() if getattr(self.weights, name)}
        return State(rows, best, jnp.maximum(utility, state.utility), state.start, state.clean), shown | used

    def finish(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        """The best rows, on the grid."""
        clicks = state.best.rated.astype(state.best.values.dtype)
        if self.threat.track == "explicit":
            fillers = to_grid(self.given(state.best) * self.grid.high, self.grid).astype(clicks.dtype)
            clicks = rate(clicks, fillers, targets, goal=self.threat.goal, ratings=self.grid)
        return Profiles.from_rows(
            clicks,
            targets,
            track=self.threat.track,
            clicks_targets=targets.size > 0,
            width=min(self.budget + targets.size, train.items),
        )

    def train(self, rows: Rows, start: Factors, train: Interactions) -> Factors:
        """The factorization of the real ratings and the rows."""
        return kkt.fit(self.model, start, self.given(rows), self.data(rows, train), self.model.sweeps)

    def data(self, rows: Rows, train: Interactions) -> kkt.Data:
        """The known cells."""
        return kkt.prepare(train, rows.rated, self.grid.high)

    def ascent(
        self, state: State, train: Interactions, targets: Int[Array, " T"]
    ) -> tuple[Parts, Float[Array, "F I"]]:
        """The utilities of the rows, and the derivative of their weighted sum in every cell."""
        rows, data = state.rows, self.data(state.rows, train)

        def total(found: Factors) -> tuple[Array, Parts]:
            parts = self.utilities(found, state.clean, train, targets)
            weighed = jax.tree.map(jnp.multiply, self.weights, parts)
            return weighed.availability + weighed.integrity, parts

        if self.tau == 0:
            found = self.train(rows, state.start, train)
            by_item = lambda Q: total(Factors(found.user, Q))
            item_bar, parts = jax.grad(by_item, has_aux=True)(found.item)
            return parts, kkt.rating_gradient(self.model, found, data, item_bar)
        solve = bilevel.truncated(kkt.loop(self.model), self.tau)
        key = jax.random.key(0)  # sweeps draw nothing
        through = lambda x: total(solve(x, state.start, data, key))
        gradient, parts = jax.grad(through, has_aux=True)(self.given(rows))
        return parts, gradient

    def utilities(
        self, found: Factors, clean: Factors, train: Interactions, targets: Int[Array, " T"]
    ) -> Parts:
        """`sum over cells not rated of (r - clean r)^2`, and `+- sum_u sum_t r_ut`; what has no weight is 0."""
        real, zero = found.user[: train.users], jnp.zeros((), found.item.dtype)
        sign = -1 if self.threat.goal == "demote" else 1
        promoted = (
            sign * jnp.sum(real.sum(0) * found.item[targets].sum(0)) if self.weights.integrity else zero
        )
        if not self.weights.availability:
            return Parts(zero, promoted)
        lists = sample.lists(train)

        def moved(ids: Int[Array, " B"]) -> Float[Array, " B"]:
            change = real[ids] @ found.item.T - clean.user[ids] @ clean.item.T
            return jnp.sum(jnp.where(sample.marked(lists, ids, train.items), 0, change) ** 2, axis=1)

        scores = lambda ids: real[ids] @ found.item.T
        return Parts(over_blocks(moved, scores, train.users, None), promoted)

    def project(self, rows: Rows, gradient: Float[Array, "F I"], targets: Int[Array, " T"]) -> Rows:
        """A step along the gradient, and the B largest non-targets of every row."""
        gradient = jnp.where(column_mask(targets, gradient.shape[1]), 0, gradient)
        largest = jnp.max(jnp.abs(gradient))
        moved = rows.values + self.learning_rate * gradient / jnp.where(largest > 0, largest, 1)
        moved = jnp.clip(moved, 0, 1)
        return self.with_targets(Rows(moved, topk(self.budget, exclude=targets)(moved) > 0), targets)

    def given(self, rows: Rows) -> Float[Array, "F I"]:
        """The ratings that count: of the chosen items, at least the lowest of the grid; 0 elsewhere."""
        low = self.grid.low / self.grid.high if self.threat.track == "explicit" else 0.0
        return jnp.where(rows.rated, jnp.maximum(rows.values, low), 0)

    def with_targets(self, rows: Rows, targets: Int[Array, " T"]) -> Rows:
        """The rows with every target rated for the goal; on availability there are none."""
        if not targets.size:
            return rows
        value = target_rating(self.threat.goal, self.grid) / self.grid.high
        own = column_mask(targets, rows.values.shape[1])
        return Rows(set_columns(targets, value)(rows.values), rows.rated | own)
