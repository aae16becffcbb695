"""Two products on known cells of a matrix, and nothing the size of the matrix.

For factors `A` (R, D), `B` (C, D) and E cells `(row_k, col_k)`:

    sampled:  r_k = A[row_k] . B[col_k]                                    SDDMM
    spread:   G[row] = sum of c_k B[col_k] over the cells of the row       SpMM (and its transpose, over columns)

Each is the other's transpose, so they are JAX primitives with closed rules: forward and reverse mode of any order
stay in the pair, and no derivative ever turns a gather into a scatter. On the CPU `sampled` walks the cells in
chunks that stay in cache and `spread` calls jaxlib's compressed-row kernel; elsewhere both are chunked gathers
and segment sums. The loop ends at the last real cell: padding costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import sparse
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Float, Int

CHUNK = 1024  # cells at a time on the CPU: measured flat from 512 to 4096 at D = 64 and 128
WIDE = 1 << 18  # cells at a time elsewhere: 128 MiB of gathered rows at D = 128


class Observed(NamedTuple):
    """E slots of known cells in row order, with their column order beside it; padding comes last in both.

    `order[k]` is the row-order slot of the k-th cell in column order, `row_of_order` its row. Row `r` holds slots
    `row_start[r]` to `row_start[r + 1] - 1`, column `c` the column-order slots from `col_start[c]`.
    """

    row: Int[Array, "E"]
    col: Int[Array, "E"]
    row_start: Int[Array, "R+1"]
    order: Int[Array, "E"]
    row_of_order: Int[Array, "E"]
    col_start: Int[Array, "C+1"]


def observed(
    row: Int[Array, "E"],
    col: Int[Array, "E"],
    real: Bool[Array, "E"],
    rows: int,
    cols: int,
    *,
    repeats: bool = False,
) -> Observed:
    """The layout of the cells `(row, col)` where `real`; works under `jit` and `vmap`.

    A cell given twice counts once, with `repeats` as often as it is given.

    >>> cells = observed(jnp.array([1, 0]), jnp.array([0, 2]), jnp.array([True, True]), rows=2, cols=3)
    >>> sampled(jnp.ones((2, 4)), jnp.ones((3, 4)), cells)[:3].tolist()
    [4.0, 4.0, 0.0]
    """
    extra = -row.shape[0] % CHUNK or (CHUNK if row.shape[0] == 0 else 0)
    row, col, real = (jnp.pad(a, (0, extra)) for a in (row, col, real))
    far, wide = jnp.where(real, row, rows).astype(jnp.int32), jnp.where(real, col, cols).astype(jnp.int32)
    far, wide = lax.sort((far, wide), num_keys=2)
    if not repeats:
        again = (far[1:] == far[:-1]) & (wide[1:] == wide[:-1])
        repeated = jnp.concatenate([jnp.zeros(1, bool), again])
        far, wide = jnp.where(repeated, rows, far), jnp.where(repeated, cols, wide)
        far, wide = lax.sort((far, wide), num_keys=2)
    order = jnp.argsort(wide, stable=True).astype(jnp.int32)
    row, col = jnp.minimum(far, rows - 1), jnp.minimum(wide, cols - 1)
    return Observed(row, col, _starts(far, rows), order, row[order], _starts(wide[order], cols))


def _starts(ids: Int[Array, "E"], count: int) -> Int[Array, "N"]:
    return jnp.searchsorted(ids, jnp.arange(count + 1)).astype(jnp.int32)


def select(cells: Observed, index: Int[Array, "B"], mask: Bool[Array, "B"]) -> Observed:
    """The cells of the distinct rows `index` where `mask`, as rows 0..B-1 in that order; slots as before.

    Integer work on E slots; everything that costs D afterwards follows the chosen cells only.
    """
    return _select(cells, index, mask)[0]


def select_values(
    cells: Observed, values: Float[Array, "E"], index: Int[Array, "B"], mask: Bool[Array, "B"]
) -> tuple[Observed, Float[Array, "E"]]:
    """`select` for cells that carry values: the chosen cells and theirs, 0 in the padding."""
    chosen, slot = _select(cells, index, mask)
    return chosen, jnp.zeros_like(values).at[slot].set(values, mode="drop")


def stretch(cells: Observed, first: Int[Array, ""], count: int) -> Observed:
    """The cells of the rows `first`, ..., `first + count - 1` as rows 0..count-1; those past the last row are empty.

    What the products need of it is a shift of the slots, which are in row order: unlike `select` it moves none.

    >>> cells = observed(jnp.array([1, 0, 2]), jnp.array([0, 2, 1]), jnp.ones(3, bool), rows=3, cols=3)
    >>> spread(jnp.ones(cells.row.shape), jnp.eye(3), stretch(cells, jnp.array(1), 3)).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    slots, rows = cells.row.shape[0], cells.row_start.shape[0] - 1
    at = cells.row_start[jnp.minimum(first + jnp.arange(count + 1), rows)]
    begin, row_start = at[0], at - at[0]
    moved = lambda ids: jnp.roll(ids, -begin)
    inside = (cells.row_of_order >= first) & (cells.row_of_order < first + count)
    keep = inside & (jnp.arange(slots) < cells.row_start[-1])
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(keep, dtype=jnp.int32)])
    where = jnp.where(keep, before[:-1], slots)
    put = lambda values: jnp.zeros(slots, jnp.int32).at[where].set(values, mode="drop")
    return Observed(
        row=jnp.clip(moved(cells.row) - first, 0, count - 1),
        col=moved(cells.col),
        row_start=row_start,
        order=put(cells.order - begin),
        row_of_order=put(cells.row_of_order - first),
        col_start=before[cells.col_start],
    )


