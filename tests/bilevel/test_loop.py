"""The driver: the same bytes whatever the blocks, and whenever it is killed."""

import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bilevel.atomic import HOST
from bilevel.loop import Result, run
from bilevel.store import Store, digest


class State(NamedTuple):
    key: Any
    x: Any
    low: Any
    count: Any
    none: None


def make_state(seed=0):
    return State(jax.random.key(seed), jnp.zeros((8, 8)), jnp.ones(3, jnp.bfloat16), 0, None)


def step(state: State, data):
    """Something like an outer step: a drawn matrix, a short inner loop, metrics of several dtypes."""
    key, draw = jax.random.split(state.key)
    noise = jax.random.normal(draw, state.x.shape)

    def inner(w, _):
        return jnp.tanh(w @ data + noise), None

    w, _ = lax.scan(inner, state.x, length=3)
    state = State(key, 0.9 * state.x + 0.1 * w, state.low * jnp.bfloat16(0.99), state.count + 1, None)
    return state, {"loss": jnp.sum(w), "count": state.count, "low": state.low[0], "always": 1.0}


DATA = jnp.linspace(-1, 1, 64).reshape(8, 8)
go = partial(run, step, args=(DATA,))


def bits(result: Result):
    return digest((result.state, result.history))


@pytest.fixture(scope="module")
def truth():
    """The uninterrupted run that every other one must equal, bit for bit."""
    return go(make_state(), 11, block=4)


def test_it_is_the_loop_written_out(truth):
    state, metrics = make_state(), []
    for _ in range(11):
        state, one = jax.jit(step)(state, DATA)
        metrics.append(one)
    np.testing.assert_allclose(truth.state.x, state.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.random.key_data(truth.state.key), jax.random.key_data(state.key))
    for name in metrics[0]:
        values = np.array([np.asarray(one[name]) for one in metrics])
        np.testing.assert_allclose(
            truth.history[name].astype(float), values.astype(float), rtol=1e-5, atol=1e-6
        )
    dtypes = {name: str(values.dtype) for name, values in truth.history.items()}
    assert dtypes == {"loss": "float32", "count": "int32", "low": "bfloat16", "always": "float32"}
    assert (truth.done, truth.resumed, truth.history["count"].tolist()) == (11, 0, list(range(1, 12)))


@pytest.mark.parametrize("block", [1, 3, 11, 50])
def test_blocks_do_not_change_the_numbers(truth, block):
    assert bits(go(make_state(), 11, block=block)) == bits(truth)


def test_one_step_object_is_compiled_once():
    traced = []

    def counted(x):
        traced.append(1)
        return x + 1, {}

    run(counted, jnp.zeros(()), 7, block=2)
    often = len(traced)
    assert often <= 2  # its form, its program
    run(counted, 0.0, 5, block=2)  # a weak type: as the restored state, it is no other program
    assert len(traced) == often


SPEC = {"seed": 0, "attack": {"eta": 1.0}, "data": DATA}
kept = partial(go, spec=SPEC)


class Killed(BaseException):
    """In place of `kill -9`, within one process."""


