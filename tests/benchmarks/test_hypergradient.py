"""The benchmark runs end to end on its smallest problem, its goals can fail, its reference agrees with the engine."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def goals(monkeypatch):
    """The module that judges the goals; the benchmark's own modules lie beside it, as for a script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("wrmf_goals")


def results(**changes):
    """Results of a run that meets every goal, with some numbers replaced (`variant.field` or `higher.field`)."""
    row = lambda path, kind, seconds, temp: {
        "path": path,
        "kind": kind,
        "seconds": seconds,
        "cpu_seconds": seconds,
        "temp_mb": temp,
        "peak_rss_mb": temp + 100.0,
    }
    variants = {
        "generic forward": row("generic", "forward", 1.0, 10.0),
        "generic exact keep": row("generic", "exact", 3.9, 1200.0),
        "generic exact lean": row("generic", "exact", 5.0, 90.0),
        "wrmf forward": row("wrmf", "forward", 1.0, 10.0),
        "wrmf exact adjoint": row("wrmf", "exact", 3.0, 200.0),
    }
    peers = {"higher": {"seconds": 7.0, "cpu_seconds": 7.0, "peak_rss_mb": 3000.0}}
    for name, value in changes.items():
        entry, field = name.rsplit(".", 1)
        ({**variants, **peers})[entry][field] = value
    ours = {"seconds": 4.0, "compile_seconds": 1.0, "cpu_seconds": 8.0}
    higher = {"seconds": 200.0, "cpu_seconds": 300.0, "measured_steps": 2, "extrapolated": True}
    attack = {"ours": ours, "higher": higher, "higher_without_evaluation": {"seconds": 60.0}}
    problem = {"variants": variants, "peers": peers}
    return {"problems": {"toy": problem, "movielens": problem}, "attack": attack}


def test_goals_pass_when_they_are_met(goals):
    assert {goal.verdict for goal in goals.judge(results())} == {"pass"}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"generic exact keep.seconds": 4.1}, {0}),
        ({"wrmf exact adjoint.seconds": 3.3}, {1, 2}),
        ({"wrmf forward.seconds": 0.9}, {2}),
        ({"generic exact lean.temp_mb": 110.0}, {3}),
        ({"generic exact lean.seconds": 6.0}, {4}),
        ({"generic exact lean.peak_rss_mb": 400.0, "wrmf exact adjoint.peak_rss_mb": 400.0}, {5}),
        ({"higher.seconds": 3.5}, {6, 7}),
    ],
)
def test_a_goal_that_is_missed_is_said_to_fall_short(goals, change, failing):
    found = goals.judge(results(**change))
    assert {number for number, goal in enumerate(found) if goal.verdict == "falls short"} == failing


def test_what_was_not_measured_is_not_passed(goals):
    found = goals.judge({"problems": {}})
    assert {goal.verdict for goal in found} == {"not measured"}


@pytest.mark.slow
def test_the_tiny_run_writes_a_record_whose_exact_gradients_match_the_reference(tmp_path):
    command = [sys.executable, str(FOLDER / "hypergradient.py"), "--problems", "tiny", "--quick", "--alone"]
    command += ["--no-attack", "--variants", "generic exact lean", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "hypergradient-quick.json").read_text())
    rows = record["problems"]["tiny"]["variants"]
    exact = [row for row in rows.values() if row["kind"] == "exact"]
    assert len(exact) == 1
    assert all(
        row["relative_error"] < 1e-3 and row["temp_mb"] > 0 for row in exact
    )  # float32 against float64
    assert all(row["peak_rss_mb"] > 0 for row in exact)
    assert (tmp_path / "hypergradient-quick.png").stat().st_size > 1000
