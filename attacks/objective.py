"""What the attacker wants the trained recommender to do, as a loss.

Promotion by cross-entropy: Tang, Wen, Wang, "Revisiting Adversarially Learned Injection Attacks Against Recommender
Systems", RecSys 2020, eq. 3. It reads the scores of real users only and masks nothing: a target a user has already
clicked counts as any other.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CELLS = 1 << 24
"""Score cells held at once when no block is asked for: 64 MiB in float32, and the same again in the backward pass."""


def promotion(
    scores: Callable[[Int[Array, " B"]], Float[Array, "B I"]],
    users: int,
    targets: Int[Array, " T"],
    *,
    block: int | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of the targets in the score rows of all real users.

    `L_adv = - sum_u mean_t log softmax(S_u)_t`, summed over the `U` real users.

    Args:
        scores: maps user ids `(B,)` to their scores `(B, I)`; differentiable in whatever it closes over.
        users: number of real users `U`, >= 1.
        targets: ids of the promoted items, `(T,)`, each in `[0, I)`.
        block: users scored at once, >= 1; `None` takes as many as fit in `CELLS` score cells. The value does
            not depend on it. Memory is `block * I`: blocks are recomputed in the backward pass.

    Returns:
        The loss, a scalar >= 0.

    Raises:
        ValueError: `users` or `block` is below 1.

    Reference:
        RevAdv (RecSys 2020) eq. 3.

    **Differs from the paper:** eq. 3 has one target; the mean over several is that of its released code.

    >>> table = jnp.zeros((3, 4))
    >>> float(promotion(lambda ids: table[ids], 3, jnp.array([1, 2])))  # three users times log 4
    4.158883...
    """
    if users < 1:
        raise ValueError(f"users is {users}; the promotion loss needs at least one real user")
    if block is not None and block < 1:
        raise ValueError(f"block is {block}; expected at least one user a block, or None")
    if block is None:
        items = jax.eval_shape(scores, jax.ShapeDtypeStruct((1,), jnp.int32)).shape[-1]
        block = max(1, CELLS // items)
    if block >= users:
        return jnp.sum(_cross_entropy(scores(jnp.arange(users, dtype=jnp.int32)), targets))
    return _blocked(scores, users, targets, block)


def _cross_entropy(rows: Float[Array, "B I"], targets: Int[Array, " T"]) -> Float[Array, " B"]:
    """Per user: log-sum-exp of its scores minus the mean score of the targets."""
    return jax.nn.logsumexp(rows, axis=-1) - jnp.mean(rows[:, targets], axis=-1)


def _blocked(scores, users: int, targets, block: int) -> Float[Array, ""]:
    """The same sum, one block of users after the other, each recomputed when it is differentiated."""
    starts = jnp.arange(0, users, block, dtype=jnp.int32)

    @jax.checkpoint
    def add(total, start):
        ids = start + jnp.arange(block, dtype=jnp.int32)
        # The last block is filled up with the last user, whose copies are then not counted.
        losses = _cross_entropy(scores(jnp.minimum(ids, users - 1)), targets)
        return total + jnp.sum(jnp.where(ids < users, losses, 0)), None

    dtype = jax.eval_shape(scores, jax.ShapeDtypeStruct((1,), jnp.int32)).dtype
    return jax.lax.scan(add, jnp.zeros((), dtype), starts)[0]
