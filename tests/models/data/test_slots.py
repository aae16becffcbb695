"""The slots of a history: what the index finds against a comparison of every two items."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.data import Interactions, sample, slots
from models.data.relations import Relations

U, I = 4, 7
TABLE = {
    0: {"genre": "ab", "actor": "xy"},
    1: {"genre": "b", "actor": "x"},
    2: {"genre": "c"},
    3: {"genre": "abc", "actor": "yx"},
    5: {"actor": "z"},
    6: {"genre": "a", "actor": "xz"},
}
TABLE = {item: {name: list(values) for name, values in of.items()} for item, of in TABLE.items()}
RELATIONS = Relations.from_table(TABLE, I)
HISTORY = [[0, 1, 2, 3, 4, 5, 6], [2, 4], [], [1, 3, 6]]


def values_of(item):
    """(type, value) of an item in the numbering of RELATIONS."""
    rows = (RELATIONS.type[item], RELATIONS.value[item], RELATIONS.mask[item])
    return {(int(k), int(v)) for k, v, real in zip(*rows, strict=True) if real}


def clicks(capacity=30):
    pairs = [(u, i) for u, items in enumerate(HISTORY) for i in items]
    user, item = np.array(pairs).T
    return Interactions.from_arrays(user, item, users=U, items=I, capacity=capacity)


def test_every_stretch_holds_the_items_that_share_its_value():
    index = jax.jit(lambda train: slots.index(sample.lists(train), RELATIONS))(clicks())
    owner, item = (jnp.array(a) for a in np.indices((U, I)).reshape(2, -1))
    found = slots.ranges(index, owner, item, RELATIONS)
    stored = np.asarray(index.item)
    for n in range(U * I):
        u, i = divmod(n, I)
        rows = [np.asarray(rows[n]) for rows in found]
        told = {
            (int(k), int(v)): stored[begin : begin + length].tolist()
            for v, k, begin, length in zip(*rows, strict=True)
            if length
        }
        expected = {(k, v): [j for j in HISTORY[u] if (k, v) in values_of(j)] for k, v in values_of(i)}
        expected[0, RELATIONS.values] = HISTORY[u]
        assert told == {of: items for of, items in expected.items() if items}
        assert sum(map(len, told.values())) <= index.span
    most = max(sum(len(values_of(i) & values_of(j)) for j in range(I)) for i in range(I)) + I
    assert index.span == most
    assert (
        slots.index(sample.lists(clicks()), RELATIONS, 2).span
        == min(most - I, 2 * RELATIONS.value.shape[1]) + 2
    )


def test_more_owners_than_32_bits_can_number_are_refused():
    of = lambda size: jax.ShapeDtypeStruct((size,), jnp.int32)
    many = sample.Lists(of(1), of(2**29))
    with pytest.raises(ValueError, match="32 bits"):
        jax.eval_shape(lambda lists: slots.index(lists, RELATIONS), many)


def test_latest_goes_by_time():
    events = Interactions.from_arrays([0, 0, 0, 0, 1, 1], [4, 1, 2, 3, 0, 1], time=[30, 10, 40, 20, 2, 1])
    kept = slots.latest(events.pad(9), 2)
    assert [np.flatnonzero(row).tolist() for row in np.asarray(kept.dense())] == [[2, 4], [0, 1]]
    assert kept.count == 4


def test_latest_without_times_is_a_fixed_draw_that_padding_leaves_alone():
    wide = Interactions.from_dense(np.ones((300, 8)))
    kept = np.asarray(slots.latest(wide, 3).dense())
    assert np.all(kept.sum(1) == 3)
    assert np.array_equal(kept, slots.latest(wide.pad(2500), 3).dense())
    share = kept.mean(0)
    assert np.all(np.abs(share - 3 / 8) < 0.12)  # four standard deviations of 300 fair draws
    assert len({tuple(row) for row in kept}) > 40  # of 56


def test_triples_are_uniform_over_the_slots_of_each_type():
    train = clicks()
    history = sample.lists(train)
    index = slots.index(history, RELATIONS)
    catalog = slots.index(slots.everything(I), RELATIONS)
    owner, item = train.user[: int(train.count)], train.item[: int(train.count)]
    draw = lambda key: slots.triples(key, index, history, catalog, RELATIONS, owner, item)
    many = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 600))
    type_, value, tail, negative, exists = (np.asarray(a) for a in many)
    for n, (u, i) in enumerate(zip(owner.tolist(), item.tolist(), strict=True)):
        for k in (1, 2):
            real = [(j, v) for j in HISTORY[u] if j != i for t, v in values_of(i) & values_of(j) if t == k]
            assert np.all(exists[:, n, k - 1] == bool(real))
            assert np.all(type_[:, n, k - 1] == k)
            if not real:
                continue
            drawn = Counter(zip(tail[:, n, k - 1].tolist(), value[:, n, k - 1].tolist(), strict=True))
            assert set(drawn) == set(real)
            assert max(abs(c / 600 - 1 / len(real)) for c in drawn.values()) < 0.09  # over four deviations
            for v in {v for _, v in real}:
                without = {j for j in range(I) if (k, v) not in values_of(j)}
                assert set(negative[value[:, n, k - 1] == v, n, k - 1].tolist()) == without


def test_a_value_of_all_items_gives_no_triple_and_a_short_history_may_lack_the_item():
    everywhere = Relations.from_table({i: {"a": [0], "b": [i % 2]} for i in range(4)}, 4)
    train = Interactions.from_arrays([0, 0, 0], [0, 2, 3], items=4)
    history = sample.lists(train)
    parts = (
        slots.index(history, everywhere),
        history,
        slots.index(slots.everything(4), everywhere),
        everywhere,
    )
    draw = lambda key, item: slots.triples(key, *parts, jnp.array([0]), item)
    keys = jax.random.split(jax.random.key(0), 40)
    of = jax.jit(jax.vmap(draw, (0, None)))
    assert of(keys, jnp.array([0])).exists[0].tolist() == [[False, True]]
    assert set(of(keys, jnp.array([0])).tail[..., 1].ravel().tolist()) == {2}
    outside = of(keys, jnp.array([1]))  # not in the history: item 3 is all it shares b with
    assert set(outside.tail[..., 1].ravel().tolist()) == {3}
    assert set(of(keys, jnp.array([0])).negative[..., 1].ravel().tolist()) == {1, 3}
