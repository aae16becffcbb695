"""`evaluate` against a brute-force oracle that sorts Python lists, and the invariants of the protocol (check C17)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from models.data.interactions import Interactions
from models.evaluation import evaluate

U, I, T, K = 8, 12, 3, 4


# ----------------------------------------------------------------------------------------------------- oracle
def oracle_rank(scores, seen, item, ties="id"):
    """Position of `item` among the unseen items, 0 if it was seen."""
    if seen[item]:
        return 0
    unseen = [i for i in range(len(scores)) if not seen[i]]
    tie = (lambda i: i) if ties == "id" else (lambda i: i == item)
    return sorted(unseen, key=lambda i: (-scores[i], tie(i))).index(item) + 1


def oracle_user(scores, seen, test, targets, k, ties="id"):
    """All metrics of one user, from the definitions."""
    unseen = [i for i in range(len(scores)) if not seen[i]]
    top = sorted(unseen, key=lambda i: (-scores[i], i))[:k]
    ranks = [oracle_rank(scores, seen, t, ties) for t in targets]
    inside = [1 <= r <= k for r in ranks]
    out = {
        "rank": ranks,
        "hr_any": float(any(inside)),
        "hr_mean": sum(inside) / len(inside),
        "hr_sum": float(sum(inside)),
        "hr_worst": float(any(1 <= oracle_rank(scores, seen, t, "worst") <= k for t in targets)),
    }
    wanted = {i for i in range(len(scores)) if test[i]}
    if wanted:
        hits = [i in wanted for i in top]
        ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(wanted))))
        out["recall"] = sum(hits) / len(wanted)
        out["precision"] = sum(hits) / k
        out["hr_test"] = float(any(hits))
        out["ndcg"] = sum(1 / math.log2(r + 2) for r, hit in enumerate(hits) if hit) / ideal
    return out


def draw_cases(rng, cases):
    """Scores of few values (many ties, -0.0, infinities), sparse and nearly full training rows, free test rows."""
    few = rng.choice([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf], size=(cases, U, I))
    fine = rng.normal(size=(cases, U, I))
    scores = np.where(rng.random((cases, 1, 1)) < 0.7, few, fine)
    seen = rng.random((cases, U, I)) < rng.choice([0.1, 0.4, 0.9], size=(cases, U, 1))
    test = rng.random((cases, U, I)) < rng.choice([0.0, 0.2, 0.5], size=(cases, U, 1))
    test[:, 0, :2] = True  # a case without any test item is an error, not a number
    targets = np.argsort(rng.random((cases, I)), axis=1)[:, :T]
    return scores, seen, test, targets


def run_case(scores, seen, test, targets, **options):
    train, held = (Interactions.from_dense(m.astype(float), capacity=U * I) for m in (seen, test))
    return evaluate(
        lambda u: scores[u], train, test=held, targets=targets, k=K, block=3, per_user=True, **options
    )


@pytest.mark.parametrize(
    ("ties", "users"), [("id", "all"), pytest.param("worst", "with_test", marks=pytest.mark.slow)]
)
def test_equals_the_oracle_on_5600_random_rankings(x64, rng, ties, users):
    cases = draw_cases(rng, 700)
    result = jax.jit(jax.vmap(lambda *case: run_case(*case, ties=ties, users=users)))(
        *map(jnp.asarray, cases)
    )
    assert result.recall.dtype == jnp.float64
    for c, (scores, seen, test, targets) in enumerate(zip(*cases)):
        rows = [oracle_user(scores[u], seen[u], test[u], targets, K, ties) for u in range(U)]
        np.testing.assert_array_equal(result.per_user.target_rank[c], [row["rank"] for row in rows])
        judged = rows if users == "all" else [row for row in rows if "recall" in row]
        for name in ("hr_any", "hr_mean", "hr_sum", "hr_worst"):
            want = sum(row[name] for row in judged) / len(judged)
            assert abs(float(getattr(result, name)[c]) - want) <= 1e-12, (name, c)
        tested = [row for row in rows if "recall" in row]
        for name in ("recall", "ndcg", "hr_test", "precision"):
            want = sum(row[name] for row in tested) / len(tested)
            assert abs(float(getattr(result, name)[c]) - want) <= 1e-12, (name, c)
        ranks = [r for row in judged for r in row["rank"] if r > 0]
        want = sum(ranks) / len(ranks) if ranks else math.nan
        np.testing.assert_allclose(result.target_rank[c], want, rtol=1e-12)
        held = seen[:, targets].any(axis=1)
        kept = held if users == "all" else held[test.any(axis=1)]
        assert int(result.seen_target_count[c]) == kept.sum()
        assert float(result.hr_any[c]) >= float(result.hr_mean[c])
        np.testing.assert_allclose(result.hr_target[c].sum(), result.hr_sum[c], rtol=1e-12)


# -------------------------------------------------------------------------------------------------- one world
@pytest.fixture
def world(rng):
    """150 users, 40 items, scores of few values: table, train, test, targets."""
    table = jnp.asarray(rng.integers(0, 9, size=(150, 40)), jnp.float32)
    train = Interactions.from_dense((rng.random((150, 40)) < 0.2).astype(float))
    test = Interactions.from_dense((rng.random((150, 40)) < 0.1).astype(float))
    return table, train, test, jnp.array([3, 17, 30])


def assert_same(a, b):
    """Equal to the bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_equal(a, b):
    """What is counted equal to the bit, means up to the rounding of another compilation."""

    def check(x, y):
        exact = not jnp.issubdtype(x.dtype, jnp.floating)
        np.testing.assert_allclose(x, y, rtol=0 if exact else 1e-6)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(check, a, b)


