"""The policy that clicks, and how it learns from rewards: an LSTM with PPO.

Song, Zhao et al., "PoisonRec: An Adaptive Data Poisoning Framework for Attacking Black-box Recommender Systems",
ICDE 2020, section III-C and D; Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347, 2017:

    h_t = LSTM(e_u, e_a0, ..., e_a(t-1)),   D(h) = W2 relu(W1 h + b1) + b2,   a_t from the action space by q = D(h_t)
    A_i = (R_i - mean R) / max(std R, 1e-8)                                                                     eq. 8
    J   = mean_i 1/(N T) sum over attackers u, clicks t, decisions d of min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i)
    rho = p_theta(decision) / p_theta'(decision)                                                            eqs 7, 9

An example `i` is one set of N trajectories; it has one reward, which comes at the end (no discount, no value function).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attacks import tree
from attacks.tree import Space

Params = Any


class Trajectories(NamedTuple):
    """`M` sets of `N` click sequences of length `T`, with the log-probability of each of their decisions."""

    clicks: Int[Array, "M N T"]
    log_probs: Float[Array, "M N T d"]


def init(key: Key[Array, ""], space: Space, attackers: int, *, width: int = 64, scale: float = 0.1) -> Params:
    """The parameters: all embeddings `N(0, scale^2)`, layers uniform in `+-1/sqrt(width)`.

    Args:
        key: consumed.
        space: the action space, from `attacks.tree.make_space`.
        attackers: N; each has an embedding, the rest is shared.
        width: of every embedding and layer, |e|.
        scale: with a small one every decision starts near 1/2, and so the share of clicks on targets.

    Reference: Song et al., ICDE 2020, section III-C.

    **Differs from the paper:** it states no initialization.
    """
    for_tree, for_user, *keys = jax.random.split(key, 7)
    bound = width**-0.5
    draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return {
        **tree.init(for_tree, space, width, scale),
        "user": scale * jax.random.normal(for_user, (attackers, width)),
        "lstm": {
            "input": draw(keys[0], width, 4 * width),
            "state": draw(keys[1], width, 4 * width),
            "bias": jnp.zeros(4 * width),
        },
        "deep": {
            "W1": draw(keys[2], width, width),
            "b1": jnp.zeros(width),
            "W2": draw(keys[3], width, width),
            "b2": draw(keys[4], width),
        },
    }


def table(params: Params) -> Float[Array, "V D"]:
    """Embeddings of the items, then of the inner nodes: what is clicked is what was read (tied)."""
    return jnp.concatenate([params["item"], params["node"]])


def _advance(params: Params, state: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
    """One step of the LSTM, and `q = D(h)`."""
    h, c = state
    lstm, deep = params["lstm"], params["deep"]
    i, f, g, o = jnp.split(x @ lstm["input"] + h @ lstm["state"] + lstm["bias"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), jax.nn.relu(h @ deep["W1"] + deep["b1"]) @ deep["W2"] + deep["b2"]


def _start(params: Params, count: int) -> tuple[tuple[Array, Array], Array]:
    """The LSTM's first state and input of every sequence of `count` sets."""
    x = jnp.broadcast_to(params["user"], (count, *params["user"].shape))
    return (jnp.zeros_like(x), jnp.zeros_like(x)), x


def sample(params: Params, space: Space, key: Key[Array, ""], *, sets: int, clicks: int) -> Trajectories:
    """`sets` independent sets of trajectories, one for each attacker, `clicks` long.

    Reference: Song et al., ICDE 2020, eqs 5-6 and Alg. 2.

    **Differs from the paper:** nothing.

    >>> space = tree.make_space("bcbt-popular", jax.random.key(0), jnp.arange(9), jnp.array([3, 4]))
    >>> params = init(jax.random.key(1), space, attackers=5, width=4)
    >>> made = sample(params, space, jax.random.key(2), sets=3, clicks=6)
    >>> made.clicks.shape, made.log_probs.shape
    ((3, 5, 6), (3, 5, 6, 4))
    """
    rows = table(params)
    draw = jax.vmap(jax.vmap(tree.sample, (None, None, 0, 0)), (None, None, 0, 0))

    def step(carry, key):
        state, x = carry
        state, q = _advance(params, state, x)
        item, found = draw(space, rows, q, jax.random.split(key, q.shape[:2]))
        return (state, params["item"][item]), (item, found)

    _, (items, found) = lax.scan(step, _start(params, sets), jax.random.split(key, clicks))
    return Trajectories(jnp.moveaxis(items, 0, 2), jnp.moveaxis(found, 0, 2))


