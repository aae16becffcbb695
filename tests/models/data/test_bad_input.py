"""What a user gets wrong: each case is one clear error, raised on the host, that says where and what to do."""

import gzip
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from models.data import (
    DataError,
    Interactions,
    Profiles,
    binarize,
    check_targets,
    dataset,
    holdout_one,
    inject,
    load,
    min_count,
    pick_targets,
    random_events,
    revadv_split,
    strata,
    toy,
)
from models.data.synthetic import zipf

GOOD = "1\t10\t5\t100\n1\t11\t3\t101\n2\t10\t4\t102\n"
GZIP = gzip.compress(("\n".join(f"{n}\t{n % 7}\t3\t{n * n}" for n in range(9000))).encode(), mtime=0)

# name -> (bytes of the file, options of load, line of the error, what the message must say)
FILES = {
    "wrong separator given": (GOOD, {"sep": ","}, 1, "one column with sep=','.*looks separated by tab"),
    "no separator at all": ("12\n13\n", {}, 1, "no known separator"),
    "separator changes": (GOOD + "3,10,4,103\n", {}, 4, "1 columns, line 1 has 4"),
    "row cut short": ("1,10,5\n2,10\n3,10,1\n", {}, 2, "2 columns, line 1 has 3"),
    "row too long": ("1,10,5\n2,10,5,9\n", {}, 2, "4 columns, line 1 has 3"),
    "truncated gzip": (GZIP[:-400], {}, None, "truncated gzip"),
    "damaged gzip": (GZIP[:9000] + b"\xff" * 50 + GZIP[9050:], {}, None, "damaged gzip"),
    "empty file": ("", {}, 1, "the file is empty"),
    "blank lines only": ("\n  \n\n", {}, 1, "the file is empty"),
    "header only": ("user,item,rating\n", {}, 2, "only a header"),
    "column missing": (
        "user,item,rating\n1,2,3\n",
        {"rating": "stars"},
        1,
        "no column 'stars' for rating.*user, item",
    ),
    "user column not known": ("who,item\n1,2\n", {"item": "item"}, 1, "no user column among who, item"),
    "rating not a number": (GOOD + "2\t11\tfive\t9\n", {}, 4, "rating 'five' is not a number"),
    "unknown header": (
        "who,what,stars\n1,2,3\n",
        {},
        1,
        "rating 'stars' is not a number; if this line names",
    ),
    "rating NaN": ("user,item,rating\n1,2,3\n1,3,nan\n", {}, 3, "rating is nan"),
    "rating infinite": ("1,2,3\n1,3,1e999\n", {}, 2, "rating is inf"),
    "rating zero": ("1,2,3\n1,3,0\n", {}, 2, "rating 0: explicit ratings must be positive"),
    "rating negative": ("1,2,-3\n", {}, 1, "rating -3: explicit ratings must be positive"),
    "time not a number": (GOOD.replace("102", "noon"), {}, 3, "time 'noon' is not a number"),
    "pair repeated": (
        GOOD + "1\t10\t2\t103\n",
        {},
        4,
        "user 1, item 10 is a repeat of line 1; pass duplicates=",
    ),
    "no user id": ("user,item\n1,2\n,3\n", {}, 3, "no user id"),
    "endless id": ("user,item\n" + "x" * 2000 + ",3\n", {}, 2, "user id of 2000 characters"),
    "not UTF-8": (GOOD.encode() + b"\xe9\t1\t2\t3\n", {}, 4, "not UTF-8 text"),
    "binary": (b"1\t2\t3\t\x00\n", {}, 1, "a zero byte"),
    "open quote": ('user,item\n1,"a\n2,b\n', {}, 2, "bad quoting"),
    "RecBole type missing": ("user_id:token\titem_id\n1\t2\n", {}, 1, "'item_id' has no type"),
    "many columns, no header": ("1,2,3,4,5\n", {}, 1, "5 columns and no header"),
    "position out of range": (GOOD, {"item": 7}, 1, "item=7: there are 4 columns"),
    "unknown split": ("user,item,split\n1,2,train\n1,3,holdout\n", {}, 3, "split 'holdout'"),
    "ratings called clicks": (GOOD, {"track": "implicit"}, 1, "rating 5 in the implicit track"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_file(tmp_path, case):
    content, options, line, message = FILES[case]
    path = tmp_path / "bad.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load(path, **options)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert f"line {caught.value.line}" in str(caught.value)
    assert caught.value.line == line if line is not None else caught.value.line > 1


ONE = Interactions.from_arrays([0, 0, 1], [0, 1, 1], items=3)
RATED = Interactions.from_arrays([0, 1], [0, 1], [3.0, 4.0], items=3)
ROWS = Profiles.from_rows(np.ones((2, 3)), [0])
make = Interactions.from_arrays

# name -> (call, error, what the message must say)
CALLS = {
    "no such file or name": (lambda: load("nowhere.csv"), FileNotFoundError, "no file and no data set named"),
    "unknown data set": (lambda: dataset("ml-7b"), FileNotFoundError, "known: amazon-beauty"),
    "unknown option": (lambda: load((["a"], ["b"]), rateing=3), TypeError, "rateing"),
    "unknown policy": (
        lambda: make([0], [0], duplicates="mean"),
        ValueError,
        "duplicates='mean': expected one of",
    ),
    "unknown track": (
        lambda: make([0], [0], track="implict"),
        ValueError,
        "track='implict': expected one of",
    ),
    "unknown id order": (lambda: load((["a"], ["b"]), ids="random"), ValueError, "ids='random'"),
    "not loadable": (lambda: load(42), TypeError, "cannot load a int"),
    "frame without column": (
        lambda: load(pd.DataFrame({"user": [1]})),
        DataError,
        "frame, line 1: no item column",
    ),
    "frame with NaN id": (
        lambda: load(pd.DataFrame({"user": [1, None], "item": [1, 2]})),
        DataError,
        "frame, row 2: no user id",
    ),
    "empty frame": (lambda: load(pd.DataFrame({"user": [], "item": []})), DataError, "no events"),
    "threshold without ratings": (lambda: load((["a"], ["b"]), threshold=3), ValueError, "needs ratings"),
    "strict without threshold": (lambda: load((["a"], ["b"], [3]), strict=True), ValueError, "strict=True"),
    "explicit without ratings": (lambda: load((["a"], ["b"]), track="explicit"), ValueError, "needs ratings"),
    "names but no header": (lambda: load(__file__, user="u", header=False), ValueError, "header=False"),
    "empty separator": (lambda: load(__file__, sep=""), ValueError, "sep=''"),
    "lengths differ": (lambda: make([0, 1], [0]), ValueError, "item has 1 entries, user has 2"),
    "user out of range": (
        lambda: make([0, 5], [0, 0], users=3),
        ValueError,
        r"user id 5 of event 1 is outside 0..2",
    ),
    "negative id": (lambda: make([0], [-1]), ValueError, "item id -1 of event 0"),
    "float ids": (lambda: make([0.0], [1]), TypeError, "user ids must be integers.*load accepts"),
    "text ids": (lambda: make(["a"], [1]), TypeError, "user ids must be integers"),
    "two-dimensional ids": (lambda: make([[0]], [[1]]), ValueError, "one-dimensional"),
    "no events": (lambda: make([], []), ValueError, "no events"),
    "weight NaN": (lambda: make([0], [0], [np.nan]), ValueError, "weight of event 0 is nan"),
    "weight zero": (
        lambda: make([0, 0], [0, 1], [1, 0]),
        ValueError,
        r"event 1 \(user 0, item 1\) is 0.*not observed",
    ),
    "weight underflows": (lambda: make([0], [0], [1e-60]), ValueError, "expected a positive float32"),
    "ratings called clicks": (
        lambda: make([0], [0], [4], track="implicit"),
        ValueError,
        "expects weights of 1",
    ),
    "clicks summed": (lambda: make([0, 0], [0, 0], duplicates="sum"), ValueError, "counts clicks"),
    "time NaN": (lambda: make([0], [0], time=[np.nan]), ValueError, "time of event 0 is nan"),
    "time too short": (lambda: make([0, 1], [0, 0], time=[1]), ValueError, "time has 1 entries"),
    "no users": (lambda: make([], [], users=0, items=3), ValueError, "users=0: expected a whole number >= 1"),
    "capacity too small": (lambda: ONE.pad(2), ValueError, "give at least that many"),
    "dense matrix is a vector": (lambda: Interactions.from_dense([1, 0]), ValueError, "users x items matrix"),
    "dense matrix NaN": (
        lambda: Interactions.from_dense([[1, np.nan]]),
        ValueError,
        r"\(user 0, item 1\) is nan",
    ),
    "traced matrix, no capacity": (
        lambda: jax.jit(Interactions.from_dense)(np.ones((2, 2))),
        ValueError,
        "needs capacity=",
    ),
    "frame column": (
        lambda: Interactions.from_frame(pd.DataFrame({"u": [0]})),
        ValueError,
        "no column 'user'",
    ),
    "empty users": (
        lambda: make([0, 2], [0, 0]).validate(empty_users="error"),
        ValueError,
        r"user 1 has no event \(1 such",
    ),
    "unsorted record": (
        lambda: Interactions(jnp.array([1, 0]), jnp.array([0, 0]), jnp.ones(2), None, 2, 1).validate(),
        ValueError,
        "out of order or a repeat",
    ),
    "padding in the middle": (
        lambda: Interactions(
            jnp.array([0, 1]), jnp.array([0, 0]), jnp.array([0.0, 1]), None, 2, 1
        ).validate(),
        ValueError,
        "padding .* must come after",
    ),
    "target out of range": (lambda: check_targets(np.array([3]), 3), ValueError, r"target 3 is outside 0..2"),
    "target twice": (
        lambda: check_targets(np.array([1, 1]), 3),
        ValueError,
        "target 1 is given more than once",
    ),
    "no target": (lambda: check_targets(np.array([], int), 3), ValueError, "targets must be"),
    "float target": (lambda: Profiles.from_rows(np.ones((1, 3)), [0.5]), TypeError, "integer item ids"),
    "over budget": (lambda: ROWS.validate(budget=1), ValueError, r"holds 3 clicks; the budget allows 1 \+ 1"),
    "over width": (
        lambda: Profiles.from_rows(np.ones((1, 3)), [0], width=2).validate(),
        ValueError,
        "its width promises at most 2",
    ),
    "wrong number of fakes": (lambda: ROWS.validate(fakes=5), ValueError, "2 fake users; expected 5"),
    "relaxed rows": (
        lambda: Profiles.from_rows([[0.5, 1]], [0]).validate(),
        ValueError,
        r"fake user 0, item 0: 0.5; expected 0 or 1",
    ),
    "NaN row": (
        lambda: Profiles.from_rows([[np.nan, 1]], [0], track="explicit").validate(),
        ValueError,
        "fake user 0, item 0: nan",
    ),
    "rating off the scale": (
        lambda: Profiles.from_rows([[9.0, 1]], [0], track="explicit").validate(ratings=(1, 5)),
        ValueError,
        r"0 or a rating in 1..5",
    ),
    "target not clicked": (
        lambda: Profiles.from_rows([[1.0, 0]], [1], clicks_targets=True).validate(),
        ValueError,
        "does not click target 1",
    ),
    "click out of range": (
        lambda: Profiles.from_clicks([[0, 4]], [0], items=3).validate(),
        ValueError,
        "click 1: item 4 is outside",
    ),
    "mask of another shape": (
        lambda: Profiles.from_clicks([[0, 1]], [0], items=3, mask=[[True]]),
        ValueError,
        "they must match",
    ),
    "inject: other items": (
        lambda: inject(ONE, Profiles.from_rows(np.ones((1, 4)), [0])),
        ValueError,
        "train has 3 items, the profiles 4",
    ),
    "inject: other track": (
        lambda: inject(RATED, ROWS),
        ValueError,
        "implicit profiles cannot enter explicit data",
    ),
    "inject: relaxed": (
        lambda: inject(ONE, Profiles.from_rows([[0.2, 0, 0]], [0])),
        ValueError,
        "project relaxed rows first",
    ),
    "inject: too small": (
        lambda: inject(ONE, ROWS, capacity=4),
        ValueError,
        "9 events .* exceed the capacity 4",
    ),
    "save: not JSON": (lambda: ROWS.save("unused.npz", {"a": np.ones(2)}), ValueError, "plain JSON"),
    "split: share": (lambda: revadv_split(ONE, 0, fraction=1.5), ValueError, "fraction=1.5"),
    "split: shares do not add up": (
        lambda: random_events(ONE, 0, fractions=(0.5, 0.1, 0.1)),
        ValueError,
        "that sum to 1",
    ),
    "split: old-style key": (lambda: revadv_split(ONE, jax.random.PRNGKey(0)), TypeError, "typed key"),
    "split: many keys": (
        lambda: revadv_split(ONE, jax.random.split(jax.random.key(0))),
        ValueError,
        "one key",
    ),
    "split: no times": (lambda: holdout_one(ONE, 0, order="last"), ValueError, "needs times"),
    "filter: nothing left": (lambda: min_count(ONE, users=9), ValueError, "leaves no event"),
    "filter: mode": (lambda: min_count(ONE, mode="twice"), ValueError, "mode='twice'"),
    "binarize: preset": (lambda: binarize(RATED, "rapu"), ValueError, "threshold='rapu'"),
    "binarize: sequence": (lambda: binarize(make([0], [0], track="sequence")), ValueError, "never mix"),
    "stratum unknown": (
        lambda: pick_targets(ONE, "heads"),
        ValueError,
        "unknown stratum 'heads'; revadv: tail",
    ),
    "stratum of two papers": (lambda: pick_targets(ONE, "unpopular"), ValueError, "say preset="),
    "stratum too small": (lambda: pick_targets(ONE, "head", 3), ValueError, "the stratum 'head' holds"),
    "published set of other data": (lambda: pick_targets(ONE, "ml-100k/apt"), ValueError, "another data set"),
    "strata of a matrix": (lambda: strata(np.ones((2, 2))), ValueError, "one number an item"),
    "toy: sizes": (lambda: toy(jax.random.key(0), users=0), ValueError, "users=0"),
    "toy: threshold": (lambda: toy(jax.random.key(0), threshold=1e3), ValueError, "lower the threshold"),
    "zipf: density": (lambda: zipf(0, users=9, items=9, density=0.9), ValueError, r"share in \(0, 0.3\]"),
    "toy: capacity": (lambda: toy(jax.random.key(0), capacity=10), ValueError, "does not fit capacity=10"),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_call(case, monkeypatch):
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    call, error, message = CALLS[case]
    with pytest.raises(error, match=message):
        call()


PROFILE_FILES = {
    "text": lambda path: path.write_text("not a zip"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-90]),
    "other archive": lambda path: np.savez(path, rows=np.ones(3)),
    "plain array": lambda path: path.write_bytes(_npy()),
}


def _npy():
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


@pytest.mark.parametrize("case", PROFILE_FILES)
def test_bad_profiles_file(tmp_path, case):
    path = tmp_path / "p.npz"
    ROWS.save(path)
    PROFILE_FILES[case](path)
    with pytest.raises(ValueError, match="not a profiles file, or a damaged one"):
        Profiles.load(path)


def test_profiles_of_a_newer_version(tmp_path, monkeypatch):
    from models.data import store

    monkeypatch.setattr(store, "VERSION", 2)
    ROWS.save(tmp_path / "p.npz")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="newer version"):
        Profiles.load(tmp_path / "p.npz")
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        Profiles.load(tmp_path / "absent.npz")


def test_without_network_the_error_says_what_to_put_where(tmp_path, monkeypatch):
    import pooch

    def offline(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(pooch, "retrieve", offline)
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"could not be downloaded.*download https://.*ml-100k\.zip.*BILEVEL_DATA"
    ):
        dataset("ml-100k")
    with pytest.raises(FileNotFoundError, match=r"has no public download.*steam-200k/interactions\.tsv\.gz"):
        dataset("steam-200k")
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        dataset("ml-100k")


def test_damaged_archive_and_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    (tmp_path / "ml-100k.zip").write_text("not a zip")
    with pytest.raises(DataError, match="not the archive expected"):
        dataset("ml-100k")
    with zipfile.ZipFile(tmp_path / "ml-100k.zip", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(DataError, match="not the archive expected"):
        dataset("ml-100k")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no interactions file"):
        load("mine")
