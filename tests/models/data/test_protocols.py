"""The papers' data by name: each rule against its own small computation, the published counts on the real data."""

import gzip
import os

import numpy as np
import pandas as pd
import pytest

from models.data import PROTOCOLS, load, observe, prepared, protocols, strata
from models.data.papers import Counts

NOTE = "the counts are not the paper's"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty BILEVEL_DATA without a network: `write(file, text)` puts a file there."""
    import pooch

    def offline(*args, **kwargs):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr(pooch, "retrieve", offline)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))

    def write(file, rows, sep="\t"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            rows if isinstance(rows, str) else "".join(sep.join(map(str, row)) + "\n" for row in rows)
        )
        return path

    return write


def ratings(seed, users=12, items=20, density=0.7):
    """Random ratings 1..5 with distinct times, as rows (user, item, rating, time) with ids from 1, shuffled."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((users, items)) < density)
    time = rng.permutation(user.size) + 100
    rows = np.stack([user + 1, item + 1, rng.integers(1, 6, user.size), time], 1)
    return rng.permutation(rows).tolist()


def frame(part, data):
    """Events in the names of the data set."""
    found = part.to_frame()
    return found.assign(user=data.user_ids[found.user], item=data.item_ids[found.item])


def events(part, data):
    return set(zip(*frame(part, data)[["user", "item"]].values.T.tolist(), strict=True))


def test_rapu_movielens(folder):
    rows = ratings(0)
    folder("ml-100k/u.data", rows)
    made = prepared("rapu-ml-100k", 3)
    assert made.data.interactions.track == "implicit"
    parts = [events(part, made.data) for part in made.split]
    assert set.union(*parts) == {(u, i) for u, i, *_ in rows}
    n = len(rows)
    assert [len(part) for part in parts] == [
        round(0.8 * n),
        round(0.9 * n) - round(0.8 * n),
        n - round(0.9 * n),
    ]
    assert made.found == Counts(12, 20, n)
    assert made.notes[-1] == NOTE
    again, other = prepared("rapu-ml-100k", 3), prepared("rapu-ml-100k", 4)
    assert events(again.split.test, made.data) == parts[2] != events(other.split.test, made.data)


def test_hcars_movielens_keeps_ratings_above_four(folder):
    rows = ratings(1)
    folder("ml-100k/u.data", rows)
    made = prepared("hcars-ml-100k")
    assert events(made.data.interactions, made.data) == {(u, i) for u, i, r, _ in rows if r > 4}
    assert (made.found.users, made.found.items) == (12, 20)  # users and items without a click stay
    assert int(observe.partial(0.3)(made.split.train, 0).count) == int(
        np.ceil(0.3 * int(made.split.train.count))
    )


def test_rapu_video_filters_raw_counts_once_and_numbers_by_first_appearance(folder):
    """Against the loop of the released code, written anew with dictionaries."""
    rng = np.random.default_rng(2)
    pairs = [
        (f"U{u}", f"I{i}")
        for u in range(30)
        for i in range(40)
        if rng.random() < 0.02 + 0.6 * (u < 14) * (i < 16)
    ]
    pairs = [pairs[n] for n in rng.permutation(len(pairs))]
    rows = [(u, i, rng.integers(1, 6), rng.integers(100)) for u, i in pairs]
    folder("amazon-instant-video-ratings/ratings_Amazon_Instant_Video.csv", rows, ",")
    count_u, count_i = {}, {}
    for u, i in pairs:
        count_u[u], count_i[i] = count_u.get(u, 0) + 1, count_i.get(i, 0) + 1
    users, items, kept = {}, {}, []
    for u, i in pairs:
        if count_u[u] >= 10 and count_i[i] >= 10:
            kept.append((users.setdefault(u, len(users)), items.setdefault(i, len(items))))
    assert len(kept) < len(pairs)
    made = prepared("rapu-amazon-video")
    x = made.data.interactions.validate()
    assert set(zip(x.user.tolist(), x.item.tolist(), strict=True)) == set(kept)
    assert made.data.user_ids.tolist() == list(users)
    assert made.data.item_ids.tolist() == list(items)
    assert x.track == "implicit"
    assert made.found == Counts(len(users), len(items), len(kept))
    assert any(note == f"{len(kept) / len(users):.2f} events a user, paper 7.23" for note in made.notes)


