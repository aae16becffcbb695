"""DL-Attack: what a poisoned neural recommender would recommend to the fake user becomes its profile.

Huang, Mu, Gong, Li, Liu, Xu, "Data Poisoning Attacks to Deep Learning Based Recommender Systems", NDSS 2021. Fake users
are made one after the other. For each, who has clicked the targets so far, a *poison model* is trained on the data and
the fake users already made, and then trained on with the attacker's wish in its loss,

    L_train + lambda G,      G = sum_i r_vi^2 + eta sum_{u in S} sum_t l_ut,
    l_ut = max( min_{i in L_u} log r_ui - log r_ut,  -kappa )

r = sigmoid of the scores, v the fake user, S the users without t, L_u what u is shown now. Of the epochs of this second
training the one that shows the targets to most users is kept; fillers are the B items of the largest `r_vi p_i`, and
what was chosen becomes less likely to be chosen again: `p_i <- delta p_i`, all 1 again once all are below 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

import bilevel
from attacks.attack import Attack, in_stages
from attacks.threat import Goal, Ratings, ThreatModel, Track, as_ratings, fixed
from bilevel.project import column_mask, topk
from models.data import Interactions, Profiles, inject, sample
from models.evaluation import over_users
from models.ncf import neumf
from models.recommender import Recommender, counts, numbers


class State(NamedTuple):
    """The fake users' rows, of which the first `made` are done, p, and the last one's loss and exposure."""

    key: Key[Array, ""]
    rows: Float[Array, "F I"]
    made: Int[Array, ""]
    chance: Float[Array, " I"]
    loss: Float[Array, ""]
    target_hr: Float[Array, ""]


class Wish(NamedTuple):
    """What the attacker's loss reads: each real user's clicks, their number, the targets, and who the fake user is."""

    lists: sample.Lists
    clicks: Float[Array, ""]
    targets: Int[Array, " T"]
    fake: Int[Array, ""]


class Snapshot(NamedTuple):
    """The poison model after an epoch: the fake user's predictions, mean of `l` and exposure over the real users."""

    predicted: Float[Array, " I"]
    loss: Float[Array, ""]
    target_hr: Float[Array, ""]


