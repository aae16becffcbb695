"""run_detect.py on clicks among which some users copy one another: who is listed, and how well the detectors did."""

import csv
import hashlib
import json

import numpy as np
import pytest

from experiments.detecting import Seen
from models.data import Profiles, load
from models.evaluation.detection import detection

USERS, ITEMS, FAKES = 40, 20, 4


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    clicks = np.random.default_rng(0).random((USERS, ITEMS)) < np.linspace(0.6, 0.2, ITEMS)
    path = tmp_path_factory.mktemp("data") / "clicks.tsv"
    lines = [f"u{u}\ti{i}\t{1 + (u + i) % 5}" for u, i in np.argwhere(clicks)]
    path.write_text("\n".join(["user\titem\trating", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def twins(table):
    """Four equal fake users on ten items of the data."""
    rows = np.tile(np.arange(ITEMS) % 2 == 0, (FAKES, 1)).astype(float)
    path = table.parent / "twins.npz"
    Profiles.from_rows(rows, targets=[0]).save(path, {})
    return path


def read(out):
    with open(out / "users.csv") as file:
        return list(csv.DictReader(file))


def test_every_user_is_scored_and_the_most_flagged_come_first(inside, table, tmp_path, capsys):
    inside("--data", table, "--level", 0.1, "--top", 3, "--out", tmp_path, "--quiet")
    rows, found = read(tmp_path), json.loads((tmp_path / "detect.json").read_text())
    assert {row["user"] for row in rows} == {f"u{n}" for n in range(USERS)}
    assert len(found["spec"]["detectors"]) == 11
    assert (found["users"], found["fakes"]) == (USERS, 0)
    assert found["spec"]["data"]["name"].startswith("clicks")
    assert found["spec"]["profiles"] is None
    assert "detection" not in found
    flags = [int(row["flagged_by"]) for row in rows]
    assert flags == sorted(flags, reverse=True)
    assert sum(flags) == 11 * 4  # a tenth of 40 users, by each of eleven
    data = load(str(table)).interactions.to_csr().toarray()
    events = {str(name): n for name, n in zip(load(str(table)).user_ids, (data > 0).sum(1), strict=True)}
    assert all(int(row["events"]) == events[row["user"]] for row in rows)
    shown = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")
    ]
    assert shown == [row["user"] for row in rows[:3]]
    assert (tmp_path / "detect.png").stat().st_size > 1000


def test_known_fake_users_judge_the_detectors(inside, table, twins, tmp_path, capsys):
    options = ("--data", table, "--profiles", twins, "--detectors", "duplicate", "length-var")
    inside(*options, "--level", 0.1, "--out", tmp_path, "--quiet")
    rows, found = read(tmp_path), json.loads((tmp_path / "detect.json").read_text())
    fake = np.array([row["fake"] == "1" for row in rows])
    assert [row["user"].startswith("fake ") for row in rows] == fake.tolist()
    assert (fake.sum(), found["fakes"], found["users"]) == (FAKES, FAKES, USERS)
    for name in ("duplicate", "length-var"):
        again = detection([float(row[name]) for row in rows], fake)._asdict()
        assert found["detection"][name] == pytest.approx(again, abs=1e-5)
    assert found["detection"]["duplicate"]["auc"] == 1  # equal users
    assert found["spec"]["profiles"] == hashlib.sha256(twins.read_bytes()).hexdigest()
    assert "4 fake users among 40 real ones" in capsys.readouterr().out


def test_ratings_have_two_detectors_more(inside, table, tmp_path):
    inside("--data", table, "--track", "explicit", "--out", tmp_path, "--quiet")
    names = json.loads((tmp_path / "detect.json").read_text())["spec"]["detectors"]
    assert {"mean-var", "fmtd"} < set(names)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (np.ones((1, ITEMS + 1)), (), "items"),
        (np.ones((1, ITEMS)), ("--track", "explicit"), "track"),
    ],
)
def test_fake_users_of_other_data_are_refused(inside, table, tmp_path, rows, more, message):
    Profiles.from_rows(rows, targets=[0]).save(tmp_path / "other.npz", {})
    with pytest.raises(ValueError, match=message):
        inside(
            "--data", table, "--profiles", tmp_path / "other.npz", *more, "--out", tmp_path / "out", "--quiet"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--level", 1), "--level 1.0: expected a share"),
        (("--level", 0.001), "--level 0.001: of 40 users that is nobody"),
        (("--detectors", "knn", "pca", "knn"), "--detectors knn: it is given twice"),
        (("--top", 0), "--top 0: expected at least 1"),
        (("--detectors", "knm"), "detectors='knm'.*knn"),
        (("--detectors", "fmtd"), "fmtd: it reads ratings; give --track explicit"),
    ],
)
def test_a_mistake_ends_before_the_work(inside, table, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        inside("--data", table, *given, "--out", tmp_path / "out", "--quiet")
    assert not (tmp_path / "out").exists()


def test_users_with_as_many_flags_are_in_the_order_of_their_places():
    """Two users have one flag each; the one whom both detectors together find more suspicious comes first."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.8, 0.7], [0.3, 0.9]])
    flags = np.array([[True, False], [False, False], [True, True], [False, True]])
    seen = Seen(["a", "b"], list("uvwx"), np.ones(4, int), scores, flags, np.zeros(4, bool))
    assert seen.order().tolist() == [2, 3, 0, 1]
