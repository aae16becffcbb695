"""Whatever a file holds, the loader gives a valid `Interactions` or a `DataError` with file and line."""

import gzip
import tempfile
from pathlib import Path

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


def check(content, chosen):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fuzz.txt")
        path.write_bytes(content)
        try:
            data, error = load(path, **chosen), None
        except ValueError as caught:
            data, error = None, caught
    if isinstance(error, DataError):
        assert error.path == str(path)
        assert error.line >= 1
        assert str(error).startswith(f"{path}, line {error.line}: ")
        return
    if error is not None:  # a demand of the caller that this file cannot meet
        assert "track='explicit' needs ratings" in str(error)
        return
    x = data.interactions.validate()
    assert x.users == len(data.user_ids) == len(set(data.user_ids.tolist()))
    assert x.items == len(data.item_ids) == len(set(data.item_ids.tolist()))
    assert 1 <= x.capacity <= content.count(b"\n") + content.count(b"\r") + 1 or content[:2] == b"\x1f\x8b"


quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=150, deadline=None, suppress_health_check=quiet)
@given(files(), options)
def test_loader_never_surprises(content, chosen):
    check(content, chosen)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=quiet)
@given(files(), options)
def test_loader_never_surprises_at_length(content, chosen):
    check(content, chosen)
