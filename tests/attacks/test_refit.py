"""H-CARS's surrogate between fake users: who sees whom, and that learning on is a fit."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.refit import Refit, in_turn, learned
from models import ncr
from models.data import Interactions

KEY = jax.random.key(0)
U, I = 9, 12
SMALL = {"factors": 4, "epochs": 2, "batch": 16}


@pytest.fixture
def train(few_clicks):
    return few_clicks


@pytest.fixture
def params(logic):
    return logic


def test_in_turn_shows_each_group_what_was_made_before(train, params, monkeypatch):
    """Groups of two, of five fake users: each reads the surrogate that learned from all earlier groups."""
    model = ncr.ncr(**SMALL)
    refit = Refit(model, train, jnp.array([2, 7]), 2, 1, KEY)
    start = {"params": params, "clause": jnp.zeros((U, 4))}

    def relearned(refit, params, rows, key):
        clicks = jnp.sum(rows)  # what it was given, told to the next group in place of a training
        return {"params": params, "clause": jnp.full((U + 5, 4), clicks)}

    def one(embedding, key):
        known = embedding["params"]["user"][U:, 0]
        return (
            jnp.array([0, 1]),
            jnp.full(4, 9.0),
            {"saw": embedding["clause"][0, 0], "nines": jnp.sum(known == 9)},
        )

    monkeypatch.setattr(importlib.import_module("attacks.refit"), "learned", relearned)
    chosen, said = jax.jit(lambda: in_turn(refit, one, start, jax.random.split(KEY, 5), 2))()
    assert chosen.shape == (5, 2)
    assert said["saw"].tolist() == [0, 0, 8, 8, 16]  # two targets and two items each
    assert said["nines"].tolist() == [0, 0, 2, 2, 4]


@pytest.mark.slow
def test_learning_on_is_a_fit_of_the_injected_data(x64, train, params):
    """The same steps by hand: the poisoned data, Adam anew, the surrogate's own batches."""
    rows = np.zeros((2, I))
    rows[0, [2, 7, 4]] = 1
    model, targets = ncr.ncr(**SMALL), jnp.array([2, 7])
    grown = {**params, "user": jnp.concatenate([params["user"], jnp.ones((2, 4))])}
    dense = np.concatenate([np.asarray(train.dense()), rows])
    expected = Interactions.from_dense(dense, capacity=train.capacity + 2 * 3)
    found = jax.jit(lambda: learned(Refit(model, train, targets, 1, 2, KEY), grown, jnp.asarray(rows), KEY))()
    inner = model.trainer(U + 2, I, 0, expected.capacity)
    data, nobody = model.prepare(expected), jnp.zeros((0, I))
    state = inner.init(grown, nobody, data, KEY)
    step = jax.jit(lambda n, state: inner.step(state, nobody, data, inner.context(KEY, n))[0])
    for n in range(2 * inner.steps_per_epoch):
        state = step(n, state)
    for a, b in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert np.abs(np.asarray(found["params"]["user"][U] - 1)).max() > 1e-4  # a fake user learns too
