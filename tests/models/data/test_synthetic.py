"""The toy of section 3 of RevAdv, and the large generator."""

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from models.data import toy
from models.data.synthetic import expected_density, zipf


@pytest.fixture(scope="module")
def draws():
    return [toy(jax.random.key(seed)) for seed in range(10)]


def test_toy_sparsity(draws):
    sparsity = [1 - float(np.mean(data.dense)) for data in draws]
    assert all(0.87 <= s <= 0.89 for s in sparsity)
    clicks = [float(d.train.count) + 900 + float(d.initial.sum()) for d in draws]
    assert np.mean(clicks) / 300_000 == pytest.approx(expected_density(20, 5.0), abs=0.004)


def test_expected_density_against_quadrature():
    def law(s):
        return scipy.stats.chi2.pdf(s, 20) * scipy.stats.norm.sf(5 / np.sqrt(s))

    assert expected_density(20, 5.0) == pytest.approx(scipy.integrate.quad(law, 0, np.inf)[0], rel=1e-3)


def test_toy_holds_out_one_positive_of_each_user(draws):
    for data in draws[:3]:
        data.train.validate()
        data.test.validate(empty_users="error")
        assert int(data.test.count) == 900
        assert not np.any(np.asarray(data.dense) * np.asarray(data.test.dense()))
        assert set(np.unique(data.initial)) == {0.0, 1.0}
        assert np.asarray(data.initial).any(1).all()
        assert data.targets.tolist() == [0]
        # Fake rows come from the law of the real ones.
        assert float(data.initial.mean()) == pytest.approx(float(data.dense.mean()), abs=0.03)


def test_held_out_item_is_uniform_among_the_positives(draws):
    place = []
    for data in draws:
        train, held = np.asarray(data.dense), np.asarray(data.test.item)
        before = np.array([train[u, : held[u]].sum() for u in range(900)])
        place.extend((before + 0.5) / (train.sum(1) + 1))
    assert np.mean(place) == pytest.approx(0.5, abs=0.015)
    assert np.std(place) == pytest.approx(12**-0.5, abs=0.015)


def test_toy_is_pure_and_vmaps_over_keys(draws):
    again = toy(jax.random.key(3))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(draws[3]), jax.tree.leaves(again)))
    sizes = {"users": 20, "fakes": 4, "items": 12, "rank": 3, "threshold": 1.0}
    keys = jax.random.split(jax.random.key(0), 5)
    batch = jax.jit(jax.vmap(lambda key: toy(key, **sizes)))(keys)
    for k in range(5):
        one = toy(keys[k], **sizes)
        assert all(np.array_equal(a, b[k]) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(batch)))


def test_toy_is_the_same_in_double_precision_mode():
    sizes = {"users": 20, "fakes": 4, "items": 12, "rank": 3, "threshold": 1.0}
    single = toy(jax.random.key(5), **sizes)
    with jax.enable_x64(True):
        double = toy(jax.random.key(5), **sizes)
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double)):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def test_rows_without_a_positive_are_drawn_again():
    data = toy(jax.random.key(0), users=300, fakes=50, items=10, rank=3, threshold=4.0)
    assert expected_density(3, 4.0) * 10 < 0.8  # about half the rows are empty at the first draw
    assert np.asarray(data.initial).any(1).all()
    assert int(data.test.count) == 300


def test_toy_beyond_its_capacity_is_nan_in_a_trace():
    traced = jax.jit(lambda key: toy(key, users=30, fakes=1, items=10, rank=3, threshold=1.0, capacity=8))
    assert np.isnan(traced(jax.random.key(0)).train.weight).all()


def test_zipf_has_the_size_and_shape_asked_for():
    data = zipf(3, users=600, items=500, density=0.03).validate()
    counts = np.sort(np.asarray(data.popularity()))[::-1]
    assert data.capacity == round(0.03 * 600 * 500)
    assert counts[:25].sum() > 0.2 * counts.sum()  # 5% of the items hold more than a fifth of the clicks
    again = zipf(jax.random.key(3), users=600, items=500, density=0.03)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(data), jax.tree.leaves(again)))


def test_zipf_tastes_can_be_learned():
    def leading(taste):
        x = np.asarray(zipf(3, users=600, items=500, density=0.06, topics=4, taste=taste).dense())
        expected = x.sum(1, keepdims=True) * x.sum(0) / x.sum()  # by activity and popularity alone
        return np.linalg.svd((x - expected) / np.sqrt(expected + 1e-9), compute_uv=False)[:3].min()

    assert leading(1.5) > 1.15 * leading(0.0)


def test_zipf_fills_dense_corners():
    data = zipf(0, users=30, items=20, density=0.3, exponent=3.0, topics=2).validate()
    assert data.capacity == 180