def die_at(monkeypatch, moment, blocks, folder, block):
    """A run that is killed around its snapshot number `blocks`."""

    def on_block(here):
        if moment == "before" and here.done >= blocks * block:
            raise Killed

    def progress(here):
        if moment == "after" and here.metrics and here.done >= blocks * block:
            raise Killed

    original = Store.save

    def save(self, number, *rest):
        if moment == "during" and number >= blocks * block:
            # What a killed writer leaves: an unfinished temporary file of a process that is gone.
            left = self.folder / f".snapshot-{number:012d}.npz.{HOST}-{os.getpid()}-00000000-0.tmp"
            left.write_bytes(b"PK half a snapshot")
            raise Killed
        original(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", save)
        with pytest.raises(Killed):
            kept(make_state(), 11, block=block, store=folder, on_block=on_block, progress=progress)


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize(("block", "blocks"), [(4, 1), (4, 2), (1, 1), (1, 2), (1, 5), (1, 10), (1, 11)])
def test_killed_at_a_block_it_ends_in_the_same_bytes(tmp_path, monkeypatch, truth, moment, block, blocks):
    die_at(monkeypatch, moment, blocks, tmp_path, block)
    seen = []
    result = kept(make_state(), 11, block=block, store=tmp_path, progress=seen.append)
    assert result.resumed == block * (blocks if moment == "after" else blocks - 1)
    assert bits(result) == bits(truth)
    assert not list(tmp_path.glob(".*.tmp"))
    assert [here.done for here in seen] == [*range(result.resumed, 11, block), 11]


def test_killed_at_every_block_in_turn(tmp_path, monkeypatch, truth):
    for blocks in range(1, 12):
        die_at(monkeypatch, ["after", "during"][blocks % 2], blocks, tmp_path, 1)
    result = kept(make_state(), 11, block=3, store=tmp_path)  # and with other blocks at the end
    assert bits(result) == bits(truth)


@pytest.mark.parametrize("damage", ["cut", "empty", "all"])
def test_a_damaged_snapshot_costs_time_not_the_result(tmp_path, monkeypatch, truth, damage, caplog):
    die_at(monkeypatch, "after", 6, tmp_path, 1)
    paths = sorted(tmp_path.glob("snapshot-*.npz"))
    for path in paths if damage == "all" else paths[-1:]:
        content = path.read_bytes()
        path.write_bytes(b"" if damage == "empty" else content[: len(content) // 3])
    result = kept(make_state(), 11, block=1, store=tmp_path)
    assert result.resumed == (0 if damage == "all" else 5)
    assert bits(result) == bits(truth)
    assert "damaged" in caplog.text


def test_a_finished_run_is_returned_and_can_be_prolonged(tmp_path, truth):
    first = kept(make_state(), 5, block=2, store=tmp_path)
    again = kept(make_state(), 5, block=2, store=tmp_path)
    assert (again.resumed, again.done) == (5, 5)
    assert bits(again) == bits(first)
    assert again.seconds == first.seconds
    longer = kept(make_state(), 11, store=Store(tmp_path, keep=1))
    assert bits(longer) == bits(truth)
    assert longer.seconds > first.seconds
    assert len(list(tmp_path.glob("snapshot-*.npz"))) == 1


def test_another_spec_is_refused_and_what_differs_is_named(tmp_path):
    kept(make_state(), 2, store=tmp_path)
    other = {"seed": 1, "attack": {"eta": 1.0, "tau": 5}, "data": DATA + 1}
    with pytest.raises(ValueError, match="holds another run") as caught:
        go(make_state(), 2, store=tmp_path, spec=other)
    text = str(caught.value)
    assert "attack.tau: 'absent' there, 5 here" in text
    assert "seed: 0 there, 1 here" in text
    assert "data: 'float32[8, 8] " in text
    assert "eta" not in text
    assert "Choose another folder" in text


def test_the_same_spec_in_other_words_is_the_same(tmp_path):
    kept(make_state(), 2, store=tmp_path)
    same = {"data": np.asarray(DATA), "attack": {"eta": np.float64(1.0)}, "seed": np.int64(0)}
    assert go(make_state(), 2, store=tmp_path, spec=same).resumed == 2


def test_a_store_of_other_code_is_refused(tmp_path):
    kept(make_state(), 4, store=tmp_path)
    with pytest.raises(ValueError, match="holds 4 steps of this run, more than the 3 asked for"):
        kept(make_state(), 3, store=tmp_path)
    with pytest.raises(ValueError, match=r"another state: .*\.x is float32\[8, 8\], now float32\[4, 8\]"):
        kept(make_state()._replace(x=jnp.zeros((4, 8))), 4, store=tmp_path, args=(DATA,))

    def quiet(state, data):
        return step(state, data)[0], {}

    with pytest.raises(ValueError, match="the code of the step has changed"):
        run(quiet, make_state(), 4, args=(DATA,), store=tmp_path, spec=SPEC)


def test_another_environment_is_a_warning(tmp_path, monkeypatch, caplog):
    kept(make_state(), 2, store=tmp_path)
    monkeypatch.setattr("bilevel.loop.environment", lambda: {"jax": "0.0", "kind": "abacus"})
    with caplog.at_level(logging.WARNING):
        assert kept(make_state(), 4, store=tmp_path).resumed == 2
    assert "resuming elsewhere, the last digits may differ" in caplog.text
    assert "'abacus' here" in caplog.text


def test_on_block_can_end_a_run_for_good(tmp_path):
    seen = []

    def on_block(here):
        seen.append((here.done, here.metrics["count"].tolist(), int(here.state.count)))
        return here.done >= 4

    result = kept(make_state(), 11, block=2, store=tmp_path, on_block=on_block)
    assert result.done == 4
    assert seen == [(2, [1, 2], 2), (4, [3, 4], 4)]
    assert all(len(values) == 4 for values in result.history.values())
    again = kept(make_state(), 11, block=2, store=tmp_path, on_block=on_block)
    assert (again.done, again.resumed, len(seen)) == (4, 4, 2)


def test_a_store_is_left_unlocked_after_an_error(tmp_path, monkeypatch):
    die_at(monkeypatch, "before", 1, tmp_path, 4)
    with Store(tmp_path):
        pass


def test_no_steps_and_no_metrics():
    result = run(lambda x: (x, {}), jnp.ones(2), 0)
    assert (result.done, result.history) == (0, {})
    assert go(make_state(), 0).history["low"].dtype == jnp.bfloat16
    assert run(lambda x: (x + 1, {}), jnp.ones(2), 3).state.tolist() == [4, 4]


def test_a_bound_method_and_several_arguments():
    @dataclass(frozen=True, eq=False)
    class Adder:
        rate: float

        def step(self, x, a, b):
            return x + self.rate * (a["v"] - b), {"x": x}

    adder = Adder(0.5)
    assert float(run(adder.step, 0.0, 4, args=({"v": 3.0}, jnp.float32(1))).state) == 4.0


def test_a_state_over_a_mesh_resumes_on_it(tmp_path, devices8):
    from bilevel.devices import mesh, shard_rows

    def rotate(x):
        return jnp.roll(x, 1, axis=0) * 0.9, {"sum": x.sum()}

    x = jnp.arange(64.0).reshape(16, 4)
    sharded = shard_rows(x, mesh(devices=devices8))
    whole = run(rotate, sharded, 6, block=2)
    run(rotate, sharded, 4, block=2, store=tmp_path, spec={})
    result = run(rotate, sharded, 6, block=2, store=tmp_path, spec={})
    assert result.resumed == 4
    assert result.state.sharding == sharded.sharding
    assert bits(result) == bits(whole)
    np.testing.assert_allclose(result.state, run(rotate, x, 6).state, rtol=1e-6)


def grow(x):
    return jnp.concatenate([x, x]), {}


@dataclass
class Unhashable:
    a: int

    def __call__(self, x):
        return x, {}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: run(step, 0.0, -1), ValueError, "steps must be >= 0, got -1"),
        (lambda: run(step, 0.0, 1, block=0), ValueError, "block must be at least 1 step, got 0"),
        (lambda: run(step, 0.0, 1, store="x"), ValueError, "a store needs spec"),
        (lambda: run(step, 0.0, 1, args=DATA), TypeError, "args must be a tuple .* got ArrayImpl"),
        (lambda: run(Unhashable(1), 0.0, 1), TypeError, "step must be hashable"),
        (
            lambda: run(grow, jnp.ones(2), 1),
            ValueError,
            r"changes the state from float32\[2\] to float32\[4\]",
        ),
        (lambda: run(lambda x: ({"a": x}, {}), 0.0, 1), ValueError, "changes the structure of the state"),
        (lambda: run(lambda x: (x > 0, {}), 0.0, 1), ValueError, r"from float32\[\] to bool\[\]"),
        (lambda: run(lambda x: (x, x), 0.0, 1), ValueError, "metrics a dict of scalars"),
        (lambda: run(lambda x: (x, {"m": x}), jnp.ones(2), 1), ValueError, "metric 'm' must be a scalar"),
        (lambda: run(lambda x: (x, {"m": {"n": x}}), 0.0, 1), ValueError, "metric 'm' must be a scalar"),
        (
            lambda: run(lambda x: (x, {"m": x}), 0.0, 1, show=["n"]),
            ValueError,
            r"show names \['n'\], but .*\['m'\]",
        ),
        (
            lambda: run(lambda x: (x, {}), 0.0, 1, progress="yes"),
            TypeError,
            "progress must be True, False or",
        ),
    ],
)
def test_bad_input_is_a_clear_error(call, error, text):
    with pytest.raises(error, match=text):
        call()


