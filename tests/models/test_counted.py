"""Models that count: ItemPop, CoVisitation, ItemCF (ALGORITHMS 3.7, 3.11), by hand and by brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import covisitation, itemcf, itempop
from models.data import Interactions, Profiles, inject
from models.train import fit, top_k

KEY = jax.random.key(0)


def sequence(*visits, items=6):
    user = np.repeat(np.arange(len(visits)), [len(v) for v in visits])
    flat = np.concatenate(visits)
    return Interactions.from_arrays(
        user, flat, time=np.arange(flat.size), users=len(visits), items=items, track="sequence"
    )


def strengths(*visits, items=6, **options):
    data = covisitation.covisitation(**options).prepare(sequence(*visits, items=items))
    S = np.zeros((items, items))
    real = int(data.pairs.row_start[-1])
    np.add.at(
        S,
        (np.asarray(data.pairs.row)[:real], np.asarray(data.pairs.col)[:real]),
        np.asarray(data.value)[:real],
    )
    return S


def test_alternating_clicks_are_co_visits_and_repeats_are_none():
    S = strengths([3, 1, 3, 1], normalization="none")
    assert S[3, 1] == S[1, 3] == 3
    assert S.sum() == 6
    assert strengths([3, 3, 3], [0, 1], normalization="none")[3].sum() == 0


def test_visits_of_two_users_do_not_follow_each_other():
    assert strengths([0, 1], [2, 3], normalization="none")[1, 2] == 0


@pytest.mark.parametrize("normalization", ["cosine", "none", "target"])
def test_covisitation_equals_brute_force(rng, normalization):
    visits = [rng.integers(0, 6, rng.integers(1, 15)) for _ in range(5)]
    count = np.bincount(np.concatenate(visits), minlength=6)
    W = np.zeros((6, 6))
    for v in visits:
        for a, b in itertools.pairwise(v):
            if a != b:
                W[a, b] += 1
                W[b, a] += 1
    one = np.maximum(count, 1)
    S = {"cosine": W / np.sqrt(np.outer(one, one)), "none": W, "target": W / one}[normalization]
    expected = np.stack([sum(S[i] for i in v[-3:]) for v in visits])
    fitted = fit(covisitation.covisitation(normalization=normalization, history=3), sequence(*visits), KEY)
    np.testing.assert_allclose(fitted.scores(jnp.arange(5)), expected, rtol=1e-5, atol=1e-6)


def test_co_visits_are_poisoned_by_injected_sequences():
    clean = sequence([0, 1], [1, 2], items=4)
    attack = Profiles.from_clicks([[3, 1, 3, 1]], targets=[3], items=4)
    poisoned = inject(clean, attack)
    lists = [
        top_k(fit(covisitation.covisitation(), d, KEY), jnp.array([0]), 1, exclude=clean)
        for d in (clean, poisoned)
    ]
    assert [int(found[0, 0]) for found in lists] == [2, 3]


def test_order_is_needed():
    clicks = Interactions.from_arrays([0, 0], [1, 2])
    with pytest.raises(ValueError, match="track='sequence'"):
        covisitation.covisitation().prepare(clicks)
    with pytest.raises(ValueError, match="inject click sequences"):
        fit(covisitation.covisitation(), sequence([0, 1]), KEY, fakes_rows=jnp.ones((1, 6)))


def test_itempop_counts_repeats_of_a_sequence_and_fake_rows():
    assert fit(itempop.itempop(), sequence([0, 0, 2]), KEY).scores(jnp.array([0]))[0].tolist() == [
        2,
        0,
        1,
        0,
        0,
        0,
    ]
    clicks = Interactions.from_arrays([0, 1], [1, 1], items=3)
    fitted = fit(itempop.itempop(), clicks, KEY, fakes_rows=jnp.array([[1.0, 0.0, 1.0]]))
    assert fitted.scores(jnp.array([1]))[0].tolist() == [1, 2, 1]


@pytest.mark.parametrize("fakes", [0, 3])
def test_itemcf_equals_brute_force(rng, fakes):
    X, x = (rng.random((9, 8)) < 0.4).astype(float), (rng.random((fakes, 8)) < 0.5).astype(float)
    X[:, 5], x[:, 5] = 0, 0  # 0 / 0
    X[:, 6] = X[:, 2]
    x[:, 6] = x[:, 2]
    both = np.concatenate([X, x])
    inter = both.T @ both
    count = both.sum(0)
    union = count[:, None] + count - inter
    S = np.where(union > 0, inter / np.where(union > 0, union, 1), 0)
    assert S[2, 6] == 1
    np.fill_diagonal(S, 0)
    for i in range(8):
        S[i, np.argsort(-S[i], kind="stable")[3:]] = 0
    fitted = fit(itemcf.itemcf(neighbors=3), Interactions.from_dense(X), KEY, fakes_rows=jnp.asarray(x))
    np.testing.assert_allclose(fitted.scores(jnp.arange(9)), X @ S, rtol=1e-5, atol=1e-6)


def test_itemcf_is_differentiable_in_a_relaxed_row(rng, x64):
    """Central differences of a relaxed row's values, which move similarities and not which neighbors are kept."""
    X, x = (rng.random((9, 8)) < 0.4).astype(float), jnp.asarray(rng.uniform(0.1, 0.9, (2, 8)))
    model, weight = itemcf.itemcf(neighbors=3), jnp.asarray(rng.normal(size=(9, 8)))
    data = model.prepare(Interactions.from_dense(X))
    value = jax.jit(lambda x: jnp.sum(weight * model.scores({}, x, data, jnp.arange(9))))
    slope = jax.grad(value)(x)
    ways = jnp.eye(16).reshape(16, 2, 8) * 1e-6
    central = [(value(x + way) - value(x - way)) / 2e-6 for way in ways]
    np.testing.assert_allclose(slope.ravel(), central, rtol=1e-6, atol=1e-8)
    assert np.abs(slope).min() > 0


