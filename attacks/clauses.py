"""Clauses that imply the targets: what H-CARS moves, chooses and checks in the surrogate's logic.

Chen, Silvestri, Wang, Zhang, Tolomei, SIGIR 2023: the ideal item of a target (eq. 11), the items of a fake user, one
greedily after the other, and its vector between two choices (eq. 13), and inequality 12. The attack is in hcars.py.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models import ncr


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


def in_rounds(
    params: Any, h: Array, moved: Array, candidates: Array, budget: int, climber: tuple[int, int, float]
) -> tuple[Float[Array, " D"], Int[Array, " B"], Float[Array, ""]]:
    """A fake user's vector, items and objective; `climber`: rounds, and the steps and rate of h_m between two."""
    chosen, value = greedy(params, h, moved, candidates, budget)
    for _ in range(climber[0] - 1):
        h = climbed(params, h, moved, chosen, *climber[1:])
        chosen, value = greedy(params, h, moved, candidates, budget)
    return h, chosen, value


def climbed(
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
