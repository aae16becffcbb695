"""Cells of the grid of defenses on a small world in place of MovieLens (its table: test_attack_studies.py)."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import attacks
from experiments.crafts import crafted
from experiments.papers import defense_grid, rapu
from experiments.pipeline import Case
from models.data import Interactions, Profiles, random_events
from models.itempop import itempop
from models.wrmf import wrmf

USERS, ITEMS, BUDGET, K = 40, 24, 4, 5


@pytest.fixture
def world(monkeypatch, tmp_path):
    """40 users, of whom a twentieth attack, and a model for the victim and the attacker; crafts lie in `tmp_path`."""
    clicks = np.random.default_rng(0).random((USERS, ITEMS)) < np.linspace(0.5, 0.1, ITEMS)
    events = Interactions.from_dense(clicks.astype(float))
    split = random_events(events, jax.random.key(0))
    data = SimpleNamespace(data=SimpleNamespace(interactions=events), split=split)
    small = rapu.World("", "", None, BUDGET, ("wrmf", "small"), {"WRMF": ("wrmf", "small")})
    monkeypatch.setitem(rapu.WORLDS, "ml", small)
    monkeypatch.setattr(rapu, "_data", lambda world, seed: data)
    monkeypatch.setattr(rapu, "_view", lambda world, seed, rho, pert: split.train)
    monkeypatch.setattr(defense_grid, "K", K)
    monkeypatch.setattr(defense_grid, "FRACTION", 0.05)
    for module in (rapu, defense_grid):
        monkeypatch.setattr(module, "crafted", functools.partial(crafted, folder=tmp_path))

    monkeypatch.setattr(defense_grid, "_model", lambda name, preset: wrmf(factors=4, epochs=20))
    monkeypatch.setattr(defense_grid, "_hardened", functools.cache(defense_grid._hardened.__wrapped__))
    return split


def spec(attack, defense):
    return {"study": "defense-grid", "attack": attack, "defense": defense, "seed": 0}


def test_a_cell_judges_the_victim_behind_its_defense(world, monkeypatch):
    targets = np.array([5, 20])
    case = Case(world.train, world.test, targets, None, jax.random.key(0))
    twins = Profiles.from_rows(np.tile(np.arange(ITEMS) % 6 == 2, (2, 1)).astype(float), targets=targets)
    monkeypatch.setattr(defense_grid, "setting", lambda spec: (case, twins, {}))
    monkeypatch.setattr(defense_grid, "_hardened", lambda defense, name, preset: itempop())
    monkeypatch.setattr(
        defense_grid, "measured", lambda fitted, case, k: {"model": fitted.model.name, "k": k}
    )
    found = defense_grid.run(spec("top-popular", "filter:duplicate"))
    assert found["victim"] == {"model": "itempop", "k": K}
    assert (found["flagged_fake"], found["flagged_real"]) == (1.0, 0.0)  # two equal profiles, 5% of 42 users
    clicks = world.train.to_csr().toarray() > 0
    best = np.argsort(np.where(clicks, 1, -clicks.sum(0)), axis=1, kind="stable")[:, :K]
    assert found["kept_hr"] == pytest.approx(np.isin(best, targets).any(1).mean())
    assert 0.1 < found["kept_hr"] < 0.9
    seen = defense_grid.run(spec("top-popular", "detectors"))["detectors"]
    assert set(seen) == set(defense_grid.DETECTORS)
    assert seen["duplicate"]["auc"] == pytest.approx(1)


def test_an_adaptive_attacker_has_the_defense_inside(world, monkeypatch):
    asked = []

    def instead(name, surrogate, *, fakes, budget, **more):
        asked.append({"name": name, "surrogate": surrogate, **more})
        return attacks.random(fakes=fakes, budget=budget)

    monkeypatch.setattr(defense_grid.attacks, "revadv", functools.partial(instead, "revadv"))
    monkeypatch.setattr(defense_grid.attacks, "rapu_g", functools.partial(instead, "rapu-g"))
    twins, alone = np.tile(np.arange(ITEMS) % 6 == 2, (2, 1)), np.eye(2, ITEMS)
    rows = {"revadv": twins.astype(float), "rapu-g-no-pgm": twins.astype(float), "random": alone}
    monkeypatch.setattr(defense_grid, "_rows", lambda spec, attack: rows[attack])
    for defense in defense_grid.DEFENSES:
        defense_grid._crafting(defense, spec("adaptive", defense))
    assert "initial" not in asked[0]  # the attack itself
    assert all(each["initial"] is rows["revadv"] for each in asked[1:5])
    assert asked[defense_grid.DEFENSES.index("filter:duplicate")]["initial"] is alone
    inside = [each["surrogate"].name for each in asked]
    apts = ["apt-wrmf", "apt-rand-wrmf", "apt-wrmf"]
    assert inside == ["wrmf", "adversarial-wrmf", *apts, *["filtered-wrmf"] * 4]
    assert [each["surrogate"].config["solver"] for each in asked[2:5]] == [
        "'identity'",
        "'identity'",
        "'cg'",
    ]
    assert len({each["surrogate"].config.get("cut") for each in asked[5:]}) == 4  # each its own detector's
    assert {each["name"] for each in asked} == {"revadv"}
    case, profiles, _ = defense_grid.setting(spec("adaptive-rapu-g", "at"))
    assert (asked[-1]["name"], asked[-1]["pgm"]) == ("rapu-g", False)
    assert asked[-1]["surrogate"] is asked[1]["surrogate"]
    assert profiles is not None
    assert profiles.fakes == 2
    assert case.train is world.train


def test_what_one_who_knows_saw_is_on_record(world, monkeypatch):
    """The first step that was scored and the best; nothing where there is no defense to know."""
    seen = {"history": {"target_hr": [None, 0.2, 0.5, 0.3]}}
    monkeypatch.setattr(defense_grid, "crafted", lambda *args: ("profiles", seen))
    monkeypatch.setattr(defense_grid, "_crafting", lambda defense, spec: None)
    assert defense_grid.setting(spec("adaptive", "at"))[1:] == ("profiles", {"own_hr": [0.2, 0.5]})
    assert defense_grid.setting(spec("adaptive", "none"))[2] == {}


@pytest.mark.parametrize(
    ("control", "of", "blind"),
    [("longer", "adaptive", "revadv"), ("longer-rapu-g", "adaptive-rapu-g", "rapu-g-no-pgm")],
)
def test_its_control_begins_where_it_begins_with_nothing_inside(world, monkeypatch, control, of, blind):
    """One craft a start, whatever the defense, and nothing of what it saw: it knows of none."""
    made, crafts = [], []
    monkeypatch.setattr(defense_grid.attacks, "revadv", lambda **given: made.append({"a": "revadv", **given}))
    monkeypatch.setattr(defense_grid.attacks, "rapu_g", lambda **given: made.append({"a": "rapu-g", **given}))
    seen = {"history": {"target_hr": [0.2, 0.5]}}
    monkeypatch.setattr(defense_grid, "crafted", lambda *given: (crafts.append(given), ("rows", seen))[1])
    twins = np.tile(np.arange(ITEMS) % 6 == 2, (2, 1)).astype(float)
    rows = {blind: twins, "random": np.eye(2, ITEMS)}
    monkeypatch.setattr(defense_grid, "_rows", lambda spec, attack: rows[attack])
    told = [defense_grid.setting(spec(control, defense))[2] for defense in defense_grid.DEFENSES]
    mine = made.copy()
    made.clear()
    for defense in defense_grid.DEFENSES:
        defense_grid._crafting(defense, spec(of, defense))
    assert told == [{}] * len(defense_grid.DEFENSES)
    assert {each["surrogate"].name for each in mine} == {"wrmf"}
    assert {each["a"] for each in mine} == {each["a"] for each in made} == {blind.removesuffix("-no-pgm")}
    assert mine[0]["initial"] is twins
    assert all(ours["initial"] is theirs["initial"] for ours, theirs in zip(mine[1:], made[1:], strict=True))
    assert {str(where) for where, *_ in crafts} == {str(crafts[0][0])}
    assert crafts[0][0]["attack"] == control


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "defense"), [("adaptive", "filter:duplicate"), ("adaptive-held", "apt")])
def test_a_cell_of_an_adaptive_attack_runs(world, monkeypatch, attack, defense):
    monkeypatch.setattr(defense_grid, "_rows", lambda spec, attack: np.eye(2, ITEMS))
    found = defense_grid.run(spec(attack, defense))
    assert 0 <= found["victim"]["hr_any"] <= 1
    assert len(found["own_hr"]) == 2
    assert (len(found.get("negative", [])) == 8) == (defense == "apt")  # renewed in each of the last 8 epochs
    assert ("flagged_fake" in found) == (defense != "apt")
