"""The blocked pass: right masks at every chunk and block boundary, memory that does not follow users x items."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.data.interactions import Interactions
from models.evaluation import blocks, evaluate, over_users


def read_masks(block):
    return block.users, block.seen, block.marked[0], block.scores


@pytest.mark.parametrize("chunk", [1, 5, 64, 8192])
@pytest.mark.parametrize("size", [1, 4, 7, 23, 100])
def test_masks_equal_the_dense_matrix(monkeypatch, rng, chunk, size):
    monkeypatch.setattr(blocks, "CHUNK", chunk)
    seen, test = rng.random((23, 9)) < 0.3, rng.random((23, 9)) < 0.2
    seen[4:9] = False  # whole blocks without an event
    test[0], test[-1] = False, True
    table = jnp.asarray(rng.normal(size=(23, 9)))
    train = Interactions.from_dense(seen.astype(float)).pad(220)
    held = Interactions.from_dense(test.astype(float))
    users, s, t, ranked = over_users(lambda u: table[u], train, read_masks, marks=(held,), block=size)
    np.testing.assert_array_equal(users, np.arange(23))
    np.testing.assert_array_equal(s, seen)
    np.testing.assert_array_equal(t, test)
    np.testing.assert_array_equal(ranked, np.where(seen, -np.inf, table))


def test_a_training_set_without_events_masks_nothing():
    train = Interactions.from_arrays(np.zeros(0, int), np.zeros(0, int), users=3, items=2)
    seen = over_users(lambda u: jnp.ones((u.shape[0], 2)), train, lambda b: b.seen, block=2)
    assert not np.any(seen)


def test_the_model_only_sees_ids_of_real_users():
    train = Interactions.from_arrays([0], [0], users=7, items=2)
    asked = []

    def scores(users):
        jax.debug.callback(lambda ids: asked.append(np.asarray(ids)), users)
        return jnp.ones((users.shape[0], 2))

    jax.block_until_ready(over_users(scores, train, lambda b: b.users, block=3))
    jax.effects_barrier()
    assert all(ids.shape == (3,) for ids in asked)
    assert np.unique(np.concatenate(asked)).tolist() == list(range(7))


def test_temporary_memory_follows_the_block_and_not_the_users():
    items, factors = 1000, 4

    def temporary(users, block):
        train = Interactions.from_arrays([0], [0], users=users, items=items)
        q = jnp.ones((items, factors))
        run = functools.partial(evaluate, train=train, test=train, targets=[3, 5], k=10, block=block)
        compiled = jax.jit(lambda p: run(lambda u: p[u] @ q.T)).lower(jnp.ones((users, factors))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(1_000, 100), temporary(20_000, 100)
    assert large < 20_000 * items / 4  # a U x I buffer of single bytes would be four times this
    assert large - small < 19_000 * 200  # what each user adds: its few numbers
    assert temporary(1_000, 1_000) > 3 * small
