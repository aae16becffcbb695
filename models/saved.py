"""A fitted recommender on disk: its parameters, and the name and arguments it is made from again.

The training data are not in the file. They are given again when it is read, and must be the same: the file holds their
fingerprint. What the recommender knows of the items beside (`models.data.relations`) is in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.atomic import atomic_write, plain
from models import registry
from models.data.interactions import Interactions
from models.data.relations import Relations
from models.train import Fitted

FORMAT, VERSION = "bilevel-recommender", 1
COLUMNS = ("value", "type", "mask")  # the arrays of relations


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
    name, config = fitted.model.name, facts(fitted.model.config)
    known = {a: value for a, value in fitted.model.config.items() if isinstance(value, Relations)}
    again = registry.make(name, **_arguments({**config, **known})) if name in registry.names() else None
    if again is None or facts(again.config) != config:
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
        "relations": list(known),
        "meta": meta or {},
    }
    arrays = {f"p{n}": np.asarray(leaf) for n, leaf in enumerate(leaves)}
    arrays |= {f"{a}.{column}": np.asarray(getattr(known[a], column)) for a in known for column in COLUMNS}
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
    known = {a: _relations(a, head["config"][a], arrays) for a in head.get("relations", ())}
    model = registry.make(head["model"], **_arguments({**head["config"], **known}))
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
        wanted = {"x", *(f"p{n}" for n in range(head["leaves"]))}
        wanted |= {f"{a}.{column}" for a in head.get("relations", ()) for column in COLUMNS}
        complete = wanted <= arrays.keys()
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


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a factory in terms of JSON; relations by their types, sizes and a checksum.

    >>> from models.data.relations import clusters
    >>> told = facts({"relations": clusters([0, 1, 0]), "hidden": (4,)})
    >>> told["hidden"], told["relations"]["items"], told["relations"]["names"]
    ([4], 3, ['cluster'])
    """
    return plain({a: _told(value) if isinstance(value, Relations) else value for a, value in config.items()})


def _told(relations: Relations) -> dict[str, Any]:
    made = hashlib.sha256()
    for column in COLUMNS:
        made.update(np.ascontiguousarray(np.asarray(getattr(relations, column))).tobytes())
    sizes = {"items": relations.items, "names": relations.names, "sizes": relations.sizes}
    return {**sizes, "checksum": made.hexdigest()}


def _relations(argument: str, told: dict[str, Any], arrays: dict[str, np.ndarray]) -> Relations:
    columns = {column: jnp.asarray(arrays[f"{argument}.{column}"]) for column in COLUMNS}
    return Relations(**columns, names=tuple(told["names"]), sizes=tuple(told["sizes"]))


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the factories take them: JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
