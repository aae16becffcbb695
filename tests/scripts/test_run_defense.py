"""The command line of defenses: a file in; a row a defense, records that are not made twice, clear errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import campaign, names
from models.data import Profiles
from models.mf import mf

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "run_defense.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    rng = np.random.default_rng(0)
    cells = np.argwhere(rng.random((30, 15)) < 0.5)
    lines = [f"u{user},i{item},{rng.integers(1, 6)}" for user, item in cells]
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    path.write_text("\n".join(["user,item,rating", *lines]) + "\n")
    model = ["--model", "mf,epochs=4,factors=3,batch=None", "--k", "5"]
    return ["--data", str(path), "--track", "explicit", "--split", "one", *model]


ATTACK = ["--targets", "i1,i2", "--attack", "average", "--fakes", "4", "--budget", "3"]


def saved(path, targets, value=5.0):
    """Four fake users who rate the first targets and item 4."""
    rows = np.zeros((4, 15))
    rows[:, [*targets, 4]] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Profiles.from_rows(rows, targets, track="explicit").save(path)
    return ["--profiles", str(path)]


def test_a_row_a_defense(inside, ratings, tmp_path, capsys):
    """APT's helpful users are chosen by influence, those of its control, which has a preset here, at random."""
    few = "users=3,items=4,pretrain=2,every=2,references=3,solver=identity"
    chosen = ["none", "filter:rdma,level=0.1", f"apt,{few}", f"apt-rand:ml-100k,{few}"]
    inside(*ratings, *ATTACK, "--defense", *chosen, "--out", str(tmp_path), "--quiet")
    (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
    found = record["result"]["defenses"]
    assert list(found) == chosen
    values = [
        [value for at in ("clean", "attacked") for value in found[name][at].values()] for name in chosen
    ]
    assert all(0 <= found[name]["attacked"]["hr_any"] <= 1 for name in chosen)
    assert len({tuple(row) for row in values}) == len(chosen)  # no two defenses give the same models
    assert (tmp_path / "table.md").read_text().count("\n| ") == len(chosen)
    assert (tmp_path / "figure.png").exists()
    assert "RI" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "grid", "bonus", "selection"),
    [
        ("apt:filmtrust", (8.0, 1.0), 2.0, "influence"),  # as published, on eight levels
        ("apt:filmtrust", (5.0, 1.0), 1.25, "influence"),
        ("apt:ml-100k", (10.0, 2.0), 2.0, "influence"),
        ("apt-rand:yelp", (10.0, 1.0), 2.0, "random"),
        ("apt:filmtrust,bonus=0.5", (5.0, 1.0), 0.5, "influence"),
        ("apt:filmtrust", None, 2.0, "influence"),  # of clicks, where it is of no effect
        ("apt", (10.0, 1.0), 1.0, "influence"),
    ],
)
def test_the_bonus_of_a_preset_keeps_its_share_of_the_largest_rating(text, grid, bonus, selection):
    helpers = names.defense(text, mf(), grid).hardened.helpers
    assert (helpers.bonus, helpers.grid, helpers.selection) == (bonus, grid, selection)
    assert helpers.temperature == 20.0 + 20 * ("film" in text) - 10 * ("yelp" in text)


