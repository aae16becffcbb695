"""The weighted squared loss over *all* cells of a matrix of clicks, in two forms that give the same numbers.

    L = sum over all cells of w_rc (x_rc - A_r . B_c)^2,    w = weight where x = 1, else 1

Dense form: three products of the size of the matrix per gradient, the clicks as one byte each. Observed form: since
`sum (A_r . B_c)^2 = <A'A, B'B>`, only the clicks need their residual,

    L = <A'A, B'B> + sum over clicks of [weight (1 - r)^2 - r^2]  (Hu, Koren, Volinsky, ICDM 2008),    r = A_r . B_c

Which is faster was measured, and `pick` holds the rule. Rows may be users (WRMF) or items (ItemAE); fake users are
dense extra rows or columns and have their own functions (`block_*`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bilevel.inner import Batch
from models import sparse
from models.data.interactions import Interactions
from models.sparse import Observed

Form = Literal["auto", "dense", "observed"]
FORMS = ("auto", "dense", "observed")
CELLS_PER_CLICK = 12  # see pick
SLAB = 2 << 20  # bytes of the widest temporary of `moments`: in cache, twice as fast as 64 MiB


class Cells(NamedTuple):
    """The clicks in one of the two forms; the other is None."""

    dense: Float[Array, "R C"] | None
    observed: Observed | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, static."""
        if self.observed is not None:
            return self.observed.row_start.shape[0] - 1, self.observed.col_start.shape[0] - 1
        assert self.dense is not None
        return self.dense.shape[0], self.dense.shape[1]


def pick(rows: int, cols: int, slots: int) -> Literal["dense", "observed"]:
    """The faster form by static sizes: observed from 12 cells per event slot on (8% full).

    Measured, milliseconds for one gradient (one core of a Xeon with AVX-512, float32; two quiet cores in brackets):

    | rows x cols, D       | full  | dense      | observed    | gather + segment_sum |
    |----------------------|-------|------------|-------------|----------------------|
    | 1000 x 300, 16       | 12.5% | 0.54 (0.3) | 0.66 (0.5)  | 2.7                  |
    | 943 x 1682, 64       | 6.3%  | 6.0 (3.6)  | 3.5 (2.9)   | 63                   |
    | 6040 x 3706, 64      | 4.5%  | 154 (106)  | 33 (30)     | 635                  |
    | 13149 x 14007, 128   | 0.3%  | 1650       | 62 (53)     | 678                  |

    `benchmarks/all_cells.py` makes the table. Not measured on an accelerator: name the form there.

    >>> pick(990, 1682, 100_000), pick(1000, 300, 36_000)
    ('observed', 'dense')
    """
    return "observed" if rows * cols >= CELLS_PER_CLICK * slots else "dense"


def build(train: Interactions, *, by: Literal["user", "item"] = "user", form: Form = "auto") -> Cells:
    """The clicks of `train` with users or items as rows. Padding and repeats of a pair are left out."""
    row, col, rows, cols = train.user, train.item, train.users, train.items
    if by == "item":
        row, col, rows, cols = col, row, cols, rows
    form = pick(rows, cols, train.capacity) if form == "auto" else form
    if form == "observed":
        return Cells(None, sparse.observed(row, col, train.mask, rows, cols))
    return Cells(jnp.zeros((rows, cols), jnp.int8).at[row, col].max(train.mask.astype(jnp.int8)), None)


def take(cells: Cells, batch: Batch | None) -> tuple[Cells, Array | slice, Float[Array, "B 1"] | float]:
    """The rows of a batch: their cells, how to index the row factors, and 1 where a row counts.

    A batch may name rows past the last (fake users, kept elsewhere): they do not count here.
    """
    if batch is None:
        return cells, slice(None), 1.0
    rows = cells.shape[0]
    real = batch.mask & (batch.index < rows)
    index = jnp.where(real, batch.index, 0)
    if cells.observed is not None:
        return Cells(None, sparse.select(cells.observed, index, real)), index, real[:, None]
    assert cells.dense is not None
    return Cells(cells.dense[index] * real[:, None], None), index, real[:, None]


def stretch(cells: Cells, first: Array, count: int) -> Cells:
    """The rows `first`, ..., `first + count - 1`; those past the last row are empty."""
    if cells.observed is not None:
        return Cells(None, sparse.stretch(cells.observed, first, count))
    assert cells.dense is not None
    at = first + jnp.arange(count)
    rows = cells.dense.shape[0]
    return Cells(
        cells.dense[jnp.minimum(at, rows - 1)] * (at < rows)[:, None].astype(cells.dense.dtype), None
    )


def turned(cells: Cells) -> Cells:
    """The same clicks with rows and columns exchanged."""
    return Cells(
        None if cells.dense is None else cells.dense.T,
        None if cells.observed is None else sparse.turned(cells.observed),
    )


# ------------------------------------------------------------------------------------------------ loss


