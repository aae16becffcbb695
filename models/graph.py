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


class Graph(NamedTuple):
    """Edges and the inverse roots of the degrees of real users, fake users and items."""

    edges: Cells
    back: Cells
    x: Float[Array, "F I"]
    user: Float[Array, "U 1"]
    fake: Float[Array, "F 1"]
    item: Float[Array, "I 1"]


def build(edges: Cells, x: Float[Array, "F I"]) -> Graph:
    """The graph of the real clicks and the fake rows; differentiable in `x`."""
    users, items = edges.shape
    back = cells.turned(edges)
    one = lambda rows: jnp.ones((rows, 1), x.dtype)
    degree = lambda total: jnp.where(total > 0, jnp.where(total > 0, total, 1) ** -0.5, 0)
    return Graph(
        edges=edges,
        back=back,
        x=x,
        user=degree(cells.gather(one(items), edges)),
        fake=degree(jnp.sum(x, 1, keepdims=True)),
        item=degree(cells.gather(one(users), back) + jnp.sum(x, 0)[:, None]),
    )


def propagate(graph: Graph, table: Table) -> Table:
    """`A_n E` for embeddings `E` of real users, fake users and items.

    On the complete bipartite graph of a users and b items, a user gets `sum of items / sqrt(a b)`.

    >>> graph = build(Cells(jnp.ones((2, 2)), None), jnp.zeros((0, 2)))
    >>> propagate(graph, (jnp.zeros((2, 1)), jnp.zeros((0, 1)), jnp.array([[1.0], [3.0]])))[0].tolist()
    [[2.0], [2.0]]
    """
    user, fake, item = table
    scaled = graph.item * item
    return (
        graph.user * cells.gather(scaled, graph.edges),
        graph.fake * (graph.x @ scaled),
        graph.item * (cells.gather(graph.user * user, graph.back) + graph.x.T @ (graph.fake * fake)),
    )
