"""From data to numbers: pairing, and what a defender looks at first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pipeline import Case, judge, make_case, poisoned, profile_facts, trained
from models import bpr, mf, wrmf
from models.data import Interactions, Profiles


@pytest.fixture(scope="module")
def case():
    rows = (np.random.default_rng(0).random((40, 12)) < 0.5).astype(np.float32)
    return make_case(Interactions.from_dense(rows), 3, jnp.array([2, 7]))


def test_repetitions_are_paired(case):
    """Two calls with the same seed have the same split and the same victim; another seed has not."""
    victim = wrmf.wrmf(factors=4, epochs=5)
    data = Interactions.from_dense(np.asarray(case.train.dense() + case.test.dense()))
    again = make_case(data, 3, jnp.array([2, 7]))
    same = judge(victim, again, k=3)
    assert {k: v for k, v in judge(victim, case, k=3).items() if k != "seconds"} == {
        k: v for k, v in same.items() if k != "seconds"
    }
    assert np.any(np.asarray(make_case(data, 4, jnp.array([2, 7])).train.item) != np.asarray(case.train.item))


@pytest.mark.slow
def test_fake_users_move_the_victim(case):
    victim = wrmf.wrmf(factors=4, epochs=60, learning_rate=0.05)
    rows = np.zeros((30, 12), np.float32)
    rows[:, [2, 7]] = 1
    rows[:, :5] = 1
    profiles = Profiles.from_rows(jnp.asarray(rows), case.targets)
    clean, attacked = judge(victim, case, k=3), judge(victim, case, profiles, k=3)
    assert attacked["hr_any"] > clean["hr_any"]


def test_profile_facts(case):
    rows = np.zeros((2, 12), np.float32)
    rows[0, :4] = 1
    rows[1, 2:6] = 1
    facts = profile_facts(Profiles.from_rows(jnp.asarray(rows), case.targets), case.train)
    popularity = np.asarray(case.train.popularity())
    assert facts["clicks"] == 4
    np.testing.assert_allclose(facts["similarity"], 0.5)
    np.testing.assert_allclose(
        facts["popularity"], (popularity[:4].sum() + popularity[2:6].sum()) / 8, rtol=1e-6
    )


def test_unknown_split(case):
    with pytest.raises(ValueError, match="'last' or 'one'"):
        make_case(case.train, 0, jnp.array([1]), "leave-one-out")


@pytest.mark.parametrize("track", ["implicit", "explicit"])
def test_the_victim_reads_fake_users_as_users(track):
    """Clicks and ratings as they are, and room for no more than a 64th beyond what they need."""
    highest = 2.0 if track == "implicit" else 6.0
    train = Interactions.from_dense(np.arange(300).reshape(30, 10) % highest, track=track)
    rows = np.zeros((2, 10), np.float32)
    rows[:, [1, 4]] = 1 if track == "implicit" else [[5, 4], [3, 2]]
    fakes = Profiles.from_rows(rows, targets=np.array([1]), track=track)
    model = mf.mf(factors=2, epochs=1, highest=5.0) if track == "explicit" else bpr.bpr(factors=2, epochs=1)
    fitted, _ = trained(model, Case(train, train, np.array([1]), None, jax.random.key(0)), fakes)
    assert fitted.params["user"].shape[0] == 32
    assert fitted.x.shape == (0, 10)
    data = poisoned(train, fakes)
    np.testing.assert_array_equal(data.dense()[30:], rows)
    assert int(data.count) <= data.capacity <= int(data.count) + train.capacity // 64 + 1


def test_fake_sequences_keep_their_order():
    train = Interactions.from_arrays([0, 0, 1], [2, 0, 2], items=4, track="sequence")
    clicks = [[3, 0, 3], [1, 1, 2]]
    data = poisoned(train, Profiles.from_clicks(clicks, targets=[3], items=4))
    assert (data.users, data.capacity) == (4, 9)
    np.testing.assert_array_equal(np.asarray(data.item)[data.mask & (data.user >= 2)], np.ravel(clicks))
