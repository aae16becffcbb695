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
    sentence = next(note for note in made.notes if note.startswith("ml-100k, random targets: "))
    assert "minus with the plain gradient, with ratings of before the attack -0.2" in sentence
    assert sentence.count("the inverse lets less of the attack through") == 1
    assert "with own ratings +0.2" in sentence
    assert "the inverse lets more of the attack through" in sentence
    made = STUDIES["apt-figs"].report([record(spec) for spec in apt_figs.figs_cells(False)], tmp_path)
    row = next(r for r in made.rows if r[:6] == ["size", "ml-100k", "average", "random", "apt", "3%"])
    assert float(row[-1]) == pytest.approx(1.125, abs=0.01)
    assert made.pictures[0].exists()


def test_equal_inverses_are_undecided(tmp_path):
    found = [record(spec) for spec in apt_figs.ablation_cells(False) if spec["data"] == "filmtrust"]
    for one in found:
        one.result["hr_mean"] = [0.1 + seed / 100 for seed in range(one.spec["seeds"])]
    notes = STUDIES["apt-ablation"].report(found, tmp_path).notes
    assert "before the attack +0.0000 (10 seeds, all differences equal): undecided" in notes[1]
    assert len([note for note in notes if "minus with the plain gradient" in note]) == len(apt.KINDS)


def test_helpers_are_judged_by_the_undefended_model_at_the_usual_attack_size(tmp_path):
    cells = [spec for spec in apt_figs.figs_cells(False) if spec["data"] in ("filmtrust", "yelp")]
    found = [record(spec) for spec in cells]
    for one in found:  # clean .1, attacked .5 at the usual size, and .9 elsewhere; defended .05
        if one.spec["defense"] == "none" and one.spec.get("size") not in (
            None,
            apt.WORLDS[one.spec["data"]].size,
        ):
            one.result["hr_mean"] = [0.9] * one.spec["seeds"]
    made = STUDIES["apt-figs"].report(found, tmp_path)
    for data, attack in (("filmtrust", "average"), ("yelp", "aush")):
        rows = [r for r in made.rows if r[:5] == ["helpers", data, attack, "unpopular", "apt"]]
        assert len(rows) == len(apt_figs.HELPERS)
        assert [float(r[-1]) for r in rows] == pytest.approx([1.125] * len(rows), abs=0.01)
    assert "RI waits" not in "\n".join(made.notes)
    few = [r for r in found if r.spec.get("size") != 0.03]
    notes = STUDIES["apt-figs"].report(few, tmp_path).notes
    assert notes[-1].startswith(
        "RI waits for an undefended or a clean cell: helpers, filmtrust, aush, unpopular"
    )
    assert "yelp" not in notes[-1]


def test_the_figures_begin_with_average_on_the_small_data():
    cells = apt_figs.figs_cells(False)
    kinds = [
        (spec["data"] in apt_figs.LARGE, spec["attack"] == "aush")
        for spec in cells
        if spec["attack"] != "none"
    ]
    assert kinds == sorted(kinds)
    assert {spec["data"] for spec in cells} == set(apt.WORLDS)