def test_saved_fake_users_are_judged_by_their_own_targets_and_told_apart_by_what_they_hold(
    inside, ratings, tmp_path
):
    """Two files of one name are two repetitions; the table names the file, and no attack."""
    asked = [*ratings, "--defense", "none", "--out", str(tmp_path), "--quiet"]
    told = []
    for number, targets in enumerate(([2], [8, 9])):
        inside(*asked, *saved(tmp_path / str(number) / "made.npz", targets))
        (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
        told.append(record["result"])
    assert [result["targets"] for result in told] == [[2], [8, 9]]
    assert len(list((tmp_path / "records").glob("*.json"))) == 2
    text = (tmp_path / "table.md").read_text()
    assert "fake users of the file made.npz" in text
    assert "attack random" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--attack", "average"], "--attack: no attack is run beside --profiles"),
        (["--fakes", "4", "--budget", "3"], "--fakes, --budget: no attack is run beside --profiles"),
        (["--knows"], "--knows: no attack is run beside --profiles"),
        (["--targets", "i1,i2"], "was made for the targets [2]"),
    ],
)
def test_what_saved_fake_users_contradict_is_an_error(inside, ratings, tmp_path, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        inside(*ratings, *saved(tmp_path / "made.npz", [2]), *given, "--out", str(tmp_path), "--quiet")


def test_the_toy_data_are_those_of_another_command(inside, tmp_path):
    with pytest.raises(ValueError, match="made on the spot by run_attack"):
        inside("--data", "toy", "--model", "wrmf", "--out", str(tmp_path), "--quiet")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    cells = np.argwhere(np.random.default_rng(0).random((30, 15)) < 0.5)
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    path.write_text("\n".join(["user,item", *(f"u{user},i{item}" for user, item in cells)]) + "\n")
    learned = [
        "--attack",
        "revadv,projection=topk,steps=4",
        "--surrogate",
        "wrmf,factors=3,epochs=8,learning_rate=0.1",
        "--knows",
    ]
    asked = ["--targets", "i13,i14", "--fakes", "4", "--budget", "3", "--k", "5", "--quiet"]
    return ["--data", str(path), *asked, *learned]


def test_who_knows_a_defense_has_fake_users_of_its_own(inside, clicks, tmp_path, monkeypatch):
    """Those of one who knows it click the targets, the others do not; the victim counts clicks."""
    asked, started = [], []

    def craft(plan, case, spec, out, stem, **how):
        surrogate = plan.attack.config["surrogate"]
        asked.append((surrogate.name, stem, dict(surrogate.config), spec.get("against")))
        started.append(plan.attack.config["initial"])
        rows = np.zeros((4, 15))
        rows[:, np.asarray(case.targets) if surrogate.name.startswith("filtered") else [0, 1]] = 1
        return SimpleNamespace(profiles=Profiles.from_rows(rows, case.targets), history={}, seconds=0.0)

    monkeypatch.setattr(campaign, "craft", craft)
    one, other = "filter:duplicate,level=0", "filter:knn,level=0"
    inside(*clicks, "--model", "itempop", "--defense", "none", one, other, "--out", str(tmp_path))
    assert [name for name, *_ in asked] == ["wrmf", "filtered-wrmf", "filtered-wrmf"]
    assert [against for *_, against in asked] == [None, one, other]
    assert len({stem for _, stem, *_ in asked}) == 3
    blind = np.zeros((4, 15))
    blind[:, [0, 1]] = 1
    assert started[0] == "random_users"
    assert [np.array_equal(rows, blind) for rows in started[1:]] == [False, False]  # equal rows: others pass
    assert asked[1][2]["cut"] != asked[2][2]["cut"]
    (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
    assert record["spec"]["knows"] == [one, other]
    facts = record["spec"]["defenses"][one]
    assert (facts["name"], facts["detector"], facts["space"]) == ("itempop", "duplicate", "clicks")
    found = record["result"]["defenses"]
    assert [set(found[name]) - {"clean", "attacked"} for name in found] == [set(), {"known"}, {"known"}]
    for name in (one, other):
        assert found[name]["known"]["hr_any"] > found[name]["attacked"]["hr_any"]
        assert found[name]["known"]["clicks"] == 2
    rows = (tmp_path / "table.md").read_text().splitlines()
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows[:5]}
    assert cells["defense"][2:6] == ["attacked", "known", "RI", "RI, known"]
    assert cells["none"][2] == cells["none"][3] == cells[one][2] != cells[one][3]


@pytest.mark.slow
def test_fake_users_of_one_who_knows_are_learned_behind_every_defense(inside, clicks, tmp_path):
    few = "users=3,items=4,pretrain=2,every=2,references=3,solver=identity"
    chosen = ["none", "at,epsilon=0.5", f"apt,{few}"]
    model = ["--model", "wrmf,factors=3,epochs=8,learning_rate=0.1"]
    inside(*clicks, *model, "--defense", *chosen, "--out", str(tmp_path))
    (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
    found = record["result"]["defenses"]
    assert all(0 <= found[name]["known"]["hr_any"] <= 1 for name in chosen[1:])
    rows = [Profiles.load(file)[0].to_rows() for file in (tmp_path / "profiles").glob("*.npz")]
    assert len(rows) == len(chosen)
    assert any((other != rows[0]).any() for other in rows[1:])


@pytest.mark.slow
def test_the_same_command_continues(ratings, tmp_path):
    asked = [
        "--defense",
        "none",
        "--defense",
        "at",
        "--defense",
        "pcmf,rank=2,fills=2",
        "--out",
        str(tmp_path),
    ]
    run(*ratings, *ATTACK, *asked)
    before = {file.name: file.read_bytes() for file in (tmp_path / "records").glob("*.json")}
    assert "done before" in run(*ratings, *ATTACK, *asked).stderr
    assert {file.name: file.read_bytes() for file in (tmp_path / "records").glob("*.json")} == before


def test_pcmf_is_what_the_studies_of_apt_call_so():
    assert names.defense("pcmf", mf()).hardened.config["center"] is False
    assert names.defense("pcmf,center=True,rank=3", mf()).hardened.config["center"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filter:knn,space=here", "expected one of clicks, victim"),
        ("filter:rdma,space=victim", "has no use for space=victim; lof, knn have"),
        ("atp", "did you mean 'a"),
        ("filter:rdna", "did you mean 'rdma'"),
        ("at:ml-100k", "has no presets"),
        ("apt:ml-100", "did you mean 'ml-100k'"),
        ("apt,itms=3", "did you mean 'items'"),
    ],
)
def test_bad_defenses(text, message):
    with pytest.raises(ValueError, match=message):
        names.defense(text, mf(), (5.0, 1.0))
