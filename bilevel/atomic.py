"""Files that survive `kill -9`: atomic writes, a lock that a dead process cannot hold, and the sweeping of
leftovers.

A file is written beside its place under a temporary name, flushed to the disk and renamed over the old one;
then the folder is flushed. Whoever reads sees the old bytes or the new ones, whenever the process or the
machine stops. What a killed process leaves is a temporary file, whose name says whose it was.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

# Temporary files are called .NAME.HOST-PID-TOKEN-N.tmp; the token tells us from a dead process of the same number.
HOST = re.sub(r"\W", "_", socket.gethostname())
TOKEN = secrets.token_hex(4)
COUNT = itertools.count()
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>\w+)-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})-\d+\.tmp")


class FolderLocked(RuntimeError):
    """The folder is in use by a living process."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file so that it is there whole or not at all: `with atomic_write(path) as file:
    file.write(...)`.

    Arguments:
        path: the file to make or replace; its folder must exist.

    Yields a binary file, readable and seekable. An exception inside leaves the old file as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "a.bin")) as file:
    ...         _ = file.write(b"whole")
    ...     os.listdir(folder)
    ['a.bin']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{HOST}-{os.getpid()}-{TOKEN}-{next(COUNT)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Arguments:
        path: the file to make or replace.
        value: mappings, sequences, NumPy and JAX arrays and scalars, paths, strings, numbers, None. JSON has
            no NaN and no infinity: they become null.

    Raises `TypeError` for anything else, and names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json_atomic(Path(folder, "a.json"), {"hr": np.float32(0.5), "loss": [1, math.nan]})
    ...     json.loads(Path(folder, "a.json").read_text())
    {'hr': 0.5, 'loss': [1, None]}
    """
    text = json.dumps(_finite(plain(value)), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def plain(value: Any, *, array: Callable[[np.ndarray], Any] = np.ndarray.tolist, where: str = "value") -> Any:
    """`value` in the terms of JSON: dict, list, str, int, float, bool, None.

    Arguments:
        value: as `write_json_atomic` takes it.
        array: what becomes of an array with axes.
        where: what errors call the value.

    >>> plain({"k": np.int32(3), "x": np.zeros(2), "p": Path("a")})
    {'k': 3, 'x': [0.0, 0.0], 'p': 'a'}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields:  # a NamedTuple
        value = dict(zip(fields, value))
    if isinstance(value, Mapping):
        return {str(key): plain(item, array=array, where=f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, array=array, where=f"{where}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value)
        if value.dtype != object:
            return array(value) if value.ndim else value.item()
    raise TypeError(
        f"{where} cannot be written as JSON: {value!r} is a {type(value).__name__}; give its name, or its numbers"
    )


def sweep(folder: str | os.PathLike[str], *, own: Callable[[str], bool] = lambda name: False) -> list[str]:
    """Remove the temporary files that killed processes left in `folder`; returns their names.

    A file goes if it bears our pattern, this host's name, and the number of a process that no longer lives.
    Files of other hosts (a shared disk) and of living processes stay.

    Arguments:
        folder: where to look (not below).
        own: tells of a final name whether the caller alone may write it (holding a lock): then nobody living
            does.
    """
    removed = []
    for path in Path(folder).glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and (own(match["name"]) or not _living(match["host"], int(match["pid"]), match["token"])):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return sorted(removed)


@contextlib.contextmanager
def lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold `folder` for this process alone: `with lock(folder): ...`; the file `.lock` in it says who does.

    The kernel holds the lock (`flock`) as long as the process lives, so that a killed run leaves nothing to
    clean up.

    Raises `FolderLocked`, naming the holder, and `OSError` where the system has no such locks.
    """
    with open(Path(folder, ".lock"), "a+b") as file:
        _flock(file, Path(folder))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}".encode())
        file.flush()
        try:
            yield
        finally:
            # The file stays: removing it would let a second process lock a name that a third one makes anew.
            file.truncate(0)


def _flock(file: BinaryIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:
        raise OSError(f"cannot lock {folder}: this system has no flock (Windows: run under WSL)") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().decode(errors="replace") or "another process"
        raise FolderLocked(
            f"{folder} is in use by {holder}; wait for it, end it, or choose another folder"
        ) from None


def _living(host: str, pid: int, token: str) -> bool:
    if (
        host != HOST or os.name != "posix"
    ):  # not ours to judge; on Windows the question itself would interrupt
        return True
    if pid == os.getpid():
        return token == TOKEN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable; a system whose folders cannot be opened (Windows) has no such call."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
