"""The all-cell squared loss: both forms against the definition, the hand-written Hessian product, batches, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bilevel import Batch
from models import cells
from models.data.interactions import Interactions

R, C, D, WEIGHT = 8, 11, 3, 20.0
FORMS = ["dense", "observed"]


@pytest.fixture
def drawn(x64, rng):
    matrix = (rng.random((R, C)) < 0.3).astype(float)
    A, B, VA, VB = (jnp.array(rng.normal(size=(n, D))) for n in (R, C, R, C))
    return Interactions.from_dense(matrix).pad(60), jnp.array(matrix), A, B, VA, VB


def defined(A, B, matrix):
    return jnp.sum(jnp.where(matrix > 0, WEIGHT, 1.0) * (matrix - A @ B.T) ** 2)


def close(a, b, tolerance=1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1, np.abs(y).max(initial=0)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["user", "item"])
def test_loss_and_gradient_equal_the_definition(drawn, form, by):
    train, matrix, A, B, *_ = drawn
    made = cells.build(train, by=by, form=form)
    A, B, matrix = (A, B, matrix) if by == "user" else (B, A, matrix.T)
    assert made.shape == matrix.shape
    ours = lambda A, B: cells.loss(A, B, made, WEIGHT)
    close(jax.value_and_grad(ours, (0, 1))(A, B), jax.value_and_grad(defined, (0, 1))(A, B, matrix))


@pytest.mark.parametrize("form", FORMS)
def test_product_equals_the_generic_one(drawn, form):
    train, matrix, A, B, VA, VB = drawn
    made = cells.build(train, form=form)
    generic = jax.jvp(lambda A, B: jax.grad(defined, (0, 1))(A, B, matrix), (A, B), (VA, VB))[1]
    close(jax.jit(cells.product, static_argnums=5)(A, B, VA, VB, made, WEIGHT), generic)


def test_block_product_equals_the_generic_one(drawn, rng):
    *_, A, B, VA, VB = drawn
    x, w = jnp.array(rng.random((R, C))), jnp.array(1 + rng.random((R, C)))
    gradient = lambda A, B: jax.grad(cells.block_loss, (0, 1, 2))(A, B, x, w)
    close(cells.block_product(A, B, VA, VB, x, w), jax.jvp(gradient, (A, B), (VA, VB))[1])


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_counts_its_real_rows_only(drawn, form):
    train, matrix, A, B, *_ = drawn
    index, mask = jnp.array([5, 0, R + 2, 7]), jnp.array([True, True, True, False])
    chosen, at, counts = jax.jit(cells.take)(cells.build(train, form=form), Batch(index, mask))
    close(cells.loss(A[at] * counts, B, chosen, WEIGHT), defined(A[:6:5][::-1], B, matrix[:6:5][::-1]))


@pytest.mark.parametrize("form", FORMS)
def test_a_stretch_is_neighboring_rows_and_empty_ones_past_the_last(drawn, form):
    train, matrix, _, B, *_ = drawn
    part = jax.jit(cells.stretch, static_argnums=2)(cells.build(train, form=form), jnp.array(R - 2), 4)
    close(cells.gather(B, part), jnp.concatenate([matrix[R - 2 :] @ B, jnp.zeros((2, B.shape[1]))]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("slab", [1, 10**9])
def test_moments_are_sums_of_outer_products(drawn, form, slab, monkeypatch):
    train, matrix, _, B, *_ = drawn
    monkeypatch.setattr(cells, "SLAB", slab)
    made = cells.build(train, form=form)
    close(cells.moments(B, made), jnp.einsum("rc,cd,ce->rde", matrix, B, B))
    close(cells.gather(B, made), matrix @ B)
    close(cells.gather(B[:R], cells.turned(made)), matrix.T @ B[:R])


def test_repeated_events_are_one_click(x64):
    twice = Interactions.from_arrays([0, 0, 1], [1, 1, 0], track="sequence", users=2, items=3)
    A, B = jnp.ones((2, 2)), jnp.ones((3, 2))
    expected = defined(A, B, jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    for form in FORMS:
        close(cells.loss(A, B, cells.build(twice, form=form), WEIGHT), expected)


def test_pick_follows_the_size_of_the_data():
    assert cells.pick(13149, 14007, 535_610) == "observed"
    assert cells.pick(900, 300, 36_000) == "dense"
    train = Interactions.from_arrays([0, 1], [0, 1], users=100, items=100)
    assert cells.build(train).dense is None
    assert cells.build(train.pad(9_000)).observed is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_users_sharded_over_eight_devices_give_the_same_numbers(drawn, devices8, form):
    train, matrix, A, B, VA, VB = drawn
    mesh = jax.make_mesh((8,), ("users",), devices=devices8, axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("users"))
    A, VA = jax.device_put((A, VA), rows)
    made = cells.build(train, form=form)
    close(
        jax.jit(jax.grad(lambda A, B: cells.loss(A, B, made, WEIGHT), (0, 1)))(A, B),
        jax.grad(defined, (0, 1))(A, B, matrix),
    )
    generic = jax.jvp(lambda A, B: jax.grad(defined, (0, 1))(A, B, matrix), (A, B), (VA, VB))[1]
    close(jax.jit(lambda A, VA: cells.product(A, B, VA, VB, made, WEIGHT))(A, VA), generic)
