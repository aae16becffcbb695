"""The normalized graph of clicks, real and relaxed, and one propagation step over it.

    A = [[0, X], [X', 0]] over users (real and fake) and items,    A_n = D^-1/2 A D^-1/2

A relaxed cell `x_fi` is an edge of that weight, so degrees, and everything computed from them, are differentiable in
it. A node without edges has degree 0 and inverse root 0. Work follows the observed edges plus the F x I cells.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from models import cells
from models.cells import Cells

Table = tuple[Float[Array, "U D"], Float[Array, "F D"], Float[Array, "I D"]]


class Edges(NamedTuple):
    """The real clicks by user and by item, and their number: what does not depend on the fake rows."""

    forth: Cells
    back: Cells
    user: Float[Array, "U 1"]
    item: Float[Array, "I 1"]


class Graph(NamedTuple):
    """Edges, fake rows and the inverse roots of the degrees of real users, fake users and items."""

    edges: Edges
    x: Float[Array, "F I"]
    user: Float[Array, "U 1"]
    fake: Float[Array, "F 1"]
    item: Float[Array, "I 1"]


def edges_of(clicks: Cells) -> Edges:
    """What a graph needs of the real clicks, once for a training."""
    (users, items), back = clicks.shape, cells.turned(clicks)
    one = lambda rows: jnp.ones((rows, 1))
    return Edges(clicks, back, cells.gather(one(items), clicks), cells.gather(one(users), back))


def build(edges: Edges, x: Float[Array, "F I"]) -> Graph:
    """The graph of the real clicks and the fake rows; differentiable in `x`."""
    root = lambda total: jnp.where(total > 0, jnp.where(total > 0, total, 1) ** -0.5, 0)
    fake, item = jnp.sum(x, 1, keepdims=True), edges.item + jnp.sum(x, 0)[:, None]
    return Graph(edges=edges, x=x, user=root(edges.user), fake=root(fake), item=root(item))


def propagate(graph: Graph, table: Table) -> Table:
    """`A_n E` for embeddings `E` of real users, fake users and items.

    On the complete bipartite graph of a users and b items, a user gets `sum of items / sqrt(a b)`.

    >>> graph = build(edges_of(Cells(jnp.ones((2, 2)), None)), jnp.zeros((0, 2)))
    >>> propagate(graph, (jnp.zeros((2, 1)), jnp.zeros((0, 1)), jnp.array([[1.0], [3.0]])))[0].tolist()
    [[2.0], [2.0]]
    """
    user, fake, item = table
    scaled = graph.item * item
    return (
        graph.user * cells.gather(scaled, graph.edges.forth),
        graph.fake * (graph.x @ scaled),
        graph.item * (cells.gather(graph.user * user, graph.edges.back) + graph.x.T @ (graph.fake * fake)),
    )
