"""Meshes over eight simulated devices, precision, and what memory figures mean."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from bilevel.devices import compiled_memory, device_report, environment, mesh, peak_rss, precision, shard_rows


def test_the_mesh_is_one_auto_axis_over_all_devices(devices8):
    over = mesh(devices=devices8)
    assert over.shape == {"users": 8}
    assert over.axis_types == (AxisType.Auto,)
    assert mesh("rows", devices8[:2]).shape == {"rows": 2}
    assert mesh().size == len(jax.devices())
    with pytest.raises(ValueError, match="at least one device"):
        mesh(devices=[])


def test_rows_are_split_and_the_rest_is_copied(devices8):
    over = mesh(devices=devices8)
    tree = {"P": jnp.ones((16, 3)), "Q": jnp.ones((24, 3)), "t": 1, "key": jax.random.key(0), "none": None}
    split = shard_rows(tree, over, rows=16)
    assert split["P"].sharding.spec == PartitionSpec("users")
    assert {shard.data.shape for shard in split["P"].addressable_shards} == {(2, 3)}
    for name in ("Q", "t", "key"):
        assert split[name].sharding.is_fully_replicated
        assert len(split[name].sharding.device_set) == 8
    every = shard_rows(tree, over)
    assert {shard.data.shape for shard in every["Q"].addressable_shards} == {(3, 3)}
    assert every["none"] is None
    np.testing.assert_array_equal(jax.random.key_data(split["key"]), jax.random.key_data(tree["key"]))


def test_rows_that_do_not_divide_are_a_clear_error(devices8):
    over = mesh(devices=devices8)
    with pytest.raises(ValueError, match=r"\['P'\] has 13 rows, no multiple of 8 devices; pad it to 16"):
        shard_rows({"P": jnp.ones((13, 3))}, over)
    with pytest.raises(ValueError, match="no leaf has 5 rows"):
        shard_rows({"P": jnp.ones((16, 3))}, over, rows=5)
    two = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=devices8)
    with pytest.raises(ValueError, match=r"one axis, got \('a', 'b'\)"):
        shard_rows(jnp.ones(8), two)


def test_hessian_products_over_split_rows_equal_those_of_one_device(devices8, x64, rng):
    """The reason for Auto axes; the trap (ENGINE.md section 5) is that the default raises here."""
    ratings, params = rng.normal(size=(16, 5)), {"P": rng.normal(size=(16, 3)), "Q": rng.normal(size=(5, 3))}
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)

    def loss(params, ratings):
        return jnp.sum(jnp.tanh(ratings - params["P"] @ params["Q"].T) ** 2)

    @jax.jit
    def product(params, ratings, direction):
        return jax.jvp(jax.grad(lambda p: loss(p, ratings)), (params,), (direction,))[1]

    over = mesh(devices=devices8)
    alone = product(params, ratings, direction)
    split = product(*shard_rows((params, ratings, direction), over, rows=16))
    for name in params:
        np.testing.assert_allclose(split[name], alone[name], rtol=1e-13, atol=1e-13)
    assert len(split["P"].sharding.device_set) == 8


def test_precision_is_for_the_block_only():
    assert jnp.ones(1).dtype == jnp.float32
    with precision("highest", x64=True):
        assert jnp.ones(1).dtype == jnp.float64
        text = jax.jit(lambda a: a @ a).lower(jnp.ones((2, 2), jnp.float32)).as_text()
        assert "HIGHEST" in text
        with precision(x64=False):
            assert jnp.ones(1).dtype == jnp.float32
            assert environment()["matmul"] == "highest"  # what is not named stays
    assert jnp.ones(1).dtype == jnp.float32
    assert "HIGHEST" not in jax.jit(lambda a: a @ a).lower(jnp.ones((2, 2))).as_text()
    with pytest.raises(ValueError, match="sloppy"), precision("sloppy"):
        pass


def test_the_report_says_what_is_there():
    report = device_report()
    assert report.count == len(jax.devices())
    assert report.platform == jax.default_backend()
    assert report.jax == jax.__version__
    assert report.cores >= 1
    assert report.memory is None or report.memory > 0
    assert not report.x64
    with jax.enable_x64(True):
        assert device_report().x64
        assert environment()["x64"] is True


def test_compiled_memory_counts_a_temporary_it_must_hold():
    def through(x):
        return jnp.sum(jnp.sin(x @ x) @ x)  # the n x n products cannot be fused away

    small, large = (compiled_memory(through, jax.ShapeDtypeStruct((n, n), "float32")) for n in (64, 256))
    assert (small.argument, small.output) == (4 * 64 * 64, 4)
    assert large.temp >= 4 * 256 * 256
    assert large.temp == pytest.approx(16 * small.temp, rel=0.5)
    assert compiled_memory(jax.jit(through), jnp.ones((64, 64))) == small


PEAK = """
import sys
from bilevel.devices import peak_rss
start = peak_rss()
block = bytearray(int(sys.argv[1]))
for n in range(0, len(block), 4096):
    block[n] = 1
del block
print(peak_rss() - start)
"""


def test_peak_rss_sees_what_was_freed_but_not_the_parents_memory():
    ballast = np.ones(50_000_000 // 8)  # the child must not start with our peak on its account
    size = 60_000_000
    child = subprocess.run(
        [sys.executable, "-c", PEAK, str(size)], stdout=subprocess.PIPE, check=True, text=True
    )
    assert 0.8 * size < int(child.stdout) < 1.5 * size
    assert peak_rss() > ballast.nbytes
