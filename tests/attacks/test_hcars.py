"""H-CARS: the sign of the counterfactual loss, the bounded ideal item, the greedy profile, and what it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.hcars import collect, greedy, ideal
from attacks.reasoner import Asked, disagreement, reasoner
from models import ncr
from models.data import Interactions
from models.explain.explanation import made
from models.train import begin, fit

KEY = jax.random.key(0)
U, I = 9, 12
SMALL = {"factors": 4, "epochs": 2, "batch": 16}


@pytest.fixture
def train(rng):
    dense = (rng.random((U, I)) < 0.4).astype(float)
    dense[:, 0] += dense.sum(1) == 0
    dense[0, :4] = 1
    return Interactions.from_dense(dense)


@pytest.fixture
def params():
    """Parameters large enough that cosines are well away from rounding."""
    raw = ncr.ncr(**SMALL).init(KEY, U, I, 0)
    leaves, shape = jax.tree.flatten(raw)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return shape.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


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
def test_without_explanations_it_is_ncr(train):
    nothing = made(np.array([0]), np.array([9]), [None], np.array([-1]))
    plain = fit(ncr.ncr(**SMALL), train, KEY)
    for told in (None, nothing):
        same = fit(reasoner(told, surrogate=ncr.ncr(**SMALL)), train, KEY)
        np.testing.assert_allclose(
            same.scores(jnp.arange(U)), plain.scores(jnp.arange(U)), rtol=1e-5, atol=1e-6
        )
    found = made(np.array([0]), np.array([9]), [[1, 3]], np.array([5]))
    other = fit(reasoner(found, surrogate=ncr.ncr(**SMALL)), train, KEY)
    assert np.abs(np.asarray(other.scores(jnp.arange(U)) - plain.scores(jnp.arange(U)))).max() > 1e-5


def test_the_ideal_item_is_truer_within_its_bound(x64, train, params):
    model = ncr.ncr(**SMALL)
    start = begin(model, train, KEY)
    so_far = model.embed(params, start.x, start.data)["clause"]
    targets = jnp.array([2, 7])
    find = jax.jit(lambda rho: ideal(params, (params["user"], so_far), targets, rho, 0.05, 60))
    q = params["item"][targets]
    moved, before, after = find(0.5)
    assert float(after) > float(before)
    assert (np.linalg.norm(moved - q, axis=1) <= 0.5 * np.linalg.norm(q, axis=1) * (1 + 1e-9)).all()
    still, before, after = find(0.0)
    np.testing.assert_array_equal(still, q)
    assert float(after) == float(before)


def test_greedy_takes_the_best_next_item_and_beats_random_ones(x64, params):
    h, moved = params["user"][0], params["item"][jnp.array([2, 7])]
    candidates = jnp.array([0, 1, 3, 4, 5, 6, 8, 9, 10, 11])
    chosen, value = jax.jit(lambda: greedy(params, h, moved, candidates, 4))()
    assert len(set(np.asarray(chosen).tolist())) == 4
    system = ncr.logic_of(params)

    def worth(items):
        premises = ncr.event(params, h, params["item"][jnp.asarray(items)])[None]
        chain, _ = ncr.clause(system, premises, jnp.ones((1, len(items)), bool))
        return float(jnp.sum(ncr.cosine(system.either(chain, ncr.event(params, h, moved)), system.true)))

    np.testing.assert_allclose(worth(chosen), value, rtol=1e-9)
    for size in range(4):
        so_far = np.asarray(chosen[:size]).tolist()
        rest = [int(j) for j in candidates if int(j) not in so_far]
        assert int(chosen[size]) == max(rest, key=lambda j: worth([*so_far, j]))
    rng = np.random.default_rng(0)
    assert float(value) >= np.mean([worth(rng.permutation(candidates)[:4]) for _ in range(20)])


@pytest.mark.slow
def test_it_reports_what_it_did(train):
    found = made(np.array([0, 1]), np.array([9, 8]), [[1, 3], None], np.array([5, -1]))
    attack = attacks.hcars(
        reasoner(found, surrogate=ncr.ncr(**SMALL), batch=2), fakes=3, budget=4, users=5, climb=5, refine=2
    )
    profiles, history = attack.trace(KEY, train, jnp.array([2, 7]))
    assert profiles.to_rows().sum(1).tolist() == [6.0] * 3
    assert float(history["after"][0]) >= float(history["before"][0])
    assert 0 <= float(history["jaccard"][0]) <= 1
    assert 0 <= float(history["accepted"][0]) <= 1


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


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: attacks.hcars(fakes=2, budget=2, goal="demote"), "promote"),
        (lambda: attacks.hcars(fakes=2, budget=2, pool=2.0), "pool"),
        (lambda: attacks.hcars(fakes=2, budget=2, rho=-1.0), "rho"),
        (lambda: attacks.reasoner(loss="log"), "loss"),
        (lambda: attacks.reasoner(counterfactual=-1.0), "counterfactual"),
    ],
)
def test_bad_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()
