"""TNA: its gradient against a dense reference, what it leaves, and whom S-TNA takes for influential."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
import bilevel
from attacks import kkt
from attacks.tna import tna as make
from models.data import Interactions

USERS, ITEMS, FACTORS, FAKES, BUDGET, K = 12, 9, 2, 3, 3, 2
GRID = (1.0, 5.0, 1.0)
TARGETS = jnp.array([2, 7])


def double(tree):
    return jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, tree)


@pytest.fixture
def rating(rng):
    given = rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.6)
    given[4], given[:, 7] = 0, 0  # a user without ratings and a target nobody rated
    return given.astype(float)


@pytest.fixture
def train(rating):
    return Interactions.from_dense(rating, track="explicit", capacity=USERS * ITEMS)


def attack_of(**options):
    settings = {"fakes": FAKES, "budget": BUDGET, "ratings": GRID, "factors": FACTORS, "k": K, "sweeps": 3}
    return make(**{**settings, **options})


def plan_of(**options):
    return attack_of(**options).init.__self__


@pytest.mark.parametrize("goal", ["promote", "demote"])
def test_the_gradient_against_finite_differences_of_the_equations(x64, rng, train, rating, key, goal):
    """`q_j = S_j^-1 (sum r p + w_j p_v)`, v in `Omega` of the targets only; p_v, lists and users' factors held."""
    plan = plan_of(goal=goal, width=0.3)
    train = double(train)
    row = np.zeros((FAKES, ITEMS))
    row[0, [0, 2, 7]] = 5.0  # an earlier fake user
    w = rng.random(ITEMS)
    w[TARGETS] = 1.0 if goal == "promote" else 0.2

    @jax.jit
    def run(w):
        state = double(plan.init(key, train, TARGETS))._replace(rows=jnp.asarray(row), made=jnp.int32(1))
        state = state._replace(found=plan.refit(state.found, state.rows, train, 2))
        view = plan.view(state, train, TARGETS)
        own = plan.factors_of(w, view, TARGETS)
        return state.found.user, view.item, own, *plan.gradient(w, view, TARGETS)

    P, item, p, loss, _, gradient = (np.asarray(leaf) for leaf in run(jnp.asarray(w)))
    values = np.vstack([rating, row]) / 5
    others = np.setdiff1d(np.arange(ITEMS), TARGETS)
    best = others[np.argsort(-w[others])[:BUDGET]]
    rated = np.append(best, TARGETS)
    Q = item[rated]
    np.testing.assert_allclose(p, np.linalg.solve(Q.T @ Q + np.eye(2), Q.T @ w[rated]), rtol=1e-8)

    def items(w):
        solved = []
        for j in range(ITEMS):
            raters = values[:, j] > 0
            S = P[raters].T @ P[raters] + np.eye(FACTORS) + (j in TARGETS) * np.outer(p, p)
            solved.append(np.linalg.solve(S, P.T @ values[:, j] + w[j] * p))
        return np.stack(solved)

    def g(x):
        return 1 / (1 + np.exp(-x / 0.3))

    closed = (rating > 0) | np.isin(np.arange(ITEMS), TARGETS)
    R = P[:USERS] @ items(w).T
    shown = [[i for i in np.argsort(-R[u], kind="stable") if not closed[u, i]][:K] for u in range(USERS)]
    sign = 1 if goal == "promote" else -1

    def total(w):
        R = P[:USERS] @ items(w).T
        users_lacking = [(u, t) for u in range(USERS) for t in np.asarray(TARGETS) if rating[u, t] == 0]
        return sum(g(sign * (R[u, i] - R[u, t])) for u, t in users_lacking for i in shown[u])

    np.testing.assert_allclose(loss, total(w), rtol=1e-8)
    step = 1e-6 * np.eye(ITEMS)
    moved = [(total(w + h) - total(w - h)) / 2e-6 for h in step]
    np.testing.assert_allclose(gradient, moved, rtol=1e-5, atol=1e-7)
    assert np.abs(moved).max() > 0.01


