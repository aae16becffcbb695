"""What files of tests share: a recommender that costs nothing to train or to compile, for what does not depend on how a
surrogate learns; and a few clicks with parameters of NCR for what reasons with them.
"""

import jax
import jax.numpy as jnp
import pytest

import bilevel
from models import ncr
from models.data import Interactions
from models.recommender import Recommender


@pytest.fixture(scope="session")
def counting() -> Recommender:
    """Scores by co-occurrence, `S = X (X'X + x'x)`: nothing is learned, and the scores read the fake rows."""

    def embed(params, x, data):
        return data, data.T @ data + x.T @ x + params

    return Recommender(
        name="counting",
        config={},
        prepare=lambda train: train.dense(),
        init=lambda key, users, items, fakes: jnp.zeros(()),
        loss=lambda params, x, data, ctx: params**2,
        embed=embed,
        score=lambda embedding, users: embedding[0][users] @ embedding[1],
        trainer=lambda users, items, fakes, events=0: bilevel.fixed_point(
            lambda params, x, data, ctx: params, 1
        ),
    )


@pytest.fixture
def train(rng) -> Interactions:
    """Nine users and twelve items; the first user has at least four clicks, everybody one."""
    dense = (rng.random((9, 12)) < 0.4).astype(float)
    dense[:, 0] += dense.sum(1) == 0
    dense[0, :4] = 1
    return Interactions.from_dense(dense)


@pytest.fixture
def params():
    """Parameters of NCR for `train`, large enough that cosines are well away from rounding."""
    leaves, shape = jax.tree.flatten(ncr.ncr(factors=4).init(jax.random.key(0), 9, 12, 0))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return shape.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])
