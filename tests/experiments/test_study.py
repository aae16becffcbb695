"""A study runs what is missing, stops when the time is up, and says what is left."""

from experiments.record import Records
from experiments.study import Report, Study, work


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
    left = work(study(ran, 0.05), Records(tmp_path), quick=False, hours=0.12 / 3600, say=said.append)
    assert 0 < left < 5
    assert len(ran) + left == 5
    assert "time is up" in said[-1]


def test_every_study_lists_its_cells():
    from experiments.papers import STUDIES

    for name, made in STUDIES.items():
        full, quick = made.cells(False), made.cells(True)
        assert all(spec["study"] == name for spec in full + quick)
        assert 0 < len(quick) < len(full)
        assert len({Records("x").path(spec) for spec in full}) == len(full)
