"""Long attacks: progress, history, resume to the same bytes, and folders that hold another run."""

import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.driver import describe
from attacks.surrogate import make_estimator
from models.data import Interactions
from models.wrmf import wrmf

TARGETS = jnp.array([1, 8])


@pytest.fixture
def attack(counting):
    def make(surrogate=counting, **changes):
        arguments = {"fakes": 3, "budget": 3, "projection": "topk", "steps": 5, "k": 3} | changes
        return attacks.revadv(surrogate, **arguments)

    return make


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((10, 9)) < 0.4).astype(float))


def test_a_run_that_was_stopped_continues_to_the_same_bytes(attack, train, key, tmp_path):
    whole = attacks.run(attack(), key, train, TARGETS)
    first = attacks.run(attack(steps=2), key, train, TARGETS, store=tmp_path / "run")
    rest = attacks.run(
        attack(), key, train, TARGETS, store=tmp_path / "run"
    )  # made anew: a new process would, too
    assert (first.done, rest.resumed, rest.done) == (2, 2, 5)
    assert np.asarray(rest.profiles.to_rows()).tobytes() == np.asarray(whole.profiles.to_rows()).tobytes()
    for name, values in whole.history.items():
        np.testing.assert_array_equal(rest.history[name], values)


def test_progress_sees_every_step(attack, train, key):
    seen = []
    attacks.run(attack(), key, train, TARGETS, progress=seen.append)
    assert [block.done for block in seen] == [0, 1, 2, 3, 4, 5]
    assert {"target_hr", "loss", "code"} <= set(seen[-1].metrics)


def test_a_run_can_be_ended_early_and_has_the_best_so_far(attack, train, key):
    run = attacks.run(attack(), key, train, TARGETS, on_block=lambda block: block.done == 3)
    assert run.done == 3
    run.profiles.validate(budget=3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"momentum": 0.5}, "momentum"),
        ({"threshold": 0.1, "projection": "threshold"}, "projection"),
        ({"initial": np.zeros((3, 9))}, "initial"),
    ],
)
def test_a_folder_is_not_continued_with_other_settings(attack, train, key, tmp_path, change, match):
    attacks.run(attack(steps=1), key, train, TARGETS, store=tmp_path)
    with pytest.raises(ValueError, match=match):
        attacks.run(attack(steps=1, **change), key, train, TARGETS, store=tmp_path)


def test_a_folder_is_not_continued_with_another_key_or_data_or_surrogate(attack, train, make_key, tmp_path):
    attacks.run(attack(steps=1), make_key(0), train, TARGETS, store=tmp_path)
    with pytest.raises(ValueError, match="key"):
        attacks.run(attack(steps=1), make_key(1), train, TARGETS, store=tmp_path)
    with pytest.raises(ValueError, match="targets"):
        attacks.run(attack(steps=1), make_key(0), train, TARGETS[::-1], store=tmp_path)
    with pytest.raises(ValueError, match="train"):
        attacks.run(attack(steps=1), make_key(0), train.keep(train.item > 0), TARGETS, store=tmp_path)
    with pytest.raises(ValueError, match="epochs"):
        attacks.run(attack(wrmf(epochs=4), steps=1), make_key(0), train, TARGETS, store=tmp_path)


def test_a_description_is_the_same_for_the_same_settings(attack):
    assert describe(attack()) == describe(attack(steps=9))
    assert describe(attack()) != describe(attack(k=4))
    assert "0x" not in str(describe(attack(estimator=make_estimator("exact"))))
