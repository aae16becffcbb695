"""Fitting, fine-tuning and reading recommendations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import train
from models.data import Interactions
from models.wrmf import wrmf

U, I, F = 11, 9, 2
MODEL = wrmf(factors=3, epochs=30, learning_rate=0.05)


@pytest.fixture
def clicks(rng):
    return Interactions.from_dense((rng.random((U, I)) < 0.35).astype(float))


def test_fit_is_the_models_own_inner_loop(clicks, key):
    x = jnp.full((F, I), 0.5)
    fitted = train.fit(MODEL, clicks, key, fakes_rows=x)
    init_key, train_key = jax.random.split(key)
    start = MODEL.init(init_key, U, I, F)
    solve = bilevel.unrolled(MODEL.trainer(U, I, F))
    expected = jax.jit(lambda start: solve(x, start, MODEL.prepare(clicks), train_key))(start)
    for name in expected:
        np.testing.assert_allclose(fitted.params[name], expected[name], rtol=1e-5, atol=1e-6)
    users = jnp.array([3, 3, 0])
    np.testing.assert_array_equal(
        fitted.scores(users), MODEL.scores(fitted.params, fitted.x, fitted.data, users)
    )


def test_same_sizes_compile_once(clicks, key):
    train.fit(MODEL, clicks, key)
    before = train._fit._cache_size()
    train.fit(MODEL, clicks.keep(clicks.item != 0), jax.random.key(7))
    assert train._fit._cache_size() == before


def test_warm_start_continues_from_the_given_parameters(clicks, key):
    fitted = train.fit(MODEL, clicks, key)
    again = train.fit(MODEL, clicks, jax.random.key(1), params0=fitted.params)
    ctx = MODEL.trainer(U, I, 0).final_context(key)
    loss = lambda fit: MODEL.loss(fit.params, fit.x, fit.data, ctx)
    assert loss(again) < loss(fitted)
    assert np.corrcoef(np.ravel(again.params["user"]), np.ravel(fitted.params["user"]))[0, 1] > 0.9


def test_grow_keeps_the_trained_rows(key):
    old = MODEL.init(key, U, I, 0)
    new = train.grow(MODEL, old, jax.random.key(1), users=U + 4, items=I + 1)
    assert {k: v.shape for k, v in new.items()} == {"user": (U + 4, 3), "item": (I + 1, 3), "fake": (0, 3)}
    np.testing.assert_array_equal(new["user"][:U], old["user"])
    np.testing.assert_array_equal(new["item"][:I], old["item"])
    assert np.all(np.any(new["user"][U:], axis=1))
    with pytest.raises(ValueError, match="sizes can only grow"):
        train.grow(MODEL, new, key, users=U, items=I)


def test_fit_under_jit_and_vmap_over_fake_rows(clicks, key, rng):
    rows = jnp.array((rng.random((3, F, I)) < 0.5).astype(np.float32))
    score = lambda x: train.fit(MODEL, clicks, key, fakes_rows=x).scores(jnp.arange(U))
    together = jax.jit(jax.vmap(score))(rows)
    np.testing.assert_allclose(together, jnp.stack([score(x) for x in rows]), rtol=1e-4, atol=1e-5)


def ranked(scores, banned, k):
    """Highest first, equal scores by ascending id."""
    scores = np.where(banned, -np.inf, scores)
    return np.stack([np.lexsort((np.arange(scores.shape[1]), -row))[:k] for row in scores])


def test_top_k_ranks_masks_and_blocks(clicks, key):
    fitted = train.fit(MODEL, clicks, key)
    users = jnp.array([5, 0, 5, 10, 3])
    scores, banned = np.asarray(fitted.scores(users)), np.asarray(clicks.dense())[users] > 0
    np.testing.assert_array_equal(train.top_k(fitted, users, 4), ranked(scores, np.zeros_like(banned), 4))
    for block in (1, 2, 1024):
        found = jax.jit(
            lambda users, block=block: train.top_k(fitted, users, 4, exclude=clicks, block=block)
        )(users)
        np.testing.assert_array_equal(found, ranked(scores, banned, 4))


def test_seen_reads_long_and_empty_histories(rng):
    matrix = rng.random((4, 300)) < np.array([0.9, 0.0, 0.01, 0.5])[:, None]
    data = Interactions.from_dense(matrix.astype(float)).pad(1000)
    users = jnp.array([3, 1, 0, 2, 3])
    np.testing.assert_array_equal(train.seen(data, users), matrix[users])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c, k: train.fit(MODEL, c, k, fakes_rows=jnp.zeros((F, I + 1))),
            r"expected floating \(F, 9\)",
        ),
        (lambda c, k: train.fit(MODEL, c, k, fakes_rows=jnp.zeros((F, I), int)), "dtype int32"),
        (lambda c, k: train.fit(MODEL, c, k, params0=MODEL.init(k, U, I, 1)), "models.train.grow"),
        (lambda c, k: train.top_k(train.fit(MODEL, c, k), jnp.arange(2), 0), "expected 1..9"),
        (lambda c, k: train.top_k(train.fit(MODEL, c, k), jnp.arange(2), 10), "k=10"),
    ],
)
def test_bad_calls_say_what_was_expected(clicks, key, call, message):
    with pytest.raises(ValueError, match=message):
        call(clicks, key)


def test_what_trains_by_itself_is_fitted_as_it_trains(clicks, key):
    class Hardened:
        def fit(self, data, key):
            return train.fit(MODEL, data, jax.random.fold_in(key, 1))

    own, whole = train.fit(Hardened(), clicks, key), train.fit(MODEL, clicks, jax.random.fold_in(key, 1))
    np.testing.assert_array_equal(own.params["item"], whole.params["item"])
    with pytest.raises(ValueError, match="fakes_rows given, but Hardened trains by itself"):
        train.fit(Hardened(), clicks, key, fakes_rows=jnp.zeros((F, I)))


@pytest.mark.parametrize("key", [0, jax.random.split(jax.random.key(0)), np.arange(5, dtype=np.uint32)])
def test_what_is_no_key_is_refused(clicks, key):
    with pytest.raises(TypeError, match=r"fit: key is .*expected one key, as from jax.random.key\(0\)"):
        train.fit(MODEL, clicks, key)


def test_arguments_in_another_order_are_named(clicks, key):
    with pytest.raises(
        TypeError, match=r"expected models.data.Interactions; the order is fit\(model, train, key\)"
    ):
        train.fit(MODEL, key, clicks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fit: model is Interactions; expected a recommender"):
        train.fit(clicks, clicks, key)  # type: ignore[arg-type]
