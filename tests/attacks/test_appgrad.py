"""AppGrad: the estimate against gradients, whole clicks against brute force, the budget of queries."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks import appgrad as function
from attacks.appgrad import counts, draw_directions, estimate, first_clicks, whole_clicks
from models.data import Interactions, new_items
from models.itempop import itempop

BOX = attacks.environment(itempop(), candidates=8, k=4, at_once=8)
SMALL = {"fakes": 2, "clicks": 4, "directions": 4, "kind": "gaussian", "radius": 0.5}


def test_on_a_quadratic_the_mean_of_the_estimate_is_the_gradient(rng, x64):
    N, I, q, c = 2, 3, 50_000, 0.7
    A, b, Z = rng.normal(size=(N * I, N * I)), rng.normal(size=N * I), rng.normal(size=(N, I))

    @jax.jit
    def run(key):
        f = lambda Z: Z.ravel() @ A @ Z.ravel() + b @ Z.ravel() + 3.0
        V = draw_directions(key, jnp.asarray(Z), q, "gaussian")
        forwards, backwards = (jax.vmap(f)(Z + sign * c * V) for sign in (1, -1))
        each = jax.vmap(lambda V, f, b: estimate(V[None], f[None], b[None], c))(V, forwards, backwards)
        return estimate(V, forwards, backwards, c), each, jax.grad(f)(jnp.asarray(Z))

    mean, each, gradient = run(jax.random.key(0))
    np.testing.assert_allclose(mean, np.mean(each, 0), rtol=1e-9)
    error = np.std(each, 0) / np.sqrt(q)
    assert np.all(np.abs(mean - gradient) < 4.5 * error)
    assert np.all(error < 0.1 * np.abs(gradient).max())  # a test that could fail


def test_singular_directions_are_those_of_the_matrix(rng):
    Z = rng.normal(size=(3, 5)).astype(np.float32)
    V = np.asarray(draw_directions(jax.random.key(0), jnp.asarray(Z), 2, "svd"))
    values = np.linalg.svd(Z, compute_uv=False)
    np.testing.assert_allclose(np.abs(V).max((1, 2)), 1, rtol=1e-6)
    unit = V / np.linalg.norm(V, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.sum(unit * Z, (1, 2)), values[:2], rtol=1e-4)
    assert [np.linalg.matrix_rank(v, tol=1e-4) for v in V] == [1, 1]


def test_whole_clicks_are_the_nearest_counts(rng):
    T, I = 4, 3
    legal = np.array([n for n in itertools.product(range(T + 1), repeat=I) if sum(n) == T])
    Z = rng.normal(size=(20, I)) * 2 + 1
    clicks = jax.jit(whole_clicks, static_argnums=1)(jnp.asarray(Z), T, jax.random.key(0))
    found = np.asarray(counts(clicks, I))
    nearest = legal[np.argmin(((Z[:, None] - legal) ** 2).sum(2), axis=1)]
    np.testing.assert_array_equal(found, nearest)
    # Their order is random: the same row again, in another order.
    same = jax.jit(whole_clicks, static_argnums=1)(
        jnp.tile(jnp.array([2.0, 2.0, 0.0]), (8, 1)), T, jax.random.key(0)
    )
    assert len({tuple(row) for row in np.asarray(same).tolist()}) > 1


def test_half_of_the_first_clicks_are_on_targets(key):
    made = first_clicks(key, jnp.array([90, 91]), 100, 100, 10_000)
    share = np.isin(made, [90, 91]).mean()
    assert abs(share - 0.5) < 4 * 0.5 / 100


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(0)
    data = Interactions.from_arrays(
        rng.integers(0, 10, 60),
        rng.integers(0, 12, 60),
        users=10,
        items=12,
        time=np.arange(60),
        track="sequence",
    )
    return new_items(data, 3).data


def test_it_improves_and_asks_2q_times_a_step(train):
    attack = function(BOX, queries=25 * 8 + 3, **SMALL)
    assert attack.steps == 25
    assert attack.threat.queries == 25 * 8

    def run(key):
        state = attack.init(key, train, jnp.array([12, 13, 14]), None)
        step = lambda state, _: attack.step(state, train, jnp.array([12, 13, 14]), None)
        state, history = jax.lax.scan(step, state, None, length=attack.steps)
        return state.own, history

    own, history = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 4))
    np.testing.assert_allclose(np.asarray(own.Z).sum(-1), 4, rtol=1e-5)
    assert np.asarray(own.Z).min() >= 0
    np.testing.assert_allclose(own.best.reward, np.asarray(history["best_reward"]).max(1))
    assert np.asarray(history["grad_norm"]).max() > 0
    reward = np.asarray(history["mean_reward"]).mean(0)
    assert reward[-5:].mean() > reward[:5].mean()


def test_in_a_large_catalog_singular_directions_learn_to_click_targets(rng):
    users, items = 100, 1_000
    drawn = rng.integers(0, users, 8_000), rng.integers(0, items, 8_000)
    data = Interactions.from_arrays(*drawn, users=users, items=items, time=np.arange(8_000), track="sequence")
    train, targets = new_items(data, 4)
    box = attacks.environment(itempop(), candidates=92, k=10)
    attack = function(box, fakes=8, clicks=10, directions=4, queries=8 * 20)
    _, history = attack.trace(jax.random.key(1), train, targets)
    reward, share = (np.asarray(history[name]) for name in ("mean_reward", "target_share"))
    assert reward[-3:].mean() > 1.4 * reward[:3].mean() > 0
    assert share[-1] > share[0] + 0.05


def test_ask_has_the_trials_of_a_step_and_rewards_turn_it(key):
    learner = attacks.appgrad_learner(queries=8, **SMALL)
    state = jax.jit(lambda key: learner.init(key, jnp.arange(6), jnp.array([5]), 2))(key)
    asked = jax.jit(learner.ask)(state)
    assert asked.clicks.shape == (8, 2, 4)
    tell = jax.jit(learner.tell)
    still = tell(state, jnp.ones(8))  # equal answers: no gradient
    np.testing.assert_allclose(still.Z, state.Z, atol=1e-6)
    # A trial whose victim broke counts as the worst of its step.
    lost = tell(state, jnp.zeros(8).at[0].set(jnp.nan).at[1].set(1.0))
    same = tell(state, jnp.zeros(8).at[1].set(1.0))
    np.testing.assert_array_equal(lost.Z, same.Z)
    # The first direction pays off forwards: Z moves along it.
    moved = tell(state, jnp.zeros(8).at[0].set(1.0))
    V = jax.jit(learner.propose)(state).directions[0]
    assert float(jnp.vdot(moved.Z - state.Z, V)) > 0


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"environment": itempop()}, TypeError, "attacks.environment"),
        ({"queries": 7}, ValueError, "less than the 8 of one step"),
        ({"kind": "svd", "radius": 1.0}, ValueError, "2 attackers"),
        ({"kind": "normal"}, ValueError, "'svd'"),
        ({"radius": 0.0}, ValueError, "radius"),
        ({"kind": "svd", "directions": 1, "radius": 0.5}, ValueError, "rounded away"),
        ({"directions": 0}, ValueError, "directions"),
        ({"goal": "availability"}, ValueError, "'demote'"),
    ],
)
def test_a_factory_refuses(change, error, match):
    with pytest.raises(error, match=match):
        function(**{"environment": BOX, "queries": 8, **SMALL, **change})


def test_there_are_no_more_singular_directions_than_attackers(train, key):
    few = function(BOX, fakes=3, clicks=2, queries=12)
    assert (few.config["directions"], few.steps) == (3, 2)
    assert function(BOX).config["directions"] == 16
    share = function(BOX, fakes=0.2, clicks=2, queries=64)  # known when the users are
    with pytest.raises(ValueError, match="directions is 16, but 2 attackers"):
        share(key, train, jnp.array([12]))
