"""The order that is never written down: a permutation, of which nothing shows where it came from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel.shuffle import SORTED, shuffled

N = SORTED + 905  # neither a power of two nor sorted


@pytest.mark.parametrize("count", [1, 2, 5, SORTED, SORTED + 1, N, 2 * SORTED, 3 * SORTED])
def test_every_number_comes_once(count):
    order = shuffled(jax.random.key(count), count, jnp.arange(count))
    assert sorted(order.tolist()) == list(range(count))


@given(seed=st.integers(0, 2**31 - 1))
def test_any_part_is_a_part_of_the_whole(seed):
    key, slots = jax.random.key(seed), jnp.array([3, 96, 0, N - 1])
    whole = ORDER(key, jnp.arange(N))
    assert np.array_equal(np.bincount(whole, minlength=N), np.ones(N))
    np.testing.assert_array_equal(ORDER(key, slots), whole[slots])


ORDER = jax.jit(lambda key, slots: shuffled(key, N, slots))


def test_places_and_steps_are_uniform():
    # 20,000 orders, four of their places: where they point to, and how far neighbors lie apart, by chi-squared.
    slots = jnp.array([0, 1, N // 2, N - 1])
    keys = jax.random.split(jax.random.key(1), 20_000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: shuffled(key, N, slots)))(keys))
    for values in (*found.T, (found[:, 1] - found[:, 0]) % N, (found[:, 3] - found[:, 2]) % N):
        seen = np.histogram(values, bins=20, range=(0, N))[0]
        assert np.sum((seen - 1000) ** 2 / 1000) < 56  # 19 degrees of freedom, p = 1.5e-5


def test_vmap_equals_a_loop():
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: shuffled(key, N, jnp.arange(8)))(keys)
    np.testing.assert_array_equal(together, [shuffled(key, N, jnp.arange(8)) for key in keys])


@pytest.mark.parametrize("count", [0, -1, 1 << 31])
def test_a_count_outside_its_range_is_refused(count):
    with pytest.raises(ValueError, match="count"):
        shuffled(jax.random.key(0), count, jnp.arange(2))
