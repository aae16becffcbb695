"""H-CARS: controlled users made by reasoning with a surrogate that learned from counterfactual explanations.

Chen, Silvestri, Wang, Zhang, Tolomei, *The dark side of explanations: Poisoning recommender systems with counterfactual
examples*, SIGIR 2023, eqs 10-13. With a trained NCR (see reasoner.py), for each controlled user m:

    eps_t = argmax mean over V of cos(clause(u; x = q_t + eps), 1),   |eps| <= rho |q_t|                (11)
    h_m = mean of the visible users' vectors, and noise
    H = greedily B items j that raise  sum_t cos(OR(chain(H, j), EVENT(h_m, q_t + eps_t)), 1)           (13)
    h_m climbs the same, then H again;   profile m = H and the targets

and eps_t is good for everybody if

    sum over U and m of cos(clause(u; q_t + eps_t), 1)  >=  the same of q_t                              (12)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attacks.attack import Attack, in_stages
from attacks.clauses import better, ideal, in_rounds
from attacks.fillers import most_clicked, share_of
from attacks.reasoner import reasoner
from attacks.refit import Refit, learned, with_room
from attacks.threat import Goal, ThreatModel, fixed
from attacks.tracks import one_track
from models import ncr
from models.data import Interactions, Profiles
from models.recommender import Recommender, counts, given, numbers
from models.train import fit


class State(NamedTuple):
    """The trained surrogate, the fake rows, how many are made, what is said of each, and the crafting's key."""

    embedding: Any
    rows: Float[Array, "F I"]
    made: Int[Array, ""]
    said: dict[str, Float[Array, " F"]]
    key: Key[Array, ""]


