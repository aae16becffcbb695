"""CoVis / ConsLOP: costs against brute force, the knapsack against a linear program, promises against the victim."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

import attacks
from attacks.covisitation import _few_lists, _lists, knapsack, least, plan_clicks, plan_rows
from models import covisitation as victim
from models import sparse
from models.data import Interactions, inject

USERS, ITEMS, EVENTS, FAKES, K = 10, 9, 40, 3, 2


def visits(seed):
    """Sequences with repeats, and an item 0 that few visit."""
    rng = np.random.default_rng(seed)
    item = np.minimum(rng.integers(0, ITEMS, EVENTS), rng.integers(0, ITEMS, EVENTS))[::-1]
    item = np.where(rng.random(EVENTS) < 0.8, ITEMS - 1 - item, item)
    user = rng.integers(0, USERS, EVENTS)
    return Interactions.from_arrays(
        user, item, time=np.arange(EVENTS), users=USERS, items=ITEMS, track="sequence"
    )


def strengths(data, normalization):
    """s_aj of the recommender under attack, visited items in rows."""
    made = victim.prepare(data, normalization=normalization, history=1)
    return sparse.spread(made.value, jnp.eye(ITEMS), made.pairs)


def counted(data, normalization):
    """The same by loops over the log."""
    w, count = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    log = sorted(zip(*(np.asarray(column)[data.real()] for column in (data.user, data.time, data.item))))
    for _, _, item in log:
        count[item] += 1
    for (user, _, a), (following, _, b) in itertools.pairwise(log):
        if user == following and a != b:
            w[a, b] += 1
            w[b, a] += 1
    count = np.maximum(count, 1)
    over = {"cosine": np.sqrt(np.outer(count, count)), "none": 1.0, "target": count[None, :]}[normalization]
    return w / over


def shown(strength, anchor, k):
    """The list of an anchor, best first, equal scores by id."""
    others = [j for j in range(ITEMS) if j != anchor]
    return sorted(others, key=lambda j: (-strength[anchor, j], j))[:k]


@functools.cache
def crafted(normalization, clicks):
    attack = attacks.covisitation(
        fakes=FAKES, clicks=clicks, track="sequence", k=K, normalization=normalization
    )

    def run(key, train, target):
        planned = plan_clicks(train, target, FAKES, clicks, k=K, normalization=normalization)
        profiles = attack(key, train, target[None])
        return planned, profiles, strengths(inject(train, profiles), normalization)

    return jax.jit(run)


@pytest.mark.parametrize(("normalization", "clicks"), [("cosine", 7), ("target", 6), ("none", 5)])
def test_promised_anchors_recommend_the_target_in_the_victim(normalization, clicks):
    kept, missed = 0, 0
    for seed in range(25):
        train, target = visits(seed), seed % 3
        planned, profiles, after = crafted(normalization, clicks)(
            jax.random.key(seed), train, jnp.int32(target)
        )
        by_loops = counted(inject(train, profiles), normalization)
        np.testing.assert_allclose(after, by_loops, rtol=1e-6)
        for anchor in np.flatnonzero(planned.promised):
            assert target in shown(by_loops, anchor, K), (seed, anchor, planned)
            kept += planned.cost[anchor] > 0
        missed += sum(
            target not in shown(by_loops, anchor, K)
            for anchor in range(ITEMS)
            if anchor != target and not planned.promised[anchor]
        )
    assert kept > 20  # promises that cost something
    assert missed > 20  # and anchors that were too dear


def test_one_co_visit_less_does_not_do():
    """The cost is the least: with the anchor alone and one pair less, the target is not in its list."""
    checked, target = 0, 0
    plan = jax.jit(lambda train: plan_clicks(train, jnp.int32(target), 1, 10, k=K, normalization="none"))
    for seed in range(25):
        train = visits(seed)
        planned = plan(train)
        for anchor in range(1, ITEMS):
            cost = int(planned.cost[anchor])
            if 0 < cost <= 5:
                w = counted(train, "none")
                gain = 2 * (cost - 1) - (cost > 1)  # one profile: its last pair makes one co-visit
                w[anchor, target] += gain
                above = np.sum(np.delete(w[anchor], [target, anchor]) >= w[anchor, target])
                assert above >= K
                checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    "place", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, ITEMS - 2, ITEMS - 1, ITEMS + 3))]
)
def test_what_a_target_has_to_beat_is_the_same_from_the_pairs_there_are(place):
    @jax.jit
    def both(train, target, over):
        found = victim.prepare(train, normalization="none", history=1)
        covisits = lambda unit: sparse.spread(found.value, unit, found.pairs)
        dense = _lists(covisits, over, target[None], jnp.arange(ITEMS) == target, place)
        return dense, _few_lists(found.pairs, over, target, place)

    for seed in range(10):
        over = jnp.asarray(1 + np.random.default_rng(seed).random(ITEMS), jnp.float32)
        dense, few = both(visits(seed), jnp.int32(seed % ITEMS), over)
        np.testing.assert_allclose(few[0], dense[0], rtol=1e-6)
        np.testing.assert_array_equal(few[1], dense[1])


def test_sequences_alternate_and_one_target_is_drawn(key):
    train = visits(0)
    attack = attacks.covisitation(fakes=FAKES, clicks=7, track="sequence", k=K)
    profiles = attack(key, train, jnp.array([0, 5]))
    clicks = np.asarray(profiles.clicks)
    assert len(np.unique(clicks[:, ::2])) == 1
    assert clicks[0, 0] in (0, 5)
    assert clicks[0, 0] not in clicks[:, 1::2]
    assert not profiles.clicks_targets
    drawn = {int(attack(jax.random.key(n), train, jnp.array([0, 5])).clicks[0, 0]) for n in range(8)}
    assert drawn == {0, 5}


@given(
    costs=st.lists(st.integers(1, 30), min_size=6, max_size=6),
    values=st.lists(st.integers(0, 20), min_size=6, max_size=6),
    budget=st.integers(0, 120),
)
def test_the_greedy_plan_solves_the_linear_program(costs, values, budget):
    costs, values = np.array(costs), np.array(values)
    order = np.argsort(-values / costs, kind="stable")
    take = np.asarray(_knapsack(jnp.asarray(costs), jnp.asarray(order), budget))
    best = scipy.optimize.linprog(-values, A_ub=costs[None], b_ub=[budget], bounds=(0, 1))
    np.testing.assert_allclose(values @ (take / costs), -best.fun, atol=1e-9)
    assert take.sum() == min(budget, costs.sum())
    part = (take > 0) & (take < costs)
    assert part.sum() <= 1  # whole items and at most one fraction of one
    assert values[take == costs].sum() >= -best.fun - (values[part].sum() if part.any() else 0) - 1e-9


_knapsack = jax.jit(knapsack)


def test_a_sum_of_costs_beyond_int32_is_no_problem():
    cost = jnp.full(5, 2**29, jnp.int32)
    assert knapsack(cost, jnp.arange(5), 2**29 + 3).tolist() == [2**29, 3, 0, 0, 0]


@pytest.mark.parametrize("most", [0, 1, 6, 7, 8])
def test_bisection_finds_the_least(most):
    bounds = jnp.arange(12)
    assert least(lambda n: n >= bounds, 12, most).tolist() == [min(n, most + 1) for n in range(12)]


@pytest.mark.parametrize("normalization", ["cosine", "target", "none"])
def test_costs_of_rows_are_those_of_counting(rng, normalization):
    """n_a on rows against trying every n; two targets are to be shown together."""
    matrix = (rng.random((30, ITEMS)) < np.linspace(0.05, 0.7, ITEMS)).astype(float)
    train, targets, k, fakes = Interactions.from_dense(matrix), np.array([0, 1]), 3, 20
    plan = functools.partial(plan_rows, fakes=fakes, budget=2, k=k, normalization=normalization)
    planned = jax.jit(plan)(train, jnp.asarray(targets))
    w, count = matrix.T @ matrix, matrix.sum(0)
    np.fill_diagonal(w, 0)
    final = count + fakes * np.isin(np.arange(ITEMS), targets)
    for anchor in range(2, ITEMS):
        for n in range(200):
            now = w[anchor].copy()
            now[targets] += n
            over = {"cosine": np.sqrt(final), "none": 1.0, "target": final}[normalization]
            above = np.delete(now / over, [anchor, *targets])
            if all(np.sum(above >= (now / over)[t] - 1e-9) <= k - 2 for t in targets):
                break
        assert planned.cost[anchor] == n, anchor
    np.testing.assert_allclose(planned.value, count / count.sum(), rtol=1e-6)


def test_rows_spend_the_budget_on_the_best_anchors(rng, key):
    train = Interactions.from_dense((rng.random((30, ITEMS)) < np.linspace(0.05, 0.7, ITEMS)).astype(float))
    targets = jnp.array([0, 1])
    for budget in (3, ITEMS - 2):
        plan = functools.partial(plan_rows, fakes=5, budget=budget, k=3, normalization="cosine")
        planned = jax.jit(plan)(train, targets)
        rows = attacks.covisitation(fakes=5, budget=budget, k=3)(key, train, targets).to_rows()
        np.testing.assert_array_equal(rows.sum(axis=1), budget + 2)
        np.testing.assert_array_equal(rows.sum(axis=0)[2:], planned.take[2:])
        inside = np.asarray(planned.order)[: ITEMS - 2]
        dear = inside[
            np.asarray(planned.cost)[inside] > 0
        ]  # what costs nothing is only bought with what is left
        assert (np.diff((np.asarray(planned.take)[dear] > 0).astype(int)) <= 0).all()  # none is skipped


def test_the_whole_plan_of_rows_solves_the_linear_program():
    """With what one anchor can be given as a bound: dear anchors are bought in part, not passed over."""
    fakes, budget, parts, targets = 4, 3, 0, jnp.array([0, 1])
    plan = functools.partial(plan_rows, fakes=fakes, budget=budget, k=3, normalization="cosine")
    plan = jax.jit(plan)
    for seed in range(20):
        drawn = np.random.default_rng(seed).random((40, ITEMS))
        chosen = (drawn < np.linspace(0.05, 0.8, ITEMS)).astype(float)
        train = Interactions.from_dense(chosen, capacity=drawn.size)  # one size: one compilation
        planned = plan(train, targets)
        value, cost = np.asarray(planned.value, float)[2:], np.asarray(planned.cost)[2:]
        most = np.minimum(1, fakes / np.maximum(cost, 1))
        best = scipy.optimize.linprog(
            -value, A_ub=cost[None], b_ub=[fakes * budget], bounds=list(zip(0 * most, most))
        )
        share = np.minimum(np.where(cost > 0, np.asarray(planned.take)[2:] / np.maximum(cost, 1), 1), 1)
        np.testing.assert_allclose(value @ share, -best.fun, rtol=1e-5)
        parts += ((cost > fakes) & (share > 0)).sum()
    assert parts > 5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"track": "explicit", "budget": 2}, "'explicit'.*no use for ratings"),
        ({"goal": "demote", "budget": 2}, "'demote'.*only promote"),
        ({"goal": "availability", "budget": 2}, "'availability'"),
        ({}, "budget is None"),
        ({"track": "sequence"}, "clicks is None"),
        ({"track": "sequence", "clicks": 4, "budget": 2}, "clicks and budget"),
        ({"clicks": 4, "budget": 2}, "clicks is 4 on the 'implicit' track"),
        ({"budget": 2, "k": 0}, "k=0"),
        ({"budget": 2, "normalization": "jaccard"}, "'jaccard'"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        attacks.covisitation(fakes=1, **arguments)


def test_more_targets_than_a_list_shows_are_refused(rng, key):
    train = Interactions.from_dense(np.eye(4, 6))
    with pytest.raises(ValueError, match="k is 1, but a list has to show 2 targets"):
        attacks.covisitation(fakes=1, budget=2, k=1)(key, train, jnp.array([0, 1]))
