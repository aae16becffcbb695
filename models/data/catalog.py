"""The catalog of data sets: published counts, whom to cite, the files to look for and the hosts that publish them.

Nothing of it is shipped. Checksums are those published beside the data (MovieLens), or those of copies whose origin was
proven byte by byte; the rest is recorded at the first download, see `models.data.fetch`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from models.data.fetch import Remote


class Source(NamedTuple):
    """What is known of a data set: published counts, files to look for, how to read them, where to get them.

    Args:
        users, items, events: as published; events are rows of the file. None: not published.
        cite: whom to cite.
        files: original files, besides interactions.tsv.gz and the train and test files of a split.
        archives: original archives that hold one of `files`.
        folders: other folders below BILEVEL_DATA that may hold the train and test files.
        split: which train and test files are meant, such as "filmtrust*.rating"; None: the only ones there.
        remotes: where it is downloaded from.
        page: where a person gets it, when there is no direct download.
        options: how `load` reads it, unless told otherwise.
        note: what a reader of a result should know.
    """

    users: int | None
    items: int | None
    events: int | None
    cite: str
    files: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    split: str | None = None
    remotes: tuple[Remote, ...] = ()
    page: str = ""
    options: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    note: str = ""


_MOVIELENS = "F. M. Harper, J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015."
_LEGUP = "C. Lin et al. Shilling Black-box Recommender Systems by Learning to Generate Fake User Profiles. TNNLS 2022."
_GOWALLA = "E. Cho, S. A. Myers, J. Leskovec. Friendship and Mobility. KDD 2011."
_AMAZON = "J. McAuley et al. Image-based Recommendations on Styles and Substitutes. SIGIR 2015."
_YELP = "Yelp Open Dataset, 2018 edition; X. He et al. LightGCN. SIGIR 2020."
_FILMTRUST = "G. Guo, J. Zhang, N. Yorke-Smith. A Novel Bayesian Similarity Measure. IJCAI 2013, 2619-2625."
_APT = "C. Wu et al. Fight Fire with Fire. SIGIR 2021."
_LAST = {"duplicates": "last"}
_RAW = "https://raw.githubusercontent.com"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_REVADV = f"{_RAW}/graytowne/revisit_adv_rec/672b9dc5b4e0eeffb53d4d0c7c3b61dbec84dd43/data/gowalla"
_LIGHTGCN = f"{_RAW}/gusye1234/LightGCN-PyTorch/master/data"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_HIN = f"{_RAW}/librahu/HIN-Datasets-for-Recommendation-and-Network-Embedding/master"
_5CORE = "5-core edition of 2014"


def _parts(base: str, train: str, test: str, known: tuple[str | None, str | None] = (None, None)) -> tuple:
    return Remote(f"{base}/{train}", known[0], "train"), Remote(f"{base}/{test}", known[1], "test")


def _amazon(file: str, users: int, items: int, events: int) -> Source:
    name = f"reviews_{file}_5.json.gz"
    return Source(
        users,
        items,
        events,
        _AMAZON,
        (name, name.removesuffix(".gz")),
        remotes=(Remote(f"{_SNAP}/{name}"),),
        options=_LAST,
        note=_5CORE,
    )


def _apt(
    name: str,
    counts: tuple[int, int, int],
    known: tuple[str | None, str | None] = (None, None),
    base: str = f"{_RAW}/Daftstone/APT/master/Data",
) -> Source:
    return Source(
        *counts,
        _APT,
        folders=(f"{name}/apt_split", name, "apt"),
        split=f"{name}*.rating",
        remotes=_parts(base, f"{name}.train.rating", f"{name}.test.rating", known),
        note="the leave-one-out split released with APT, ids from 0",
    )


SOURCES: dict[str, Source] = {
    "ml-100k": Source(
        943,
        1682,
        100_000,
        _MOVIELENS,
        ("u.data", "ml-100k.inter"),
        ("ml-100k.zip",),
        remotes=(Remote(f"{_GROUPLENS}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723"),),
    ),
    "ml-1m": Source(
        6040,
        3706,
        1_000_209,
        _MOVIELENS,
        ("ratings.dat", "ml-1m.inter"),
        ("ml-1m.zip",),
        remotes=(Remote(f"{_GROUPLENS}/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906"),),
    ),
    "filmtrust": Source(
        1508,
        2071,
        35_497,
        _FILMTRUST,
        ("ratings.txt",),
        ("filmtrust.zip",),
        remotes=(Remote("https://guoguibing.github.io/librec/datasets/filmtrust.zip"),),
        options=_LAST,
        note="3 (user, item) pairs are rated twice; the later rating is kept",
    ),
    "gowalla-15core": Source(
        13149,
        14007,
        535_610,
        _GOWALLA,
        remotes=_parts(
            _REVADV,
            "train.csv",
            "test.csv",
            (None, "sha256:fc4c0981f1bafdeda9b9230e93d77bbc86e8f637a17ce7361364f9d6ced0a433"),
        ),
        note="counts and events of the iterated 15-core of LightGCN's Gowalla, split of the published test file",
    ),
    "gowalla-lightgcn": Source(
        29858, 40981, 1_027_370, _GOWALLA, remotes=_parts(f"{_LIGHTGCN}/gowalla", "train.txt", "test.txt")
    ),
    "yelp2018-lightgcn": Source(
        31668,
        38048,
        1_561_406,
        _YELP,
        remotes=_parts(
            f"{_LIGHTGCN}/yelp2018",
            "train.txt",
            "test.txt",
            (
                "sha256:1e9568725a9e833d0ac3bae01c94cd95367f73b3bb6104fd26b5f65ea5054093",
                "sha256:9cd9b37926cd1447a06625ffa7914527573fb097c10cb0bbdb1d1b8ded3742fe",
            ),
        ),
    ),
    "steam-200k": Source(
        12393,
        5155,
        200_000,
        "Kaggle data set tamber/steam-video-games.",
        ("steam-200k.csv.gz", "steam-200k.csv"),
        ("steam-video-games.zip", "archive.zip"),
        page="https://www.kaggle.com/datasets/tamber/steam-video-games (archive.zip, needs an account)",
        options={"duplicates": "max"},
        note="200,000 rows of 128,804 distinct pairs: as clicks, buying and playing a game are one",
    ),
    "amazon-instant-video": _amazon("Amazon_Instant_Video", 5130, 1685, 37_126),
    "amazon-instant-video-ratings": Source(
        None,
        None,
        583_933,
        _AMAZON,
        ("ratings_Amazon_Instant_Video.csv", "ratings_Amazon_Instant_Video.csv.gz"),
        remotes=(Remote(f"{_SNAP}/ratings_Amazon_Instant_Video.csv"),),
        options=_LAST,
        note="all ratings of 2014, not the 5-core",
    ),
    "amazon-cell-phones": _amazon("Cell_Phones_and_Accessories", 27879, 10429, 194_439),
    "amazon-clothing": _amazon("Clothing_Shoes_and_Jewelry", 39387, 23033, 278_677),
    "amazon-beauty": _amazon("Beauty", 22363, 12101, 198_502),
    "yelp-hin": Source(
        16239,
        14284,
        198_397,
        "C. Shi et al. HIN Embedding for Recommendation. TKDE 2019.",
        ("user_business.dat",),
        remotes=(Remote(f"{_HIN}/Yelp/user_business.dat"),),
    ),
    "filmtrust-apt": _apt(
        "filmtrust",
        (796, 2011, 30_880),
        (
            "sha256:0aaa16510756b42075dc70a1bed52d9d907f4917b2e1f5d3b541592b035f3e2c",
            "sha256:c75d5658b160049ec67a7af0ecc936c9c1ccd327ddd3b2f18af849249ed3abb3",
        ),
    ),
    "ml-100k-apt": _apt(
        "ml-100k",
        (943, 1682, 100_000),
        (
            "sha256:82b94a706ae86e920daa2888ffbededa1e6666a5d4c2d560f764955df67334a6",
            "sha256:2865d4cb2e4f0c039fc22a466639808c3326341b151f1db4780701f31b02f3e5",
        ),
    ),
    # APT's split of MovieLens-1M is that of NCF, whose repository is the origin.
    "ml-1m-apt": _apt(
        "ml-1m",
        (6040, 3706, 1_000_209),
        base=f"{_RAW}/hexiangnan/neural_collaborative_filtering/master/Data",
    ),
    "yelp-apt": _apt("yelp", (14_575, 25_602, 569_949)),
    "legup/filmTrust": Source(780, 721, 28_797, _LEGUP, options=_LAST),
    "legup/ml100k": Source(943, 1682, 100_000, _LEGUP),
    "legup/automotive": Source(2928, 1835, 20_473, _LEGUP),
    "legup/yelp": Source(2762, 10477, 119_237, _LEGUP, options=_LAST),
    "legup/GroceryFood": Source(1777, 7790, 55_702, _LEGUP),
}
