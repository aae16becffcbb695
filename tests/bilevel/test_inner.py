"""Inner loops: batches that depend on key and step only, dtypes that stay, errors before tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bilevel

KEY = jax.random.key(0)


@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 50))
def test_an_epoch_visits_every_row_once(seed, epoch):
    batches = bilevel.minibatches(10, 4)
    draw = jax.jit(batches.draw)
    seen = []
    for position in range(batches.per_epoch):
        batch = draw(jax.random.key(seed), epoch * batches.per_epoch + position)
        assert batch.index.shape == batch.mask.shape == (4,)
        seen.extend(np.asarray(batch.index)[np.asarray(batch.mask)])
    assert sorted(seen) == list(range(10))


def test_batches_depend_on_key_and_epoch():
    batches = bilevel.minibatches(64, 64)
    one, other_epoch, other_key = (
        batches.draw(jax.random.key(k), s).index for k, s in ((0, 0), (0, 1), (1, 0))
    )
    assert not np.array_equal(one, other_epoch)
    assert not np.array_equal(one, other_key)


def test_same_forward_numbers_as_a_plain_optax_loop(x64):
    loss = lambda p, x, data, ctx: jnp.sum((p["a"] - x) ** 2) + jnp.sum(p["a"] ** 4)
    optimizer, x, params = optax.adam(0.1), jnp.arange(3.0), {"a": jnp.ones(3)}
    state, expected = optimizer.init(params), params
    for _ in range(5):
        updates, state = optimizer.update(jax.grad(loss)(expected, x, None, None), state, expected)
        expected = optax.apply_updates(expected, updates)
    found = bilevel.unrolled(bilevel.gradient_descent(loss, optimizer, 5))(x, params, None, KEY)
    np.testing.assert_allclose(found["a"], expected["a"], rtol=1e-14)


def test_context_tells_key_step_and_aux():
    """aux is updated before each step that reads it, and no derivative flows through it."""
    aux = bilevel.Aux(
        init=lambda p, x, data, key: jnp.zeros(()), update=lambda aux, p, x, data, ctx: aux + p + x
    )
    loss = lambda p, x, data, ctx: -ctx.aux * p + 0.0 * jax.random.normal(ctx.key) * ctx.step
    for memory in ("keep", "adjoint", "replay", "lean"):
        solve = bilevel.unrolled(bilevel.gradient_descent(loss, optax.sgd(1.0), 3, aux=aux), memory=memory)
        value, slope = jax.value_and_grad(lambda x, solve=solve: solve(x, jnp.zeros(()), None, KEY))(1.0)
        # aux: 1, then 1 + (p=1) + 1 = 3, then 3 + (p=4) + 1 = 8; p: 1, 4, 12
        assert float(value) == 12.0
        assert float(slope) == 0.0


def clipping():
    """A loss that clips its own gradient: `tanh` of the true one."""
    clip = jax.custom_vjp(lambda p: p)
    clip.defvjp(lambda p: (p, None), lambda _, g: (jnp.tanh(g),))
    return lambda p, x, A, ctx: 0.5 * clip(p) @ A @ clip(p) - clip(p) @ x


def holding():
    """Adversarial training: the loss at parameters moved along its gradient, and the move held constant."""
    plain = lambda p, x, A, ctx: jnp.sum(jnp.tanh(A @ p - x) ** 2) + 0.1 * jnp.sum(p**2)
    move = lambda p, x, A, ctx: 0.3 * jnp.sin(jax.grad(plain)(p, x, A, ctx))
    loss = jax.custom_jvp(lambda p, x, A, ctx: plain(p + move(p, x, A, ctx), x, A, ctx))

    @loss.defjvp
    def _(at, along):
        held = move(*at)
        return jax.jvp(lambda p, x, A: plain(p + held, x, A, at[3]), at[:3], along[:3])

    return loss


@pytest.mark.parametrize("make", [clipping, holding])
def test_a_field_that_is_no_gradient(x64, make):
    """Every estimator against central differences of the loop run again, in `x` and in `data`."""
    loss, start = make(), jnp.full(3, 0.2)
    descend = lambda **own: bilevel.gradient_descent(
        loss, optax.sgd(0.2), 6, structure=bilevel.Structure(gradient=False, **own)
    )
    product = lambda p, x, A, ctx, v: jax.vjp(lambda p, x: jax.grad(loss)(p, x, A, ctx), p, x)[1](v)
    loop, told = descend(), descend(product=product)
    root = bilevel.fixed_point(lambda p, x, A, ctx: p - 0.02 * jax.grad(loss)(p, x, A, ctx), 2000)
    estimators = {
        loop: [bilevel.unrolled(loop, memory=memory) for memory in ("keep", "adjoint", "replay", "lean")]
        + [bilevel.truncated(loop, 6), bilevel.unrolled(told)],
        root: [bilevel.implicit(root, bilevel.dense())],
    }
    value = lambda solve, at: jnp.sum(solve(at[0], start, at[1], KEY) ** 2)
    A = jnp.array([[1.0, 0.5, 0.2], [0.5, 2.0, 0.3], [0.2, 0.3, 1.5]])
    flat, unflatten = jax.flatten_util.ravel_pytree((jnp.array([0.5, 0.1, -0.4]), A))
    for inner, solves in estimators.items():
        moved = jax.jit(jax.vmap(lambda f, inner=inner: value(bilevel.detached(inner), unflatten(f))))
        expected = (moved(flat + 1e-5 * jnp.eye(12)) - moved(flat - 1e-5 * jnp.eye(12))) / 2e-5
        slopes = jax.jit(
            lambda f, solves=solves: [jax.grad(lambda f: value(s, unflatten(f)))(f) for s in solves]
        )
        for solve, slope in zip(solves, slopes(flat), strict=True):
            np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8, err_msg=repr(solve))
    only_x = jax.grad(lambda x: value(bilevel.unrolled(told), (x, A)))(unflatten(flat)[0])
    np.testing.assert_allclose(
        only_x, jax.grad(lambda x: value(estimators[loop][0], (x, A)))(unflatten(flat)[0])
    )
    with pytest.raises(ValueError, match="gradient of no loss"):
        bilevel.implicit(loop)


def test_carry_keeps_its_dtypes():
    scale = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * jnp.float32(0.5), updates))
    loss = lambda p, x, data, ctx: jnp.sum((p.astype(jnp.float32) - x) ** 2)
    solve = bilevel.unrolled(bilevel.gradient_descent(loss, optax.chain(scale, optax.sgd(0.1)), 2))
    assert solve(jnp.ones(2), jnp.zeros(2, jnp.bfloat16), None, KEY).dtype == jnp.bfloat16


def test_integer_parameters_are_refused_with_a_remedy():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(2, 1, rngs=rngs)
            self.count = nnx.Variable(jnp.array(0))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    loss = lambda p, x, data, ctx: jnp.sum(nnx.merge(graph, p).layer(data))
    with pytest.raises(TypeError, match=r"nnx.split\(model, nnx.Param"):
        bilevel.unrolled(bilevel.gradient_descent(loss, optax.sgd(0.1), 2))(1.0, state, jnp.ones((1, 2)), KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bilevel.gradient_descent(None, optax.sgd(1.0), 3), "loss must be a function"),
        (lambda: bilevel.gradient_descent(lambda p, x, d, c: p, "adam", 3), "optax transformation"),
        (lambda: bilevel.gradient_descent(lambda p, x, d, c: p, optax.sgd(1.0), 0), "steps=0"),
        (lambda: bilevel.gradient_descent(lambda p, x, d, c: p, optax.sgd(1.0), 2.5), "steps=2.5"),
        (
            lambda: bilevel.gradient_descent(
                lambda p, x, d, c: p, optax.sgd(1.0), 3, batches=bilevel.minibatches(4, 3), epoch=5
            ),
            "epoch=5 beside batches, whose pass is 2 steps",
        ),
        (lambda: bilevel.gradient_descent(lambda p, x, d, c: p, optax.sgd(1.0), 3, epoch=0), "epoch=0"),
        (lambda: bilevel.fixed_point(3, 3), "update must be a function"),
        (lambda: bilevel.fixed_point(lambda p, x, d, c: p, -1), "steps=-1"),
        (lambda: bilevel.minibatches(3, 4), "larger than count"),
        (lambda: bilevel.minibatches(3, 0), "size=0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_an_optimizer_that_needs_more_than_gradients_is_refused_by_name():
    inner = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.lbfgs(), 3)
    with pytest.raises(TypeError, match=r"value.*line search"):
        bilevel.unrolled(inner)(jnp.ones(2), jnp.zeros(2), None, KEY)
