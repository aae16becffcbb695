"""The training benchmark: a measurement in a process of its own, growth, goals, what the peers are asked for."""

import json

import pytest


@pytest.fixture
def report(benchmark):
    return benchmark.training_report


def row(side, model, size="ml-100k", **values):
    return {"task": {"side": side, "model": model, "size": size}, "peak_mb": 100.0, **values}


def grown(model, events, **values):
    return {"task": {"side": "ours", "model": model, "events": events}, "events": events, **values}


def test_growth_is_the_slope_between_the_two_largest(report):
    rows = [grown("m", 10**n, seconds=s) for n, s in ((5, 9.0), (6, 2.0), (7, 20.0))]
    rows += [grown("m", 10**8, error="killed"), grown("one", 10, seconds=1.0)]
    assert report.exponents(rows) == {"m": pytest.approx(1.0)}


def test_goals_are_passed_missed_or_not_measured(report):
    growth, memory, beside = report.goals([])
    assert {report.goals([])[goal] for goal in (growth, memory, beside)} <= {"not measured", "not measured: "}
    fast = [row("ours", "bpr", seconds=1.0), row("recbole", "bpr", seconds=2.0)]
    slow = [row("ours", "ngcf", seconds=3.0), row("recbole", "ngcf", seconds=2.0)]
    big = [row("ours", "wrmf", "gowalla", seconds=1.0) | {"peak_mb": 6600.0}]
    steep = [grown("m", 10**5, seconds=1.0), grown("m", 10**6, seconds=40.0)]
    assert report.goals(fast)[beside].startswith("passed: bpr (ml-100k) 2.00x")
    assert report.goals(fast + slow)[beside] == "missed: ngcf (ml-100k) 0.67x"
    assert report.goals(fast + big)[memory] == "missed: 6.15 GiB"
    assert report.goals(steep)[growth] == "missed: m 1.60"
    failed = [row("ours", "bpr", error="killed"), row("recbole", "bpr", seconds=2.0)]
    assert report.goals(failed)[beside].startswith("not measured")


def test_rows_that_are_there_are_not_measured_again(benchmark, tmp_path, monkeypatch, capsys):
    asked = []

    def worker(script, task, core, seconds):
        asked.append(task)
        if task["model"] == "als" and len(asked) < 3:
            return {"error": "killed"}
        return {"seconds": 1.0, "peak_mb": 50.0, "compile_seconds": 0.1, "source": "real", "clock": "cpu"}

    monkeypatch.setattr(benchmark.apart, "worker", worker)
    monkeypatch.setattr(benchmark.training_report, "figure", lambda rows, path: None)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)  # as without implicit
    options = benchmark.Options(models=["bpr", "als"], sizes=["ml-100k"], growth=False, out=tmp_path)
    benchmark.main(options)
    assert [task["model"] for task in asked] == ["bpr", "als"]
    benchmark.main(options)  # what failed is tried again, what is there is not
    assert [task["model"] for task in asked[2:]] == ["als"]
    options.again = True
    benchmark.main(options)
    assert len(asked) == 5
    assert len(json.loads((tmp_path / "training.json").read_text())["rows"]) == 2
    assert "not measured" in capsys.readouterr().out


def test_drawn_data_have_the_size_they_say(benchmark):
    train, source = benchmark.apart.events_of({"events": 20_000}, "implicit")
    assert source == "drawn"
    assert abs(int(train.count) - 20_000) < 2_000
    assert (train.users, train.items) == (200, 1020)
    assert benchmark.apart.of_track(train, "explicit").track == "explicit"
    assert benchmark.apart.of_track(train, "sequence").track == "sequence"


def test_recbole_is_asked_for_the_same_sizes(benchmark):
    settings = {model: benchmark.recbole_settings(model) for model in benchmark.RECBOLE}
    assert settings["ngcf"]["hidden_size_list"] == [64, 64, 64]
    assert settings["bpr"] == {"train_batch_size": 2048, "embedding_size": 64}
    assert settings["neumf"]["train_batch_size"] == 2 * 2048  # rows: a click and its negative
    assert settings["multvae"]["latent_dimension"] == 2 * 200  # mean and variance


@pytest.mark.slow
@pytest.mark.parametrize("model", ["wrmf", "bpr"])
def test_a_measurement(benchmark, model):
    found = benchmark.apart.worker("training.py", {"side": "ours", "model": model, "events": 3000}, 0, 120)
    assert "error" not in found, found
    assert found["events"] > 2000
    assert 0 < found["seconds"] < 60
    assert found["peak_mb"] >= found["data_mb"] > 0


@pytest.mark.slow
def test_a_failed_measurement_is_told(benchmark):
    found = benchmark.apart.worker(
        "training.py", {"side": "ours", "model": "nonsense", "events": 1000}, 0, 120
    )
    assert "nonsense" in found["error"]
    assert (
        "took more than"
        in benchmark.apart.worker("training.py", {"side": "ours", "model": "bpr", "events": 10}, 0, 0.1)[
            "error"
        ]
    )
