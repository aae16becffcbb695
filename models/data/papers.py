"""How each paper prepares its data: one function a preset, and what the paper prints beside it.

A function takes a key and gives the data, the split, our counts in the paper's unit and notes. Where the paper's own
files are not at hand it takes the nearest edition and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from models.data import sources
from models.data.interactions import Interactions
from models.data.load import Dataset, load
from models.data.sources import dataset
from models.data.split import Split, holdout_one, random_events, revadv_split

Seed = Key[Array, ""] | int


class Counts(NamedTuple):
    """Users, items and events; None where the paper does not say."""

    users: int
    items: int
    events: int | None


Made = tuple[Dataset, Split, Counts, list[str]]


class Preset(NamedTuple):
    """One paper's use of one data set: what it prints, and the function that makes it."""

    reference: str
    paper: Counts
    make: Callable[[Seed], Made]
    levels: int | None = None


def count_events(part: Interactions) -> int:
    """Real events of a record, on the host."""
    return int(part.real().sum())


def _counts(data: Interactions) -> Counts:
    return Counts(data.users, data.items, count_events(data))


def _edition(*names: str, **options: Any) -> Dataset:
    """The first of several editions that lies in the local folder, else the first that can be downloaded."""
    local = [name for name in names if sources.is_local(name)]
    if local:
        return dataset(local[0], **options)
    failed: list[FileNotFoundError] = []
    for name in names:
        try:
            return dataset(name, **options)
        except FileNotFoundError as error:
            failed.append(error)
    raise failed[0]


# ------------------------------------------------------------------------------------------------- RevAdv and RAPU


def _revadv_gowalla(key: Seed) -> Made:
    """The 15-core with its published test file, else made of LightGCN's Gowalla with a drawn one."""
    data = _edition("gowalla-15core", "gowalla-lightgcn")
    if data.name == "gowalla-lightgcn":
        data = data.min_count(users=15, items=15)
        split = revadv_split(data.interactions, key)
        notes = [
            "20% of each user drawn here: the published test file is not at hand, and ids are not the paper's"
        ]
    else:
        split = data.split or revadv_split(data.interactions, key)
        notes = [] if data.split else ["20% of each user drawn here: the file has no split column"]
        if "parts" not in data.provenance:
            notes.append("not run: comparison with the released train.csv, this is a reconstruction of it")
    empty = 1 - count_events(data.interactions) / (data.interactions.users * data.interactions.items)
    return data, split, _counts(data.interactions), [*notes, f"sparsity {empty:.2%}, paper 99.71%"]


def _rapu_movielens(key: Seed) -> Made:
    data = dataset("ml-100k").binarize("all")
    return data, random_events(data.interactions, key), _counts(data.interactions), []


def _rapu_video(key: Seed) -> Made:
    """The one-pass filter on the raw ratings, ids by first appearance in what it keeps; else the 5-core as it is."""
    raw = {"track": "sequence", "time": False, "rating": False, "ids": "appearance"}
    data = _edition("amazon-instant-video-ratings", "amazon-instant-video", **raw)
    if data.name == "amazon-instant-video-ratings":
        data = _by_first_appearance(data.min_count(users=10, items=10, mode="once"))
        notes = []
    else:
        data = dataset(data.name, rating=False, time=False)
        notes = [
            "another edition: the 5-core, not filtered further (the paper keeps events whose user and item have at "
            "least 10 in the raw ratings)",
            "not run: the one-pass filter and the published target ids, which need ratings_Amazon_Instant_Video.csv",
        ]
    mean = count_events(data.interactions) / data.interactions.users
    notes.append(f"{mean:.2f} events a user, paper 7.23")
    return data, random_events(data.interactions, key), _counts(data.interactions), notes


def _by_first_appearance(rows: Dataset) -> Dataset:
    """Clicks of a sequence in the order of the file, users and items numbered by their first row."""
    x = rows.interactions
    when = np.asarray(x.time)
    order = np.argsort(when, kind="stable")  # the rows of the file
    user, item = np.asarray(x.user)[order], np.asarray(x.item)[order]
    _, first_user = np.unique(user, return_index=True)
    _, first_item = np.unique(item, return_index=True)
    users, items = np.argsort(first_user), np.argsort(first_item)  # old ids by first appearance
    clicks = Interactions.from_arrays(
        np.argsort(users)[user],
        np.argsort(items)[item],
        users=x.users,
        items=x.items,
        track="implicit",
        duplicates="first",
    )
    return rows._replace(interactions=clicks, user_ids=rows.user_ids[users], item_ids=rows.item_ids[items])


# ------------------------------------------------------------------------------------------------------- PoisonRec


