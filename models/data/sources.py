"""The data sets of the papers by name: a local folder first, the original host where it may be asked.

    BILEVEL_DATA=/folder    holds <name>/interactions.tsv.gz, the original files (ml-100k/u.data, ml-1m/ratings.dat),
                            or the original archives (ml-100k.zip, ml-1m.zip)

No data set is redistributed with this project. MovieLens is downloaded from GroupLens and checked against the
checksum published there; the others must be put into the folder.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.data.formats import DataError, Roles, read

if TYPE_CHECKING:
    from models.data.load import Dataset

FOLDER = "BILEVEL_DATA"
_MOVIELENS = "F. M. Harper, J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015."
_TABLES = ("interactions.tsv.gz", "interactions.tsv", "interactions.csv.gz", "interactions.csv")


class Source(NamedTuple):
    """What is known of a data set: published counts, files to look for, how to read them, where to get them."""

    users: int
    items: int
    events: int  # rows of the file
    cite: str
    files: tuple[str, ...] = ()  # besides interactions.tsv.gz
    url: str | None = None
    md5: str | None = None
    member: str = ""  # the file inside the archive
    options: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    note: str = ""


_TREC = "C. Lin et al. Shilling Black-box Recommender Systems by Learning to Generate Fake User Profiles. TNNLS 2022."
_GOWALLA = "E. Cho, S. A. Myers, J. Leskovec. Friendship and Mobility. KDD 2011."
_AMAZON = "J. McAuley et al. Image-based Recommendations on Styles and Substitutes. SIGIR 2015."
_YELP = "Yelp Open Dataset, 2018 edition; X. He et al. LightGCN. SIGIR 2020."
_LAST = {"duplicates": "last"}
_HOST = "https://files.grouplens.org/datasets/movielens"

SOURCES: dict[str, Source] = {
    "ml-100k": Source(
        943,
        1682,
        100_000,
        _MOVIELENS,
        ("u.data", "ml-100k.inter"),
        f"{_HOST}/ml-100k.zip",
        "0e33842e24a9c977be4e0107933c0723",
        "ml-100k/u.data",
    ),
    "ml-1m": Source(
        6040,
        3706,
        1_000_209,
        _MOVIELENS,
        ("ratings.dat", "ml-1m.inter"),
        f"{_HOST}/ml-1m.zip",
        "c4d9eecfca2ab87c1945afe126590906",
        "ml-1m/ratings.dat",
    ),
    "filmtrust": Source(
        1508,
        2071,
        35_497,
        "G. Guo, J. Zhang, N. Yorke-Smith. A Novel Bayesian Similarity Measure for Recommender Systems. IJCAI 2013.",
        ("ratings.txt",),
        options=_LAST,
        note="3 (user, item) pairs are rated twice; the later rating is kept",
    ),
    "gowalla-15core": Source(
        13149,
        14007,
        535_610,
        _GOWALLA,
        note="the iterated 15-core of LightGCN's Gowalla, split column reconstructed from the published test file",
    ),
    "gowalla-lightgcn": Source(29858, 40981, 1_027_370, _GOWALLA),
    "yelp2018-lightgcn": Source(31668, 38048, 1_561_406, _YELP),
    "steam-200k": Source(
        12393,
        5155,
        200_000,
        "Kaggle data set tamber/steam-video-games.",
        ("steam-200k.csv.gz", "steam-200k.csv"),
        options={"user": 0, "item": 1, "rating": False, "header": False, "sep": ",", "duplicates": "max"},
        note="purchase and play rows of a game are one click: 128,804 distinct pairs",
    ),
    "amazon-instant-video": Source(
        5130, 1685, 37_126, _AMAZON, note="5-core edition, implicit, without times"
    ),
    "amazon-cell-phones": Source(
        27879, 10429, 194_439, _AMAZON, note="5-core edition, implicit, without times"
    ),
    "amazon-clothing": Source(39387, 23033, 278_677, _AMAZON, note="5-core edition, implicit, in order"),
    "amazon-beauty": Source(22363, 12101, 198_502, _AMAZON, note="5-core edition, implicit, in order"),
    "yelp-hin": Source(16239, 14284, 198_397, "C. Shi et al. HIN Embedding for Recommendation. TKDE 2019."),
    "legup/filmTrust": Source(780, 721, 28_797, _TREC, options=_LAST),
    "legup/ml100k": Source(943, 1682, 100_000, _TREC),
    "legup/automotive": Source(2928, 1835, 20_473, _TREC),
    "legup/yelp": Source(2762, 10477, 119_237, _TREC, options=_LAST),
    "legup/GroceryFood": Source(1777, 7790, 55_702, _TREC),
}


def dataset(name: str, **options: Any) -> Dataset:
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


def named(name: str, roles: Roles, options: dict[str, Any]) -> Dataset:
    """What `load` does with a text that is no path: look the name up, locally first."""
    root = os.environ.get(FOLDER)
    folder = Path(root, name) if root else None
    if name not in SOURCES:
        if folder is not None and folder.is_dir():
            return from_folder(folder, name, roles, options)
        raise FileNotFoundError(_unknown(name))
    if root and not Path(root).is_dir():
        raise FileNotFoundError(f"{FOLDER}={root} is not a folder; set it to the folder that holds {name}/")
    found = _local(Path(root), name) if root else None
    return _read(found or _download(name, root), name, roles, options)


def from_folder(folder: Path, name: str, roles: Roles, options: dict[str, Any]) -> Dataset:
    """The interactions in a folder: its one table, MovieLens file or RecBole file."""
    known = [file for source in SOURCES.values() for file in source.files]
    files = [folder / file for file in dict.fromkeys((*_TABLES, *known)) if (folder / file).is_file()]
    files = files or sorted(folder.glob("*.inter")) + sorted(folder.glob("*.inter.gz"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no interactions file; expected one of {', '.join(_TABLES)}, u.data, ratings.dat, *.inter"
        )
    return _read(files[0], name, roles, options)


def _read(path: Path, name: str, roles: Roles, options: dict[str, Any]) -> Dataset:
    from models.data.load import build

    source = SOURCES.get(name)
    preset = dict(source.options) if source and path.name in (*source.files, *_TABLES) else {}
    layout = {key: preset.pop(key) for key in ("sep", "header") if key in preset}
    roles = Roles(
        *[preset.pop(r, None) if given is None else given for r, given in zip(Roles._fields, roles)]
    )
    # The preset answers only what the caller left at the default ("error").
    options = {**options, **{k: v for k, v in preset.items() if options.get(k) == "error"}}
    data, shown = _content(path, source)
    raw = read(shown, roles, content=data, **layout)
    origin: dict[str, Any] = {"file": shown, "sha256": hashlib.sha256(data).hexdigest()}
    if source is not None:
        counts = {"users": source.users, "items": source.items, "rows": source.events}
        origin |= {"published": counts, "cite": source.cite} | ({"note": source.note} if source.note else {})
        if name == "ml-1m" and raw.time is None:
            origin["note"] = "an edition without timestamps: no split by time is possible"
    return build(raw, name=name, origin=origin, **options)


def _content(path: Path, source: Source | None) -> tuple[bytes, str]:
    """Bytes of a file, or of the right member of an archive; and the name to show."""
    if path.suffix != ".zip":
        return path.read_bytes(), str(path)
    member = source.member if source else ""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member), f"{path}/{member}"
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(str(path), 1, f"not the archive expected ({error}); fetch it again") from error


def _local(root: Path, name: str) -> Path | None:
    source = SOURCES[name]
    archive = [] if source.url is None else [source.url.rsplit("/", 1)[1]]
    for folder, files in ((root / name, (*_TABLES, *source.files, *archive)), (root, archive)):
        for file in files:
            if (folder / file).is_file():
                return folder / file
    return None


def _download(name: str, root: str | None) -> Path:
    source = SOURCES[name]
    looked = f"{Path(root, name)} (from {FOLDER})" if root else f"a folder ({FOLDER} is not set)"
    if source.url is None:
        raise FileNotFoundError(
            f"{name} is not in {looked} and has no public download here. Put its interactions as "
            f"{name}/interactions.tsv.gz (tab, header with user and item) into a folder, set {FOLDER} to that "
            f"folder. Source: {source.cite}"
        )
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"downloading {name} needs pooch: pip install 'bilevel[data]'. {_by_hand(source)}"
        ) from error
    file = source.url.rsplit("/", 1)[1]
    cache = pooch.os_cache("bilevel")
    try:
        return Path(pooch.retrieve(source.url, f"md5:{source.md5}", fname=file, path=cache))
    except (OSError, ValueError) as error:  # no network; a checksum that differs
        raise FileNotFoundError(
            f"{name} is not in {looked} and could not be downloaded: {type(error).__name__}: {error}. "
            f"{_by_hand(source)}"
        ) from error


def _by_hand(source: Source) -> str:
    assert source.url is not None
    file = source.url.rsplit("/", 1)[1]
    return f"By hand: download {source.url}, put {file} into a folder and set {FOLDER} to that folder"


def _unknown(name: str) -> str:
    return f"no file and no data set named {name!r}; known: {', '.join(sorted(SOURCES))}"