def _select(
    cells: Observed, index: Int[Array, "B"], mask: Bool[Array, "B"]
) -> tuple[Observed, Int[Array, "E"]]:
    """The chosen cells, and the slot each of the old ones went to (out of range: not chosen)."""
    slots, rows = cells.row.shape[0], cells.row_start.shape[0] - 1
    length = jnp.where(mask, cells.row_start[index + 1] - cells.row_start[index], 0)
    row_start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(length, dtype=jnp.int32)])
    place = (
        jnp.full(rows, -1, jnp.int32)
        .at[jnp.where(mask, index, rows)]
        .set(jnp.arange(index.shape[0], dtype=jnp.int32), mode="drop")
    )
    real = jnp.arange(slots) < cells.row_start[-1]
    at = place[cells.row]
    slot = row_start[at] + jnp.arange(slots, dtype=jnp.int32) - cells.row_start[cells.row]
    slot = jnp.where((at >= 0) & real, slot, slots)
    put = lambda where, values: jnp.zeros(slots, jnp.int32).at[where].set(values, mode="drop")
    keep = (place[cells.row_of_order] >= 0) & real
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(keep, dtype=jnp.int32)])
    where = jnp.where(keep, before[:-1], slots)
    chosen = Observed(
        row=put(slot, at),
        col=put(slot, cells.col),
        row_start=row_start,
        order=put(where, slot[cells.order]),
        row_of_order=put(where, place[cells.row_of_order]),
        col_start=before[cells.col_start],
    )
    return chosen, slot


def turned(cells: Observed) -> Observed:
    """The same cells with rows and columns exchanged.

    >>> cells = observed(jnp.array([1, 0]), jnp.array([0, 2]), jnp.array([True, True]), rows=2, cols=3)
    >>> turned(cells).col[:2].tolist()
    [1, 0]
    """
    slots = jnp.arange(cells.order.shape[0], dtype=jnp.int32)
    back = jnp.zeros_like(cells.order).at[cells.order].set(slots, unique_indices=True)
    return Observed(
        cells.col[cells.order], cells.row_of_order, cells.col_start, back, cells.col, cells.row_start
    )


def sampled(A: Float[Array, "R D"], B: Float[Array, "C D"], cells: Observed) -> Float[Array, "E"]:
    """`r_k = A[row_k] . B[col_k]`, 0 in the padding."""
    A, B = _promoted(A, B)
    return _sampled_p.bind(A, B, *cells)


def spread(c: Float[Array, "E"], B: Float[Array, "C D"], cells: Observed) -> Float[Array, "R D"]:
    """`G[row] = sum_k c_k B[col_k]` over the cells of each row."""
    c, B = _promoted(c, B)
    return _spread_p.bind(c, B, *cells, transpose=False)


def spread_back(c: Float[Array, "E"], A: Float[Array, "R D"], cells: Observed) -> Float[Array, "C D"]:
    """`G[col] = sum_k c_k A[row_k]` over the cells of each column."""
    c, A = _promoted(c, A)
    return _spread_p.bind(c, A, *cells, transpose=True)


# ------------------------------------------------------------------------------------------------ kernels


