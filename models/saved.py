"""A fitted recommender on disk: its parameters, and the name and arguments it is made from again.

The training data are not in the file. They are given again when it is read, and must be the same: the file holds their
fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.atomic import atomic_write, plain
from models import registry
from models.data.interactions import Interactions
from models.train import Fitted

FORMAT, VERSION = "bilevel-recommender", 1


def save(
    path: str | os.PathLike[str], fitted: Fitted, train: Interactions, *, meta: dict[str, Any] | None = None
) -> None:
    """Write a fitted recommender to one compressed file; a kill leaves the old file or the new one.

    Args:
        path: the file, usually `.npz`.
        fitted: from `models.train.fit`; its recommender must be one of `models.registry`.
        train: what it was trained on.
        meta: plain JSON to keep with it.

    Raises:
        ValueError: a recommender that no name can make again.
    """
    name, config = fitted.model.name, plain(fitted.model.config)
    again = registry.make(name, **_arguments(config)) if name in registry.names() else None
    if again is None or plain(again.config) != config:
        raise ValueError(
            f"{fitted.model!r} cannot be made again from its name and arguments, so a file cannot hold it"
        )
    leaves = jax.tree.leaves(fitted.params)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "config": config,
        "train": fingerprint(train),
        "sizes": [train.users, train.items, fitted.x.shape[0]],
        "leaves": len(leaves),
        "meta": meta or {},
    }
    arrays = {f"p{n}": np.asarray(leaf) for n, leaf in enumerate(leaves)}
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            head=np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8),
            x=np.asarray(fitted.x),
            **arrays,  # pyright: ignore[reportArgumentType]
        )


def load(path: str | os.PathLike[str], train: Interactions) -> tuple[Fitted, dict[str, Any]]:
    """Read what `save` wrote: the fitted recommender and the metadata.

    Args:
        path: the file.
        train: the data it was trained on.

    Raises:
        FileNotFoundError: no such file. ValueError: not such a file or a damaged one, or other training data.
    """
    head, arrays = _read(path)
    leaves = [jnp.asarray(arrays[f"p{n}"]) for n in range(head["leaves"])]
    if head["train"] != fingerprint(train):
        raise ValueError(
            f"{path}: was trained on other data ({head['sizes'][0]} users x {head['sizes'][1]} items; now {train}); "
            "give the training part of the same split"
        )
    model = registry.make(head["model"], **_arguments(head["config"]))
    users, items, fakes = head["sizes"]
    shape = jax.eval_shape(lambda key: model.init(key, users, items, fakes), jax.random.key(0))
    params = jax.tree.unflatten(jax.tree.structure(shape), leaves)
    x = jnp.asarray(arrays["x"])

    @jax.jit
    def read(params, train, x):
        data = model.prepare(train)
        return data, model.embed(params, x, data)

    data, embedding = read(params, train, x)
    return Fitted(model, params, data, x, embedding), head["meta"]


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a saved recommender, without the model; errors as in `load`."""
    return _read(path)[0]["meta"]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(Path(path), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        head = json.loads(arrays.pop("head").tobytes())
        known = head["format"] == FORMAT and head["version"] <= VERSION
        complete = all(f"p{n}" in arrays for n in range(head["leaves"])) and "x" in arrays
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a saved recommender, or a damaged one ({error})") from error
    if not known or not complete:
        raise ValueError(f"{path}: expected a complete file of format {FORMAT!r}, version {VERSION}")
    return head, arrays


def fingerprint(train: Interactions) -> str:
    """A checksum of the events, sizes and track; padding does not count.

    >>> data = Interactions.from_arrays([0, 1], [1, 0])
    >>> fingerprint(data) == fingerprint(data.pad(9)), len(fingerprint(data))
    (True, 64)
    """
    real = train.real()
    made = hashlib.sha256(f"{train.users} {train.items} {train.track}".encode())
    for column in (train.user, train.item, train.weight, train.time):
        made.update(b"" if column is None else np.ascontiguousarray(np.asarray(column)[real]).tobytes())
    return made.hexdigest()


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the factories take them: JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
