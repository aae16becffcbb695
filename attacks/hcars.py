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
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from attacks.attack import Attack, in_stages
from attacks.fillers import most_clicked, share_of
from attacks.reasoner import reasoner
from attacks.refit import Refit, learned, with_room
from attacks.threat import Goal, ThreatModel, fixed
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
        profile = lambda moved: _in_rounds(params, start, moved, candidates, self.budget, self.climber)
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


# ------------------------------------------------------------------------------------------------ the steps


def ideal(
    params: Any,
    views: tuple[Float[Array, "V D"], Float[Array, "V D"]],
    targets: Int[Array, " T"],
    rho: float,
    rate: float,
    steps: int,
) -> tuple[Float[Array, "T D"], Float[Array, ""], Float[Array, ""]]:
    """`q_t + eps_t` of eq. 11 and the mean similarity without and with eps; the best eps of the climb is kept.

    Args:
        params, views, targets: of NCR; vectors and clauses of the users V; item ids.
        rho, rate, steps: bound, Adam's rate, climbing steps.

    Reference: Chen et al., SIGIR 2023, eq. 11. **Differs from the paper:** the bound, see `hcars`.

    >>> params = ncr.ncr(factors=2).init(jax.random.key(0), 3, 4, 0)
    >>> find = jax.jit(lambda rho: ideal(params, (params["user"], jnp.zeros((3, 2))), jnp.array([1]), rho, 0.1, 1))
    >>> bool(jnp.all(find(0.0)[0][0] == params["item"][1]))  # there is no room
    True
    """
    system, (h, so_far) = ncr.logic_of(params), views
    q = params["item"][targets]
    bound = rho * jnp.linalg.norm(q, axis=1, keepdims=True)

    def truth(eps):
        heads = ncr.event(params, h[:, None], (q + eps)[None])
        return jnp.mean(ncr.cosine(system.either(so_far[:, None], heads), system.true), 0)

    adam = optax.adam(rate)
    slope = jax.grad(lambda eps: -jnp.sum(truth(eps)))

    def move(carry, _):
        eps, state, best, most = carry
        update, state = adam.update(slope(eps), state)
        eps = eps + update  # pyright: ignore[reportOperatorIssue]
        size = jnp.linalg.norm(eps, axis=1, keepdims=True)
        eps = eps * jnp.minimum(1, bound / jnp.maximum(size, jnp.finfo(eps.dtype).tiny))
        now = truth(eps)
        better = now > most
        return (eps, state, jnp.where(better[:, None], eps, best), jnp.maximum(now, most)), None

    start = jnp.zeros_like(q)
    none = truth(start)
    (_, _, eps, most), _ = lax.scan(move, (start, adam.init(start), start, none), None, length=steps)
    return q + eps, jnp.mean(none), jnp.mean(most)


def greedy(
    params: Any, h: Float[Array, " D"], moved: Float[Array, "T D"], candidates: Int[Array, " C"], budget: int
) -> tuple[Int[Array, " B"], Float[Array, ""]]:
    """Eq. 13: `budget` distinct candidates, each the one that raises `sum_t cos(OR(chain, e_t), 1)` most.

    All candidates are tried at once: the chain so far is joined with each, and each of those with every target.

    Args:
        params: of NCR.
        h, moved: vector of the fake user, `q_t + eps_t`.
        candidates, budget: item ids, and B.

    Returns:
        item ids in the order they were chosen, and the objective at the end (of no premises at all, if B is 0).

    Raises:
        ValueError: fewer candidates than the budget.

    Reference: Chen et al., SIGIR 2023, eq. 13. **Differs from the paper:** nothing.

    >>> params = ncr.ncr(factors=2).init(jax.random.key(0), 3, 4, 0)
    >>> chosen, _ = greedy(params, params["user"][0], params["item"][:1], jnp.array([1, 2, 3]), 3)
    >>> sorted(chosen.tolist())
    [1, 2, 3]
    """
    if candidates.shape[0] < budget:
        raise ValueError(
            f"greedy: budget={budget} of {candidates.shape[0]} candidates; expected as many or more"
        )
    system = ncr.logic_of(params)
    heads = ncr.event(params, h, moved)
    negated = system.negation(ncr.event(params, h, params["item"][candidates]))
    value = lambda chains: jnp.sum(ncr.cosine(system.either(chains[..., None, :], heads), system.true), -1)

    def add(carry, number):
        chain, free = carry
        chains = jnp.where(number > 0, system.either(chain, negated), negated)
        found = value(chains)
        best = jnp.argmax(jnp.where(free, found, -jnp.inf))
        return (chains[best], free.at[best].set(False)), (candidates[best], found[best])

    start = (jnp.zeros_like(h), jnp.ones(candidates.shape, bool))
    (chain, _), (chosen, values) = lax.scan(add, start, jnp.arange(budget))
    return chosen.astype(jnp.int32), values[-1] if budget else value(chain)


