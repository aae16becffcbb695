"""A recommender behind a defense as a value: what a filter among the victim's vectors leaves, and who can know what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defenses.detectors import among_vectors, knn, vectors
from defenses.filtering import flagged, without
from experiments import names
from experiments.guarded import Guard
from models import registry
from models.data import Interactions
from models.train import fit
from models.wrmf import wrmf

KEY, LEVEL = jax.random.key(0), 0.2


@pytest.fixture(scope="module")
def train():
    return Interactions.from_dense((np.random.default_rng(0).random((30, 12)) < 0.5).astype(float))


def test_a_filter_among_the_victims_vectors_is_a_victim_trained_before(train):
    model = wrmf(factors=3, epochs=2)
    before = np.asarray(fit(model, train, KEY).embedding["user"])
    out = flagged(knn(train, embedding=before), LEVEL)
    assert (out != flagged(knn(train), LEVEL)).any()
    found = Guard(model, "knn", LEVEL, "victim").fit(train, KEY)
    expected = fit(model, without(train, out), KEY)
    np.testing.assert_array_equal(found.scores(jnp.arange(30)), expected.scores(jnp.arange(30)))


def test_whose_vectors_there_are(train):
    assert vectors(registry.make("neumf", factors=2, tower=2, hidden=(2,)), train) == ("user", "tower_user")
    for name in ("itempop", "itemcf", "ncr"):
        with pytest.raises(ValueError, match=f"{name} has no vector for each user"):
            vectors(registry.make(name), train)
    with pytest.raises(ValueError, match="'duplicate'; expected one of lof, knn"):
        among_vectors("duplicate", wrmf(), KEY)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("at,epsilon=0.1", "adversarial-wrmf"),
        ("apt:ml-100k,items=3,references=2", "apt-wrmf"),
        ("apt-rand,items=3", "apt-rand-wrmf"),
        ("filter:duplicate,level=0.1", "filtered-wrmf"),
    ],
)
def test_a_surrogate_of_one_who_knows_has_the_defense_as_it_was_named(train, text, inside):
    found = names.knowing("revadv,steps=2", text, wrmf()).known(train)
    assert found.name == inside
    told = {"at": ("epsilon", 0.1), "apt": ("items", "3"), "apt-rand": ("items", "3")}
    argument, value = told.get(text.split(":")[0].split(",")[0], ("cut", found.config.get("cut")))
    assert found.config[argument] == value


def test_what_nobody_can_know(train):
    for text, message in (("apt,pretrain=100", "leaves no epoch"), ("pcmf", "a recommender of its own")):
        with pytest.raises(ValueError, match=message):
            names.knowing("revadv", text, wrmf()).known(train)
