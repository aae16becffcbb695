"""One contract for every attack (C1): legal, within budget, pure, reproducible, batched; what a call refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import attacks
from models.data import Interactions, inject
from models.wrmf import wrmf

USERS, ITEMS, FAKES, TARGETS = 8, 10, 3, 2
MAKERS = {  # given a surrogate that costs nothing
    "random": lambda counting: attacks.random,
    "random-split": lambda counting: functools.partial(attacks.random, target_mode="split"),
    "top_popular": lambda counting: attacks.top_popular,
    "revadv-topk": lambda counting: functools.partial(
        attacks.revadv, wrmf(factors=2, epochs=3, scale=0.5, form="dense"), projection="topk", steps=2, k=3
    ),
    "revadv-threshold": lambda counting: functools.partial(
        attacks.revadv, counting, momentum=0.0, steps=3, k=3
    ),
    "revadv-clicks": lambda counting: functools.partial(
        attacks.revadv, counting, projection="topk", click_targets=True, steps=3, k=3
    ),
}
ALL = ITEMS - TARGETS
FAMILY = [(name, budget) for name in MAKERS for budget in (0, 4, ALL) if name != "revadv-topk" or budget == 4]
FAMILY += [("revadv-threshold", None)]


@pytest.fixture(scope="session")
def made(counting):
    """`made(name, budget)`: the attack and its compiled form."""

    @functools.cache
    def make(name, budget):
        attack = MAKERS[name](counting)(fakes=FAKES, budget=budget)
        return attack, jax.jit(attack)

    return make


dense = hnp.arrays(np.float32, (USERS, ITEMS), elements=st.sampled_from([0.0, 1.0]), fill=st.just(0.0))
target_sets = st.permutations(range(ITEMS)).map(lambda order: np.array(order[:TARGETS]))


@pytest.mark.parametrize(("name", "budget"), FAMILY, ids=str)
@given(matrix=dense, targets=target_sets, seed=st.integers(0, 2**31 - 1))
@settings(max_examples=15)
def test_profiles_are_legal_and_the_data_untouched(made, name, budget, matrix, targets, seed):
    _, run = made(name, budget)
    matrix[0, 0] = 1  # an empty data set is another test
    train = Interactions.from_dense(matrix, capacity=USERS * ITEMS)
    before = jax.tree.map(np.array, train)
    profiles = run(jax.random.key(seed), train, jnp.asarray(targets))
    profiles.validate(budget=budget, fakes=FAKES)
    np.testing.assert_array_equal(profiles.targets, targets)
    rows = np.asarray(profiles.to_rows())
    assert np.isin(rows, (0, 1)).all()
    if budget is not None:
        assert (np.delete(rows, targets, axis=1).sum(axis=1) <= budget).all()
    jax.tree.map(np.testing.assert_array_equal, train, before)
    poisoned = inject(train, profiles)
    np.testing.assert_array_equal(poisoned.dense()[:USERS], matrix)
    np.testing.assert_array_equal(poisoned.dense()[USERS:], rows)
    again = run(jax.random.key(seed), train, jnp.asarray(targets))
    assert rows.tobytes() == np.asarray(again.to_rows()).tobytes()


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((USERS, ITEMS)) < 0.4).astype(float))


@pytest.mark.parametrize("name", ["random", "random-split", "top_popular", "revadv-topk"])
def test_vmap_over_keys_and_over_target_sets_is_the_loop(made, train, make_keys, name):
    attack, run = made(name, 4)
    keys, sets = make_keys(3), jnp.array([[0, 1], [9, 4], [3, 7]])
    batch = jax.jit(jax.vmap(lambda key, targets: attack(key, train, targets).to_rows()))(keys, sets)
    loop = [run(key, train, targets).to_rows() for key, targets in zip(keys, sets, strict=True)]
    same = np.mean(np.asarray(batch) == np.stack(loop))
    assert same > 0.95, (
        f"{same:.2%} of the cells agree"
    )  # float32: a cell at the threshold may fall either way
    if not attack.steps:
        assert same == 1


@pytest.mark.parametrize("name", ["random", "top_popular", "revadv-threshold"])
def test_call_trace_run_and_jit_agree(made, train, key, name):
    attack, run = made(name, 4)
    targets = jnp.array([5, 6])
    called = run(key, train, targets).to_rows()
    traced, history = attack.trace(key, train, targets)
    driven = attacks.run(attack, key, train, targets)
    np.testing.assert_array_equal(traced.to_rows(), called)
    np.testing.assert_array_equal(driven.profiles.to_rows(), called)
    assert all(values.shape == (attack.steps,) for values in history.values())
    assert set(history) == set(driven.history)
    for metric, values in history.items():
        np.testing.assert_allclose(driven.history[metric], values, rtol=1e-5, err_msg=metric)


def test_the_repr_is_one_readable_line(made):
    attack, _ = made("revadv-topk", 4)
    assert repr(attack).startswith("revadv(surrogate=wrmf, fakes=3, budget=4, projection='topk'")
    rows = attacks.revadv(wrmf(), fakes=2, initial=np.zeros((2, ITEMS)))
    assert "initial=<float64[2, 10]>" in repr(rows)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["random", "revadv-topk"])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"targets": [0, 10]}, ValueError, "target 10"),
        ({"targets": [-1]}, ValueError, "target -1"),
        ({"targets": [3, 3]}, ValueError, "more than once"),
        ({"targets": []}, ValueError, "targets"),
        ({"targets": 3}, ValueError, r"shape \(\)"),
        ({"targets": [[1, 2]]}, ValueError, r"\(1, 2\)"),
        ({"targets": [0.5]}, TypeError, "integer"),
        ({"targets": np.array([2**32])}, ValueError, "4294967296"),
        ({"targets": list(range(7))}, ValueError, "budget is 4, but only 3 of the 10"),
        ({"key": 0}, TypeError, "jax.random.key"),
        ({"key": jax.random.PRNGKey(0)}, TypeError, "jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, "one key"),
        ({"train": np.eye(8, 10)}, TypeError, "from_arrays"),
        ({"train": Interactions.from_dense(5 * np.eye(8, 10))}, ValueError, "'explicit'"),
        ({"train": Interactions.from_arrays([0], [1], track="sequence")}, ValueError, "'sequence'"),
    ],
)
def test_a_call_refuses(made, train, key, name, change, error, match):
    arguments = {"key": key, "train": train, "targets": [1, 2]} | change
    with pytest.raises(error, match=match):
        made(name, 4)[0](**arguments)


def test_what_is_static_is_refused_inside_jit_too(made, train, key):
    with pytest.raises(ValueError, match="budget is 8, but only 7"):
        made("random", 8)[1](key, train, jnp.array([0, 1, 2]))
    with pytest.raises(ValueError, match="integer item ids"):
        made("random", 4)[1](key, train, jnp.array([0.0]))


def test_rows_to_start_from_are_refused_where_nothing_starts(made, train, key):
    with pytest.raises(ValueError, match="does not start from rows"):
        made("random", 4)[0](key, train, jnp.array([0]), initial=jnp.zeros((FAKES, ITEMS)))


def test_a_test_set_of_another_size_is_refused(made, train, key):
    other = Interactions.from_arrays([0], [0], users=USERS + 1, items=ITEMS)
    with pytest.raises(ValueError, match=r"9 users and 10 items, train has 8"):
        made("random", 4)[0].trace(key, train, jnp.array([0]), test=other)
