"""Studies of APT: tables from records only, and the order of the cells (golden values: defenses/test_apt_golden.py)."""

from pathlib import Path

import numpy as np
import pytest

from experiments.papers import STUDIES, apt, apt_figs, apt_tables
from experiments.record import Record

LEVEL = {"none": 0.5, "at": 0.4, "pcmf": 0.3, "apt-rand": 0.2, "apt": 0.05, "apt-own": 0.45}


def record(spec) -> Record:
    """Target HR by defense, .1 without an attack; seeds differ in thousandths."""
    value = 0.1 if spec["attack"] == "none" else LEVEL.get(spec["defense"], 0.25)
    noise = np.random.default_rng(len(str(spec))).normal(size=spec["seeds"]) / 1000
    found = {"hr_mean": (value + noise).tolist(), "hr_any": [value] * spec["seeds"]}
    found |= {"hr_test": (0.2 + noise).tolist(), "rank_shift": [-90.0, -50.0, -20.0, 0.0, 5.0]}
    return Record(spec, {**found, "train_seconds": 20.0, "notes": ["a note"]}, {"seconds": 30.0})


def test_table2_stands_beside_the_published_one(tmp_path):
    made = STUDIES["apt-table2"].report([record(spec) for spec in apt_tables.cells(False)], tmp_path)
    row = next(r for r in made.rows if r[:3] == ["ml-100k", "unpopular", "average"])
    cells = dict(zip(made.header, row, strict=True))
    assert cells["none"].startswith("0.5")
    assert cells["none"].endswith("/ 0.9292")
    assert cells["apt"].endswith("/ 0.0009")
    assert "/" not in cells["apt-own"]
    assert "/" not in cells["pcmf-centered"]
    assert cells["origin"].endswith("/ 0.0000")
    notes = "\n".join(made.notes)
    assert "RI, unpopular targets, apt: 1.1" in notes  # 1 - (.05 - .1) / (.5 - .1) = 1.125
    assert "published 0.873 (mean over 20 cells that all columns have)" in notes
    assert "ml-100k, average, random: distance from the clean model, apt 0.05" in notes
    assert "nearest other (apt-rand) 0.1" in notes
    assert "nearest other (apt-rand-own) 0.1" in notes
    assert all(Path(picture).stat().st_size > 1000 for picture in made.pictures)


def test_the_mean_ri_is_over_cells_that_all_columns_have(tmp_path):
    found = [
        record(spec)
        for spec in apt_tables.cells(False)
        if spec["data"] == "ml-100k" and (spec["attack"], spec["defense"]) != ("random", "apt")
    ]
    made = STUDIES["apt-table2"].report(found, tmp_path)
    of = [note for note in made.notes if note.startswith("RI, ")]
    assert len(of) == 2 * (len(apt.DEFENSES) - 1)
    assert all("(mean over 4 cells" in note for note in of)


def test_table3_compares_with_the_clean_model(tmp_path):
    found = [record(spec) for spec in apt_tables.cells(False, "apt-table3")]
    made = STUDIES["apt-table3"].report(found, tmp_path)
    assert "apt - clean = " in "\n".join(made.notes)
    row = next(r for r in made.rows if r[:3] == ["ml-100k", "random", "average"])
    assert row[made.header.index("apt")].endswith("/ 0.2201")


def test_cells_are_told_apart_and_the_small_data_come_first():
    for study in ("apt-table2", "apt-table3", "apt-ablation", "apt-figs"):
        cells = STUDIES[study].cells(False)
        assert len({str(spec) for spec in cells}) == len(cells)
        assert STUDIES[study].cells(True)[0]["seeds"] == 2
    order = [spec["data"] for spec in apt_tables.cells(False)]
    assert set(order[: order.index("ml-1m")]) == {"ml-100k", "filmtrust"}


def test_ablation_and_figures(tmp_path):
    found = [record(spec) for spec in apt_figs.ablation_cells(False)]
    made = STUDIES["apt-ablation"].report(found, tmp_path)
    row = next(r for r in made.rows if r[:3] == ["ml-100k", "random", "apt-identity"])
    assert row[-2].startswith("+0.2")
    made = STUDIES["apt-figs"].report([record(spec) for spec in apt_figs.figs_cells(False)], tmp_path)
    row = next(r for r in made.rows if r[:5] == ["size", "ml-100k", "random", "apt", "3%"])
    assert float(row[-1]) == pytest.approx(1.125, abs=0.01)
    assert made.pictures[0].exists()
