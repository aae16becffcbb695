"""RecNum against a list made by sorting, its bound, and who is offered what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data import Interactions
from models.evaluation.candidates import draw_candidates, recnum

U, I, C = 7, 20, 6
TARGETS = jnp.array([17, 3, 11])


@pytest.fixture(scope="module")
def train():
    matrix = np.random.default_rng(0).random((U, I)) < 0.3
    matrix[:, [3, 11, 17]] = False
    matrix[2, 11] = True  # who has clicked a target already
    return Interactions.from_dense(matrix.astype(float))


@pytest.fixture(scope="module")
def offered(train):
    return draw_candidates(jax.random.key(1), train, TARGETS, count=C, block=3)


def by_sorting(table, train, offered, k, ties):
    """The definition: sort the candidates, count the targets in the list."""
    seen, total = np.asarray(train.dense()) > 0, 0
    for u in range(U):
        items = [int(i) for i, there in zip(offered.item[u], offered.offered[u], strict=True) if there]
        items += [int(t) for t in TARGETS if not seen[u, int(t)]]
        last = lambda i: (ties == "worst" and i in TARGETS.tolist(), i)
        total += sum(i in TARGETS.tolist() for i in sorted(items, key=lambda i: (-table[u, i], *last(i)))[:k])
    return total


RUN = {
    ties: jax.jit(
        lambda table, train, offered, ties=ties: [
            recnum(lambda users: table[users], train, TARGETS, offered, k=k, ties=ties, block=3).total
            for k in (1, 3, 8)
        ]
    )
    for ties in ("id", "worst")
}


@given(seed=st.integers(0, 2**31 - 1), levels=st.sampled_from([1, 2, 5, 1000]))
@pytest.mark.parametrize("ties", ["id", "worst"])
def test_equals_sorting(train, offered, seed, levels, ties):
    table = np.random.default_rng(seed).integers(0, levels, (U, I)).astype(np.float32)
    found = RUN[ties](jnp.asarray(table), train, offered)
    assert [int(n) for n in found] == [by_sorting(table, train, offered, k, ties) for k in (1, 3, 8)]


def test_candidates_are_new_distinct_originals(train, offered):
    seen = np.asarray(train.dense()) > 0
    for u in range(U):
        items = np.asarray(offered.item[u])[np.asarray(offered.offered[u])]
        assert len(set(items.tolist())) == C == len(items)
        assert not seen[u, items].any()
        assert not set(items.tolist()) & set(TARGETS.tolist())
    again = draw_candidates(jax.random.key(1), train, TARGETS, count=C)
    np.testing.assert_array_equal(again.item, offered.item)  # whatever the block
    assert np.any(draw_candidates(jax.random.key(2), train, TARGETS, count=C).item != offered.item)


def test_every_original_item_is_offered_alike():
    train = Interactions.from_arrays([0], [0], users=4000, items=12)
    found = draw_candidates(jax.random.key(0), train, jnp.array([11]), count=3)
    counts = np.bincount(np.asarray(found.item)[1:].ravel(), minlength=12)[:11]
    expected = 3 * 3999 / 11
    assert np.sum((counts - expected) ** 2 / expected) < 40  # 10 degrees of freedom, p < 2e-5


def test_a_user_who_clicked_nearly_everything_is_offered_less():
    train = Interactions.from_dense(np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], float))
    found = draw_candidates(jax.random.key(0), train, jnp.array([4]), count=3)
    assert found.offered.sum(1).tolist() == [1, 3]
    constant = recnum(lambda users: jnp.zeros((users.shape[0], 5)), train, jnp.array([4]), found, k=2)
    assert constant.total == 1  # behind one other item, and behind three


def test_an_oracle_reaches_the_ceiling_and_nobody_passes_it(train, offered):
    free = Interactions.from_arrays([0], [0], users=U, items=I)
    lists = draw_candidates(jax.random.key(0), free, TARGETS, count=C)
    best = recnum(
        lambda users: jnp.zeros((users.shape[0], I)).at[:, TARGETS].set(1), free, TARGETS, lists, k=10
    )
    assert best.total == best.ceiling == 3 * U
    assert best.per_target.tolist() == [U] * 3
    short = recnum(
        lambda users: jnp.zeros((users.shape[0], I)).at[:, TARGETS].set(1), free, TARGETS, lists, k=2
    )
    assert short.total == short.ceiling == 2 * U


def test_a_constant_model_shows_no_target_when_ties_are_lost(train, offered):
    constant = recnum(
        lambda users: jnp.zeros((users.shape[0], I)), train, TARGETS, offered, k=C, ties="worst"
    )
    assert constant.total == 0


def test_scores_with_nan_show_nothing(train, offered):
    table = jnp.zeros((U, I)).at[:, TARGETS].set(1).at[4, 0].set(jnp.nan)
    found = recnum(lambda users: table[users], train, TARGETS, offered, k=10)
    assert found.total == 3 * U - 1 - 3  # user 2 has clicked one of them, user 4 has a NaN


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda t, o: draw_candidates(jax.random.key(0), t, TARGETS, count=18),
            r"count=18; expected 1\.\.17",
        ),
        (lambda t, o: recnum(None, t, TARGETS, o, k=0), "k=0"),
        (lambda t, o: recnum(None, t, TARGETS, o, ties="best"), "ties='best'"),
        (lambda t, o: recnum(None, t, TARGETS, jax.tree.map(lambda a: a[:3], o)), "candidates of 3 users"),
    ],
)
def test_bad_arguments(train, offered, call, match):
    with pytest.raises(ValueError, match=match):
        call(train, offered)
