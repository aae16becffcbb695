"""Commands as people type them: what is documented parses, mistakes end before any work and in terms of options."""

import importlib.util
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tyro

import attacks
from attacks import random
from experiments import campaign, defended, names, outcome
from experiments.campaign import Campaign
from experiments.reading import plainly
from experiments.record import Record
from models.data import Profiles
from models.itempop import itempop

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("run_attack", "run_defense", "run_detect", "run_explain", "run_training")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


MODULES = {name: load(name) for name in (*SCRIPTS, "demo")}


def documented():
    """Every command for one of the scripts, in the README and in the scripts' own words."""
    texts = [(ROOT / "README.md").read_text(), MODULES["demo"].MOVIELENS]
    texts += [MODULES[name].__doc__ for name in SCRIPTS]
    for text in texts:
        for script, rest in re.findall(r"python scripts/(\w+)\.py([^\n`]*)", text.replace("\\\n", " ")):
            if script in SCRIPTS:
                yield script, " ".join(rest.split("#")[0].rstrip(".").split())


@pytest.mark.parametrize(("script", "arguments"), sorted(set(documented())))
def test_a_documented_command_parses(script, arguments):
    tyro.cli(MODULES[script].Options, args=shlex.split(arguments))


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    cells = np.argwhere(np.random.default_rng(0).random((30, 15)) < 0.5)
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    path.write_text("\n".join(["who,what,stars", *(f"u{u},i{i},{1 + (u + i) % 5}" for u, i in cells)]) + "\n")
    return ["--data", str(path), "--user-column", "who", "--item-column", "what", "--rating-column", "stars"]


def main(script, *arguments):
    MODULES[script].main(tyro.cli(MODULES[script].Options, args=[*map(str, arguments), "--quiet"]))


LEARNED = (
    "--attack",
    "revadv",
    "--surrogate",
    "wrmf",
    "--fakes",
    3,
    "--budget",
    2,
    "--k",
    5,
    "--knows",
    "--defense",
)
HEURISTIC = ("--attack", "random", "--fakes", 3, "--budget", 2, "--k", 5)


