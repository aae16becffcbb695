"""Projections against brute-force oracles: NumPy loops, KKT conditions and a quadratic program, on drawn values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bilevel.project import (
    Projection,
    box,
    chain,
    column_mask,
    l1_ball,
    set_columns,
    simplex,
    threshold,
    topk,
)

F, I, B = 4, 7, 3  # one shape, so that one compile serves every example

# Few distinct values make ties common; NaN, infinities and both zeros are drawn on purpose.
ROUGH = st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 0.25, 0.5, 1.0, 3e38, np.inf, np.nan])
rough_rows = hnp.arrays(np.float32, (F, I), elements=ROUGH)
smooth = st.floats(-10, 10, width=32, allow_subnormal=False)
smooth_rows = hnp.arrays(np.float64, (F, I), elements=st.floats(-10, 10))
counts = hnp.arrays(np.float32, I, elements=st.integers(0, 5).map(float))
ids = hnp.arrays(np.int32, 2, elements=st.integers(-1, I - 1))


def topk_oracle(x, budget, forced=(), exclude=(), bonus=None):
    """Row by row: sort the allowed columns by (score descending, index), take the first `budget`."""
    out = np.zeros_like(x)
    for f in range(x.shape[0]):
        score = x[f] if bonus is None else x[f] + bonus
        score = np.where(
            np.isnan(score), np.finfo(np.float32).min, np.maximum(score, np.finfo(np.float32).min)
        )
        allowed = [i for i in range(x.shape[1]) if i not in forced and i not in exclude]
        out[f, sorted(allowed, key=lambda i: (-score[i], i))[:budget]] = 1
        out[f, list(forced)] = 1
    return out


topk_traced = jax.jit(lambda x, forced, exclude: topk(B, forced=forced, exclude=exclude)(x))
topk_smooth = jax.jit(lambda x, c, beta, forced: topk(B, popularity=c, beta=beta, forced=forced)(x))

topk_many = jax.jit(jax.vmap(topk_smooth.__wrapped__))
simplex_traced = jax.jit(lambda x, radius: simplex(radius)(x))
ball = jax.jit(l1_ball(4.0))


@given(x=rough_rows, forced=ids, exclude=ids)
def test_topk_is_the_oracle_with_traced_columns(x, forced, exclude):
    got = topk_traced(x, forced, exclude)
    always = {int(i) for i in forced if i >= 0}
    never = {int(i) for i in exclude if i >= 0}
    np.testing.assert_array_equal(got, topk_oracle(x, B, always, never))
    assert (np.asarray(got).sum(axis=1) == B + len(always)).all()


@given(
    x=hnp.arrays(np.float32, (F, I), elements=smooth), c=counts, beta=st.sampled_from([0.0, 0.5, 1.0, 8.0])
)
def test_topk_with_popularity_is_the_oracle(x, c, beta):
    bonus = np.float32(beta) * (c / max(c.max(), 1) if c.max() > 0 else 0 * c)
    got = topk_smooth(x, c, jnp.float32(beta), jnp.array([2, -1]))
    np.testing.assert_array_equal(got, topk_oracle(x, B, {2}, bonus=bonus.astype(np.float32)))


def test_topk_with_a_large_beta_returns_the_most_popular_items(rng):
    c = np.array([5.0, 9.0, 1.0, 7.0, 0.0, 9.0, 2.0])
    got = topk(B, popularity=c, beta=1e6, forced=[0])(rng.random((F, I)).astype(np.float32))
    np.testing.assert_array_equal(got, np.tile([1.0, 1, 0, 1, 0, 1, 0], (F, 1)))


def test_topk_without_popularity_counts_ignores_them():
    x = jnp.array([[0.0, 2.0, 1.0]])
    np.testing.assert_array_equal(topk(1, popularity=np.zeros(3))(x), [[0, 1, 0]])


def test_topk_breaks_ties_by_the_lower_index_also_between_signed_zeros():
    x = jnp.array([[-0.0, 0.0, -0.0, 0.0, -1.0]])
    for project in (topk(2), jax.jit(topk(2))):
        np.testing.assert_array_equal(project(x), [[1, 1, 0, 0, 0]])


@given(x=rough_rows, forced=ids)
def test_topk_is_idempotent(x, forced):
    once = topk_traced(x, forced, forced)
    np.testing.assert_array_equal(topk_traced(once, forced, forced), once)


@given(
    x=hnp.arrays(np.float32, (3, F, I), elements=smooth),
    targets=hnp.arrays(np.int32, (3, 2), elements=st.integers(0, I - 1)),
)
def test_topk_maps_over_target_sets_and_popularity(x, targets):
    c = np.abs(x[:, 0])
    many = topk_many(x, c, jnp.ones(3), targets)
    for n in range(3):
        np.testing.assert_array_equal(many[n], topk_smooth(x[n], c[n], jnp.ones(()), targets[n]))


def test_topk_takes_masks_and_leading_axes(rng):
    x = rng.random((2, F, I)).astype(np.float32)
    mask = np.zeros(I, bool)
    mask[[1, 4]] = True
    np.testing.assert_array_equal(topk(B, forced=mask)(x), topk(B, forced=[4, 1])(x))
    np.testing.assert_array_equal(topk(B)(x)[1, 2], topk(B)(x[1, 2]))


def test_topk_budget_edges():
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(topk(0)(x), np.zeros((2, 3)))
    np.testing.assert_array_equal(topk(2, forced=[0])(x), np.ones((2, 3)))
    # Traced columns cannot be counted before: a row gets all that is allowed, never a closed column.
    got = jax.jit(lambda e: topk(3, exclude=e)(x))(jnp.array([1]))
    np.testing.assert_array_equal(got, [[1, 0, 1]] * 2)


@given(
    x=hnp.arrays(np.float32, (F, I), elements=st.sampled_from([0.0, 0.2, 0.25, 0.5, np.nan, np.inf, -np.inf]))
)
def test_threshold_strict_and_not(x):
    for rho in (0.2, 0.25):
        np.testing.assert_array_equal(threshold(rho)(x), (x > np.float32(rho)).astype(np.float32))
        np.testing.assert_array_equal(
            threshold(rho, strict=False)(x), (x >= np.float32(rho)).astype(np.float32)
        )


@given(x=smooth_rows)
def test_threshold_is_idempotent(x):
    project = threshold(0.3)
    np.testing.assert_array_equal(project(project(x)), project(x))


@given(x=rough_rows.filter(lambda x: not np.isnan(x).any()))
def test_box_is_clip_and_idempotent(x):
    low = np.linspace(-1, 0, I, dtype=np.float32)
    got = box(low, 2.0)(x)
    np.testing.assert_array_equal(got, np.minimum(np.maximum(x, low), 2))
    np.testing.assert_array_equal(box(low, 2.0)(got), got)


@given(x=smooth_rows, radius=st.sampled_from([0.1, 1.0, 5.0]))
def test_simplex_meets_the_kkt_conditions(x64, x, radius):
    y = np.asarray(simplex_traced(x, radius))
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(axis=1), radius, rtol=1e-12)
    # x - y is one number (the multiplier) on the support and at most that number off it.
    for f in range(F):
        multiplier = (x[f] - y[f])[y[f] > 0]
        assert np.ptp(multiplier) <= 1e-12
        assert (x[f][y[f] == 0] <= multiplier.max() + 1e-12).all()
    np.testing.assert_allclose(simplex_traced(y, radius), y, atol=1e-13)


def test_simplex_and_l1_ball_solve_their_quadratic_programs(x64, rng):
    from scipy.optimize import minimize

    for _ in range(5):
        x = 2 * rng.normal(size=5)
        sums_to_one = {"type": "eq", "fun": lambda y: y.sum() - 1}
        best = minimize(
            lambda y: ((y - x) ** 2).sum(),
            np.full(5, 0.2),
            bounds=[(0, None)] * 5,
            constraints=[sums_to_one],
            tol=1e-12,
        )
        np.testing.assert_allclose(simplex(1.0)(x), best.x, atol=1e-6)
        # The ball in positive and negative parts: y = p - n with sum(p + n) <= 1.
        inside = {"type": "ineq", "fun": lambda z: 1 - z.sum()}
        best = minimize(
            lambda z: ((z[:5] - z[5:] - x) ** 2).sum(),
            np.full(10, 0.05),
            bounds=[(0, None)] * 10,
            constraints=[inside],
            tol=1e-12,
        )
        np.testing.assert_allclose(l1_ball(1.0)(x), best.x[:5] - best.x[5:], atol=1e-5)


@given(x=smooth_rows)
def test_l1_ball_is_feasible_and_keeps_what_is_inside(x64, x):
    y = np.asarray(ball(x))
    assert (np.abs(y).sum(axis=1) <= 4 * (1 + 1e-12)).all()
    inside = np.abs(x).sum(axis=1) <= 4
    np.testing.assert_array_equal(y[inside], x[inside])


def test_simplex_in_float32_with_a_large_offset():
    y = np.asarray(simplex(1.0)(jnp.linspace(0, 1, 1000, dtype=jnp.float32) + 1e4))
    assert abs(y.sum() - 1) < 1e-5


def test_chain_applies_from_left_to_right():
    x = jnp.array([[0.1, 0.9, 0.3]])
    np.testing.assert_array_equal(chain(threshold(0.2), set_columns([0]))(x), [[1, 1, 1]])
    np.testing.assert_array_equal(chain(set_columns([0], 0.1), threshold(0.2))(x), [[0, 1, 1]])
    np.testing.assert_array_equal(chain()(x), x)


def test_set_columns_with_traced_ids():
    got = jax.jit(lambda t: set_columns(t, 2.0)(jnp.zeros((1, 3))))(jnp.array([1, -1, 99]))
    np.testing.assert_array_equal(got, [[0, 2, 0]])


@pytest.mark.parametrize(
    "project", [threshold(0.1), topk(2), box(), simplex(), l1_ball(), chain(box(), topk(1))]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_projections_keep_shape_and_dtype_and_compile(project, dtype):
    x = jnp.linspace(-1, 1, 12).reshape(3, 4).astype(dtype)
    for y in (project(x), jax.jit(project)(x), jax.vmap(project)(x[None])[0]):
        assert isinstance(y, jax.Array)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_repr_is_readable():
    project = chain(topk(9, popularity=np.ones(30), forced=[1]), box(0, 5))
    expected = "chain(0=topk(budget=9, popularity=float64[30], beta=1.0, forced=[1]), 1=box(low=0, high=5))"
    assert repr(project) == expected
    assert isinstance(project, Projection)


ROW = np.zeros((1, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: threshold(np.nan), ValueError, "rho must be a finite number"),
        (lambda: topk(-1), ValueError, "budget must be an integer >= 0"),
        (lambda: topk(2.0), ValueError, "budget must be an integer >= 0"),
        (lambda: topk(True), ValueError, "budget must be an integer >= 0"),
        (lambda: topk(5)(ROW), ValueError, "budget 5 does not fit, 4 of 4 columns"),
        (lambda: jax.jit(topk(3, forced=[0, 1]))(ROW), ValueError, "budget 3 does not fit, 2 of 4"),
        (lambda: topk(1, forced=[4])(ROW), ValueError, r"forced: ids must be in \[0, 4\).*got \[4\]"),
        (lambda: jax.jit(topk(1, exclude=[-2]))(ROW), ValueError, r"exclude: ids must be .*got \[-2\]"),
        (lambda: topk(1, forced=[0.5])(ROW), TypeError, "forced: expected integer ids or a bool mask"),
        (
            lambda: topk(1, forced=np.ones(3, bool))(ROW),
            ValueError,
            r"one entry per column, \(4,\), got \(3,\)",
        ),
        (lambda: topk(1, forced=[[0]])(ROW), ValueError, r"got shape \(1, 1\)"),
        (lambda: topk(1, popularity=np.ones(3))(ROW), ValueError, r"popularity must be \(4,\)"),
        (lambda: topk(1, popularity=-np.ones(4)), ValueError, "popularity must be finite counts >= 0"),
        (lambda: topk(1)(ROW.astype(int)), TypeError, "expected a float array, got int"),
        (lambda: box(2.0, 1.0), ValueError, "expected low <= high"),
        (lambda: box(np.nan, 1.0), ValueError, "expected low <= high"),
        (lambda: simplex(0.0), ValueError, "radius must be a finite number > 0"),
        (lambda: l1_ball(np.inf), ValueError, "radius must be a finite number > 0"),
        (lambda: chain(0.2), TypeError, "expected projections"),
    ],
)
def test_bad_input_is_a_clear_error(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_column_mask_takes_every_form():
    np.testing.assert_array_equal(column_mask(None, 3), [False] * 3)
    np.testing.assert_array_equal(column_mask([], 3), [False] * 3)
    np.testing.assert_array_equal(column_mask((2, 2, -1), 3), [False, False, True])
    np.testing.assert_array_equal(
        jax.jit(lambda t: column_mask(t, 3))(jnp.array([7, 0, -1, -3])), [True, False, False]
    )
