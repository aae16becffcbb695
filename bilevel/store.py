"""Snapshots of a run: a folder of atomic, self-checking files, from which the run continues after `kill -9`.

A snapshot is an ordinary `.npz` without pickles, whose zip comment holds the SHA-256 of every byte before it:
a truncated or altered file is known before it is parsed.

    header          JSON: format, version, step, the caller's facts, and path, shape and dtype of every leaf
    state/0, ...    the leaves of the state; typed JAX keys as their data, bfloat16 and its like as unsigned
    integers history/NAME    one array a metric
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bilevel.atomic import atomic_write, lock, plain, sweep

log = logging.getLogger(__name__)

FORMAT, VERSION = "bilevel-snapshot", 1
PREFIX = b"sha256:"
TRAILER = len(PREFIX) + 64
CHUNK = 1 << 20


class CorruptSnapshot(ValueError):
    """A file that is truncated, altered, or no snapshot."""


class Snapshot(NamedTuple):
    """What a snapshot file holds.

    Arguments:
        step: number of steps done.
        facts: what the caller wrote beside the state, in terms of JSON.
        history: one array a metric, (step,).
        leaves: the encoded leaves of the state, each with the record of its path, shape and dtype.
    """

    step: int
    facts: dict[str, Any]
    history: dict[str, np.ndarray]
    leaves: list[tuple[dict[str, Any], np.ndarray]]

    def restore(self, template: PyTree) -> PyTree:
        """The state in the structure of `template`, on its devices where it is committed to some.

        Raises `ValueError`, naming the leaves, where paths, shapes, dtypes or key types differ.
        """
        like, structure = jax.tree_util.tree_flatten_with_path(template)
        expected = [_encode(path, leaf)[0] for path, leaf in like]
        found = [record for record, _ in self.leaves]
        if expected != found:
            raise ValueError(f"the snapshot holds another state: {_differences(found, expected)}")
        values = [_decode(record, data, leaf) for (record, data), (_, leaf) in zip(self.leaves, like)]
        return jax.tree.unflatten(structure, values)


class Store:
    """A folder of snapshots, for one process at a time: `with Store(folder) as store: ...`.

    Entering makes and locks the folder and sweeps away what killed writers left. `save` keeps the last `keep`
    snapshots; `latest` falls back to the one before where the newest is damaged, and says so.

    Arguments:
        folder: made if missing, with its parents.
        keep: number of snapshots kept, at least 1; 2 survive the loss of one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.save(3, {"x": jnp.arange(2.0)}, {"loss": np.zeros(3)}, {"seed": 0})
    ...     store.latest().restore({"x": jnp.zeros(2)})
    {'x': Array([0., 1.], dtype=float32)}
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"Store: keep must be at least 1 snapshot, got {keep}")
        self.folder, self.keep = Path(folder), keep
        self._held = contextlib.ExitStack()
        self._open = False

    def __enter__(self) -> Store:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(lock(self.folder))
        self._open = True
        swept = sweep(self.folder, own=lambda name: name.startswith("snapshot-"))
        if swept:
            log.info("%s: removed %d unfinished files of killed runs", self.folder, len(swept))
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._held.close()

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, keep={self.keep})"

    def save(
        self, step: int, state: PyTree, history: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        """Write the snapshot of `step`, then remove those beyond the last `keep`."""
        self._check_open()
        write_snapshot(self.folder / f"snapshot-{step:012d}.npz", step, state, history, facts)
        for path in self._paths()[: -self.keep]:
            path.unlink()

    def latest(self) -> Snapshot | None:
        """The newest snapshot that is whole, or None; damaged ones are set aside as `*.corrupt`, with a
        warning.
        """
        self._check_open()
        damaged = 0
        for path in reversed(self._paths()):
            try:
                snapshot = read_snapshot(path)
            except CorruptSnapshot as error:
                damaged += 1
                aside = path.with_name(path.name + ".corrupt")
                os.replace(path, aside)
                log.warning("%s; set aside as %s, trying the one before", error, aside.name)
            else:
                if damaged:
                    log.warning("%s: continuing from step %d", self.folder, snapshot.step)
                return snapshot
        if damaged:
            log.warning("%s: no whole snapshot is left; starting from the beginning", self.folder)
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("snapshot-*.npz"))

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError(f"{self!r} is not open; use `with {self!r} as store:`")


