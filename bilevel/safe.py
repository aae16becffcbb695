"""Optimizers whose update can be differentiated where a gradient entry is exactly zero.

Adam divides by `sqrt(v)`, and the derivative of a square root at 0 is infinite: one user without data (a
gradient row that is exactly 0) makes *every* entry of the hypergradient NaN. Raising `eps_root` cures the NaN
and bends the forward numbers. Instead the update's own jaxpr is read again with square roots (and powers, and
products) whose derivative is 0 where the true one is infinite. Forward values stay the same to the bit, and
no list of optimizers has to be kept: any optax transformation is made safe as the user passes it.

The derivative 0 is the right one-sided choice: at `v = 0` the update is `0 / eps`, and along any direction in
which the gradient entry stays 0 it stays 0.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from bilevel.trees import is_inexact


@jax.custom_jvp
def safe_sqrt(v: jax.Array) -> jax.Array:
    """`sqrt(v)` with derivative 0 at `v = 0` (and wherever the true one is infinite).

    >>> float(jax.grad(safe_sqrt)(0.0)), float(jax.grad(safe_sqrt)(4.0))
    (0.0, 0.25)
    """
    return lax.sqrt(v)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    root = safe_sqrt(v)
    positive = v > 0
    return root, jnp.where(positive, 0.5 / jnp.where(positive, root, 1.0), 0.0) * dv


@jax.custom_jvp
def safe_rsqrt(v: jax.Array) -> jax.Array:
    """`1 / sqrt(v)` with derivative 0 at `v = 0` (its value there stays `inf`).

    >>> float(jax.grad(safe_rsqrt)(0.0)), float(jax.grad(safe_rsqrt)(4.0))
    (0.0, -0.0625)
    """
    return lax.rsqrt(v)


@safe_rsqrt.defjvp
def _safe_rsqrt_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    inverse = safe_rsqrt(v)
    positive = v > 0
    return inverse, _finite(-0.5 * jnp.where(positive, inverse, 0.0) ** 3) * dv


@jax.custom_jvp
def safe_pow(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """`base ** exponent` whose derivative in `base` is 0 where the true one is infinite (`base = 0`,
    `exponent < 1`).

    >>> float(jax.grad(safe_pow)(0.0, 0.5)), float(jax.grad(safe_pow)(4.0, 0.5))
    (0.0, 0.25)
    """
    return lax.pow(base, exponent)


@safe_pow.defjvp
def _safe_pow_jvp(primals, tangents):
    (base, exponent), (d_base, d_exponent) = primals, tangents
    out = safe_pow(base, exponent)
    real = jnp.asarray(exponent, jnp.result_type(base))
    singular = (base == 0) & (real < 1)
    slope = _finite(jnp.where(singular, 0.0, real * safe_pow(jnp.where(singular, 1.0, base), real - 1)))
    if not jnp.issubdtype(jnp.result_type(exponent), jnp.inexact):
        return out, slope * d_base
    log_base = jnp.log(jnp.where(base > 0, base, 1.0))
    return out, slope * d_base + out * log_base * d_exponent


@jax.custom_jvp
def safe_cbrt(v: jax.Array) -> jax.Array:
    """Cube root with derivative 0 at 0."""
    return lax.cbrt(v)


@safe_cbrt.defjvp
def _safe_cbrt_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    root = safe_cbrt(v)
    nonzero = v != 0
    return root, jnp.where(nonzero, 1.0 / (3.0 * jnp.where(nonzero, root, 1.0) ** 2), 0.0) * dv


@jax.custom_jvp
def safe_mul(left: jax.Array, right: jax.Array) -> jax.Array:
    """`left * right`; a factor that is not finite counts as 0 in the derivative (RAdam multiplies by
    `sqrt(-1)` and then discards it).

    >>> float(jax.grad(lambda x: jnp.where(True, x, safe_mul(jnp.nan, x)))(1.0))
    1.0
    """
    return lax.mul(left, right)


@safe_mul.defjvp
def _safe_mul_jvp(primals, tangents):
    (left, right), (d_left, d_right) = primals, tangents
    return safe_mul(left, right), d_left * _finite(right) + _finite(left) * d_right


@jax.custom_jvp
def safe_div(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`; a coefficient that is not finite counts as 0 in the derivative.

    >>> float(jax.grad(safe_div, argnums=1)(jnp.nan, 2.0))
    0.0
    """
    return lax.div(numerator, denominator)


