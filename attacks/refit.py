"""H-CARS's surrogate between fake users: it learns on from the visible users and those made so far.

Chen, Silvestri, Wang, Zhang, Tolomei, SIGIR 2023, section 4: a controlled user is "included into U' and Y in each
iteration". How often and how long the surrogate is then trained is not said, see `attacks.hcars`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from models.data import Interactions, Profiles, inject
from models.recommender import Recommender


class Refit(NamedTuple):
    """What the surrogate learns on with: itself, the visible data, targets and B of the fake users, epochs, a key."""

    model: Recommender
    train: Interactions
    targets: Int[Array, " T"]
    budget: int
    epochs: int
    key: Key[Array, ""]


def in_turn(
    refit: Refit, one: Callable[[Any, Array], Any], embedding: Any, keys: Key[Array, " F"], every: int
) -> tuple[Int[Array, "F B"], dict[str, Array]]:
    """Fake users in groups of `every`; after each group the surrogate learns from all that there are.

    Args:
        refit: of the surrogate.
        one: `(embedding, key) -> (items, vector, metrics)` of a fake user.
        embedding: of the surrogate trained on the visible users; theirs come first in its tables.
        keys: one a fake user.
        every: size of a group, below F.
    """
    real, items, F = refit.train.users, refit.train.items, keys.shape[0]
    groups = -(-F // every)
    users = embedding["params"]["user"]
    room = jnp.broadcast_to(jnp.mean(users, 0), (F, users.shape[1]))  # a row for each, filled when it is made
    params = {**embedding["params"], "user": jnp.concatenate([users, room])}
    rows = jnp.zeros((F, items)).at[:, refit.targets].set(1)

    def group(carry, number):
        embedding, rows = carry
        at = number * every + jnp.arange(every)
        chosen, h, said = lax.map(lambda key: one(embedding, key), keys[jnp.minimum(at, F - 1)])
        rows = rows.at[at[:, None], chosen].set(1, mode="drop")
        params = embedding["params"]
        params = {**params, "user": params["user"].at[real + at].set(h, mode="drop")}
        made = jnp.where((jnp.arange(F) < (number + 1) * every)[:, None], rows, 0)
        embedding = lax.cond(
            number + 1 < groups,
            lambda: learned(refit, params, made, jax.random.fold_in(refit.key, number)),
            lambda: {**embedding, "params": params},
        )
        return (embedding, rows), (chosen, said)

    start = {"params": params, "clause": jnp.pad(embedding["clause"], ((0, F), (0, 0)))}
    _, (chosen, said) = lax.scan(group, (start, rows), jnp.arange(groups))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:F], (chosen, said))


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
