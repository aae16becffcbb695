"""run_explain.py from a file to explanations that are verified, and back from the saved model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 25))
    user, item = np.nonzero(taste > 0.7)
    path = tmp_path_factory.mktemp("data") / "clicks.tsv"
    lines = [f"u{u}\ti{i}" for u, i in zip(user, item, strict=True)]
    path.write_text("\n".join(["user\titem", *lines]) + "\n")
    return path


def call(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "run_explain.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_explanations_are_written_and_verified(table, tmp_path):
    model = "wrmf,factors=3,epochs=100,learning_rate=0.1,l2=1.0,batch=None"
    options = ["--data", table, "--model", model, "--k", 5, "--out", tmp_path]
    first = call(*options, "--users", 6, "--verify", 2)
    assert first.returncode == 0, first.stderr
    record = json.loads((tmp_path / "explanations.json").read_text())
    found = [row for row in record["explanations"] if row["found"]]
    assert record["queries"] == 6
    assert found
    assert all(len(row["gap"]) == 2 and row["removed"] and row["replacement"] != row["item"] for row in found)
    assert all(row["confirmed"] == (sum(row["gap"]) < 0) for row in found)
    assert (tmp_path / "explanations.png").stat().st_size > 1000
    again = call(*options, "--users", 6, "--verify", 2)  # nothing is trained, searched or verified twice
    assert again.returncode == 0, again.stderr
    assert "trained before" in again.stderr
    assert "explaining" not in again.stderr
    assert "without a set" not in again.stderr
    assert json.loads((tmp_path / "explanations.json").read_text())["explanations"] == record["explanations"]


@pytest.mark.slow
def test_the_saved_model_explains_and_errors_say_what_to_do(table, tmp_path):
    options = ["--data", table, "--model", "bpr,factors=3,epochs=30", "--k", 5, "--out", tmp_path]
    first = call(*options, "--users", "u1,u2")
    assert first.returncode == 0, first.stderr
    again = call(*options, "--users", "u3,", "--rank", 2)
    assert "trained before" in again.stderr
    for given, text in [
        (["--users", "nobody,"], "no user nobody"),
        (["--users", 4000], "users with interactions to draw from"),
        (["--rank", 9], "a place in the list"),
        (["--method", "attention"], "bpr has no attention"),
        (["--variant", "fast"], "needs ratings"),
    ]:
        done = call(*options, *given)
        assert done.returncode == 1
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_epochs_of_a_verification_that_is_not_asked_for_are_an_error(table, tmp_path):
    done = call("--data", table, "--verify-epochs", 3, "--out", tmp_path)
    assert done.returncode == 1
    assert "--verify-epochs 3 has no use without --verify" in done.stderr
    assert not list(tmp_path.iterdir())
