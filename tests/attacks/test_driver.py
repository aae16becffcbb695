"""Long attacks: progress, history, resume to the same bytes, and folders that hold another run."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
import bilevel
from attacks.driver import describe
from attacks.surrogate import make_estimator
from models import ncr
from models.data import Interactions, Profiles
from models.ncf import gmf
from models.wrmf import wrmf

TARGETS = jnp.array([1, 8])
SPENT = {"fakes": 3, "budget": 3}


class State(NamedTuple):
    rows: jax.Array
    key: jax.Array


def wander(steps=5, rate=0.3, initial=None):
    """An attack that flips cells at random: all a run needs, and compiled in no time."""

    def init(key, train, targets, rows=None):
        return State(jnp.zeros((3, train.items)), key)

    def step(state, train, targets, test=None):
        key, own = jax.random.split(state.key)
        rows = jnp.abs(state.rows - jax.random.bernoulli(own, rate, state.rows.shape))
        return State(rows, key), {"clicks": rows.sum(), "target_hr": jnp.zeros(()), "loss": rows.mean()}

    def finish(state, train, targets):
        return Profiles.from_rows(state.rows, targets)

    config = {"steps": steps, "rate": rate, "initial": initial}
    threat = attacks.ThreatModel(fakes=3)
    return attacks.Attack("wander", config, threat, steps, init, step, finish, tests=True)


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((10, 9)) < 0.4).astype(float))


def test_a_run_that_was_stopped_continues_to_the_same_bytes(train, key, tmp_path):
    whole = attacks.run(wander(), key, train, TARGETS)
    first = attacks.run(wander(steps=2), key, train, TARGETS, store=tmp_path)
    # Made anew: the attack of another process is another object, too.
    rest = attacks.run(wander(), key, train, TARGETS, store=tmp_path)
    assert (first.done, rest.resumed, rest.done) == (2, 2, 5)
    assert np.asarray(rest.profiles.to_rows()).tobytes() == np.asarray(whole.profiles.to_rows()).tobytes()
    for name, values in whole.history.items():
        np.testing.assert_array_equal(rest.history[name], values)


@pytest.mark.slow
def test_a_revadv_run_continues_to_the_same_bytes(counting, train, key, tmp_path):
    def run(steps, **store):
        attack = attacks.revadv(counting, fakes=3, budget=3, projection="topk", steps=steps, k=3)
        return attacks.run(attack, key, train, TARGETS, **store)

    whole = run(4)
    run(2, store=tmp_path)
    rest = run(4, store=tmp_path)
    assert rest.resumed == 2
    assert np.asarray(rest.profiles.to_rows()).tobytes() == np.asarray(whole.profiles.to_rows()).tobytes()


@pytest.mark.parametrize(
    "attack",
    [
        attacks.srwa(**SPENT, steps=2, sweeps=3, users=5, k=3, stages=3),
        *(
            pytest.param(attack, marks=pytest.mark.slow)
            for attack in (
                attacks.hcars(
                    ncr.ncr(factors=4, epochs=1), **SPENT, climb=2, refine=1, refit_every=1, stages=3
                ),
                attacks.pga(**SPENT, track="implicit", gradient="unrolled", steps=3, factors=2, sweeps=2),
                attacks.rapu_g(wrmf(factors=2, epochs=3), **SPENT, steps=3, tau=2, em_iterations=2, k=3),
                attacks.aush(**SPENT, steps=3, selected=2, generator_batch=4, discriminator_batch=4),
                attacks.dl_attack(
                    **SPENT, surrogate=gmf(factors=2, epochs=1), rounds=1, users=2, k=3, stages=3
                ),
            )
        ),
    ],
    ids=lambda attack: attack.name,
)
def test_a_killed_run_continues_to_the_same_bytes(train, key, tmp_path, attack):
    def killed(block):
        if block.done == 2:
            raise KeyboardInterrupt

    whole = attacks.run(attack, key, train, TARGETS)
    with pytest.raises(KeyboardInterrupt):
        attacks.run(attack, key, train, TARGETS, store=tmp_path, on_block=killed)
    rest = attacks.run(attack, key, train, TARGETS, store=tmp_path)
    assert 0 < rest.resumed < 3 == rest.done
    assert np.asarray(rest.profiles.rows).tobytes() == np.asarray(whole.profiles.rows).tobytes()
    for metric in attack.show:
        np.testing.assert_array_equal(rest.history[metric], whole.history[metric])


def test_progress_sees_every_step(train, key):
    seen = []
    attacks.run(wander(), key, train, TARGETS, progress=seen.append)
    assert [block.done for block in seen] == [0, 1, 2, 3, 4, 5]
    assert set(seen[-1].metrics) == {"clicks", "target_hr", "loss"}


def test_a_run_can_be_ended_early(train, key):
    run = attacks.run(wander(), key, train, TARGETS, on_block=lambda block: block.done == 3)
    assert run.done == 3
    assert run.history["clicks"].shape == (3,)


@pytest.fixture
def begun(train, key, tmp_path):
    attacks.run(wander(steps=1), key, train, TARGETS, store=tmp_path, spec={"seed": 0})
    return {"attack": wander(steps=1), "key": key, "train": train, "targets": TARGETS, "spec": {"seed": 0}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: {"attack": wander(steps=1, rate=0.5)}, "rate"),
        (lambda c: {"attack": wander(steps=1, initial=np.zeros(2))}, "initial"),
        (lambda c: {"key": jax.random.key(1)}, "key"),
        (lambda c: {"targets": TARGETS[::-1]}, "targets"),
        (lambda c: {"train": c["train"].keep(c["train"].item > 0)}, "train"),
        (lambda c: {"test": c["train"]}, "test"),
        (lambda c: {"spec": {"seed": 1}}, "seed"),
    ],
)
def test_a_folder_is_not_continued_as_another_run(begun, tmp_path, change, match):
    with pytest.raises(ValueError, match=match):
        attacks.run(**begun | change(begun), store=tmp_path)


def test_profiles_outside_the_threat_model_are_not_returned(train, key):
    attack = wander(rate=1.0)
    strict = attacks.Attack(
        attack.name, {}, attacks.ThreatModel(fakes=3, budget=2), 1, attack.init, attack.step, attack.finish
    )
    with pytest.raises(ValueError, match="budget allows"):
        attacks.run(strict, key, train, TARGETS)


def test_a_description_says_what_an_attack_is_and_nothing_of_this_process():
    def made(**changes):
        return describe(attacks.revadv(wrmf(), fakes=2, **changes))

    assert made() == made(steps=9)
    assert made() != made(k=4)
    assert made()["config"]["surrogate"]["config"]["factors"] == 64
    assert "0x" not in str(made(estimator=make_estimator("exact")))
    estimators = [make_estimator("exact"), make_estimator("exact", memory="lean"), make_estimator("one_step")]
    estimators += [make_estimator("truncated", tau=tau) for tau in (2, 5)] + [make_estimator("implicit")]
    described = [str(made(estimator=estimator)) for estimator in estimators]
    assert len(set(described)) == len(described)
    with pytest.raises(ValueError, match="give an estimator by name"):
        made(estimator=lambda inner: bilevel.truncated(inner, 2))


def diverging(losses):
    """An attack whose losses are given."""

    attack = wander(steps=len(losses))
    made = jnp.asarray(losses)

    def told(state, train, targets, test=None):
        step_number = state.rows[0, 0].astype(int)
        return State(state.rows.at[0, 0].add(1), state.key), {"loss": made[step_number]}

    finish = lambda state, train, targets: Profiles.from_rows(jnp.zeros_like(state.rows), targets)
    return attacks.Attack("diverging", {}, attack.threat, len(losses), attack.init, told, finish)


def without_gradient(attack):
    """The attack, whose gradient is no number in any step."""

    def step(*at):
        state, told = attack.step(*at)
        return state, told | {"grad_norm": jnp.nan * told["loss"]}

    return dataclasses.replace(attack, step=step)


def test_a_gradient_that_never_was_a_number_is_an_error(train, key):
    with pytest.raises(FloatingPointError, match="gradient was not finite in 2 of 2"):
        attacks.run(without_gradient(diverging([1.0, 2.0])), key, train, TARGETS)
    with pytest.warns(RuntimeWarning, match="loss"), pytest.raises(FloatingPointError, match="gradient"):
        attacks.run(without_gradient(diverging([1.0, np.nan])), key, train, TARGETS)


def test_a_surrogate_that_never_had_a_finite_loss_is_an_error(train, key):
    with pytest.raises(FloatingPointError, match=r"3 of 3 outer steps.*smaller learning rate"):
        attacks.run(diverging([np.nan, np.inf, np.nan]), key, train, TARGETS)


def test_a_surrogate_that_diverged_sometimes_is_a_warning(train, key):
    with pytest.warns(RuntimeWarning, match="1 of 3 outer steps"):
        attacks.run(diverging([1.0, np.nan, 2.0]), key, train, TARGETS)
