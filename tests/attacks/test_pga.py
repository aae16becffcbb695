"""PGA: utilities, its gradient, ascent, choice of fillers. The factorization it shares with TNA: test_kkt.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks import kkt
from attacks.pga import Rows
from attacks.pga import pga as make
from models.data import Interactions

USERS, ITEMS, FAKES, FACTORS = 9, 8, 2, 3
GRID = (1.0, 5.0, 1.0)
TARGETS = jnp.array([1, 6])


def double(tree):
    return jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, tree)


@pytest.fixture
def rating(rng):
    given = rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.6)
    given[4], given[:, 7] = 0, 0  # a user and an item without ratings
    return given.astype(float)


@pytest.fixture
def train(rating):
    return Interactions.from_dense(rating, track="explicit", capacity=USERS * ITEMS)


# ------------------------------------------------------------------------------------------------ utilities


def plan_of(**options):
    settings = {"fakes": FAKES, "budget": 3, "ratings": GRID, "factors": FACTORS, "sweeps": 3}
    return make(**{**settings, **options}).init.__self__


def test_utilities_are_those_of_the_dense_matrices(x64, rng, train, rating):
    plan = plan_of(goal="demote", availability=0.5)
    draw = lambda rows: jnp.asarray(rng.normal(size=(rows, FACTORS)))
    found, clean = (kkt.Factors(draw(USERS + FAKES), draw(ITEMS)) for _ in range(2))
    parts = jax.jit(lambda *models: plan.utilities(*models, train, TARGETS))(found, clean)
    R, before = (np.asarray(f.user[:USERS] @ f.item.T) for f in (found, clean))
    np.testing.assert_allclose(parts.availability, ((R - before) ** 2)[rating == 0].sum(), rtol=1e-9)
    np.testing.assert_allclose(parts.integrity, -R[:, np.asarray(TARGETS)].sum(), rtol=1e-9)


@pytest.mark.parametrize("gradient", ["kkt", "unrolled"])
def test_the_gradient_of_the_attack_against_finite_differences(x64, train, key, gradient):
    """`unrolled` through all sweeps is the derivative of the whole training, `kkt` that of its last half step."""
    own = {"gradient": gradient} | ({"tau": 3} if gradient == "unrolled" else {})
    plan, train = plan_of(availability=0.5, **own), double(train)
    shape, step = (FAKES, ITEMS), 1e-5

    @jax.jit
    def run(key):
        state = double(plan.init(key, train, TARGETS))
        data, x = plan.data(state.rows, train), plan.given(state.rows)
        held = kkt.fit(plan.model, state.start, x, data, 3).user

        def utility(x):
            if gradient == "kkt":
                trained = kkt.Factors(held, kkt.solve_items(plan.model, held, x, data))
            else:
                trained = kkt.fit(plan.model, state.start, x, data, 3)
            parts = plan.utilities(trained, state.clean, train, TARGETS)
            return 0.5 * parts.availability + parts.integrity

        ways = step * jnp.concatenate([-jnp.eye(x.size), jnp.zeros((1, x.size)), jnp.eye(x.size)])
        values = jax.lax.map(lambda way: utility(x + way.reshape(shape)), ways)
        return plan.ascent(state, train, TARGETS), values

    (parts, found), values = run(key)
    below, at, above = values[: found.size], values[found.size], values[found.size + 1 :]
    np.testing.assert_allclose(0.5 * parts.availability + parts.integrity, at, rtol=1e-9)
    np.testing.assert_allclose(found.ravel(), (above - below) / (2 * step), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ the attack


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({"goal": "availability"}, []),
        ({"availability": 1.0}, [1, 6]),
        ({"gradient": "unrolled"}, [1, 6]),
        ({"gradient": "unrolled", "goal": "demote"}, [1, 6]),
    ],
    ids=str,
)
def test_utility_rises(train, key, options, targets):
    attack = make(
        fakes=3, budget=3, ratings=GRID, factors=2, steps=8, learning_rate=0.05, sweeps=5, **options
    )
    profiles, history = attack.trace(key, train, jnp.array(targets, jnp.int32))
    attack.threat.validate(profiles, USERS)
    loss = np.asarray(history["loss"])
    assert loss[-1] < loss[0]
    assert (np.diff(loss) < 0).mean() >= 0.8, loss
    if targets:
        expected = GRID[0] if options.get("goal") == "demote" else GRID[1]
        assert (np.asarray(profiles.rows)[:, targets] == expected).all()


@pytest.mark.parametrize("track", ["explicit", "implicit"])
def test_integrity_alone_leaves_random_fillers(key, rating, track):
    """With users' factors held a rating moves its own item only, so no filler has a gradient: the light version."""
    train = Interactions.from_dense(rating if track == "explicit" else rating > 0, track=track)
    own = {"ratings": GRID} if track == "explicit" else {}
    attack = make(fakes=3, budget=3, track=track, factors=2, steps=2, sweeps=2, **own)
    plan = attack.init.__self__

    @jax.jit
    def run(key):
        state = plan.init(key, train, TARGETS)
        own = plan.ascent(state, train, TARGETS)[1], plan.finish(state, train, TARGETS)
        return state.rows.rated, *own, attack(key, train, TARGETS)

    rated, gradient, begun, ended = run(key)
    others = np.setdiff1d(np.arange(ITEMS), np.asarray(TARGETS))
    np.testing.assert_array_equal(gradient[:, others], 0)
    assert float(jnp.abs(gradient[:, TARGETS]).max()) > 0
    np.testing.assert_array_equal(ended.rows, begun.rows)
    assert (np.asarray(rated)[:, others].sum(axis=1) == 3).all()


