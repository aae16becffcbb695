"""ThreatModel: what is counted and what is refused."""

import jax
import numpy as np
import pytest

import attacks
from attacks import Ratings, ThreatModel
from models.data import Interactions, Profiles
from models.ncr import ncr
from models.wrmf import wrmf
from tests.attacks.test_family import FAKES, MEMBERS


@pytest.mark.parametrize(
    ("fakes", "users", "count"),
    [(7, 943, 7), (0.01, 13_149, 131), (0.03, 943, 28), (0.05, 943, 47), (0.29, 100, 29), (0.5, 3, 1)],
)
def test_fakes_are_a_number_or_the_floor_of_a_fraction(fakes, users, count):
    # 0.29 * 100 is 28.99... in binary: the fraction is meant in decimal.
    assert ThreatModel(fakes=fakes).count(users) == count


def test_a_fraction_too_small_for_one_fake_user_is_an_error():
    with pytest.raises(ValueError, match=r"0\.01 of 50 users.*at least 0\.02"):
        ThreatModel(fakes=0.01).count(50)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"fakes": 0}, ValueError, "at least 1"),
        ({"fakes": -0.1}, ValueError, r"\(0, 1\)"),
        ({"fakes": 1.5}, ValueError, "as an integer"),
        ({"fakes": float("nan")}, ValueError, r"\(0, 1\)"),
        ({"fakes": True}, TypeError, "fakes is True"),
        ({"fakes": "5"}, TypeError, "fakes is '5'"),
        ({"fakes": 1, "budget": -1}, ValueError, "budget is -1"),
        ({"fakes": 1, "budget": 2.0}, TypeError, "budget is 2.0"),
        ({"fakes": 1, "goal": "nuke"}, ValueError, "'demote'"),
        ({"fakes": 1, "track": "sequence"}, ValueError, "has a length"),
        ({"fakes": 1, "clicks": 3}, ValueError, "'implicit' track"),
        ({"fakes": 1, "track": "sequence", "clicks": 0}, ValueError, "clicks is 0"),
        ({"fakes": 1, "track": "sequence", "clicks": 3, "budget": 2}, ValueError, "clicks alone"),
        ({"fakes": 1, "queries": 0}, ValueError, "queries is 0"),
        ({"fakes": 1, "track": "explicit"}, ValueError, r"\(1, 5, 1\)"),
        ({"fakes": 1, "ratings": (1, 5, 1)}, ValueError, "no ratings"),
        ({"fakes": 1, "track": "explicit", "ratings": (0, 5, 1)}, ValueError, "0 < low"),
        ({"fakes": 1, "track": "explicit", "ratings": (1, 5, 3)}, ValueError, "whole number of steps"),
        ({"fakes": 1, "track": "ratings"}, ValueError, "'explicit'"),
        ({"fakes": 1, "knowledge": "all"}, ValueError, "'interactions'"),
    ],
)
def test_refusals(arguments, error, match):
    with pytest.raises(error, match=match):
        ThreatModel(**arguments)


def test_the_budget_is_of_items_that_are_not_targets():
    threat = ThreatModel(fakes=1, budget=2)
    rows = Profiles.from_rows(np.array([[0.0, 0.0, 1.0, 1.0, 1.0]]), targets=[0, 1])  # B + T, and no target
    with pytest.raises(ValueError, match="holds 3 clicks on items that are not targets; the budget allows 2"):
        threat.validate(rows, users=9)
    threat.validate(Profiles.from_rows(rows.to_rows(), targets=[0, 4]), users=9)
    clicked = Profiles.from_clicks([[2, 3, 3, 0]], targets=[0, 1], items=5, track="implicit")
    with pytest.raises(ValueError, match="holds 3 clicks on items that are not targets"):
        threat.validate(clicked, users=9)


def test_profiles_are_held_against_the_model():
    rated = Profiles.from_rows(np.array([[5.0, 2.0, 0.0]]), np.array([0]), track="explicit")
    threat = ThreatModel(fakes=1, budget=1, track="explicit", ratings=Ratings(1, 5, 1))
    assert threat.validate(rated, users=9) is rated
    with pytest.raises(ValueError, match=r"in 1\.0\.\.4\.0"):
        ThreatModel(fakes=1, budget=1, track="explicit", ratings=Ratings(1, 4, 1)).validate(rated, users=9)
    with pytest.raises(ValueError, match="track 'explicit'"):
        ThreatModel(fakes=1, budget=1).validate(rated, users=9)
    clicked = Profiles.from_clicks(np.array([[0, 1, 0]]), np.array([0]), items=2)
    ThreatModel(fakes=1, track="sequence", clicks=3).validate(clicked, users=9)
    with pytest.raises(ValueError, match="holds 3 clicks; expected exactly 4"):
        ThreatModel(fakes=1, track="sequence", clicks=4).validate(clicked, users=9)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_attack_refuses_data_of_another_track(counting, name):
    member = MEMBERS[name]
    spent = {"clicks" if member.track == "sequence" else "budget": member.budgets[0]}
    attack = member.make(counting)(fakes=FAKES, **spent)
    for track in {"implicit", "explicit", "sequence"} - {member.track}:
        train = Interactions.from_arrays([0, 1], [1, 0], [1.0, 1.0], users=4, items=9, track=track)
        targets = [] if member.goal == "availability" else [2]
        for call in (attack, attack.trace, lambda *given: attacks.run(attack, *given)):
            with pytest.raises(
                ValueError, match=f"'{track}', but the attack is for the '{member.track}' track"
            ):
                call(jax.random.key(0), train, targets)


@pytest.mark.parametrize(
    ("factory", "surrogate"),
    [(attacks.revadv, wrmf()), (attacks.rapu_g, wrmf()), (attacks.rapu_r, wrmf()), (attacks.hcars, ncr())],
)
def test_attacks_on_clicks_say_why_they_are_asked_for_another_track_in_vain(factory, surrogate):
    why = (
        f"track is 'sequence', but {factory.__name__} .* no order: expected 'implicit'; poisonrec and appgrad"
    )
    with pytest.raises(ValueError, match=why):
        factory(surrogate, fakes=2, budget=3, track="sequence", clicks=4)
    with pytest.raises(ValueError, match=r"'explicit', but .*; pga and tna learn ratings"):
        factory(surrogate, fakes=2, budget=3, track="explicit")
    attack = factory(surrogate, fakes=2, budget=3, track="implicit")
    assert attack.threat.track == "implicit"
    assert "track" not in attack.config
