"""Whatever a file holds, the loader gives a valid `Interactions` or a `DataError` with file and line."""

import gzip
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.data import DataError, load

token = st.one_of(
    st.integers(-2, 30).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", " ", "nan", "inf", "a", "user", "item", "rating:float", '"', '"x', "007", "1e400", "é"]
    ),
    st.text(max_size=4),
)
separator = st.sampled_from(["\t", ",", "::", ";", "|", " ", ":", ""])
header = st.sampled_from(
    [
        "",
        "user,item",
        "user\titem\trating",
        "user_id:token\titem_id:token\trating:float",
        "userId,movieId,rating,time",
    ]
)
ending = st.sampled_from(["\n", "\r\n", "\n\n", ""])


@st.composite
def tables(draw):
    """Mostly regular tables, some with a row or a cell that does not belong."""
    sep, width = draw(separator), draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.integers(0, 9).map(str), min_size=width, max_size=width), max_size=8))
    if draw(st.booleans()) and rows:
        row = rows[draw(st.integers(0, len(rows) - 1))]
        row[draw(st.integers(0, width - 1))] = draw(token)
    if draw(st.integers(0, 4)) == 0:
        rows.append(draw(st.lists(token, max_size=6)))
    body = draw(ending).join(sep.join(row) for row in rows)
    return (draw(header) + "\n" + body).encode(errors="surrogatepass")


@st.composite
def files(draw):
    content = draw(st.one_of(tables(), tables(), tables(), st.binary(max_size=60)))
    return draw(packed(content))


@st.composite
def packed(draw, content):
    """Now and then gzipped, and then now and then cut short."""
    if draw(st.integers(0, 4)) == 0:
        content = gzip.compress(content, mtime=0)
        cut = draw(st.integers(0, len(content)))
        content = content[: max(cut, 2)] if draw(st.booleans()) else content
    return content


options = st.fixed_dictionaries(
    {},
    optional={
        "sep": st.sampled_from(["\t", ",", "::"]),
        "duplicates": st.sampled_from(["error", "max", "first", "last"]),
        "track": st.sampled_from(["explicit", "sequence"]),
        "ids": st.sampled_from(["sorted", "appearance"]),
        "rating": st.sampled_from([False, 2]),
        "user": st.sampled_from([0, 1]),
    },
)


