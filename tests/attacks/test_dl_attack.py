"""DL-Attack: the attacker's loss, where its gradient goes, and how fillers are chosen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
import bilevel
from attacks.dl_attack import Wish, behind, choose
from bilevel import Ctx
from models.data import Interactions, sample
from models.ncf import gmf, neumf
from models.recommender import Recommender
from models.wrmf import wrmf

USERS, ITEMS = 9, 12


@pytest.fixture
def train(rng):
    return Interactions.from_dense(rng.random((USERS, ITEMS)) < 0.3, capacity=60)


def test_the_users_loss_is_its_formula_and_bounded_by_kappa(rng):
    scores = rng.normal(0, 3, (USERS, ITEMS))
    seen = rng.random((USERS, ITEMS)) < 0.4
    seen[0], seen[1] = True, np.arange(ITEMS) != 5  # nothing left, and one item left: target 5
    targets, k, kappa = np.array([5, 2]), 4, 0.5
    logs = np.log(1 / (1 + np.exp(-scores)) + 1e-12)
    expected, capped = np.zeros(USERS), 0
    for u in range(USERS):
        shown = sorted(np.flatnonzero(~seen[u]), key=lambda i: -scores[u, i])[:k]
        for t in targets[~seen[u, targets]]:
            gap = logs[u, shown].min() - logs[u, t]
            expected[u] += max(gap, -kappa)
            capped += gap < -kappa
    assert capped
    found = behind(jnp.asarray(scores), jnp.asarray(seen), jnp.asarray(targets), k, kappa)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    far = jnp.asarray(scores).at[:, targets].set(50.0)
    open_ = (~seen[:, targets]).sum(1)
    assert (
        np.asarray(behind(far, jnp.asarray(seen), jnp.asarray(targets), k, kappa)) >= -kappa * open_
    ).all()


def test_the_attack_reaches_every_embedding_and_its_gradient_is_right(x64, train, key):
    """A peer computes the users' losses without a gradient."""
    model = neumf(factors=3, tower=2, hidden=(4,), scale=0.5, batch=None, epochs=1)
    attack = attacks.dl_attack(fakes=1, budget=2, surrogate=model, k=3, users=6, weight=2.0)
    plan = attack.init.__self__
    fake = jnp.int32(USERS)  # its row holds no click: only the attack's loss reads it
    padded = Interactions.from_dense(np.vstack([train.dense(), np.zeros((1, ITEMS))]), capacity=60)
    data, nobody = model.prepare(padded), jnp.zeros((0, ITEMS))
    wish = Wish(sample.lists(train), jnp.asarray(30.0), jnp.array([0, 7]), fake)
    params = jax.tree.map(lambda leaf: leaf.astype(float), model.init(key, USERS + 1, ITEMS, 0))
    ctx = Ctx(key, jnp.asarray(0))

    @jax.jit
    @jax.value_and_grad
    def attacked(params):
        whole = plan.objective(params, nobody, (data, wish), ctx)
        return whole - model.loss(params, nobody, data, ctx)

    @jax.jit
    def by_hand(params):
        drawn = jax.random.randint(jax.random.fold_in(key, 9), (6,), 0, USERS)
        scores = model.score(model.embed(params, nobody, data), jnp.append(drawn, fake))
        lag = behind(scores[:-1], train.dense()[drawn] > 0, wish.targets, 3, 1.0)
        return 2.0 / 30 * (jnp.sum(jax.nn.sigmoid(scores[-1]) ** 2) + 100 * USERS / 6 * jnp.sum(lag))

    value, gradient = attacked(params)
    np.testing.assert_allclose(value, by_hand(params), rtol=1e-10)
    for name in ("user", "item", "tower_user", "tower_item"):
        assert np.abs(gradient[name]).max() > 1e-3, name
    assert np.abs(gradient["user"][USERS]).max() > 1e-3  # the fake user's own
    rng = np.random.default_rng(0)
    along = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)
    up, down = (attacked(jax.tree.map(lambda p, d: p + h * d, params, along))[0] for h in (1e-6, -1e-6))
    exact = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(along)))
    np.testing.assert_allclose(exact, (up - down) / 2e-6, rtol=1e-6)


def test_fillers_are_the_largest_predictions_that_are_no_targets(rng):
    predicted, targets = jnp.asarray(rng.random(ITEMS)), jnp.array([4, 9])
    fillers, _ = choose(predicted, jnp.ones(ITEMS), targets, 5, 0.5)
    best = np.argsort(-np.where(np.isin(np.arange(ITEMS), targets), -1, predicted))[:5]
    assert set(np.flatnonzero(fillers)) == set(best)