def _poisonrec(name: str, least: int, most: int | None = None) -> Callable[[Seed], Made]:
    """A preset of PoisonRec: users by their number of behaviors, the last two events of each held out.

    The paper's "samples" are the events less one a user. Its users with 1,000 behaviors or more are left out though
    it does not say so: only then are the counts of Steam and MovieLens the paper's. Every item stays in the catalog.
    """

    def make(key: Seed) -> Made:
        data = dataset(name, track="sequence")
        degree = np.bincount(np.asarray(data.interactions.user), minlength=data.interactions.users)
        keep = (degree >= least) & (degree <= (most or np.inf))
        data = data.select_users(keep, f"{least} to {most or 'any number of'} behaviors")
        timed = data.provenance["order"] == "time"
        # Without times a file's last event is its largest id or its least played game: no test set to judge by.
        split = holdout_one(
            data.interactions, key, order="last" if timed else "random", validation=True, least=3
        )
        x = data.interactions
        notes = ["events are counted as the paper does, less one a user"]
        if most:
            notes.append(
                f"users of more than {most} behaviors are left out: not stated, but only so are the numbers of users "
                "and events the paper's"
            )
        if not timed:
            notes.append("no times: the sequence is the file's order")
            if name == "steam-200k":
                notes.append(
                    "buying and playing a game are two behaviors, so a test game may be in train as well"
                )
            notes.append("not run: the split by time; test and validation events are drawn at random")
        return data, split, Counts(x.users, x.items, count_events(x) - x.users), notes

    return make


# ------------------------------------------------------------------------------------------------------------- APT


def _apt(released: str, other: str, largest: tuple[int, int], least: int = 1) -> Callable[[Seed], Made]:
    """A preset of APT: the released leave-one-out split where it is at hand, else the same rules on `other`.

    Args:
        released, other: names of data sets.
        largest: largest rating of the two; ratings are divided by it.
        least: users with fewer ratings are dropped from `other`; the released files are filtered already.
    """

    def make(key: Seed) -> Made:
        notes: list[str] = []
        data = _edition(released, other, track="explicit")
        name = data.name
        if name == released and data.split is not None:
            split = data.split
        else:
            data = data.min_count(users=least, mode="once") if least > 1 else data
            split = _leave_out_published(data) if name == "ml-1m" else None
            if split is None:
                split = holdout_one(data.interactions, key)
                notes.append(
                    "the test event of each user is drawn here: the released split is not at hand (the published "
                    "target ids are the release's)"
                )
            else:
                notes.append(
                    "the test events are those of the published file; ids are MovieLens's, not the release's"
                )
            if name == "yelp-hin":
                notes.append("a stand-in: another Yelp subset with ratings, users with at least 15 of them")
                notes.append("not run: APT's own Yelp subset (yelp.train.rating), which is not at hand")
        scale = largest[0 if name == released else 1]
        notes.append("all the rest is train, as in the code; the paper says 9:1 train and validation")
        scaled = Split(*[None if part is None else _scaled(part, scale) for part in split])  # type: ignore[arg-type]
        done = {**data.provenance, "divided_by": scale}
        data = data._replace(interactions=_scaled(data.interactions, scale), provenance=done)
        return data, scaled, _counts(data.interactions), notes

    return make


def _scaled(data: Interactions, largest: float) -> Interactions:
    return replace(data, weight=data.weight / largest)


def _leave_out_published(data: Dataset) -> Split | None:
    """The leave-one-out split of NCF (and APT) on MovieLens-1M by its published test file, in MovieLens's ids."""
    path = sources.beside("ml-1m", "ncf_loo_test.tsv.gz")
    if path is None:
        return None
    test = load(path, rating=False, time=False)
    # An id that the ratings do not hold lands on a wrong place or past the end; the count below tells.
    place_user = np.searchsorted(data.user_ids, test.user_ids)
    place_item = np.searchsorted(data.item_ids, test.item_ids)
    held = test.interactions
    cell = place_user[np.asarray(held.user)] * data.interactions.items + place_item[np.asarray(held.item)]
    x = data.interactions
    chosen = np.isin(np.asarray(x.user, np.int64) * x.items + np.asarray(x.item), cell) & x.real()
    if chosen.sum() != count_events(held):
        raise ValueError(
            f"{path}: {chosen.sum()} of its {count_events(held)} events are in the ratings of ml-1m"
        )
    return Split(x.select(~chosen), None, x.select(chosen))


# ------------------------------------------------------------------------------------------------ H-CARS and ACCENT


def _hcars_movielens(key: Seed) -> Made:
    data = dataset("ml-100k").binarize("hcars")
    notes = [
        "ratings above 4 are clicks; the paper does not say how it splits: 80/10/10 over events, as RAPU"
    ]
    return data, random_events(data.interactions, key), _counts(data.interactions), notes


def _hcars_yelp(key: Seed) -> Made:
    data = dataset("yelp2018-lightgcn")
    if data.split is not None:
        return (
            data,
            data.split,
            _counts(data.interactions),
            ["the paper does not say how it splits: LightGCN's split"],
        )
    split = random_events(data.interactions, key, fractions=(0.8, 0.0, 0.2))
    return data, split, _counts(data.interactions), ["80/20 drawn here: LightGCN's split is not at hand"]


# Films without an entry in the released attribute file, by MovieLens's ids; the code drops their ratings.
_NO_ATTRIBUTES = (267, 1358, 1359, 1420, 1536, 1581, 1590, 1591)


