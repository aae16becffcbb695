"""The ridge factorization that PGA and TNA share: normal equations, WRMF by ALS, the KKT derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks import kkt
from models import als
from models.data import Interactions

USERS, ITEMS, FAKES, FACTORS = 9, 8, 2, 3
SETTINGS = {"explicit": (1.0, 0.0), "implicit": (20.0, 1.0)}  # weights of known and of other cells


def double(tree):
    return jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, tree)


@pytest.fixture
def rating(rng):
    given = rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.6)
    given[4], given[:, 7] = 0, 0  # a user and an item without ratings
    return given.astype(float)


@pytest.fixture(params=list(SETTINGS))
def problem(request, x64, rng, rating):
    """Settings, data, relaxed fake rows that are 0 where not known, factors, and the same as dense matrices."""
    weight, rest = SETTINGS[request.param]
    model = kkt.Ridge(factors=FACTORS, l2=0.3, weight=weight, rest=rest, sweeps=2)
    given = rating if request.param == "explicit" else (rating > 0).astype(float)
    train = Interactions.from_dense(given, track=request.param, capacity=USERS * ITEMS)
    highest = 5.0 if request.param == "explicit" else 1.0
    known = rng.random((FAKES, ITEMS)) < 0.6
    x = rng.random((FAKES, ITEMS)) * known
    data = kkt.prepare(double(train), jnp.asarray(known), highest)
    found = kkt.Factors(
        jnp.asarray(rng.normal(size=(USERS + FAKES, FACTORS))), jnp.asarray(rng.normal(size=(ITEMS, FACTORS)))
    )
    values = np.vstack([given / highest, x])
    weights = np.where(np.vstack([given > 0, known]), weight, rest)
    return model, data, jnp.asarray(x), found, values, weights


def ridges(B, values, weights, l2):
    """One weighted ridge regression a row, by NumPy."""
    solve = lambda r, c: np.linalg.solve((B.T * c) @ B + l2 * np.eye(B.shape[1]), (B.T * c) @ r)
    return np.stack([solve(r, c) for r, c in zip(values, weights)])


def test_half_steps_solve_their_normal_equations_and_lower_the_objective(problem):
    model, data, x, found, values, weights = problem

    @jax.jit
    def run(found, x):
        P, Q = swept = kkt.sweep(model, found.item, x, data)
        states = found, kkt.Factors(P, found.item), swept
        return P, Q, states, jnp.stack([kkt.objective(model, held, x, data) for held in states])

    P, Q, states, costs = run(found, x)
    np.testing.assert_allclose(P, ridges(np.asarray(found.item), values, weights, 0.3), rtol=1e-9)
    np.testing.assert_allclose(Q, ridges(np.asarray(P), values.T, weights.T, 0.3), rtol=1e-9)

    def dense(P, Q):
        penalty = 0.3 * (np.square(P).sum() + np.square(Q).sum())
        return (weights * (values - np.asarray(P) @ np.asarray(Q).T) ** 2).sum() + penalty

    np.testing.assert_allclose(costs, [dense(*held) for held in states], rtol=1e-10)
    assert costs[0] > costs[1] > costs[2]


def test_the_form_for_clicks_is_wrmf_by_als(x64, rng, rating):
    train = Interactions.from_dense(rating > 0, track="implicit", capacity=USERS * ITEMS)
    x = jnp.asarray((rng.random((FAKES, ITEMS)) < 0.5).astype(float))
    item = jnp.asarray(rng.normal(size=(ITEMS, FACTORS)))
    model = kkt.Ridge(factors=FACTORS, l2=0.3, weight=20.0, rest=1.0)
    found = jax.jit(lambda item, x: kkt.sweep(model, item, x, kkt.prepare(double(train), x > 0, 1.0)))(
        item, x
    )
    peer = als.als(factors=FACTORS, l2=0.3, weight=20.0)
    params = {
        "user": jnp.zeros((USERS, FACTORS)),
        "fake": jnp.zeros((FAKES, FACTORS)),
        "item": item,
    }
    sweep = lambda params, x: als.sweep(params, x, double(peer.prepare(train)), None, weight=20.0, l2=0.3)
    expected = jax.jit(sweep)(params, x)
    np.testing.assert_allclose(found.user, np.vstack([expected["user"], expected["fake"]]), rtol=1e-9)
    np.testing.assert_allclose(found.item, expected["item"], rtol=1e-9)


def test_the_kkt_gradient_is_autodiff_of_a_half_step_and_its_finite_differences(problem):
    """Of a scalar of the predictions, in every cell, known or not; users' factors and known cells held."""
    model, data, x, found, _, _ = problem

    def scalar(Q):
        return jnp.sum(jnp.sin(found.user[:USERS] @ Q.T))

    step, eye = 1e-6, jnp.eye(x.size).reshape(-1, *x.shape)
    through = lambda x: scalar(kkt.solve_items(model, found.user, x, data))

    @jax.jit
    def run(x):
        Q = kkt.solve_items(model, found.user, x, data)
        closed = kkt.rating_gradient(model, found, data, jax.grad(scalar)(Q))
        moved = jax.vmap(lambda way: through(x + step * way) - through(x - step * way))(eye) / (2 * step)
        return closed, jax.grad(through)(x), moved

    closed, automatic, moved = run(x)
    np.testing.assert_allclose(closed, automatic, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(closed.ravel(), moved, rtol=1e-6, atol=1e-8)
    assert float(jnp.abs(closed).min()) > 0
