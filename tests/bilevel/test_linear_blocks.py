"""Blocks: the preconditioner, the block diagonal, and one user's own block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.linear import Code, block, cg, dense, gmres, lissa
from bilevel.linear.blocks import inverse_blocks
from bilevel.products import diagonal_blocks, hvp

U, I, D = 30, 20, 3


def factor_loss(p, x):
    """A factor model's loss, with rows of very different weight: the case for a block preconditioner."""
    weight = jnp.logspace(0, 3, U)[:, None]
    return jnp.sum(weight * (x - p["P"] @ p["Q"].T) ** 2) + 0.5 * (
        jnp.sum(p["P"] ** 2) + jnp.sum(p["Q"] ** 2)
    )


@pytest.fixture
def model(x64):
    """Products of a damped Gauss-Newton-like Hessian, definite, with its blocks."""
    rng = np.random.default_rng(0)
    p = {"P": jnp.asarray(rng.normal(size=(U, D))), "Q": jnp.asarray(rng.normal(size=(I, D)))}
    x = p["P"] @ p["Q"].T  # at a perfect fit the Hessian is positive definite
    b = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), p)
    return p, b, lambda v: hvp(factor_loss, p, v, x)


def distance(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.slow
def test_block_jacobi_accelerates(model):
    p, b, product = model
    blocks = diagonal_blocks(product, p)
    plain = cg(rtol=1e-8, max_steps=500).solve(product, b)
    faster = cg(rtol=1e-8, max_steps=500, preconditioner="block_jacobi").solve(product, b, blocks=blocks)
    assert Code(int(plain.code)) is Code(int(faster.code)) is Code.OK
    assert int(faster.iterations) * 3 <= int(plain.iterations)
    assert distance(plain.value, faster.value) < 1e-6
    cycled = gmres(rtol=1e-8, max_steps=500, preconditioner="block_jacobi").solve(product, b, blocks=blocks)
    assert Code(int(cycled.code)) is Code.OK
    assert distance(cycled.value, faster.value) < 1e-6


@pytest.mark.slow
def test_block_jacobi_has_the_damping_and_survives_empty_and_indefinite_blocks(x64):
    """A user without data and without a penalty has a zero block; an indefinite one must not spoil it."""
    blocks = jnp.stack([jnp.zeros((2, 2)), jnp.diag(jnp.array([3.0, 1.0]))])
    b = jnp.array([[0.0, 0.0], [3.0, 2.0]])
    solver = cg(preconditioner="block_jacobi")
    result = solver.solve(lambda v: jnp.einsum("nde,ne->nd", blocks, v), b, blocks=blocks)
    assert Code(int(result.code)) is Code.OK
    np.testing.assert_allclose(result.value, [[0, 0], [1, 2]], atol=1e-6)
    wrong = blocks.at[0].set(jnp.diag(jnp.array([1.0, -1.0])))
    result = solver.solve(lambda v: jnp.einsum("nde,ne->nd", wrong, v), b + 1, blocks=wrong)
    assert Code(int(result.code)) is Code.INDEFINITE
    damped = cg(preconditioner="block_jacobi", damping=2.0)
    result = damped.solve(lambda v: jnp.einsum("nde,ne->nd", wrong, v), b + 1, blocks=wrong)
    assert Code(int(result.code)) is Code.OK
    assert int(result.iterations) == 1  # the preconditioner is the inverse of the damped matrix


def test_block_diagonal(model):
    p, b, product = model
    blocks = diagonal_blocks(product, p)
    result = block(damping=0.3).solve(product, b, blocks=blocks)
    assert Code(int(result.code)) is Code.OK
    for name in p:
        exact = jnp.linalg.solve(blocks[name] + 0.3 * jnp.eye(D), b[name][..., None])[..., 0]
        np.testing.assert_allclose(result.value[name], exact, rtol=1e-9)


def test_block_diagonal_codes(x64):
    good = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])
    ones = jnp.ones((2, 2))
    compiled = jax.jit(lambda blocks, b: block().solve(lambda v: v, b, blocks=blocks).code)
    run = lambda blocks, b: Code(int(compiled(blocks, b)))
    assert run(good, ones) is Code.OK
    assert run(good.at[0, 0, 0].set(-1.0), ones) is Code.INDEFINITE
    assert run(good.at[0, 0, 0].set(0.0), ones) is Code.SINGULAR
    assert run(good.at[0, 0, 0].set(0.0), ones.at[0, 0].set(0.0)) is Code.OK  # consistent
    assert run(good.at[0, 0, 0].set(jnp.nan), ones) is Code.NON_FINITE


@pytest.mark.parametrize("solver", [None, cg(rtol=1e-12), dense(damping=0.5)], ids=repr)
def test_one_users_own_block(model, solver):
    p, b, product = model
    mine = jax.jit(lambda u: block(lambda v: v["P"][u], solver=solver).solve(product, b))(3)  # u is traced
    damping = 0.5 if solver and solver.name == "dense" else 0.0
    own = diagonal_blocks(product, p)["P"][3] + damping * jnp.eye(D)
    np.testing.assert_allclose(mine.value["P"][3], jnp.linalg.solve(own, b["P"][3]), rtol=1e-8)
    assert Code(int(mine.code)) is Code.OK
    assert float(jnp.abs(mine.value["Q"]).max()) == 0
    assert float(jnp.abs(mine.value["P"].at[3].set(0)).max()) == 0


@pytest.mark.slow
def test_block_of_a_user_and_an_item_with_their_interaction(model):
    p, b, product = model
    flat = lambda v: jnp.concatenate([v["P"][2], v["Q"][4]])
    result = block(lambda v: (v["P"][2], v["Q"][4])).solve(product, b)
    spread = jax.vmap(lambda e: flat(product(jax.linear_transpose(flat, p)(e)[0])))(jnp.eye(2 * D))
    np.testing.assert_allclose(flat(result.value), jnp.linalg.solve(spread, flat(b)), rtol=1e-8)


@pytest.mark.slow
def test_block_is_differentiable(model):
    _, b, product = model
    f = lambda s: jnp.sum(
        block(lambda v: v["P"][1]).solve(lambda v: jax.tree.map(lambda t: s * t, product(v)), b).value["P"]
    )
    assert float(jax.grad(f)(1.0)) == pytest.approx(-float(f(1.0)), rel=1e-9)


def test_blocks_of_several_sizes_are_each_inverted(x64):
    """Leaves of one block size share a call, sizes take turns; every leaf gets its own inverse."""
    roots = {"a": (4, 3), "b": (2, 5), "c": (6, 3)}
    keys = jax.random.split(jax.random.key(0), 3)
    roots = {name: jax.random.normal(k, (*shape, shape[-1])) for k, (name, shape) in zip(keys, roots.items())}
    blocks = {
        name: root @ jnp.swapaxes(root, -1, -2) + jnp.eye(root.shape[-1]) for name, root in roots.items()
    }
    like = {name: jnp.ones(matrix.shape[:-1]) for name, matrix in blocks.items()}
    found = jax.jit(lambda blocks: inverse_blocks(blocks, like, 0.5))(blocks)
    for name, matrix in blocks.items():
        expected = jnp.linalg.inv(matrix + 0.5 * jnp.eye(matrix.shape[-1]))
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-12)


def test_a_part_has_no_blocks_or_batches_of_the_whole_problem():
    for solver in (cg(preconditioner="block_jacobi"), lissa(3, minibatch=True)):
        with pytest.raises(ValueError, match="of the whole problem, which the picked part does not have"):
            block(lambda v: v["P"][0], solver=solver)
