"""The page of a study from its records: what it says of cells that are missing, and tables for who looks closer."""

from experiments import pages, report
from experiments.record import Records
from experiments.study import Report, Study


def cells(quick):
    return [{"study": "heights", "seed": seed} for seed in range(1 if quick else 3)]


def told(records, folder):
    rows = [[str(r.spec["seed"]), str(r.result["height"])] for r in records]
    further = [report.Table("By foot", ["seed", "feet"], [[row[0], "6"] for row in rows])]
    return Report("Heights", ["seed", "height"], rows, ["a note"], [], further)


STUDY = Study("heights", "how high", cells, lambda spec: {"height": 2}, told, (1, 1))


def test_a_page_says_what_there_is_and_what_is_missing(tmp_path):
    records = Records(tmp_path / "heights")
    assert pages.write(STUDY, records, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()
    for spec in cells(False)[:2]:
        records.put(spec, {"height": 2})
    records.put({"study": "heights", "seed": 9}, {"height": 7})  # of no cell that is wanted
    made = pages.write(STUDY, records, tmp_path / "out")
    assert made is not None
    assert (made.done, made.wanted) == (2, 3)
    assert made.report.notes[-1] == "without a record: seed: 2 1 of 1"
    text = made.path.read_text()
    assert text.startswith(
        "# Heights (partial: 2 of 3 cells)\n\n| seed | height |\n|---|---|\n| 0 | 2 |\n| 1 | 2 |\n"
    )
    assert "## By foot\n\n| seed | feet |\n|---|---|\n| 0 | 6 |\n| 1 | 6 |\n" in text
    assert text.endswith("Made by `python scripts/reproduce.py heights` from 2 records.\n")
    records.put(cells(False)[2], {"height": 2})
    whole = pages.write(STUDY, records, tmp_path / "out")
    assert whole is not None
    assert whole.title == "Heights"
    quick = pages.write(STUDY, records, tmp_path / "quick", quick=True)
    assert quick is not None
    assert quick.title == "Heights (partial: 1 of 1 cells)"
