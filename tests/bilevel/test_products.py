"""Products with second derivatives against the matrices they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel.products import cross_product, diagonal_blocks, gauss_newton_product, hessian_and_cross, hvp


def loss(p, x, data):
    scores = jnp.tanh(x["rows"] @ p["w"]) * p["gain"]
    return jnp.sum(x["weight"] * (scores - data[x["ids"]]) ** 2) + jnp.sum(p["w"] ** 4)


@pytest.fixture
def point(x64):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    p = {"w": draw(3, 2), "gain": draw()}
    x = {"rows": draw(5, 3), "weight": draw(5, 2) ** 2, "ids": jnp.array([0, 2, 1, 1, 0])}
    return p, x, draw(3, 2), {"w": draw(3, 2), "gain": draw()}


def test_hvp_and_cross_against_dense(point):
    p, x, data, v = point
    floats = {k: x[k] for k in ("rows", "weight")}
    flat_p, back_p = ravel_pytree(p)
    flat_x, back_x = ravel_pytree(floats)
    f = lambda a, b: loss(back_p(a), {**back_x(b), "ids": x["ids"]}, data)
    dense_h = jax.hessian(f)(flat_p, flat_x)
    dense_m = jax.jacfwd(jax.grad(f), 1)(flat_p, flat_x)
    direction = ravel_pytree(v)[0]
    h, m = jax.jit(lambda p, v: hessian_and_cross(loss, p, x, v, data))(p, v)
    np.testing.assert_allclose(ravel_pytree(h)[0], dense_h @ direction, rtol=1e-12)
    np.testing.assert_allclose(ravel_pytree(hvp(loss, p, v, x, data))[0], dense_h @ direction, rtol=1e-12)
    assert m["ids"] is None  # integer leaves ride along
    np.testing.assert_allclose(ravel_pytree({k: m[k] for k in floats})[0], direction @ dense_m, rtol=1e-12)
    both = cross_product(lambda p, pair: loss(p, *pair), p, (x, data), v)
    np.testing.assert_allclose(both[0]["rows"], m["rows"], rtol=1e-12)
    assert both[1].shape == data.shape


def test_integer_leaves_among_the_parameters(x64):
    p = {"w": jnp.array([1.0, 2.0]), "count": jnp.array(3)}
    f = lambda p: p["count"] * jnp.sum(p["w"] ** 3)
    product = hvp(f, p, {"w": jnp.array([1.0, 1.0]), "count": None})
    np.testing.assert_allclose(product["w"], [18.0, 36.0])
    assert product["count"] is None


def test_gauss_newton_is_j_transposed_h_j(point):
    p, x, _, v = point
    model = lambda p: jnp.tanh(x["rows"] @ p["w"]) * p["gain"]
    outer = lambda out: jnp.sum(jnp.logaddexp(0.0, out) * x["weight"]) + jnp.sum(out**2)
    flat, back = ravel_pytree(p)
    out = model(p)
    j = jax.jacobian(lambda a: model(back(a)).ravel())(flat)
    b = jax.hessian(lambda o: outer(o.reshape(out.shape)))(out.ravel())
    got = ravel_pytree(jax.jit(lambda v: gauss_newton_product(model, outer, p, v))(v))[0]
    np.testing.assert_allclose(got, j.T @ b @ j @ ravel_pytree(v)[0], rtol=1e-12)
    assert float(got @ ravel_pytree(v)[0]) >= 0


def test_gauss_newton_is_the_hessian_of_a_linear_model(point):
    _, x, data, v = point
    model = lambda w: x["rows"] @ w
    outer = lambda out: jnp.sum(jnp.logaddexp(0.0, out))
    w = v["w"]
    ours = gauss_newton_product(model, outer, w, data)
    np.testing.assert_allclose(ours, hvp(lambda w: outer(model(w)), w, data), rtol=1e-12)


def test_vmap_and_grad_through_a_product(point):
    p, x, data, v = point
    many = jax.vmap(lambda s: hvp(loss, p, jax.tree.map(lambda t: s * t, v), x, data))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(many["w"][1], 2 * many["w"][0], rtol=1e-12)
    third = jax.grad(lambda p: jnp.vdot(hvp(loss, p, v, x, data)["w"], v["w"]))(p)
    assert bool(jnp.isfinite(third["w"]).all())


def test_products_of_a_loss_with_its_own_derivative(x64):
    """A loss with a custom_vjp (a safe norm, a kernel): the product differentiates its backward pass."""

    @jax.custom_vjp
    def cube(p):
        return jnp.sum(p**3)

    cube.defvjp(lambda p: (jnp.sum(p**3), p), lambda p, g: (3 * g * p**2,))
    np.testing.assert_allclose(hvp(cube, jnp.array([1.0, 2.0]), jnp.ones(2)), [6.0, 12.0])


@pytest.mark.slow
def test_diagonal_blocks_of_a_factor_model(x64):
    rng = np.random.default_rng(0)
    p = {"P": jnp.asarray(rng.normal(size=(5, 3))), "Q": jnp.asarray(rng.normal(size=(4, 3)))}
    x = jnp.asarray(rng.normal(size=(5, 4)))
    f = lambda p: jnp.sum((1 + x**2) * (x - p["P"] @ p["Q"].T) ** 2) + 0.1 * jnp.sum(p["P"] ** 2)
    blocks = diagonal_blocks(lambda v: hvp(f, p, v), p)
    dense = jax.hessian(f)(p)
    for name, rows in (("P", 5), ("Q", 4)):
        for r in range(rows):
            np.testing.assert_allclose(blocks[name][r], dense[name][name][r, :, r, :], rtol=1e-12)
