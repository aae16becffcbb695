"""DL-Attack: the attacker's loss, where its gradient goes, and how fillers are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.dl_attack import Wish, behind, choose
from bilevel import Ctx
from models.data import Interactions, sample
from models.ncf import gmf, neumf
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


def chosen(delta, fakes, budget, predicted, targets):
    """Fillers of fake users who all get the same predictions."""
    chance, rows = jnp.ones(ITEMS), []
    for _ in range(fakes):
        fillers, chance = choose(predicted, chance, targets, budget, delta)
        rows.append(np.asarray(fillers))
    return np.array(rows)


def test_delta_one_repeats_the_fillers_and_delta_zero_forbids_it_until_all_are_used(rng):
    predicted, targets = jnp.asarray(rng.random(ITEMS)), jnp.array([4, 9])
    same = chosen(1.0, 4, 3, predicted, targets)
    assert len(np.unique(same, axis=0)) == 1
    rows = chosen(0.0, 5, 5, predicted, targets)  # 10 items: two fake users, then again
    assert rows[0] @ rows[1] == 0
    np.testing.assert_array_equal(rows[2:4], rows[:2])
    np.testing.assert_array_equal(rows[4], rows[0])
    assert (rows[:, [4, 9]] == 0).all()
    best = np.argsort(-np.where(np.isin(np.arange(ITEMS), targets), -1, predicted))[:5]
    assert set(np.flatnonzero(rows[0])) == set(best)
    rows = chosen(0.0, 3, 4, predicted, targets)  # the third takes the last two, and p is reset
    assert rows[:2].sum(0).max() == 1
    assert rows[2][rows[:2].sum(0) == 0].sum() == 2


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
