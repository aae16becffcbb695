"""From a fitted recommender to explanations and their truth: a planted case, attention, an API, retraining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.blackbox import Retrained
from models import rcf, wrmf
from models.data import Interactions, Profiles
from models.explain import (
    ExplanationAPI,
    OutOfQueries,
    attention,
    blocks,
    counterfactual,
    explainer,
    influences,
    removals,
    verify,
)
from models.explain.counterfactual import METHODS
from models.explain.explanation import made
from models.train import fit, top_k


def planted():
    """Two kinds of users, on items 0..5 and 6..11; user 0 has four of the first kind and three of the second."""
    seen = np.zeros((21, 12))
    for user in range(1, 21):
        kind = np.arange(6) + 6 * (user % 2)
        seen[user, np.delete(kind, user % 6)] = 1
    seen[0, [0, 1, 2, 3, 6, 7, 8]] = 1
    return Interactions.from_dense(seen)


TRAIN = planted()
MODEL = wrmf.wrmf(factors=2, l2=1.0, epochs=300, learning_rate=0.05, batch=None, weight=5.0)


@pytest.fixture(scope="module")
def fitted():
    return fit(MODEL, TRAIN, jax.random.key(1))


def test_a_planted_explanation_is_found_and_true(fitted):
    """The best item of user 0 is of its first kind: because of clicks of that kind, and retraining says so too."""
    asked = counterfactual(fitted, TRAIN, [0], k=6)
    assert asked.found.tolist() == [True]
    assert asked.item[0] in (4, 5)
    assert asked.replacement[0] >= 9
    gone = asked.removed[0][asked.removed[0] >= 0].tolist()
    assert set(gone) <= {0, 1, 2, 3}
    twice = lambda column: np.repeat(column, 2)
    both = made(twice(asked.user), twice(asked.item), [gone, [6, 7, 8]], twice(asked.replacement))
    seen = verify(MODEL, TRAIN, both, jax.random.key(2), seeds=2, together=4)
    assert seen.confirmed.tolist() == [True, False]
    assert seen.control.tolist() == [False, False]
    assert np.all(seen.gap[0] < 0)
    assert np.all(seen.gap[1] > 0)
    assert np.all(seen.rank[0] > 0)
    assert np.all(seen.rank[1] < 2)


def test_a_set_for_an_item_of_a_list_is_true_where_the_item_leaves_the_list(fitted):
    """User 0 without its first kind: 4 and 5 fall behind 9 to 11, so out of a list of 3 and not out of one of 4.

    So do they whatever replaces them, and being behind a replacement is not enough.
    """
    no, first = np.zeros(3, int), [0, 1, 2, 3]
    asked = made(no, np.array([4, 4, 9]), [first, [6, 7, 8], first], np.array([5, 9, 4]))
    by = {k: verify(MODEL, TRAIN, asked, jax.random.key(2), k=k, seeds=2, together=4) for k in (None, 3, 5)}
    ranks, before = by[3].rank, by[3].control_rank
    assert np.all(ranks[0] >= 3)  # of 4, behind 9 to 11
    assert np.all(ranks[1:] < 3)
    assert np.all(before[:2] < 3)
    assert np.all(before[2] >= 2)  # of 9, behind 4 and 5
    assert by[3].confirmed.tolist() == [True, False, False]
    assert by[5].confirmed.tolist() == [False, False, False]
    for k in (3, 5):
        assert by[k].control.tolist() == (before.mean(1) >= k).tolist()
    for one in by.values():  # the trainings are the same, what counts is not
        assert np.array_equal(one.rank, ranks)
        assert np.array_equal(one.control_rank, before)
    assert by[None].confirmed.tolist() == (by[None].gap.mean(1) < 0).tolist()
    assert by[None].control.tolist() == (by[None].control_gap.mean(1) < 0).tolist()


@pytest.mark.slow
def test_an_item_of_the_list_is_explained_at_its_rank(fitted):
    """By the predicted scores k items are above it then; an item that is not in the list has no explanation."""
    lists = np.asarray(top_k(fitted, jnp.arange(21), 4, exclude=TRAIN))
    users = np.repeat(np.arange(21), 4)
    asked = counterfactual(fitted, TRAIN, users, lists.ravel(), k=2)
    assert asked.queries == 84
    assert not asked.found.reshape(21, 4)[:, 2:].any()
    assert asked.found.sum() >= 2
    known = influences(fitted, TRAIN, users, 12)
    for n in np.flatnonzero(asked.found):
        gone = np.isin(known.history[n], asked.removed[n][asked.removed[n] >= 0])
        new = known.scores[n] - known.drop[n] @ gone
        there = known.item[n].tolist().index(asked.item[n])
        assert np.sum(new > new[there]) >= 2
        assert asked.replacement[n] not in lists[users[n], :2]
    assert np.array_equal(removals(asked, TRAIN).sum(1), int(TRAIN.count) - asked.sizes)


def test_questions_are_counted_and_limited(fitted):
    lists = np.asarray(top_k(fitted, jnp.arange(3), 1, exclude=TRAIN))[:, 0]
    api = ExplanationAPI(fitted, TRAIN, k=2, limit=4)
    answer = api.explain(np.arange(3), lists)
    assert (answer.queries, api.queries) == (3, 3)
    one = api.explain_one(0, int(lists[0]))
    assert one.tolist() == answer.removed[0][answer.removed[0] >= 0].tolist()
    with pytest.raises(OutOfQueries, match="2 questions more than the 0 left of 4"):
        api.explain([0, 1], [0, 1])
    assert api.queries == 4


@pytest.mark.slow
def test_a_black_box_explains():
    """`attacks.blackbox.Retrained` with our explainer: explanations of what was trained on the injected data."""

    def learn(data, query):
        data = Interactions.from_dense(np.asarray(data.dense()) > 0)
        trained = fit(MODEL, data, jax.random.key(1))
        return trained.scores, (trained, data)

    box = Retrained(learn, TRAIN, [5], jax.random.key(0), candidates=None, k=2, explainer=explainer(k=2))
    box.inject(Profiles.from_rows(np.eye(12)[[5, 4]], [5]))
    item = int(box.recommend(np.array([0]))[0, 0])
    assert set(box.explain(0, item)) <= {0, 1, 2, 3, 6, 7, 8}
    assert box.queries == 1


def test_what_is_refused(fitted):
    assert METHODS == ("accent", "fia", "pure-fia", "attention", "pure-attention")
    for options, text in [
        ({"method": "gap"}, "expected one of accent, fia"),
        ({"method": "attention"}, "wrmf has no attention"),
        ({"method": "attention", "damping": 0.1}, "no use for"),
        ({"method": "fia", "items": [4]}, "the only one for items"),
        ({"items": [4, 5]}, "one item a user"),
        ({"k": 1}, r"expected k in 2\.\.12"),
        ({"k": 12, "items": [4]}, "leaves none to take a place"),
        ({"k": 0}, "k=0"),
    ]:
        with pytest.raises(ValueError, match=text):
            counterfactual(fitted, TRAIN, [0], **options)


# ------------------------------------------------------------------------------------------------ attention


@pytest.mark.slow
def test_attention_is_what_is_read_and_removing_is_not_reading():
    from models.data.relations import clusters

    model = rcf.rcf(clusters(np.arange(12) // 3), factors=3, attention=2, hidden=(4,), epochs=20, batch=16)
    trained = fit(model, TRAIN, jax.random.key(0))
    params, p, smoothing = trained.params, trained.params["user"][0], 0.5
    mine, items = blocks.own(TRAIN, jnp.array(0), 8), jnp.array([4, 9, 0])
    shown = attention.view(params, trained.data, jnp.array(0), items, mine.item, mine.real)
    weight = attention.weights(params, p, shown, mine.real, smoothing)
    assert not np.any(weight[:, 7:])
    m = p + weight @ shown.clicked
    scores = rcf.through(params, m * shown.item)
    np.testing.assert_allclose(scores, attention.rated(params, p, shown, mine.real, smoothing), rtol=1e-5)
    np.testing.assert_allclose(scores, trained.scores(jnp.array([0]))[0, items], rtol=1e-4, atol=1e-6)
    for method in ("attention", "pure-attention"):
        asked = counterfactual(trained, TRAIN, np.arange(21), k=6, method=method)
        assert asked.found.any()
        for n in np.flatnonzero(asked.found):
            keep = removals(asked, TRAIN)[n]
            data = model.prepare(TRAIN.keep(jnp.asarray(keep)))
            new = model.scores(params, trained.x, data, jnp.array([n]))[0]
            assert new[asked.replacement[n]] > new[asked.item[n]]
