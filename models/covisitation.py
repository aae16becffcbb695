"""CoVisitation: items visited right after each other are recommended to whoever visited one of them.

Yang, Gong, Cai, *Fake co-visitation injection attacks to recommender systems*, NDSS 2017; as the victim of Song et al.,
ICDE 2020 (PoisonRec), which calls it an item-based method on sequential behavior:

    w_ij = number of times i and j are visited in succession, in either order;    s_ij = w_ij / f(w_i, w_j)
    score of j for u = sum of s_ij over the last `history` visits i of u

with `w_i` the visits of i and `f` one of `sqrt(w_i w_j)`, 1 and `w_j`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models import sparse
from models.data.interactions import Interactions
from models.recommender import Recommender, counts, one_of, sound, untrained

Normalization = Literal["cosine", "none", "target"]


class Data(NamedTuple):
    """Strengths `value` of pairs (row: visited, column: recommended), and the last visits of each user."""

    pairs: sparse.Observed
    value: Float[Array, " E"]
    recent: Int[Array, "U H"]
    known: Float[Array, "U H"]


def covisitation(*, normalization: Normalization = "cosine", history: int = 10) -> Recommender:
    """CoVisitation as a `Recommender` of sequences; nothing is learned.

    Args:
        normalization: f: "cosine" `sqrt(w_i w_j)`, "none" 1, "target" `w_j`.
        history: last visits of a user that count, >= 1.

    Raises:
        ValueError: a number outside its range, an unknown normalization; data without an order, or fake rows, which
            have none either (inject click sequences).

    Reference: Yang, Gong, Cai, NDSS 2017; Song et al. (PoisonRec), ICDE 2020, section IV-A.

    **Differs from the paper:** neither states f or the history for PoisonRec's testbed; both are arguments. A visit of
    the same item twice in a row is no co-visit.

    >>> data = Interactions.from_arrays([0, 0, 0, 0], [2, 1, 2, 1], time=[1, 2, 3, 4], track="sequence")
    >>> made = covisitation(normalization="none", history=1)
    >>> made.scores({}, jnp.zeros((0, 3)), made.prepare(data), jnp.array([0])).tolist()
    [[0.0, 0.0, 3.0]]
    """
    config = dict(locals())
    counts("covisitation", history=history)
    one_of("covisitation", "normalization", normalization, get_args(Normalization))
    return untrained("covisitation", config, partial(prepare, **config), embed, score)


def prepare(train: Interactions, *, normalization: Normalization, history: int) -> Data:
    """Co-visits and histories; works under `jit` and `vmap`."""
    if train.track != "sequence":
        raise ValueError(
            f"covisitation learns from the order of visits, but the data are of track {train.track!r}; "
            "load them with track='sequence' and their times"
        )
    user, item, real = train.user, train.item, train.mask
    follows = (user[1:] == user[:-1]) & (item[1:] != item[:-1]) & real[1:] & real[:-1]
    first, second, twice = (
        jnp.concatenate([item[:-1], item[1:]]),
        jnp.concatenate([item[1:], item[:-1]]),
        (follows,) * 2,
    )
    pairs = sparse.observed(first, second, jnp.concatenate(twice), train.items, train.items, repeats=True)
    visits = jnp.maximum(train.popularity(), 1).astype(train.weight.dtype)
    over = {
        "cosine": jnp.sqrt(visits[pairs.row] * visits[pairs.col]),
        "none": jnp.ones(pairs.row.shape, visits.dtype),
        "target": visits[pairs.col],
    }[normalization]
    pointers = train.row_pointers()
    slot = pointers[1:, None] - 1 - jnp.arange(history)
    known = slot >= pointers[:-1, None]
    recent = jnp.where(known, item[jnp.where(known, slot, 0)], 0)
    return Data(pairs, sound(train) / over, recent, known.astype(visits.dtype))


def embed(params: Any, x: Float[Array, "F I"], data: Data) -> Data:
    """The data: nothing is learned."""
    if x.shape[0]:
        raise ValueError(
            "covisitation: fake rows have no order; inject click sequences into the training data "
            "(models.data.inject of Profiles.from_clicks)"
        )
    return data


def score(data: Data, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """The strengths summed over the recent visits of each user; a repeated visit counts again."""
    items = data.pairs.row_start.shape[0] - 1
    recent, known = data.recent[users], data.known[users]
    rows = jnp.arange(users.shape[0])[:, None]
    visited = jnp.zeros((users.shape[0], items), known.dtype).at[rows, recent].add(known)
    return sparse.spread_back(data.value, visited.T, data.pairs).T
