"""Early stopping: the same steps as `fit`, the best parameters kept, resumed to the same bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import bpr, registry, wrmf
from models.data import Interactions, random_events
from models.evaluation import evaluate
from models.stopping import fit_early
from models.train import Fitted, fit

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 20))
    return random_events(Interactions.from_dense((taste > 0.8).astype(float)), 0, fractions=(0.7, 0.15, 0.15))


@pytest.mark.parametrize("model", [wrmf.wrmf(factors=3, epochs=6), bpr.bpr(factors=3, epochs=6, batch=32)])
def test_without_an_early_end_the_steps_are_those_of_fit(parts, model):
    done = fit_early(model, parts.train, KEY, parts.train, k=5, every=2, patience=9)  # judged where it learns
    assert (done.epochs, len(done.history)) == (6, 3)
    if done.best_epoch == 6:
        whole = fit(model, parts.train, KEY)
        for a, b in zip(jax.tree.leaves(done.fitted.params), jax.tree.leaves(whole.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    part = fit(type(model)(**{**vars(model), "trainer": _cut(model, done.best_epoch)}), parts.train, KEY)
    users = jnp.arange(30)
    np.testing.assert_allclose(done.fitted.scores(users), part.scores(users), rtol=1e-3, atol=1e-5)


def _cut(model, epochs):
    """The trainer of the model, stopped after some epochs."""
    import dataclasses

    def trainer(users, items, fakes, events=0):
        inner = model.trainer(users, items, fakes, events)
        return dataclasses.replace(inner, steps=epochs * inner.steps_per_epoch)

    return trainer


@pytest.mark.parametrize("name", [name for name in registry.names() if not registry.needs(name)])
def test_an_epoch_is_a_pass_whatever_finds_the_events(name):
    model = registry.make(name)
    inner = model.trainer(50, 40, 0, 10_000)
    assert (
        inner.steps
        == model.config.get("epochs", model.config.get("sweeps", inner.steps)) * inner.steps_per_epoch
    )


def test_it_stops_after_patience_and_keeps_the_best(parts):
    model = wrmf.wrmf(factors=8, epochs=400, learning_rate=0.1)
    done = fit_early(model, parts.train, KEY, parts.validation, metric="recall", k=5, every=2, patience=3)
    best = int(np.argmax(done.history))
    assert done.epochs == 2 * len(done.history) < 400
    assert done.best_epoch == 2 * (best + 1)
    assert len(done.history) == best + 1 + 3
    scores = jax.tree_util.Partial(Fitted.scores, done.fitted)
    found = evaluate(scores, parts.train, test=parts.validation, k=5)
    np.testing.assert_allclose(found.recall, done.history[best], rtol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bytes(parts, tmp_path):
    model = bpr.bpr(factors=3, epochs=8, batch=32)
    arguments = {"k": 5, "every": 1, "patience": 20}
    whole = fit_early(model, parts.train, KEY, parts.validation, **arguments)
    told = []

    def stop(block):
        told.append(block.done)
        if block.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_early(
            model,
            parts.train,
            KEY,
            parts.validation,
            **arguments,
            progress=stop,
            store=tmp_path,
            spec={"a": 1},
        )
    again = fit_early(model, parts.train, KEY, parts.validation, **arguments, store=tmp_path, spec={"a": 1})
    np.testing.assert_array_equal(again.history, whole.history)
    for a, b in zip(jax.tree.leaves(again.fitted.params), jax.tree.leaves(whole.fitted.params), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    with pytest.raises(ValueError, match="a"):
        fit_early(model, parts.train, KEY, parts.validation, **arguments, store=tmp_path, spec={"a": 2})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"metric": "auc"}, "metric='auc'; expected one of ndcg"),
        ({"every": 50}, "trains for 6 epochs only"),
        ({"patience": 0}, "patience=0"),
        ({"k": 0}, "k=0"),
    ],
)
def test_bad_settings(parts, change, match):
    with pytest.raises(ValueError, match=match):
        fit_early(wrmf.wrmf(factors=2, epochs=6), parts.train, KEY, parts.validation, **change)