def loss(A: Float[Array, "R D"], B: Float[Array, "C D"], cells: Cells, weight: float) -> Float[Array, ""]:
    """The loss over all cells; differentiable to any order. A row of zeros in `A` without clicks adds 0."""
    if cells.observed is None:
        assert cells.dense is not None
        clicks = cells.dense.astype(A.dtype)
        return jnp.sum((1 + (weight - 1) * clicks) * (clicks - A @ B.T) ** 2)
    r = sparse.sampled(A, B, cells.observed)  # 0 in the padding, where the sum below adds nothing
    clicks = cells.observed.row_start[-1]
    return jnp.vdot(gram(A), gram(B)) + jnp.sum((weight - 1) * r**2 - 2 * weight * r) + weight * clicks


@jax.custom_jvp
def gram(A: Float[Array, "R D"]) -> Float[Array, "D D"]:
    """`A'A`; its derivative uses the symmetry, which saves one of two products in each direction."""
    return A.T @ A


@gram.defjvp
def _gram_jvp(primals, tangents):
    half = primals[0].T @ tangents[0]
    return gram(*primals), half + half.T


def product(
    A: Float[Array, "R D"],
    B: Float[Array, "C D"],
    VA: Float[Array, "R D"],
    VB: Float[Array, "C D"],
    cells: Cells,
    weight: float,
) -> tuple[Float[Array, "R D"], Float[Array, "C D"]]:
    """The Hessian of `loss` times `(VA, VB)`, by hand: every residual is formed once.

    With `E = w (AB' - x)` and `dE = w (VA B' + A VB')`: `2 (dE B + E VB)` and `2 (dE' A + E' VA)`.
    """
    if cells.observed is None:
        assert cells.dense is not None
        clicks = cells.dense.astype(A.dtype)
        return _dense_product(A, B, VA, VB, clicks, 1 + (weight - 1) * clicks)[:2]
    r = sparse.sampled(A, B, cells.observed)
    dr = sparse.sampled(VA, B, cells.observed) + sparse.sampled(A, VB, cells.observed)
    c, dc = (weight - 1) * r - weight, (weight - 1) * dr
    turn_A, turn_B = A.T @ VA, B.T @ VB
    HA = VA @ (B.T @ B) + A @ (turn_B + turn_B.T)
    HB = VB @ (A.T @ A) + B @ (turn_A + turn_A.T)
    HA += sparse.spread(dc, B, cells.observed) + sparse.spread(c, VB, cells.observed)
    HB += sparse.spread_back(dc, A, cells.observed) + sparse.spread_back(c, VA, cells.observed)
    return 2 * HA, 2 * HB


def block_loss(
    A: Float[Array, "F D"], B: Float[Array, "C D"], x: Float[Array, "F C"], w: Float[Array, "F C"]
) -> Float[Array, ""]:
    """`sum w (x - A B')^2` over a dense block of relaxed cells with given weights."""
    return jnp.sum(w * (x - A @ B.T) ** 2)


def block_product(
    A: Array, B: Array, VA: Array, VB: Array, x: Array, w: Array
) -> tuple[Float[Array, "F D"], Float[Array, "C D"], Float[Array, "F C"]]:
    """Derivatives of `<grad block_loss, (VA, VB)>` in `A`, in `B` and in `x` (there: `-2 w (VA B' + A VB')`)."""
    HA, HB, dE = _dense_product(A, B, VA, VB, x, w)
    return HA, HB, -2 * dE


def _dense_product(A, B, VA, VB, target, w):
    E = w * (A @ B.T - target)
    dE = w * (jnp.concatenate([VA, A], 1) @ jnp.concatenate([B, VB], 1).T)
    return 2 * (dE @ B + E @ VB), 2 * (dE.T @ A + E.T @ VA), dE


# ------------------------------------------------------------------------------------------------ sums over clicks


def gather(B: Float[Array, "C K"], cells: Cells) -> Float[Array, "R K"]:
    """`G_r = sum of B_c` over the clicks of row r: the matrix of clicks times `B`."""
    if cells.observed is not None:
        return sparse.spread(jnp.ones(cells.observed.row.shape, B.dtype), B, cells.observed)
    assert cells.dense is not None
    return cells.dense.astype(B.dtype) @ B


def moments(B: Float[Array, "C D"], cells: Cells) -> Float[Array, "R D D"]:
    """`N_r = sum of B_c B_c'` over the clicks of row r, as in the normal equations of ALS; `E D^2` work."""
    return weighted_moments(B, lambda M: gather(M, cells))


def weighted_moments(
    B: Float[Array, "C D"], mix: Callable[[Float[Array, "C K"]], Float[Array, "R K"]]
) -> Float[Array, "R D D"]:
    """`N_r = sum_c m_rc B_c B_c'` for the linear map `mix` of matrix `m`, a slab of columns at a time."""
    C, D = B.shape
    fits = [k for k in range(1, D + 1) if D % k == 0 and (k == 1 or C * D * k * B.dtype.itemsize <= SLAB)]
    width = fits[-1]

    def slab(at):
        part = lax.dynamic_slice(B, (0, at), (C, width))
        return mix((part[:, :, None] * B[:, None, :]).reshape(C, width * D)).reshape(-1, width, D)

    if width == D:
        return slab(0)
    slabs = lax.map(slab, jnp.arange(0, D, width))
    return jnp.moveaxis(slabs, 0, 1).reshape(-1, D, D)
