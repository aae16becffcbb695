"""Writers: what is written is read back, fake users are told from real ones, and a kill leaves a whole file."""

import gzip
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import (
    Interactions,
    Profiles,
    Split,
    export,
    holdout_one,
    inject,
    load,
    write_recbole,
    write_table,
)

names = st.text(
    st.characters(exclude_characters="\0\r\n\t", exclude_categories=["Cs"]), min_size=1, max_size=5
).filter(lambda name: name == name.strip())
quoted = st.text(
    st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), min_size=1, max_size=5
).filter(str.strip)


def told(x, users, items):
    """Every event in names, with its float32 weight and its time."""
    real = x.real()
    columns = [np.asarray(users)[np.asarray(x.user)[real]], np.asarray(items)[np.asarray(x.item)[real]]]
    columns.append(np.asarray(x.weight)[real])
    columns.append(np.asarray(x.time)[real] if x.time is not None else np.zeros(real.sum()))
    return sorted(tuple(map(str, row)) for row in zip(*columns, strict=True))


@st.composite
def data(draw, track=None):
    track = draw(st.sampled_from(["implicit", "explicit", "sequence"])) if track is None else track
    users, items, n = 4, 5, draw(st.integers(1, 12))
    cells = draw(
        st.lists(st.integers(0, users * items - 1), min_size=n, max_size=n, unique=track != "sequence")
    )
    weight = (
        draw(st.lists(st.floats(2**-20, 2**30, width=32), min_size=n, max_size=n))
        if track == "explicit"
        else None
    )
    timed = draw(st.booleans()) or track == "sequence"
    time = draw(st.lists(st.integers(-5, 2**31 - 1), min_size=n, max_size=n)) if timed else None
    cells = np.array(cells)
    return Interactions.from_arrays(
        cells // items, cells % items, weight, time, users=users, items=items, track=track, capacity=15
    )


def call_it(names_of_users, names_of_items):
    """A data set that only lends its names."""
    made = load((np.arange(4), np.arange(5)[:4]))
    return made._replace(user_ids=np.array(names_of_users), item_ids=np.array(names_of_items))


@settings(max_examples=60, deadline=None)
@given(
    data(),
    st.lists(names, min_size=4, max_size=4, unique=True),
    st.lists(names, min_size=5, max_size=5, unique=True),
)
def test_recbole_comes_back(x, users, items):
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_recbole(x, folder, name="toy", names=call_it(users, items))
        back = load(path, track=x.track)
    assert told(back.interactions.validate(), back.user_ids, back.item_ids) == told(x, users, items)


@settings(max_examples=60, deadline=None)
@given(
    data(),
    st.lists(quoted, min_size=4, max_size=4, unique=True),
    st.lists(quoted, min_size=5, max_size=5, unique=True),
    st.sampled_from(["x.csv", "x.csv.gz"]),
)
def test_csv_comes_back_with_names_of_any_kind(x, users, items, file):
    with tempfile.TemporaryDirectory() as folder:
        path = write_table(x, Path(folder, "new", file), names=call_it(users, items))
        back = load(path, track=x.track)
    assert told(back.interactions.validate(), back.user_ids, back.item_ids) == told(x, users, items)


@settings(max_examples=30, deadline=None)
@given(data("explicit"), st.sampled_from(["x.tsv", "x.tsv.gz", "x.csv"]))
def test_without_names_the_numbers_come_back(x, file):
    with tempfile.TemporaryDirectory() as folder:
        back = load(write_table(x, Path(folder, file)), track=x.track)
    assert told(back.interactions, back.user_ids, back.item_ids) == told(x, np.arange(4), np.arange(5))


REAL = load((["ann", "ann", "bob", "cem"], ["tea", "milk", "tea", "milk"]))
POISONED = inject(REAL.interactions, Profiles.from_rows(np.eye(2), [0]))


