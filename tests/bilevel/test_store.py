"""Snapshots: everything comes back bit for bit, and no damage goes unnoticed."""

import logging
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel.atomic import HOST, FolderLocked
from bilevel.devices import mesh, shard_rows
from bilevel.store import CorruptSnapshot, Store, digest, read_snapshot, write_snapshot


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclass
class Record:
    weight: Any
    count: Any


def make_state(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "pair": Pair(jnp.asarray(rng.normal(size=(2, 3)), jnp.float32), None),
        "record": Record(jnp.asarray(rng.normal(size=4), jnp.bfloat16), jnp.int32(seed)),
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 2),
        "odd": [jnp.float32([np.nan, np.inf, -0.0, 1e-45]), jnp.array([True, False]), jnp.zeros((0, 3))],
        "small": (
            jnp.array([-8, 7], jnp.int4),
            jnp.array([0.5, 448], jnp.float8_e4m3fn),
            jnp.array([1 + 2j]),
        ),
        "raw": np.array([1 << 62, -1]),  # NumPy stays NumPy: JAX would cut it to 32 bits
        "none": None,
    }


def bits(tree):
    """Every leaf as its dtype, shape and bytes: NaN equals NaN, 0.0 is not -0.0."""

    def leaf(value):
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return str(value.dtype), np.asarray(jax.random.key_data(value)).tobytes()
        return str(value.dtype), np.shape(value), np.asarray(value).tobytes()

    return jax.tree.map(leaf, tree)


HISTORY = {"hr": np.linspace(0, 1, 5, dtype=np.float32), "bf": np.arange(5).astype(jnp.bfloat16)}


def test_everything_comes_back_bit_for_bit(tmp_path):
    state, facts = make_state(7), {"spec": {"eta": 1.0, "nan": np.nan}, "list": (1, None)}
    with Store(tmp_path / "deep" / "run") as store:
        assert store.latest() is None
        store.save(5, state, HISTORY, facts)
        snapshot = store.latest()
    assert snapshot is not None
    back = snapshot.restore(make_state(0))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert bits(back) == bits(state)
    assert isinstance(back["raw"], np.ndarray)
    others = [leaf for leaf in jax.tree.leaves(back) if leaf is not back["raw"]]
    assert all(isinstance(leaf, jax.Array) and not getattr(leaf, "weak_type", False) for leaf in others)
    np.testing.assert_array_equal(jax.random.normal(back["keys"][1]), jax.random.normal(state["keys"][1]))
    assert snapshot.step == 5
    assert bits(snapshot.history) == bits(HISTORY)
    assert snapshot.facts["spec"]["eta"] == 1.0
    assert snapshot.facts["list"] == [1, None]


def test_the_file_is_an_ordinary_npz(tmp_path):
    write_snapshot(tmp_path / "s.npz", 1, {"x": jnp.arange(3)}, HISTORY, {})
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["header", "history/bf", "history/hr", "state/0"]
        np.testing.assert_array_equal(arrays["history/hr"], HISTORY["hr"])


def test_double_precision_comes_back_only_where_it_is_on(tmp_path):
    with jax.enable_x64(True):
        write_snapshot(tmp_path / "s.npz", 1, jnp.float64(1 / 3), {}, {})
        assert float(read_snapshot(tmp_path / "s.npz").restore(jnp.zeros(()))) == 1 / 3
    with pytest.raises(ValueError, match=r"the leaf is float64\[\], now float32\[\]"):
        read_snapshot(tmp_path / "s.npz").restore(jnp.zeros(()))