def _in_rounds(
    params: Any, h: Array, moved: Array, candidates: Array, budget: int, climber: tuple[int, int, float]
) -> tuple[Float[Array, " D"], Int[Array, " B"], Float[Array, ""]]:
    """A fake user's vector, items and objective; `climber`: rounds, and the steps and rate of h_m between two."""
    chosen, value = greedy(params, h, moved, candidates, budget)
    for _ in range(climber[0] - 1):
        h = _climbed(params, h, moved, chosen, *climber[1:])
        chosen, value = greedy(params, h, moved, candidates, budget)
    return h, chosen, value


def _climbed(
    params: Any, h: Array, moved: Array, chosen: Array, steps: int, rate: float
) -> Float[Array, " D"]:
    """h_m after `steps` of Adam up the objective of eq. 13, with the items held."""
    if chosen.shape[0] == 0 or steps == 0:
        return h
    system = ncr.logic_of(params)

    def value(h):
        premises = ncr.event(params, h, params["item"][chosen])
        chain, _ = ncr.clause(system, premises[None], jnp.ones((1, chosen.shape[0]), bool))
        return jnp.sum(ncr.cosine(system.either(chain, ncr.event(params, h, moved)), system.true))

    adam = optax.adam(rate)

    def move(carry, _):
        h, state = carry
        update, state = adam.update(-jax.grad(value)(h), state)
        return (h + update, state), None  # pyright: ignore[reportOperatorIssue]

    return lax.scan(move, (h, adam.init(h)), None, length=steps)[0][0]


def better(
    params: Any,
    everybody: tuple[Float[Array, "U D"], Float[Array, "U D"]],
    fake: tuple[Float[Array, " D"], Int[Array, " B"]],
    targets: Int[Array, " T"],
    moved: Float[Array, "T D"],
) -> Bool[Array, " T"]:
    """Inequality 12 for each target: summed over the real users and the fake one, `q_t + eps_t` is as true as `q_t`.

    Args:
        params, targets, moved: as in `ideal` and `greedy`.
        everybody: vectors and clauses of the real users.
        fake: vector and items of the fake user.

    Reference: Chen et al., SIGIR 2023, eq. 12. **Differs from the paper:** U' is the fake user at hand.

    >>> params = ncr.ncr(factors=2).init(jax.random.key(0), 3, 4, 0)
    >>> everybody, fake = (params["user"], jnp.zeros((3, 2))), (jnp.zeros(2), jnp.array([2]))
    >>> jax.jit(better)(params, everybody, fake, jnp.array([1]), params["item"][1:2]).tolist()  # as true as itself
    [True]
    """
    system, (h, chosen) = ncr.logic_of(params), fake
    chain = jnp.zeros_like(h)[None]
    if chosen.shape[0]:
        premises = ncr.event(params, h, params["item"][chosen])
        chain, _ = ncr.clause(system, premises[None], jnp.ones((1, chosen.shape[0]), bool))

    def truth(q: Float[Array, " D"]) -> Array:
        of = lambda h, so_far: ncr.cosine(system.either(so_far, ncr.event(params, h, q)), system.true)
        return jnp.sum(of(*everybody)) + jnp.sum(of(h[None], chain))

    return lax.map(lambda pair: truth(pair[0]) >= truth(pair[1]), (moved, params["item"][targets]))


def _jaccard(rows: Float[Array, "F I"], made: Int[Array, ""]) -> Float[Array, ""]:
    """Mean over pairs of the fake users made, whose rows are not empty; NaN for one alone."""
    both, size = rows @ rows.T, jnp.sum(rows, 1)
    share = both / jnp.maximum(size[:, None] + size[None] - both, 1)
    pairs = made * (made - 1)
    return (jnp.sum(share) - jnp.trace(share)) / jnp.where(pairs > 0, pairs, jnp.nan)
