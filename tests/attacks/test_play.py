"""A game: every trial is injected and counted, and what is told is what the box answered."""

import numpy as np
import pytest

import attacks
from models import external
from models.data import Interactions, new_items

USERS, ITEMS, TARGETS = 10, 12, [12, 13, 14]


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, USERS, 60), rng.integers(0, ITEMS, 60)
    data = Interactions.from_arrays(
        user, item, users=USERS, items=ITEMS, time=np.arange(60), track="sequence"
    )
    return new_items(data, 3).data


def popular(data, query):
    """A victim in NumPy that counts."""
    counts = np.bincount(np.asarray(data.item)[data.real()], minlength=data.items).astype(np.float32)
    return (lambda users: np.tile(counts, (len(users), 1))), counts


def test_playing_is_asking_and_telling_with_demotion_as_the_negative(train, key):
    class Witness(attacks.Retrained):
        seen = ()

        def inject(self, profiles):
            self.seen = (*self.seen, profiles)
            super().inject(profiles)

    learner = attacks.poisonrec_learner(fakes=2, clicks=20, sets=3, steps=5, width=4, goal="demote")
    box = Witness(popular, train, TARGETS, key, candidates=None, k=4)
    told = []
    played = attacks.play(learner, box, key, train.popularity(), TARGETS, steps=2, progress=told.append)
    assert box.queries == 6  # three a step
    assert [block.done for block in told] == [0, 1, 2]
    worth = []
    for trial in box.seen[:6]:
        trial.validate(clicks=20, fakes=2)
        box.inject(trial)
        worth.append(-box.recnum())
    assert min(worth) < max(worth)
    np.testing.assert_allclose(played.history["mean_reward"], np.reshape(worth, (2, 3)).mean(1))
    np.testing.assert_array_equal(played.profiles.clicks, box.seen[int(np.argmax(worth))].clicks)


@pytest.mark.slow
def test_an_attack_plays_against_another_library(train, key):
    """Nearest neighbors of `implicit`: every trial is a training of the library."""
    pytest.importorskip("implicit")
    victim = external.implicit_knn(neighbors=5)
    box = attacks.Retrained(
        lambda data, query: external.fit(victim, data, query).scores, train, TARGETS, key, candidates=6, k=3
    )
    learner = attacks.poisonrec_learner(fakes=2, clicks=4, sets=3, steps=2, width=4)
    played = attacks.play(learner, box, key, train.popularity(), TARGETS)
    assert box.queries == learner.threat.queries == 6
    played.profiles.validate(clicks=4, fakes=2)
    assert {name: len(values) for name, values in played.history.items()} == dict.fromkeys(
        ("loss", "mean_reward", "best_reward", "target_share"), 2
    )
    box.inject(played.profiles)
    assert box.recnum() == played.history["best_reward"].max()


@pytest.mark.parametrize(
    ("fakes", "change", "match"),
    [
        (0.2, {}, "give users="),
        (0.2, {"targets": [99], "users": 10}, "outside"),
        (0.2, {"users": -7}, "users is -7; expected an integer >= 1"),
        (2, {"users": -7}, "users is -7; expected an integer >= 1"),
        (2, {"users": 10}, "no fraction of them: leave users= out"),
        (2, {"steps": 5}, "appgrad was made to ask 2 times, 4 queries in all: give steps <= 2"),
        (2, {"steps": 0}, "steps is 0; expected an integer >= 1, or None for all 2"),
        (2, {"steps": 1.0}, "steps is 1.0; expected"),
    ],
)
def test_play_refuses_before_the_first_query(train, key, fakes, change, match):
    box = attacks.Retrained(popular, train, TARGETS, key, candidates=None, k=4)
    learner = attacks.appgrad_learner(fakes=fakes, clicks=4, queries=4, directions=1)
    with pytest.raises(ValueError, match=match):
        attacks.play(learner, box, key, train.popularity(), **{"targets": TARGETS} | change)
    assert box.queries == 0
