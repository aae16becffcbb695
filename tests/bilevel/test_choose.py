"""The cost model: what it predicts is near what the compiler allocates, and the choice follows the limit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel

KEY = jax.random.key(0)
STEPS = 64
loss = lambda p, x, data, ctx: (
    jnp.sum((data - p["u"] @ p["i"].T) ** 2) + jnp.sum((x - p["f"] @ p["i"].T) ** 2)
)
outer = lambda p, x, data: jnp.sum(jax.nn.logsumexp(p["u"] @ p["i"].T, axis=1))
ARGS = (
    jnp.ones((10, 150)),
    {"u": jnp.full((200, 16), 0.1), "f": jnp.full((10, 16), 0.1), "i": jnp.full((150, 16), 0.1)},
    jnp.ones((200, 150)),
    KEY,
)
INNER = bilevel.gradient_descent(loss, optax.adam(0.01), STEPS)


@pytest.fixture(scope="module")
def table():
    return {cost.memory: cost for cost in bilevel.costs(INNER, outer, *ARGS)}


@pytest.mark.parametrize("memory", ["adjoint", "replay", "keep", "lean"])
def test_prediction_is_within_a_factor_of_two_of_the_compiler(table, memory):
    solve = bilevel.unrolled(INNER, memory=memory, segments=table[memory].segments)
    value = lambda x, params0, data, key: outer(solve(x, params0, data, key), x, data)
    compiled = jax.jit(jax.grad(value)).lower(*ARGS).compile()
    measured = compiled.memory_analysis().temp_size_in_bytes
    assert 0.5 <= table[memory].bytes / measured <= 2.0


def test_order_and_limit(table):
    assert table["lean"].bytes < table["replay"].bytes < table["adjoint"].bytes
    assert [c.forwards for c in bilevel.costs(INNER, outer, *ARGS)] == sorted(
        c.forwards for c in table.values()
    )
    value = lambda limit: (
        lambda x: outer(bilevel.choose(INNER, outer, memory=limit)(x, *ARGS[1:]), x, ARGS[2])
    )
    free, tight = (jax.jit(jax.grad(value(limit))) for limit in (None, table["lean"].bytes))
    np.testing.assert_allclose(free(ARGS[0]), tight(ARGS[0]), rtol=2e-3, atol=1e-6)
    temporaries = [f.lower(ARGS[0]).compile().memory_analysis().temp_size_in_bytes for f in (free, tight)]
    assert temporaries[1] < 0.6 * temporaries[0]


def test_inputs_are_not_taken_for_residuals():
    """A large `data` that no residual holds must not hide the residuals that there are."""
    loss = lambda p, x, data, ctx: jnp.sum((jnp.sin(p * jnp.sum(x)) - jnp.sum(data)) ** 2)
    inner = bilevel.gradient_descent(loss, optax.sgd(0.1), 64)
    args = (jnp.ones(3), jnp.ones(10_000), jnp.ones(80_000), KEY)
    keep = {cost.memory: cost for cost in bilevel.costs(inner, lambda p, x, data: jnp.sum(p), *args)}["keep"]
    value = lambda x: jnp.sum(bilevel.unrolled(inner, memory="keep")(x, *args[1:]))
    measured = jax.jit(jax.grad(value)).lower(args[0]).compile().memory_analysis().temp_size_in_bytes
    assert keep.bytes > 0.4 * measured


def test_auxiliary_state_counts():
    aux = bilevel.Aux(lambda *_: jnp.zeros(5000), lambda aux, p, x, data, ctx: aux + 1)
    loss_too = lambda p, x, data, ctx: jnp.sum((p - x) ** 2) * ctx.aux[0]
    inner = bilevel.gradient_descent(loss_too, optax.sgd(0.1), STEPS, aux=aux)
    table = bilevel.costs(inner, lambda p, x, data: jnp.sum(p), jnp.ones(3), jnp.ones(3), None, KEY)
    assert {cost.memory: cost.bytes for cost in table}["replay"] > STEPS * 5000 * 4


def test_nothing_fits():
    with pytest.raises(ValueError, match="the leanest, 'lean'"):
        bilevel.choose(INNER, outer, memory="10KB")(*ARGS)


@pytest.mark.parametrize("memory", ["much", "-3GB", 0, 1.5, True, "3 XB"])
def test_bad_sizes(memory):
    with pytest.raises(ValueError, match="memory="):
        bilevel.choose(INNER, outer, memory=memory)


def test_sizes_in_words():
    from bilevel.choose import _bytes

    assert [_bytes(m) for m in ("2GiB", "1.5 MB", "512", 7, None)] == [2**31, 1_500_000, 512, 7, None]