def _sampled_cpu(A, B, *layout):
    cells = Observed(*layout)
    count = cells.row_start[-1]
    one = jnp.ones(
        A.shape[1], A.dtype
    )  # a product with ones: XLA vectorizes it, unlike a sum over the short axis

    def step(k, done):
        at = k * CHUNK
        row, col = (lax.dynamic_slice(ids, (at,), (CHUNK,)) for ids in (cells.row, cells.col))
        real = at + jnp.arange(CHUNK) < count
        return lax.dynamic_update_slice(done, jnp.where(real, (A[row] * B[col]) @ one, 0), (at,))

    return lax.fori_loop(0, (count + CHUNK - 1) // CHUNK, step, jnp.zeros(cells.row.shape, A.dtype))


def _sampled_any(A, B, *layout):
    cells = Observed(*layout)
    read = lambda at: jnp.sum(A[at[0]] * B[at[1]], 1)
    values = lax.map(read, _wide(cells.row, cells.col)).reshape(-1)[: cells.row.shape[0]]
    return jnp.where(jnp.arange(cells.row.shape[0]) < cells.row_start[-1], values, 0)


def _spread_cpu(c, M, *layout, transpose):
    cells = Observed(*layout)
    if transpose:
        c, index, start = c[cells.order], cells.row_of_order, cells.col_start
    else:
        index, start = cells.col, cells.row_start
    return sparse.BCSR((c, index, start), shape=(start.shape[0] - 1, M.shape[0])) @ M


def _spread_any(c, M, *layout, transpose):
    cells = Observed(*layout)
    c = jnp.where(jnp.arange(c.shape[0]) < cells.row_start[-1], c, 0)
    source, target = (cells.row, cells.col) if transpose else (cells.col, cells.row)
    starts = cells.col_start if transpose else cells.row_start

    def add(total, chunk):
        c, source, target = chunk
        return total.at[target].add(c[:, None] * M[source]), None

    start = jnp.zeros((starts.shape[0] - 1, M.shape[1]), M.dtype)
    return lax.scan(add, start, _wide(c, source, target))[0]


def _wide(*arrays):
    """Arrays of E slots as chunks of at most `WIDE`."""
    slots = arrays[0].shape[0]
    size = min(WIDE, slots)
    return tuple(jnp.pad(a, (0, -slots % size)).reshape(-1, size) for a in arrays)


# ------------------------------------------------------------------------------------------------ primitives


def _primitive(name: str, cpu: Callable, anywhere: Callable, shape: Callable, turn: Callable) -> Primitive:
    """A bilinear primitive of two arrays and a layout.

    `turn(ct, left, right, layout, **params)` transposes: the left argument if `left` is None, else the right one.
    """
    made = Primitive(name)

    @partial(jax.jit, static_argnames=("transpose",))
    def eager(*args, **params):
        return made.bind(*args, **params)

    def jvp(primals, tangents, **params):
        left, right, *layout = primals
        out = made.bind(*primals, **params)
        along = []  # one or both: a rule is only called when something moves, and integers do not
        if not isinstance(tangents[0], ad.Zero):
            along.append(made.bind(tangents[0], right, *layout, **params))
        if not isinstance(tangents[1], ad.Zero):
            along.append(made.bind(left, tangents[1], *layout, **params))
        return out, along[0] if len(along) == 1 else ad.add_tangents(*along)

    def transpose(ct, left, right, *layout, **params):
        if isinstance(ct, ad.Zero):
            return [None] * (2 + len(layout))
        unknown = ad.is_undefined_primal(left)
        bar = turn(ct, None if unknown else left, right if unknown else None, layout, **params)
        return [bar, None, *[None] * len(layout)] if unknown else [None, bar, *[None] * len(layout)]

    made.def_impl(eager)
    made.def_abstract_eval(
        lambda left, right, *layout, **params: left.update(shape=shape(left, right, *layout, **params))
    )
    mlir.register_lowering(made, mlir.lower_fun(anywhere, multiple_results=False))
    mlir.register_lowering(made, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    ad.primitive_jvps[made] = jvp
    ad.primitive_transposes[made] = transpose
    batching.primitive_batchers[made] = partial(_one_by_one, made)
    return made


def _one_by_one(made: Primitive, args, dims, **params):
    """The rule of `vmap`: one problem after the other, since each one alone fills the cores."""
    moved = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims)]

    def one(slices):
        slices = iter(slices)
        return made.bind(*(a if d is None else next(slices) for a, d in zip(moved, dims)), **params)

    return lax.map(one, [a for a, d in zip(moved, dims) if d is not None]), 0


def _turn_sampled(ct, left, right, layout):
    missing_left = left is None
    return _spread_p.bind(ct, right if missing_left else left, *layout, transpose=not missing_left)


def _turn_spread(ct, left, right, layout, *, transpose):
    if left is None:
        return _sampled_p.bind(*((right, ct) if transpose else (ct, right)), *layout)
    return _spread_p.bind(left, ct, *layout, transpose=not transpose)


def _spread_shape(c, M, row, col, row_start, order, row_of_order, col_start, *, transpose):
    starts = col_start if transpose else row_start
    return (starts.shape[0] - 1, M.shape[1])


def _promoted(*arrays):
    dtype = jnp.result_type(*arrays)
    return tuple(jnp.asarray(a, dtype) for a in arrays)


_sampled_p = _primitive("sampled", _sampled_cpu, _sampled_any, lambda A, B, row, *_: row.shape, _turn_sampled)
_spread_p = _primitive("spread", _spread_cpu, _spread_any, _spread_shape, _turn_spread)
