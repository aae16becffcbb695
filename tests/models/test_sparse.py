"""The two sparse products against the dense matrix: values, derivatives of any order, layouts, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import sparse

R, C, D, E = 7, 9, 4, 30


@pytest.fixture
def drawn(x64, rng):
    """Cells with repeats and padding in no order, their 0/1 matrix, and factors."""
    row, col, real = rng.integers(0, R, E), rng.integers(0, C, E), rng.random(E) < 0.8
    matrix = np.zeros((R, C))
    matrix[row[real], col[real]] = 1
    cells = jax.jit(sparse.observed, static_argnums=(3, 4))(
        jnp.array(row), jnp.array(col), jnp.array(real), R, C
    )
    return cells, jnp.array(matrix), jnp.array(rng.normal(size=(R, D))), jnp.array(rng.normal(size=(C, D)))


def close(a, b, tolerance=1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_layout_holds_every_cell_once_in_both_orders(drawn):
    cells, matrix, _, _ = drawn
    count = int(cells.row_start[-1])
    assert count == int(matrix.sum()) == int(cells.col_start[-1])
    rows, cols = np.nonzero(np.asarray(matrix))
    assert cells.row[:count].tolist() == rows.tolist()
    assert cells.col[:count].tolist() == cols.tolist()
    by_column = np.asarray(cells.order[:count])
    assert np.asarray(cells.row)[by_column].tolist() == np.nonzero(np.asarray(matrix).T)[1].tolist()


def test_products_equal_the_dense_ones(drawn):
    cells, matrix, A, B = drawn
    r = sparse.sampled(A, B, cells)
    count = int(matrix.sum())
    close(r[:count], (A @ B.T)[np.nonzero(np.asarray(matrix))])
    assert not np.any(r[count:])
    close(sparse.spread(r, B, cells), (matrix * (A @ B.T)) @ B)
    close(sparse.spread_back(r, A, cells), (matrix * (A @ B.T)).T @ A)


def test_padding_values_never_count(drawn):
    cells, matrix, A, B = drawn
    c = jnp.ones(cells.row.shape).at[int(matrix.sum()) :].set(jnp.inf)
    close(sparse.spread(c, B, cells), matrix @ B)
    close(sparse.spread_back(c, A, cells), matrix.T @ A)
    for transpose, M in ((False, B), (True, A)):
        close(
            sparse._spread_any(c, M, *cells, transpose=transpose), matrix.T @ M if transpose else matrix @ M
        )


def test_kernels_of_other_platforms_give_the_same_numbers(drawn, monkeypatch):
    cells, _, A, B = drawn
    monkeypatch.setattr(sparse, "WIDE", 100)  # several chunks
    close(sparse._sampled_any(A, B, *cells), sparse._sampled_cpu(A, B, *cells))
    c = sparse.sampled(A, B, cells)
    for transpose, M in ((False, B), (True, A)):
        close(
            sparse._spread_any(c, M, *cells, transpose=transpose),
            sparse._spread_cpu(c, M, *cells, transpose=transpose),
        )


@pytest.mark.parametrize("order", ["grad", "rev-rev", "fwd-rev", "fwd-fwd-rev", "rev-fwd"])
def test_derivatives_of_any_order_and_mode(drawn, order):
    cells, matrix, A, B = drawn
    rev, fwd = jax.jacrev, jax.jacfwd
    transform = {
        "grad": lambda f: jax.grad(f, (0, 1)),
        "rev-rev": lambda f: rev(jax.grad(f, (0, 1)), (0, 1)),
        "fwd-rev": lambda f: fwd(jax.grad(f, (0, 1)), (0, 1)),
        "fwd-fwd-rev": lambda f: fwd(fwd(jax.grad(f))),
        "rev-fwd": lambda f: rev(fwd(f, (0, 1)), (0, 1)),
    }[order]
    ours = lambda A, B: jnp.sum(jnp.sin(sparse.sampled(A, B, cells)))
    dense = lambda A, B: jnp.sum(matrix * jnp.sin(A @ B.T))
    close(jax.jit(transform(ours))(A, B), transform(dense)(A, B))


@pytest.mark.slow
def test_spread_differentiates_in_both_arguments(drawn):
    cells, matrix, A, B = drawn
    where = np.nonzero(np.asarray(matrix))
    c = sparse.sampled(A, B, cells)

    def ours(c, M):
        return jnp.sum(jnp.cos(sparse.spread(c, M, cells))) + jnp.sum(
            jnp.cos(sparse.spread_back(c, A, cells))
        )

    def dense(c, M):
        full = jnp.zeros((R, C)).at[where].set(c[: len(where[0])])
        return jnp.sum(jnp.cos(full @ M)) + jnp.sum(jnp.cos(full.T @ A))

    close(jax.grad(ours, (0, 1))(c, B), jax.grad(dense, (0, 1))(c, B))
    close(jax.hessian(ours)(c, B), jax.hessian(dense)(c, B))


@pytest.mark.parametrize("seed", range(5))
def test_select_keeps_exactly_the_chosen_rows(drawn, seed):
    cells, matrix, A, B = drawn
    rng = np.random.default_rng(seed)
    index = jnp.array(rng.permutation(R)[:5])
    mask = jnp.array(rng.random(5) < 0.7)
    part = jax.jit(sparse.select)(cells, index, mask)
    chosen = matrix[index] * mask[:, None]
    r = sparse.sampled(A[index], B, part)
    assert int(part.row_start[-1]) == int(chosen.sum())
    close(sparse.spread(r, B, part), (chosen * (A[index] @ B.T)) @ B)
    close(sparse.spread_back(r, A[index], part), (chosen * (A[index] @ B.T)).T @ A[index])
    again = sparse.select(part, jnp.arange(5), mask)  # a selection is a layout like any other
    close(sparse.spread_back(r, A[index], again), sparse.spread_back(r, A[index], part))


@pytest.mark.parametrize("first", [0, 2, R - 2])
def test_stretch_is_the_selection_of_neighboring_rows(drawn, first):
    cells, _, A, B = drawn
    at = first + jnp.arange(4)
    mask = at < R
    index = jnp.where(mask, at, 0)
    part = jax.jit(sparse.stretch, static_argnums=2)(cells, jnp.array(first), 4)
    chosen = sparse.select(cells, index, mask)
    count = int(chosen.row_start[-1])
    close(part.row_start, chosen.row_start)
    close(part.col_start, chosen.col_start)
    for ours, theirs in zip(part, chosen):
        close(ours[:count], theirs[:count])
    turn = lambda cells: jax.grad(
        lambda B: jnp.sum(jnp.sin(sparse.spread(jnp.ones(cells.row.shape), B, cells)))
    )(B)
    close(turn(part), turn(chosen))
    close(sparse.sampled(A[index], B, part), sparse.sampled(A[index], B, chosen))


def test_turned_exchanges_rows_and_columns(drawn):
    cells, matrix, A, B = drawn
    other = sparse.turned(cells)
    c = sparse.sampled(B, A, other)
    close(sparse.spread(c, A, other), (matrix.T * (B @ A.T)) @ A)
    close(sparse.spread_back(c, B, other), (matrix.T * (B @ A.T)).T @ B)
    close(sparse.turned(other), cells)


def test_vmap_over_factors_and_over_cells_equals_a_loop(drawn, rng):
    cells, _, A, B = drawn
    stack = jnp.array(rng.normal(size=(3, R, D)))
    f = lambda A, B, cells: jax.grad(lambda A: jnp.sum(sparse.sampled(A, B, cells) ** 2))(A)
    close(jax.vmap(f, (0, None, None))(stack, B, cells), jnp.stack([f(a, B, cells) for a in stack]))
    several = [
        sparse.observed(jnp.array(rng.integers(0, R, E)), cells.col[:E], jnp.ones(E, bool), R, C)
        for _ in range(3)
    ]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    close(jax.vmap(f, (None, None, 0))(A, B, batch), jnp.stack([f(A, B, one) for one in several]))


def test_no_cells_at_all(x64):
    none = jnp.zeros(0, jnp.int32)
    cells = sparse.observed(none, none, jnp.zeros(0, bool), 3, 2)
    assert not np.any(sparse.sampled(jnp.ones((3, 2)), jnp.ones((2, 2)), cells))
    assert not np.any(sparse.spread(jnp.ones(cells.row.shape), jnp.ones((2, 2)), cells))
