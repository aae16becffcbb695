"""The command line: a file in; profiles, table, figure and record out; resume to the same bytes; clear errors."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from models.data import Profiles

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = [
    "--attack",
    "revadv",
    "--surrogate",
    "wrmf:revadv-toy,epochs=6,factors=4",
    "--fakes",
    "4",
    "--budget",
    "3",
]
SMALL += [
    "--projection",
    "topk",
    "--k",
    "5",
    "--victim",
    "wrmf:revadv-toy,epochs=6,factors=4",
    "--targets",
    "i1,i2",
]


def run(*arguments, check=True, env=None):
    command = [sys.executable, str(ROOT / "scripts" / "run_attack.py"), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A file of ratings with names of its own."""
    rng = np.random.default_rng(0)
    cells = np.argwhere(rng.random((30, 15)) < 0.5)
    lines = [f"u{user},i{item},{rng.integers(1, 6)}" for user, item in cells]
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    path.write_text("\n".join(["who,what,stars", *lines]) + "\n")
    return ["--data", str(path), "--user-column", "who", "--item-column", "what", "--rating-column", "stars"]


def test_end_to_end_and_judged_again(inside, table, tmp_path, capsys):
    out = tmp_path / "out"
    done = run(*table, *SMALL, "--steps", "3", "--seeds", "2", "--out", str(out))
    assert "target HR@5" in done.stdout
    record = json.loads((out / "run.json").read_text())["records"][0]
    assert len(record["result"]["history"]["target_hr"]) == 3
    assert (out / "figure.png").exists()
    assert (out / "table.md").read_text().startswith("| victim |")
    files = sorted((out / "profiles").glob("*.npz"))
    assert len(files) == 2
    profiles, meta = Profiles.load(files[0])
    profiles.validate(budget=3, fakes=4)
    assert meta["target_names"] == ["i1", "i2"]
    before = {file.name: file.read_bytes() for file in files}
    again = run(*table, *SMALL, "--steps", "3", "--seeds", "2", "--out", str(out))
    assert again.stderr.count("done before") == 2
    assert {file.name: file.read_bytes() for file in files} == before
    victim = ["--victim", "als,sweeps=2,factors=4", "--k", "5"]
    inside(*table, "--profiles", str(files[0]), *victim, "--out", str(tmp_path / "judged"), "--quiet")
    assert "als,sweeps=2" in capsys.readouterr().out.replace("\n", "")
    record, table_, picture = (
        next((tmp_path / "judged").glob(f"*.{kind}")) for kind in ("json", "md", "png")
    )
    assert set(json.loads(record.read_text())["victims"]) == {"als,sweeps=2,factors=4"}
    assert "als,sweeps=2" in table_.read_text()
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --surrogate and --fakes; on the toy data: --preset toy"),
        (["--attack", "revad"], "did you mean 'revadv'"),
        (["--attack", "random", "--fakes", "3", "--budget", "2", "--tau", "4"], "no use for 'tau'"),
        (["--attack", "random", "--fakes", "2.5", "--budget", "2"], "whole number of fake users"),
        (["--attack", "random", "--fakes", "3", "--budget", "500"], "budget"),
        (["--attack", "random", "--fakes", "3", "--budget", "2", "--seeds", "0"], "expected at least 1"),
        (["--attack", "random", "--fakes", "3", "--budget", "2", "--preset", "toy"], "has no presets"),
        (["--attack", "random", "--fakes", "3", "--budget", "2", "--victim", "wmrf"], "did you mean 'wrmf'"),
        (["--attack", "random", "--fakes", "3", "--budget", "2", "--targets", "7"], "one target, item 0"),
        (
            ["--attack", "random", "--fakes", "3", "--budget", "2", "--user-column", "u"],
            "has no use for user",
        ),
        (["--data", "no-such-file.csv"], "no file and no data set"),
    ],
)
def test_bad_input_is_one_line(inside, arguments, message, capsys, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError, SystemExit), match=message):
        inside(*arguments, "--out", str(tmp_path / "out"), "--quiet")
    assert not list(tmp_path.rglob("*.npz"))


def test_unknown_option_is_an_error():
    done = run("--no-such-option", check=False)
    assert done.returncode != 0
    assert "no-such-option" in done.stderr + done.stdout


@pytest.mark.slow
def test_killed_at_ten_random_moments(table, tmp_path):
    """kill -9 while it starts, compiles, crafts or judges; resumed, each ends with the bytes of an undisturbed run."""
    arguments = [*table, *SMALL, "--steps", "400", "--block", "5"]
    began = time.monotonic()
    run(*arguments, "--out", str(tmp_path / "alone"))
    whole = time.monotonic() - began
    (expected,) = (tmp_path / "alone" / "profiles").glob("*.npz")
    moments, killed = random.Random(0), 0
    for number in range(10):
        out = tmp_path / f"killed-{number}"
        command = [sys.executable, str(ROOT / "scripts" / "run_attack.py"), *arguments, "--out", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.1, 0.95) * whole)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        run(*arguments, "--out", str(out))
        assert (out / "profiles" / expected.name).read_bytes() == expected.read_bytes()
    assert killed >= 7
