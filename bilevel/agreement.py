"""How far two estimators agree, and what each costs: cosine, relative error, seconds, bytes."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.hypergrad import Hypergrad, value_and_hypergrad
from bilevel.solve import Solve


class Agreement(NamedTuple):
    """Two hypergradients `a` and `b` compared; `b` is the reference.

    Attributes:
      cosine: `<a, b> / (||a|| ||b||)`; NaN if either is 0.
      relative_error: `||a - b|| / ||b||`; NaN if `b` is 0.
      seconds: median wall-clock seconds of each, compiled, both in this process.
      bytes: temporary memory of each compiled program, where the backend reports it (else -1).
      codes: the result code of each.
    """

    cosine: float
    relative_error: float
    seconds: tuple[float, float]
    bytes: tuple[int, int]
    codes: tuple[int, int]


def agreement(
    a: Solve,
    b: Solve,
    *,
    outer: Callable[..., Any],
    x: Any,
    params0: Any,
    data: Any,
    key: jax.Array,
    repeats: int = 3,
) -> Agreement:
    """Compare estimator `a` with the reference `b` at one point.

    Args:
      a, b: estimators; they may be over different loops (another `L`).
      outer: `(params, x, data) -> scalar`.
      x, params0, data, key: where to evaluate, as in `solve(x, params0, data, key)`.
      repeats: timed runs after one that compiles, at least 1.

    >>> import optax, bilevel
    >>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=8)
    >>> at = dict(outer=lambda p, x, data: jnp.sum(p**2), x=jnp.ones(3), params0=jnp.zeros(3))
    >>> at |= dict(data=None, key=jax.random.key(0))
    >>> round(agreement(bilevel.truncated(inner, tau=2), bilevel.unrolled(inner), **at).relative_error, 3)
    0.247
    """
    if repeats < 1:
        raise ValueError(f"agreement: repeats={repeats}; expected at least 1")
    (left, left_seconds, left_bytes), (right, right_seconds, right_bytes) = (
        _measure(solve, outer, (x, params0, data, key), repeats) for solve in (a, b)
    )
    size, reference = trees.norm(left.grad), trees.norm(right.grad)
    difference = trees.norm(jax.tree.map(jnp.subtract, left.grad, right.grad))
    return Agreement(
        float(trees.dot(left.grad, right.grad) / (size * reference)),
        float(difference / reference),
        (left_seconds, right_seconds),
        (left_bytes, right_bytes),
        (int(left.diagnosis.code), int(right.diagnosis.code)),
    )


def _measure(solve: Solve, outer, args, repeats: int) -> tuple[Hypergrad, float, int]:
    compiled = jax.jit(value_and_hypergrad(outer, solve)).lower(*args).compile()
    analysis = compiled.memory_analysis()
    estimate = jax.block_until_ready(compiled(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    return estimate, sorted(seconds)[len(seconds) // 2], analysis.temp_size_in_bytes if analysis else -1
