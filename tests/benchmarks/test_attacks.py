"""The benchmark of attacks: what its rows say, what is measured, and that a measurement works in its own process."""

import inspect
import json
from pathlib import Path

import pytest

import attacks
from attacks.pgm import Pgm


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


def test_an_iteration_of_em_is_the_difference_of_two_crafts(benchmark):
    rows = [craft("rapu-g", 100.0, size="gowalla", em=1), craft("rapu-g", 140.0, size="gowalla", em=3)]
    (told,) = benchmark.attacks_report.em(rows)
    assert told.startswith(
        "RAPU-G, gowalla: 100 s a craft where every EM ends after 1, and 20 s with each further"
    )
    assert told.endswith("iteration; if all of them made the 50 they may make, 1,080 s")
    assert Pgm().iterations == benchmark.attacks_report.MOST
    assert benchmark.attacks_report.em(rows[:1]) == []
    assert "gowalla" not in benchmark.attacks_report.crafts([*rows, craft("rapu-g", 7.0, size="ml-100k")])
    cut = [task["em"] for task in benchmark.tasks(benchmark.Options()) if "em" in task]
    assert cut == list(benchmark.ITERATIONS)
    few, many = (benchmark.attack_of({"attack": "rapu-g", "size": "gowalla", "em": n}).config for n in cut)
    assert few != many


def test_growth_beside_the_complexities_that_are_printed(benchmark):
    """Of RAPU-R's |U'| |I| both exponents are 1; the fake users are few among those of |theta|."""
    rows = [
        craft(name, s, fakes=n, items=1000) for name in ("rapu-r", "revadv") for n, s in ((8, 1.0), (32, 2.0))
    ]
    rows += [craft("rapu-r", 8.0, fakes=32, items=4000), craft("rapu-g", 1.0, fakes=32, items=1000)]
    told = benchmark.attacks_report.complexities(rows)
    assert told == [
        "RAPU's Table 1, rapu-r, O(|U'| |I|): exponent of fakes 0.50 (printed: 1.00), of items 1.00 (printed: 1.00)",
        "RAPU's Table 1, revadv, O(T tau |theta|): exponent of fakes 0.50 (printed: 0.01)",
    ]
    assert set(told) < set(benchmark.attacks_report.said(rows))


def test_the_page_has_the_growth_of_the_rows(benchmark):
    """Each attack's row of the table: what is printed for it and what was measured, of the fakes and of the items."""
    rows = json.loads((benchmark.HERE / "results" / "attacks.json").read_text())["rows"]
    report, text = benchmark.attacks_report, (benchmark.HERE / "README.md").read_text().lower()
    text = text[text.index("| attack | printed |") :]  # the table of crafts comes before
    for name in report.exponents(rows, "fakes"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        cells = line.replace("\\|", "").split("|")[3:7]
        for (paper, found), over in zip((cells[:2], cells[2:]), ("fakes", "items")):
            told = report.printed(rows, name, over) if name in report.COMPLEXITIES else []
            assert paper.strip() == ", ".join(f"{value:.2f}" for value in told)
            assert found.strip() == f"{report.exponents(rows, over)[name]:.2f}"


def test_every_attack_is_measured_once(benchmark):
    tasks = benchmark.tasks(benchmark.Options())
    assert len({json.dumps(task) for task in tasks}) == len(tasks)
    sizes = [
        [task["attack"] for task in tasks if task.get("size") == size and "em" not in task]
        for size in ("ml-100k", "gowalla")
    ]
    assert sizes == [list(benchmark.ATTACKS)] * 2
    made = {benchmark.attack_of({"attack": name, "size": "ml-100k"}).name for name in benchmark.ATTACKS}
    functions = (getattr(attacks, name) for name in attacks.__all__ if name != "revadv_preset")
    returns = {f.__name__: f.__annotations__["return"] for f in functions if inspect.isfunction(f)}
    assert made == {name for name, found in returns.items() if found == "Attack"}


@pytest.mark.slow
def test_a_craft_is_measured_in_a_process_of_its_own(benchmark):
    task = {"attack": "covis", "fakes": 2, "items": 300}
    found = benchmark.apart.worker("attacks.py", task, 0, 240)
    assert "error" not in found, found
    assert found["fakes"] == 2
    assert found["seconds"] > 0


def test_the_table_of_crafts_is_that_of_the_record(benchmark):
    """Nothing is typed in: the README's table is what the report makes of the committed run."""
    folder = Path(benchmark.attacks_report.__file__).parent
    rows = json.loads((folder / "results" / "attacks.json").read_text())["rows"]
    assert benchmark.attacks_report.crafts(rows) in (folder / "README.md").read_text()
