"""Saved recommenders come back as they were, on the same data, and nothing else passes for one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import autorec, itempop, ncf, rcf, registry, saved, wrmf
from models.data import Interactions
from models.data.relations import Relations, clusters
from models.train import Fitted, fit


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


def test_what_is_known_of_the_items_is_in_the_file(train, tmp_path):
    table = {0: {"genre": ["war", "spy"]}, 2: {"genre": ["spy"], "actor": ["Ann"]}, 5: {"actor": ["Ann"]}}
    model = rcf.rcf(Relations.from_table(table, 7), factors=2, attention=2, hidden=())
    path, params = tmp_path / "m.npz", model.init(jax.random.key(0), 6, 7, 0)
    saved.save(path, Fitted(model, params, None, jnp.zeros((0, 7)), None), train)
    again, _ = saved.load(path, train)
    assert repr(again.model) == repr(model)
    same = lambda ours, theirs: jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    same(again.params, params)
    same(again.model.config["relations"], model.config["relations"])
    same(again.data.catalog.relations, model.config["relations"])
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays.pop("relations.mask")
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="expected a complete file"):
        saved.load(path, train)


def test_facts_tell_relations_apart():
    told = [saved.facts({"relations": clusters(ids)}) for ids in ([0, 1, 1], [0, 1, 0], [0, 1, 1])]
    assert told[0] == told[2] != told[1]
    assert json.loads(json.dumps(told[0])) == told[0]


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
        known = {"relations": clusters([0, 1, 0])} if registry.needs(name) else {}
        made = registry.make(name, **known)
        assert made.name == name
        for preset in registry.presets_of(name):
            assert registry.make(name, preset, **known).name == name
    with pytest.raises(ValueError, match=r"rcf needs relations: .* models\.data\.relations"):
        registry.make("rcf", "accent")
    with pytest.raises(ValueError, match="did you mean 'lightgcn'"):
        registry.make("lightgc")
    with pytest.raises(ValueError, match="did you mean 'revadv-toy'"):
        registry.make("wrmf", "revadv-toys")
    with pytest.raises(ValueError, match="it has none"):
        registry.make("itempop", "paper")