def log_probs(params: Params, space: Space, clicks: Int[Array, "M N T"]) -> Float[Array, "M N T d"]:
    """The log-probability of each decision of given trajectories; differentiable, a click at a time in memory."""
    rows = table(params)
    read = jax.vmap(jax.vmap(tree.log_probs, (None, None, 0, 0)), (None, None, 0, 0))
    read = jax.checkpoint(read)  # a softmax over the catalog is not kept for each click

    def step(carry, item):
        state, x = carry
        state, q = _advance(params, state, x)
        return (state, params["item"][item]), read(space, rows, q, item)

    _, found = lax.scan(step, _start(params, clicks.shape[0]), jnp.moveaxis(clicks, 2, 0))
    return jnp.moveaxis(found, 0, 2)


def advantages(rewards: Float[Array, " M"]) -> Float[Array, " M"]:
    """Rewards with mean 0 and standard deviation 1 over the batch; equal rewards give 0 (eq. 8).

    >>> advantages(jnp.array([1.0, 3.0])).tolist(), advantages(jnp.array([7.0, 7.0])).tolist()
    ([-1.0, 1.0], [0.0, 0.0])
    """
    return (rewards - jnp.mean(rewards)) / jnp.maximum(jnp.std(rewards), 1e-8)


def surrogate(
    params: Params, space: Space, made: Trajectories, advantage: Float[Array, " M"], *, clip: float
) -> Float[Array, ""]:
    """PPO's clipped objective J of parameters, on trajectories sampled with earlier ones.

    Its gradient is 0 for a decision where the minimum picks the clipped branch, `rho A grad log p` elsewhere.

    Reference: Schulman et al., 2017, eq. 7; Song et al., ICDE 2020, eq. 9.

    **Differs from the paper:** eqs 7 and 9 multiply the value of the minimum by `grad log p`, which never stops
    moving a clipped decision; this is the surrogate of PPO. The sum over decisions is divided by N T.
    """
    inside = jax.vmap(jax.vmap(jax.vmap(tree.taken, (None, 0)), (None, 0)), (None, 0))(space, made.clicks)
    ratio = jnp.exp(log_probs(params, space, made.clicks) - made.log_probs)
    A = advantage[:, None, None, None]
    terms = jnp.minimum(ratio * A, jnp.clip(ratio, 1 - clip, 1 + clip) * A)
    return jnp.sum(jnp.where(inside, terms, 0)) / (made.clicks.size)


def improve(
    params: Params,
    opt: optax.OptState,
    optimizer: optax.GradientTransformation,
    space: Space,
    made: Trajectories,
    rewards: Float[Array, " M"],
    key: Key[Array, ""],
    *,
    epochs: int,
    batch: int,
    clip: float,
) -> tuple[Params, optax.OptState]:
    """`epochs` steps of ascent on J, each on `batch` of the M examples, with the rewards normalized in it.

    Args:
        params, opt: of the policy that sampled `made`, and of the optimizer.
        optimizer: of a loss (it descends on -J).
        space, made: the action space and the trajectories.
        rewards: of each set.
        key: draws the batches where they are smaller than M.
        epochs: K.
        batch: B, at most M.
        clip: eps.

    Reference: Song et al., ICDE 2020, Alg. 1, lines 13-17.

    **Differs from the paper:** see `surrogate`.
    """
    M = made.clicks.shape[0]

    def epoch(carry, key):
        params, opt = carry
        chosen = jnp.arange(M) if batch == M else jax.random.permutation(key, M)[:batch]
        few = jax.tree.map(lambda leaf: leaf[chosen], made)
        advantage = advantages(rewards[chosen])
        grads = jax.grad(lambda p: -surrogate(p, space, few, advantage, clip=clip))(params)
        updates, opt = optimizer.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), None

    return lax.scan(epoch, (params, opt), jax.random.split(key, epochs))[0]


def target_share(clicks: Int[Array, "*M"], targets: Int[Array, " T"]) -> Float[Array, ""]:
    """The share of clicks that are on targets.

    >>> float(target_share(jnp.array([[1, 4], [4, 4]]), jnp.array([4])))
    0.75
    """
    return jnp.mean(jnp.any(clicks[..., None] == targets, axis=-1), dtype=float)
