"""The data sets of the papers by name: a local folder first, the original host where it may be asked.

    BILEVEL_DATA=/folder    holds <name>/interactions.tsv.gz, or the original files (ml-100k/u.data, ml-1m/ratings.dat,
                            gowalla-lightgcn/train.txt and test.txt, steam-200k/steam-200k.csv, ...), or the original
                            archives (ml-100k.zip, ml-1m.zip, filmtrust.zip)

No data set is redistributed with this project: what is not in the folder is asked of the host that published it, see
`models.data.fetch`. Steam-200k needs an account there, so it must be put into the folder by hand.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import lzma
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.data import fetch, files
from models.data.catalog import SOURCES
from models.data.files import How
from models.data.formats import DataError, Roles

if TYPE_CHECKING:
    from models.data.load import Dataset

FOLDER = "BILEVEL_DATA"
_TABLES = ("interactions.tsv.gz", "interactions.tsv", "interactions.csv.gz", "interactions.csv")

# What zipfile lets through when bytes of an archive are wrong.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(KeyError, EOFError, RuntimeError, OSError, ValueError),
)


class Piece(NamedTuple):
    """A file, or a file of an archive, that holds all events or one part of a split."""

    path: Path
    members: tuple[str, ...] = ()
    part: str = ""
    origin: dict[str, Any] = {}  # noqa: RUF012  (never written to)


def dataset(name: str, /, **options: Any) -> Dataset:
    """A data set of the papers: from the folder `BILEVEL_DATA`, else downloaded where its host allows.

    Args:
        name: a key of `SOURCES`, such as "ml-100k".
        options: as in `models.data.load` (threshold, track, duplicates, ...).

    Raises:
        FileNotFoundError: it is not in the folder and cannot be downloaded; says what to put where.

    >>> from models.data import load
    >>> load("no-such-set")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    FileNotFoundError: no file and no data set named 'no-such-set'; known: amazon-beauty, ...
    """
    from models.data.load import load

    if name not in SOURCES:
        raise FileNotFoundError(_unknown(name))
    return load(name, **options)


def is_local(name: str) -> bool:
    """Whether a data set of `SOURCES` lies in the folder `BILEVEL_DATA`, so that nothing need be downloaded."""
    root = os.environ.get(FOLDER)
    return bool(root and _local(Path(root), name))


def beside(name: str, file: str) -> Path | None:
    """Another file of a data set's folder in `BILEVEL_DATA`, such as a published test file; None: not there."""
    root = os.environ.get(FOLDER)
    path = Path(root, name, file) if root else None
    return path if path is not None and path.is_file() else None


def named(name: str, roles: Roles, how: How, options: dict[str, Any]) -> Dataset:
    """What `load` does with a text that is no path: look the name up, locally first."""
    root = os.environ.get(FOLDER)
    folder = Path(root, name) if root else None
    if name not in SOURCES:
        if folder is not None and folder.is_dir():
            return from_folder(folder, name, roles, how, options)
        raise FileNotFoundError(_unknown(name))
    if root and not Path(root).is_dir():
        raise FileNotFoundError(f"{FOLDER}={root} is not a folder; set it to the folder that holds {name}/")
    pieces = _local(Path(root), name) if root else []
    return _read(pieces or _download(name, root), name, roles, how, options)


def from_folder(folder: Path, name: str, roles: Roles, how: How, options: dict[str, Any]) -> Dataset:
    """The interactions in a folder: its one table, original file, train and test files, or RecBole file."""
    known = [file for source in SOURCES.values() for file in source.files]
    pieces = _find(folder, (*_TABLES, *known), None)
    if not pieces:
        found = sorted(folder.glob("*.inter")) + sorted(folder.glob("*.inter.gz"))
        pieces = [Piece(file) for file in found[:1]]
        if len(found) > 1:
            raise ValueError(f"{folder} holds {found[0].name} and {found[1].name}; give the path of one")
    if not pieces:
        raise FileNotFoundError(
            f"{folder} holds no interactions file; expected one of {', '.join(_TABLES)}, u.data, ratings.dat, *.inter, "
            "or train.txt and test.txt"
        )
    return _read(pieces, name, roles, how, options)


def from_file(path: Path, name: str, roles: Roles, how: How, options: dict[str, Any]) -> Dataset:
    """The interactions in one file."""
    return _read([Piece(path)], name, roles, how, options, preset=False)


# ------------------------------------------------------------------------------------------------------- inside