def write_snapshot(
    path: str | os.PathLike[str],
    step: int,
    state: PyTree,
    history: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
) -> None:
    """Write one snapshot file, atomically; arguments as the fields of `Snapshot`, with the state as it is."""
    encoded = [_encode(path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]]
    series = {name: _encode((), np.asarray(values)) for name, values in history.items()}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "facts": plain(facts, where="facts"),
        "leaves": [record for record, _ in encoded],
        "history": {name: record for name, (record, _) in series.items()},
    }
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    arrays |= {f"state/{n}": data for n, (_, data) in enumerate(encoded)}
    arrays |= {f"history/{name}": data for name, (_, data) in series.items()}
    with atomic_write(path) as file:
        np.savez(file, **arrays)
        # The zip ends with the length of its comment, 0: make room for the digest, which then covers all before it.
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", TRAILER))
        size = file.tell()
        digest = _digest(file, size)
        file.seek(size)
        file.write(digest)


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """Read and check one snapshot file.

    Raises `CorruptSnapshot` where the checksum fails, and `ValueError` for a version that this code cannot
    read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - TRAILER
        if size <= 0 or file.seek(size) < 0 or file.read() != _digest(file, size):
            raise CorruptSnapshot(f"{path} is damaged or unfinished (its checksum does not hold)")
    with np.load(path, allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise ValueError(
                f"{path}: expected {FORMAT} version {VERSION}, found {header.get('format')} version "
                f"{header.get('version')}; read it with the release that wrote it"
            )
        leaves = [(record, arrays[f"state/{n}"]) for n, record in enumerate(header["leaves"])]
        history = {
            name: _view(record, arrays[f"history/{name}"]) for name, record in header["history"].items()
        }
    return Snapshot(header["step"], header["facts"], history, leaves)


def digest(tree: PyTree) -> str:
    """A fingerprint of arrays: SHA-256 over path, shape, dtype and bytes of every leaf, in hexadecimal.

    >>> digest({"x": np.zeros(3)}) == digest({"x": np.zeros(3)}) != digest({"x": np.zeros(4)})
    True
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        record, data = _encode(path, leaf)
        total.update(json.dumps(record).encode())
        total.update(data.tobytes())
    return total.hexdigest()


def _encode(path: Any, leaf: Any) -> tuple[dict[str, Any], np.ndarray]:
    """A leaf as its record and a plain NumPy array."""
    record: dict[str, Any] = {"path": jax.tree_util.keystr(path)}
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        record["key"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    data = np.asarray(leaf, order="C")
    if data.dtype == object:
        raise TypeError(f"the leaf {record['path'] or 'itself'} is no array: {leaf!r}")
    record |= {"shape": list(data.shape), "dtype": data.dtype.name}
    if data.dtype.isbuiltin != 1:  # bfloat16, float8, int4: NumPy's file format would write them as raw bytes
        data = data.view(f"u{data.dtype.itemsize}")
    return record, data


def _view(record: dict[str, Any], data: np.ndarray) -> np.ndarray:
    return data.view(jnp.dtype(record["dtype"]))


def _decode(record: dict[str, Any], data: np.ndarray, like: Any) -> Any:
    data = _view(record, data)
    if not isinstance(like, jax.Array):
        return data
    value = jnp.asarray(data)
    if "key" in record:
        value = jax.random.wrap_key_data(value, impl=record["key"])
    return jax.device_put(value, like.sharding) if like.committed else value


def _differences(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    old, new = ({record["path"]: _brief(record) for record in records} for records in (found, expected))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    parts = [
        f"{name or 'the leaf'} is {old.get(name, 'absent')}, now {new.get(name, 'absent')}"
        for name in names[:4]
    ]
    return (
        "; ".join(parts) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")
        or "the order of its leaves"
    )


def _brief(record: dict[str, Any]) -> str:
    return f"{record.get('key', record['dtype'])}{record['shape']}"


def _digest(file: BinaryIO, size: int) -> bytes:
    """The trailer for the first `size` bytes of `file`."""
    total = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(CHUNK, size))):
        total.update(chunk)
        size -= len(chunk)
    return PREFIX + total.hexdigest().encode()
