"""The outer loop against a NumPy transcription of Algorithm 1, and what it does when training breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bilevel.descend import DescendState, descend, normalize_rows
from bilevel.project import box, column_mask, threshold, topk

F, I, T = 3, 5, 6
RHO = 0.2
gradients = hnp.arrays(np.float32, (T, F, I), elements=st.floats(-3, 3, width=32, allow_subnormal=False))
scores = hnp.arrays(np.float32, T, elements=st.sampled_from([0.0, 0.1, 0.1, 0.5, np.nan]))
START = np.linspace(0, 1, F * I, dtype=np.float32).reshape(F, I)


def oracle(x, gradients, scores, *, rate, momentum, project, frozen, normalize):
    """Algorithm 1 of section 5.2, line by line, in the order of the specification."""
    best, best_score, best_step, margin = x, -np.inf, -1, np.inf
    velocity = np.zeros_like(x)
    for t, (g, score) in enumerate(zip(gradients, scores)):
        g = np.where(frozen, np.float32(0), g)
        if normalize:
            g = g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-12)
        if score > best_score:
            best, best_score, best_step = x, score, t
        velocity = np.float32(momentum) * velocity + g
        x = x - np.float32(rate) * velocity
        margin = min(margin, np.abs(x - RHO).min())
        x = project(x)
    return x, best, best_score, best_step, margin


def play(outer, x0, gradients, scores, **options):
    def body(state, inputs):
        return outer.step(state, inputs[0], inputs[1], **options), None

    return jax.lax.scan(body, outer.init(x0), (gradients, scores))[0]


OUTERS = {
    (normalize, name): descend(0.5, momentum=0.9, normalize_rows=normalize, project=project)
    for normalize in (True, False)
    for name, project in {"box": box(-1, 1), "threshold": threshold(RHO)}.items()
}
PLAY = {
    k: jax.jit(lambda x, g, s, frozen, outer=outer: play(outer, x, g, s, frozen=frozen))
    for k, outer in OUTERS.items()
}
NUMPY = {"box": lambda x: np.clip(x, -1, 1), "threshold": lambda x: (x > np.float32(RHO)).astype(np.float32)}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", ["box", "threshold"])
@given(g=gradients, s=scores, column=st.integers(-1, I - 1))
def test_it_is_algorithm_1(name, normalize, g, s, column):
    frozen = np.arange(I) == column
    state = PLAY[normalize, name](START, g, s, frozen)
    x, best, best_score, best_step, margin = oracle(
        START, g, s, rate=0.5, momentum=0.9, project=NUMPY[name], frozen=frozen, normalize=normalize
    )
    if name == "box" or margin > 1e-5:  # at the threshold itself, rounding may turn a cell over
        np.testing.assert_allclose(state.x, x, atol=2e-6)
        np.testing.assert_allclose(state.best_x, best, atol=2e-6)
    np.testing.assert_array_equal(state.best_score, np.float32(best_score))
    assert int(state.best_step) == best_step
    assert int(state.step) == T
    assert not state.failed


def test_the_best_is_the_iterate_that_was_scored():
    outer = descend(1.0)
    state = outer.init(jnp.array([0.0, 0.0]))
    seen = []
    for t, score in enumerate([0.0, 0.3, 0.3, 0.1]):
        seen.append(state.x)
        state = outer.step(state, jnp.array([1.0, -1.0]), score)
        best = [0, 1, 1, 1][t]  # 0.3 comes twice: strictly better is needed, the first stays
        np.testing.assert_array_equal(state.best_x, seen[best])
        assert int(state.best_step) == best
    np.testing.assert_array_equal(state.x, [-4, 4])  # the last update was never scored


def test_a_run_that_scores_nothing_returns_the_first_iterate():
    state = play(descend(1.0), jnp.ones(2), jnp.ones((3, 2)), jnp.zeros(3))
    assert int(state.best_step) == 0
    np.testing.assert_array_equal(state.best_x, [1, 1])
    state = play(descend(1.0), jnp.ones(2), jnp.ones((3, 2)), jnp.full(3, jnp.nan))
    assert (int(state.best_step), float(state.best_score)) == (-1, -np.inf)
    np.testing.assert_array_equal(state.best_x, [1, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_gradient_stops_the_run_but_its_iterate_is_scored(bad):
    outer = descend(1.0, momentum=0.5)
    g = np.ones((5, 2), np.float32)
    g[2, 1] = bad
    state = play(outer, jnp.zeros(2), g, jnp.array([0.1, 0.2, 0.9, 0.95, 0.99]))
    before = play(outer, jnp.zeros(2), g[:2], jnp.array([0.1, 0.2]))
    assert bool(state.failed)
    assert not before.failed
    np.testing.assert_array_equal(state.x, before.x)
    jax.tree.map(np.testing.assert_array_equal, state.opt, before.opt)
    assert int(state.step) == 2  # where it broke
    assert float(state.best_score) == np.float32(0.9)  # later scores are of a run that has ended
    assert int(state.best_step) == 2
    np.testing.assert_array_equal(state.best_x, before.x)


def test_a_step_that_overflows_is_a_failure_also_behind_a_projection():
    state = play(descend(1e30, project=threshold(0.2)), jnp.zeros(2), jnp.full((1, 2), 1e30), jnp.ones(1))
    assert bool(state.failed)
    np.testing.assert_array_equal(state.x, [0, 0])


def test_a_broken_gradient_in_a_frozen_cell_does_no_harm():
    g = jnp.array([[jnp.nan, 1.0]])
    state = play(
        descend(1.0, normalize_rows=True), jnp.zeros(2), g, jnp.ones(1), frozen=jnp.array([True, False])
    )
    np.testing.assert_array_equal(state.x, [0, -1])
    assert not state.failed


def test_any_optax_optimizer(rng):
    g, s, x0 = rng.normal(size=(T, I)).astype(np.float32), jnp.zeros(T), jnp.zeros(I)
    adam = optax.adam(0.1)
    state = play(descend(optimizer=adam, project=box(-0.15, 0.15)), x0, g, s)
    x, opt = x0, adam.init(x0)
    for t in range(T):
        updates, opt = adam.update(g[t], opt, x)
        x = jnp.clip(optax.apply_updates(x, updates), -0.15, 0.15)
    np.testing.assert_allclose(state.x, x, atol=1e-6)


def test_a_schedule_and_a_traced_rate():
    g, s = jnp.ones((2, I)), jnp.zeros(2)
    scheduled = play(descend(lambda count: 1.0 / (1 + count)), jnp.zeros(I), g, s)
    np.testing.assert_allclose(scheduled.x, np.full(I, -1.5), rtol=1e-6)
    run = jax.vmap(lambda rate, momentum: play(descend(rate, momentum=momentum), jnp.zeros(I), g, s).x[0])
    np.testing.assert_allclose(run(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.5])), [-2, -5])


def test_a_step_may_be_given_the_memory_of_the_state():
    outer, x0 = descend(0.5, momentum=0.9), jnp.ones((3, 4))
    kept = outer.step(outer.init(x0), x0, 1.0)
    given = jax.jit(outer.step, donate_argnums=0)(outer.init(x0.copy()), x0, 1.0)
    jax.tree.map(np.testing.assert_array_equal, given, kept)


def test_vmap_over_attackers_and_targets_equals_a_loop(rng):
    outer = descend(0.5, momentum=0.9, normalize_rows=True)
    g = rng.normal(size=(4, T, F, I)).astype(np.float32)
    s = rng.random((4, T)).astype(np.float32)
    targets = np.array([0, 2, 4, 4])

    def run(g, s, target):
        project = topk(2, forced=target[None])
        frozen = column_mask(target[None], I)
        return play(outer, project(START), g, s, project=project, frozen=frozen)

    many = jax.jit(jax.vmap(run))(g, s, targets)
    for n in range(4):
        one = run(g[n], s[n], targets[n])
        np.testing.assert_array_equal(many.best_x[n], one.best_x)
        np.testing.assert_array_equal(many.x[n], one.x)
        assert (np.asarray(one.x)[:, targets[n]] == 1).all()


def test_trees_and_dtypes_ride_through():
    x0 = {"a": jnp.zeros((2, 2), jnp.bfloat16), "b": 1.0}
    outer = descend(1.0, momentum=0.5, project=box(-0.5, 2.0))
    state = play(
        outer, x0, {"a": jnp.ones((1, 2, 2)), "b": jnp.ones(1)}, jnp.zeros(1), frozen={"a": True, "b": False}
    )
    assert state.x["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.x["a"].astype(float), np.zeros((2, 2)))
    assert float(state.x["b"]) == 0.0
    assert isinstance(state, DescendState)


def test_no_compilation_is_wasted_on_weak_types():
    outer = descend(1.0)
    step = jax.jit(lambda s: outer.step(s, jax.tree.map(jnp.ones_like, s.x), 0.5))
    state = outer.init({"w": 1.0})
    for _ in range(3):
        state = step(state)
    assert step._cache_size() == 1


def test_normalize_rows_of_extreme_rows():
    g = jnp.array([[3e30, 4e30], [3e-8, 4e-8], [0, 0], [3e-25, 4e-25]], jnp.float32)
    expected = [[0.6, 0.8], [0.6, 0.8], [0, 0], [3e-13, 4e-13]]  # the last is under the floor of 1e-12
    np.testing.assert_allclose(normalize_rows(g), expected, rtol=1e-6)


ROWS = jnp.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (descend, ValueError, "give a learning_rate"),
        (lambda: descend(1.0, optimizer=optax.sgd(1.0)), ValueError, "no effect on a given optimizer"),
        (
            lambda: descend(momentum=0.5, optimizer=optax.sgd(1.0)),
            ValueError,
            "no effect on a given optimizer",
        ),
        (lambda: descend(0.0), ValueError, "learning_rate must be a finite number > 0, got 0.0"),
        (lambda: descend(np.nan), ValueError, "learning_rate must be a finite number > 0, got nan"),
        (lambda: descend(1.0, momentum=1.0), ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: descend(1.0).init(jnp.arange(3)), TypeError, "must be floating, got a leaf of int32"),
        (lambda: descend(1.0, normalize_rows=True).init(1.0), ValueError, "needs leaves with rows"),
        (
            lambda: descend(1.0).step(descend(1.0).init(ROWS), jnp.zeros(3), 0.0),
            ValueError,
            r"expected shape \(2, 3\)",
        ),
        (
            lambda: descend(1.0).step(descend(1.0).init(ROWS), (ROWS,), 0.0),
            ValueError,
            "expected a tree like x",
        ),
        (
            lambda: descend(1.0, project=lambda x: x[:1]).step(descend(1.0).init(ROWS), ROWS, 0.0),
            ValueError,
            r"expected shape \(2, 3\) .*got \(1, 3\)",
        ),
        (
            lambda: descend(1.0).step(descend(1.0).init(ROWS), ROWS, 0.0, frozen=np.ones(2, bool)),
            ValueError,
            r"frozen must broadcast to \(2, 3\)",
        ),
    ],
)
def test_bad_input_is_a_clear_error(call, error, text):
    with pytest.raises(error, match=text):
        call()
