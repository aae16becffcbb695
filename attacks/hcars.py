"""H-CARS: controlled users made by reasoning with a surrogate that learned from counterfactual explanations.

Chen, Silvestri, Wang, Zhang, Tolomei, *The dark side of explanations: Poisoning recommender systems with counterfactual
examples*, SIGIR 2023, eqs 10-13. With a trained NCR (see reasoner.py), for each controlled user m:

    eps_t = argmax mean over V of cos(clause(u; x = q_t + eps), 1),   |eps| <= rho |q_t|                (11)
    h_m = mean of the visible users' vectors, and noise
    H = greedily B items j that raise  sum_t cos(OR(chain(H, j), EVENT(h_m, q_t + eps_t)), 1)           (13)
    h_m climbs the same, then H again;   profile m = H and the targets
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attacks.attack import Attack
from attacks.objective import Goal
from attacks.rapu_r import most_clicked
from attacks.reasoner import reasoner
from attacks.threat import ThreatModel
from models import ncr
from models.data import Interactions, Profiles
from models.explain.explanation import Explanations
from models.recommender import Recommender, counts, numbers
from models.train import fit


class State(NamedTuple):
    """The trained surrogate, the fake rows (F, I), and the key of the crafting."""

    embedding: Any
    rows: Float[Array, "F I"]
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
        goal: "promote"; it serves no other.

    Returns:
        An attack of one step, on clicks; `knowledge="interactions"`. Its metrics: `before` and `after`, mean similarity
        of the targets to true without and with eps; `accepted`, share of fake users for whom inequality 12 holds;
        `objective` of eq. 13; `jaccard`, mean over pairs of fake users.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of its range; a surrogate that is not NCR.

    Reference: Chen et al., SIGIR 2023, eqs 10-13.

    **Differs from the paper:** of which no code was found. Eq. 11 has no bound, and a cosine lets eps grow for ever:
    rho. It is written for one user and one target: the mean over V, each target its own eps. The vector of a new user
    is not in an attacker's hands; it serves to choose H. The surrogate is not trained again between fake users, and
    inequality 12 is reported, not enforced. B does not count the targets.

    **How it is detected and what mitigates it:** greedy choices for like targets give like profiles (see `jaccard`):
    near duplicates and dense neighborhoods. The explanations are what it feeds on: limit how many an account may ask
    for, answer at the level of genres or only about the account's own history, and do not explain to accounts that ask
    about others.

    >>> train = Interactions.from_dense((jnp.arange(40).reshape(5, 8) % 3 == 0).astype(float))
    >>> attack = hcars(ncr.ncr(factors=4, epochs=1, batch=8), fakes=2, budget=3, climb=2, refine=1)
    >>> attack(jax.random.key(0), train, jnp.array([1, 4])).to_rows().sum(axis=1).tolist()
    [5.0, 5.0]
    """
    config = {**locals()}
    counts("hcars", users=users, rounds=rounds)
    numbers("hcars", 0, rho=rho, noise=noise, climb=climb, refine=refine)
    numbers("hcars", 0, open_end=True, learning_rate=learning_rate, refine_rate=refine_rate, pool=pool)
    if pool > 1:
        raise ValueError(f"hcars: pool={pool!r}; expected a share in (0, 1]")
    if goal != "promote":
        raise ValueError(f"hcars: goal={goal!r}; it makes sentences about targets true, so 'promote' only")
    model = reasoner() if surrogate is None else surrogate
    if model.name not in ("ncr", "reasoner"):
        raise ValueError(f"hcars: surrogate={model!r}; expected attacks.reasoner(...) or models.ncr.ncr(...)")
    threat = ThreatModel(fakes=fakes, budget=budget, goal=goal, knowledge="interactions")

    def init(key: Key[Array, ""], train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        for_fit, for_craft = jax.random.split(key)
        rows = jnp.zeros((threat.count(train.users), train.items)).at[:, targets].set(1)
        return State(fit(model, train, for_fit).embedding, rows, for_craft)

    def step(state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        params, clauses = state.embedding["params"], state.embedding["clause"]
        some = min(users, train.users)
        candidates = most_clicked(train, targets, max(int(pool * train.items), budget))
        mean, spread = jnp.mean(params["user"], 0), noise * jnp.std(params["user"])

        def one(key):
            for_users, for_noise = jax.random.split(key)
            seen = jax.random.permutation(for_users, train.users)[:some]
            h = mean + spread * jax.random.normal(for_noise, mean.shape)
            views = params["user"][seen], clauses[seen]
            moved, before, after = ideal(params, views, targets, rho, learning_rate, climb)
            chosen = jnp.zeros((budget,), jnp.int32)
            for number in range(rounds):
                chosen, value = greedy(params, h, moved, candidates, budget)
                if number + 1 < rounds:
                    h = climbed(params, h, moved, chosen, refine, refine_rate)
            return chosen, {"before": before, "after": after, "accepted": after > before, "objective": value}

        chosen, said = lax.map(one, jax.random.split(state.key, state.rows.shape[0]))
        rows = jax.vmap(lambda row, items: row.at[items].set(1))(state.rows, chosen)
        told = {name: jnp.mean(values.astype(float)) for name, values in said.items()}
        return state._replace(rows=rows), told | {"jaccard": _jaccard(rows)}

    def finish(state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        return Profiles.from_rows(state.rows, targets, clicks_targets=True, width=budget + targets.size)

    return Attack("hcars", config, threat, 1, init, step, finish, show=("objective", "accepted"))


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
        params: of NCR.
        views: vectors and clauses of the users V.
        targets: item ids.
        rho, rate, steps: bound, Adam's rate, climbing steps.
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

    Returns:
        item ids in the order they were chosen, and the objective at the end (of no premises at all, if B is 0).
    """
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


def climbed(
    params: Any,
    h: Float[Array, " D"],
    moved: Float[Array, "T D"],
    chosen: Int[Array, " B"],
    steps: int,
    rate: float,
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


def _jaccard(rows: Float[Array, "F I"]) -> Float[Array, ""]:
    """Mean over pairs of fake users; NaN for one alone."""
    both = rows @ rows.T
    size = jnp.sum(rows, 1)
    share = both / (size[:, None] + size[None] - both)
    pairs = rows.shape[0] * (rows.shape[0] - 1)
    return (jnp.sum(share) - jnp.trace(share)) / jnp.where(pairs > 0, pairs, jnp.nan)


# ------------------------------------------------------------------------------------------------ what it is told


def collect(api: Any, best: Int[np.ndarray, " U"], *, share: float = 0.6, seed: int = 0) -> Explanations:
    """Ask an explanation API why a random share of the visible users see their best item.

    Args:
        api: anything with `explain(users, items)`, such as `models.explain.ExplanationAPI`.
        best: the item that is recommended first to each visible user, from the platform's lists.
        share: of the users that are asked about, in (0, 1]; the paper says 60%.
        seed: decides which.

    Raises:
        ValueError: a share outside its range; whatever the API raises.

    Reference: Chen et al., SIGIR 2023, section 5.1. **Differs from the paper:** "60% interactions generate
    counterfactuals" is read as 60% of the users.
    """
    if not 0 < share <= 1:
        raise ValueError(f"collect: share={share!r}; expected a share in (0, 1]")
    count = max(1, round(share * len(best)))
    users = np.sort(np.random.default_rng(seed).permutation(len(best))[:count])
    return api.explain(users, np.asarray(best)[users])
