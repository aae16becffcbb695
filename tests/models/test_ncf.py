"""GMF's weight decay is the one of Adam in PyTorch: coupled, of every parameter, looked up or not (RecBole's L2)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from models import ncf
from models.data import Interactions
from models.train import begin

DECAY = 0.03
SIZES = {"factors": 3, "learning_rate": 0.02, "l2": 0.0, "negatives": 2, "batch": 4, "epochs": 2}


@pytest.fixture
def train(rng):
    matrix = rng.random((5, 9)) < 0.4
    matrix[3] = False  # a user nobody looks up
    return Interactions.from_dense(matrix.astype(float))


@pytest.mark.slow
def test_weight_decay_is_coupled_and_of_all_parameters(x64, train, key):
    decayed, plain = ncf.gmf(**SIZES, weight_decay=DECAY), ncf.gmf(**SIZES)
    start = begin(decayed, train, key)
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.adam(SIZES["learning_rate"]))
    batches = bilevel.minibatches(train.capacity, SIZES["batch"])
    other = bilevel.gradient_descent(plain.loss, optimizer, start.inner.steps, batches=batches)
    ours, expected = (
        jax.jit(bilevel.detached(inner))(start.x, start.params, start.data, start.key)
        for inner in (start.inner, other)
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=1e-10, atol=1e-12), ours, expected))
    assert jnp.all(ours["user"][3] != start.params["user"][3])


def test_weight_decay_has_a_range():
    with pytest.raises(ValueError, match="weight_decay=-1; expected a number of at least 0"):
        ncf.gmf(weight_decay=-1)


def test_ratings_are_learned_by_their_squared_error(x64, key):
    """ACCENT's NCF: the loss by its formula in NumPy, padding apart, and its truncated start."""
    ratings = Interactions.from_arrays([0, 0, 1, 2], [0, 3, 1, 3], [5.0, 1.0, 4.0, 2.0], items=5, capacity=6)
    model = ncf.preset("accent", factors=4, tower=3, hidden=(3, 2), batch=None, weight_decay=DECAY)
    start = begin(model, ratings, key)
    w = jax.tree.map(lambda leaf: np.asarray(leaf, float), start.params)
    errors = []
    for u, i, r in zip([0, 0, 1, 2], [0, 3, 1, 3], [5.0, 1.0, 4.0, 2.0], strict=True):
        h = np.concatenate([w["tower_user"][u], w["tower_item"][i]])
        for layer in w["layers"].values():
            h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
        h = np.concatenate([w["user"][u] * w["item"][i], h])
        errors.append((r - (h @ w["last"]["kernel"])[0] - w["last"]["bias"][0]) ** 2)
    penalty = sum(np.sum(leaf**2) for leaf in jax.tree.leaves(w))
    loss = model.loss(start.params, start.x, start.data, bilevel.Ctx(key, 0))
    np.testing.assert_allclose(loss, np.mean(errors) + DECAY / 2 * penalty, rtol=1e-12)
    assert np.abs(w["user"]).max() <= 0.5
    assert not np.any(w["layers"][0]["bias"])
    with pytest.raises(ValueError, match="learns from ratings"):
        model.prepare(Interactions.from_arrays([0], [0]))
    with pytest.raises(ValueError, match="objective='stars'; expected one of clicks, ratings"):
        ncf.gmf(objective="stars")
