"""The command line of defenses: a file in; a row a defense, records that are not made twice, clear errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import names
from models.data import Profiles
from models.mf import mf

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*arguments, check=True):
    command = [sys.executable, str(ROOT / "scripts" / "run_defense.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    rng = np.random.default_rng(0)
    cells = np.argwhere(rng.random((30, 15)) < 0.5)
    lines = [f"u{user},i{item},{rng.integers(1, 6)}" for user, item in cells]
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    path.write_text("\n".join(["user,item,rating", *lines]) + "\n")
    model = ["--model", "mf,epochs=4,factors=3,batch=None", "--k", "5"]
    return ["--data", str(path), "--track", "explicit", "--split", "one", *model]


ATTACK = ["--targets", "i1,i2", "--attack", "average", "--fakes", "4", "--budget", "3"]


def saved(path, targets, value=5.0):
    """Four fake users who rate the first targets and item 4."""
    rows = np.zeros((4, 15))
    rows[:, [*targets, 4]] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Profiles.from_rows(rows, targets, track="explicit").save(path)
    return ["--profiles", str(path)]


def test_a_row_a_defense_and_no_record_twice(ratings, tmp_path):
    chosen = ["none", "filter:rdma,level=0.1"]
    done = run(*ratings, *ATTACK, "--defense", *chosen, "--out", str(tmp_path), "--quiet")
    (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
    assert list(record["result"]["defenses"]) == chosen
    assert all(0 <= found["attacked"]["hr_any"] <= 1 for found in record["result"]["defenses"].values())
    assert (tmp_path / "table.md").read_text().count("\n| ") == 2
    assert (tmp_path / "figure.png").exists()
    assert "RI" in done.stdout


def test_saved_fake_users_are_judged_by_their_own_targets_and_told_apart_by_what_they_hold(ratings, tmp_path):
    """Two files of one name are two repetitions; the table names the file, and no attack."""
    asked = [*ratings, "--defense", "none", "--out", str(tmp_path), "--quiet"]
    told = []
    for number, targets in enumerate(([2], [8, 9])):
        run(*asked, *saved(tmp_path / str(number) / "made.npz", targets))
        (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
        told.append(record["result"])
    assert [result["targets"] for result in told] == [[2], [8, 9]]
    assert len(list((tmp_path / "records").glob("*.json"))) == 2
    text = (tmp_path / "table.md").read_text()
    assert "fake users of the file made.npz" in text
    assert "attack random" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--attack", "average"], "--attack: no attack is run beside --profiles"),
        (["--fakes", "4", "--budget", "3"], "--fakes, --budget: no attack is run beside --profiles"),
        (["--targets", "i1,i2"], "was made for the targets [2]"),
    ],
)
def test_what_saved_fake_users_contradict_is_an_error(ratings, tmp_path, given, message):
    done = run(*ratings, *saved(tmp_path / "made.npz", [2]), *given, "--out", str(tmp_path), check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_same_command_continues(ratings, tmp_path):
    asked = [
        "--defense",
        "none",
        "--defense",
        "at",
        "--defense",
        "pcmf,rank=2,fills=2",
        "--out",
        str(tmp_path),
    ]
    run(*ratings, *ATTACK, *asked)
    before = {file.name: file.read_bytes() for file in (tmp_path / "records").glob("*.json")}
    assert "done before" in run(*ratings, *ATTACK, *asked).stderr
    assert {file.name: file.read_bytes() for file in (tmp_path / "records").glob("*.json")} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atp", "did you mean 'a"),
        ("filter:rdna", "did you mean 'rdma'"),
        ("at:ml-100k", "has no presets"),
        ("apt:ml-100", "did you mean 'ml-100k'"),
        ("apt,itms=3", "did you mean 'items'"),
    ],
)
def test_bad_defenses(text, message):
    with pytest.raises(ValueError, match=message):
        names.defense(text, mf(), (5.0, 1.0))
