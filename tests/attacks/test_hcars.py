"""H-CARS: the sign of the counterfactual loss, the bounded ideal item, the greedy profile, and what it is told."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.hcars import _climbed, _in_rounds, better, collect, greedy, ideal
from attacks.reasoner import Asked, as_negatives, disagreement, emphasized, live, reasoner
from attacks.refit import Refit, in_turn, learned
from models import bpr, ncr, wrmf
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


def test_the_ideal_item_is_truer_within_its_bound(x64, train, params):
    targets = jnp.array([2, 7])
    find = jax.jit(lambda rho: ideal(params, everybody(params, train), targets, rho, 0.05, 60))
    q = params["item"][targets]
    moved, before, after = find(0.5)
    assert float(after) > float(before)
    assert (np.linalg.norm(moved - q, axis=1) <= 0.5 * np.linalg.norm(q, axis=1) * (1 + 1e-9)).all()
    still, before, after = find(0.0)
    np.testing.assert_array_equal(still, q)
    assert float(after) == float(before)


@pytest.mark.slow
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


def test_a_fake_users_vector_climbs_the_objective_of_its_items(params):
    """Eq. 13 with the items held: more after the climb; a second round of choosing is not behind the first."""
    h, moved, candidates = params["user"][0], params["item"][:2], jnp.arange(2, I)
    chosen, value = greedy(params, h, moved, candidates, 3)
    alone = lambda h: float(greedy(params, h, moved, chosen, 3)[1])
    climbed = _climbed(params, h, moved, chosen, 50, 1e-2)
    assert alone(climbed) > alone(h) + 1e-3
    once = _in_rounds(params, h, moved, candidates, 3, (1, 50, 1e-2))
    twice = _in_rounds(params, h, moved, candidates, 3, (2, 50, 1e-2))
    np.testing.assert_array_equal(once[0], h)
    np.testing.assert_array_equal(twice[0], climbed)
    assert float(twice[2]) > float(once[2]) == float(value)


def test_greedy_refuses_more_items_than_candidates(params):
    with pytest.raises(ValueError, match="budget=3 of 2 candidates"):
        greedy(params, params["user"][0], params["item"][:1], jnp.array([3, 4]), 3)


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


def everybody(params, train):
    return params["user"], ncr.whole(params, ncr.prepare(train))


@pytest.mark.parametrize("surrogate", [ncr.ncr, lambda **given: reasoner(surrogate=ncr.ncr(**given))])
def test_the_attack_sees_the_whole_history_of_a_real_user(x64, train, params, surrogate):
    """Not the last clicks alone that NCR learned with: without its oldest click a user is another one."""
    attack = attacks.hcars(surrogate(**SMALL, max_history=2), fakes=2, budget=3)
    view = lambda data: np.asarray(
        attack.config["surrogate"].embed(params, jnp.zeros((0, I)), ncr.prepare(data))["clause"]
    )
    oldest = np.arange(train.capacity) == 0
    before, after = view(train), view(train.select(~oldest))
    assert int(train.degrees()[0]) >= 4
    assert np.abs(before[0] - after[0]).max() > 1e-6
    np.testing.assert_array_equal(before[1:], after[1:])
    state = attack.init(KEY, train, jnp.array([2, 7]))
    seen = ncr.whole(state.embedding["params"], ncr.prepare(train))
    np.testing.assert_allclose(state.embedding["clause"], seen, rtol=1e-12)


def test_inequality_12_is_its_sum_over_the_real_users_and_the_fake_one(x64, train, params):
    """The sums by the definition; of three perturbations of two targets some pass and some do not."""
    views, fake = everybody(params, train), (jnp.ones(4), jnp.array([1, 5, 8]))
    system, targets = ncr.logic_of(params), jnp.array([2, 7])
    q = params["item"][targets]
    rule = jax.jit(lambda moved: better(params, views, fake, targets, moved))
    truth = lambda h, chain, x: float(ncr.cosine(system.either(chain, ncr.event(params, h, x)), system.true))
    chain = None
    for j in (1, 5, 8):
        part = system.negation(ncr.event(params, fake[0], params["item"][j]))
        chain = part if chain is None else system.either(chain, part)
    seen = set()
    for number in range(3):
        moved = q + jax.random.normal(jax.random.key(number), q.shape)
        total = lambda x: sum(truth(h, c, x) for h, c in zip(*views, strict=True)) + truth(fake[0], chain, x)
        expected = [total(moved[t]) >= total(q[t]) for t in range(2)]
        assert rule(moved).tolist() == expected
        seen |= set(expected)
    assert seen == {True, False}
    assert rule(q).tolist() == [True, True]


SPENT = {"fakes": 3, "budget": 3, "climb": 25, "refine": 2, "learning_rate": 0.5, "rho": 3.0}


@pytest.mark.slow
def test_enforced_an_eps_that_fails_is_none(x64, train, monkeypatch):
    """Where the inequality holds nothing changes; where it fails for both targets it is the attack without an eps."""
    targets, module = jnp.array([2, 7]), importlib.import_module("attacks.hcars")
    run = lambda **more: attacks.hcars(ncr.ncr(**SMALL), **{**SPENT, **more}).trace(KEY, train, targets)
    free, told = run()
    none, _ = run(rho=0.0)
    assert not np.array_equal(free.to_rows(), none.to_rows())
    assert float(told["accepted"][0]) == 1
    np.testing.assert_array_equal(run(enforce=True)[0].to_rows(), free.to_rows())
    monkeypatch.setattr(module, "better", lambda *_: jnp.array([False, False]))
    held, told = run(enforce=True)
    np.testing.assert_array_equal(held.to_rows(), none.to_rows())
    assert float(told["accepted"][0]) == 0


def test_in_turn_shows_each_group_what_was_made_before(train, params, monkeypatch):
    """Groups of two, of five fake users: each reads the surrogate that learned from all earlier groups."""
    model = ncr.ncr(**SMALL)
    refit = Refit(model, train, jnp.array([2, 7]), 2, 1, KEY)
    start = {"params": params, "clause": jnp.zeros((U, 4))}

    def relearned(refit, params, rows, key):
        clicks = jnp.sum(rows)  # what it was given, told to the next group in place of a training
        return {"params": params, "clause": jnp.full((U + 5, 4), clicks)}

    def one(embedding, key):
        known = embedding["params"]["user"][U:, 0]
        return (
            jnp.array([0, 1]),
            jnp.full(4, 9.0),
            {"saw": embedding["clause"][0, 0], "nines": jnp.sum(known == 9)},
        )

    monkeypatch.setattr(importlib.import_module("attacks.refit"), "learned", relearned)
    chosen, said = jax.jit(lambda: in_turn(refit, one, start, jax.random.split(KEY, 5), 2))()
    assert chosen.shape == (5, 2)
    assert said["saw"].tolist() == [0, 0, 8, 8, 16]  # two targets and two items each
    assert said["nines"].tolist() == [0, 0, 2, 2, 4]


@pytest.mark.slow
def test_learning_on_is_a_fit_of_the_injected_data(x64, train, params):
    """The same steps by hand: the poisoned data, Adam anew, the surrogate's own batches."""
    rows = np.zeros((2, I))
    rows[0, [2, 7, 4]] = 1
    model, targets = ncr.ncr(**SMALL), jnp.array([2, 7])
    grown = {**params, "user": jnp.concatenate([params["user"], jnp.ones((2, 4))])}
    dense = np.concatenate([np.asarray(train.dense()), rows])
    expected = Interactions.from_dense(dense, capacity=train.capacity + 2 * 3)
    found = jax.jit(lambda: learned(Refit(model, train, targets, 1, 2, KEY), grown, jnp.asarray(rows), KEY))()
    inner = model.trainer(U + 2, I, 0, expected.capacity)
    data, nobody = model.prepare(expected), jnp.zeros((0, I))
    state = inner.init(grown, nobody, data, KEY)
    step = jax.jit(lambda n, state: inner.step(state, nobody, data, inner.context(KEY, n))[0])
    for n in range(2 * inner.steps_per_epoch):
        state = step(n, state)
    for a, b in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert np.abs(np.asarray(found["params"]["user"][U] - 1)).max() > 1e-4  # a fake user learns too