@pytest.mark.parametrize(
    ("script", "given", "message"),
    [
        ("run_attack", (*HEURISTIC[:-1], 0), "k=0: expected a length of lists of 1 to 15"),
        ("run_attack", (*HEURISTIC[:-1], 16), "k=16: expected a length of lists of 1 to 15"),
        ("run_attack", HEURISTIC[:-2], "k=50: expected a length of lists of 1 to 15"),
        ("run_attack", (*HEURISTIC, "--targets", "i1,i1"), "i1 is given more than once"),
        ("run_attack", (*HEURISTIC, "--targets", "i99"), "no item of clicks.* has this id"),
        ("run_attack", (*HEURISTIC, "--targets", ","), "expected ids"),
        ("run_attack", (*HEURISTIC, "--target-count", 9), "no item .* has this id, and as a set: .*count=9"),
        ("run_attack", (*HEURISTIC, "--block", 0), "--block 0"),
        (
            "run_attack",
            (*HEURISTIC, "--track", "explicit", "--positive-from", 4),
            "--positive-from=4.0 makes clicks",
        ),
        ("run_attack", ("--attack", "poisonrec", "--victim", "itempop", "--k", 5), "give --track sequence"),
        ("run_attack", ("--attack", "tna", "--fakes", 3, "--budget", 2), "expected 'explicit'"),
        ("run_attack", (*HEURISTIC, "--victim", "itempop", "gru4rec,epochs=1"), "give --track sequence"),
        (
            "run_attack",
            (*HEURISTIC, "--track", "explicit", "--victim", "ncr,epochs=1"),
            "leave out --track explicit",
        ),
        (
            "run_attack",
            ("--attack", "hcars", "--surrogate", "wrmf", "--fakes", 3, "--budget", 2),
            "logic of NCR",
        ),
        ("run_defense", ("--k", 5, "--defense", "filter:duplicate,level=5"), "level=5"),
        ("run_defense", ("--k", 5, "--budget", 2, "--defense", "apt"), "items=400; the data have"),
        ("run_defense", ("--k", 16, "--budget", 2), "k=16: expected a length"),
        (
            "run_defense",
            ("--k", 5, "--budget", 2, "--fakes", 3, "--model", "mf"),
            "mf learns .* give --track explicit",
        ),
        ("run_defense", ("--k", 5, "--defense", "apt,items=3,pretrain=100"), "pretrain=100 epochs, but wrmf"),
        ("run_defense", ("--k", 5, "--defense", "pcmf"), "pcmf learns from ratings"),
        (
            "run_defense",
            ("--k", 5, "--model", "itempop", "--defense", "filter:knn,space=victim"),
            "no vector for each",
        ),
        (
            "run_defense",
            ("--k", 5, "--budget", 2, "--fakes", 3, "--knows"),
            "'random' has no training .* revadv, rapu-g have",
        ),
        ("run_defense", (*LEARNED, "none"), "nothing to know of --defense none"),
        ("run_defense", (*LEARNED, "filter:lof"), "knows filter:lof: nobody can differentiate .* filter:knn"),
        ("run_defense", (*LEARNED, "filter:knn,space=victim"), "nobody can differentiate"),
        (
            "run_defense",
            (*LEARNED, "at", "--surrogate", "als"),
            "knows at: adversarial: als is not trained by gradient",
        ),
        ("run_explain", ("--k", 15, "--rank", 1), "expected 1 to 14"),
        ("run_explain", ("--k", 5, "--model", "itempop"), "itempop learns no parameters"),
        ("run_training", ("--k", 16), "k=16: expected a length"),
        ("run_training", ("--k", 5, "--model", "gru4rec"), "give --track sequence"),
        ("run_training", ("--k", 5, "--recommend", "u1", "--count", 16), "k=16: expected a length"),
        ("run_training", ("--k", 5, "--metric", "recall", "--patience", 2), "--metric, --patience: no use"),
    ],
)
def test_a_mistake_ends_before_the_work(clicks, tmp_path, script, given, message):
    own = {"--targets", "--target-count"} & set(given) or script in ("run_explain", "run_training")
    targets = () if own else ("--targets", "i1,i2")
    with pytest.raises((ValueError, TypeError), match=message):
        main(script, *clicks, *targets, *given, "--out", tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_columns_are_found_by_option_and_missing_ones_are_named_as_options(clicks, tmp_path, script):
    with pytest.raises(ValueError, match="--user-column"):
        main(script, *clicks[:2], "--out", tmp_path)
    with pytest.raises(FileNotFoundError, match="did you mean 'ml-100k'"):
        main(script, "--data", "ml100k", "--out", tmp_path)


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match=r"run_attack: .*out"), plainly("run_attack"):
        (tmp_path / "out").mkdir()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["revadv-movielens"], "reproduce: BILEVEL_DATA=.*nowhere is not a folder"),
        (["revadv-movielens", "--report-only"], "reproduce: revadv-movielens has no records in .*r; run it"),
        (["revadv-movielens", "--cell", "seed"], "reproduce: --cell seed: 'seed' is not name=value"),
        (["revadv-movie"], "reproduce: no study 'revadv-movie'; did you mean 'revadv-movielens'"),
    ],
)
def test_a_study_that_cannot_run_ends_in_one_line(tmp_path, monkeypatch, asked, message):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "nowhere"))
    kept = ["--quick", "--records", str(tmp_path / "r"), "--out", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *asked, *kept])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(ROOT / "scripts" / "reproduce.py"), run_name="__main__")


def test_fake_users_of_other_data_are_not_judged(clicks, tmp_path):
    """Numbers of items mean something else there: the names of the targets tell."""
    profiles = Profiles.from_rows(np.eye(2, 15), [3], width=3)
    profiles.save(tmp_path / "made.npz", {"targets": [3], "target_names": ["elsewhere"]})
    with pytest.raises(ValueError, match="for the targets elsewhere, which these data have as i1"):
        main("run_defense", *clicks, "--k", 5, "--profiles", tmp_path / "made.npz", "--out", tmp_path)


def test_fake_users_of_another_split_are_not_judged(clicks, tmp_path):
    main("run_attack", *clicks, *HEURISTIC, "--targets", "i1", "--victim", "itempop", "--out", tmp_path)
    (file,) = (tmp_path / "profiles").glob("*.npz")
    asked = ("--k", 5, "--model", "itempop", "--defense", "none", "--profiles", file, "--out", tmp_path / "d")
    with pytest.raises(ValueError, match="made from the training part of revadv"):
        main("run_defense", *clicks, *asked, "--split", "rapu")
    main("run_defense", *clicks, *asked)
    assert (tmp_path / "d" / "run.json").exists()