def test_rapu_video_without_the_raw_file_says_so(folder):
    folder("amazon-instant-video/interactions.tsv", "user\titem\n1\t1\n1\t2\n2\t1\n")
    made = prepared("rapu-amazon-video")
    assert made.found == Counts(2, 2, 3)
    assert any(note.startswith("another edition: the 5-core") for note in made.notes)
    assert any(note.startswith("not run: the one-pass filter") for note in made.notes)


def test_revadv_takes_the_published_split_else_draws_its_own(folder):
    rng = np.random.default_rng(4)
    pairs = [(u, i) for u in range(20) for i in range(18) if rng.random() < 0.97]
    parts = {"train": pairs[::2], "test": pairs[1::2]}
    lists = {p: {u: [i for v, i in some if v == u] for u, _ in some} for p, some in parts.items()}
    lists["train"][99] = [0, 1]  # not in the 15-core
    for part, of in lists.items():
        folder(f"gowalla-lightgcn/{part}.txt", [(u, *items) for u, items in of.items()], " ")
    drawn = prepared("revadv-gowalla", 5)
    n = np.bincount(np.asarray(drawn.data.interactions.user))
    assert n.min() >= 15
    assert 99 not in drawn.data.user_ids
    held = np.bincount(np.asarray(drawn.split.test.user), minlength=n.size)
    assert held.tolist() == (n // 5).tolist()
    assert any("drawn here" in note for note in drawn.notes)
    folder("gowalla-15core/train.csv", "uid,sid\n0,0\n0,1\n1,1\n")
    folder("gowalla-15core/test.csv", "uid,sid\n0,2\n")
    made = prepared("revadv-gowalla")
    assert events(made.split.test, made.data) == {(0, 2)}
    assert not any("drawn here" in note or "reconstruction" in note for note in made.notes)


def test_poisonrec_steam(folder):
    """Every row is a behavior; 3 to 999 of them; without times the test events are drawn, and the notes say so."""
    rows = [(5, '"Game, 1"', "purchase", 1, 0), (5, '"Game, 1"', "play", 9, 0), (5, "Two", "purchase", 1, 0)]
    rows += [(6, "Two", "purchase", 1, 0), (6, "Three", "purchase", 1, 0)]  # 2 behaviors: too few
    rows += [(7, f"G{n // 2}", ("purchase", "play")[n % 2], 1, 0) for n in range(1000)]  # too many
    rows += [(8, f"G{n // 2}", ("purchase", "play")[n % 2], 1, 0) for n in range(999)]
    folder("steam-200k/steam-200k.csv", rows, ",")
    made = prepared("poisonrec-steam")
    x = made.data.interactions.validate()
    assert made.data.user_ids.tolist() == [5, 8]
    assert x.track == "sequence"
    assert x.items == 503  # the catalog keeps the games of the users that are left out
    assert made.found == Counts(2, 503, 3 + 999 - 2)
    first = frame(x, made.data)
    assert first[first.user == 5].item.tolist() == ["Game, 1", "Game, 1", "Two"]
    assert [int(part.count) for part in made.split] == [1002 - 4, 2, 2]
    assert any(note.startswith("not run: the split by time") for note in made.notes)


def test_poisonrec_holds_out_the_last_two_in_time(folder):
    rows = ratings(6, users=5)
    folder("ml-1m/ratings.dat", rows, "::")
    made = prepared("poisonrec-ml-1m", 1)
    for user in range(1, 6):
        order = [i for _, i in sorted((t, i) for u, i, _, t in rows if u == user)]
        parts = [frame(part, made.data) for part in made.split]
        held = [part[part.user == user].item.tolist() for part in parts]
        assert held[2] == order[-1:]
        assert held[1] == order[-2:-1]
        assert held[0] == order[:-2]  # and the train sequence is in time order
    assert not any("not run" in note for note in made.notes)
    assert made.found.events == len(rows) - 5


@pytest.mark.parametrize("name", ["poisonrec-phone", "poisonrec-clothing"])
def test_poisonrec_amazon(folder, name):
    source = {"poisonrec-phone": "amazon-cell-phones", "poisonrec-clothing": "amazon-clothing"}[name]
    folder(
        f"{source}/interactions.tsv",
        "user\titem\tposition\n" + "".join(f"1\t{9 - n}\t{n}\n" for n in range(5)),
    )
    made = prepared(name)
    assert made.split.test.item.tolist() == [0]  # item 5, the last
    assert made.found == Counts(1, 5, 4)
    folder(f"{source}/interactions.tsv", "user\titem\n" + "".join(f"1\t{9 - n}\n" for n in range(5)))
    assert len({int(prepared(name, key).split.test.item[0]) for key in range(20)}) > 1
    assert any("drawn at random" in note for note in prepared(name).notes)


def test_apt_takes_the_released_split_and_scales_to_one(folder):
    folder("filmtrust/apt_split/filmtrust.train.rating", [(0, 0, 8), (0, 1, 1), (1, 0, 4)])
    folder("filmtrust/apt_split/filmtrust.test.rating", [(0, 2, 2), (1, 1, 6)])
    made = prepared("apt-filmtrust")
    assert made.levels == 8
    assert made.split.train.dense().tolist() == [[1, 0.125, 0], [0.5, 0, 0]]
    assert made.split.test.dense().tolist() == [[0, 0, 0.25], [0, 0.75, 0]]
    assert made.split.validation is None
    assert made.data.interactions.dense().tolist() == [[1, 0.125, 0.25], [0.5, 0.75, 0]]
    assert made.data.provenance["divided_by"] == 8
    assert not any("drawn" in note for note in made.notes)


def test_apt_without_the_release_filters_and_draws(folder):
    rows = [(1, i, 0.5 * (1 + i % 8)) for i in range(15)] + [(2, i, 4.0) for i in range(14)] + [(1, 3, 1.0)]
    folder("filmtrust/ratings.txt", rows, " ")
    made = prepared("apt-filmtrust", 2)
    assert made.data.user_ids.tolist() == [1]  # 14 ratings are too few
    expected = {i: 0.5 * (1 + i % 8) / 4 for i in range(15)} | {3: 0.25}  # the later rating of a pair counts
    assert (
        dict(zip(made.data.item_ids.tolist(), made.data.interactions.weight.tolist(), strict=True))
        == expected
    )
    assert [int(part.count) for part in (made.split.train, made.split.test)] == [14, 1]
    assert any("drawn here" in note for note in made.notes)


def test_apt_movielens_1m_by_the_published_test_file(folder):
    rows = ratings(8)
    folder("ml-1m/ratings.dat", rows, "::")
    last = {u: max((t, i) for v, i, _, t in rows if v == u)[1] for u in range(1, 13)}
    text = "user\titem\trating\ttimestamp\tnegatives\n" + "".join(
        f"{u}\t{i}\t3\t9\t1 2\n" for u, i in last.items()
    )
    published = folder("ml-1m/ncf_loo_test.tsv.gz", "")
    published.write_bytes(gzip.compress(text.encode()))
    made = prepared("apt-ml-1m")
    assert events(made.split.test, made.data) == set(last.items())
    assert events(made.split.train, made.data) == {(u, i) for u, i, *_ in rows} - set(last.items())
    assert made.levels == 5
    assert sorted(set(made.data.interactions.weight.tolist())) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    published.write_bytes(gzip.compress((text + "12\t999\t3\t9\t1\n").encode()))
    with pytest.raises(ValueError, match="of its 13 events are in the ratings of ml-1m"):
        prepared("apt-ml-1m")


def test_apt_yelp_stands_in_or_is_the_release(folder):
    folder("yelp-hin/user_business.dat", [(1, i, 1 + i % 5) for i in range(15)] + [(2, 1, 3)])
    made = prepared("apt-yelp")
    assert made.data.user_ids.tolist() == [1]
    assert any(note.startswith("a stand-in") for note in made.notes)
    assert any(note.startswith("not run: APT's own Yelp") for note in made.notes)
    folder("yelp/yelp.train.rating", [(0, 0, 5), (1, 0, 1)])
    folder("yelp/yelp.test.rating", [(0, 1, 4), (1, 1, 2)])
    real = prepared("apt-yelp")
    assert real.split.train.dense().tolist() == [[1, 0], [np.float32(0.2), 0]]
    assert not any("stand-in" in note for note in real.notes)


def test_accent_movielens(folder):
    """Against the released recipe in pandas: 10 liked and 10 disliked ratings, the last fifth of each held out."""
    rows = [*ratings(9, users=25, items=60, density=0.5), (1, 267, 5, 9999), (2, 1358, 1, 9998)]
    rows += [(26, i, 5 if i <= 10 else 1, 500 + i) for i in range(1, 20)]  # 10 liked and 9 disliked: too few
    rows += [(27, i, 5 if i <= 10 else 1, 500 + i) for i in range(1, 21)]
    folder("ml-100k/u.data", rows)
    data = pd.DataFrame(rows, columns=["user", "item", "rating", "time"])
    data = data[~data.item.isin([267, 1358])]  # films without attributes
    train, test = set(), set()
    for user, of in data.sort_values("time").groupby("user"):
        kinds = [of[of.rating >= 3].item.tolist(), of[of.rating < 3].item.tolist()]
        if min(map(len, kinds)) < 10:
            continue
        for kind in kinds:
            held = len(kind) // 5
            train |= {(user, item) for item in kind[: len(kind) - held]}
            test |= {(user, item) for item in kind[len(kind) - held :]}
    assert {user for user, _ in train} & {26, 27} == {27}
    made = prepared("accent-ml-100k")
    assert events(made.split.train, made.data) == train
    assert events(made.split.test, made.data) == test
    assert made.found == Counts(len({u for u, _ in train}), len({i for _, i in train}), len(train))
    assert made.split.train.track == "explicit"
    folder("ml-100k/u.data", [row[:3] for row in rows])
    with pytest.raises(ValueError, match="has no times"):
        prepared("accent-ml-100k")


def test_hcars_yelp(folder):
    folder("yelp2018-lightgcn/train.txt", "0 1 2\n1 2\n")
    folder("yelp2018-lightgcn/test.txt", "0 3\n1 1\n")
    made = prepared("hcars-yelp")
    assert events(made.split.test, made.data) == {(0, 3), (1, 1)}
    assert NOTE in made.notes


def test_what_is_not_at_hand_says_where_to_get_it(folder):
    with pytest.raises(FileNotFoundError, match=r"steam-200k is not in .* It is at https://www\.kaggle\.com"):
        prepared("poisonrec-steam")
    with pytest.raises(FileNotFoundError, match=r"gowalla-15core is not in .*train\.csv"):
        prepared("revadv-gowalla")  # the first edition is the one to get
    with pytest.raises(ValueError, match="name='rapu': expected one of 'revadv-gowalla'"):
        prepared("rapu")
    folder("ml-100k/u.data", ratings(0))
    text = protocols.table(["rapu-ml-100k", "poisonrec-steam"]).splitlines()
    assert text[2].startswith("| rapu-ml-100k | 12 | 943 | 20 | 1,682 |")
    assert text[3] == "| poisonrec-steam | - | 6,506 | - | 5,134 | - | 180,721 | not at hand |"


def test_every_preset_names_its_paper():
    papers = {"revadv", "rapu", "poisonrec", "apt", "hcars", "accent"}
    for name, preset in PROTOCOLS.items():
        assert name.partition("-")[0] in papers
        assert any(year in preset.reference for year in ("2020", "2021", "2023"))


needs_data = pytest.mark.skipif("BILEVEL_DATA" not in os.environ, reason="BILEVEL_DATA is not set")

# What the copies at hand must give: users, items, events in the paper's unit, sizes of the split.
REAL = {
    "revadv-gowalla": ((13_149, 14_007, 535_610), (433_356, 0, 102_254)),
    "rapu-ml-100k": ((943, 1682, 100_000), (80_000, 10_000, 10_000)),
    "poisonrec-steam": ((6506, 5155, 180_721), (174_215, 6506, 6506)),
    "poisonrec-ml-1m": ((5999, 3706, 943_317), (937_318, 5999, 5999)),
    "poisonrec-phone": ((27_879, 10_429, 166_560), (138_681, 27_879, 27_879)),
    "poisonrec-clothing": ((39_387, 23_033, 239_290), (199_903, 39_387, 39_387)),
    "apt-filmtrust": ((796, 2011, 30_880), (30_084, 0, 796)),
    "apt-ml-100k": ((943, 1682, 100_000), (99_057, 0, 943)),
    "apt-ml-1m": ((6040, 3706, 1_000_209), (994_169, 0, 6040)),
    "hcars-ml-100k": ((943, 1682, 21_201), (16_961, 2120, 2120)),
    "hcars-yelp": ((31_668, 38_048, 1_561_406), (1_237_259, 0, 324_147)),
    "accent-ml-100k": ((452, 1600, 61_054), (61_054, 0, 14_828)),
}


def by_size(name):
    return pytest.param(name, marks=pytest.mark.slow) if REAL[name][0][2] > 600_000 else name


@needs_data
@pytest.mark.parametrize("name", [by_size(name) for name in REAL])
def test_real_data(name):
    made = prepared(name)
    counts, sizes = REAL[name]
    assert made.found == counts
    assert [0 if part is None else int(part.real().sum()) for part in made.split] == list(sizes)
    text = protocols.describe(made)
    assert f"{made.paper.users:,}" in text
    assert (made.found == made.paper._replace(events=made.paper.events or made.found.events)) == (
        NOTE not in text
    )


@needs_data
def test_apt_ids_are_those_of_the_published_targets():
    """In the released split the unpopular targets have 2 to 4 training ratings, as the paper wants fewer than 5."""
    from models.data import PUBLISHED

    for name, key in (("apt-filmtrust", "filmtrust/apt-unpopular"), ("apt-ml-100k", "ml-100k/apt")):
        counts = np.asarray(prepared(name).split.train.popularity())
        assert set(PUBLISHED[key]) <= set(strata(counts, "apt")["unpopular"].tolist())


@needs_data
def test_the_drawn_filmtrust_has_the_papers_counts(tmp_path, monkeypatch):
    """Without APT's files the original ratings and the paper's rule give its 796 x 2,011 with 30,880 ratings too."""
    original = load(os.path.join(os.environ["BILEVEL_DATA"], "filmtrust"), duplicates="last")
    (tmp_path / "filmtrust").mkdir()
    rows = original.interactions.to_frame()
    lines = (
        f"{original.user_ids[u]} {original.item_ids[i]} {w}\n" for u, i, w in rows.itertuples(index=False)
    )
    (tmp_path / "filmtrust" / "ratings.txt").write_text("".join(lines))
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    made = prepared("apt-filmtrust")
    assert made.found == made.paper
    assert len(set(made.data.interactions.weight.tolist())) == made.levels