@pytest.mark.parametrize("heavy", [0, 2, 100], ids=["all counted", "both ways", "all multiplied"])
def test_users_who_clicked_both_are_counted_in_stretches_and_multiplied_in_rows(rng, monkeypatch, heavy):
    """In pieces that are smaller than a user and than the catalog, with users and items without clicks."""
    for name, value in (("HEAVY", heavy), ("TILE", 2), ("TILES", 3), ("ROWS", 2)):
        monkeypatch.setattr(itemcf, name, value)

    @jax.jit
    def ours(train):
        clicks = itemcf.sorted_by_weight(itemcf.prepare(train).cells.observed)
        blocks = [itemcf.together(clicks, jnp.asarray(first), 4) for first in (0, 4, 8)]
        return jnp.concatenate(blocks), clicks.heavy

    for trial in range(30):
        X = (rng.random((9, 11)) < rng.uniform(0.2, 0.9, (9, 1))).astype(int)
        X[4], X[:, 7] = trial % 2, 0
        user, item = np.nonzero(X)
        train = Interactions.from_arrays(user, item, users=9, items=11).pad(99)
        found, many = ours(train)
        np.testing.assert_array_equal(found, np.pad(X.T @ X, ((0, 1), (0, 0))))
        assert int(many) == np.sum(X.sum(1) * heavy > 11)


@pytest.mark.slow
def test_blocks_of_items_change_nothing(rng, monkeypatch):
    train = Interactions.from_dense((rng.random((9, 11)) < 0.4).astype(float))
    model = itemcf.itemcf(neighbors=4)
    none = jnp.zeros((0, 11))
    whole = model.scores({}, none, model.prepare(train), jnp.array([3, 0, 3]))
    monkeypatch.setattr(itemcf, "CELLS", 44)  # 4 items at a time
    monkeypatch.setattr(itemcf, "HEAVY", 2)
    np.testing.assert_allclose(model.scores({}, none, model.prepare(train), jnp.array([3, 0, 3])), whole)
