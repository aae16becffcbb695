"""H-CARS's surrogate between fake users: learning on is a fit. Who sees whom: test_hcars.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.refit import Refit, learned
from models import ncr
from models.data import Interactions

KEY = jax.random.key(0)
U, I = 9, 12
SMALL = {"factors": 4, "epochs": 2, "batch": 16}


@pytest.mark.slow
def test_learning_on_is_a_fit_of_the_injected_data(x64, train, params):
    """The same steps by hand: the poisoned data, Adam anew, the surrogate's own batches."""
    rows = np.zeros((2, I))
    rows[0, [2, 7, 4]] = 1
    model, targets = ncr.ncr(**SMALL), jnp.array([2, 7])
    grown = {**params, "user": jnp.concatenate([params["user"], jnp.ones((2, 4))])}
    dense = np.concatenate([np.asarray(train.dense()), rows])
    expected = Interactions.from_dense(dense, capacity=train.capacity + 2 * 3)
    found = jax.jit(lambda: learned(Refit(model, train, targets, 1, 2), grown, jnp.asarray(rows), KEY))()
    inner = model.trainer(U + 2, I, 0, expected.capacity)
    data, nobody = model.prepare(expected), jnp.zeros((0, I))
    state = inner.init(grown, nobody, data, KEY)
    step = jax.jit(lambda n, state: inner.step(state, nobody, data, inner.context(KEY, n))[0])
    for n in range(2 * inner.steps_per_epoch):
        state = step(n, state)
    for a, b in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert np.abs(np.asarray(found["params"]["user"][U] - 1)).max() > 1e-4  # a fake user learns too