def test_g_and_its_gradient_do_not_overflow(train, key):
    """With b = 1e-4 and scores of order 1, `exp` of the difference would be infinite."""
    plan = plan_of(width=1e-4)

    @jax.jit
    def gradient_at(w):
        return plan.gradient(w, plan.view(plan.init(key, train, TARGETS), train, TARGETS), TARGETS)

    loss, _, gradient = gradient_at(jnp.ones(ITEMS))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@functools.cache
def crafted(**options):
    attack = attack_of(**options)
    return jax.jit(lambda key, train: attack.trace(key, train, TARGETS))


@pytest.mark.slow
def test_profiles_rate_the_targets_and_do_not_depend_on_stages(train, key):
    profiles, history = crafted(stages=1)(key, train)
    again, more = crafted(stages=2)(key, train)  # two fake users, then one
    np.testing.assert_array_equal(profiles.rows, again.rows)
    np.testing.assert_allclose(history["loss"][-1], more["loss"][-1], rtol=1e-5)
    attack_of().threat.validate(profiles, USERS)
    assert (np.asarray(profiles.rows)[:, TARGETS] == 5).all()
    assert ((np.asarray(profiles.rows) > 0).sum(axis=1) == BUDGET + 2).all()


def test_targets_rise_in_the_attackers_model(rng, key):
    rated = np.clip(3 + rng.normal(size=(30, 2)) @ rng.normal(size=(2, 20)), 1, 5) * (
        rng.random((30, 20)) < 0.5
    )
    rated[:, 7] = 0
    train = Interactions.from_dense(rated, track="explicit")
    attack = make(fakes=4, budget=5, ratings=(1, 5, 0.5), factors=2, k=5, sweeps=5, width=0.1, stages=4)
    _, history = attack.trace(key, train, jnp.array([7]))
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["target_hr"][-1] > history["target_hr"][0]


@pytest.mark.slow
def test_a_huge_penalty_empties_the_row_and_leaves_the_lowest_ids(train, key):
    plan = plan_of(penalty=1e6, steps=2, goal="demote")

    @jax.jit
    def run(w):
        state = plan.init(key, train, TARGETS)
        made = jax.lax.fori_loop(0, 2, lambda _, state: plan.make(state, train, TARGETS), state)
        return plan.learn(w, plan.view(state, train, TARGETS), TARGETS)[0], made.rows

    w, rows = run(jnp.ones(ITEMS))
    np.testing.assert_array_equal(np.delete(w, TARGETS), 0)
    chosen = [set(np.flatnonzero(row)) for row in np.asarray(rows)]
    assert chosen == [{0, 1, 2, 3, 7}, {0, 1, 2, 3, 7}, set()]
    assert (np.asarray(rows)[:2, TARGETS] == 1).all()


# ------------------------------------------------------------------------------------------------ S


@pytest.mark.slow
def test_everybody_in_s_is_tna(train, key):
    whole, _ = crafted(stages=1)(key, train)
    same, _ = crafted(stages=1, subset="influence", share=1.0)(key, train)
    assert np.asarray(whole.rows).tobytes() == np.asarray(same.rows).tobytes()


@pytest.mark.slow
def test_s_has_the_users_of_the_largest_influence(train, make_keys):
    plan = plan_of(subset="influence", share=0.34, sweeps=1)

    @jax.jit
    def chosen(key):
        state = plan.init(key, train, TARGETS)
        solver = bilevel.cg(damping=1.0)
        found = kkt.influence(plan.model, state.found, train, TARGETS, highest=5.0, solver=solver)
        return state.users, jnp.abs(found.effect)

    users, effect = chosen(jax.random.key(0))
    np.testing.assert_array_equal(users, np.sort(np.argsort(-effect, kind="stable")[:4]))
    control = plan_of(subset="random", share=0.34, sweeps=1)
    drawn = jax.jit(jax.vmap(lambda key: control.init(key, train, TARGETS).users))(make_keys(5))
    assert all(len(set(users)) == 4 for users in np.asarray(drawn))
    assert len({tuple(users) for users in np.asarray(drawn)}) > 1


