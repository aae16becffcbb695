"""How an inner loop is differentiated, as a value: the one wrapper all estimators share.

An estimator gives two functions: `run`, the forward pass that also returns what it wants to keep, and `pull`,
which takes the cotangent of the returned parameters back to `x`, `params0` and `data`. `Solve` makes an
ordinary JAX function of the pair, with a custom derivative, and checks on the host what a custom derivative
cannot see.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from bilevel import trees
from bilevel.inner import Inner


class Cotangents(NamedTuple):
    """Cotangents of the three differentiable arguments; None where nothing flows or nothing was asked for."""

    x: Any
    params0: Any = None
    data: Any = None


@jax.tree_util.register_static
class Wants(NamedTuple):
    """Which arguments are differentiated: known when tracing, so nothing is computed that nobody asked for."""

    x: bool = True
    params0: bool = False
    data: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Solve:
    """An estimator over an inner loop: call it as `solve(x, params0, data, key) -> params`.

    The forward numbers are those of the inner loop, whatever the estimator; only the derivative differs.

    Attributes:
      inner: the loop.
      name: which estimator, with its settings.
      run: `(x, params0, data, key, wants) -> (params, saved)`; the last entry of `saved` is the final auxiliary state.
      pull: `(saved, x, params0, data, key, params_bar, wants, start) -> (Cotangents, LinearResult | None)`;
        `start` warm-starts a linear solve, and is ignored by estimators that have none.
      plain: the same map as ordinary JAX code, for the estimators that are (those also work in forward mode);
        else None.
      reads: functions `(x, params0, data, key)` its derivative reads besides the loop, for `check_closure`.
    """

    inner: Inner
    name: str
    run: Callable[..., tuple[Any, Any]]
    pull: Callable[..., tuple[Cotangents, Any]]
    plain: Callable[..., Any] | None = None
    reads: tuple[Callable[..., Any], ...] = ()

    def __repr__(self) -> str:
        return self.name

    def __call__(self, x: Any, params0: Any, data: Any, key: Array) -> Any:
        """Parameters after the loop; differentiable in `x`, and in `params0` and `data` where the estimator is."""
        check_closure(self.inner, x, params0, data, key, self.reads)
        if self.plain is not None:
            return self.plain(x, params0, data, key)
        try:
            return self._custom(x, params0, data, key)
        except TypeError as problem:
            if "forward-mode" not in str(problem):
                raise
            raise TypeError(
                f"{self.name} is differentiated in reverse mode only (jax.grad, jax.vjp). Forward mode (jax.jvp, "
                "jax.jacfwd) has bilevel.implicit, and bilevel.unrolled with memory='keep', 'recompute' or 'segments', "
                "which is the exact derivative"
            ) from problem

    @cached_property
    def _custom(self):
        def primal(x, params0, data, key):
            return self.run(x, params0, data, key, Wants(False, False, False))[0]

        solve = jax.custom_vjp(primal)
        solve.defvjp(self._forward, self._backward, symbolic_zeros=True)
        return solve

    def _forward(self, x, params0, data, key):
        values = [
            jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_primal)
            for tree in (x, params0, data, key)
        ]
        wants = Wants(*(_perturbed(tree) for tree in (x, params0, data)))
        params, saved = self.run(*values, wants)
        return params, (saved, values, wants)

    def _backward(self, residual, params_bar):
        saved, (x, params0, data, key), wants = residual
        params_bar = jax.tree.map(_instantiate, params_bar, is_leaf=is_zero)
        bars, _ = self.pull(saved, x, params0, data, key, params_bar, wants, None)
        return bars.x, bars.params0, bars.data, None


def check_closure(
    inner: Inner, x: Any, params0: Any, data: Any, key: Array, also: tuple[Callable[..., Any], ...] = ()
) -> None:
    """Refuse a loss, an update or an optimizer that closes over a traced value: its derivative would silently
    be lost.

    Args:
      inner, x, params0, data, key: the loop and what it is called with.
      also: further functions `(x, params0, data, key)` that the derivative reads.

    Raises:
      TypeError: naming the shapes of the traced values found, and what to do.
    """

    def everything_read(x, params0, data, key):
        state = inner.init(params0, x, data, key)
        ctx = inner.context(key, 0, state.aux)
        if inner.aux is not None:
            ctx = ctx._replace(aux=inner.aux.update(state.aux, params0, x, data, ctx))
        read = [inner.step(state, x, data, ctx)]
        product, blocks, inverse, _ = inner.structure
        read += [product(params0, x, data, ctx, params0)] if product else []
        read += [blocks(params0, x, data, inner.final_context(key, ctx.aux))] if blocks else []
        read += [inverse(params0, x, data, inner.final_context(key, ctx.aux), params0)] if inverse else []
        return read, [function(x, params0, data, key) for function in also]

    closed = jax.make_jaxpr(everything_read)(x, params0, data, key)
    traced = [const for const in closed.consts if isinstance(const, Tracer)]
    if traced:
        found = ", ".join(f"{t.dtype}{list(t.shape)}" for t in traced)
        raise TypeError(
            f"{inner!r}: its loss, update or optimizer closes over traced values ({found}). A derivative through the "
            "inner loop cannot see them. Pass what is differentiated in `x` and everything else in `data`; make "
            "constants with NumPy inside jit. A traced learning rate has to scale the loss (SGD) or the update "
            "of a fixed_point."
        )


def _is_primal(leaf) -> bool:
    return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _perturbed(tree) -> bool:
    leaves = jax.tree.leaves(tree, is_leaf=_is_primal)
    return any(leaf.perturbed and trees.is_inexact(leaf.value) for leaf in leaves)


def is_zero(leaf: Any) -> bool:
    """Whether a tangent or a cotangent is one of JAX's symbolic zeros: nothing moves there."""
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _instantiate(leaf):
    return jnp.zeros(leaf.shape, leaf.dtype) if is_zero(leaf) else leaf