@pytest.mark.slow
def test_every_block_size_gives_the_same_bytes(world):
    table, train, test, targets = world
    results = [
        evaluate(lambda u: table[u], train, test=test, targets=targets, k=(5, 9), block=b, per_user=True)
        for b in (1, 7, 64, 1000)
    ]
    for other in results[1:]:
        assert_same(results[0], other)


def test_hand_example():
    train = Interactions.from_arrays([0, 1], [1, 1], users=2, items=4)
    table = jnp.array([[0.0, 9.0, 2.0, 1.0], [3.0, 9.0, 2.0, 1.0]])  # lists [2] and [0]
    result = evaluate(lambda u: table[u], train, targets=[2, 3], k=1)
    assert (float(result.hr_any), float(result.hr_mean), float(result.hr_sum)) == (0.5, 0.25, 0.5)
    np.testing.assert_array_equal(result.hr_target, [0.5, 0.0])
    assert float(result.target_rank) == (1 + 2 + 2 + 3) / 4
    assert (int(result.seen_target_count), int(result.users)) == (0, 2)
    assert result.recall is None
    assert result.per_user is None


def test_a_constant_model_has_no_exposure_in_the_worst_case(world):
    _, train, _, _ = world

    def constant(users):
        return jnp.zeros((users.shape[0], 40), jnp.bfloat16)  # half precision is where ties come from

    # Every list has more unseen items than places, so ties decide everything: the lowest ids get in, or nobody does.
    best = evaluate(constant, train, targets=[0, 1], k=5)
    worst = evaluate(constant, train, targets=[0, 1], k=5, ties="worst")
    assert float(best.hr_any) > 0.5
    assert float(best.hr_worst) == float(worst.hr_any) == float(worst.hr_mean) == float(worst.hr_sum) == 0.0


def test_target_metrics_over_all_users_or_those_with_test_items(world):
    table, train, test, targets = world
    test = test.keep(test.user < 30)
    everyone = evaluate(lambda u: table[u], train, test=test, targets=targets, k=5, per_user=True)
    some = evaluate(lambda u: table[u], train, test=test, targets=targets, k=5, users="with_test")
    has = np.asarray(everyone.per_user.test_count) > 0
    hit = ((everyone.per_user.target_rank >= 1) & (everyone.per_user.target_rank <= 5)).any(axis=1)
    assert int(everyone.users) == 150
    assert int(some.users) == has.sum() < 30 + 1
    np.testing.assert_allclose(everyone.hr_any, np.mean(hit), rtol=1e-6)
    np.testing.assert_allclose(some.hr_any, np.mean(np.asarray(hit)[has]), rtol=1e-6)
    assert float(everyone.hr_any) != float(some.hr_any)
    assert_same(everyone.recall, some.recall)  # test metrics are over the users with test items either way


def test_padding_changes_nothing(world):
    table, train, test, targets = world
    plain = evaluate(lambda u: table[u], train, test=test, targets=targets, k=5, per_user=True)
    padded = evaluate(
        lambda u: table[u],
        train.pad(train.capacity + 333),
        test=test.pad(test.capacity + 1),
        targets=targets,
        k=5,
        per_user=True,
    )
    assert_same(plain, padded)


def test_fake_rows_of_the_model_are_never_asked_for(world):
    table, train, test, targets = world
    poisoned = jnp.concatenate([table, jnp.full((9, 40), jnp.nan)])
    plain = evaluate(lambda u: table[u], train, test=test, targets=targets, k=5, block=64)
    assert_same(plain, evaluate(lambda u: poisoned[u], train, test=test, targets=targets, k=5, block=64))