def counted(monkeypatch, module, name):
    """How often a function is called from now on, by one item a call."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(
        module, name, lambda *given, **more: (calls.append(name), function(*given, **more))[1]
    )
    return calls


def test_another_victim_or_length_is_judged_with_the_fake_users_there_are(clicks, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "judge", lambda *given, k: {"hr_any": 0.5, "recall": 1 / k})
    crafts, judgments = (counted(monkeypatch, campaign, name) for name in ("craft", "judged"))
    asked = (*clicks, *HEURISTIC[:-2], "--targets", "i1", "--out", tmp_path, "--victim", "itempop")
    for more, expected in [
        (("--k", 5), (1, 1)),
        (("itemcf", "--k", 5), (1, 2)),
        (("--k", 4), (1, 3)),
        (("--k", 5, "--seed", 1), (2, 4)),
    ]:
        main("run_attack", *asked, *more)
        assert (len(crafts), len(judgments)) == expected
        (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
        told = [name for name in ("itempop", "itemcf") if name in ("itempop", *more)]
        assert list(record["result"]["victims"]) == list(record["spec"]["victims"]) == told
        assert record["spec"]["k"] == more[more.index("--k") + 1]
    assert len(list((tmp_path / "profiles").glob("*.npz"))) == 2


def test_another_defense_is_judged_with_the_fake_users_there_are(clicks, tmp_path, monkeypatch):
    crafts, judgments = counted(monkeypatch, campaign, "craft"), counted(monkeypatch, defended, "judged")
    asked = (*clicks, *HEURISTIC, "--targets", "i1", "--model", "itempop", "--out", tmp_path, "--defense")
    filtered = "filter:duplicate,level=0.1"
    for defenses, expected in [(("none",), 1), (("none", filtered), 2), ((filtered,), 2)]:
        main("run_defense", *asked, *defenses)
        assert (len(crafts), len(judgments)) == (1, expected)
        (record,) = json.loads((tmp_path / "run.json").read_text())["records"]
        assert tuple(record["result"]["defenses"]) == tuple(record["spec"]["defenses"]) == defenses
        assert record["result"]["clicks"] == 3


def test_arguments_of_the_black_box_follow_those_of_the_attack():
    given = {"fakes": 2, "environment": itempop()}
    made = names.attack("poisonrec,candidates=7,clicks=4", box={"k": 3}, **given)
    assert (made.config["environment"].config["candidates"], made.config["environment"].config["k"]) == (7, 3)
    assert made.config["clicks"] == 4
    with pytest.raises(ValueError, match="did you mean 'candidates'"):
        names.attack("poisonrec,candidate=7", box={}, **given)


def test_what_attacks_serve_is_found_by_asking_them():
    rows = {row[0]: row for row in names.list_of_attacks()}
    assert set(rows) == set(names.ATTACKS)
    assert all(row[2] for row in rows.values()), "an attack that serves nothing"
    assert rows["revadv"][2] == "implicit: promote, demote, availability"


def test_a_history_without_a_test_metric_is_drawn(tmp_path):
    at = {"hr_any": 0.5, "recall": 0.5}
    result = {"history": {"target_hr": [0.1, 0.2]}, "victims": {"itempop": {"clean": at, "attacked": at}}}
    plan = Campaign(None, random(fakes=2, budget=2), {"itempop": itempop()}, "toy", None, None, 5, (0,))
    assert outcome.draw([Record({}, result, {})], plan, tmp_path).stat().st_size > 1000
    plt.close("all")


@pytest.mark.parametrize(
    ("codes", "note"),
    [
        ([[5, 5], [0, 5]], "code OK in 1 of 4 outer steps; NOT_STATIONARY in 3: .* train longer"),
        ([[0, 0], [0, 0]], "code OK in 4 of 4 outer steps$"),
        ([None, None], None),
    ],
)
def test_a_table_says_whether_the_gradient_is_to_be_believed(tmp_path, codes, note):
    facts = {"clicks": 2.0, "popularity": 1.0, "similarity": 0.5, "craft_seconds": 1.0}
    at = {"hr_any": 0.5, "recall": 0.5}
    told = facts | {"victims": {"itempop": {"clean": at, "attacked": at}}}
    records = [
        Record({}, told | {"history": {} if of is None else {"code": of}}, {"peak_rss": 1}) for of in codes
    ]
    plan = Campaign(None, random(fakes=2, budget=2), {"itempop": itempop()}, "toy", None, None, 5, (0, 1))
    outcome.present(records, plan, tmp_path)
    notes = [line for line in (tmp_path / "table.md").read_text().splitlines() if "gradient:" in line]
    assert len(notes) == (note is not None)
    assert note is None or re.search(note, notes[0])
    plt.close("all")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attacks.hcars("wrmf", fakes=2, budget=3), "expected a Recommender"),
        (lambda: attacks.environment("itempop"), "expected a Recommender"),
        (
            lambda: attacks.revadv("wrmf", fakes=2, threshold=0.1),
            "surrogate is 'wrmf'; expected a Recommender",
        ),
        (lambda: attacks.revadv_preset("wrmf-sgd", surrogate="wrmf"), "surrogate is 'wrmf'"),
        (lambda: attacks.average(fakes=2, budget=3, ratings=(1, 5)), r"expected \(low, high, step\)"),
    ],
)
def test_a_name_or_a_pair_in_the_place_of_a_value_is_told(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
