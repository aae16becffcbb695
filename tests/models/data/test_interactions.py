"""`Interactions`: layout, shapes under transformations, merging of duplicates."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import Interactions

matrices = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 6, (5, 7)) * (np.arange(7) % 3 > 0)
)


@settings(max_examples=50, deadline=None)
@given(matrices)
def test_every_view_tells_the_same_events(matrix):
    data = Interactions.from_dense(matrix, track="explicit")
    padded = data.pad(35).validate()
    assert np.array_equal(padded.dense(), matrix)
    assert np.array_equal(padded.to_csr().toarray(), matrix)
    assert np.array_equal(padded.popularity(), (matrix > 0).sum(0))
    assert np.array_equal(padded.degrees(), (matrix > 0).sum(1))
    pointers = np.asarray(padded.row_pointers())
    for u in range(5):
        assert np.array_equal(
            np.asarray(padded.item)[pointers[u] : pointers[u + 1]], np.flatnonzero(matrix[u])
        )
    assert int(padded.count) == (matrix > 0).sum()
    trimmed = padded.trim()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(trimmed), jax.tree.leaves(data)))


def test_order_of_the_input_does_not_matter():
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((20, 30)) < 0.3)
    weight = rng.integers(1, 6, user.size)
    shuffle = rng.permutation(user.size)
    a = Interactions.from_arrays(user, item, weight, users=20, items=30)
    b = Interactions.from_arrays(user[shuffle], item[shuffle], weight[shuffle], users=20, items=30)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    assert a.user.dtype == a.item.dtype == jnp.int32
    assert a.weight.dtype == jnp.float32


@pytest.mark.parametrize(
    ("policy", "weight", "time"), [("max", 5, 30), ("sum", 10, 30), ("first", 3, 10), ("last", 2, 30)]
)
def test_duplicates_by_time(policy, weight, time):
    data = Interactions.from_arrays(
        [0, 0, 0, 1], [1, 1, 1, 0], [5.0, 3.0, 2.0, 4.0], [20, 10, 30, 5], duplicates=policy
    )
    assert data.weight.tolist() == [weight, 4]
    assert data.time.tolist() == [time, 5]


def test_duplicates_without_time_follow_the_input():
    arrays = [1, 0, 0], [0, 1, 1], [1.0, 4.0, 2.0]
    assert Interactions.from_arrays(*arrays, duplicates="first").weight.tolist() == [4, 1]
    assert Interactions.from_arrays(*arrays, duplicates="last").weight.tolist() == [2, 1]


def test_sequence_keeps_repeats_in_time_order():
    data = Interactions.from_arrays(
        [1, 0, 1, 1], [2, 0, 1, 2], time=[3, 9, 2, 5], track="sequence"
    ).validate()
    assert data.user.tolist() == [0, 1, 1, 1]
    assert data.item.tolist() == [0, 1, 2, 2]
    given_order = Interactions.from_arrays([0, 0, 0], [2, 1, 2], track="sequence")
    assert given_order.item.tolist() == [2, 1, 2]


def test_time_keeps_order_and_whole_seconds():
    whole = Interactions.from_arrays([0, 0], [0, 1], time=[881250949, 881250950])
    assert whole.time.tolist() == [881250949, 881250950]  # float32 would make them equal
    millis = Interactions.from_arrays([0, 0, 1], [0, 1, 0], time=[1700000000123, 1700000000122, 5])
    assert millis.time.tolist() == [2, 1, 0]


def test_track_follows_the_weights_unless_given():
    assert Interactions.from_arrays([0], [0]).track == "implicit"
    assert Interactions.from_arrays([0], [0], [3.0]).track == "explicit"
    assert Interactions.from_arrays([0], [0], [1.0], track="explicit").track == "explicit"


def test_empty_record_has_one_slot_of_padding():
    data = Interactions.from_arrays([], [], users=3, items=2).validate()
    assert (data.capacity, int(data.count)) == (1, 0)
    assert not data.dense().any()


def test_frame_and_csr_round_trip():
    data = Interactions.from_arrays([0, 2, 2], [1, 0, 2], [1.0, 3.0, 5.0], [7, 8, 9])
    frame = data.pad(8).to_frame()
    assert list(frame.columns) == ["user", "item", "weight", "time"]
    again = Interactions.from_frame(frame, weight="weight", time="time")
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(data), jax.tree.leaves(again)))
    renamed = pd.DataFrame({"uid": [0, 1], "sid": [0, 0]})
    assert Interactions.from_frame(renamed, user="uid", item="sid").users == 2
    assert scipy.sparse.issparse(data.to_csr())


def test_keep_compacts_under_jit_and_select_on_the_host():
    data = Interactions.from_arrays([0, 0, 1, 2], [0, 2, 2, 1], items=4).pad(6)
    kept = jax.jit(lambda d: d.keep(d.item == 2))(data)
    kept.validate()
    assert kept.capacity == 6
    chosen = data.select(np.asarray(data.item) == 2)
    assert np.array_equal(kept.dense(), chosen.dense())
    assert chosen.capacity == 2
    assert data.select(np.array([3, 0])).validate().user.tolist() == [0, 2]
    assert int(data.select(np.zeros(6, bool)).count) == 0


def test_is_a_pytree_with_static_sizes():
    data = Interactions.from_arrays([0, 1], [1, 0], users=4, items=3)
    traces = []

    @jax.jit
    def popular(d):
        traces.append(d.users)
        return d.popularity()

    other = Interactions.from_arrays([3, 2], [1, 1], users=4, items=3)
    assert popular(data).tolist() == [1, 1, 0]
    assert popular(other).tolist() == [0, 2, 0]
    assert traces == [4]  # same shapes and sizes: compiled once
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), data, other)
    assert jax.vmap(lambda d: d.dense())(stacked).shape == (2, 4, 3)
    assert "batch" in repr(stacked)
    shown = []
    jax.jit(lambda d: shown.append(repr(d)) or d.weight)(data)
    assert "traced" in shown[0]


def test_traced_from_dense_matches_the_host_and_marks_overflow():
    matrix = np.random.default_rng(3).integers(0, 2, (6, 5)).astype(np.float32)
    host = Interactions.from_dense(matrix, capacity=30)
    traced = jax.jit(lambda x: Interactions.from_dense(x, capacity=30))(matrix)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(traced)))
    small = jax.jit(lambda x: Interactions.from_dense(x, capacity=3))(np.ones((2, 2), np.float32))
    assert np.isnan(small.weight).all()
