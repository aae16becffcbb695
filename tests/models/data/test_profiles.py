"""`Profiles` and `inject`: real rows untouched, right fake rows, one shape for many profiles, storage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import Interactions, Profiles, inject

U, I, F = 6, 8, 3
jitted = jax.jit(inject)


def real(seed, track="implicit"):
    rng = np.random.default_rng(seed)
    matrix = (rng.random((U, I)) < 0.4) * (1 if track == "implicit" else rng.integers(1, 6, (U, I)))
    return Interactions.from_dense(matrix, track=track, capacity=U * I)


def rows(seed, track="implicit"):
    rng = np.random.default_rng(seed)
    return ((rng.random((F, I)) < 0.5) * (1 if track == "implicit" else rng.integers(1, 6, (F, I)))).astype(
        np.float32
    )


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["implicit", "explicit"]))
def test_inject_appends_and_leaves_real_events_alone(seed, track):
    train, fake = real(seed, track), rows(seed + 1, track)
    profiles = Profiles.from_rows(fake, [0, 3], track=track)
    poisoned = inject(train, profiles).validate()
    n = int(train.count)
    for name in ("user", "item", "weight"):
        before, after = getattr(train, name), getattr(poisoned, name)
        assert np.asarray(before)[:n].tobytes() == np.asarray(after)[:n].tobytes()
    assert np.array_equal(poisoned.dense(), np.concatenate([train.dense(), fake]))
    assert (poisoned.users, poisoned.items, poisoned.capacity) == (U + F, I, U * I + F * I)
    assert leaves_equal(poisoned, jitted(train, profiles))


def test_sequence_inject_keeps_order_and_repeats():
    train = Interactions.from_arrays([0, 1, 1], [2, 0, 2], time=[5, 3, 9], items=4, track="sequence").pad(5)
    mask = [[True, True, True], [True, False, True]]
    profiles = Profiles.from_clicks([[3, 1, 3], [0, 99, 1]], [3], items=4, mask=mask).validate(budget=2)
    poisoned = inject(train, profiles).validate()
    frame = poisoned.to_frame()
    fake = frame[frame.user >= 2]
    assert fake.user.tolist() == [2, 2, 2, 3, 3]
    assert fake.item.tolist() == [3, 1, 3, 0, 1]
    assert fake.time.tolist() == [10, 11, 12, 10, 12]
    assert frame[frame.user < 2].time.tolist() == [5, 3, 9]


def test_clicks_enter_implicit_data_as_rows():
    train = real(0)
    clicks = Profiles.from_clicks([[1, 1, 4]], [1], items=I)
    same = Profiles.from_rows(clicks.to_rows(), [1])
    assert np.array_equal(inject(train, clicks).dense(), inject(train, same).dense())
    assert inject(train, clicks).capacity == train.capacity + 3


def test_one_shape_for_many_profiles():
    train = real(0)
    many = Profiles.from_rows(rows(1), [2], width=I)
    stacked = jax.tree.map(lambda x: jnp.stack([x, jnp.zeros_like(x), jnp.roll(x, 1)]), many)
    batch = jax.jit(jax.vmap(inject, in_axes=(None, 0)))(train, stacked)
    for k in range(3):
        one = jax.tree.map(lambda x, k=k: x[k], stacked)
        assert leaves_equal(inject(train, one), jax.tree.map(lambda x, k=k: x[k], batch))


def test_vmap_over_data_and_profiles():
    trains, fakes = [real(0), real(1)], [Profiles.from_rows(rows(k), [k]) for k in range(2)]
    both = jax.vmap(inject)(*(jax.tree.map(lambda *x: jnp.stack(x), *pair) for pair in (trains, fakes)))
    for k in range(2):
        assert leaves_equal(inject(trains[k], fakes[k]), jax.tree.map(lambda x, k=k: x[k], both))


def test_width_and_capacity_size_the_result():
    train = real(0)
    fake = np.zeros((F, I), np.float32)
    fake[:, :2] = 1
    assert inject(train, Profiles.from_rows(fake, [0], width=2)).capacity == train.capacity + 2 * F
    exact = int(train.count) + 2 * F
    snug = inject(train, Profiles.from_rows(fake, [0]), capacity=exact).validate()
    assert snug.capacity == int(snug.count) == exact
    over = jax.jit(lambda t, p: inject(t, p, capacity=exact - 1))(train, Profiles.from_rows(fake, [0]))
    assert np.isnan(over.weight).all()


def test_no_fakes_and_empty_profiles_change_nothing():
    train = real(5)
    nobody = inject(train, Profiles.from_rows(np.zeros((0, I)), [0]))
    assert np.array_equal(nobody.dense(), train.dense())
    silent = inject(train, Profiles.from_rows(np.zeros((F, I)), [0])).validate()
    assert silent.users == U + F
    assert int(silent.count) == int(train.count)


@pytest.mark.parametrize("track", ["implicit", "explicit"])
def test_save_load_rows(tmp_path, track):
    profiles = Profiles.from_rows(rows(4, track), [1, 5], track=track, width=I)
    path = tmp_path / "profiles.npz"
    profiles.save(path, {"seed": 4, "attack": "random"})
    again, meta = Profiles.load(path)
    assert meta == {"seed": 4, "attack": "random"}
    assert leaves_equal(profiles, again)
    assert jax.tree.structure(profiles) == jax.tree.structure(again)
    first = path.read_bytes()
    again.save(path, {"attack": "random", "seed": 4})
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["profiles.npz"]


def test_save_load_clicks(tmp_path):
    mask = np.array([[True, False, True, True, True, False, True, True, True]])
    profiles = Profiles.from_clicks([[0, 1, 2, 0, 0, 2, 1, 1, 1]], [2], items=3, mask=mask)
    profiles.save(tmp_path / "p.npz")
    again, meta = Profiles.load(tmp_path / "p.npz")
    assert meta == {}
    assert leaves_equal(profiles, again)
    assert jax.tree.structure(profiles) == jax.tree.structure(again)


def test_implicit_rows_are_stored_compactly(tmp_path):
    fake = (np.random.default_rng(0).random((131, 14007)) < 0.5).astype(np.float32)
    Profiles.from_rows(fake, [0]).save(tmp_path / "p.npz")
    assert (tmp_path / "p.npz").stat().st_size < 131 * 14007 / 8 + 2000  # one bit a cell, incompressible here


def test_validate_accepts_what_keeps_the_contract():
    fake = np.zeros((F, I), np.float32)
    fake[:, [0, 3, 5]] = 1
    Profiles.from_rows(fake, [0, 3], clicks_targets=True, width=3).validate(budget=1, fakes=F)
    Profiles.from_rows(fake * 4, [0], track="explicit").validate(ratings=(1, 5))
