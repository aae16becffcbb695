"""Which memory policy fits: a cost model read off the shapes, before anything is compiled.

The bytes a policy keeps follow from the sizes of one step: `m_state` (parameters and optimizer state),
`m_grad` (what a step saves), `m_vjp` (everything reverse mode would keep of one step) and `L`:

    adjoint: L (m_state + m_grad)        replay: L m_grad + S m_state + n (m_state + m_grad)
    keep:    L m_vjp                     lean:            S m_state + n (m_state + m_grad)         with S
      segments of n = L / S steps

to which every policy adds the working memory of one step and what the outer loss keeps. The policies are
tried from the fastest to the slowest in the order measured by `benchmarks/hypergradient.py`; the first that
fits is taken.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel import trees
from bilevel.inner import Inner
from bilevel.solve import Solve, Wants
from bilevel.unroll import Memory, unrolled

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


class Cost(NamedTuple):
    """What a policy (`memory`, `segments`) needs: `bytes`, and `forwards`, its time in forward passes (measured)."""

    memory: Memory
    segments: int | None
    bytes: int
    forwards: float


def choose(inner: Inner, outer: Callable[..., Any], *, memory: int | str | None = None) -> Solve:
    """The exact estimator with the fastest memory policy that fits into `memory`, decided from the shapes it
    is called with.

    Under `vmap` the limit is for one example.

    Args:
      inner: the loop.
      outer: the outer loss `(params, x, data) -> scalar`; what its gradient keeps counts too.
      memory: bytes, or text such as `"512MB"`, `"2GiB"`; None: no limit.

    Returns:
      an estimator like `unrolled(inner)`. Calling it raises ValueError if no policy fits, naming the leanest
      one's need.

    Raises:
      ValueError: `memory` is not a positive size.

    >>> import optax, bilevel, jax.numpy as jnp
    >>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=100)
    >>> args = (jnp.zeros(1000), jnp.zeros(1000), None, jax.random.key(0))
    >>> solve = choose(inner, lambda p, x, data: jnp.sum(p), memory="300KB")
    >>> solve(*args).shape
    (1000,)
    """
    limit = _bytes(memory)

    def pick(x, params0, data, key) -> Solve:
        table = costs(inner, outer, x, params0, data, key)
        for cost in table:
            if limit is None or cost.bytes <= limit:
                return unrolled(inner, memory=cost.memory, segments=cost.segments)
        least = min(table, key=lambda cost: cost.bytes)
        raise ValueError(
            f"choose: no exact policy fits into memory={memory!r}; the leanest, {least.memory!r} with "
            f"{least.segments} segments, needs about {least.bytes / 1e6:.1f} MB. Give it that, or use "
            "bilevel.truncated(inner, tau), whose memory does not grow with the steps"
        )

    def run(x, params0, data, key, wants: Wants):
        return pick(x, params0, data, key).run(x, params0, data, key, wants)

    def pull(saved, x, params0, data, key, params_bar, wants: Wants, start=None):
        return pick(x, params0, data, key).pull(saved, x, params0, data, key, params_bar, wants, start)

    return Solve(inner, f"choose({inner!r}, memory={memory!r})", run, pull)


def costs(inner: Inner, outer: Callable[..., Any], x: Any, params0: Any, data: Any, key: Any) -> list[Cost]:
    """Every policy's need for these shapes, fastest first. Nothing is computed: shapes only.

    Returns:
      a list of `Cost`.
    """
    steps = inner.steps
    state, gradient, everything, around = _step_sizes(inner, outer, x, params0, data, key)
    # n (m_state + m_grad) + (L / n) m_state is least at n = sqrt(L m_state / (m_state + m_grad))
    length = max(1, min(steps, round(math.sqrt(steps * state / max(state + gradient, 1)))))
    segments = -(-steps // length)
    inside, starts = length * (state + gradient), segments * state
    work = around + everything
    return [
        Cost("adjoint", None, steps * (state + gradient) + work, 3.7),
        Cost("replay", segments, steps * gradient + starts + inside + work, 3.8),
        Cost("keep", None, steps * everything + work, 3.9),
        Cost("lean", segments, starts + inside + work, 4.7),
    ]


def _step_sizes(inner: Inner, outer, x, params0, data, key) -> tuple[int, int, int, int]:
    """Bytes of a state, of what a step saves, of what reverse mode keeps of a step, of what surrounds the loop."""

    def one_step(x, params0, data, key):
        state = inner.init(params0, x, data, key)
        ctx = inner.context(key, 0, state.aux)
        return state, inner.step(state, x, data, ctx)[1]

    def step_residuals(x, params0, data, key):
        inexact = trees.split(x)
        state = inner.init(params0, x, data, key)
        ctx = inner.context(key, 0, state.aux)
        step = lambda params, x: (
            inner.step(state._replace(params=params), trees.join(x, inexact.rest), data, ctx)[0].params
        )
        return jax.vjp(step, state.params, inexact.inexact)[1]

    def outer_residuals(x, params0, data, key):
        return jax.vjp(lambda params: outer(params, x, data), params0)[1]

    args = (x, params0, data, key)
    state, saved = jax.eval_shape(one_step, *args)
    everything = _computed(step_residuals, args)
    around = (
        _total(jax.eval_shape(outer_residuals, *args)) + 3 * _total(params0) + _total(trees.split(x).inexact)
    )
    return _total(state), _total(saved) + _total(state.aux), everything, around


def _computed(function: Callable[..., Any], args) -> int:
    """Bytes of what `function` returns that are not its own arguments: those are held once, not once a step."""
    closed = jax.make_jaxpr(lambda *args: jax.tree.leaves(function(*args)))(*args)
    held = {id(variable) for variable in (*closed.jaxpr.invars, *closed.jaxpr.constvars)}
    made = {id(v): v.aval for v in closed.jaxpr.outvars if id(v) not in held and not hasattr(v, "val")}
    return sum(_size(aval) for aval in made.values())


def _total(tree) -> int:
    return sum(map(_size, jax.tree.leaves(tree)))


def _size(leaf) -> int:
    dtype = getattr(leaf, "dtype", None) or jax.numpy.result_type(leaf)
    each = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize
    return int(np.prod(np.shape(leaf))) * each


def _bytes(memory: int | str | None) -> int | None:
    if memory is None:
        return None
    if isinstance(memory, str):
        number = memory.strip().rstrip("BKMGTiIbkmgt").strip()
        unit = memory.strip()[len(number) :].strip().upper() or "B"
        try:
            size = int(float(number) * _UNITS[unit])
        except (ValueError, KeyError):
            raise ValueError(
                f"memory={memory!r}: expected bytes, or a number with one of {', '.join(_UNITS)}"
            ) from None
    else:
        size = memory
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise ValueError(f"memory={memory!r}: expected a positive number of bytes, or text such as '2GiB'")
    return size
