"""The formats that are no plain table: adjacency lists, JSON lines, Steam, parquet, frames, matrices, split folders."""

import datetime
import gzip
import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from models.data import DataError, load


def pairs(data):
    """The events in the names of the file."""
    real = data.interactions.real()
    user, item = (np.asarray(column)[real] for column in (data.interactions.user, data.interactions.item))
    return set(zip(data.user_ids[user].tolist(), data.item_ids[item].tolist(), strict=True))


def part_pairs(data, name):
    part = getattr(data.split, name)
    return None if part is None else pairs(data._replace(interactions=part))


LISTS = "0 5 9 7\n3 5\n4 \n7 9 5\n"
LISTED = {(0, 5), (0, 9), (0, 7), (3, 5), (7, 9), (7, 5)}


@pytest.mark.parametrize("packed", [False, True])
def test_adjacency_lists_are_detected(tmp_path, packed):
    path = tmp_path / ("train.txt" + ".gz" * packed)
    path.write_bytes(gzip.compress(LISTS.encode()) if packed else LISTS.encode())
    data = load(path)
    assert pairs(data) == LISTED
    assert data.interactions.track == "implicit"
    assert data.provenance["layout"] == "adjacency"
    assert data.user_ids.tolist() == [0, 3, 7]  # user 4 has no item


def test_adjacency_keeps_the_order_of_a_sequence(tmp_path):
    path = tmp_path / "seq.txt"
    path.write_text("1 9 3 9\n2 3\n")
    x = load(path, track="sequence", layout="adjacency").interactions.validate()
    assert x.item.tolist() == [1, 0, 1, 0]


def test_lists_of_one_length_are_a_table_unless_said_otherwise(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("1 2 3\n2 3 4\n")
    assert load(path).interactions.track == "explicit"
    assert pairs(load(path, layout="adjacency")) == {(1, 2), (1, 3), (2, 3), (2, 4)}
    path.write_text("1 2 3\n1 3\n")  # a user with two lines, or a table with a row cut short
    with pytest.raises(DataError, match="line 2: 2 columns, line 1 has 3"):
        load(path)
    assert len(pairs(load(path, layout="adjacency", duplicates="max"))) == 2


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("1 2\n2 x\n", 2, "'2 x': expected a user and its items"),
        ("1 2\n3 007\n", 2, "whole numbers"),
        ("1 2\n3 -4\n", 2, "whole numbers"),
        ("1\n2\n", 1, "no events: no line holds an item"),
        ("1 2 2\n", 1, "user 1, item 2 is a repeat of line 1"),
        ("\n", 1, "the file is empty"),
    ],
)
def test_bad_adjacency_lists(tmp_path, content, line, message):
    path = tmp_path / "train.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path, layout="adjacency")
    assert caught.value.line == line


@pytest.mark.parametrize("option", [{"user": 0}, {"header": True}, {"sep": ","}, {"rating": "stars"}])
def test_an_adjacency_list_has_no_columns_to_name(tmp_path, option):
    path = tmp_path / "train.txt"
    path.write_text(LISTS)
    with pytest.raises(ValueError, match="layout='adjacency' is lines of a user"):
        load(path, layout="adjacency", **option)