@safe_div.defjvp
def _safe_div_jvp(primals, tangents):
    (numerator, denominator), (d_numerator, d_denominator) = primals, tangents
    out = safe_div(numerator, denominator)
    inverse = 1.0 / denominator
    return out, d_numerator * _finite(inverse) - _finite(out * inverse) * d_denominator


_SAFE = {
    "sqrt": safe_sqrt,
    "rsqrt": safe_rsqrt,
    "pow": safe_pow,
    "cbrt": safe_cbrt,
    "mul": safe_mul,
    "div": safe_div,
}


def _finite(coefficient: jax.Array) -> jax.Array:
    """A derivative's coefficient, 0 where it overflowed."""
    return jnp.where(jnp.isfinite(coefficient), coefficient, 0.0)


def differentiable(update: Callable[..., Any]) -> Callable[..., Any]:
    """Re-read `update` with square roots that are safe to differentiate at 0: same values, no NaN in its
    derivatives.

    `update` is any function of pytrees of arrays, usually `optimizer.update`. Control flow inside it (`cond`,
    `scan`, nested `jit`) is followed; a `while_loop` is left as it is, since reverse mode does not pass through it
    anyway, and so is a function that brings a derivative rule of its own.

    >>> import optax
    >>> adam = optax.adam(0.1)
    >>> state = adam.init(jnp.zeros(1))
    >>> naive = jax.jacrev(lambda g: adam.update(g, state)[0])(jnp.zeros(1))
    >>> safe = jax.jacrev(lambda g: differentiable(adam.update)(g, state)[0])(jnp.zeros(1))
    >>> bool(jnp.isnan(naive).all()), bool(jnp.isfinite(safe).all())
    (True, True)

    **Differs from the paper:** not in any of the five papers; the usual advice (`eps_root`) changes the
    forward numbers.
    """

    @wraps(update)
    def safe(*args):
        flat, tree = jax.tree.flatten(args)
        closed, shapes = jax.make_jaxpr(
            lambda *leaves: update(*jax.tree.unflatten(tree, leaves)), return_shape=True
        )(*flat)
        out = _evaluate(closed.jaxpr, closed.consts, flat)
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return safe


def _evaluate(jaxpr: jex.Jaxpr, consts, args):
    """Run a jaxpr, one equation after the other, with the safe rules."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom):
        if isinstance(atom, jex.Literal):  # a bare number would promote bfloat16
            return jnp.asarray(atom.val, getattr(atom.aval, "dtype", None))
        return values[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _closed(params: dict[str, Any]) -> jex.ClosedJaxpr | None:
    """The jaxpr a call-like equation wraps, if it is one."""
    for name in ("jaxpr", "call_jaxpr"):
        if isinstance(params.get(name), jex.ClosedJaxpr):
            return params[name]
    return None


def _apply(equation, args):
    """One equation: a safe rule, a call that is followed inside, or the primitive as it is."""
    name, params = equation.primitive.name, equation.params
    if name in _SAFE and is_inexact(args[0]):
        return [_SAFE[name](*args)]
    if name == "cond":
        branches = [_branch(closed) for closed in params["branches"]]
        return lax.switch(args[0], branches, *args[1:])
    if name == "scan":
        return _scan(params, args)
    closed = _closed(params)
    if closed is not None and name in ("jit", "pjit", "closed_call"):
        return _evaluate(closed.jaxpr, closed.consts, args)
    bound = equation.primitive.get_bind_params(
        params
    )  # functions the primitive takes, such as a custom derivative rule
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before jax 0.10
    out = equation.primitive.bind(*subfuns, *args, **params)
    return out if equation.primitive.multiple_results else [out]


def _branch(closed: jex.ClosedJaxpr):
    return lambda *args: _evaluate(closed.jaxpr, closed.consts, args)


def _scan(params: dict[str, Any], args):
    """A `lax.scan` with a safe body."""
    closed, consts_n, carry_n = params["jaxpr"], params["num_consts"], params["num_carry"]
    consts, init, xs = args[:consts_n], args[consts_n : consts_n + carry_n], args[consts_n + carry_n :]
    body = partial(_scan_body, closed, consts, carry_n)
    carry, ys = lax.scan(
        body, init, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *ys]


def _scan_body(closed, consts, carry_n, carry, x):
    out = _evaluate(closed.jaxpr, closed.consts, [*consts, *carry, *x])
    return out[:carry_n], out[carry_n:]