def _accent_movielens(key: Seed) -> Made:
    """ACCENT's pruned MovieLens: liked (r >= 3) and disliked ratings of each user, the last fifth of both held out."""
    data = dataset("ml-100k")
    x = data.interactions
    if x.time is None:
        raise ValueError(
            "accent-ml-100k holds out the last fifth by time; this edition of MovieLens has no times"
        )
    known = ~np.isin(data.item_ids, _NO_ATTRIBUTES)[np.asarray(x.item)] & x.real()
    likes = np.asarray(x.weight) >= 3
    counts = [np.bincount(np.asarray(x.user)[known & kind], minlength=x.users) for kind in (likes, ~likes)]
    chosen = (counts[0] >= 10) & (counts[1] >= 10)
    inside = known & chosen[np.asarray(x.user)]
    test = np.zeros(x.capacity, bool)
    for kind in (likes, ~likes):
        test |= _last_fifth(x, inside & kind)
    number = np.cumsum(chosen) - 1

    def part(mask: np.ndarray) -> Interactions:
        return Interactions.from_arrays(
            number[np.asarray(x.user)[mask]],
            np.asarray(x.item)[mask],
            np.asarray(x.weight)[mask],
            np.asarray(x.time)[mask],
            users=int(chosen.sum()),
            items=x.items,
            track="explicit",
        )

    provenance = {
        **data.provenance,
        "select_users": "at least 10 liked and 10 disliked films with attributes",
    }
    data = data._replace(
        interactions=part(inside), user_ids=data.user_ids[chosen], provenance=provenance, split=None
    )
    split = Split(part(inside & ~test), None, part(test))
    items = np.unique(np.asarray(split.train.item)).size
    notes = [
        "counted are the train events of both kinds and the items among them (1,667 items with the test events)",
        "equal times are ordered by item id; the catalog keeps all 1,682 items",
        "likes as clicks: binarize(part, 'accent')",
    ]
    return data, split, Counts(split.train.users, items, count_events(split.train)), notes


def _last_fifth(x: Interactions, kind: np.ndarray) -> np.ndarray:
    """A mask of the last `floor(n / 5)` events in time of each user among those of a kind."""
    slots = np.flatnonzero(kind)
    user = np.asarray(x.user)[slots]
    order = np.lexsort((np.asarray(x.item)[slots], np.asarray(x.time)[slots], user))
    n = np.bincount(user, minlength=x.users)
    place = np.arange(slots.size) - np.repeat(np.cumsum(n) - n, n)
    late = place >= np.repeat(n - n // 5, n)
    test = np.zeros(x.capacity, bool)
    test[slots[order[late]]] = True
    return test


_RAPU, _HCARS = "Zhang et al. (RAPU), KDD 2021", "Chen et al. (H-CARS), SIGIR 2023"
_POISONREC, _APT = "Song et al. (PoisonRec), ICDE 2020", "Wu et al. (APT), SIGIR 2021"

PROTOCOLS: dict[str, Preset] = {
    "revadv-gowalla": Preset(
        "Tang et al. (RevAdv), RecSys 2020", Counts(13_149, 14_007, None), _revadv_gowalla
    ),
    "rapu-ml-100k": Preset(_RAPU, Counts(943, 1682, 100_000), _rapu_movielens),
    "rapu-amazon-video": Preset(_RAPU, Counts(8049, 7076, 58_194), _rapu_video),
    "poisonrec-steam": Preset(_POISONREC, Counts(6506, 5134, 180_721), _poisonrec("steam-200k", 3, 999)),
    "poisonrec-ml-1m": Preset(_POISONREC, Counts(5999, 3706, 943_317), _poisonrec("ml-1m", 3, 999)),
    "poisonrec-phone": Preset(
        _POISONREC, Counts(27_879, 10_429, 166_560), _poisonrec("amazon-cell-phones", 3)
    ),
    "poisonrec-clothing": Preset(
        _POISONREC, Counts(39_387, 23_033, 239_290), _poisonrec("amazon-clothing", 3)
    ),
    "apt-filmtrust": Preset(
        _APT, Counts(796, 2011, 30_880), _apt("filmtrust-apt", "filmtrust", (8, 4), 15), 8
    ),
    "apt-ml-100k": Preset(_APT, Counts(943, 1682, 100_000), _apt("ml-100k-apt", "ml-100k", (5, 5)), 5),
    "apt-ml-1m": Preset(_APT, Counts(6040, 3706, 1_000_209), _apt("ml-1m-apt", "ml-1m", (5, 5)), 5),
    "apt-yelp": Preset(_APT, Counts(14_575, 25_602, 569_949), _apt("yelp-apt", "yelp-hin", (5, 5), 15), 5),
    "hcars-ml-100k": Preset(_HCARS, Counts(943, 1682, None), _hcars_movielens),
    "hcars-yelp": Preset(_HCARS, Counts(31_668, 38_048, None), _hcars_yelp),
    "accent-ml-100k": Preset(
        "Tran et al. (ACCENT), SIGIR 2021", Counts(452, 1654, 61_054), _accent_movielens
    ),
}