def retrained(rated, l2, sweeps):
    """`(weights (B, U), item) -> factors`: ALS with each user's ratings weighted, dense, for several weightings."""

    def half(B, C, R):
        normal = jnp.einsum("rc,cd,ce->rde", C, B, B) + l2 * jnp.eye(2)
        a, b, d = normal[:, 0, 0], normal[:, 0, 1], normal[:, 1, 1]
        right = (C * R) @ B
        turned = jnp.stack([d * right[:, 0] - b * right[:, 1], a * right[:, 1] - b * right[:, 0]], axis=1)
        return turned / (a * d - b * b)[:, None]

    def one(weight, item):
        cells = jnp.asarray(rated > 0, float) * weight[:, None]
        users = lambda item: half(item, cells, jnp.asarray(rated / 5))
        sweep = lambda _, item: half(users(item), cells.T, jnp.asarray(rated.T / 5))
        item = jax.lax.fori_loop(0, sweeps, sweep, item)
        return users(item), item

    return jax.jit(jax.vmap(one, (0, None)))


def test_influence_is_the_derivative_of_retraining_and_ranks_leaving_out(x64):
    """Exactly in the weight of a user's ratings; of removal it is the first order, on the predictions for others.

    The ridge is small: with a large one a user's own factors shrink on the way out, which no first order sees.
    """
    rng, targets = np.random.default_rng(0), np.array([3, 7])
    low_rank = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 20))
    rated = np.clip(3 + 0.8 * low_rank + 0.3 * rng.normal(size=(30, 20)), 1, 5) * (rng.random((30, 20)) < 0.5)
    retrain = retrained(rated, 0.1, 1500)
    whole, one = jnp.ones((30, 30)), jnp.eye(30)
    user, item = (leaf[0] for leaf in retrain(whole, jnp.asarray(rng.normal(size=(20, 2)))))
    solve = functools.partial(
        kkt.influence,
        kkt.Ridge(factors=2, l2=0.1),
        highest=5.0,
        solver=bilevel.cg(rtol=1e-10, max_steps=500),
    )
    train = double(Interactions.from_dense(rated, track="explicit"))
    solved = jax.jit(solve)(kkt.Factors(user, item), train, jnp.asarray(targets))
    assert int(solved.linear.code) == 0

    def predicted(found):
        return np.einsum("bud,btd->but", found[0], found[1][:, targets]) * (rated[:, targets] == 0)

    moved = [predicted(retrain(whole + step * one, item)).sum((1, 2)) for step in (1e-3, -1e-3)]
    np.testing.assert_allclose(solved.effect, (moved[0] - moved[1]) / 2e-3, rtol=1e-3, atol=1e-5)

    change = predicted((user[None], item[None])) - predicted(retrain(whole - one, item))
    others = (change.sum(2) * (1 - np.eye(30))).sum(1)
    rank = lambda values: np.argsort(np.argsort(values))
    assert np.corrcoef(rank(solved.effect), rank(others))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"track": "implicit"}, ValueError, "pga and revadv"),
        ({"goal": "availability"}, ValueError, "knows no others"),
        ({"budget": None}, ValueError, "budget is None"),
        ({"subset": "greedy"}, ValueError, "subset is 'greedy'"),
        ({"subset": "random", "share": 0.0}, ValueError, "share is 0.0"),
        ({"share": 0.5}, ValueError, "subset 'all' has every user in S"),
        ({"linear": bilevel.cg()}, ValueError, "subset 'all' solves for no influences"),
        (
            {"subset": "random", "linear": bilevel.cg()},
            ValueError,
            "subset 'random' solves for no influences",
        ),
        ({"width": 0.0}, ValueError, "width=0.0"),
        ({"penalty": -1.0}, ValueError, "penalty=-1.0"),
        ({"stages": 0}, ValueError, "stages=0"),
        ({"subset": "influence", "linear": "cg"}, TypeError, "bilevel.cg"),
        ({"ratings": (0.0, 5.0, 1.0)}, ValueError, "0 < low"),
    ],
    ids=str,
)
def test_a_factory_refuses(options, error, match):
    with pytest.raises(error, match=match):
        attack_of(**options)


def test_it_is_in_the_package():
    assert attacks.tna is make