@pytest.mark.slow
def test_vmap_over_target_sets_and_models_equals_a_loop(world, rng):
    table, train, test, _ = world
    sets = jnp.asarray(np.stack([rng.permutation(40)[:5] for _ in range(4)]))
    tables = jnp.stack([table, table[::-1], -table])

    def one(table, targets):
        return evaluate(lambda u: table[u], train, test=test, targets=targets, k=5, block=64, per_user=True)

    over_sets = jax.jit(jax.vmap(one, in_axes=(None, 0)))(table, sets)
    over_models = jax.jit(jax.vmap(one, in_axes=(0, None)))(tables, sets[0])
    one = jax.jit(one)
    for j in range(4):
        assert_equal(jax.tree.map(lambda leaf: leaf[j], over_sets), one(table, sets[j]))
    for j in range(3):
        assert_equal(jax.tree.map(lambda leaf: leaf[j], over_models), one(tables[j], sets[0]))


def test_vmap_over_training_sets_equals_a_loop(world, rng):
    table, _, _, targets = world
    worlds = [
        Interactions.from_dense((rng.random((150, 40)) < p).astype(float), capacity=4000) for p in (0.1, 0.5)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)
    both = jax.vmap(lambda train: evaluate(lambda u: table[u], train, targets=targets, k=5, block=64))(
        stacked
    )
    for j, train in enumerate(worlds):
        assert_equal(
            jax.tree.map(lambda leaf: leaf[j], both),
            evaluate(lambda u: table[u], train, targets=targets, k=5),
        )


def test_several_lengths_equal_one_at_a_time(world):
    table, train, test, targets = world
    many = evaluate(lambda u: table[u], train, test=test, targets=targets, k=(10, 40))
    assert many.hr_target.shape == (3, 2)
    for j, k in enumerate((10, 40)):
        one = evaluate(lambda u: table[u], train, test=test, targets=targets, k=k)
        for name in (
            "hr_any",
            "hr_mean",
            "hr_sum",
            "hr_worst",
            "hr_target",
            "recall",
            "ndcg",
            "hr_test",
            "precision",
        ):
            np.testing.assert_allclose(
                getattr(many, name)[..., j], getattr(one, name), rtol=1e-6, err_msg=name
            )
    # The whole catalog holds everything that was not seen.
    held = np.asarray(train.dense())[:, np.asarray(targets)] > 0
    np.testing.assert_allclose(many.hr_mean[1], np.mean(~held), rtol=1e-6)


def test_a_partial_is_compiled_once_for_all_parameters(world):
    table, train, _, targets = world
    traces = []

    def scores(table, users):
        traces.append(users)
        return table[users]

    first = evaluate(Partial(scores, table), train, targets=targets, k=5)
    evaluate(Partial(scores, table + 0), train, targets=targets, k=5)
    before = len(traces)
    again = evaluate(Partial(scores, -table), train, targets=targets[::-1], k=5)
    assert len(traces) == before + 1  # the shape check looks at it, nothing is compiled
    assert_equal(again, evaluate(lambda u: -table[u], train, targets=targets[::-1], k=5))
    assert float(again.target_rank) != float(first.target_rank)


ASKED = []


class Trained(NamedTuple):
    """A record of arrays with a method, as `models.train.Fitted`."""

    table: jax.Array

    def scores(self, users):
        ASKED.append(users)
        return self.table[users]


def test_a_method_of_a_fitted_model_is_compiled_once_too(world):
    table, train, _, targets = world
    evaluate(Trained(table).scores, train, targets=targets, k=5)
    before = len(ASKED)
    again = evaluate(Trained(-table).scores, train, targets=targets, k=5)
    assert len(ASKED) == before + 1  # the shape check
    assert_equal(again, evaluate(lambda u: -table[u], train, targets=targets, k=5))


def test_nan_scores_give_nan_and_only_unseen_ones_count(world):
    table, train, test, targets = world
    user, seen = int(train.user[0]), int(train.item[0])
    free = int(np.flatnonzero(np.asarray(train.dense())[user] == 0)[0])
    hidden, bad = table.at[user, seen].set(jnp.nan), table.at[user, free].set(jnp.nan)
    options = {"test": test, "targets": targets, "k": 5, "per_user": True}
    clean = evaluate(lambda u: table[u], train, **options)
    masked = evaluate(lambda u: hidden[u], train, **options)
    assert float(masked.hr_any) == float(clean.hr_any)
    broken = evaluate(lambda u: bad[u], train, **options)
    assert all(
        math.isnan(float(getattr(broken, name))) for name in ("hr_any", "hr_mean", "hr_worst", "target_rank")
    )
    assert math.isnan(float(broken.recall)) == bool(clean.per_user.test_count[user] > 0)
    np.testing.assert_array_equal(broken.per_user.valid, np.arange(150) != user)
    np.testing.assert_array_equal(broken.per_user.target_rank[user], 0)


