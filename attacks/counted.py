"""Rankers that count, inside a black box: ItemPop and CoVisitation, and what every ranker there is to the outside.

Song, Zhao et al., "PoisonRec", ICDE 2020, section IV-A; Yang, Gong, Cai, NDSS 2017 (CoVisitation). Injected clicks are
added to the counts of `models.itempop` and `models.covisitation` exactly, at the cost of these clicks; scores are read
at the items offered, for which CoVisitation keeps the counts of the clean data apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from models import covisitation, sparse
from models.data import Interactions
from models.recommender import Recommender


class Offer(NamedTuple):
    """What is ranked: `users` (n,), and for each of them `item` (n, C), candidates and then targets."""

    users: Int[Array, " n"]
    item: Int[Array, "n C"]


class Ranker(NamedTuple):
    """A recommender behind the black box, as static functions.

    Attributes:
        open: `(key, train, fakes, offer) -> base`, the clean ranker; `fakes` is the number of attackers.
        clean: `base -> tuned`, what is read of it without any poison.
        update: `(base, clicks (N, T), key) -> tuned`, reloaded and updated.
        read: `(base, tuned, rows, offer) -> (B, C)` scores of the rows `rows` (B,) of the offer, `offer` being those.
    """

    open: Callable[[Key[Array, ""], Interactions, int, Offer], Any]
    clean: Callable[[Any], Any]
    update: Callable[[Any, Int[Array, "N T"], Key[Array, ""]], Any]
    read: Callable[[Any, Any, Int[Array, " B"], Offer], Float[Array, "B C"]]


def popularity() -> Ranker:
    """ItemPop: the counts of the clean data, and those of the clicks."""
    return Ranker(
        open=lambda key, train, fakes, offer: train.popularity(),
        clean=lambda base: base,
        update=lambda base, clicks, key: base.at[clicks.ravel()].add(1),
        read=lambda base, tuned, rows, offer: tuned[offer.item].astype(float),
    )


class Covisits(NamedTuple):
    """`visits` of items; `recent`, `known` (n, H): the last visits of the users; `between` (n, H, C): co-visits of each
    of them and each item offered.
    """

    visits: Int[Array, " I"]
    recent: Int[Array, "n H"]
    known: Float[Array, "n H"]
    between: Float[Array, "n H C"]


class NewVisits(NamedTuple):
    """`place` of an item among the clicked ones (the last: none), co-visits `between` those, `visits` of all items."""

    place: Int[Array, " I"]
    between: Float[Array, "P P"]
    visits: Int[Array, " I"]


def covisits(model: Recommender) -> Ranker:
    """CoVisitation: `sum over the last visits i of a user of w_ij / f(w_i, w_j)` at the items j offered to it.

    The clean `w_ij` are looked up once, n x H x C numbers; those of the clicks fit a table of the items clicked.
    """
    over = model.config["normalization"]

    def open_(key, train: Interactions, fakes: int, offer: Offer) -> Covisits:
        data = covisitation.prepare(train, normalization="none", history=model.config["history"])
        recent, known = data.recent[offer.users], data.known[offer.users]
        between = lax.map(lambda row: _count(data.pairs, row[0][:, None], row[1][None]), (recent, offer.item))
        return Covisits(train.popularity(), recent, known, between.astype(known.dtype))

    def update(base: Covisits, clicks: Int[Array, "N T"], key) -> NewVisits:
        every = clicks.size
        at = jnp.arange(every, dtype=jnp.int32)
        place = jnp.full(base.visits.shape, every, jnp.int32).at[clicks.ravel()].set(at)
        a, b = place[clicks[:, :-1]], place[clicks[:, 1:]]
        follows = (a != b).astype(base.between.dtype)  # the same item twice in a row is no co-visit
        between = jnp.zeros((every + 1, every + 1), base.between.dtype).at[a, b].add(follows)
        return NewVisits(place, between + between.T, base.visits.at[clicks.ravel()].add(1))

    def clean(base: Covisits) -> NewVisits:
        nothing = jnp.zeros(base.visits.shape, jnp.int32)
        return NewVisits(nothing, jnp.zeros((1, 1), base.between.dtype), base.visits)

    def read(base: Covisits, tuned: NewVisits, rows, offer: Offer) -> Float[Array, "B C"]:
        recent, item = base.recent[rows], offer.item
        together = (
            base.between[rows] + tuned.between[tuned.place[recent][:, :, None], tuned.place[item][:, None]]
        )
        visits = jnp.maximum(tuned.visits, 1).astype(together.dtype)
        weight = base.known[rows] / (jnp.sqrt(visits[recent]) if over == "cosine" else 1)
        scores = jnp.einsum("bhc,bh->bc", together, weight)
        return scores / {"cosine": jnp.sqrt(visits[item]), "none": 1, "target": visits[item]}[over]

    return Ranker(open_, clean, update, read)


def _count(cells: sparse.Observed, row: Int[Array, "*B"], col: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """How often each cell is among the known ones, by bisection in its row."""
    row, col = jnp.broadcast_arrays(row, col)

    def places(past):  # the first slot of the row whose column is not below `col` (past: above it)
        def halve(_, span):
            low, high = span
            middle = (low + high) // 2
            found = cells.col[jnp.minimum(middle, cells.col.shape[0] - 1)]
            below = (found <= col) if past else (found < col)
            return jnp.where((low < high) & below, middle + 1, low), jnp.where(
                (low < high) & ~below, middle, high
            )

        span = (cells.row_start[row], cells.row_start[row + 1])
        return lax.fori_loop(0, cells.col.shape[0].bit_length() + 1, halve, span)[0]

    return places(True) - places(False)
