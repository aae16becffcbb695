"""run_explain.py from a file to explanations that are verified, and back from the saved model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from experiments import explaining
from models.explain.explanation import made
from models.explain.verify import Verified

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "run_explain.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_explanations_are_written_and_verified(clicks, tmp_path):
    model = "wrmf,factors=3,epochs=100,learning_rate=0.1,l2=1.0,batch=None"
    options = ["--data", clicks, "--model", model, "--k", 5, "--out", tmp_path]
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


@pytest.mark.parametrize("rank", [None, 2])
def test_the_question_reaches_the_search_and_the_verification(
    script, clicks, tmp_path, monkeypatch, capsys, rank
):
    """An item at a rank is to leave the list, the best item to fall behind another one."""
    module = script("run_explain")
    told, best = {}, np.array([[3, 4, 5]])

    def search(fitted, train, users, items, **options):
        told["search"] = (items, options)
        return made(np.asarray(users), np.array([3]), [[1]], np.array([9]))

    def verify(*given, **options):
        told["verify"] = options
        yes, one = np.array([True]), np.array([[1]])
        return Verified(yes, ~yes, -1.0 * one, 1.0 * one, 6 * one, one)

    monkeypatch.setattr(explaining, "trained", lambda *given, **options: (None, {}))
    monkeypatch.setattr(explaining, "top_k", lambda *given, **options: best)
    monkeypatch.setattr(explaining, "counterfactual", search)
    monkeypatch.setattr(explaining, "verify", verify)
    options = [
        "--data",
        str(clicks),
        "--model",
        "lightgcn,factors=2",
        "--users",
        "u1,",
        "--k",
        "3",
        "--verify",
        "2",
    ]
    options += ["--damping", "0.5", "--out", str(tmp_path), *([] if rank is None else ["--rank", str(rank)])]
    module.main(tyro.cli(module.Options, args=options))
    items, asked = told["search"]
    assert asked == {"k": 3, "method": "accent", "variant": None, "damping": 0.5}
    assert items is None if rank is None else items.tolist() == [4]
    assert told["verify"]["k"] == (None if rank is None else 3)
    row = json.loads((tmp_path / "explanations.json").read_text())["explanations"][0]
    assert (row["confirmed"], row["control"], row["rank"], row["control_rank"]) == (True, False, [7], [2])
    said = "the other item is ahead" if rank is None else "the item is not among the best 3"
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_saved_model_explains_and_errors_say_what_to_do(clicks, tmp_path):
    options = ["--data", clicks, "--model", "bpr,factors=3,epochs=30", "--k", 5, "--out", tmp_path]
    first = call(*options, "--users", "u1,u2")
    assert first.returncode == 0, first.stderr
    again = call(*options, "--users", "u3,", "--rank", 2, "--verify", 1)
    assert "trained before" in again.stderr
    for row in json.loads((tmp_path / "explanations.json").read_text())["explanations"]:
        assert not row["found"] or row["confirmed"] == (row["rank"][0] > 5)
    for given, text in [
        (["--users", "nobody,"], "no user nobody"),
        (["--users", 4000], "users with interactions to draw from"),
        (["--rank", 9], "a place in the list"),
        (["--method", "attention"], "bpr has no attention"),
        (["--method", "attention", "--damping", 0.1], "leave out --variant and --damping"),
        (["--damping", -1], "damping=-1"),
        (["--variant", "fast"], "needs ratings"),
    ]:
        done = call(*options, *given)
        assert done.returncode == 1
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_epochs_of_a_verification_that_is_not_asked_for_are_an_error(clicks, tmp_path):
    done = call("--data", clicks, "--verify-epochs", 3, "--out", tmp_path)
    assert done.returncode == 1
    assert "--verify-epochs 3 has no use without --verify" in done.stderr
    assert not list(tmp_path.iterdir())