def test_events_lost_in_a_trace_give_nan_not_an_unmasked_ranking(world):
    table, train, _, targets = world

    @jax.jit
    def run(matrix):
        small = Interactions.from_dense(matrix, capacity=10)  # too small: it says so by NaN weights
        return evaluate(lambda u: table[u], small, targets=targets, k=5).hr_any

    assert math.isnan(float(run(train.dense())))


def test_sequences_with_repeats_count_an_item_once():
    train = Interactions.from_arrays([0, 0, 0], [1, 1, 3], users=1, items=6, track="sequence")
    test = Interactions.from_arrays([0, 0], [2, 2], users=1, items=6, track="sequence")
    result = evaluate(lambda u: -jnp.arange(6.0)[None], train, test=test, k=2)
    assert float(result.recall) == 1.0
    assert float(result.precision) == 0.5


# -------------------------------------------------------------------------------------------- malformed calls
def table_scores(users):
    return jnp.zeros((users.shape[0], 6))


MALFORMED = {
    "k above the items": ({"k": 7}, ValueError, "k=7 is longer than the list of all 6 items"),
    "k of zero": ({"k": 0}, ValueError, "k=0"),
    "k a float": ({"k": 5.0}, ValueError, "k=5.0"),
    "k a bool": ({"k": True}, ValueError, "k=True"),
    "k empty": ({"k": ()}, ValueError, r"k=\(\)"),
    "k one too long": ({"k": (2, 9)}, ValueError, "k=9"),
    "target past the items": ({"targets": [1, 6]}, ValueError, r"target 6 is outside 0\.\.5"),
    "target negative": ({"targets": [-1]}, ValueError, "target -1 is outside"),
    "target twice": ({"targets": [2, 3, 2]}, ValueError, "target 2 is given more than once"),
    "targets of floats": ({"targets": [0.5]}, TypeError, "targets must be integer item ids"),
    "targets a number": ({"targets": 3}, ValueError, "shape"),
    "targets empty": ({"targets": np.zeros(0, int)}, ValueError, "at least one item id"),
    "target sets without vmap": ({"targets": [[0, 1], [2, 3]]}, ValueError, "jax.vmap"),
    "nothing to do": ({"targets": None}, ValueError, "give test=, targets= or both"),
    "unknown users": ({"users": "everyone"}, ValueError, "users='everyone'"),
    "unknown ties": ({"ties": "best"}, ValueError, "ties='best'"),
    "with_test, no test": ({"users": "with_test"}, ValueError, "give test="),
    "block of zero": ({"block": 0}, ValueError, "block=0"),
    "scores a table": ({"scores": np.zeros((4, 6))}, TypeError, "lambda users: table"),
    "scores too narrow": ({"scores": lambda u: jnp.zeros((u.shape[0], 5))}, ValueError, r"shape \(4, 6\)"),
    "scores of integers": (
        {"scores": lambda u: jnp.zeros((u.shape[0], 6), int)},
        ValueError,
        "expected floats",
    ),
    "scores of one user": ({"scores": lambda u: jnp.zeros(6)}, ValueError, "expected floats of shape"),
    "train a matrix": ({"train": np.zeros((4, 6))}, TypeError, "train must be Interactions; got ndarray"),
    "test a matrix": ({"test": np.zeros((4, 6))}, TypeError, "test must be Interactions; got ndarray"),
    "test of other items": (
        {"test": Interactions.from_arrays([0], [0], users=4, items=7)},
        ValueError,
        "4 users x 6 items but test has 4 x 7",
    ),
    "train with fakes": (
        {"test": Interactions.from_arrays([0], [0], users=3, items=6)},
        ValueError,
        "clean training set, not by one with fake users",
    ),
    "test without events": (
        {"test": Interactions.from_arrays(np.zeros(0, int), np.zeros(0, int), users=4, items=6)},
        ValueError,
        "test has no event",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_calls_are_refused_with_a_reason(name):
    wrong, kind, message = MALFORMED[name]
    train = Interactions.from_arrays([0, 1, 3], [1, 2, 3], users=4, items=6)
    call = {"scores": table_scores, "train": train, "targets": [1, 2], "k": 3} | wrong
    with pytest.raises(kind, match=message):
        evaluate(call.pop("scores"), call.pop("train"), **call)


def test_unsorted_events_are_refused():
    good = Interactions.from_arrays([0, 1, 3], [1, 2, 3], users=4, items=6)
    for user, weight in ((good.user[::-1], good.weight), (good.user, good.weight.at[1].set(0))):
        bad = Interactions(user, good.item, weight, None, users=4, items=6)
        with pytest.raises(ValueError, match="not sorted by user with its padding last"):
            evaluate(table_scores, bad, targets=[1], k=3)
