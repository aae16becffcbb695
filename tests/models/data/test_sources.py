"""Data sets by name: local layouts, original files and archives, downloads with published and recorded checksums."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import logging
import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.data import DataError, dataset, fetch, sources
from models.data.catalog import SOURCES

TABLE = "user\titem\n1\t7\n2\t7\n"
RATED = "1 7 2.0\n2 7 4.0\n1 7 3.0\n"


def review(user, item, rating, time):
    return json.dumps({"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time}) + "\n"


def zipped(member, content):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/readme", "x")
            archive.writestr(member, content)

    return write


# name -> (file below BILEVEL_DATA, its content, the matrix it must give)
LAYOUTS = {
    "ml-100k, table": ("ml-100k", "ml-100k/interactions.tsv", TABLE, [[1], [1]]),
    "ml-100k, file": ("ml-100k", "ml-100k/u.data", "1\t7\t3\t9\n2\t7\t4\t9\n", [[3], [4]]),
    "ml-100k, archive": (
        "ml-100k",
        "ml-100k.zip",
        zipped("ml-100k/u.data", "1\t7\t3\t9\n2\t7\t4\t9\n"),
        [[3], [4]],
    ),
    "ml-1m, archive": (
        "ml-1m",
        "ml-1m/ml-1m.zip",
        zipped("ml-1m/ratings.dat", "1::7::3::9\n2::7::4::8\n"),
        [[3], [4]],
    ),
    "filmtrust, file": ("filmtrust", "filmtrust/ratings.txt", RATED, [[3], [4]]),
    "filmtrust, archive": ("filmtrust", "filmtrust.zip", zipped("ratings.txt", RATED), [[3], [4]]),
    "steam, file": (
        "steam-200k",
        "steam-200k/steam-200k.csv",
        '1,"A, b",play,2,0\n1,"A, b",purchase,1,0\n',
        [[1]],
    ),
    "steam, archive": (
        "steam-200k",
        "steam-200k/archive.zip",
        zipped("steam-200k.csv", "1,A,play,2,0\n"),
        [[1]],
    ),
    "phone, file": (
        "amazon-cell-phones",
        "amazon-cell-phones/reviews_Cell_Phones_and_Accessories_5.json.gz",
        gzip.compress((review("A", "X", 2.0, 9) + review("B", "X", 5.0, 8)).encode()),
        [[2], [5]],
    ),
    "video, all ratings": (
        "amazon-instant-video-ratings",
        "amazon-instant-video-ratings/ratings_Amazon_Instant_Video.csv",
        "A,X,2.0,9\nB,X,5.0,8\n",
        [[2], [5]],
    ),
    "yelp, file": ("yelp-hin", "yelp-hin/user_business.dat", "1\t7\t3\n2\t7\t4\n", [[3], [4]]),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_original_files_and_archives_are_recognized(tmp_path, monkeypatch, case):
    name, file, content, expected = LAYOUTS[case]
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sources.is_local(name)
    data = dataset(name)
    assert data.interactions.dense().tolist() == expected
    assert data.name == name
    assert data.provenance["published"]["rows"] == SOURCES[name].events
    assert len(data.provenance["sha256"]) == 64


TRAIN, TEST = "0\t5\t8\n0\t9\t1\n1\t5\t2\n", "0\t7\t3\n1\t9\t4\n"
APT = "filmtrust/apt_split/filmtrust"
PARTS = {
    "gowalla-lightgcn": (
        "gowalla-lightgcn/train.txt",
        "0 5 9\n1 5\n",
        "gowalla-lightgcn/test.txt",
        "0 7\n1 9\n",
    ),
    "gowalla-15core": (
        "gowalla-15core/train.csv",
        "uid,sid\n0,5\n0,9\n1,5\n",
        "gowalla-15core/test.csv",
        "uid,sid\n0,7\n1,9\n",
    ),
    "filmtrust-apt": (f"{APT}.train.rating", TRAIN, f"{APT}.test.rating", TEST),
    "yelp-apt": ("apt/yelp.train.rating", TRAIN, "apt/yelp.test.rating", TEST),
}


@pytest.mark.parametrize("name", PARTS)
def test_published_splits_are_recognized(tmp_path, monkeypatch, name):
    train, train_text, test, test_text = PARTS[name]
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    (tmp_path / train).parent.mkdir(parents=True)
    assert not sources.is_local(name)
    (tmp_path / train).write_text(train_text)
    (tmp_path / test).write_text(test_text)
    (tmp_path / train).with_name("other.train.rating").write_text(train_text)  # of no interest: no test file
    data = dataset(name)
    assert (np.asarray(data.split.train.dense()) > 0).astype(int).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert (np.asarray(data.split.test.dense()) > 0).astype(int).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert data.provenance["parts"]["test"]["file"].endswith(test)


def test_a_folder_of_another_data_set_lends_its_split_only(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    (tmp_path / "filmtrust").mkdir()
    (tmp_path / "filmtrust" / "interactions.tsv").write_text(TABLE)
    assert sources.is_local("filmtrust")
    assert not sources.is_local("filmtrust-apt")
    assert sources.beside("filmtrust", "interactions.tsv") == tmp_path / "filmtrust" / "interactions.tsv"
    assert sources.beside("filmtrust", "trust.tsv") is None
    monkeypatch.delenv("BILEVEL_DATA")
    assert sources.beside("filmtrust", "interactions.tsv") is None


def test_the_callers_options_win(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    (tmp_path / "filmtrust").mkdir()
    (tmp_path / "filmtrust" / "ratings.txt").write_text(RATED)
    assert dataset("filmtrust", duplicates="first").interactions.dense().tolist() == [[2], [4]]
    assert dataset("filmtrust", rating=False).interactions.track == "implicit"
    assert dataset("filmtrust", name="trust").name == "trust"
    with pytest.raises(DataError, match="one column with sep=','"):
        dataset("filmtrust", sep=",")


def test_damaged_archives(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    zipped("ratings.txt", RATED)(tmp_path / "filmtrust.zip")
    whole = (tmp_path / "filmtrust.zip").read_bytes()
    zipped("trust.txt", RATED)(tmp_path / "filmtrust.zip")
    with pytest.raises(DataError, match=r"there is no ratings\.txt in it"):
        dataset("filmtrust")
    rng = np.random.default_rng(0)
    for n in range(len(whole)):
        (tmp_path / "filmtrust.zip").write_bytes(whole[:n] + rng.bytes(1) + whole[n + 1 :])
        with contextlib.suppress(DataError):  # some bytes do not matter; no other error may come
            dataset("filmtrust")


def test_every_set_of_the_papers_has_a_way_to_be_had():
    for name, source in SOURCES.items():
        assert source.cite
        assert all(remote.url.startswith("https://") for remote in source.remotes)
        parts = [remote.part for remote in source.remotes]
        assert parts in ([], [""], ["train", "test"])
        for remote in source.remotes:
            digits = {"md5": 32, "sha256": 64}
            kind, _, digest = (remote.checksum or "").partition(":")
            assert not kind or len(digest) == digits[kind]
        assert source.remotes or source.page or name.startswith("legup/")


# ------------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host of our own on this machine, and an empty cache: (folder it serves, its URL)."""
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda project: cache / project)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def serve(monkeypatch, name, *remotes):
    monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(remotes=remotes))