@functools.cache
def projection(budget):
    plan = plan_of(budget=budget, learning_rate=0.25)
    return jax.jit(lambda rows, gradient: plan.project(rows, gradient, TARGETS))


@pytest.mark.parametrize("budget", [0, 3, ITEMS - 2])
def test_fillers_are_the_largest_after_the_step(rng, budget):
    others = np.delete(np.arange(ITEMS), np.asarray(TARGETS))
    for _ in range(20):  # numbers that float32 adds exactly, with many ties
        values = (rng.integers(0, 9, (FAKES, ITEMS)) / 8).astype(np.float32)
        slope = rng.integers(-2, 3, (FAKES, ITEMS)).astype(np.float32)
        slope[0, others[0]] = 2
        found = projection(budget)(Rows(values, values > 0), slope)
        moved = np.clip(values + slope / 8, 0, 1)
        for row, rated, held in zip(moved, np.asarray(found.rated), np.asarray(found.values)):
            best = others[np.argsort(-row[others], kind="stable")[:budget]]
            np.testing.assert_array_equal(np.flatnonzero(rated), np.sort(np.append(best, TARGETS)))
            np.testing.assert_array_equal(held[others], row[others])
            np.testing.assert_array_equal(held[np.asarray(TARGETS)], 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"track": "sequence"}, "no order"),
        ({"track": "implicit", "ratings": None, "goal": "demote"}, "low ratings"),
        ({"track": "implicit"}, "has no ratings"),
        ({"track": "implicit", "ratings": None, "initial": "item"}, "no ratings to start from"),
        ({"ratings": None}, "needs ratings"),
        ({"weight": 20.0}, "ratings have none"),
        ({"budget": None}, "budget is None"),
        ({"goal": "availability", "integrity": 1.0}, "no targets"),
        ({"integrity": 0.0}, "nothing to ascend"),
        ({"availability": -1.0}, "availability=-1.0"),
        ({"gradient": "exact"}, "gradient is 'exact'"),
        ({"tau": 2}, "unrolls nothing"),
        ({"gradient": "unrolled", "tau": 4}, "3 sweeps only"),
        ({"initial": "mean"}, "initial is 'mean'"),
        ({"l2": 0.0}, "l2=0.0"),
        ({"steps": 0}, "steps=0"),
    ],
    ids=str,
)
def test_a_factory_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        plan_of(**options)


def test_it_is_in_the_package():
    assert attacks.pga is make
