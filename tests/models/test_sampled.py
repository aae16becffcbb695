"""Models of sampled pairs: who is drawn, and the identities their papers state (ALGORITHMS 3.4, 3.6, 3.12, 3.13)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bilevel
from models import bpr, cml, mf, ncf, pairs, pmf
from models.data import Interactions
from models.data.sample import clicked, lists, marked, negatives

U, I = 5, 9
NONE = jnp.zeros((0, I))


def ctx(step=0, batch=None):
    return bilevel.Ctx(jax.random.key(3), step, batch)


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((U, I)) < 0.4).astype(float))


# ------------------------------------------------------------------------------------------------ negatives


DRAW = jax.jit(lambda train, key: negatives(key, lists(train), jnp.arange(U), 40, I))


@given(seed=st.integers(0, 2**31 - 1), share=st.floats(0.0, 0.95))
def test_negatives_are_never_clicked(seed, share):
    matrix = np.random.default_rng(seed).random((U, I)) < share
    train = Interactions.from_dense(matrix.astype(float), capacity=U * I)
    drawn = np.asarray(DRAW(train, jax.random.key(seed)))
    for user in range(U):
        if not matrix[user].all():
            assert not matrix[user, drawn[user]].any()
    assert drawn.min() >= 0
    assert drawn.max() < I


def test_negatives_are_uniform(train):
    known = lists(train)
    drawn = np.asarray(negatives(jax.random.key(0), known, jnp.arange(U), 20_000, I))
    matrix = np.asarray(train.dense()) > 0
    for user in range(U):
        free = np.flatnonzero(~matrix[user])
        seen = np.bincount(drawn[user], minlength=I)[free]
        expected = seen.sum() / free.size
        assert np.sum((seen - expected) ** 2) / expected < 45  # at most 8 degrees of freedom, p < 1e-6


def test_membership_and_marks_equal_the_matrix(train):
    known, matrix = lists(train), np.asarray(train.dense()) > 0
    everything = jnp.broadcast_to(jnp.arange(I), (U, I))
    np.testing.assert_array_equal(clicked(known, jnp.arange(U), everything, I), matrix)
    who = jnp.array([2, 0, 2])  # a user may be asked for twice
    np.testing.assert_array_equal(marked(known, who, I), matrix[np.asarray(who)])


def test_lists_of_a_sequence_have_no_repeats():
    visits = Interactions.from_arrays(
        [0, 0, 0, 1], [4, 1, 4, 2], time=[1, 2, 3, 1], items=6, track="sequence"
    )
    known = lists(visits)
    assert known.start.tolist() == [0, 2, 3]
    assert known.item[:3].tolist() == [1, 4, 2]


def test_an_epoch_sees_every_event_and_every_fake_cell_once(train, rng):
    x = jnp.asarray(rng.random((3, I)))
    data = pairs.prepare(train, name="x")
    batches = bilevel.minibatches(train.capacity, 4)
    seen = np.zeros((U + 3, I))
    for step in range(batches.per_epoch):
        found = pairs.draw(data, x, ctx(step, batches.draw(jax.random.key(0), step)), 1)
        np.add.at(seen, (np.asarray(found.user), np.asarray(found.item)), np.asarray(found.weight))
    np.testing.assert_allclose(seen[:U], train.dense())
    np.testing.assert_allclose(seen[U:], x, rtol=1e-6)


def test_a_fake_users_negatives_are_items_it_did_not_click(train):
    x = jnp.ones((2, I)).at[0, 3].set(0).at[1, 5].set(0)
    found = pairs.draw(pairs.prepare(train, name="x"), x, ctx(), 6)
    fake = np.asarray(found.user) >= U
    lacks = np.where(np.asarray(found.user)[fake] == U, 3, 5)
    assert (np.asarray(found.negative)[fake] == lacks[:, None]).mean() > 0.8  # 16 tries at 1 of 9: 85%


# ------------------------------------------------------------------------------------------------ models


def test_gmf_with_unit_weights_is_the_dot_product(train):
    model = ncf.gmf(factors=3, scale=1.0)
    params = model.init(jax.random.key(0), U, I, 0)
    params["last"] = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
    np.testing.assert_allclose(
        ncf.score(params, jnp.arange(U)), params["user"] @ params["item"].T, rtol=1e-5, atol=1e-6
    )


def test_neumf_with_a_dead_tower_is_gmf():
    model = ncf.neumf(factors=3, tower=2, hidden=(4,), scale=1.0)
    params = model.init(jax.random.key(0), U, I, 0)
    alone = {name: params[name] for name in ("user", "item", "fake")}
    alone["last"] = {"kernel": params["last"]["kernel"][:3], "bias": params["last"]["bias"]}
    params["last"]["kernel"] = params["last"]["kernel"].at[3:].set(0)
    np.testing.assert_allclose(
        ncf.score(params, jnp.arange(U)), ncf.score(alone, jnp.arange(U)), rtol=1e-5, atol=1e-6
    )


def test_the_tower_mixes_user_and_item(x64):
    """C19: no dot product of towers: the score matrix has a rank above the widths of all embeddings together."""
    model = ncf.neumf(factors=1, tower=1, hidden=(16,), scale=1.0)
    params = model.init(jax.random.key(1), 12, 11, 0)
    scores = ncf.score(params, jnp.arange(12))
    values = np.linalg.svd(scores, compute_uv=False)
    assert (values > 1e-8 * values[0]).sum() > 4


@pytest.mark.parametrize("hidden", [(), (4, 3)])
def test_scores_of_neumf_are_what_its_loss_sees(x64, hidden):
    """The score of every pair, against the network applied to one concatenated pair after the other."""
    params = ncf.neumf(factors=3, tower=2, hidden=hidden, scale=1.0).init(jax.random.key(0), U, I, 0)
    scores = ncf.score(params, jnp.arange(U))
    for u in range(U):
        for i in range(I):
            h = jnp.concatenate([params["tower_user"][u], params["tower_item"][i]])
            h = jnp.concatenate([params["user"][u] * params["item"][i], ncf.through(params, h)])
            one = h @ params["last"]["kernel"][:, 0] + params["last"]["bias"][0]
            np.testing.assert_allclose(scores[u, i], one, rtol=1e-10)


def test_cml_is_zero_where_every_negative_is_far_enough(x64):
    margin, near = 0.5, 0.3
    params = {"user": jnp.zeros((1, 1)), "fake": jnp.zeros((0, 1)), "item": jnp.full((2, 1), near)}
    train = Interactions.from_arrays([0], [0], users=1, items=2)
    model = cml.cml(factors=1, margin=margin, l2=0.0, negatives=2)
    for far, expected in ((np.sqrt(margin + near**2) + 1e-9, 0.0), (near, margin)):
        at = {**params, "item": params["item"].at[1].set(far)}
        loss = model.loss(at, jnp.zeros((0, 2)), model.prepare(train), ctx())
        np.testing.assert_allclose(loss, expected, atol=1e-8)


def test_cml_scores_are_distances(rng):
    params = {"user": jnp.asarray(rng.normal(size=(U, 3))), "item": jnp.asarray(rng.normal(size=(I, 3)))}
    gap = params["user"][:, None] - params["item"]
    np.testing.assert_allclose(cml.score(params, jnp.arange(U)), -jnp.sum(gap**2, -1), rtol=1e-4, atol=1e-5)


def test_the_original_cml_stays_in_the_unit_ball(train):
    from models.train import fit

    fitted = fit(cml.preset("original", factors=3, epochs=5, learning_rate=0.5), train, jax.random.key(0))
    for rows in (fitted.params["user"], fitted.params["item"]):
        assert jnp.linalg.norm(rows, axis=1).max() <= 1 + 1e-6


def test_bpr_raises_clicked_items_above_the_others(train):
    from models.train import fit

    fitted = fit(bpr.bpr(factors=8, learning_rate=0.05, epochs=200, batch=None), train, jax.random.key(0))
    scores, matrix = np.asarray(fitted.scores(jnp.arange(U))), np.asarray(train.dense()) > 0
    won = [
        (scores[u][matrix[u]][:, None] > scores[u][~matrix[u]]).mean()
        for u in range(U)
        if 0 < matrix[u].sum() < I
    ]
    assert np.mean(won) > 0.97


def test_pmf_and_mf_complete_a_matrix_of_low_rank(rng):
    from models.train import fit

    truth = np.outer(rng.uniform(1, 2, 20), rng.uniform(1, 2.4, 15))
    seen = rng.random(truth.shape) < 0.7
    user, item = np.nonzero(seen)
    ratings = Interactions.from_arrays(user, item, truth[seen], users=20, items=15, track="explicit")
    plain = fit(mf.mf(factors=1, learning_rate=1.0, epochs=400, batch=None), ratings, jax.random.key(0))
    error = np.asarray(plain.scores(jnp.arange(20))) * 5 - truth
    assert np.sqrt(np.mean(error[~seen] ** 2)) < 0.25
    model = pmf.pmf(factors=2, learning_rate=1.0, l2=1e-3, epochs=600, batch=None)
    centered = np.asarray(fit(model, ratings, jax.random.key(0)).scores(jnp.arange(20)))
    assert np.corrcoef(centered[~seen], truth[~seen])[0, 1] > 0.9
