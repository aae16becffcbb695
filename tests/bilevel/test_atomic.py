"""Atomic files: whole or not at all, whoever dies when."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import atomic
from bilevel.atomic import FolderLocked, atomic_write, lock, plain, sweep, write_json_atomic


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, moment):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    if moment != "write":
        monkeypatch.setattr(atomic.os, moment, full)

    def write():
        with atomic_write(path) as file:
            file.write(b"half of ")
            if moment == "write":
                full()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with atomic_write(path) as one, atomic_write(path) as two:
        one.write(b"1")
        two.write(b"22")
    assert path.read_bytes() == b"1"  # the outer one is renamed last
    assert os.listdir(tmp_path) == ["a"]


def test_a_missing_folder_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "no" / "a"):
        pass


class Point(NamedTuple):
    x: float
    y: object


def test_json_of_everything_we_write(tmp_path):
    value = {
        "point": Point(1.5, None),
        "array": jnp.arange(3),
        "scalars": [np.float64(0.1), np.int32(2), np.bool_(True), jnp.float32(0.5), np.array(7)],
        "path": Path("a/b"),
        "key": jax.random.key(3),
        "text": "naïve",
        "broken": [np.nan, np.inf, {"deep": np.array([1.0, -np.inf])}],
        3: (),
    }
    write_json_atomic(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "naïve" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "point": {"x": 1.5, "y": None},
        "array": [0, 1, 2],
        "scalars": [0.1, 2, True, 0.5, 7],
        "path": "a/b",
        "key": [0, 3],
        "text": "naïve",
        "broken": [None, None, {"deep": [1.0, None]}],
        "3": [],
    }


@pytest.mark.parametrize("bad", [{1, 2}, object(), print, 1j, np.array([None])])
def test_what_json_cannot_say_is_named(bad):
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\] cannot be written as JSON"):
        plain({"a": [0, bad]})


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_sweep_removes_only_what_killed_processes_left(tmp_path):
    dead, other = dead_process(), os.getppid()
    gone = [
        f".a.npz.{atomic.HOST}-{dead}-00000000-0.tmp",
        f".b.x.json.{atomic.HOST}-{os.getpid()}-{'0' * 8}-7.tmp",  # our number, but not our token: before a restart
    ]
    kept = [
        f".a.npz.{atomic.HOST}-{other}-00000000-0.tmp",
        f".a.npz.{atomic.HOST}-{os.getpid()}-{atomic.TOKEN}-0.tmp",
        f".a.npz.elsewhere-{dead}-00000000-0.tmp",
        f".a.npz.{atomic.HOST}-{dead}-0000-0.tmp",  # not our pattern
        ".vim.tmp",
        "a.npz",
        ".lock",
    ]
    for name in gone + kept:
        (tmp_path / name).write_bytes(b"")
    assert sweep(tmp_path) == sorted(gone)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    swept = sweep(
        tmp_path, own=lambda name: name == "a.npz"
    )  # nobody else may write a.npz: whatever is there is dead
    assert swept == sorted(kept[:3])


HOLD = """
import sys, time
from bilevel.atomic import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        said = rf"is in use by process {child.pid} on \S+ since 20\d\d-"
        with pytest.raises(FolderLocked, match=said), lock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
    with lock(tmp_path):
        pass  # the kernel gave it back


def test_a_lock_holds_within_one_process_and_after_an_error(tmp_path):
    with lock(tmp_path), pytest.raises(FolderLocked, match=f"process {os.getpid()}"), lock(tmp_path):
        pass
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert (tmp_path / ".lock").read_text() == ""


def test_a_lock_with_no_words_in_it_still_holds(tmp_path):
    with lock(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(FolderLocked, match="in use by another process"), lock(tmp_path):
            pass