def test_a_sharded_state_comes_back_to_its_devices(tmp_path, devices8):
    over = mesh(devices=devices8)
    state = shard_rows(
        {"P": jnp.arange(32.0).reshape(16, 2), "key": jax.random.split(jax.random.key(0), 8)}, over
    )
    write_snapshot(tmp_path / "s.npz", 1, state, {}, {})
    back = read_snapshot(tmp_path / "s.npz").restore(jax.tree.map(lambda a: a, state))
    assert bits(back) == bits(state)
    for name in state:
        assert back[name].sharding == state[name].sharding
    local = {"P": jnp.zeros((16, 2)), "key": jax.random.split(jax.random.key(1), 8)}
    plain = read_snapshot(tmp_path / "s.npz").restore(local)
    assert plain["P"].sharding.is_fully_replicated
    assert bits(plain) == bits(state)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ({"a": jnp.zeros(3), "k": jax.random.key(0)}, r"\['a'\] is float32\[2\], now float32\[3\]"),
        ({"a": jnp.zeros(2, int), "k": jax.random.key(0)}, r"\['a'\] is float32\[2\], now int32\[2\]"),
        (
            {"a": jnp.zeros(2), "k": jax.random.key(0, impl="rbg")},
            r"\['k'\] is threefry2x32\[2\], now rbg\[4\]",
        ),
        (
            {"a": jnp.zeros(2), "k": jnp.zeros(2, jnp.uint32)},
            r"\['k'\] is threefry2x32\[2\], now uint32\[2\]",
        ),
        ({"a": jnp.zeros(2), "k": None}, r"\['k'\] is threefry2x32\[2\], now absent"),
        (
            {"b": jnp.zeros(2), "k": jax.random.key(0)},
            r"\['a'\] is float32\[2\], now absent; \['b'\] is absent, now",
        ),
        (Pair(jnp.zeros(2), jax.random.key(0)), r".*\.first is absent, now float32\[2\]"),
    ],
)
def test_another_state_is_refused_by_name(tmp_path, template, text):
    write_snapshot(tmp_path / "s.npz", 1, {"a": jnp.zeros(2), "k": jax.random.key(0)}, {}, {})
    with pytest.raises(ValueError, match="the snapshot holds another state: .*" + text):
        read_snapshot(tmp_path / "s.npz").restore(template)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("snapshot") / "s.npz"
    write_snapshot(path, 3, {"x": jnp.arange(40.0), "k": jax.random.key(1)}, HISTORY, {"seed": 1})
    return path, path.read_bytes()


@given(data=st.data())
def test_any_cut_and_any_flipped_bit_is_noticed(whole, data):
    path, content = whole
    kind = data.draw(st.sampled_from(["cut", "flip", "append", "zero"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        damaged = content[:at]
    elif kind == "flip":
        damaged = (
            content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
        )
    elif kind == "zero":  # a block that never reached the disk
        damaged = content[:at] + b"\0" * (len(content) - at)
    else:
        damaged = content + b"\n"
    target = path.with_name("damaged.npz")
    target.write_bytes(damaged)
    with pytest.raises(CorruptSnapshot, match="damaged or unfinished"):
        read_snapshot(target)


def test_an_ordinary_npz_is_no_snapshot(tmp_path):
    np.savez(tmp_path / "s.npz", a=np.zeros(100))
    with pytest.raises(CorruptSnapshot, match=r"s\.npz is damaged"):
        read_snapshot(tmp_path / "s.npz")
    (tmp_path / "s.npz").write_bytes(b"")
    with pytest.raises(CorruptSnapshot, match=r"s\.npz is damaged"):
        read_snapshot(tmp_path / "s.npz")


def test_a_later_version_is_refused_not_misread(tmp_path, monkeypatch):
    monkeypatch.setattr("bilevel.store.VERSION", 2)
    write_snapshot(tmp_path / "s.npz", 1, {}, {}, {})
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match="expected bilevel-snapshot version 1, found bilevel-snapshot version 2"
    ):
        read_snapshot(tmp_path / "s.npz")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_the_last_two_are_kept(tmp_path):
    with Store(tmp_path) as store:
        for step in (1, 9, 10, 11):
            store.save(step, {"x": jnp.float32(step)}, {}, {})
        assert names(tmp_path) == ["snapshot-000000000010.npz", "snapshot-000000000011.npz"]


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "zero": b"\0" * len(content)}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "zero"])
def test_a_damaged_snapshot_falls_back_to_the_one_before(tmp_path, caplog, how):
    with Store(tmp_path) as store:
        for step in (1, 2):
            store.save(step, {"x": jnp.float32(step)}, {}, {})
        damage(tmp_path / "snapshot-000000000002.npz", how)
        with caplog.at_level(logging.WARNING):
            snapshot = store.latest()
        assert snapshot is not None
        assert float(snapshot.restore({"x": jnp.float32(0)})["x"]) == 1
        assert "is damaged or unfinished" in caplog.text
        assert "continuing from step 1" in caplog.text
        # The damaged one does not count among those kept, nor come in the way of the next.
        store.save(2, {"x": jnp.float32(2)}, {}, {})
        assert names(tmp_path) == [
            "snapshot-000000000001.npz",
            "snapshot-000000000002.npz",
            "snapshot-000000000002.npz.corrupt",
        ]


