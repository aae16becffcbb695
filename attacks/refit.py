"""H-CARS's surrogate between fake users: it learns on from the visible users and those made so far.

Chen, Silvestri, Wang, Zhang, Tolomei, SIGIR 2023, section 4: a controlled user is "included into U' and Y in each
iteration". How often and how long the surrogate is then trained is not said, see `attacks.hcars`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from models.data import Interactions, Profiles, inject
from models.recommender import Recommender


class Refit(NamedTuple):
    """What the surrogate learns on with: itself, the visible data, targets and B of the fake users, epochs."""

    model: Recommender
    train: Interactions
    targets: Int[Array, " T"]
    budget: int
    epochs: int


def with_room(embedding: Any, fakes: int) -> Any:
    """The trained surrogate with a row for each of `fakes` more users, where it starts: at the mean of the others.

    Args:
        embedding: what scores read of it; the visible users come first in its tables.
        fakes: F.

    >>> grown = with_room({"params": {"user": jnp.array([[1.0], [3.0]])}, "clause": jnp.ones((2, 1))}, 1)
    >>> grown["params"]["user"].ravel().tolist(), grown["clause"].ravel().tolist()
    ([1.0, 3.0, 2.0], [1.0, 1.0, 0.0])
    """
    users = embedding["params"]["user"]
    room = jnp.broadcast_to(jnp.mean(users, 0), (fakes, users.shape[1]))
    params = {**embedding["params"], "user": jnp.concatenate([users, room])}
    return {"params": params, "clause": jnp.pad(embedding["clause"], ((0, fakes), (0, 0)))}


def learned(refit: Refit, params: Any, rows: Float[Array, "F I"], key: Key[Array, ""]) -> Any:
    """What scores read of the surrogate after `epochs` more on the visible users and these fake ones.

    Args:
        refit: what it learns on with.
        params: of the surrogate, with a row for each of the F fake users.
        rows: their clicks; those not made yet have none.
        key: of the order of clicks and of the negatives.
    """
    profiles = Profiles.from_rows(rows, refit.targets, width=refit.budget + refit.targets.size)
    poisoned, nobody = inject(refit.train, profiles), jnp.zeros((0, refit.train.items))
    data = refit.model.prepare(poisoned)
    inner = refit.model.trainer(poisoned.users, poisoned.items, 0, poisoned.capacity)
    move = lambda step, state: inner.step(state, nobody, data, inner.context(key, step))[0]
    begin = inner.init(params, nobody, data, key)
    end = lax.fori_loop(0, refit.epochs * inner.steps_per_epoch, move, begin)
    return refit.model.embed(end.params, nobody, data)