@pytest.mark.slow
def test_refits_change_later_fake_users_only(train):
    targets, surrogate = jnp.array([2, 7]), ncr.ncr(**{**SMALL, "learning_rate": 0.05})
    run = lambda **more: attacks.hcars(surrogate, **SPENT, **more)(KEY, train, targets).to_rows()
    plain, again = run(), run(refit_every=2, refit_epochs=5)
    np.testing.assert_array_equal(plain[:2], again[:2])
    assert not np.array_equal(plain[2:], again[2:])
    np.testing.assert_array_equal(run(refit_every=3), plain)  # nobody comes after the first refit
    assert again.sum(1).tolist() == [5.0] * 3


@pytest.mark.slow
def test_the_first_fake_users_are_the_attack_with_fewer(train):
    """So a study crafts once, at the largest number, for all of them."""
    targets, surrogate = jnp.array([2, 7]), ncr.ncr(**SMALL)
    run = lambda fakes: attacks.hcars(surrogate, **{**SPENT, "fakes": fakes})(KEY, train, targets).to_rows()
    np.testing.assert_array_equal(run(4)[:2], run(2))


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


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: attacks.hcars(fakes=2, budget=2, goal="demote"), "promote"),
        (lambda: attacks.hcars(fakes=2, budget=2, pool=2.0), "pool"),
        (lambda: attacks.hcars(fakes=2, budget=None), "budget is None"),
        (lambda: attacks.hcars(fakes=2, budget=2, climb=2.5), "climb"),
        (lambda: attacks.hcars(fakes=2, budget=2, refine=1.5), "refine"),
        (lambda: attacks.hcars(fakes=2, budget=2, rho=-1.0), "rho"),
        (lambda: attacks.hcars(fakes=2, budget=2, refit_every=0), "refit_every"),
        (lambda: attacks.hcars(fakes=2, budget=2, refit_epochs=4), "no use without refit_every"),
        (lambda: attacks.reasoner(loss="log"), "loss"),
        (lambda: attacks.reasoner(counterfactual=-1.0), "counterfactual"),
    ],
)
def test_bad_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_enforce_is_yes_or_no():
    with pytest.raises(TypeError, match="enforce"):
        attacks.hcars(fakes=2, budget=2, enforce=1)  # type: ignore[arg-type]
