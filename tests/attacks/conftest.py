"""A recommender that costs nothing to train or to compile, for what does not depend on how a surrogate learns."""

import jax.numpy as jnp
import pytest

import bilevel
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
