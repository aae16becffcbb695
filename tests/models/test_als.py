"""ALS: half steps against NumPy, monotone objective, the fixed point (C2), RevAdv's partial derivative (C5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import als, train, wrmf
from models.data import Interactions

U, I, F, D = 30, 20, 5, 4
WEIGHT, L2 = 20.0, 0.3


@pytest.fixture
def drawn(x64, rng):
    matrix = (rng.random((U, I)) < 0.25).astype(float)
    x = rng.uniform(0.1, 0.9, (F, I))
    observed = rng.random((F, I)) < 0.4
    params = {
        "user": rng.normal(size=(U, D)),
        "item": rng.normal(size=(I, D)),
        "fake": rng.normal(size=(F, D)),
    }
    model = als.als(factors=D, weight=WEIGHT, l2=L2)
    data = model.prepare(Interactions.from_dense(matrix))._replace(observed=jnp.array(observed))
    return model, data, matrix, *jax.tree.map(jnp.array, (x, observed, params))


def solved(B, target, weights):
    """The half step by the letter: one ridge regression a row."""
    rows = []
    for t, c in zip(np.asarray(target), np.asarray(weights), strict=True):
        normal = B.T @ (c[:, None] * B) + L2 * np.eye(D)
        rows.append(np.linalg.solve(normal, B.T @ (c * t)))
    return np.stack(rows)


def weights_of(matrix, observed):
    return np.where(matrix > 0, WEIGHT, 1.0), np.where(observed, WEIGHT, 1.0)


def test_a_sweep_is_three_half_steps_of_ridge_regression(drawn):
    model, data, matrix, x, observed, params = drawn
    real, fake = weights_of(matrix, observed)
    Q = np.asarray(params["item"])
    user, other = solved(Q, matrix, real), solved(Q, x, fake)
    G, target = np.concatenate([user, other]), np.concatenate([matrix, x])
    item = solved(G, target.T, np.concatenate([real, fake]).T)
    swept = jax.jit(als.sweep, static_argnames=("weight", "l2"))(params, x, data, None, weight=WEIGHT, l2=L2)
    for name, expected in (("user", user), ("fake", other), ("item", item)):
        np.testing.assert_allclose(swept[name], expected, rtol=1e-10)


@pytest.mark.slow
def test_blocks_of_rows_give_the_same_numbers(drawn, monkeypatch):
    model, data, _, x, _, params = drawn
    whole = als.sweep(params, x, data, None, weight=WEIGHT, l2=L2)
    monkeypatch.setattr(als, "BLOCK", 7 * D * D * 8)  # 7 rows at a time
    parts = jax.jit(lambda params: als.sweep(params, x, data, None, weight=WEIGHT, l2=L2))(params)
    for name in params:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)


def test_no_half_step_increases_the_objective(drawn):
    model, data, _, x, _, params = drawn
    inner = model.trainer(U, I, F)
    objective = jax.jit(lambda params: model.loss(params, x, data, inner.context(jax.random.key(0), 0)))
    w = jnp.where(data.observed, WEIGHT, 1.0)
    users = jax.jit(lambda params: {**params, **als.solve_users(params["item"], x, w, data, WEIGHT, L2)})
    items = jax.jit(lambda params: {**params, "item": als.solve_items(params, x, w, data, WEIGHT, L2)})
    values = [objective(params)]
    for _ in range(15):
        for half in (users, items):
            params = half(params)
            values.append(objective(params))
    assert np.all(np.diff(values) <= 1e-10 * values[0])
    assert values[-1] < 0.2 * values[0]


def test_the_fixed_point_is_a_stationary_point_of_wrmf(drawn):
    """C2: zero gradient of the SGD loss with the full penalty (ALS converges slowly, so the tolerance is loose)."""
    model, data, _, x, _, params = drawn
    inner = als.als(factors=D, weight=WEIGHT, l2=L2, sweeps=2000).trainer(U, I, F)
    end = jax.jit(bilevel.detached(inner))(x, params, data, jax.random.key(0))
    ctx = inner.context(jax.random.key(0), 0)
    slope = lambda params: jax.grad(wrmf.wrmf(factors=D, l2=2 * L2).loss)(params, x, data, ctx)
    norm = lambda tree: float(jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree))))
    assert norm(slope(end)) < 1e-5 * norm(slope(params))


def test_partial_derivative_is_the_closed_form_of_revadv(drawn):
    """C5: `dL/dx_i = C_i G (G'C_i G + l2 I)^-1 G' (dL/dr_i)` on the fake rows, autodiff and central differences."""
    model, data, matrix, x, observed, params = drawn
    target = 3
    trained = jax.jit(bilevel.detached(model.trainer(U, I, F)))(x, params, data, jax.random.key(0))
    outer = lambda r: -jnp.sum(jax.nn.log_softmax(r)[:, target])
    promote = lambda x: outer(model.scores(trained, x, data, jnp.arange(U)))
    autodiff = jax.jit(jax.grad(promote))(x)

    real, fake = weights_of(matrix, observed)
    C = np.concatenate([real, fake])
    G = np.concatenate([trained["user"], trained["fake"]])
    scores = model.scores(trained, x, data, jnp.arange(U))
    by_score = np.concatenate([jax.grad(outer)(scores), np.zeros((F, I))])  # no fake user's prediction counts
    closed = np.stack(
        [
            C[:, i] * (G @ np.linalg.solve(G.T @ (C[:, i, None] * G) + L2 * np.eye(D), G.T @ by_score[:, i]))
            for i in range(I)
        ],
        axis=1,
    )[U:]
    np.testing.assert_allclose(autodiff, closed, rtol=1e-9, atol=1e-12)

    step, promote = 1e-5, jax.jit(promote)
    for f, i in ((0, 0), (2, target), (4, 19)):
        move = jnp.zeros_like(x).at[f, i].set(step)
        difference = (promote(x + move) - promote(x - move)) / (2 * step)
        assert difference == pytest.approx(float(autodiff[f, i]), rel=1e-6)


def test_unrolled_through_all_sweeps_is_not_the_partial_derivative(drawn):
    model, data, _, x, _, params = drawn
    outer = lambda params, x: -jnp.sum(jax.nn.log_softmax(model.scores(params, x, data, jnp.arange(U)))[:, 0])
    inner = als.als(factors=D, weight=WEIGHT, l2=L2, sweeps=2).trainer(U, I, F)

    def gradient(solve):
        return jax.jit(jax.grad(lambda x: outer(solve(x, params, data, jax.random.key(0)), x)))(x)

    full, partial = gradient(bilevel.unrolled(inner)), gradient(bilevel.detached(inner))
    assert jnp.linalg.norm(full - partial) > 0.1 * jnp.linalg.norm(full)


def test_only_the_items_of_the_start_matter(drawn):
    model, data, _, x, _, params = drawn
    other = {**params, "user": params["user"] + 1, "fake": params["fake"] * 3}
    run = jax.jit(bilevel.detached(als.als(factors=D, sweeps=1).trainer(U, I, F)))
    first, second = (run(x, start, data, jax.random.key(0)) for start in (params, other))
    np.testing.assert_array_equal(first["item"], second["item"])


def test_fit_ranks_clicked_items_first(rng):
    matrix = (rng.random((40, 25)) < 0.15).astype(float)
    fitted = train.fit(
        als.preset("revadv-gowalla", factors=24), Interactions.from_dense(matrix), jax.random.key(0)
    )
    scores = np.asarray(fitted.scores(jnp.arange(40)))
    assert scores[matrix > 0].min() > scores[matrix == 0].max()


def test_presets_and_bad_arguments():
    assert dict(als.preset("revadv-gowalla").config) == {
        "factors": 128,
        "weight": 20.0,
        "l2": 5e-2,
        "sweeps": 10,
        "scale": 0.1,
    }
    for arguments, message in (
        ({"l2": 0.0}, "l2=0.0"),
        ({"sweeps": 0}, "sweeps=0"),
        ({"weight": 0.0}, "weight=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            als.als(**arguments)
