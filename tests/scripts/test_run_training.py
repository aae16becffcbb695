"""run_training.py from a file to recommendations, and back from the saved model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "run_training.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_train_save_read_recommend(clicks, tmp_path):
    options = [
        "--data",
        clicks,
        "--model",
        "wrmf,factors=3,epochs=30",
        "--early",
        "--k",
        5,
        "--out",
        tmp_path,
    ]
    first = call(*options, "--recommend", "u1,u7", "--count", 3)
    assert first.returncode == 0, first.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert 0 <= record["test"]["recall@5"] <= 1
    assert (tmp_path / "model.npz").exists()
    assert (tmp_path / "history.png").exists()
    again = call(*options, "--recommend", "u1,u7", "--count", 3)
    assert "trained before" in again.stderr
    assert first.stdout.split("the 3 best")[1] == again.stdout.split("the 3 best")[1]
    other = call(*options[:2], "--model", "wrmf,factors=4,epochs=30", *options[4:])
    assert other.returncode == 1
    assert "another training" in other.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "wrfm"], "did you mean 'wrmf'"),
        (["--recommend", "u1,nobody"], "no user nobody"),
        (["--split", "revadv", "--early"], "no validation part"),
        (["--split", "last"], "needs times"),
        (["--model", "mf"], "learns from ratings"),
    ],
)
@pytest.mark.slow
def test_errors_say_what_to_do(clicks, tmp_path, options, text):
    done = call("--data", clicks, "--out", tmp_path, "--model", "wrmf,factors=2,epochs=2", *options)
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr
