"""GMF's weight decay is the one of Adam in PyTorch: coupled, of every parameter, looked up or not (RecBole's L2)."""

import jax
import jax.numpy as jnp
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