def test_a_poisoned_split_comes_back_with_readable_fakes(tmp_path):
    split = Split(POISONED, None, Interactions.from_arrays([1], [1], users=3, items=2))
    paths = write_recbole(split, tmp_path / "toy", name="toy", names=REAL, fakes=2)
    assert [path.name for path in paths] == ["toy.train.inter", "toy.test.inter"]
    assert paths[0].read_text().splitlines() == [
        "user_id:token\titem_id:token",
        "ann\tmilk",
        "ann\ttea",
        "bob\ttea",
        "cem\tmilk",
        "fake-0\tmilk",
        "fake-1\ttea",
    ]
    with pytest.raises(ValueError, match=r"bob, item tea is a repeat of"):  # the test event is in train here
        load(tmp_path / "toy")
    whole = holdout_one(POISONED, 0)
    for path in write_recbole(whole, tmp_path / "two", name="toy", names=REAL, fakes=2):
        assert path.is_file()
    back = load(tmp_path / "two")
    users = ["ann", "bob", "cem", "fake-0", "fake-1"]
    assert told(back.split.train, back.user_ids, back.item_ids) == told(whole.train, users, REAL.item_ids)
    table = load(write_table(whole, tmp_path / "t.csv", names=REAL, fakes=2))
    for a, b in zip(table.split, back.split, strict=True):
        assert (a is None) == (b is None)
        assert a is None or told(a, table.user_ids, table.item_ids) == told(b, back.user_ids, back.item_ids)


def test_many_fakes_are_numbered_in_order(tmp_path):
    x = inject(REAL.interactions, Profiles.from_rows(np.ones((11, 2)), [0]))
    (path,) = write_recbole(x, tmp_path, name="toy", names=REAL, fakes=11)
    assert load(path).user_ids.tolist() == ["ann", "bob", "cem", *(f"fake-{n:02d}" for n in range(11))]


def test_sequences_keep_repeats_and_order(tmp_path):
    x = Interactions.from_arrays([0, 0, 0, 1], [1, 0, 1, 1], time=[3, 5, 9, 1], track="sequence")
    back = load(write_table(x, tmp_path / "x.tsv"), track="sequence").interactions
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(back), strict=True):
        assert np.array_equal(a, b)


def test_the_same_data_give_the_same_bytes(tmp_path):
    first, second = (write_table(POISONED, tmp_path / f"{n}.csv.gz").read_bytes() for n in range(2))
    assert first == second
    assert first[4:8] == b"\0\0\0\0"  # gzip's time stamp
    assert gzip.decompress(first).decode().splitlines()[0] == "user,item"


def test_a_kill_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_table(REAL.interactions, tmp_path / "x.csv")
    before = path.read_bytes()

    def killed(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(export.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_table(POISONED, path)
    assert path.read_bytes() == before
    monkeypatch.undo()

    def not_renamed(part, target):
        assert part.read_bytes() != before  # the new content is whole, beside its place
        assert target.read_bytes() == before
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", not_renamed)
    with pytest.raises(KeyboardInterrupt):
        write_table(POISONED, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def named(user="ann", item="tea"):
    return REAL._replace(user_ids=np.array([user, "bob", "cem"]), item_ids=np.array([item, "milk"]))


ANN = REAL.interactions
CASES = {
    "ending": (lambda path: write_table(POISONED, path / "x.txt"), r"ends in \.csv, \.tsv"),
    "data set": (
        lambda path: write_table(REAL, path / "x.csv"),
        "data is Dataset; expected Interactions or a",
    ),
    "path as name": (lambda path: write_recbole(POISONED, path, name="a/b"), "not a path"),
    "too many fakes": (
        lambda path: write_recbole(POISONED, path, name="x", fakes=5),
        r"expected 0\.\.4 of the 5",
    ),
    "fakes not told": (
        lambda path: write_recbole(POISONED, path, name="x", names=REAL),
        "names 3 users and 2 items; the data have 5 users, 0 of them fake",
    ),
    "name taken": (
        lambda path: write_recbole(POISONED, path, name="x", names=named("fake-1"), fakes=2),
        "a real user is called 'fake-1' already",
    ),
    "tab": (
        lambda path: write_recbole(ANN, path, name="x", names=named("a\tb")),
        r"user_id:token 'a\\tb' cannot be written .* it holds '\\t'",
    ),
    "space": (
        lambda path: write_recbole(ANN, path, name="x", names=named(item=" tea")),
        "item_id:token ' tea'",
    ),
    "line break": (lambda path: write_table(ANN, path / "x.csv", names=named("a\nb")), "cannot be written"),
    "no text": (lambda path: write_table(ANN, path / "x.csv", names=named("\ud800")), "cannot be written"),
    "empty part": (
        lambda path: write_table(with_test([], users=1, items=2), path / "x.csv"),
        "test: no events",
    ),
    "other items": (
        lambda path: write_table(with_test([0], items=3), path / "x.csv"),
        r"same items; got \[2, 3\]",
    ),
    "other track": (
        lambda path: write_table(with_test([0], weight=[3.0], items=2), path / "x.csv"),
        "of one track",
    ),
}


def with_test(events, **options):
    return Split(POISONED, None, Interactions.from_arrays(events, events, **options))


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_written(tmp_path, case):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
