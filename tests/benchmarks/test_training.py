"""The training benchmark: a measurement in a process of its own, the slope of growth, what the peers are asked for."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("training_benchmark", ROOT / "benchmarks" / "training.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_growth_is_the_slope_between_the_two_largest(benchmark):
    rows = [{"model": "m", "events": 10**n, "seconds": s} for n, s in ((5, 9.0), (6, 2.0), (7, 20.0))]
    rows += [
        {"model": "m", "events": 10**8, "error": "killed"},
        {"model": "one", "events": 10, "seconds": 1.0},
    ]
    assert benchmark.exponents(rows) == {"m": pytest.approx(1.0)}


def test_drawn_data_have_the_size_they_say(benchmark):
    train, source = benchmark.events_of({"events": 20_000}, "implicit")
    assert source == "drawn"
    assert abs(int(train.count) - 20_000) < 2_000
    assert (train.users, train.items) == (200, 1020)
    assert benchmark.of_track(train, "explicit").track == "explicit"
    assert benchmark.of_track(train, "sequence").track == "sequence"


def test_recbole_is_asked_for_the_same_sizes(benchmark):
    for model in benchmark.RECBOLE:
        settings = benchmark.recbole_settings(model)
        assert settings["train_batch_size"] >= 256
    assert benchmark.recbole_settings("ngcf")["hidden_size_list"] == [64, 64, 64]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["wrmf", "bpr"])
def test_a_measurement(benchmark, model):
    row = benchmark.worker({"model": model, "preset": benchmark.MODELS[model], "events": 3000, "factors": 4})
    assert "error" not in row, row
    assert row["events"] > 2000
    assert 0 < row["seconds"] < 60
    assert row["peak_mb"] >= row["data_mb"] > 0
    assert not math.isnan(row["embed_seconds"])


def test_a_failed_measurement_is_told(benchmark):
    row = benchmark.worker({"model": "wrmf", "preset": "nonsense", "events": 1000})
    assert "no preset 'nonsense'" in row["error"]
