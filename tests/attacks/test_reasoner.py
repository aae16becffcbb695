"""The surrogate of H-CARS: the sign of the counterfactual loss, what an epoch counts, and NCR where nothing is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.reasoner import Asked, disagreement, live, reasoner
from models import ncr
from models.explain.explanation import made
from models.train import begin, fit

KEY = jax.random.key(0)
U, I = 9, 12
SMALL = {"factors": 4, "epochs": 2, "batch": 16}


def alike(params, data, asked):
    """cos(c, c_CF) by the definition: clauses of lists, one pair at a time."""
    system, found = ncr.logic_of(params), []
    for user, item, removed in zip(*asked, strict=True):
        h = params["user"][user]
        start, stop = int(data.start[user]), int(data.start[user + 1])
        items = [int(j) for j in data.item[start:stop]]
        head = ncr.event(params, h, params["item"][item])
        ends = []
        for kept in (items, [j for j in items if j not in set(np.asarray(removed).tolist())]):
            chain = None
            for j in kept:
                part = system.negation(ncr.event(params, h, params["item"][j]))
                chain = part if chain is None else system.either(chain, part)
            ends.append(system.either(jnp.zeros_like(head) if chain is None else chain, head))
        found.append(ncr.cosine(*ends))
    return jnp.stack(found)


ASKED = Asked(np.array([0, 0]), np.array([9, 10]), np.array([[1, 3], [2, -1]]))


@pytest.mark.slow
def test_an_epoch_counts_every_pair_once_whose_set_the_premises_hold(train, params):
    """Beside plain NCR, lambda_1 times the mean cost of the live pairs, as many as there are, over an epoch's steps."""
    plain = ncr.ncr(**SMALL)
    data = plain.prepare(train)
    own = np.asarray(data.item)[int(data.start[0]) : int(data.start[1])]
    gone = [[own[-1], -1], [own[0], -1], [own[-2], own[-1]], [I - 1 if I - 1 not in own else 0, -1]]
    told = made(np.zeros(4, int), np.full(4, 9), gone, np.full(4, 10))
    asked = Asked(told.user, told.item, told.removed)
    window = len(own) - 1  # the oldest item is no premise, and the last set was never clicked
    assert live(data, asked, window).tolist() == [True, False, True, False]
    model = reasoner(told, surrogate=plain, counterfactual=0.5, history=window, batch=20_000)
    ctx = begin(plain, train, KEY).inner.final_context(KEY)
    value = lambda model: jax.jit(lambda p: model.loss(p, jnp.zeros((0, I)), data, ctx))(params)
    steps = -(-data.item.shape[0] // SMALL["batch"])
    cost = jax.jit(lambda p: disagreement(p, data, asked, window, "contrast"))(params)
    expected = 0.5 * (cost[0] + cost[2]) / steps
    np.testing.assert_allclose(value(model) - value(plain), expected, rtol=0.02)
    dead = made(np.zeros(1, int), np.full(1, 9), gone[1:2], np.full(1, 10))
    np.testing.assert_allclose(
        value(reasoner(dead, surrogate=plain, history=window)), value(plain), rtol=1e-6
    )


def test_the_losses_are_their_formulas_with_the_set_left_out(x64, train, params):
    data = ncr.prepare(train)
    cosine = alike(params, data, ASKED)
    cost = lambda loss: disagreement(params, data, ASKED, 20, loss)
    np.testing.assert_allclose(cost("contrast"), np.logaddexp(0, 10 * cosine), rtol=1e-5)
    np.testing.assert_allclose(
        cost("as_printed"), -np.log(np.maximum((1 + cosine) / 2, 1e-6)), rtol=1e-4, atol=1e-6
    )
    everything = Asked(ASKED.user, ASKED.item, np.tile(np.arange(I), (2, 1)))
    none = disagreement(params, data, everything, 20, "false")
    system, h = ncr.logic_of(params), params["user"][0]
    alone = [system.either(jnp.zeros(4), ncr.event(params, h, params["item"][x])) for x in (9, 10)]
    expected = [np.logaddexp(0, 10 * ncr.cosine(one, system.true)) for one in alone]
    np.testing.assert_allclose(none, expected, rtol=1e-5)


@pytest.mark.parametrize(("loss", "lowers"), [("contrast", True), ("as_printed", False)])
def test_a_step_down_contrast_parts_the_sentences_and_one_down_eq_8_joins_them(
    x64, train, params, loss, lowers
):
    data = ncr.prepare(train)
    slope = jax.grad(lambda p: jnp.sum(disagreement(p, data, ASKED, 20, loss)))(params)
    moved = jax.tree.map(lambda p, g: p - 1e-4 * g, params, slope)
    before, after = (float(jnp.sum(alike(p, data, ASKED))) for p in (params, moved))
    assert (after < before) is lowers


@pytest.mark.slow
def test_without_explanations_it_is_ncr(x64, train):
    """ "false" with some: fresh parameters make all sentences alike, where the cosine of "contrast" is flat."""
    nothing = made(np.array([0]), np.array([9]), [None], np.array([-1]))
    plain = fit(ncr.ncr(**SMALL), train, KEY)
    for told in (None, nothing):
        same = fit(reasoner(told, surrogate=ncr.ncr(**SMALL)), train, KEY)
        np.testing.assert_allclose(same.scores(jnp.arange(U)), plain.scores(jnp.arange(U)), rtol=1e-9)
    found = made(np.array([0]), np.array([9]), [[1, 3]], np.array([5]))
    other = fit(reasoner(found, surrogate=ncr.ncr(**SMALL), loss="false"), train, KEY)
    assert np.abs(np.asarray(other.scores(jnp.arange(U)) - plain.scores(jnp.arange(U)))).max() > 1e-8