@pytest.fixture(scope="module")
def popular():
    """A recommender that predicts a share of clicks and learns one constant: cheap, and the same for every user."""
    return Recommender(
        name="popular",
        config={},
        prepare=lambda train: train.dense(),
        init=lambda key, users, items, fakes: jnp.zeros(()),
        loss=lambda params, x, data, ctx: params**2,
        embed=lambda params, x, data: jnp.mean(data, 0) + params,
        score=lambda embedding, users: jnp.broadcast_to(embedding, (users.shape[0], ITEMS)),
        trainer=lambda users, items, fakes, events=0: bilevel.fixed_point(lambda params, *_: params, 1),
    )


@pytest.fixture(scope="module")
def crafted(popular):
    """`(train, delta, budget) -> rows and p` of the attack with four fake users, compiled once a budget."""

    @functools.partial(jax.jit, static_argnums=2)
    def run(train, delta, budget):
        attack = attacks.dl_attack(
            fakes=4, budget=budget, surrogate=popular, rounds=1, k=3, users=2, stages=1
        )
        plan = dataclasses.replace(attack.init.__self__, delta=delta)
        state = plan.init(jax.random.key(0), train, TARGETS)
        state = plan.step(state, train, TARGETS)[0]
        return plan.finish(state, train, TARGETS).rows, state.chance

    return run


TARGETS = jnp.array([4, 9])
BOUGHT = np.delete(np.arange(ITEMS), TARGETS)


def test_delta_one_repeats_the_fillers_and_delta_zero_forbids_it_until_all_are_used(train, crafted):
    """Of the attack, whose later models learn from the fake users before: these only confirm what is popular.

    A model whose predictions earlier fake users turn, or that are each user's own, may choose others at delta 1 too.
    """
    same, chance = crafted(train, 1.0, 5)
    assert len(np.unique(same, axis=0)) == 1
    assert (np.asarray(chance) == 1).all()  # nothing was ever made less likely
    best = np.argsort(-np.asarray(train.dense()).sum(0)[BOUGHT], kind="stable")[:5]
    assert set(np.flatnonzero(same[0])) == {*BOUGHT[best], 4, 9}
    rows = np.asarray(crafted(train, 0.0, 5)[0])  # 10 items: two fake users, then again
    assert (rows[0] * rows[1]).sum() == 2  # the targets
    np.testing.assert_array_equal(rows[2:], rows[:2])
    rows = np.asarray(crafted(train, 0.0, 4)[0])[:, BOUGHT]  # the third takes the last two, and p is reset
    assert rows[:2].sum(0).max() == 1
    assert rows[2][rows[:2].sum(0) == 0].sum() == 2
    np.testing.assert_array_equal(rows[3].sum(), 4)


@pytest.mark.slow
def test_fake_users_are_made_in_turn(train, key):
    model = gmf(factors=2, epochs=2, batch=None, negatives=1, learning_rate=0.1)
    attack = attacks.dl_attack(
        fakes=3, budget=3, surrogate=model, rounds=2, delta=0.0, k=3, users=4, stages=2
    )
    profiles, history = attack.trace(key, train, jnp.array([3, 8]))
    rows = np.asarray(profiles.rows)
    assert (rows[:, [3, 8]] == 1).all()
    fillers = np.delete(rows, [3, 8], axis=1)
    np.testing.assert_array_equal(fillers.sum(1), 3)
    assert fillers.sum(0).max() == 1  # delta 0: no filler twice
    assert history["loss"].shape == (2,)
    assert ((history["target_hr"] >= 0) & (history["target_hr"] <= 1)).all()
    assert (history["loss"] >= -2).all()  # two targets, kappa 1


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"track": "explicit"}, ValueError, "'explicit'.*'implicit'"),
        ({"track": "sequence"}, ValueError, "'sequence'"),
        ({"goal": "demote"}, ValueError, "'demote'.*'promote'"),
        ({"budget": None}, ValueError, "budget is None"),
        ({"surrogate": wrmf}, TypeError, "expected a Recommender"),
        ({"delta": 1.5}, ValueError, "at most 1"),
        ({"rounds": 0}, ValueError, "rounds=0"),
        ({"kappa": -1.0}, ValueError, "kappa"),
    ],
)
def test_refusals(arguments, error, match):
    with pytest.raises(error, match=match):
        attacks.dl_attack(**{"fakes": 1, "budget": 2} | arguments)