def dl_attack(
    *,
    fakes: int | float,
    budget: int | None = None,
    surrogate: Recommender | None = None,
    track: Track = "implicit",
    goal: Goal = "promote",
    rounds: int = 5,
    learning_rate: float = 1e-3,
    weight: float = 1.0,
    eta: float = 100.0,
    kappa: float = 1.0,
    delta: float = 0.9,
    k: int = 10,
    users: int = 16,
    stages: int = 10,
    ratings: Ratings | tuple[float, float, float] | None = None,
    clicks: int | None = None,
) -> Attack:
    """DL-Attack: fillers are what a model trained to show the targets predicts for the fake user.

    `L_train + lambda (sum_i r_vi^2 + eta sum_u sum_t max(min_{i in L_u} log r_ui - log r_ut, -kappa))`.

    Args:
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: fillers B of a fake user, in `[0, I - T]`; all targets come on top.
        surrogate: the poison model, any recommender of clicks whose scores are logits; None: NeuMF, trained for 20
            epochs.
        track: `"implicit"`.
        goal: `"promote"`.
        rounds: epochs of the second training, >= 1.
        learning_rate: of its Adam, > 0.
        weight: lambda > 0, with `L_train` the sum over the clicks (each with its negatives averaged).
        eta: weight of the users, >= 0.
        kappa: a target this far (in log r) above a user's list is far enough, >= 0.
        delta: what a filler's p is multiplied by, in [0, 1]; 1: fake users may be all alike, 0: no filler twice.
        k: K, length of the lists, >= 1; at most I.
        users: real users drawn in each step of the second training; their `l`, scaled to all users, is an unbiased
            estimate, >= 1.
        stages: outer steps the fake users are divided into, >= 1: how often there is progress and a snapshot. The
            profiles do not depend on it. In a run that `on_block` ends early, fake users not made yet have the targets
            only.
        ratings, clicks: `None`, there are neither.

    Returns:
        An attack of `stages` outer steps; `knowledge="interactions"`. Its history has, of the last fake user made,
        `loss`, the mean of `sum_t l_ut` over the real users, and `target_hr`, at the epoch that was kept.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use here.

    Reference: Huang et al., NDSS 2021, and a copy of its main script (which has kappa 0 and delta 1).

    **Differs from the paper:** users are sampled in each step; `log sigmoid` is computed from the score, where the code
    adds 1e-12; lambda is relative to the summed training loss; every fake user's training starts from the same key,
    so that fake users differ by their data and p only; of epochs with equal exposure the one with the lower `l` is
    kept; several targets are promoted by the sum of their losses. It promotes clicks only.

    **How it is detected and what mitigates it:** profiles follow the model's own predictions, so that detectors by
    rating statistics find few of them (the paper), but all fake users share the targets and, at delta
    near 1, most fillers: near-duplicates. Limits on new accounts, and training that a few users cannot sway, bound the
    effect.

    >>> from models.ncf import gmf
    >>> train = Interactions.from_dense((jnp.arange(48).reshape(6, 8) % 3 == 0).astype(float))
    >>> attack = dl_attack(fakes=2, budget=2, surrogate=gmf(factors=2, epochs=1), rounds=1, delta=0.0, stages=1)
    >>> attack(jax.random.key(0), train, jnp.array([1])).to_rows().sum(axis=0).tolist()[1]
    2.0
    """
    config = {name: value for name, value in locals().items() if name not in ("ratings", "clicks")}
    config["surrogate"] = neumf(epochs=20) if surrogate is None else surrogate
    model = config["surrogate"]
    if not isinstance(model, Recommender):
        raise TypeError(f"surrogate is {model!r}; expected a Recommender, such as models.ncf.neumf()")
    if track != "implicit":
        raise ValueError(
            f"track is {track!r}; dl_attack's model learns from clicks without order: expected 'implicit'"
        )
    if goal != "promote":
        raise ValueError(
            f"goal is {goal!r}; dl_attack's fake users click its targets, which promotes them: expected 'promote'"
        )
    budget = fixed("dl_attack", budget)
    counts("dl_attack", rounds=rounds, k=k, users=users, stages=stages)
    numbers("dl_attack", 0, open_end=True, learning_rate=learning_rate, weight=weight)
    numbers("dl_attack", 0, eta=eta, kappa=kappa, delta=delta)
    if delta > 1:
        raise ValueError(f"dl_attack: delta={delta!r}; expected a factor of at most 1")
    threat = ThreatModel(
        fakes=fakes,
        budget=budget,
        knowledge="interactions",
        clicks=clicks,
        ratings=None if ratings is None else as_ratings(ratings),
    )
    plan = _Plan(threat, model, budget, rounds, learning_rate, weight, eta, kappa, delta, k, users, stages)
    show = ("target_hr", "loss")
    return Attack("dl_attack", config, threat, stages, plan.init, plan.step, plan.finish, show=show)


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """The checked settings, and the attack in functions of them."""

    threat: ThreatModel
    model: Recommender
    budget: int
    rounds: int
    learning_rate: float
    weight: float
    eta: float
    kappa: float
    delta: float
    k: int
    users: int
    stages: int

    def init(self, key, train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        """Fake users who have clicked nothing but the targets."""
        rows = jnp.zeros((self.threat.count(train.users), train.items)).at[:, targets].set(1)
        nothing = jnp.full((), jnp.nan, rows.dtype)
        return State(key, rows, jnp.zeros((), jnp.int32), jnp.ones(train.items), nothing, nothing)

    def step(self, state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        """The next `ceil(F / stages)` fake users."""
        state = in_stages(lambda held: self.make(held, train, targets), state, self.stages)
        return state, {"loss": state.loss, "target_hr": state.target_hr}

    def finish(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        """The rows; of fake users that are not made yet, the targets."""
        return Profiles.from_rows(state.rows, targets, clicks_targets=True, width=self.width(train, targets))

    def width(self, train: Interactions, targets: Int[Array, " T"]) -> int:
        """Most clicks of a fake user."""
        return min(self.budget + targets.size, train.items)

    def make(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> State:
        """One more fake user: train, poison, choose."""
        number = state.made
        so_far = jnp.where((jnp.arange(state.rows.shape[0]) <= number)[:, None], state.rows, 0)
        profiles = Profiles.from_rows(so_far, targets, width=self.width(train, targets))
        found = self.predict(state.key, train, inject(train, profiles), targets, number)
        fillers, chance = choose(found.predicted, state.chance, targets, self.budget, self.delta)
        rows = state.rows.at[number].set(fillers.astype(state.rows.dtype).at[targets].set(1))
        return State(state.key, rows, number + 1, chance, found.loss, found.target_hr)

    def predict(
        self,
        key,
        train: Interactions,
        poisoned: Interactions,
        targets: Int[Array, " T"],
        number: Int[Array, ""],
    ) -> Snapshot:
        """The fake user's predictions by the best poison model."""
        key_init, key_train, key_poison = jax.random.split(key, 3)
        sizes, nobody = (poisoned.users, poisoned.items, 0), jnp.zeros((0, poisoned.items))
        data = self.model.prepare(poisoned)
        inner = self.model.trainer(*sizes, poisoned.capacity)
        params = bilevel.detached(inner)(nobody, self.model.init(key_init, *sizes), data, key_train)
        wish = Wish(sample.lists(train), poisoned.count.astype(nobody.dtype), targets, train.users + number)
        epoch = inner.steps_per_epoch
        poison = bilevel.gradient_descent(
            self.objective, optax.adam(self.learning_rate), self.rounds * epoch, batches=inner.batches
        )
        args = nobody, (data, wish)

        def one_round(number, carried):
            learned, best = carried
            learned = lax.fori_loop(
                number * epoch,
                (number + 1) * epoch,
                lambda step, s: poison.step(s, *args, poison.context(key_poison, step))[0],
                learned,
            )
            now = self.look(self.model.embed(learned.params, nobody, data), train, wish)
            return learned, further(now, best)

        dtype = nobody.dtype
        worst = Snapshot(jnp.zeros(train.items, dtype), jnp.asarray(jnp.inf, dtype), jnp.asarray(-1, dtype))
        begin = poison.init(params, *args, key_poison), worst
        return lax.fori_loop(0, self.rounds, one_round, begin)[1]

    def objective(self, params: Any, x: Float[Array, "0 I"], data: Any, ctx: Any) -> Float[Array, ""]:
        """`L_train + lambda G` over the clicks of a step and drawn users, both as a mean over all clicks."""
        data, wish = data
        real = wish.lists.start.shape[0] - 1
        drawn = jax.random.randint(jax.random.fold_in(ctx.key, 9), (self.users,), 0, real)
        scores = self.model.score(self.model.embed(params, x, data), jnp.append(drawn, wish.fake))
        lag = behind(
            scores[:-1], sample.marked(wish.lists, drawn, x.shape[1]), wish.targets, self.k, self.kappa
        )
        pull = self.eta * real / self.users * jnp.sum(lag)
        G = jnp.sum(jax.nn.sigmoid(scores[-1]) ** 2) + pull
        return self.model.loss(params, x, data, ctx) + self.weight / wish.clicks * G

    def look(self, embedding: Any, train: Interactions, wish: Wish) -> Snapshot:
        """What the poison model says now."""

        def read(block):
            best, shown = lax.top_k(block.scores, min(self.k, train.items))
            hit = jnp.any(jnp.isin(shown, wish.targets) & (best > -jnp.inf), axis=1)
            lag = behind(block.raw, block.seen, wish.targets, self.k, self.kappa)
            return hit.astype(lag.dtype), lag

        hit, lag = over_users(lambda users: self.model.score(embedding, users), train, read)
        predicted = jax.nn.sigmoid(self.model.score(embedding, wish.fake[None])[0])
        return Snapshot(predicted, jnp.mean(lag), jnp.mean(hit))


def further(now: Snapshot, best: Snapshot) -> Snapshot:
    """The epoch whose model pushes the targets into more lists; of two that are level, the one with the lower loss.

    >>> at = lambda hr, loss: Snapshot(jnp.zeros(1), jnp.asarray(loss), jnp.asarray(hr))
    >>> [float(further(at(*now), at(0.5, 2.0)).loss) for now in ((0.6, 3.0), (0.5, 1.0), (0.5, 3.0), (0.4, 1.0))]
    [3.0, 1.0, 2.0, 2.0]
    """
    better = (now.target_hr > best.target_hr) | ((now.target_hr == best.target_hr) & (now.loss < best.loss))
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)


def behind(
    scores: Float[Array, "B I"],
    seen: Bool[Array, "B I"],
    targets: Int[Array, " T"],
    k: int,
    kappa: float,
) -> Float[Array, " B"]:
    """`sum_t max(min_{i in L_u} log r_ui - log r_ut, -kappa)` over the targets that user u has not clicked.

    Lists are held constant; a user who has clicked everything has none, and counts 0.

    Args:
        scores: logits of `r`.
        seen: what each user has clicked; it is in no list.
        targets, k, kappa: ids, K and kappa.

    >>> scores, seen = jnp.array([[0.0, 2.0, 9.0]]), jnp.array([[False, False, True]])
    >>> behind(scores, seen, jnp.array([0]), k=1, kappa=1.0).round(2).tolist()
    [0.57]
    """
    logs = jax.nn.log_sigmoid(scores)
    ranked = jnp.where(seen, -jnp.inf, lax.stop_gradient(scores))
    best, shown = lax.top_k(ranked, min(k, scores.shape[1]))
    length = jnp.sum(best > -jnp.inf, axis=1, keepdims=True)
    last = jnp.take_along_axis(shown, jnp.maximum(length - 1, 0), 1)
    lag = jnp.maximum(jnp.take_along_axis(logs, last, 1) - logs[:, targets], -kappa)
    return jnp.sum(jnp.where(seen[:, targets] | (length == 0), 0, lag), axis=1)


def choose(
    predicted: Float[Array, " I"],
    chance: Float[Array, " I"],
    targets: Int[Array, " T"],
    budget: int,
    delta: float,
) -> tuple[Float[Array, " I"], Float[Array, " I"]]:
    """The `budget` non-targets of the largest `r_i p_i` as 0 and 1, and the next p.

    >>> r, p = jnp.array([0.9, 0.5, 0.4]), jnp.ones(3)
    >>> fillers, p = choose(r, p, jnp.array([2]), 1, 0.5)
    >>> fillers.tolist(), p.tolist(), choose(r, p, jnp.array([2]), 1, 0.5)[0].tolist()
    ([1.0, 0.0, 0.0], [0.5, 1.0, 1.0], [0.0, 1.0, 0.0])
    """
    fillers = topk(budget, exclude=targets)(predicted * chance)
    chance = jnp.where(fillers > 0, delta * chance, chance)
    used_up = jnp.all((chance < 1) | column_mask(targets, chance.shape[0]))
    return fillers, jnp.where(used_up, 1.0, chance)
