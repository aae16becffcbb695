"""Action spaces of a click: one softmax over the catalog, or a walk down a biased complete binary tree (BCBT).

Song, Zhao et al., "PoisonRec: An Adaptive Data Poisoning Framework for Attacking Black-box Recommender Systems",
ICDE 2020, sections III-C (eq. 6), III-E (Alg. 2) and IV-B. With `q = D(h_t)` of the policy and `v` a node's embedding:

    plain          p(i) = softmax_i(q . e_i)                                                       one decision
    bplain         targets or originals, then a softmax within that set                            two
    bcbt-popular   at node k, child ~ softmax(q . [v_2k+1, v_2k+2]), until a leaf                  about log2 I
    bcbt-random    the same tree with the items shuffled

The tree is a root over one complete tree of the targets and one of the other items. Its shape is static, so a walk is
a `lax.scan` over its depth with a mask; which item hangs at which leaf is data and may be traced.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from bilevel.project import column_mask

Design = Literal["plain", "bplain", "bcbt-popular", "bcbt-random"]


class Complete(NamedTuple):
    """A complete binary tree in heap order; all static. Node k has the children `2k + 1` and `2k + 2`.

    `leaves` (n,): the leaf nodes from left to right; `chosen`, `other` (n, depth): on the way to each of them the
    child taken and the one not taken, -1 below the leaf.
    """

    leaves: np.ndarray
    chosen: np.ndarray
    other: np.ndarray


def complete(count: int) -> Complete:
    """The complete binary tree of `count` leaves: `2 count - 1` nodes, the last layer filled from the left.

    With `f = 2^h - 1`, `h = floor(log2(2n - 1))`, the first node of the last layer, the leaves from left to right are
    `f .. 2n-2`, then `n-1 .. f-1`.

    Raises:
        ValueError: `count` below 1.

    >>> complete(5).leaves.tolist()
    [7, 8, 4, 5, 6]
    >>> complete(1).leaves.tolist(), complete(1).chosen.shape
    ([0], (1, 0))
    """
    if count < 1:
        raise ValueError(f"a tree of {count} leaves; expected at least 1")
    nodes = 2 * count - 1
    depth = nodes.bit_length() - 1
    first = 2**depth - 1
    leaves = np.concatenate([np.arange(first, nodes), np.arange(count - 1, first)]).astype(np.int32)
    chosen = np.full((count, depth), -1, np.int32)
    for place, node in enumerate(leaves):
        way = []
        while node:
            way.append(node)
            node = (node - 1) // 2
        chosen[place, : len(way)] = way[::-1]
    other = np.where(
        chosen > 0, chosen + 2 * (chosen % 2) - 1, -1
    )  # the sibling of an odd node is the next one
    return Complete(leaves, chosen, other.astype(np.int32))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Space:
    """What a policy chooses from; a pytree. Made by `make_space`.

    Attributes:
        targets: ids of the targets, `(T,)`.
        place: of each item, among the leaves from left to right, `(I,)`: targets first.
        item: the item at each leaf, `(I,)`.
        row: the row of the embedding table of each node of the tree, `(2 I - 1,)`; empty without a tree.
        design, inner: static; which of the four, and how many rows the table has besides the items'.
    """

    targets: Int[Array, " T"]
    place: Int[Array, " I"]
    item: Int[Array, " I"]
    row: Int[Array, " V"]
    design: Design = field(metadata={"static": True})
    inner: int = field(metadata={"static": True})

    @property
    def decisions(self) -> int:
        """Static number of decisions of a click, the most of any item."""
        sets = (self.targets.shape[0], self.item.shape[0] - self.targets.shape[0])
        return {"plain": 1, "bplain": 2}.get(self.design, 1 + max((2 * n - 1).bit_length() - 1 for n in sets))


def make_space(
    design: Design, key: Key[Array, ""], popularity: Int[Array, " I"], targets: Int[Array, " T"]
) -> Space:
    """The action space of a catalog.

    Args:
        design: see above.
        key: shuffles the items of "bcbt-random"; the others draw nothing.
        popularity: clicks of each item: leaves are in descending order of it, of targets and of others apart, ties by
            id.
        targets: distinct ids, fewer than items; may be traced.

    Raises:
        ValueError: an unknown design, or no item but targets.

    Reference: Song et al., ICDE 2020, sections III-E1 and IV-B.

    **Differs from the paper:** it sorts by popularity without a direction; here descending.

    >>> space = make_space("bcbt-popular", jax.random.key(0), jnp.array([5, 0, 7]), jnp.array([1]))
    >>> space.item.tolist(), space.decisions
    ([1, 2, 0], 2)
    """
    check_design(design)
    I, T = popularity.shape[0], targets.shape[0]
    if not 0 < T < I:
        raise ValueError(
            f"{T} targets of {I} items; a policy chooses between targets and at least one other item"
        )
    wish = jax.random.uniform(key, (I,)) if design == "bcbt-random" else popularity.astype(float)
    first = ~column_mask(targets, I)
    item = jnp.lexsort((jnp.arange(I), -wish, first)).astype(jnp.int32)
    place = jnp.zeros(I, jnp.int32).at[item].set(jnp.arange(I, dtype=jnp.int32))
    nothing = jnp.zeros(0, jnp.int32)
    if design in ("plain", "bplain"):
        return Space(targets, place, item, nothing, design, 0 if design == "plain" else 2)
    leaf = _joined(T, I - T).leaf
    inner = np.ones(2 * I - 1, bool)
    inner[leaf] = False
    row = np.zeros(2 * I - 1, np.int32)
    row[inner] = I + np.arange(I - 1)
    return Space(targets, place, item, jnp.asarray(row).at[leaf].set(item), design, I - 1)


def check_design(design: str) -> None:
    """Raise unless `design` is one of the four."""
    if design not in get_args(Design):
        raise ValueError(f"design is {design!r}; expected one of {', '.join(map(repr, get_args(Design)))}")


class _Joined(NamedTuple):
    """The two trees under one root (node 0): children of each node (itself at a leaf) and the way to each leaf."""

    left: np.ndarray
    right: np.ndarray
    leaf: np.ndarray
    chosen: np.ndarray
    other: np.ndarray


@functools.cache
def _joined(targets: int, others: int) -> _Joined:
    nodes = 2 * (targets + others) - 1
    left, right = np.arange(nodes, dtype=np.int32), np.arange(nodes, dtype=np.int32)
    roots = (1, 2 * targets)
    left[0], right[0] = roots
    parts = [complete(targets), complete(others)]
    depth = 1 + max(part.chosen.shape[1] for part in parts)
    ways: list[list[np.ndarray]] = [[], []]
    for part, root, sibling, count in zip(parts, roots, roots[::-1], (targets, others)):
        node = np.arange(count - 1)
        left[root + node], right[root + node] = root + 2 * node + 1, root + 2 * node + 2
        for way, below, top in zip(ways, (part.chosen, part.other), (root, sibling)):
            full = np.full((count, depth), -1, np.int32)
            full[:, 0] = top
            full[:, 1 : 1 + below.shape[1]] = np.where(below >= 0, below + root, -1)
            way.append(full)
    leaf = np.concatenate([part.leaves + root for part, root in zip(parts, roots)])
    return _Joined(left, right, leaf, np.concatenate(ways[0]), np.concatenate(ways[1]))


def init(key: Key[Array, ""], space: Space, width: int, scale: float) -> Mapping[str, Float[Array, "V D"]]:
    """Embeddings of items and of inner nodes, `N(0, scale^2)`."""
    for_item, for_node = jax.random.split(key)
    return {
        "item": scale * jax.random.normal(for_item, (space.item.shape[0], width)),
        "node": scale * jax.random.normal(for_node, (space.inner, width)),
    }


def sample(
    space: Space, table: Float[Array, "V D"], q: Float[Array, " D"], key: Key[Array, ""]
) -> tuple[Int[Array, ""], Float[Array, " d"]]:
    """One click and the log-probability of each of its decisions (0 where there is none).

    Args:
        space: from `make_space`.
        table: embeddings of the items, then of the inner nodes.
        q: what the policy makes of its state.
        key: consumed.

    Reference: Song et al., ICDE 2020, eq. 6 and Alg. 2.
    """
    if space.design in ("plain", "bplain"):
        return _sample_flat(space, table, q, key)
    joined = _joined(space.targets.shape[0], space.item.shape[0] - space.targets.shape[0])
    left, right = jnp.asarray(joined.left), jnp.asarray(joined.right)

    def descend(node, chance):
        lean = jnp.dot(table[space.row[left[node]]] - table[space.row[right[node]]], q)
        goes_left = chance < jax.nn.sigmoid(lean)
        log_prob = jax.nn.log_sigmoid(jnp.where(goes_left, lean, -lean))
        inside = left[node] != node
        return jnp.where(goes_left, left[node], right[node]), jnp.where(inside, log_prob, 0)

    chances = jax.random.uniform(key, (space.decisions,), table.dtype)
    node, log_probs = lax.scan(descend, jnp.int32(0), chances)
    return space.row[node], log_probs


def _sample_flat(space: Space, table: Array, q: Array, key: Array) -> tuple[Array, Array]:
    logits = table[: space.item.shape[0]] @ q
    for_set, for_item = jax.random.split(key)
    if space.design == "bplain":
        target = column_mask(space.targets, logits.shape[0])
        lean = jnp.dot(table[-2] - table[-1], q)
        wanted = jax.random.uniform(for_set, (), table.dtype) < jax.nn.sigmoid(lean)
        logits = jnp.where(target == wanted, logits, -jnp.inf)
    item = _categorical(logits, jax.random.uniform(for_item, (), table.dtype))
    return item, log_probs(space, table, q, item)


def _categorical(logits: Float[Array, " I"], chance: Float[Array, ""]) -> Int[Array, ""]:
    """The item at which the cumulative softmax passes `chance`: one random number, where Gumbel's way draws I.

    Summed in two levels, a block and then within it: measured ten times faster than `jax.random.categorical` at 30,000.
    """
    width = math.isqrt(logits.shape[0] - 1) + 1
    weight = jnp.exp(logits - jnp.max(logits))
    weight = jnp.pad(weight, (0, -weight.shape[0] % width)).reshape(-1, width)

    def pick(weight, chance):  # the first place whose running sum exceeds; it has a positive weight
        ends = jnp.cumsum(weight)
        total = ends[-1]
        at = jnp.argmax(ends > jnp.minimum(chance * total, jnp.nextafter(total, jnp.zeros_like(total))))
        before = ends[at] - weight[at]
        return at, jnp.clip((chance * total - before) / weight[at], 0, 1)

    block, rest = pick(jnp.sum(weight, 1), chance)
    return (block * width + pick(weight[block], rest)[0]).astype(jnp.int32)


def log_probs(
    space: Space, table: Float[Array, "V D"], q: Float[Array, " D"], item: Int[Array, ""]
) -> Float[Array, " d"]:
    """Log-probability of each decision that leads to `item`; they sum to that of the item. Differentiable.

    >>> space = make_space("bcbt-popular", jax.random.key(0), jnp.arange(12), jnp.arange(4, 12))
    >>> found = log_probs(space, jnp.zeros((23, 2)), jnp.zeros(2), jnp.array(7))
    >>> float(jnp.exp(found.sum()))  # 1/2 for the targets, 1/8 for one of eight
    0.0625
    """
    if space.design == "plain":
        logits = table @ q
        return (logits[item] - jax.nn.logsumexp(logits))[None]
    if space.design == "bplain":
        logits = table[: space.item.shape[0]] @ q
        target = column_mask(space.targets, logits.shape[0])
        own = target == target[item]
        lean = jnp.dot(table[-2] - table[-1], q)
        return jnp.stack(
            [
                jax.nn.log_sigmoid(jnp.where(target[item], lean, -lean)),
                logits[item] - jax.nn.logsumexp(jnp.where(own, logits, -jnp.inf)),
            ]
        )
    chosen, other, inside = _way(space, item)
    return jnp.where(inside, jax.nn.log_sigmoid((table[chosen] - table[other]) @ q), 0)


def taken(space: Space, item: Int[Array, ""]) -> Bool[Array, " d"]:
    """Which of the `space.decisions` slots are decisions on the way to `item`."""
    if space.design in ("plain", "bplain"):
        return jnp.ones(space.decisions, bool)
    return _way(space, item)[2]


def _way(space: Space, item: Array) -> tuple[Array, Array, Array]:
    """Rows of the table of the nodes taken and not taken on the way to an item, and which of them there are."""
    joined = _joined(space.targets.shape[0], space.item.shape[0] - space.targets.shape[0])
    chosen, other = (jnp.asarray(way)[space.place[item]] for way in (joined.chosen, joined.other))
    return space.row[chosen], space.row[other], chosen >= 0


def probabilities(space: Space, table: Float[Array, "V D"], q: Float[Array, " D"]) -> Float[Array, " I"]:
    """The probability of every item.

    >>> space = make_space("bplain", jax.random.key(0), jnp.arange(3), jnp.array([1]))
    >>> probabilities(space, jnp.zeros((5, 2)), jnp.zeros(2)).tolist()
    [0.25, 0.5, 0.25]
    """
    every = jnp.arange(space.item.shape[0], dtype=jnp.int32)
    return jnp.exp(jnp.sum(jax.vmap(log_probs, (None, None, None, 0))(space, table, q, every), 1))
