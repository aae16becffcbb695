"""Explanations as negatives, cell by cell, and who is asked about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.explained import as_negatives, collect, emphasized
from models import bpr, ncf, wrmf
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


@pytest.mark.parametrize("batch", [pytest.param(None, marks=pytest.mark.slow), 4])
def test_emphasized_negatives_are_among_those_that_ncf_draws(x64, train, batch):
    """Each pair once an epoch, with a click's share of its step: the trainer's loss without the plain one."""
    told = made(np.array([0, 4, 0]), np.array([9, 8, 10]), [[1, 3, 11], [2], [3]], np.array([5, 1, 2]))
    plain = ncf.gmf(factors=3, l2=0.5, negatives=2, batch=batch, scale=1.0)
    view = as_negatives(train, told)
    params, data, nobody = plain.init(KEY, U, I, 0), plain.prepare(view), jnp.zeros((0, I))
    inner = emphasized(plain, told).trainer(U, I, 0, view.capacity)
    steps = inner.steps_per_epoch

    @jax.jit
    def more(step):
        ctx = inner.context(KEY, step)
        index, real = (jnp.arange(view.capacity), True) if batch is None else ctx.batch
        clicks = jnp.sum(view.mask[index] & real)
        return clicks * (inner.loss(params, nobody, data, ctx) - plain.loss(params, nobody, data, ctx))

    found = np.array([more(step) for step in range(steps)])
    user, item = (
        np.array([0, 0, 0, 4]),
        np.array([1, 3, 11, 2]),
    )  # the first set's 3 and the third one's are one pair
    score = (params["user"][user] * params["item"][item]) @ params["last"]["kernel"][:, 0] + params["last"][
        "bias"
    ]
    np.testing.assert_allclose(found.sum(), np.log1p(np.exp(score)).sum() / (1 + 2), rtol=1e-9)
    assert (found > 0).sum() == min(steps, 4)  # spread over the steps


@pytest.mark.slow
def test_dl_attack_learns_from_emphasized_negatives(train):
    """The model it trains doubts the pairs more than one that sees them among all items; it takes either."""
    told = made(np.array([0]), np.array([9]), [[1, 3]], np.array([5]))
    plain, view = (
        ncf.gmf(factors=2, epochs=60, batch=16, negatives=1, learning_rate=0.02),
        as_negatives(train, told),
    )
    model = emphasized(plain, told)
    doubted, unseen = (
        np.asarray(fit(one, view, KEY).scores(jnp.array([0])))[0, [1, 3]] for one in (model, plain)
    )
    assert (doubted < unseen - 0.1).all()
    attack = attacks.dl_attack(fakes=1, budget=4, surrogate=model, rounds=1, k=3, stages=1)
    assert attack(KEY, view, jnp.array([2, 7])).to_rows()[0].sum() == 6


def test_emphasized_refuses_what_has_no_weight_or_no_such_user(train):
    told = made(np.array([9]), np.array([9]), [[1]], np.array([2]))
    with pytest.raises(ValueError, match="which has a w"):
        emphasized(bpr.bpr(factors=2), told)
    with pytest.raises(ValueError, match=r"gmf\(\.\.\.\) of clicks"):
        emphasized(ncf.neumf(objective="ratings"), told)
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
