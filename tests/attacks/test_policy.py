"""The policy and PPO: ratios, clipping, normalization, and learning on a bandit (C10)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attacks import policy, tree


@pytest.fixture(scope="module")
def problem():
    """A small tree, a policy and trajectories of it: 4 sets of 3 attackers with 5 clicks on 11 items."""

    @jax.jit
    def make(key):
        space = tree.make_space("bcbt-popular", key, jnp.arange(11), jnp.array([2, 6, 7]))
        params = policy.init(jax.random.key(1), space, attackers=3, width=6, scale=0.5)
        return space, params, policy.sample(params, space, jax.random.key(2), sets=4, clicks=5)

    return make(jax.random.key(0))


def test_the_first_ratio_is_one(problem):
    space, params, made = problem
    again = jax.jit(policy.log_probs)(params, space, made.clicks)
    np.testing.assert_allclose(np.exp(again - made.log_probs), 1, rtol=1e-5)


def test_the_lstm_is_the_textbook_one_and_reads_attacker_then_clicks():
    space = tree.make_space("plain", jax.random.key(0), np.arange(5), np.array([4]))
    params = jax.jit(lambda key: policy.init(key, space, attackers=2, width=3, scale=0.5))(jax.random.key(1))
    clicks = jnp.array([[[0, 4, 2], [1, 1, 3]]])
    found = jax.jit(policy.log_probs)(params, space, clicks)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    p = jax.tree.map(np.asarray, params)
    for u in range(2):
        h = c = np.zeros(3)
        x = p["user"][u]
        for t in range(3):
            i, f, g, o = np.split(x @ p["lstm"]["input"] + h @ p["lstm"]["state"] + p["lstm"]["bias"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            q = np.maximum(h @ p["deep"]["W1"] + p["deep"]["b1"], 0) @ p["deep"]["W2"] + p["deep"]["b2"]
            logits = p["item"] @ q
            item = int(clicks[0, u, t])
            np.testing.assert_allclose(
                found[0, u, t, 0], logits[item] - np.log(np.exp(logits).sum()), rtol=1e-4
            )
            x = p["item"][item]


def test_the_gradient_is_that_of_reinforce_at_first_and_zero_where_the_minimum_clips(problem, x64):
    space, params, made = problem
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    clicks = made.clicks
    gains = np.array([1.0, -2.0, 0.5, 0.0])

    @jax.jit
    def of(params, shift, gain):
        """Gradients of the surrogate with all ratios `exp(shift)`, and of the log-probability weighted by `gain`."""
        old = policy.Trajectories(clicks, policy.log_probs(params, space, clicks) - shift)
        weighted = lambda p: (
            jnp.sum(gain * jnp.sum(policy.log_probs(p, space, clicks), (1, 2, 3))) / clicks.size
        )
        return jax.grad(partial(policy.surrogate, clip=0.1))(params, space, old, gain), jax.grad(weighted)(
            params
        )

    def check(shift, gain, factor):
        found, plain = of(params, shift, gain)
        close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-13)
        jax.tree.map(lambda a, b: close(a, factor * b), found, plain)

    only = lambda number: np.where(np.arange(4) == number, gains, 0)
    check(0.0, gains, 1.0)  # the first epoch: plain REINFORCE
    check(np.log(1.2), only(0), 0.0)  # A > 0 and the ratio above 1.1
    check(np.log(1.2), only(1), 1.2)
    check(np.log(0.8), only(0), 0.8)
    check(np.log(0.8), only(1), 0.0)  # A < 0 and the ratio below 0.9


def test_the_surrogate_counts_every_decision_once(problem):
    space, params, made = problem
    # All ratios and advantages 1: the objective is the mean number of decisions of a click.
    value = jax.jit(partial(policy.surrogate, clip=0.1))(params, space, made, jnp.ones(4))
    depth = np.asarray(jax.jit(jax.vmap(tree.taken, (None, 0)))(space, jnp.arange(11))).sum(1)
    np.testing.assert_allclose(value, np.mean(depth[np.asarray(made.clicks)]), rtol=1e-5)


def improved(problem, optimizer, epochs, batch):
    """PPO's update, compiled: of anything, and of the problem's own trajectories with given rewards."""
    space, params, made = problem
    run = jax.jit(
        lambda params, made, rewards, key: policy.improve(
            params,
            optimizer.init(params),
            optimizer,
            space,
            made,
            rewards,
            key,
            epochs=epochs,
            batch=batch,
            clip=0.1,
        )[0]
    )
    return run, lambda rewards: run(params, made, rewards, jax.random.key(3))


def test_equal_rewards_move_nothing_from_a_fresh_optimizer(problem):
    _, step = improved(problem, optax.adam(2e-3), 3, 4)
    jax.tree.map(np.testing.assert_array_equal, step(jnp.full(4, 7.0)), problem[1])
    moved = step(jnp.array([1.0, 2.0, 3.0, 4.0]))
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(problem[1]), strict=True)
    )


def test_small_batches_see_two_of_the_sets_and_normalize_their_rewards(problem):
    space, params, made = problem
    run, step = improved(problem, optax.sgd(1.0), 1, 2)
    moved = step(jnp.arange(4.0))
    chosen = jax.random.permutation(jax.random.split(jax.random.key(3), 1)[0], 4)[:2]
    # The others' trajectories do not matter: put those of the chosen ones in their place.
    twice = jax.tree.map(
        lambda leaf: leaf.at[jnp.setdiff1d(jnp.arange(4), chosen)].set(leaf[chosen[:1]]), made
    )
    again = run(
        params, twice, jnp.arange(4.0) * 5 + 3, jax.random.key(3)
    )  # nor do scale and level of the rewards
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), moved, again)
    assert np.any(moved["user"] != params["user"])


@pytest.mark.parametrize("design", [pytest.param("plain", marks=pytest.mark.slow), "bcbt-popular"])
def test_on_a_bandit_the_probability_of_the_rewarded_item_rises(design):
    """Reward: how often one item is clicked. Averaged over seeds, in blocks of steps."""
    wanted, adam = 8, optax.adam(5e-3)

    def run(key):
        space = tree.make_space(design, key, jnp.arange(11), jnp.array([2, 6, 7]))
        params = policy.init(key, space, attackers=2, width=8)

        def step(carry, key):
            params, opt = carry
            for_sample, for_learning = jax.random.split(key)
            made = policy.sample(params, space, for_sample, sets=16, clicks=4)
            rewards = jnp.sum(made.clicks == wanted, (1, 2), dtype=float)
            new = policy.improve(
                params, opt, adam, space, made, rewards, for_learning, epochs=3, batch=16, clip=0.1
            )
            return new, jnp.mean(rewards) / 8

        return jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, 32))[1]

    curve = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(5), 6))).mean(0)
    blocks = curve.reshape(4, 8).mean(1)
    assert np.all(np.diff(blocks) > 0), blocks
    assert blocks[-1] > 3 * blocks[0], blocks
