"""The presets are table 5.4 of the specification, and changes to them are checked."""

import jax
import numpy as np
import pytest

import attacks
from attacks.presets import PRESETS
from models.als import als
from models.data import toy

TABLE = {  # surrogate, T, estimator, tau, eta, momentum, rho, clicks targets
    "toy": ("wrmf", 50, "exact", None, 1.0, 0.99, 0.2, False),
    "toy-itemae": ("itemae", 50, "exact", None, 1.0, 0.99, 0.2, False),
    "wrmf-sgd": ("wrmf", 30, "truncated", 10, 1.0, 0.95, 0.05, False),
    "wrmf-als": ("als", 30, "partial", None, 1.0, 0.95, 0.1, True),
    "itemae": ("itemae", 30, "truncated", 5, 1.0, 0.95, 0.1, False),
    "itemae-pd": ("itemae", 30, "partial", None, 1.0, 0.95, 0.05, True),
}


def test_every_preset_is_in_the_table():
    assert set(TABLE) == set(PRESETS)


@pytest.mark.parametrize("name", TABLE)
def test_presets_have_the_settings_of_the_paper(name):
    attack = attacks.revadv_preset(name)
    c = attack.config
    found = (c["surrogate"].name, attack.steps, c["estimator"], c["tau"], c["learning_rate"], c["momentum"])
    assert (*found, c["threshold"], c["click_targets"]) == TABLE[name]
    on_toy = name.startswith("toy")
    assert attack.threat.count(13_149) == (100 if on_toy else 131)
    assert (c["k"], c["normalize_rows"]) == ((10, False) if on_toy else (50, True))
    inner = c["surrogate"].trainer(900, 300, 100)
    assert inner.steps == (100 if on_toy else 10 if name == "wrmf-als" else 50)


def test_changes_reach_the_attack_and_its_surrogate():
    attack = attacks.revadv_preset("wrmf-sgd", surrogate={"factors": 8}, estimator="exact", fakes=3)
    assert attack.config["surrogate"].config["factors"] == 8
    assert attack.config["tau"] is None  # that of the preset goes with its estimator
    attack = attacks.revadv_preset("itemae", surrogate=als(), projection="topk", budget=7)
    assert (attack.config["surrogate"].name, attack.config["threshold"]) == ("als", None)


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("wrmf", {}, "no preset 'wrmf'.*it has: toy"),
        ("wrmf-sdg", {}, "did you mean 'wrmf-sgd'"),
        ("toy", {"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ("toy", {"momentum": 2.0}, "momentum"),
    ],
)
def test_refusals(name, changes, match):
    with pytest.raises(ValueError, match=match):
        attacks.revadv_preset(name, **changes)


@pytest.mark.slow
def test_a_small_toy_is_attacked(key):
    data = toy(key, users=90, fakes=12, items=40, rank=8, threshold=3.0)
    attack = attacks.revadv_preset("toy", surrogate={"factors": 6, "epochs": 40}, fakes=12, steps=12, k=3)
    profiles, history = attack.trace(
        jax.random.key(1), data.train, data.targets, test=data.test, initial=data.initial
    )
    profiles.validate(fakes=12)
    hits, loss = history["target_hr"], history["loss"]
    assert hits.max() > hits[0] + 0.1
    assert loss.min() < 0.98 * loss[0]
    assert np.abs(history["test_hr"] - history["test_hr"][0]).mean() < 0.1
    assert (history["code"] == 0).all()
    np.testing.assert_allclose(history["mean_clicks"][0], data.initial.sum() / 12, rtol=1e-6)