def test_a_published_checksum_decides(host, monkeypatch):
    served, url = host
    zipped("ml-100k/u.data", "1\t7\t3\t9\n2\t7\t4\t9\n")(served / "ml-100k.zip")
    digest = hashlib.md5((served / "ml-100k.zip").read_bytes()).hexdigest()
    serve(monkeypatch, "ml-100k", fetch.Remote(f"{url}/ml-100k.zip", f"md5:{digest}"))
    data = dataset("ml-100k")
    assert data.interactions.dense().tolist() == [[3], [4]]
    assert data.provenance["url"] == f"{url}/ml-100k.zip"
    assert data.provenance["verified"] == "md5, published"
    (served / "ml-100k.zip").unlink()
    assert dataset("ml-100k").provenance["verified"] == "md5, published"  # from the cache
    serve(monkeypatch, "ml-100k", fetch.Remote(f"{url}/ml-100k.zip", "md5:" + "0" * 32))
    with pytest.raises(
        FileNotFoundError, match=r"could not be downloaded: .*By hand: download http.*ml-100k\.zip"
    ):
        dataset("ml-100k")


def test_without_one_the_first_download_is_recorded(host, tmp_path, monkeypatch):
    served, url = host
    for part, text in (("train", "0 5 9\n1 5\n"), ("test", "0 7\n1 9\n")):
        (served / f"{part}.txt").write_text(text)
    serve(
        monkeypatch,
        "gowalla-lightgcn",
        fetch.Remote(f"{url}/train.txt", None, "train"),
        fetch.Remote(f"{url}/test.txt", None, "test"),
    )
    data = dataset("gowalla-lightgcn")
    assert int(data.split.train.count) == 3
    assert int(data.split.test.count) == 2
    facts = data.provenance["parts"]["train"]
    assert facts["verified"] == "sha256 recorded at the first download, none is published"
    folder = tmp_path / "cache" / "bilevel" / "gowalla-lightgcn"
    record = (folder / "train.txt.sha256").read_text().split()
    assert record == [facts["sha256"], "train.txt"]
    (served / "train.txt").write_text("0 1\n1 2\n")  # the host changes it: the cached file stays in use
    assert dataset("gowalla-lightgcn").provenance["parts"]["train"]["sha256"] == record[0]
    (folder / "train.txt").write_text("0 1\n")  # the cached file is damaged, and the host has another one
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        dataset("gowalla-lightgcn")
    (served / "train.txt").write_text("0 5 9\n1 5\n")  # the right one is there again
    assert int(dataset("gowalla-lightgcn").split.train.count) == 3


