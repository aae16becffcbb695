"""The command line of defenses: a file in; a row a defense, records that are not made twice, clear errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import names
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
    model = ["--model", "mf,epochs=4,factors=3,batch=None", "--k", "5", "--targets", "i1,i2"]
    attack = ["--attack", "average", "--fakes", "4", "--budget", "3"]
    return ["--data", str(path), "--track", "explicit", "--split", "one", *model, *attack]


def test_a_row_a_defense_and_no_record_twice(ratings, tmp_path):
    chosen = ["none", "filter:rdma,level=0.1"]
    done = run(*ratings, "--defense", *chosen, "--out", str(tmp_path), "--quiet")
    (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
    assert list(record["result"]["defenses"]) == chosen
    assert all(0 <= found["attacked"]["hr_any"] <= 1 for found in record["result"]["defenses"].values())
    assert (tmp_path / "table.md").read_text().count("\n| ") == 2
    assert (tmp_path / "figure.png").exists()
    assert "RI" in done.stdout


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
    run(*ratings, *asked)
    before = {file.name: file.read_bytes() for file in (tmp_path / "records").glob("*.json")}
    assert "done before" in run(*ratings, *asked).stderr
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