def _read(
    pieces: list[Piece], name: str, roles: Roles, how: How, options: dict[str, Any], preset: bool = True
) -> Dataset:
    from models.data.load import build

    source = SOURCES.get(name) if preset else None
    for key, value in (source.options if source else {}).items():
        if options.get(key) == "error":  # the preset answers only what the caller left at the default
            options = {**options, key: value}
    contents: dict[str, tuple[str, bytes]] = {}
    origin: dict[str, Any] = {}
    for piece in pieces:
        content, shown = _content(piece)
        contents[piece.part] = (shown, content)
        facts = {
            "file": shown if preset else piece.path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            **piece.origin,
        }
        origin |= {"parts": {**origin.get("parts", {}), piece.part: facts}} if piece.part else facts
    if len(pieces) == 1:
        shown, content = next(iter(contents.values()))
        raw, layout = files.read(shown, roles, how, content=content)
    else:
        raw, layout = files.read_parts(contents, roles, how)
    origin["layout"] = layout
    if source is not None:
        counts = {"users": source.users, "items": source.items, "rows": source.events}
        origin |= {"published": counts, "cite": source.cite} | ({"note": source.note} if source.note else {})
        if name == "ml-1m" and raw.time is None:
            origin["note"] = "an edition without timestamps: no split by time is possible"
    return build(raw, name=name, origin=origin, **options)


def _content(piece: Piece) -> tuple[bytes, str]:
    """Bytes of a file, or of the right member of an archive; and the name to show."""
    if not piece.members:
        return piece.path.read_bytes(), str(piece.path)
    packed = io.BytesIO(piece.path.read_bytes())  # so that an OSError below is the archive's, not the disk's
    try:
        with zipfile.ZipFile(packed) as archive:
            held = [n for n in archive.namelist() if n.rsplit("/", 1)[-1] in piece.members]
            if not held:
                raise KeyError(f"there is no {' or '.join(piece.members)} in it")
            return archive.read(held[0]), f"{piece.path}/{held[0]}"
    except _DAMAGED as error:
        raise DataError(str(piece.path), 1, f"not the archive expected ({error}); fetch it again") from error


def _local(root: Path, name: str) -> list[Piece]:
    """The files of a data set below BILEVEL_DATA, in the order: table, original file, train and test, archive."""
    source = SOURCES[name]
    for folder in (name, *source.folders):
        alone = folder == name  # a folder of another data set is looked at for this one's train and test only
        pieces = _find(root / folder, (*_TABLES, *source.files) if alone else (), source.split)
        if pieces:
            return pieces
    for archive in source.archives:
        for folder in (root / name, root):
            if (folder / archive).is_file():
                return [Piece(folder / archive, source.files)]
    return []


def _find(folder: Path, names: tuple[str, ...], split: str | None) -> list[Piece]:
    for name in dict.fromkeys(names):
        if (folder / name).is_file():
            return [Piece(folder / name)]
    return [Piece(path, part=part) for part, path in files.find_parts(folder, split).items()]


def _download(name: str, root: str | None) -> list[Piece]:
    source = SOURCES[name]
    looked = f"{Path(root, name)} (from {FOLDER})" if root else f"a folder ({FOLDER} is not set)"
    if not source.remotes:
        where = f" It is at {source.page}." if source.page else ""
        raise FileNotFoundError(
            f"{name} is not in {looked} and has no public download here.{where} Put its interactions as "
            f"{' or '.join(f'{name}/{file}' for file in ('interactions.tsv.gz', *source.files))} (a table: tab, header "
            f"with user and item) into a folder, set {FOLDER} to that folder. Source: {source.cite}"
        )
    by_hand = ", ".join(f"{remote.url} as {name}/{remote.file}" for remote in source.remotes)
    help_ = f"By hand: download {by_hand}, put it into a folder and set {FOLDER} to that folder"
    try:
        got = [fetch.fetch(remote, name) for remote in source.remotes]
    except ImportError as error:
        raise ImportError(
            f"downloading {name} needs pooch: pip install -e '.[data]' in the checkout. {help_}"
        ) from error
    except (OSError, ValueError) as error:  # no network; a checksum that differs
        raise FileNotFoundError(
            f"{name} is not in {looked} and could not be downloaded: {type(error).__name__}: {error}. {help_}"
        ) from error
    return [
        Piece(path, source.files if remote.file.endswith(".zip") else (), remote.part, facts)
        for remote, (path, facts) in zip(source.remotes, got)
    ]


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no file and no data set named {name!r}; {hint}known: {', '.join(sorted(SOURCES))}"