def test_two_data_sets_with_files_of_one_name(host, monkeypatch):
    served, url = host
    for name, item in (("gowalla-lightgcn", 5), ("yelp2018-lightgcn", 6)):
        (served / name).mkdir()
        for part, text in (("train", f"0 {item} 9\n1 {item}\n"), ("test", "1 9\n")):
            (served / name / f"{part}.txt").write_text(text)
        serve(monkeypatch, name, *(fetch.Remote(f"{url}/{name}/{p}.txt", None, p) for p in ("train", "test")))
    assert dataset("gowalla-lightgcn").item_ids.tolist() == [5, 9]
    assert dataset("yelp2018-lightgcn").item_ids.tolist() == [6, 9]


def test_a_host_without_the_file(host, monkeypatch):
    _, url = host
    serve(monkeypatch, "yelp-hin", fetch.Remote(f"{url}/user_business.dat"))
    with pytest.raises(
        FileNotFoundError, match=r"could not be downloaded: HTTPError: 404.*user_business\.dat as yelp-hin/"
    ):
        dataset("yelp-hin")


def test_a_bar_where_tqdm_is_and_a_line_where_not(host, monkeypatch):
    served, url = host
    import pooch

    (served / "user_business.dat").write_text("1\t7\t3\n")
    asked = {}

    def retrieve(url, known, **options):
        asked.update(options)
        Path(options["path"]).mkdir(parents=True, exist_ok=True)
        target = Path(options["path"], options["fname"])
        target.write_text("1\t7\t3\n")
        return str(target)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    pooch.get_logger().addHandler(handler)
    try:
        for found, shown in ((True, 0), (False, 1)):
            monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name, found=found: found or None)
            fetch.fetch(fetch.Remote(f"{url}/user_business.dat"), f"yelp-{found}")
            assert asked["progressbar"] is found
            assert len(lines) == shown
    finally:
        pooch.get_logger().removeHandler(handler)
    assert lines[0].startswith("yelp-False: fetching http")


needs_data = pytest.mark.skipif("BILEVEL_DATA" not in os.environ, reason="BILEVEL_DATA is not set")


def by_size(name):
    return pytest.param(name, marks=pytest.mark.slow) if (SOURCES[name].events or 0) > 600_000 else name


@needs_data
@pytest.mark.parametrize("name", [by_size(name) for name in sorted(SOURCES)])
def test_published_counts(name):
    """The copies at hand hold as many users, items and rows as the catalog says; a few seconds for the large ones."""
    if not sources.is_local(name):
        pytest.skip(f"{name} is not in BILEVEL_DATA")
    source = SOURCES[name]
    data = dataset(name, track="sequence")  # repeats are rows too
    x = data.interactions
    assert (x.users, x.items, int(x.real().sum())) == (source.users, source.items, source.events)