SPLITS = {
    "lightgcn": ({"train.txt": "0 5 9\n1 5 7 9\n", "test.txt": "0 7 8\n1 8 6\n"}, None),
    "revadv": (
        {
            "train.csv": "uid,sid\n0,5\n0,9\n1,5\n1,7\n1,9\n",
            "test.csv": "uid,sid\n0,7\n0,8\n1,8\n1,6\n",
        },
        None,
    ),
    "ncf": (
        {
            "x.train.rating": "0\t5\t3\n0\t9\t4\n1\t5\t1\n1\t7\t2\n1\t9\t2\n",
            "x.test.rating": "0\t7\t5\n0\t8\t5\n1\t8\t5\n1\t6\t5\n",
            "x.test.negative": "(0,7)\t1\t2\n",
        },
        None,
    ),
    "recbole": (
        {
            "x.train.inter": "user_id:token\titem_id:token\n0\t5\n0\t9\n1\t5\n1\t7\n1\t9\n",
            "x.valid.inter": "user_id:token\titem_id:token\n0\t4\n",
            "x.test.inter": "user_id:token\titem_id:token\n0\t7\n0\t8\n1\t8\n1\t6\n",
        },
        {(0, 4)},
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_folder_of_parts_is_a_split(tmp_path, name):
    contents, validation = SPLITS[name]
    for file, content in contents.items():
        (tmp_path / file).write_text(content)
    data = load(tmp_path)
    assert part_pairs(data, "train") == {(0, 5), (0, 9), (1, 5), (1, 7), (1, 9)}
    assert part_pairs(data, "test") == {(0, 7), (0, 8), (1, 8), (1, 6)}
    assert part_pairs(data, "validation") == validation
    assert pairs(data) == set().union(
        *(part_pairs(data, p) or set() for p in ("train", "validation", "test"))
    )
    assert (data.interactions.track == "explicit") == (name == "ncf")
    assert set(data.provenance["parts"]) == {"train", "test"} | ({"valid"} if validation else set())
    assert all(len(facts["sha256"]) == 64 for facts in data.provenance["parts"].values())


def test_an_error_in_a_part_names_its_file(tmp_path):
    (tmp_path / "train.txt").write_text("0 5 9\n1 5\n")
    (tmp_path / "test.txt").write_text("0 7\n1 8 5\n")
    with pytest.raises(
        DataError, match=r"test\.txt, line 2: user 1, item 5 is a repeat of .*train\.txt, line 2"
    ):
        load(tmp_path)
    merged = load(tmp_path, duplicates="last")
    assert part_pairs(merged, "train") == {(0, 5), (0, 9), (1, 5)}  # a pair of two parts counts in the first
    assert part_pairs(merged, "test") == {(0, 7), (1, 8)}
    (tmp_path / "test.txt").write_text("0 7\n1 x\n")
    with pytest.raises(DataError, match=r"test\.txt, line 2: '1 x'"):
        load(tmp_path)


def test_folders_that_are_no_single_split(tmp_path):
    (tmp_path / "train.txt").write_text("0 5 9\n1 5\n")
    with pytest.raises(FileNotFoundError, match="holds no interactions file"):
        load(tmp_path)
    (tmp_path / "test.txt").write_text("0 6\n")
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("user,item\n0,1\n")
    with pytest.raises(ValueError, match=r"several splits: \*\.csv, \*\.txt"):
        load(tmp_path)
    for file in ("a.inter", "b.inter"):
        (tmp_path / file).write_text("user_id:token\titem_id:token\n1\t2\n")
    for file in tmp_path.glob("*.[ct]*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"holds a\.inter and b\.inter; give the path of one"):
        load(tmp_path)
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("user,item\n0,1\n")
    with pytest.raises(ValueError, match="parts of a split themselves"):
        load(tmp_path, split="part")


def test_parts_with_other_columns(tmp_path):
    (tmp_path / "train.csv").write_text("user,item,rating\n0,5,3\n")
    (tmp_path / "test.csv").write_text("user,item\n0,6\n")
    with pytest.raises(DataError, match=r"test\.csv, line 1: no rating, unlike the other parts"):
        load(tmp_path)


def test_librec_ratings(tmp_path):
    path = tmp_path / "ratings.txt"
    path.write_text("1 1 2.0\n1 2 4.0\n2 1 0.5\n")
    data = load(path)
    assert data.interactions.dense().tolist() == [[2, 4], [0.5, 0]]


def test_steam(tmp_path):
    path = tmp_path / "steam-200k.csv"
    path.write_text('5,"Fallout 4",purchase,1.0,0\n5,"Fallout 4",play,87.0,0\n7,Portal,purchase,1.0,0\n')
    with pytest.raises(DataError, match=r"line 2: user 5, item Fallout 4 is a repeat of line 1"):
        load(path)
    assert pairs(load(path, duplicates="max")) == {(5, "Fallout 4"), (7, "Portal")}
    x = load(path, track="sequence").interactions
    assert (x.user.tolist(), x.item.tolist()) == ([0, 0, 1], [0, 0, 1])
    hours = load(path, user=0, item=1, rating=3, duplicates="max")
    assert hours.interactions.dense().tolist() == [[87, 0], [0, 1]]
    path.write_text("5,Fallout 4,purchase,1.0,0\n7,Portal,lent,1.0,0\n")
    with pytest.raises(DataError, match="5 columns and no header"):
        load(path)


REVIEW = {
    "reviewerID": "A",
    "asin": "B",
    "helpful": [0, 0],
    "reviewText": 'a, "b"\n',
    "overall": 4.0,
    "unixReviewTime": 9,
}


def test_json_lines(tmp_path):
    path = tmp_path / "reviews_5.json.gz"
    events = [
        REVIEW,
        {**REVIEW, "asin": "C", "overall": 2, "unixReviewTime": 7},
        {**REVIEW, "reviewerID": "0"},
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, events)).encode()))
    data = load(path)
    assert pairs(data) == {("A", "B"), ("A", "C"), ("0", "B")}
    assert data.interactions.dense().tolist() == [[4, 0], [4, 2]]
    assert data.interactions.time.tolist() == [9, 9, 7]
    assert load(path, rating=False).interactions.track == "implicit"
    assert load(path, track="sequence").interactions.item.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'reviewerID': 'A'}", r"line 2: not JSON \("),
        ("[1, 2]", r"line 2: '\[1, 2\]' is no JSON object"),
        (json.dumps({"asin": "B", "overall": 1, "unixReviewTime": 1}), "line 2: user 'reviewerID' is None"),
        (json.dumps({**REVIEW, "asin": ["B"]}), r"line 2: item 'asin' is \['B'\]"),
        (json.dumps({**REVIEW, "overall": True}), "line 2: rating 'overall' is True"),
        (json.dumps({**REVIEW, "overall": "five"}), "line 2: rating 'five' is not a number"),
        (json.dumps({**REVIEW, "unixReviewTime": 10**400}), r"line 2: time 10+ is not a number"),
        (json.dumps({**REVIEW, "reviewerID": "A\0"}), "line 2: user id .* holds a zero character"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_bad_json_lines(tmp_path, line, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(REVIEW) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        load(path)
    path.write_text('\n{"who": 1}\n')
    with pytest.raises(DataError, match="line 2: no user column among who"):
        load(path)


def test_a_matrix_keeps_its_empty_rows_and_columns():
    matrix = np.zeros((4, 5))
    matrix[1, 3], matrix[3, 0] = 2, 5
    stored = scipy.sparse.coo_array(
        (np.array([2.0, 4.0, 1.0, 0.0]), ([1, 3, 3, 0], [3, 0, 0, 0])), shape=(4, 5)
    )
    for source in (matrix, scipy.sparse.csc_array(matrix), scipy.sparse.lil_matrix(matrix), stored):
        data = load(source)
        assert np.array_equal(data.interactions.dense(), matrix)
        assert data.user_ids.tolist() == list(range(4))
    clicks = load(scipy.sparse.csr_array(matrix), rating=False)
    assert clicks.interactions.track == "implicit"
    for bad, message in (
        (lambda: load(matrix, ids="appearance"), "numbered already"),
        (lambda: load(matrix, user=0), "only a frame has columns to name"),
        (lambda: load(scipy.sparse.csr_array((0, 3))), "expected a users x items matrix"),
        (lambda: load(scipy.sparse.csr_array((2, 3))), "no events"),
        (lambda: load(scipy.sparse.csr_array(np.array([[np.nan, 1]]))), "rating is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_frames_with_dates_gaps_and_categories():
    frame = pd.DataFrame({"user": [1.0, 2.0], "item": pd.Categorical(["b", "a"]), "rating": [3, 4]})
    frame["timestamp"] = pd.to_datetime(["1970-01-01 00:01:00", "1970-01-02 00:00:00"])
    data = load(frame)
    assert data.user_ids.tolist() == [1, 2]  # whole numbers in a float column
    assert data.interactions.time.tolist() == [60, 86400]
    zoned = frame.assign(timestamp=frame.timestamp.dt.tz_localize("Europe/Berlin"))
    assert load(zoned).interactions.time.tolist() == [60 - 3600, 86400 - 3600]
    for column, value, message in (
        ("timestamp", pd.NaT, "row 2: time is nan"),
        ("user", np.nan, "row 2: no user id"),
        ("rating", np.nan, "row 2: rating is nan"),
    ):
        broken = frame.copy()
        broken.loc[1, column] = value
        with pytest.raises(DataError, match=message):
            load(broken)
    missing = pd.DataFrame({"user": pd.array([1, None], dtype="Int64"), "item": [1, 2]})
    with pytest.raises(DataError, match="row 2: no user id"):
        load(missing)
    unrated = pd.DataFrame({"user": [1, 2], "item": [1, 2], "rating": pd.array([None, 2], dtype="Int64")})
    with pytest.raises(DataError, match=r"row 1: rating (is nan|<NA> is not)"):
        load(unrated)
    dates = pd.DataFrame({"user": [1], "item": [1], "time": [datetime.date(2020, 1, 1)]})
    with pytest.raises(DataError, match=r"row 1: time .* is not a number"):
        load(dates)
    twice = pd.DataFrame([[1, 2, 3]], columns=["user", "user", "item"])
    with pytest.raises(DataError, match="several columns are called 'user'"):
        load(twice)


def test_nothing_given_is_ignored(tmp_path):
    arrays = (np.array([0, 1]), np.array([1, 0]), np.array([3.0, 4.0]))
    assert load(arrays, rating=False).interactions.track == "implicit"
    assert load(arrays, name="mine").name == "mine"
    for bad, message in (
        (lambda: load(arrays, sep=","), "for files, not for a tuple"),
        (lambda: load(arrays, layout="table"), "for files"),
        (lambda: load(arrays, user="who"), "only a frame has columns"),
        (lambda: load((np.zeros((2, 2)),) * 2), "cannot load a tuple"),
        (lambda: load((np.zeros(2, int), np.zeros((2, 2), int))), "item has shape"),
        (lambda: load(__file__, layout="list"), "layout='list'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            bad()
    for bad in (1.5, True, False):
        with pytest.raises(TypeError, match="expected a column's name or its position"):
            load(arrays, user=bad)


def test_separators_inside_names_do_not_matter(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("user,item\na::b|c;d e,x\nf::g|h;i j,x\n")
    assert pairs(load(path)) == {("a::b|c;d e", "x"), ("f::g|h;i j", "x")}


def test_parquet_without_a_reader(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("pyarrow", "polars") else find(name, *rest),
    )
    with pytest.raises(ImportError, match=r"x\.parquet needs pandas with pyarrow, or polars"):
        load(path)


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


FRAME = pd.DataFrame(
    {"userId": [10, 2, 10], "movieId": ["x", "x", "y"], "rating": [5.0, 3.0, 1.0], "timestamp": [9, 8, 7]}
)


def check_frame(data):
    assert pairs(data) == {(10, "x"), (2, "x"), (10, "y")}
    assert data.interactions.dense().tolist() == [[3, 0], [5, 1]]
    assert data.interactions.time.tolist() == [8, 9, 7]


@needs("pyarrow")
def test_parquet_by_pandas(tmp_path):
    path = tmp_path / "x.parquet"
    FRAME.to_parquet(path)
    check_frame(load(path))
    with pytest.raises(ValueError, match="is a parquet file: sep, header and layout do not apply"):
        load(path, sep=",")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x\.parquet, row 1: not a parquet file, or a damaged one"):
        load(path)


@needs("polars", "pyarrow")
def test_polars(tmp_path, monkeypatch):
    import polars as pl

    frame = pl.from_pandas(FRAME)
    check_frame(load(frame))
    check_frame(load(frame.lazy()))
    path = tmp_path / "x.parquet"
    frame.write_parquet(path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else find(name, *rest)
    )
    check_frame(load(path))
    for content in (b"PAR1", path.read_bytes()[:-20], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a parquet file, or a damaged one"):
            load(path)
