"""PCMF by thin and sparse products against its formulas on the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import pcmf
from models.data import Interactions

U, I, F, UPDATES = 9, 7, 2, 3


def dense(params, X, x, rated, center, exponent):
    """A round as the paper writes it, in NumPy: the new U, the loss and the scores that `params` had."""
    W, Y = np.concatenate([params["user"], params["fake"]]), np.concatenate([X, x])
    known = np.concatenate([X > 0, rated])
    over = lambda values, axis: np.where(known, values, 0).sum(axis) / np.maximum(known.sum(axis), 1)
    level = center * over(Y, None)
    item = center * over(Y - level, 0)
    user = center * over(Y - level - item, 1)[:, None]
    Y = np.where(known, Y - level - item - user, 0)
    loss = np.sum(np.where(known, Y - W @ (W.T @ Y), 0) ** 2)
    scores = W @ (W.T @ Y) + level + item + user
    full = np.where(known, Y, W @ (W.T @ Y))
    A = full @ full.T
    for _ in range(UPDATES):
        below = W @ (W.T @ A @ W) + A @ W @ (W.T @ W)
        q = 2 * A @ W / np.where(np.abs(below) > 1e-12, below, 1e-12)
        W = W * np.sign(q) * np.abs(q) ** exponent
    return W, loss, scores[:U]


def some(rng, *shape):
    return np.where(rng.random(shape) < 0.4, rng.integers(1, 6, shape), 0).astype(float)


@pytest.mark.parametrize("observed", [False, True], ids=["rated where above 0", "frozen"])
def test_a_round_loss_and_scores_equal_the_dense_formulas(x64, rng, observed):
    """With padding, users and items without a rating, and a fake row without one. Rounds are compared one by one: a
    whole run multiplies a difference in the last digit until nothing of it agrees, in either form.
    """

    @jax.jit
    def ours(params, train, x, rated, center):
        data = pcmf.prepare(train, center=True)._replace(center=center, observed=rated if observed else None)
        after = pcmf.refill(params, x, data, None, updates=UPDATES, exponent=0.5)
        scores = pcmf.score(pcmf.embed(params, x, data), jnp.arange(U))
        return jnp.concatenate([after["user"], after["fake"]]), pcmf.residual(params, x, data), scores

    for trial in range(40):
        X, x = some(rng, U, I), some(rng, F, I)
        X[2], X[:, 4], x[:, 4] = 0, 0, 0
        x[0] *= trial % 3 > 0
        user, item = np.nonzero(X)
        train = Interactions.from_arrays(user, item, X[user, item], users=U, items=I, track="explicit")
        params = {"user": rng.normal(size=(U, 3)), "fake": rng.normal(size=(F, 3))}
        center, rated = float(trial % 2), rng.random((F, I)) < 0.5 if observed else x > 0
        found = ours(*jax.tree.map(jnp.asarray, (params, train.pad(U * I), x, rated, center)))
        for a, b in zip(found, dense(params, X, x, rated, center, 0.5)):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.abs(b).max())


def test_the_loss_has_the_derivative_of_the_dense_loss_in_the_fake_rows(x64, rng):
    """A fake rating is a number: central differences of the dense loss, with what is rated kept."""
    X, x = some(rng, U, I), some(rng, F, I) + 0.5
    params = {"user": rng.normal(size=(U, 3)), "fake": rng.normal(size=(F, 3))}
    data = pcmf.prepare(Interactions.from_dense(X, track="explicit"), center=True)
    slope = jax.jit(jax.grad(pcmf.residual, 1))(params, jnp.asarray(x), data)
    at = lambda move: dense(params, X, x + move, x > 0, 1.0, 0.5)[1]
    for f, i in ((0, 0), (1, 3)):
        step = np.zeros((F, I))
        step[f, i] = 1e-5
        np.testing.assert_allclose(slope[f, i], (at(step) - at(-step)) / 2e-5, rtol=1e-6)


def rounds(Y, start, count):
    """Fully rated data (exact in float32, in which ratings are kept), no fake rows, nothing taken off."""
    user, item = np.indices(Y.shape).reshape(2, -1)
    train = Interactions.from_arrays(user, item, Y.ravel(), users=len(Y), items=Y.shape[1], track="explicit")
    data = pcmf.prepare(train, center=False)
    params = {"user": jnp.asarray(start), "fake": jnp.zeros((0, start.shape[1]))}
    step = lambda params, _: (
        pcmf.refill(params, jnp.zeros((0, Y.shape[1])), data, None, updates=20, exponent=0.5),
        None,
    )
    return np.asarray(
        jax.jit(lambda params: jax.lax.scan(step, params, None, length=count)[0])(params)["user"]
    )


@pytest.mark.slow
def test_rank_one_ends_at_the_projection_and_no_rank_passes_the_truncated_svd(x64, rng):
    a, b = rng.integers(1, 9, U).astype(float), rng.integers(1, 9, I).astype(float)
    u = rounds(np.outer(a, b), rng.uniform(0.1, 1, (U, 1)), 5)
    np.testing.assert_allclose(u @ u.T, np.outer(a, a) / (a @ a), rtol=1e-10)
    Y = rng.integers(1, 6, (U, I)).astype(float)
    W = rounds(Y, rng.uniform(0.1, 1, (U, 2)), 50)
    left = np.linalg.norm(np.linalg.svd(Y, compute_uv=False)[2:])
    assert left <= np.linalg.norm(Y - W @ (W.T @ Y)) < np.linalg.norm(Y)