def test_when_all_are_damaged_it_says_so_and_starts_over(tmp_path, caplog):
    with Store(tmp_path) as store:
        for step in (1, 2):
            store.save(step, {"x": jnp.float32(step)}, {}, {})
            damage(tmp_path / f"snapshot-{step:012d}.npz", "cut")
        assert store.latest() is None
    assert "no whole snapshot is left; starting from the beginning" in caplog.text


def test_unfinished_files_are_swept_at_the_start(tmp_path):
    ours = (
        tmp_path / f".snapshot-000000000003.npz.{HOST}-{os.getppid()}-00000000-0.tmp"
    )  # the lock says it is dead
    other = tmp_path / f".table.json.{HOST}-{os.getppid()}-00000000-0.tmp"
    ours.write_bytes(b"half")
    other.write_bytes(b"half")
    with Store(tmp_path):
        assert not ours.exists()
        assert other.exists()


def test_one_process_at_a_time(tmp_path):
    with Store(tmp_path) as store:
        with pytest.raises(FolderLocked, match="choose another folder"), Store(tmp_path):
            pass
        store.save(1, {}, {}, {})
    with Store(tmp_path) as again:
        assert again.latest() is not None


def test_a_failed_write_keeps_what_there_was(tmp_path, monkeypatch):
    with Store(tmp_path, keep=1) as store:
        store.save(1, {"x": jnp.float32(1)}, {}, {})

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("bilevel.store._digest", full)
        with pytest.raises(OSError, match="No space left"):
            store.save(2, {"x": jnp.float32(2)}, {}, {})
        monkeypatch.undo()
        assert names(tmp_path) == ["snapshot-000000000001.npz"]
        snapshot = store.latest()
        assert snapshot is not None
        assert snapshot.step == 1


def test_misuse_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Store(tmp_path, keep=0)
    with pytest.raises(RuntimeError, match="is not open; use `with Store"):
        Store(tmp_path).save(1, {}, {}, {})
    with Store(tmp_path) as store, pytest.raises(TypeError, match=r"the leaf \['a'\] is no array"):
        store.save(1, {"a": object()}, {}, {})
    with Store(tmp_path) as store, pytest.raises(TypeError, match=r"facts\['f'\] cannot be written as JSON"):
        store.save(1, {}, {}, {"f": print})


def test_digest_sees_values_shapes_dtypes_and_places():
    base = {"a": np.zeros((2, 3), np.float32), "k": jax.random.key(0)}
    assert digest(base) == digest({"a": jnp.zeros((2, 3)), "k": jax.random.key(0)})
    others = [
        base | {"a": np.zeros((3, 2), np.float32)},
        base | {"a": np.zeros((2, 3), np.int32)},
        base | {"a": -np.zeros((2, 3), np.float32)},
        base | {"k": jax.random.key(1)},
        {"b": base["a"], "k": base["k"]},
    ]
    assert len({digest(base), *map(digest, others)}) == 6
