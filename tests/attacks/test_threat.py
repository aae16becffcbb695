"""ThreatModel: what is counted and what is refused."""

import pytest

from attacks import ThreatModel


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
        ({"fakes": 1, "goal": "demote"}, ValueError, "'promote'"),
        ({"fakes": 1, "track": "ratings"}, ValueError, "'explicit'"),
        ({"fakes": 1, "knowledge": "all"}, ValueError, "'interactions'"),
    ],
)
def test_refusals(arguments, error, match):
    with pytest.raises(error, match=match):
        ThreatModel(**arguments)