def check(contents, chosen):
    """Load a file, or a folder of several; `contents` maps names to bytes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content)
        try:
            data, error = load(paths[0] if len(paths) == 1 else folder, **chosen), None
        except ValueError as caught:
            data, error = None, caught
    if isinstance(error, DataError):
        assert error.path in map(str, paths)
        assert error.line >= 1
        assert str(error).startswith(
            tuple(f"{error.path}, {unit} {error.line}: " for unit in ("line", "row"))
        )
        return None
    if error is not None:  # a demand of the caller that this file cannot meet
        assert "track='explicit' needs ratings" in str(error)
        return None
    x = data.interactions.validate()
    assert x.users == len(data.user_ids) == len(set(data.user_ids.tolist()))
    assert x.items == len(data.item_ids) == len(set(data.item_ids.tolist()))
    if data.split is not None:
        parts = [part.validate() for part in data.split if part is not None]
        assert sum(int(part.real().sum()) for part in parts) == int(x.real().sum())
    return data


quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=150, deadline=None, suppress_health_check=quiet)
@given(files(), options)
def test_loader_never_surprises(content, chosen):
    data = check({"fuzz.txt": content}, chosen)
    if data is not None and data.provenance["layout"] == "table" and content[:2] != b"\x1f\x8b":
        assert data.interactions.capacity <= content.count(b"\n") + 1


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=quiet)
@given(files(), options)
def test_loader_never_surprises_at_length(content, chosen):
    check({"fuzz.txt": content}, chosen)


# --------------------------------------------------------------------------- each format: a good file, then damaged

small = st.integers(1, 9)
events = st.lists(
    st.tuples(small, small, st.integers(1, 10).map(lambda n: n / 2), st.integers(0, 99)),
    min_size=1,
    max_size=8,
    unique_by=lambda event: event[:2],
)


def rows(sep, width, first=""):
    return lambda some: first + "".join(sep.join(map(str, event[:width])) + "\n" for event in some)


def lists(some):
    """Every user once, with its items."""
    users = {}
    for user, item, *_ in some:
        users.setdefault(user, []).append(item)
    return "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in users.items())


def amazon(some):
    fields = ("reviewerID", "asin", "overall", "unixReviewTime")
    return "".join(json.dumps(dict(zip(fields, (f"A{e[0]}", f"B{e[1]}", *e[2:])))) + "\n" for e in some)


def steam(some):
    kinds = ("purchase", "play")
    return "".join(f'{e[0]},"Game, {e[1]}",{kinds[int(e[2] * 2) % 2]},{e[2]},0\n' for e in some)


# name -> (names of the files, how the events become the text of each)
FORMATS = {
    "u.data": (("u.data",), rows("\t", 4)),
    "ratings.dat": (("ratings.dat",), rows("::", 4)),
    "librec": (("ratings.txt",), rows(" ", 3)),
    "csv": (("x.csv",), rows(",", 4, "user,item,rating,timestamp\n")),
    "recbole": (("x.inter",), rows("\t", 3, "user_id:token\titem_id:token\trating:float\n")),
    "steam": (("steam-200k.csv",), steam),
    "lightgcn": (("train.txt",), lists),
    "lightgcn-split": (("train.txt", "test.txt"), lists),
    "ncf-split": (("x.train.rating", "x.test.rating"), rows("\t", 3)),
    "recbole-split": (
        ("x.train.inter", "x.valid.inter", "x.test.inter"),
        rows("\t", 2, "user_id:token\titem_id:token\n"),
    ),
    "amazon-json": (("reviews.json",), amazon),
}

junk = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(
        [b"", b"\n", b"\t", b",", b'"', b"nan", b"-", b"1e999", b"\xef\xbb\xbf", b"\0", b"{", b" ", b"1"]
    ),
)


@st.composite
def damaged(draw, format_name):
    """The files of a format, whole or with some bytes replaced, a line doubled, or packed."""
    names, write = FORMATS[format_name]
    some = draw(events)
    share = [some[n :: len(names)] for n in range(len(names))]
    contents = {name: write(part).encode() for name, part in zip(names, share)}
    for name, content in contents.items():
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(content)))
            content = content[:at] + draw(junk) + content[at + draw(st.integers(0, 6)) :]
        if draw(st.integers(0, 9)) == 0:
            content += content[: content.find(b"\n") + 1]
        contents[name] = draw(packed(content))
    return contents


keep_repeats = st.fixed_dictionaries(
    {}, optional={"duplicates": st.sampled_from(["max", "last"]), "track": st.just("sequence")}
)


def survive(contents, examples):
    """Draw that many files and load each."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=quiet)
    @given(contents, keep_repeats)
    def load_them(contents, chosen):
        check(contents, chosen)

    load_them()


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_never_surprise(name):
    survive(damaged(name), 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_never_surprise_at_length(name):
    survive(damaged(name), 2000)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None, suppress_health_check=quiet)
@given(some=events)
def test_good_files_keep_every_event(name, some):
    names, write = FORMATS[name]
    if len(names) > len(some):
        return
    contents = {n: write(some[at :: len(names)]).encode() for at, n in enumerate(names)}
    data = check(contents, {"layout": "adjacency"} if name.startswith("lightgcn") else {})
    assert int(data.interactions.count) == len(some)
    assert (data.split is not None) == (len(names) > 1)
    rated = ("u.data", "ratings.dat", "librec", "csv", "recbole", "ncf-split", "amazon-json")
    if name in rated:
        assert sorted(np.asarray(data.interactions.weight).tolist()) == sorted(event[2] for event in some)
    if name in ("u.data", "ratings.dat", "csv", "amazon-json"):
        assert sorted(np.asarray(data.interactions.time).tolist()) == sorted(event[3] for event in some)


@st.composite
def parquet_files(draw):
    import pandas as pd

    some = draw(events)
    columns = draw(st.permutations(["user", "item", "rating", "timestamp"]))
    frame = pd.DataFrame(dict(zip(("user", "item", "rating", "timestamp"), zip(*some))))[columns]
    if draw(st.booleans()):
        frame["user"] = frame["user"].astype(draw(st.sampled_from(["str", "float64", "Int64", "category"])))
    if draw(st.integers(0, 3)) == 0:
        frame.loc[0, draw(st.sampled_from(columns))] = None
    if draw(st.integers(0, 3)) == 0:
        frame = frame.drop(columns=draw(st.sampled_from(columns)))
    out = io.BytesIO()
    frame.to_parquet(out, engine="pyarrow")
    content = out.getvalue()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(junk) + content[at + draw(st.integers(0, 6)) :]
    return {"x.parquet": content}


def test_parquet_never_surprises():
    pytest.importorskip("pyarrow")
    survive(parquet_files(), 40)


@pytest.mark.slow
def test_parquet_never_surprises_at_length():
    pytest.importorskip("pyarrow")
    survive(parquet_files(), 2000)
