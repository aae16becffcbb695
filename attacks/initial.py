"""Fake rows a learned attack starts from.

RevAdv starts from copies of real users who clicked little (Tang, Wen, Wang, RecSys 2020, released code). Its code
shuffles the users and then takes the first ones anyway; `copied_rows` offers both. The copies are then brought
within the budget, so that the very first iterate is already a legal answer.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bilevel.project import column_mask, topk
from models.data import Interactions

Rule = Literal["random_users", "first"]


def copied_rows(
    key: Key[Array, ""], train: Interactions, fakes: int, *, rule: Rule = "random_users", clicks: int = 100
) -> Float[Array, "F I"]:
    """Rows of `fakes` real users who clicked between 1 and `clicks` items.

    Args:
        key: decides which users, under `rule="random_users"`.
        train: the interactions the attacker sees.
        fakes: number of rows `F`, >= 1.
        rule: `"random_users"` draws without replacement; `"first"` takes the lowest user ids.
        clicks: most clicks a copied user may have, >= 1.

    Returns:
        Binary rows `(F, I)`. With fewer such users than `F` they are used again in turn; with none at all the
        users with the fewest clicks are copied.

    Reference:
        Tang, Wen, Wang, RecSys 2020, released code.

    **Differs from the paper:** the paper does not say how fake rows start. Its code takes the first users
    (`rule="first"`) where random ones were evidently meant; users without a click are never copied here.

    >>> train = Interactions.from_dense(jnp.array([[1, 1, 1], [0, 1, 0], [1, 0, 1]]))
    >>> copied_rows(jax.random.key(0), train, 2, rule="first", clicks=2).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    held = train.degrees()
    fits = (held >= 1) & (held <= clicks)
    place = jnp.arange(train.users) if rule == "first" else jax.random.permutation(key, train.users)
    # Users that fit come first, in the order of `place`; the others follow by how much they clicked, empty ones last.
    late = jnp.where(held == 0, jnp.iinfo(held.dtype).max, held)
    order = jnp.lexsort((place, jnp.where(fits, 0, late)))
    copies = min(fakes, train.users)
    rank = jnp.zeros(train.users, jnp.int32).at[order].set(jnp.arange(train.users, dtype=jnp.int32))
    # Only the copied users' events are written: a real set as users x items would not fit in memory.
    row = jnp.where(train.mask & (rank[train.user] < copies), rank[train.user], copies)
    rows = jnp.zeros((copies, train.items)).at[row, train.item].set(1.0, mode="drop")
    return rows[jnp.arange(fakes) % jnp.clip(jnp.sum(fits), 1, copies)]


def feasible(
    key: Key[Array, ""],
    rows: Float[Array, "F I"],
    targets: Int[Array, " T"],
    *,
    budget: int | None,
    click_targets: bool,
) -> Float[Array, "F I"]:
    """Rows brought within the budget: of too many non-target clicks a random `budget` are kept.

    Args:
        key: decides which clicks stay.
        rows: binary rows, `(F, I)`.
        targets: ids of the targets, `(T,)`.
        budget: non-target clicks a row may have, >= 0; `None` keeps all.
        click_targets: click every target in every row; otherwise the rows' own target clicks stay as they are.

    Returns:
        Binary rows `(F, I)`.

    Reference:
        None: ours.

    **Differs from the paper:** RevAdv has no budget and projects only after its first step; an iterate that is
    scored may be returned, so here the first one is legal too.

    >>> rows = feasible(jax.random.key(0), jnp.ones((1, 6)), jnp.array([4]), budget=2, click_targets=True)
    >>> float(rows.sum()), float(rows[0, 4])
    (3.0, 1.0)
    """
    target = column_mask(targets, rows.shape[-1])
    kept = (rows > 0) & ~target
    if budget is not None:
        chance = jnp.where(kept, jax.random.uniform(key, rows.shape, rows.dtype), -1.0)
        kept &= topk(budget, exclude=targets)(chance) > 0
    on_target = (rows > 0) | click_targets
    return jnp.where(target, on_target, kept).astype(rows.dtype)