SCRIPT = """
import sys, time
import jax, jax.numpy as jnp
from bilevel.loop import run
from bilevel.store import digest

def make_state():
    return {"key": jax.random.key(5), "x": jnp.zeros((64, 64)), "low": jnp.ones(3, jnp.bfloat16)}

def step(state, data):
    key, draw = jax.random.split(state["key"])
    x = jnp.tanh(state["x"] @ data + jax.random.normal(draw, (64, 64)))
    return {"key": key, "x": x, "low": state["low"] * 0.99}, {"sum": x.sum(), "peak": x.max()}

def play(steps, folder=None, pause=0.0):
    on_block = lambda here: time.sleep(pause)  # so that there is a run to kill
    data = jnp.linspace(-1, 1, 64 * 64).reshape(64, 64)
    return run(step, make_state(), steps, args=(data,), block=2, store=folder, spec={"seed": 5}, on_block=on_block)

def bits(result):
    return digest((result.state, result.history))

if __name__ == "__main__":
    result = play(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
    print(result.resumed, bits(result), flush=True)
"""


def run_killed(tmp_path, kills, steps, seed):
    """Start the script again and again, `kill -9` it at a random moment of its run, and let the last one end."""
    rng = np.random.default_rng(seed)
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(steps), str(folder)]
    for _ in range(kills):
        before = set(folder.glob("snapshot-*"))
        child = subprocess.Popen([*command, "0.1"], stdout=subprocess.PIPE)
        while child.poll() is None and set(folder.glob("snapshot-*")) == before:
            time.sleep(0.002)  # until it has got on
        time.sleep(rng.uniform(0, 0.25))
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL, "it ended before it could be killed"
    done = subprocess.run([*command, "0"], stdout=subprocess.PIPE, text=True, check=True)
    resumed, got = done.stdout.split()
    module = runpy.run_path(str(script))
    assert 2 * kills <= int(resumed) < steps
    assert got == module["bits"](module["play"](steps))
    assert not list(folder.glob(".*.tmp"))


def test_kill_9_once(tmp_path):
    run_killed(tmp_path, kills=1, steps=40, seed=0)


@pytest.mark.slow
def test_kill_9_ten_times(tmp_path):
    run_killed(tmp_path, kills=10, steps=120, seed=1)
