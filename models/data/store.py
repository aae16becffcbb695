"""Profiles on disk: one versioned .npz without pickle, the same bytes for the same profiles.

Arrays by form: implicit rows are packed to one bit a cell; explicit rows keep `(indptr, item, value)`; clicks
keep item and packed mask. A JSON text holds sizes, track and the caller's metadata.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from models.data.profiles import Profiles

FORMAT = "bilevel-profiles"
VERSION = 1


def save(path: str | os.PathLike[str], profiles: Profiles, meta: dict[str, Any]) -> None:
    """Write to a file beside `path` and rename it, so a kill leaves the old file or the new one."""
    profiles.validate()
    head = {
        "format": FORMAT,
        "version": VERSION,
        "form": "clicks" if profiles.rows is None else "rows",
        "fakes": profiles.fakes,
        "items": profiles.items,
        "track": profiles.track,
        "clicks_targets": profiles.clicks_targets,
        "width": profiles.width,
        "meta": meta,
    }
    try:
        text = json.dumps(head, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must be plain JSON (numbers, text, lists, dicts): {error}") from error
    arrays = {"head": np.frombuffer(text.encode(), np.uint8), "targets": np.asarray(profiles.targets)}
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays, **_pack(profiles))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> tuple[Profiles, dict[str, Any]]:
    """Read and check what `save` wrote."""
    with Path(path).open("rb") as file:  # a missing file is a FileNotFoundError that names it
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            head = json.loads(arrays.pop("head").tobytes())
            known = head["format"] == FORMAT and isinstance(head["version"], int)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as e:
            raise ValueError(f"{path}: not a profiles file, or a damaged one") from e
    if not known:
        raise ValueError(f"{path}: not a profiles file (format {head['format']!r})")
    if head["version"] > VERSION:
        raise ValueError(f"{path}: written by a newer version of the format ({head['version']} > {VERSION})")
    try:
        profiles = _unpack(arrays, head).validate(fakes=head["fakes"])
        return profiles, head["meta"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged profiles file ({error})") from error


def _pack(profiles: Profiles) -> dict[str, np.ndarray]:
    if profiles.rows is None:
        return {
            "clicks": np.asarray(profiles.clicks),
            "mask": np.packbits(np.asarray(profiles.mask), axis=1),
        }
    rows = np.asarray(profiles.rows)
    if profiles.track == "implicit":
        return {"bits": np.packbits(rows > 0, axis=1)}
    who, item = np.nonzero(rows)
    indptr = np.searchsorted(who, np.arange(rows.shape[0] + 1))
    return {"indptr": indptr.astype(np.int64), "item": item.astype(np.int32), "value": rows[who, item]}


def _unpack(arrays: dict[str, np.ndarray], head: dict[str, Any]) -> Profiles:
    from models.data.profiles import Profiles

    track, promise, targets = head["track"], bool(head["clicks_targets"]), arrays["targets"]
    fakes, items = int(head["fakes"]), int(head["items"])
    if head["form"] == "clicks":
        clicks = arrays["clicks"]
        mask = np.unpackbits(arrays["mask"], axis=1, count=clicks.shape[1]).astype(bool)
        return Profiles.from_clicks(
            clicks, targets, items=items, mask=mask, track=track, clicks_targets=promise
        )
    if track == "implicit":
        rows = np.unpackbits(arrays["bits"], axis=1, count=items).astype(np.float32)
    else:
        rows = np.zeros((fakes, items), arrays["value"].dtype)
        who = np.repeat(np.arange(fakes), np.diff(arrays["indptr"]))
        rows[who, arrays["item"]] = arrays["value"]
    return Profiles.from_rows(
        jnp.asarray(rows), targets, track=track, clicks_targets=promise, width=head["width"]
    )
