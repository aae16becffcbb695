"""Saved recommenders come back as they were, on the same data, and nothing else passes for one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import autorec, itempop, ncf, registry, saved, wrmf
from models.data import Interactions
from models.train import fit


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((6, 7)) < 0.5).astype(float))


@pytest.mark.parametrize(
    "model",
    [
        wrmf.wrmf(factors=2, epochs=2),
        ncf.neumf(factors=2, tower=2, hidden=(3, 2), epochs=1),
        autorec.autorec(hidden=3, epochs=1),
        itempop.itempop(),
    ],
    ids=lambda model: model.name,
)
def test_round_trip(train, tmp_path, model):
    fitted = fit(model, train, jax.random.key(0))
    saved.save(tmp_path / "m.npz", fitted, train, meta={"seed": 3})
    again, meta = saved.load(tmp_path / "m.npz", train.pad(60))
    assert meta == saved.metadata(tmp_path / "m.npz") == {"seed": 3}
    assert dict(again.model.config) == dict(model.config)
    users = jnp.arange(6)
    np.testing.assert_allclose(again.scores(users), fitted.scores(users), rtol=1e-6)


def test_fake_rows_are_kept(train, tmp_path):
    fitted = fit(wrmf.wrmf(factors=2, epochs=2), train, jax.random.key(0), fakes_rows=jnp.ones((2, 7)))
    saved.save(tmp_path / "m.npz", fitted, train)
    again, _ = saved.load(tmp_path / "m.npz", train)
    assert again.params["fake"].shape == (2, 2)
    np.testing.assert_array_equal(again.x, fitted.x)


def test_other_data_are_refused(train, tmp_path):
    saved.save(tmp_path / "m.npz", fit(wrmf.wrmf(factors=2, epochs=2), train, jax.random.key(0)), train)
    other = Interactions.from_arrays([0, 5], [1, 6])
    with pytest.raises(ValueError, match="trained on other data"):
        saved.load(tmp_path / "m.npz", other)


def test_what_no_name_makes_is_not_saved(train, tmp_path):
    fitted = fit(wrmf.wrmf(factors=2, epochs=2), train, jax.random.key(0))
    foreign = dataclasses.replace(fitted, model=dataclasses.replace(fitted.model, name="mine"))
    with pytest.raises(ValueError, match="cannot be made again"):
        saved.save(tmp_path / "m.npz", foreign, train)
    assert not (tmp_path / "m.npz").exists()


@pytest.mark.parametrize("damage", ["text", "cut", "version", "leaf"])
def test_damaged_files(train, tmp_path, damage):
    path = tmp_path / "m.npz"
    saved.save(path, fit(wrmf.wrmf(factors=2, epochs=2), train, jax.random.key(0)), train)
    whole = path.read_bytes()
    if damage == "text":
        path.write_text("not a model")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        with np.load(path) as archive:
            arrays = dict(archive)
        head = json.loads(arrays["head"].tobytes())
        if damage == "version":
            head["version"] = 99
        else:
            arrays.pop("p0")
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"m\.npz"):
        saved.load(path, train)


def test_the_registry_knows_every_recommender():
    for name in registry.names():
        made = registry.make(name)
        assert made.name == name
        for preset in registry.presets_of(name):
            assert registry.make(name, preset).name == name
    with pytest.raises(ValueError, match="did you mean 'lightgcn'"):
        registry.make("lightgc")
    with pytest.raises(ValueError, match="did you mean 'revadv-toy'"):
        registry.make("wrmf", "revadv-toys")
    with pytest.raises(ValueError, match="it has none"):
        registry.make("itempop", "paper")
