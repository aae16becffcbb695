"""make_report.py: pages of the studies that have records, from these alone."""

import pytest

from experiments.papers import STUDIES
from experiments.record import Records
from experiments.study import Report, Study


def cells(quick):
    return [{"study": "heights", "seed": seed} for seed in range(3)]


STUDY = Study(
    "heights",
    "how high",
    cells,
    lambda spec: {"height": 2},
    lambda records, folder: Report("Heights", ["seed"], [[str(r.spec["seed"])] for r in records], [], []),
    (1, 1),
)


def test_all_pages_at_once(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STUDIES, "heights", STUDY)
    records = Records(tmp_path / "records" / "heights")
    where = {"records": tmp_path / "records", "out": tmp_path / "out", "quiet": True}
    with pytest.raises(ValueError, match=r"none of heights, clean has records in"):
        script("make_report").main(["heights", "clean"], **where)
    with pytest.raises(ValueError, match="no study 'height'; did you mean 'heights'"):
        script("make_report").main(["height"], **where)
    records.put(cells(True)[0], {"height": 2})
    script("make_report").main([], **where)
    shown = capsys.readouterr().out
    assert "1 of 3" in shown
    assert shown.count("no records") == len(STUDIES) - 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["heights.md"]
