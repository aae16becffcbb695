"""Downloads: one file from its host into the cache, checked.

A checksum published with the data decides. Where there is none, the sha256 of the first download is kept beside the
file and every later use is held to it, and the provenance says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple


class Remote(NamedTuple):
    """A file on its host.

    Args:
        url: where it is.
        checksum: "md5:..." or "sha256:..." as published (or computed from a copy whose origin is proven); None.
        part: "train" or "test" when it is one part of a split.
    """

    url: str
    checksum: str | None = None
    part: str = ""

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


def fetch(remote: Remote, name: str) -> tuple[Path, dict[str, Any]]:
    """Download a file of the data set `name` into the cache, unless it lies there, and check it.

    Returns:
        The file, and for the provenance its `url` and what was `verified`.

    Raises:
        ImportError: pooch is not installed.
        OSError, ValueError: no network, or another checksum than the published or the recorded one.
    """
    import pooch

    folder = Path(pooch.os_cache("bilevel"), name)
    record = folder / f"{remote.file}.sha256"
    known = remote.checksum
    if known is None and record.is_file():
        known = f"sha256:{record.read_text().split()[0]}"
    bar = importlib.util.find_spec("tqdm") is not None
    if not bar and not (folder / remote.file).is_file():
        pooch.get_logger().info("%s: fetching %s (tqdm would show the progress)", name, remote.url)
    path = Path(pooch.retrieve(remote.url, known, fname=remote.file, path=folder, progressbar=bar))
    if remote.checksum is not None:
        return path, {"url": remote.url, "verified": f"{remote.checksum.partition(':')[0]}, published"}
    if not record.is_file():
        _write(record, f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {remote.file}\n")
    return path, {"url": remote.url, "verified": "sha256 recorded at the first download, none is published"}


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
