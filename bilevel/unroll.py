"""Estimators that differentiate the steps of the loop: exactly, the last `tau` of them, one, or none.

    exact:      dL/dx = dL/dx|theta + sum_{l=1..L} lambda_l . d theta_l / dx,   lambda_{l-1} = lambda_l . d
      theta_l / d theta_{l-1}
    truncated:  the same sum over the last tau steps only; the state before them counts as a constant
    detached:   the first term alone (the partial derivative)

All are one function with `tau` in {L, tau, 1, 0}. What differs inside is what is kept of the forward pass.
Per step kept or recomputed (m: one copy of the parameters, Adam):

| memory        | keeps                                | recomputes            | note                                |
|---------------|--------------------------------------|-----------------------|-------------------------------------|
| `"keep"`      | everything autodiff wants            | nothing               | forward mode works too              |
| `"recompute"` | the state of every step              | the step              | `jax.checkpoint` on the body        |
| `"segments"`  | a state every `sqrt(L)` steps        | whole segments        | nested scans, `jax.checkpoint`      |
| `"adjoint"`   | state and gradient of every step: 4m | nothing               | the engine's own adjoint            |
| `"replay"`    | every gradient, a state a segment: m | the optimizer's update | cheap, elementwise; the default    |
| `"lean"`      | a state every `sqrt(L)` steps        | one forward pass      | the leanest                         |

The last three use the adjoint of one step (`Inner.pull`) and never differentiate through a gradient by
reverse mode twice.

Reference: Tang, Wen, Wang, RecSys 2020, eqs 6-9; Griewank, Walther, ACM TOMS 2000 (checkpoints); Shaban et
  al., AISTATS 2019 (truncation); Bolte, Pauwels, Vaiter, NeurIPS 2023 (one step).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from bilevel import trees
from bilevel.inner import Inner, InnerState
from bilevel.solve import Cotangents, Solve, Wants

Memory = Literal["keep", "recompute", "segments", "adjoint", "replay", "lean"]


def unrolled(inner: Inner, *, memory: Memory = "replay", segments: int | None = None) -> Solve:
    """The exact hypergradient of the loop that was run; every memory policy gives the same numbers.

    Args:
      inner: the loop, from `gradient_descent` or `fixed_point`.
      memory: what to keep for the backward pass, see the module's table. Only `"keep"`, `"recompute"` and
        `"segments"` are plain JAX code, and only they work in forward mode (`jax.jvp`, `jax.jacfwd`).
      segments: how many segments the three checkpointing policies cut the loop into, default about `sqrt(L)`.

    Raises:
      ValueError: unknown `memory`, `segments` out of range, or given to a policy that has none.

    Reference: Tang, Wen, Wang, RecSys 2020, eqs 4, 6-8.

    **Differs from the paper:** the optimizer's state (Adam) is part of the recursion, where eq. 8 prints SGD.

    >>> import optax, bilevel
    >>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.25), steps=2)
    >>> solve = unrolled(inner)
    >>> float(jax.grad(lambda x: solve(x, jnp.array(0.0), None, jax.random.key(0)))(1.0))
    0.75
    """
    _check_inner(inner, "unrolled")
    return _last_steps(inner, inner.steps, memory, segments, "unrolled")


def truncated(inner: Inner, tau: int, *, memory: Memory = "replay", segments: int | None = None) -> Solve:
    """Differentiate the last `tau` steps; the state before them (optimizer state too) is a constant. Memory
    is flat in `L`.

    Args:
      inner: the loop.
      tau: number of steps differentiated, `0 <= tau <= L`; 0 is `detached`, `L` is `unrolled`.
      memory, segments: as in `unrolled`, for the last `tau` steps.

    Raises:
      ValueError: `tau` out of range.

    Reference: Tang, Wen, Wang, RecSys 2020, eq. 9; Shaban et al., AISTATS 2019.

    **Differs from the paper:** eq. 9 prints the sum over `[L - tau, L]`, which has `tau + 1` terms; ours has
    `tau`.

    >>> import optax, bilevel
    >>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.25), steps=2)
    >>> solve = truncated(inner, tau=1)
    >>> float(jax.grad(lambda x: solve(x, jnp.array(0.0), None, jax.random.key(0)))(1.0))
    0.5
    """
    _check_inner(inner, "truncated")
    if not isinstance(tau, int | np.integer) or isinstance(tau, bool) or not 0 <= tau <= inner.steps:
        raise ValueError(
            f"truncated: tau={tau!r} for a loop of {inner.steps} steps; expected an integer in [0, {inner.steps}]"
        )
    return _last_steps(inner, tau, memory, segments, f"truncated(tau={tau})")


def one_step(inner: Inner) -> Solve:
    """Differentiate one last step: the Jacobian of the step map at the point returned, `truncated(tau=1)` by
    its own name.

    Reference: Bolte, Pauwels, Vaiter, One-step differentiation of iterative algorithms, NeurIPS 2023.

    **Differs from the paper:** nothing; with a stateful optimizer its state counts as a constant, as in
    `truncated`.

    >>> import optax, bilevel
    >>> one_step(bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.25), steps=2))
    one_step(gradient_descent(steps=2))
    """
    _check_inner(inner, "one_step")
    return _last_steps(inner, 1, "adjoint", None, "one_step")


def detached(inner: Inner) -> Solve:
    """`d params / d x = 0`: what is left of a hypergradient is the partial derivative of the outer loss.

    Reference: Tang, Wen, Wang, RecSys 2020, eq. 10.

    **Differs from the paper:** nothing.

    >>> import optax, bilevel
    >>> solve = detached(bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.25), steps=2))
    >>> float(jax.grad(lambda x: solve(x, jnp.array(0.0), None, jax.random.key(0)))(1.0))
    0.0
    """
    return _last_steps(inner, 0, "adjoint", None, "detached")


class _Plan(NamedTuple):
    """Which steps are differentiated and how the adjoint family stores them: segments of `length` steps."""

    inner: Inner
    start: int
    stop: int
    length: int
    keep: bool


class _Chunk(NamedTuple):
    """`count` segments of `length` steps from step number `first`."""

    first: int
    count: int
    length: int


def _last_steps(inner: Inner, tau: int, memory: Memory, segments: int | None, label: str) -> Solve:
    _check_inner(inner, label)
    if memory not in get_args(Memory):
        raise ValueError(f"{label}: memory={memory!r}; expected one of {', '.join(get_args(Memory))}")
    length = _segment_length(tau, memory, segments, label)
    name = f"{label}({inner!r}, memory={memory!r})" if label == "unrolled" else f"{label}({inner!r})"
    if memory in ("keep", "recompute", "segments"):
        return _plain_solve(inner, tau, memory, length, name)
    plan = _Plan(inner, inner.steps - tau, inner.steps, length, memory != "lean")
    run, pull = _make_run(plan), _make_pull(plan)
    return Solve(inner, name, run, pull)


def _check_inner(inner: Inner, label: str) -> None:
    if not isinstance(inner, Inner):
        raise TypeError(
            f"{label}: expected an Inner (bilevel.gradient_descent, bilevel.fixed_point), got {type(inner).__name__}"
        )


def _segment_length(tau: int, memory: Memory, segments: int | None, label: str) -> int:
    if memory not in ("segments", "replay", "lean"):
        if segments is not None:
            raise ValueError(
                f"{label}: segments={segments} has no meaning for memory={memory!r}; use it with the policies "
                "segments, replay and lean"
            )
        return 1
    if segments is None:
        return _balanced(tau)
    if not isinstance(segments, int | np.integer) or not 1 <= segments <= max(tau, 1):
        raise ValueError(
            f"{label}: segments={segments!r}; expected an integer in [1, {max(tau, 1)}], the steps differentiated"
        )
    return -(-tau // segments) if tau else 1


def _balanced(steps: int) -> int:
    """A segment length near `sqrt(steps)`, one that leaves no shorter last segment to compile apart if there is one."""
    root = max(1.0, math.sqrt(steps))
    whole = [n for n in range(1, steps + 1) if steps % n == 0 and root / 2.5 <= n <= root * 2.5]
    return min(whole, key=lambda n: abs(math.log(n / root)), default=round(root))


def _advance(inner: Inner, state: InnerState, x, data, key, step):
    """One step with its context: the auxiliary state is brought up to date first, and held constant."""
    ctx = inner.context(key, step, state.aux)
    if inner.aux is not None:
        aux = lax.stop_gradient(inner.aux.update(state.aux, state.params, x, data, ctx))
        ctx = ctx._replace(aux=aux)
    state, saved = inner.step(state, x, data, ctx)
    return state._replace(aux=ctx.aux), (saved, ctx.aux)


def _scan_steps(body: Callable[..., Any], carry, first, length: int, xs=None, reverse: bool = False):
    """`lax.scan` over the step numbers `first .. first + length - 1`, together with `xs`."""
    numbers = first + jnp.arange(length)
    return lax.scan(lambda carry, item: body(carry, *item), carry, (numbers, xs), reverse=reverse)


def run_to(inner: Inner, state, x, data, key, first: int, stop: int):
    """Steps `first .. stop - 1` with nothing kept."""
    return run_some(inner, state, x, data, key, first, stop - first)


def run_some(inner: Inner, state, x, data, key, first: Int[Array, ""] | int, count: int):
    """`count` steps from number `first` on, which may be traced, with nothing kept: training in pieces."""
    if count == 0:
        return state
    body = lambda state, step, _: (_advance(inner, state, x, data, key, step)[0], None)
    return _scan_steps(body, state, first, count)[0]


def _chunks(plan: _Plan) -> list[_Chunk]:
    whole, rest = divmod(plan.stop - plan.start, plan.length)
    chunks = [_Chunk(plan.start, whole, plan.length)] if whole else []
    return [*chunks, _Chunk(plan.stop - rest, 1, rest)] if rest else chunks


def _make_run(plan: _Plan):
    inner = plan.inner

    def run(x, params0, data, key, wants: Wants):
        state = inner.init(params0, x, data, key)
        if not any(wants):  # nobody differentiates
            state = run_to(inner, state, x, data, key, 0, plan.stop)
            return state.params, ((), state.aux)
        state = run_to(inner, state, x, data, key, 0, plan.start)
        if plan.start > 0:  # a constant for second derivatives too, which differentiate this very function
            state = jax.tree.map(_constant, state)
        tapes = []
        for chunk in _chunks(plan):
            state, tape = _record(plan, chunk, state, x, data, key)
            tapes.append(tape)
        return state.params, (tapes, state.aux)

    return run


def _record(plan: _Plan, chunk: _Chunk, state, x, data, key):
    """Run a chunk; keep the state each segment starts from, and the gradients inside if the plan says so."""

    def segment(start_state, number, _):
        def step(state, step, _):
            state, saved = _advance(plan.inner, state, x, data, key, step)
            return state, saved if plan.keep else None

        end, saved = _scan_steps(step, start_state, chunk.first + number * chunk.length, chunk.length)
        return end, (start_state, saved)

    return _scan_steps(segment, state, 0, chunk.count)


def _make_pull(plan: _Plan):
    inner = plan.inner

    def pull(saved, x, params0, data, key, params_bar, wants: Wants, start=None):
        tapes, _ = saved
        x_bar = trees.zeros(trees.split(x).inexact)
        data_bar = trees.zeros(trees.split(data).inexact) if wants.data else None
        if plan.start == plan.stop:
            return Cotangents(x_bar, None, data_bar), None
        first_state = jax.tree.map(lambda leaf: leaf[0], tapes[0][0])
        bar = InnerState(params_bar, trees.zeros(trees.split(first_state.opt).inexact), None)
        carry = (bar, x_bar, data_bar)
        for chunk, tape in zip(reversed(_chunks(plan)), reversed(tapes), strict=True):
            carry = _unwind(plan, chunk, tape, carry, x, data, key, wants)
        bar, x_bar, data_bar = carry
        params0_bar = (
            _pull_init(inner, x, params0, data, key, bar) if wants.params0 and plan.start == 0 else None
        )
        return Cotangents(x_bar, params0_bar, data_bar), None

    return pull


def _unwind(plan: _Plan, chunk: _Chunk, tape, carry, x, data, key, wants: Wants):
    """The adjoint of a chunk: segments in reverse, each replayed from its first state, then pulled back."""
    inner = plan.inner

    def forward(state, step, kept):
        if not plan.keep:
            after, (saved, aux) = _advance(inner, state, x, data, key, step)
            return after, (state, saved, aux)
        saved, aux = kept
        after = inner.replay(state, saved, x, data, inner.context(key, step, aux))
        return after, (state, saved, aux)

    def backward(carry, step, record):
        state, saved, aux = record
        bar, x_bar, data_bar = carry
        ctx = inner.context(key, step, aux)
        bar, x_step, data_step = inner.pull(state, saved, x, data, ctx, bar, wants)
        data_bar = trees.add(data_bar, data_step) if wants.data else None
        return (bar, trees.add(x_bar, x_step), data_bar), None

    def segment(carry, number, kept):
        state, saved = kept
        first = chunk.first + number * chunk.length
        if chunk.length == 1 and plan.keep:
            return backward(carry, first, (state, *jax.tree.map(lambda leaf: leaf[0], saved)))
        _, records = _scan_steps(forward, state, first, chunk.length, saved)
        return _scan_steps(backward, carry, first, chunk.length, records, reverse=True)[0], None

    return _scan_steps(segment, carry, 0, chunk.count, tape, reverse=True)[0]


def _pull_init(inner: Inner, x, params0, data, key, bar: InnerState):
    """The cotangent of `params0`: it is the first iterate, and some optimizers copy it into their state."""

    def start(params0):
        state = inner.init(params0, x, data, key)
        return InnerState(state.params, trees.split(state.opt).inexact, None)

    return jax.vjp(start, params0)[1](bar)[0]


def _plain_solve(inner: Inner, tau: int, memory: Memory, length: int, name: str) -> Solve:
    """The policies that leave the derivative to JAX: scans, with `jax.checkpoint` where something is recomputed."""
    start = inner.steps - tau
    checkpoint = lambda body: body if memory == "keep" else jax.checkpoint(body, prevent_cse=False)

    def train(x, params0, data, key):
        held = jax.tree.map(_constant, (x, params0, data)) if start else (x, params0, data)
        state = inner.init(held[1], held[0], held[2], key)
        state = (
            jax.tree.map(_constant, run_to(inner, state, held[0], held[2], key, 0, start)) if start else state
        )
        step = lambda state, step, _: (_advance(inner, state, x, data, key, step)[0], None)
        for chunk in _chunks(_Plan(inner, start, inner.steps, length, False)):
            inside = step if memory == "segments" else checkpoint(step)
            segment = lambda state, number, _, chunk=chunk, inside=inside: (
                _scan_steps(inside, state, chunk.first + number * chunk.length, chunk.length)[0],
                None,
            )
            outside = checkpoint(segment) if memory == "segments" else segment
            state = _scan_steps(outside, state, 0, chunk.count)[0]
        return state.params, lax.stop_gradient(state.aux)

    def run(x, params0, data, key, wants: Wants):
        halves = [trees.split(tree) for tree in (x, params0, data)]
        join = lambda inexact: [
            trees.join(part, half.rest) for part, half in zip(inexact, halves, strict=True)
        ]
        inexact = [half.inexact for half in halves]
        params, back, aux = jax.vjp(lambda parts: train(*join(parts), key), inexact, has_aux=True)  # pyright: ignore[reportCallIssue]
        return params, (back, aux)

    def pull(saved, x, params0, data, key, params_bar, wants: Wants, start=None):
        back, _ = saved
        ((x_bar, params0_bar, data_bar),) = back(params_bar)
        return Cotangents(x_bar, params0_bar, data_bar), None

    plain = lambda x, params0, data, key: train(x, params0, data, key)[0]
    return Solve(inner, name, run, pull, plain=plain)


def _constant(leaf):
    return lax.stop_gradient(leaf) if trees.is_inexact(leaf) else leaf
