"""Small inner problems, each with everything an estimator is called with; the oracles here range over them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import bilevel

OPTIMIZERS = {
    "sgd": optax.sgd(0.03),
    "momentum": optax.sgd(0.02, momentum=0.9),
    "adam": optax.adam(0.05),
    "adagrad": optax.adagrad(0.1),
}


class Problem(NamedTuple):
    """loss, outer, x, params0, data; `batches` is (rows, size) or None."""

    loss: Any
    outer: Any
    x: Any
    params0: Any
    data: Any
    batches: Any = None

    def inner(self, optimizer, steps):
        batches = bilevel.minibatches(*self.batches) if self.batches else None
        return bilevel.gradient_descent(self.loss, optimizer, steps, batches=batches)


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def quadratic():
    root = _normal(0, 4, 4)
    data = {"A": root @ root.T + jnp.eye(4), "M": _normal(1, 4, 3), "n": jnp.arange(3)}
    loss = lambda p, x, d, ctx: 0.5 * p @ d["A"] @ p - p @ (d["M"] @ x)
    return Problem(loss, lambda p, x, d: jnp.sum(jnp.sin(p)) + x @ x, _normal(2, 3), _normal(3, 4), data)


def logistic():
    data = {"A": _normal(4, 8, 3), "y": jnp.sign(_normal(5, 8))}

    def loss(p, x, d, ctx):  # x: log-weights of the examples and the strength of the penalty
        return jnp.sum(jnp.exp(x["w"]) * jax.nn.softplus(-d["y"] * (d["A"] @ p))) + jnp.exp(x["reg"]) * p @ p

    x = {"w": 0.1 * _normal(6, 8), "reg": jnp.array(-1.0), "ids": jnp.arange(8)}
    return Problem(loss, lambda p, x, d: jnp.sum(p**3) + p[0], x, _normal(7, 3), data)


def _weighted_square(p, x, d):
    rows = jnp.concatenate([d["X"], x])
    weight = 1 + 19 * jnp.concatenate(
        [d["X"], d["frozen"]]
    )  # frozen: central differences must not jump with 1[x > 0]
    users = jnp.concatenate([p["user"], p["fake"]])
    return weight * (rows - users @ p["item"].T) ** 2


def wrmf():
    loss = lambda p, x, d, ctx: (
        0.1 * jnp.sum(_weighted_square(p, x, d)) + 0.01 * sum(jnp.sum(v**2) for v in p.values())
    )
    outer = lambda p, x, d: -jnp.sum(jax.nn.log_softmax(p["user"] @ p["item"].T)[:, 0])
    X = (jax.random.uniform(jax.random.key(8), (6, 5)) < 0.4).astype(jnp.float64).at[0].set(0.0)
    frozen = (jax.random.uniform(jax.random.key(9), (2, 5)) < 0.5).astype(jnp.float64)
    x = jax.random.uniform(jax.random.key(10), (2, 5), jnp.float64, 0.2, 0.8)
    params0 = {
        "user": 0.5 * _normal(11, 6, 2),
        "item": 0.5 * _normal(12, 5, 2),
        "fake": 0.5 * _normal(13, 2, 2),
    }
    return Problem(loss, outer, x, params0, {"X": X, "frozen": frozen})


def wrmf_batches():
    base = wrmf()

    def loss(p, x, d, ctx):
        cells = _weighted_square(p, x, d)
        if ctx.batch is None:
            return 0.1 * jnp.sum(cells)
        return 0.1 * jnp.sum(cells[ctx.batch.index] * ctx.batch.mask[:, None])

    return base._replace(loss=loss, batches=(8, 3))


def nnx_mlp():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 4, rngs=rngs, param_dtype=jnp.float64)
            self.out = nnx.Linear(4, 1, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, a):
            return self.out(jnp.tanh(self.hidden(a)))[:, 0]

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    loss = lambda p, x, d, ctx: jnp.mean(x * (nnx.merge(graph, p)(d["A"]) - d["y"]) ** 2)
    outer = lambda p, x, d: jnp.sum(nnx.merge(graph, p)(d["A"][:2]) ** 2)
    data = {"A": _normal(14, 8, 3), "y": _normal(15, 8)}
    return Problem(loss, outer, 1 + 0.1 * _normal(16, 8), params, data)


def linen_dropout():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, a, key=None):
            h = jnp.tanh(linen.Dense(4, param_dtype=jnp.float64)(a))
            h = linen.Dropout(0.5)(h, deterministic=key is None, rng=key)
            return linen.Dense(1, param_dtype=jnp.float64)(h)[:, 0]

    net, A = Net(), _normal(17, 8, 3)
    params = net.init(jax.random.key(18), A)
    loss = lambda p, x, d, ctx: jnp.mean((net.apply(p, d["A"], key=ctx.key) - x) ** 2)
    return Problem(
        loss, lambda p, x, d: jnp.sum(net.apply(p, d["A"][:2]) ** 2), _normal(19, 8), params, {"A": A}
    )


PROBLEMS = {f.__name__: f for f in (quadratic, logistic, wrmf, wrmf_batches, nnx_mlp, linen_dropout)}


@pytest.fixture(params=list(PROBLEMS))
def problem(request, x64):
    """Every inner problem, in float64."""
    return PROBLEMS[request.param]()


@pytest.fixture
def named_problem(x64):
    """`named_problem(name)`: one of them."""
    return lambda name: PROBLEMS[name]()


@pytest.fixture
def wrmf_problem(x64):
    """The problem of the paper, tiny, in float64."""
    return wrmf()


@pytest.fixture
def optimizers():
    """SGD, momentum, Adam, Adagrad, by name."""
    return OPTIMIZERS


@pytest.fixture(params=list(OPTIMIZERS))
def optimizer(request):
    """SGD, momentum, Adam, Adagrad."""
    return OPTIMIZERS[request.param]


@pytest.fixture
def hypergradient():
    """`hypergradient(solve, problem) -> (loss as a function of a flat x, its flat gradient, flat x)`."""

    def evaluate(solve, problem, key=None):
        key = jax.random.key(42) if key is None else key
        halves = bilevel.trees.split(problem.x)
        flat, unflatten = jax.flatten_util.ravel_pytree(halves.inexact)

        @jax.jit
        def value(flat):
            x = bilevel.trees.join(unflatten(flat), halves.rest)
            return problem.outer(solve(x, problem.params0, problem.data, key), x, problem.data)

        return value, jax.jit(jax.grad(value))(flat), flat

    return evaluate
