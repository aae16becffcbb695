"""Action spaces: shape of the trees, probabilities, and sampling against them (C9)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks import tree

DESIGNS = ["plain", "bplain", "bcbt-popular", "bcbt-random"]
ITEMS, TARGETS = 28, np.arange(8) + 11  # one shape for all


@pytest.mark.parametrize("count", range(1, 18))
def test_a_complete_tree_has_its_leaves_from_left_to_right(count):
    made = tree.complete(count)

    def walk(node):  # brute force: left before right
        return [node] if 2 * node + 1 > 2 * count - 2 else walk(2 * node + 1) + walk(2 * node + 2)

    assert made.leaves.tolist() == walk(0)
    for leaf, chosen, other in zip(made.leaves, made.chosen, made.other, strict=True):
        way = [int(node) for node in chosen if node >= 0]
        assert [0, *way][-1] == leaf
        assert len(way) == int(leaf + 1).bit_length() - 1
        for parent, a, b in zip([0, *way], way, other, strict=False):
            assert {a, int(b)} == {2 * parent + 1, 2 * parent + 2}


def test_the_leaf_order_of_five_is_the_specification_s():
    assert tree.complete(5).leaves.tolist() == [7, 8, 4, 5, 6]


def test_no_leaf_at_all_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        tree.complete(0)


@pytest.mark.parametrize("others", range(1, 18))
def test_probabilities_over_the_leaves_sum_to_one_for_every_size(others, rng):
    for targets in (1, others):
        joined = tree._joined(targets, others)
        lean = rng.normal(size=2 * (targets + others) - 1)  # what a node's embedding says to the policy
        total = 0.0
        for chosen, other in zip(joined.chosen, joined.other, strict=True):
            inside = chosen >= 0
            total += np.prod(1 / (1 + np.exp(lean[other[inside]] - lean[chosen[inside]])))
        np.testing.assert_allclose(total, 1, rtol=1e-12)
        assert sorted(joined.leaf) == [n for n in range(len(lean)) if joined.left[n] == n]


@pytest.fixture(scope="module", params=DESIGNS)
def space(request):
    popularity = jnp.asarray(np.random.default_rng(0).integers(0, 5, ITEMS))
    return jax.jit(partial(tree.make_space, request.param))(
        jax.random.key(0), popularity, jnp.asarray(TARGETS)
    )


def test_probabilities_sum_to_one_and_are_what_is_sampled(space, rng):
    table = jnp.asarray(rng.normal(size=(ITEMS + space.inner, 3)), jnp.float32)
    q, count = jnp.asarray(rng.normal(size=3), jnp.float32), 20_000

    @jax.jit
    def run(table, q, keys):
        items, logs = jax.vmap(tree.sample, (None, None, None, 0))(space, table, q, keys)
        again = jax.vmap(tree.log_probs, (None, None, None, 0))(space, table, q, items)
        inside = jax.vmap(tree.taken, (None, 0))(space, items)
        return tree.probabilities(space, table, q), items, logs, again, inside

    expected, items, logs, again, inside = run(table, q, jax.random.split(jax.random.key(1), count))
    np.testing.assert_allclose(jnp.sum(expected), 1, rtol=1e-5)
    share = np.bincount(items, minlength=ITEMS) / count
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / count) + 1e-6)
    # What the sampler says of its decisions is what is read of the item afterwards, and the item's is their sum.
    np.testing.assert_allclose(logs, again, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(np.asarray(again).sum(1)), expected[items], rtol=1e-4)
    assert np.all((np.asarray(again) != 0) <= np.asarray(inside))
    # Without a preference: half of the clicks on targets, a sixteenth on one of eight; Plain knows no targets.
    blank = run(0 * table, q, jax.random.split(jax.random.key(1), count))[0]
    np.testing.assert_allclose(blank[TARGETS], 1 / ITEMS if space.design == "plain" else 1 / 16, rtol=1e-5)


def test_items_hang_in_descending_order_of_popularity_ties_by_id():
    popularity = jnp.array([4, 0, 4, 9, 0, 1])
    space = tree.make_space("bcbt-popular", jax.random.key(0), popularity, jnp.array([4, 1]))
    assert space.item.tolist() == [1, 4, 3, 0, 2, 5]
    np.testing.assert_array_equal(np.asarray(space.place)[np.asarray(space.item)], np.arange(6))


def test_the_random_tree_shuffles_and_keeps_the_sets_apart_and_targets_may_be_traced():
    make = jax.jit(
        jax.vmap(lambda key, targets: tree.make_space("bcbt-random", key, jnp.arange(6), targets).item)
    )
    sets = np.array([[0, 1], [5, 3], [5, 3], [5, 3]])
    orders = np.asarray(make(jax.random.split(jax.random.key(0), 4), jnp.asarray(sets)))
    assert all(
        set(order[:2]) == set(own) and sorted(order) == list(range(6)) for order, own in zip(orders, sets)
    )
    assert len({tuple(order) for order in orders[1:]}) > 1


def test_the_cumulative_draw_never_picks_what_has_no_weight():
    logits = jnp.array([-jnp.inf, 0.0, -jnp.inf, 1.0, -jnp.inf])
    chances = jnp.array([0.0, 0.2, 0.27, 0.5, 0.99999994, 1.0])
    found = jax.jit(jax.vmap(tree._categorical, (None, 0)))(logits, chances)
    assert found.tolist() == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("design", "targets", "match"),
    [("bcbt", [0], "'bplain'"), ("plain", [], "0 targets of 4"), ("plain", [0, 1, 2, 3], "4 targets of 4")],
)
def test_a_space_refuses(design, targets, match):
    with pytest.raises(ValueError, match=match):
        tree.make_space(design, jax.random.key(0), np.arange(4), np.array(targets, int))
