"""SRWA: walks and their derivative against a dense solve, what the attack does to its own recommender."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.srwa import at_users, build, draw_users, lag, walks
from models.data import Interactions, inject

RESTART, WIDTH, K = 0.3, 0.01, 2
GRID = (1.0, 5.0, 1.0)


def adjacency(rating, rows, w):
    """The weights between all users (real, earlier fake, the new one) and items, both ways."""
    both = np.vstack([rating, rows, w])
    n = len(both)
    A = np.zeros((n + both.shape[1],) * 2)
    A[:n, n:], A[n:, :n] = both, both.T
    return A


def dense_walks(rating, rows, w, start):
    """(nodes, S): the solution of `p = (1 - alpha) Q p + alpha e`."""
    A = adjacency(rating, rows, w)
    degree = A.sum(0)
    Q = A / np.where(degree > 0, degree, 1)
    e = np.eye(len(A))[:, start]
    return np.linalg.solve(np.eye(len(A)) - (1 - RESTART) * Q, RESTART * e)


@pytest.fixture
def problem(x64, rng):
    """A 6 x 6 graph of ratings with an earlier fake user, a later one, and a new one's weights."""
    rating = rng.integers(1, 6, (6, 6)) * (rng.random((6, 6)) < 0.6)
    rating[3] = 0  # a user without ratings stays where it is
    rows = np.array([[0, 5.0, 0, 2.0, 0, 5.0], np.zeros(6)])
    w = np.where(np.arange(6) == 5, 5.0, rng.uniform(0.5, 3.0, 6))
    start = np.array([0, 1, 2, 4, 5])
    train = Interactions.from_dense(rating, track="explicit", capacity=40)
    train = jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, train)
    return rating, rows, w, start, build(train, jnp.asarray(rows), jnp.asarray(start))


def test_walks_are_the_dense_solution_and_probabilities(problem):
    rating, rows, w, start, graph = problem
    w = jnp.asarray(w)
    walk = walks(RESTART, 60)(w, jnp.zeros((6, 5)), graph, jax.random.key(0))
    real, fake, own = at_users(walk, w, graph, RESTART)
    found = np.vstack([real, fake, own, walk])
    np.testing.assert_allclose(found, dense_walks(rating, rows, w, start), atol=1e-13)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-12)
    early = walks(RESTART, 12)(w, jnp.zeros((6, 5)), graph, jax.random.key(0))
    np.testing.assert_allclose(early, walk, atol=(1 - RESTART) ** 24)


def test_the_adjoint_is_the_derivative_of_the_dense_solution(problem):
    rating, rows, w, start, graph = problem
    targets, lacks = np.array([5, 2]), rating[start][:, [5, 2]] == 0
    closed = (rating[start] > 0) | np.isin(np.arange(6), targets)

    def by_walks(w):
        walk = walks(RESTART, 60)(w, jnp.zeros((6, 5)), graph, jax.random.key(0))
        return lag(walk.T, jnp.asarray(targets), jnp.asarray(lacks), jnp.asarray(closed), k=K, width=WIDTH)[0]

    def by_solve(w):
        p = dense_walks(rating, rows, w, start)[-6:].T
        total = 0.0
        for u in range(len(start)):
            open_ = [i for i in np.argsort(-p[u], kind="stable") if not closed[u, i]][:K]
            for t in range(2):
                if lacks[u, t]:
                    total += sum(1 / (1 + np.exp(-(p[u, i] - p[u, targets[t]]) / WIDTH)) for i in open_)
        return total

    assert lacks.any()
    assert not lacks.all()
    value, gradient = jax.jit(jax.value_and_grad(by_walks))(jnp.asarray(w))
    np.testing.assert_allclose(value, by_solve(w), rtol=1e-10)
    step = 1e-6 * np.eye(6)
    slopes = [(by_solve(w + h) - by_solve(w - h)) / 2e-6 for h in step]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-7)
    assert np.abs(slopes).min() > 1e-4  # no entry is trivially right


USERS, ITEMS = 30, 20


def clicks(seed):
    rng = np.random.default_rng(seed)
    return Interactions.from_dense(rng.random((USERS, ITEMS)) < np.linspace(0.05, 0.5, ITEMS), capacity=300)


@functools.cache
def tiny(stages):
    return jax.jit(attacks.srwa(fakes=4, budget=3, k=5, users=None, stages=stages))


@jax.jit
def exposure(train, targets):
    """The mean lag of targets behind the lists, in the graph recommender trained on `train`."""
    start, lacks = draw_users(jax.random.key(0), train, targets, USERS)
    graph = build(train, jnp.zeros((1, ITEMS)), start)
    walk = walks(RESTART, 12)(jnp.zeros(ITEMS), jnp.zeros((ITEMS, USERS)), graph, jax.random.key(0))
    closed = train.dense()[start] > 0
    return lag(walk.T, targets, lacks, closed | jnp.isin(jnp.arange(ITEMS), targets), k=5, width=WIDTH)[0]


def test_its_recommender_shows_the_targets_more_than_after_random_clicks(make_key):
    targets, random = jnp.array([0, 2]), jax.jit(attacks.random(fakes=4, budget=3))
    ours, theirs = [], []
    for seed in range(8):
        train = clicks(seed)
        for attack, found in ((tiny(4), ours), (random, theirs)):
            found.append(exposure(inject(train, attack(make_key(seed), train, targets)), targets))
    assert np.mean(np.array(ours) < np.array(theirs)) > 0.7
    assert np.mean(ours) < np.mean(theirs)


def test_the_number_of_stages_changes_nothing_and_all_users_need_no_key(make_key):
    train, targets = clicks(3), jnp.array([0, 2])
    rows = [tiny(stages)(make_key(seed), train, targets).rows for stages, seed in ((4, 0), (3, 1))]
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(rows[0].sum(axis=1), 5)


def test_users_who_lack_a_target_are_drawn_first(key):
    matrix = np.ones((6, 3))
    matrix[1, 0] = matrix[4] = 0
    draw = jax.jit(draw_users, static_argnums=3)
    start, lacks = draw(key, Interactions.from_dense(matrix), jnp.array([0, 2]), 3)
    assert set(start[:2].tolist()) == {1, 4}
    assert dict(zip(start.tolist(), lacks.tolist()))[1] == [True, False]
    assert not lacks[2].any()


def test_ratings_are_on_the_grid_and_targets_at_its_top(rng, key):
    rating = rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.4)
    train = Interactions.from_dense(rating, track="explicit", capacity=400)
    attack = attacks.srwa(fakes=3, budget=6, track="explicit", ratings=GRID, users=9, stages=1)
    rows = np.asarray(attack(key, train, jnp.array([4, 7])).rows)
    assert np.isin(rows, np.arange(6)).all()
    assert (rows[:, [4, 7]] == 5).all()
    np.testing.assert_array_equal((rows > 0).sum(axis=1), 8)
    assert len(np.unique(rows)) > 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"goal": "demote"}, "'demote'.*'promote'"),
        ({"track": "sequence"}, "'sequence'.*no order"),
        ({"track": "explicit"}, "needs ratings"),
        ({"ratings": GRID}, "has no ratings"),
        ({"budget": None}, "budget is None"),
        ({"steps": 0}, "steps=0"),
        ({"restart": 1.0}, "below 1"),
        ({"width": 0.0}, "width=0.0"),
        ({"users": 0}, "users=0"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        attacks.srwa(**{"fakes": 1, "budget": 2} | arguments)
