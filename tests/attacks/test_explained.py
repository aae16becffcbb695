"""Explanations as negatives, cell by cell, and who is asked about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.explained import as_negatives, collect, emphasized
from models import bpr, wrmf
from models.explain.explanation import made
from models.train import fit

KEY = jax.random.key(0)
U, I = 9, 12


def test_clicks_of_the_sets_are_no_longer_clicks(train):
    asked = made(np.array([0, 0, 4]), np.array([9, 10, 8]), [[1, 3, 11], None, [2]], np.array([5, -1, 1]))
    before, after = (np.asarray(part.dense()) for part in (train, as_negatives(train, asked)))
    expected = before.copy()
    expected[0, [1, 3, 11]] = expected[4, 2] = 0
    assert (before[0, [1, 3]] == 1).all()
    np.testing.assert_array_equal(after, expected)
    nothing = made(np.array([0]), np.array([9]), [None], np.array([-1]))
    np.testing.assert_array_equal(as_negatives(train, nothing).dense(), before)
    with pytest.raises(ValueError, match="the data have 0"):
        as_negatives(train, made(np.array([9]), np.array([9]), [[1]], np.array([2])))


@pytest.mark.parametrize("batch", [None, 4])
def test_emphasized_negatives_are_zeros_with_the_weight_of_a_click(x64, train, batch):
    """Beside the view without them: cell by cell, and over the batches of an epoch each of them once."""
    told = made(np.array([0, 4, 0]), np.array([9, 8, 10]), [[1, 3, 11], [2], [3]], np.array([5, 1, 2]))
    plain = wrmf.wrmf(factors=3, weight=7.0, l2=0.0, batch=batch, scale=1.0)
    model, view = emphasized(plain, told), as_negatives(train, told)
    params, data, nobody = plain.init(KEY, U, I, 0), plain.prepare(view), jnp.zeros((0, I))
    cells = np.asarray(view.dense())
    weight = np.where(cells > 0, 7.0, 1.0)
    weight[0, [1, 3, 11]] = weight[4, 2] = 7.0  # the first set's 3 and the third one's are one pair
    expected = np.sum(weight * (cells - np.asarray(params["user"] @ params["item"].T)) ** 2)
    inner = model.trainer(U, I, 0)
    steps = 1 if batch is None else 3
    value = lambda n: model.loss(params, nobody, data, inner.context(KEY, n))
    np.testing.assert_allclose(sum(value(n) for n in range(steps)), expected, rtol=1e-9)
    spent = {"fakes": 2, "budget": 3, "pool": 1.0}
    rows = attacks.rapu_r(model, **spent)(KEY, view, jnp.array([2, 7])).to_rows()
    assert rows.sum(1).tolist() == [5.0, 5.0]


def test_emphasized_refuses_what_has_no_weight_or_no_such_user(train):
    told = made(np.array([9]), np.array([9]), [[1]], np.array([2]))
    with pytest.raises(ValueError, match="which has a w"):
        emphasized(bpr.bpr(factors=2), told)
    with pytest.raises(ValueError, match=r"the data have 0\.\.8"):
        fit(emphasized(wrmf.wrmf(factors=2, epochs=1), told), train, KEY)


class Api:
    def __init__(self):
        self.asked = []

    def explain(self, users, items):
        self.asked += list(zip(users.tolist(), items.tolist(), strict=True))
        return made(users, items, [None] * len(users), -np.ones(len(users), int))


def test_a_share_of_the_users_is_asked_about_their_best_item():
    api, best = Api(), np.arange(20) + 100
    answer = collect(api, best, share=0.6)
    assert answer.queries == 12
    assert len(set(api.asked)) == 12
    assert all(item == user + 100 for user, item in api.asked)
    with pytest.raises(ValueError, match="share"):
        collect(api, best, share=0.0)
