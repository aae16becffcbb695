"""The benchmark of attacks: what its rows say, what is measured, and that a measurement works in its own process."""

import json

import pytest


def craft(attack, seconds, **task):
    return {"task": {"attack": attack, **task}, "seconds": seconds, "peak_mb": 1.0, "clock": "cpu"}


def step(design, items, seconds):
    return {"task": {"tree": design, "items": items}, "step_seconds": seconds, "peak_mb": 1.0}


def test_growth_is_the_slope_at_the_shared_value_of_the_other(benchmark):
    rows = [craft("a", s, fakes=n, items=1000) for n, s in ((8, 7.0), (32, 1.0), (128, 4.0))]
    rows += [craft("a", s, fakes=32, items=n) for n, s in ((4000, 1.0), (16_000, 16.0))]
    assert benchmark.attacks_report.exponents(rows, "fakes") == {"a": pytest.approx(1.0)}
    assert benchmark.attacks_report.exponents(rows, "items") == {"a": pytest.approx(2.0)}
    assert benchmark.attacks_report.growth(rows, "items") == {"a": [(1000, 1.0), (4000, 1.0), (16_000, 16.0)]}


def test_the_tree_beside_the_paper_and_the_goal_of_rapu_r(benchmark):
    rows = [step("plain", 3000, 6.0), step("bcbt-popular", 3000, 2.0), step("plain", 30_000, 9.0)]
    rows += [craft("revadv", 30.0, size="ml-100k"), craft("rapu-r", 2.0, size="ml-100k")]
    rows += [craft("revadv", 9.0, size="gowalla"), craft("rapu-r", 1.0, size="gowalla")]
    rows += [{"task": {"attack": "srwa", "size": "gowalla"}, "error": "killed"}]
    said = "\n".join(benchmark.attacks_report.said(rows))
    assert "3,000 items: one softmax takes 3.00x the tree's seconds a step (paper 1.37x)" in said
    assert "30,000" not in said
    assert "ml-100k: passed: 15.0x" in said
    assert "gowalla: missed: 9.0x" in said


def test_every_attack_of_the_list_is_one_and_is_measured_once(benchmark):
    tasks = benchmark.tasks(benchmark.Options())
    assert len({json.dumps(task) for task in tasks}) == len(tasks)
    for name in benchmark.ATTACKS:
        assert benchmark.attack_of({"attack": name, "size": "ml-100k"}).threat is not None


@pytest.mark.slow
def test_a_craft_is_measured_in_a_process_of_its_own(benchmark):
    task = {"attack": "covis", "fakes": 2, "items": 300}
    found = benchmark.apart.worker("attacks.py", task, 0, 240)
    assert "error" not in found, found
    assert found["fakes"] == 2
    assert found["seconds"] > 0
