"""Fake rows a learned attack starts from.

RevAdv starts from copies of real users who clicked little (Tang, Wen, Wang, RecSys 2020, released code). Its code
shuffles the users and then takes the first ones anyway; `copied_rows` offers both. They are then brought within
the budget (`attacks.feasible`), so that the very first iterate is already a legal answer.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from attacks.checks import check_rows
from models.data import Interactions

Rule = Literal["random_users", "first"]
Initial = Literal["random_users", "first", "given"]


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
    usable = jnp.where(jnp.any(fits), jnp.sum(fits), jnp.sum(held > 0))
    return rows[jnp.arange(fakes) % jnp.clip(usable, 1, copies)]


def start(
    rows: Float[ArrayLike, "F I"] | None,
    initial: Initial | Float[ArrayLike, "F I"],
    key: Key[Array, ""],
    train: Interactions,
    fakes: int,
    *,
    clicks: int,
) -> Float[Array, "F I"]:
    """The rows an attack starts from: those given at the call, else those of its configuration.

    Args:
        rows: rows given at the call, `(F, I)`, or `None`.
        initial: a rule, `"given"` (the call has to give rows) or rows.
        key, train, fakes, clicks: as in `copied_rows`.

    Returns:
        Binary rows `(F, I)`.

    Raises:
        ValueError: no rows where they have to be given, or configured rows of the wrong shape.
    """
    chosen = initial if rows is None else rows
    if isinstance(chosen, str):
        if chosen == "given":
            raise ValueError("this attack starts from rows of yours; pass initial=rows when calling it")
        return copied_rows(key, train, fakes, rule=chosen, clicks=clicks)
    if jnp.shape(chosen) != (fakes, train.items):
        raise ValueError(
            f"initial has shape {jnp.shape(chosen)}; expected ({fakes}, {train.items}), a row for every fake user"
        )
    return jnp.asarray(chosen, float)


def check_initial(initial: Any) -> None:
    """Refuse what is neither a rule, nor `"given"`, nor binary rows.

    Raises:
        ValueError: what was given and what was expected.
    """
    if not isinstance(initial, str):
        check_rows(initial)
    elif initial not in get_args(Initial):
        raise ValueError(
            f"initial is {initial!r}; expected 'random_users', 'first', 'given' or binary rows (F, I)"
        )


def most_copied(initial: Any, clicks: int | None) -> int:
    """Most clicks of a user that is copied, 100 by default; refused where rows are given and nobody is copied.

    Raises:
        ValueError: what was given and where it would be of use.

    >>> most_copied("random_users", None), most_copied("first", 20)
    (100, 20)
    """
    if clicks is not None and (not isinstance(initial, str) or initial == "given"):
        raise ValueError(
            f"initial_clicks is {clicks!r}, but the rows to start from are given, so no user is copied; leave it out"
        )
    return 100 if clicks is None else clicks
