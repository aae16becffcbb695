"""Readers: every format gives the same interactions; ids, tracks, splits and provenance are kept."""

import gzip
import os

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from models.data import DataError, Interactions, dataset, load

EVENTS = [(10, 7, 5, 100), (2, 7, 3, 50), (10, 30, 1, 70), (2, 8, 4, 60)]  # user, item, rating, time


def text(sep, header=None):
    lines = [sep.join(map(str, event)) for event in EVENTS]
    return "\n".join(([header] if header else []) + lines) + "\n"


FORMATS = {
    "u.data": text("\t"),
    "ratings.dat": text("::"),
    "toy.inter": text("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
    "named.csv": text(",", "userId,movieId,rating,timestamp"),
    "named.tsv": text("\t", "user\titem\trating\ttime"),
    "bare.csv": text(","),
    "semicolon.txt": text(";"),
    "pipe.txt": text("|"),
    "spaces.txt": text("  "),
    "windows.csv": text(",").replace("\n", "\r\n"),
    "bom.csv": "\ufeff" + text(",", "user,item,rating,timestamp"),
    "quoted.csv": text(",", "user,item,rating,timestamp").replace("30", '"30"'),
    "blanks.csv": "\n" + text(",").replace("\n", "\n\n"),
}


def check(data):
    x = data.interactions.validate()
    assert data.user_ids.tolist() == [2, 10]
    assert data.item_ids.tolist() == [7, 8, 30]
    assert x.dense().tolist() == [[3, 4, 0], [5, 0, 1]]
    assert x.time.tolist() == [50, 60, 100, 70]
    assert x.track == "explicit"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_the_same(tmp_path, name, packed):
    path = tmp_path / (name + ".gz" * packed)
    content = FORMATS[name].encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    check(load(path))
    check(load(str(path)))


def test_memory_sources_read_the_same():
    frame = pd.DataFrame(EVENTS, columns=["user", "item", "rating", "timestamp"])
    check(load(frame))
    check(load(frame.rename(columns={"user": "who", "item": "what"}), user="who", item="what"))
    check(load(tuple(np.array(EVENTS).T)))
    matrix = np.array([[3, 4, 0], [5, 0, 1]])
    for source in (matrix, scipy.sparse.csr_matrix(matrix), scipy.sparse.coo_array(matrix)):
        assert np.array_equal(load(source).interactions.dense(), matrix)


def test_two_gzip_members_are_one_file(tmp_path):
    lines = text("\t").splitlines(keepends=True)
    path = tmp_path / "u.data.gz"
    path.write_bytes(gzip.compress("".join(lines[:2]).encode()) + gzip.compress("".join(lines[2:]).encode()))
    check(load(path))


def test_columns_by_position_and_leaving_out(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("5,x,10,7\n3,x,2,7\n1,x,10,30\n")
    data = load(path, user=2, item=3, rating=0)
    assert data.interactions.dense().tolist() == [[3, 0], [5, 1]]
    assert data.interactions.time is None
    bare = load(path, user=2, item=3)
    assert bare.interactions.track == "implicit"
    path.write_text(text(","))
    assert load(path, rating=False, time=False).interactions.track == "implicit"
    assert load(path, rating=False).interactions.time is not None


def test_threshold_makes_clicks_and_keeps_the_universe(tmp_path):
    path = tmp_path / "u.data"
    path.write_text(text("\t"))
    loose, strict = load(path, threshold=3).interactions, load(path, threshold=3, strict=True).interactions
    assert loose.track == strict.track == "implicit"
    assert loose.dense().tolist() == [[1, 1, 0], [1, 0, 0]]
    assert strict.dense().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_ids_of_any_kind(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text('user,item\nbob,"Tea, green"\nann,milk\n007,milk\n7,milk\n')
    data = load(path)
    assert data.user_ids.tolist() == ["007", "7", "ann", "bob"]  # leading zeros are part of a name
    assert data.item_ids.tolist() == ["Tea, green", "milk"]
    first = load(path, ids="appearance")
    assert first.user_ids.tolist() == ["bob", "ann", "007", "7"]
    assert first.interactions.to_frame().user.tolist() == [0, 1, 2, 3]
    numbers = load((np.array([9, 4, 9]), np.array([1, 1, 0])), ids="appearance")
    assert numbers.user_ids.tolist() == [9, 4]
    assert numbers.interactions.to_frame()[["user", "item"]].values.tolist() == [[0, 0], [0, 1], [1, 0]]


def test_spaces_around_ids_count_only_inside_quotes(tmp_path):
    path = tmp_path / "spaces.csv"
    path.write_text("user,item\n1, 2\n1 ,3\n")
    assert load(path).user_ids.tolist() == [1]
    path.write_text('user,item\n"a","x"\n"a ","x"\n')
    assert load(path).user_ids.tolist() == ["a", "a "]


def test_sequences_keep_repeats_in_order(tmp_path):
    path = tmp_path / "clicks.tsv"
    path.write_text("user\titem\tposition\n1\ta\t2\n1\tb\t0\n1\ta\t1\n")
    x = load(path, track="sequence").interactions.validate()
    assert x.item.tolist() == [1, 0, 0]
    path.write_text("user\titem\n1\tb\n1\ta\n1\tb\n")
    assert load(path, track="sequence").interactions.item.tolist() == [1, 0, 1]


def test_split_column(tmp_path):
    path = tmp_path / "s.tsv"
    path.write_text("user\titem\tsplit\n1\t1\ttrain\n1\t2\tvalid\n2\t1\ttest\n2\t3\ttrain\n")
    data = load(path)
    assert int(data.interactions.count) == 4
    assert data.split.train.dense().tolist() == [[1, 0, 0], [0, 0, 1]]
    assert data.split.validation.dense().tolist() == [[0, 1, 0], [0, 0, 0]]
    assert data.split.test.dense().tolist() == [[0, 0, 0], [1, 0, 0]]
    assert load(path, split=False).split is None


def test_dataset_methods_keep_names_and_provenance(tmp_path):
    path = tmp_path / "u.data"
    path.write_text(text("\t"))
    data = load(path).min_count(users=2, items=2, mode="once")
    assert data.user_ids.tolist() == [2, 10]
    assert data.item_ids.tolist() == [7]
    assert data.provenance["min_count"]["mode"] == "once"
    assert len(data.provenance["sha256"]) == 64
    assert data.binarize("accent").interactions.track == "implicit"
    assert data.name == "u"


def test_repeats_are_merged_on_request(tmp_path):
    path = tmp_path / "u.data"
    path.write_text("1\t1\t2\t10\n1\t1\t5\t5\n2\t1\t3\t1\n")
    with pytest.raises(DataError, match=r"line 2: user 1, item 1 is a repeat of line 1"):
        load(path)
    for policy, rating in (("max", 5), ("first", 5), ("last", 2), ("sum", 7)):
        assert load(path, duplicates=policy).interactions.weight.tolist()[0] == rating


needs_data = pytest.mark.skipif("BILEVEL_DATA" not in os.environ, reason="BILEVEL_DATA is not set")


@needs_data
def test_movielens_100k():
    data = dataset("ml-100k")
    x = data.interactions.validate(empty_users="error")
    assert (x.users, x.items, int(x.count)) == (943, 1682, 100_000)
    assert float(x.count) / (943 * 1682) == pytest.approx(0.06305, abs=1e-5)
    assert np.array_equal(data.user_ids, np.arange(1, 944))
    assert np.array_equal(data.item_ids, np.arange(1, 1683))
    assert np.bincount(np.asarray(x.weight).astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert int(x.time.min()) == 874724710
    assert int(dataset("ml-100k", threshold=4, strict=True).interactions.count) == 21201
    assert load("ml-100k").provenance["sha256"] == data.provenance["sha256"]


@needs_data
def test_accent_pruning_of_movielens_100k():
    """452 users with at least 10 positive (r >= 3) and 10 negative ratings, as ALGORITHMS 1.1 states for ACCENT."""
    x = dataset("ml-100k").interactions
    good = np.bincount(np.asarray(x.user), np.asarray(x.weight) >= 3, 943)
    kept = (good >= 10) & (np.asarray(x.degrees()) - good >= 10)
    assert kept.sum() == 452


@needs_data
def test_gowalla_15_core_with_its_split():
    data = dataset("gowalla-15core")
    x = data.interactions
    assert (x.users, x.items, int(x.count)) == (13149, 14007, 535_610)
    assert np.array_equal(data.user_ids, np.arange(13149))
    assert int(data.split.train.count) == 433_356
    assert int(data.split.test.count) == 102_254
    assert data.split.validation is None
    assert min(int(x.degrees().min()), int(x.popularity().min())) >= 15
    again = jax.tree.leaves(data.min_count(users=15, items=15).interactions)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(x), again))
    rule = np.floor(0.2 * np.asarray(x.degrees()) + 1e-9)
    off = rule - np.asarray(data.split.test.degrees())
    assert sorted(np.unique(off)) == [0, 1]
    assert int(off.sum()) == 33


def test_folder_and_archive_layouts(tmp_path, monkeypatch):
    import zipfile

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "interactions.tsv").write_text(text("\t", "user\titem\trating\ttime"))
    check(load(tmp_path / "mine"))
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    check(load("mine"))
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", text("::"))
    packed = dataset("ml-1m")
    check(packed)
    assert packed.provenance["file"].endswith("ml-1m.zip/ml-1m/ratings.dat")
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "u.data").write_text(text("\t"))
    check(dataset("ml-100k"))
    assert dataset("ml-100k").provenance["published"]["users"] == 943
    (tmp_path / "steam-200k").mkdir()
    (tmp_path / "steam-200k" / "steam-200k.csv").write_text(
        '1,"A, b",purchase,1.0,0\n1,"A, b",play,27,0\n2,C,play,1,0\n'
    )
    steam = dataset("steam-200k")
    assert steam.interactions.dense().tolist() == [[1, 0], [0, 1]]
    assert steam.item_ids.tolist() == ["A, b", "C"]
    assert Interactions is type(dataset("steam-200k", track="sequence").interactions)