@one_track("implicit", "hcars chooses sets of items, which have no order")
def hcars(
    surrogate: Recommender | None = None,
    *,
    fakes: int | float,
    budget: int,
    users: int = 256,
    rho: float = 0.5,
    learning_rate: float = 1e-3,
    climb: int = 200,
    pool: float = 1.0,
    rounds: int = 2,
    refine: int = 10,
    refine_rate: float = 1e-2,
    noise: float = 0.1,
    enforce: bool = False,
    refit_every: int | None = None,
    refit_epochs: int | None = None,
    stages: int = 10,
    goal: Goal = "promote",
) -> Attack:
    """H-CARS: fake users whose items, in the surrogate's logic, imply the targets.

    Args:
        surrogate: `attacks.reasoner(explanations)`, which learns from explanations, or NCR; None: NCR without any
            (H-CARS-wo-CF).
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: B >= 0, non-target items of each.
        users: real users V of eq. 11, drawn for each fake user, >= 1; all of them if there are fewer.
        rho: bound on `|eps|` as a share of `|q_t|`, >= 0.
        learning_rate, climb: of Adam, > 0, and its steps, >= 0, on eps.
        pool: share of the items that are candidates, the most clicked non-targets, in (0, 1].
        rounds: how often H is chosen, >= 1; between two of them h_m climbs.
        refine, refine_rate: steps, >= 0, and rate, > 0, of Adam on h_m.
        noise: standard deviation of what is added to h_m, in that of the users' vectors, >= 0.
        enforce: keep an eps_t only where inequality 12 holds, over all visible users and the fake user; elsewhere it
            is 0 and H is chosen again.
        refit_every: fake users after which the surrogate learns on, from where it is, from the visible users and the
            fake users made so far, >= 1; None: never.
        refit_epochs: passes over the data each time, >= 1; None: 3. Only with `refit_every`.
        stages: outer steps the fake users are divided into, >= 1: how often there is progress and a snapshot. The
            profiles do not depend on it. In a run that `on_block` ends early, fake users not made yet have the targets
            only.
        goal: "promote"; it serves no other.

    Returns:
        An attack of `stages` steps, on clicks; `knowledge="interactions"`. The premises about a real user are all its
        visible clicks, joined once after a training, in one pass over the clicks (`models.ncr.whole`); no later step
        costs more for them. Its metrics, of the fake users made so far: `before` and `after`, mean similarity of the
        targets to true over V without and with eps; `accepted`, share of pairs of a fake user and a target for which
        inequality 12 holds; `objective` of eq. 13; `jaccard`, mean over pairs of fake users. Without `refit_every` fake
        users do not depend on each other: the first n of F are an attack with n.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range or without a use; a surrogate that is
            not NCR.

    Reference: Chen et al., SIGIR 2023, eqs 10-13.

    **Differs from the paper:** of which no code was found. Eq. 11 has no bound, and a cosine lets eps grow for ever:
    rho. It is written for one user and one target: the mean over V, each target its own eps. The vector of a new user
    is not in an attacker's hands; it serves to choose H, and where the surrogate learns on, it is where the fake user
    starts. "Included into U' and Y in each iteration" does not say how often and how long the surrogate is trained:
    by default it is not. A refit begins Adam anew. Inequality 12 is reported; the paper does not say what happens
    where it fails. Its U' is the fake user at hand. B does not count the targets. NCR is trained on the `max_history`
    clicks before each, as its code does, and reasons here with longer clauses than those.

    **How it is detected and what mitigates it:** greedy choices for like targets give like profiles (see `jaccard`):
    near duplicates and dense neighborhoods. The explanations are what it feeds on: limit how many an account may ask
    for, answer at the level of genres or only about the account's own history, and do not explain to accounts that ask
    about others.

    >>> attack = hcars(ncr.ncr(factors=4, epochs=1, batch=8), fakes=2, budget=3, climb=2, refine=1)
    >>> attack.name, attack.steps, attack.threat.knowledge
    ('hcars', 10, 'interactions')
    """
    config = {**locals()}
    model = reasoner() if surrogate is None else surrogate
    _check(config, model)
    config["surrogate"] = model = _whole(model)
    threat = ThreatModel(fakes=fakes, budget=budget, goal=goal, knowledge="interactions")
    climber = rounds, refine, refine_rate
    plan = _Plan(
        threat,
        model,
        budget,
        users,
        rho,
        learning_rate,
        climb,
        pool,
        climber,
        noise,
        enforce,
        refit_every,
        refit_epochs or 3,
        stages,
    )
    show = ("objective", "accepted")
    return Attack("hcars", config, threat, stages, plan.init, plan.step, plan.finish, show=show)


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """The checked settings, and the attack in functions of them."""

    threat: ThreatModel
    model: Recommender
    budget: int
    users: int
    rho: float
    learning_rate: float
    climb: int
    pool: float
    climber: tuple[int, int, float]
    noise: float
    enforce: bool
    refit_every: int | None
    refit_epochs: int
    stages: int

    def init(self, key, train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        """The trained surrogate, and fake users who have clicked nothing but the targets."""
        for_fit, for_craft = jax.random.split(key)
        rows = jnp.zeros((self.threat.count(train.users), train.items)).at[:, targets].set(1)
        embedding = fit(self.model, train, for_fit).embedding
        if self.refit_every is not None:
            embedding = with_room(embedding, rows.shape[0])
        nothing = jnp.full(rows.shape[0], jnp.nan)
        said = {"before": nothing, "after": nothing, "accepted": nothing, "objective": nothing}
        return State(embedding, rows, jnp.zeros((), jnp.int32), said, for_craft)

    def step(self, state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        """The next `ceil(F / stages)` fake users."""
        state = in_stages(lambda held: self.make(held, train, targets), state, self.stages)
        made = jnp.arange(state.rows.shape[0]) < state.made
        told = {name: jnp.mean(values, where=made) for name, values in state.said.items()}
        return state, told | {"jaccard": _jaccard(finished(state), state.made)}

    def finish(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        """The rows; of fake users that are not made yet, the targets."""
        return Profiles.from_rows(state.rows, targets, clicks_targets=True, width=self.budget + targets.size)

    def make(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> State:
        """One more fake user; after every `refit_every` of them the surrogate learns on."""
        number, fakes, every = state.made, state.rows.shape[0], self.refit_every
        h, chosen, said = self.craft(
            state.embedding, train, targets, jax.random.split(state.key, fakes)[number]
        )
        state = state._replace(
            rows=state.rows.at[number, chosen].set(1),
            made=number + 1,
            said={name: values.at[number].set(said[name]) for name, values in state.said.items()},
        )
        if every is None:
            return state
        params = state.embedding["params"]
        params = {**params, "user": params["user"].at[train.users + number].set(h)}
        refit = Refit(self.model, train, targets, self.budget, self.refit_epochs)
        key = jax.random.fold_in(jax.random.fold_in(state.key, fakes), number // every)
        embedding = lax.cond(
            (state.made % every == 0) & (state.made < fakes),  # after the last one nobody would read it
            lambda: learned(refit, params, finished(state), key),
            lambda: {**state.embedding, "params": params},
        )
        return state._replace(embedding=embedding)

    def craft(self, embedding: Any, train: Interactions, targets: Int[Array, " T"], key: Key[Array, ""]):
        """A fake user's vector, its items and its metrics."""
        params, real = embedding["params"], slice(0, train.users)
        everybody = params["user"][real], embedding["clause"][real]
        candidates = most_clicked(train, targets, max(share_of(self.pool, train.items), self.budget))
        for_users, for_noise = jax.random.split(key)
        seen = jax.random.permutation(for_users, train.users)[: self.users]
        mean, spread = jnp.mean(everybody[0], 0), self.noise * jnp.std(everybody[0])
        start = mean + spread * jax.random.normal(for_noise, mean.shape)
        views = everybody[0][seen], everybody[1][seen]
        moved, before, after = ideal(params, views, targets, self.rho, self.learning_rate, self.climb)
        profile = lambda moved: in_rounds(params, start, moved, candidates, self.budget, self.climber)
        found = profile(moved)
        holds = better(params, everybody, found[:2], targets, moved)
        if self.enforce:
            kept = jnp.where(holds[:, None], moved, params["item"][targets])
            found = lax.cond(jnp.all(holds), lambda: found, lambda: profile(kept))
        h, chosen, value = found
        accepted = jnp.mean(holds.astype(value.dtype))
        return h, chosen, {"before": before, "after": after, "accepted": accepted, "objective": value}


def finished(state: State) -> Float[Array, "F I"]:
    """The rows of the fake users made so far, zeros for the others."""
    return jnp.where((jnp.arange(state.rows.shape[0]) < state.made)[:, None], state.rows, 0)


def _check(config: dict[str, Any], model: Recommender) -> None:
    positive, ranged = ("learning_rate", "refine_rate", "pool"), ("rho", "noise")
    value = config.__getitem__
    counts("hcars", **{name: value(name) for name in ("users", "rounds", "stages")})
    fixed("hcars", value("budget"))
    for name in ("climb", "refine"):
        if value(name) != 0:
            counts("hcars", **{name: value(name)})
    counts("hcars", **given(refit_every=value("refit_every"), refit_epochs=value("refit_epochs")))
    numbers("hcars", 0, **{name: value(name) for name in ranged})
    numbers("hcars", 0, open_end=True, **{name: value(name) for name in positive})
    if value("pool") > 1:
        raise ValueError(f"hcars: pool={value('pool')!r}; expected a share in (0, 1]")
    if not isinstance(value("enforce"), bool):
        raise TypeError(f"hcars: enforce={value('enforce')!r}; expected True or False")
    if value("refit_every") is None and value("refit_epochs") is not None:
        raise ValueError(f"hcars: refit_epochs={value('refit_epochs')} has no use without refit_every")
    if value("goal") != "promote":
        raise ValueError(
            f"hcars: goal={value('goal')!r}; it makes sentences about targets true, so 'promote' only"
        )
    if not isinstance(model, Recommender):
        raise TypeError(f"hcars: surrogate={model!r}; expected a Recommender, such as models.ncr.ncr()")
    if model.name not in ("ncr", "reasoner"):
        raise ValueError(
            f"hcars: surrogate={model!r}; it reasons in the logic of NCR: expected models.ncr.ncr(...), or "
            "attacks.reasoner(...), which learns from explanations too"
        )


@functools.lru_cache(maxsize=32)  # one value a surrogate, so that attacks share its compiled training
def _whole(model: Recommender) -> Recommender:
    """The surrogate with clauses of all of a user's items; told apart in records."""
    embed = lambda params, x, data: {"params": params, "clause": ncr.whole(params, data)}
    return dataclasses.replace(model, config={**model.config, "premises": "all"}, embed=embed)


def _jaccard(rows: Float[Array, "F I"], made: Int[Array, ""]) -> Float[Array, ""]:
    """Mean over pairs of the fake users made, whose rows are not empty; NaN for one alone."""
    both, size = rows @ rows.T, jnp.sum(rows, 1)
    share = both / jnp.maximum(size[:, None] + size[None] - both, 1)
    pairs = made * (made - 1)
    return (jnp.sum(share) - jnp.trace(share)) / jnp.where(pairs > 0, pairs, jnp.nan)
