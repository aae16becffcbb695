"""The black-box protocol: three adapters that agree, the query counter, explanations."""

import itertools

import numpy as np
import pytest

import attacks
from attacks.blackbox import OverBudget
from models.data import Interactions, Profiles, new_items
from models.itempop import itempop

USERS, ITEMS, TARGETS = 10, 12, [12, 13, 14]


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(0)
    data = Interactions.from_arrays(
        rng.integers(0, USERS, 60),
        rng.integers(0, ITEMS, 60),
        users=USERS,
        items=ITEMS,
        time=np.arange(60),
        track="sequence",
    )
    return new_items(data, 3).data


def popular(data, query):
    """A victim in NumPy that counts."""
    counts = np.bincount(np.asarray(data.item)[data.real()], minlength=data.items).astype(np.float32)
    return (lambda users: np.tile(counts, (len(users), 1))), counts


def explain(state, user, item):
    return [user, item]


ENVIRONMENT = attacks.environment(itempop(), candidates=ITEMS, k=4)


@pytest.fixture
def boxes(train, key):
    """Our ItemPop in its environment and one in NumPy, with everything offered: the same system."""
    return (
        attacks.JaxBox(ENVIRONMENT, train, TARGETS, key, fakes=2, limit=3, explainer=explain),
        attacks.Retrained(popular, train, TARGETS, key, candidates=None, k=4, limit=3, explainer=explain),
    )


def profiles(*rows):
    return Profiles.from_clicks(rows, TARGETS, items=ITEMS + 3)


def test_the_adapters_are_the_same_system_and_count_queries(boxes, train):
    strong = profiles([12] * 20, [13] * 20)
    with attacks.serve(boxes[1], items=ITEMS + 3) as url:
        service = attacks.Service(url)
        found = []
        for box in (boxes[0], service):
            assert isinstance(box, attacks.BlackBox)
            clean = box.recnum()
            box.inject(strong)
            lists, worth = np.asarray(box.recommend(np.arange(USERS))), box.recnum()
            assert (clean, worth) == (0.0, 2 * USERS)
            assert np.isin(lists, TARGETS).sum() == worth
            box.inject(profiles([0] * 20, [1] * 20))  # nothing of the last one stays
            assert (box.recnum(), box.queries) == (0.0, 2)
            assert np.asarray(box.explain(3, 5)).tolist() == [3, 5]
            box.inject(strong)
            with pytest.raises(OverBudget, match="3 queries"):
                box.inject(strong)
            found.append(np.where(lists < 0, -1, lists))
    assert boxes[1].queries == 3
    np.testing.assert_array_equal(*found)
    seen = {(int(u), int(i)) for u, i in zip(train.user, train.item, strict=True)}
    assert not any((user, item) in seen for user, row in enumerate(found[0].tolist()) for item in row)


def test_a_sampled_environment_estimates_from_users_drawn_anew(train, key):
    """Of targets that some users are shown: multiples of U / n, another sample an injection, the true mean."""
    sampled = attacks.environment(itempop(), candidates=ITEMS, k=4, users=3)
    box, whole = (attacks.JaxBox(made, train, TARGETS, key, fakes=2) for made in (sampled, ENVIRONMENT))
    level = int(
        np.sort(np.bincount(np.asarray(train.item)))[::-1][3]
    )  # as popular as the fourth: shown to some
    weak = profiles([12] * level + [13] * (20 - level), [14] * 20)
    told = []
    for _ in range(40):
        for each in (box, whole):
            each.inject(weak)
        told.append(box.recnum())
        assert box.recnum() == told[-1]  # what was injected has one estimate
    truth = whole.recnum()
    np.testing.assert_allclose(np.array(told) * 3 / USERS, np.round(np.array(told) * 3 / USERS), atol=1e-5)
    assert len(set(told)) > 1
    assert abs(np.mean(told) - truth) < 4 * np.std(told) / np.sqrt(len(told))


def test_a_box_refuses(boxes, train, key):
    ours, numpy = boxes
    rows = Profiles.from_rows(np.eye(2, ITEMS + 3), TARGETS)
    with pytest.raises(ValueError, match="click sequences"):
        ours.inject(rows)
    with pytest.raises(ValueError, match="made for 2"):
        ours.inject(profiles([0]))
    with pytest.raises(ValueError, match="the system has 15"):
        ours.inject(Profiles.from_clicks([[3], [500]], TARGETS, items=1000))
    with pytest.raises(ValueError, match=r"item -1 is outside|outside 0\.\.14"):
        ours.inject(Profiles.from_clicks([[3], [-1]], TARGETS, items=ITEMS + 3))
    for box, users in itertools.product(boxes, ([-1], [USERS])):
        with pytest.raises(ValueError, match=r"the system has 0\.\.9"):
            box.recommend(np.array(users))
        assert box.recommend([]).shape == (0, 4)
    with pytest.raises(ValueError, match="expected an integer in"):
        attacks.Retrained(popular, train, TARGETS, key, candidates=4, k=0)
    with pytest.raises(ValueError, match="limit is 0"):
        attacks.Retrained(popular, train, TARGETS, key, candidates=4, limit=0)
    assert ours.queries == numpy.queries == 0
