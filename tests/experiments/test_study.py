"""A study runs what is missing, stops when the time is up, and says what is left."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.record import Record, Records
from experiments.study import Expectation, Report, Study, work

ROOT = Path(__file__).resolve().parents[2]


def study(ran, seconds=0.0):
    import time

    def run(spec):
        time.sleep(seconds)
        ran.append(spec["seed"])
        return {"value": spec["seed"] ** 2}

    cells = lambda quick: [{"study": "squares", "seed": seed} for seed in range(2 if quick else 5)]
    return Study("squares", "squares", cells, run, lambda records, folder: Report("", [], [], [], []), (1, 1))


def test_only_what_is_missing(tmp_path):
    ran, said = [], []
    records = Records(tmp_path)
    assert work(study(ran), records, quick=True, hours=None, say=said.append) == 0
    assert work(study(ran), records, quick=False, hours=None, say=said.append) == 0
    assert ran == [0, 1, 2, 3, 4]
    assert "5 cells, 2 done before" in "\n".join(said)
    assert [record.result["value"] for record in records.select(seed=4)] == [16]


def test_time_is_up(tmp_path):
    ran, said = [], []
    made = study(ran, 0.05)._replace(minutes=(5 * 0.05 / 60, 1))  # what the first cell is expected to take
    left = work(made, Records(tmp_path), quick=False, hours=0.12 / 3600, say=said.append)
    assert 0 < left < 5
    assert len(ran) + left == 5
    assert "time is up" in said[-1]


def test_cells_by_their_values_and_once_more(tmp_path):
    ran, said = [], []
    records = Records(tmp_path)
    assert work(study(ran), records, quick=False, hours=None, say=said.append, only={"seed": "3"}) == 0
    assert work(study(ran), records, quick=False, hours=None, say=said.append, only={"seed": "3"}) == 0
    assert ran == [3]
    work(study(ran), records, quick=False, hours=None, say=said.append, only={"seed": "3"}, again=True)
    assert ran == [3, 3]
    with pytest.raises(ValueError, match="no such cell; seed has 0, 1, 2, 3, 4"):
        work(study(ran), records, quick=False, hours=None, say=said.append, only={"seed": "9"})


def test_the_cells_of_a_twin_are_copied_with_where_they_ran(tmp_path):
    """From the records beside these, unless asked to run again; what the twin lacks is run."""
    ran, said = [], []
    records, twin = Records(tmp_path / "squares"), Records(tmp_path / "squares-too")
    twin.put({"study": "squares-too", "seed": 3}, {"value": -1}, seconds=77.0)
    made = study(ran)._replace(twins=("squares-too",))
    assert work(made, records, quick=False, hours=None, say=said.append) == 0
    assert ran == [0, 1, 2, 4]
    copied = records.get({"study": "squares", "seed": 3})
    assert copied.result == {"value": -1}
    assert (copied.about["seconds"], copied.about["copied_from"]) == (77.0, "squares-too")
    assert "seed=3: as in squares-too" in said
    work(made, records, quick=False, hours=None, say=said.append, only={"seed": "3"}, again=True)
    assert records.get({"study": "squares", "seed": 3}).result == {"value": 9}
    assert ran[-1] == 3


def test_what_a_cell_will_take():
    record = lambda seconds, **spec: Record({"study": "s", **spec}, {}, {"seconds": seconds})
    records = [record(1.0, how="a", seed=0), record(3.0, how="a", seed=1), record(50.0, how="b", seed=0)]
    assert Expectation(records, 9.0)({"study": "s", "how": "a", "seed": 7}) == 2.0
    assert Expectation(records, 9.0)({"study": "s", "how": "c", "seed": 0}) == 3.0
    assert Expectation([], 9.0)({"study": "s", "how": "c", "seed": 0}) == 9.0


WORKER = """
import sys, time
from experiments.record import Records
from experiments.study import Report, Study, work

def run(spec):
    time.sleep(0.2)
    with open(sys.argv[2], "a") as file:
        file.write(f"{spec['seed']}\\n")
    return {"value": spec["seed"]}

cells = lambda quick: [{"study": "s", "seed": seed} for seed in range(6)]
work(Study("s", "", cells, run, None, (1, 1)), Records(sys.argv[1]), quick=False, hours=None, say=print)
"""


def test_two_workers_double_nothing_and_a_killed_one_loses_nothing(tmp_path):
    folder, log = tmp_path / "records", tmp_path / "log"
    command = [sys.executable, "-c", WORKER, str(folder), str(log)]
    first, second = (subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2))
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert second.wait(timeout=60) == 0
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True).returncode == 0
    ran = sorted(log.read_text().split())
    assert sorted(set(ran)) == list("012345")
    assert len(ran) <= 7  # the cell that was killed may have written its line
    assert sorted(record.spec["seed"] for record in Records(folder)) == list(range(6))


def test_every_study_lists_its_cells():
    from experiments.papers import STUDIES

    for name, made in STUDIES.items():
        full, quick = made.cells(False), made.cells(True)
        assert all(spec["study"] == name for spec in full + quick)
        assert 0 < len(quick) < len(full)
        assert len({Records("x").path(spec) for spec in full}) == len(full)
