"""The same inner loop with something exchanged: another loss, or a function of `x` in the place of `x`.

A defense hardens a loss; a filter stands between an attacker's rows and the training. Both leave optimizer, steps and
batches alone, and both stay differentiable by every estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jaxtyping import Array

from bilevel import trees
from bilevel.inner import Aux, Inner, Structure, gradient_descent


def with_loss(inner: Inner, loss: Callable[..., Array], structure: Structure | None = None) -> Inner:
    """The same loop (optimizer, steps, batches, auxiliary state) on another loss, such as one with a penalty added.

    Args:
      inner: made by `gradient_descent`.
      loss: `(params, x, data, ctx) -> scalar`.
      structure: what the new loss has; that of the old one is dropped. Where the loss holds a part of itself constant,
        a step follows a field that is no gradient: give `gradient=False`, and its adjoint as `product` where that is
        cheaper than the `vjp` of the field.

    Raises:
      TypeError: a fixed-point loop, which has no loss.

    **Differs from the paper:** not an algorithm of a paper.

    >>> import jax.numpy as jnp, optax
    >>> inner = gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.1), steps=5)
    >>> with_loss(inner, lambda *at: inner.loss(*at) + jnp.sum(at[0] ** 2))
    gradient_descent(steps=5)
    """
    if inner.optimizer is None:
        raise TypeError(
            f"with_loss: {inner!r} follows no gradient of a loss; expected a gradient_descent loop"
        )
    return gradient_descent(
        loss,
        inner.optimizer,
        inner.steps,
        batches=inner.batches,
        aux=inner.aux,
        structure=structure,
        epoch=inner.epoch,
    )


def precompose(inner: Inner, transform: Callable[[Any, Any], Any]) -> Inner:
    """The same loop reading `transform(x, data)` wherever it reads `x`, and differentiated through it.

    For what stands between an attacker's rows and the training: a filter, a weighting, a change of variables.

    Args:
      inner: any loop.
      transform: `(x, data) -> x'`, of a structure the loop accepts; differentiable in `x`.

    Raises:
      TypeError: when differentiated with respect to `data`, of which `transform` is taken to be a constant.

    **Differs from the paper:** not an algorithm of a paper.

    >>> import jax.numpy as jnp, optax
    >>> inner = gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.5), steps=1)
    >>> from bilevel.unroll import unrolled
    >>> solve = unrolled(precompose(inner, lambda x, data: 3 * x))
    >>> float(jax.grad(lambda x: solve(x, jnp.zeros(()), None, jax.random.key(0)))(2.0))
    3.0
    """
    structure, aux = inner.structure, inner.aux

    def pull(state, saved, x, data, ctx, bar, wants):
        if wants.data:
            raise TypeError(
                "precompose: no derivative with respect to data; pass what is differentiated as x"
            )
        bar, x_bar, _ = inner.pull(state, saved, transform(x, data), data, ctx, bar, wants)
        return bar, _back(transform, x, data, x_bar), None

    def product(params, x, data, ctx, v):
        through, x_bar = structure.product(params, transform(x, data), data, ctx, v)  # pyright: ignore[reportOptionalCall]
        return through, _back(transform, x, data, trees.split(x_bar).inexact)

    def reads(function):
        """A function `(params or state, x, data, ...)` with the transform between."""
        return function and (lambda first, x, data, *rest: function(first, transform(x, data), data, *rest))

    return replace(
        inner,
        init=reads(inner.init),
        step=reads(inner.step),
        replay=lambda state, saved, x, data, ctx: inner.replay(state, saved, transform(x, data), data, ctx),
        pull=pull,
        stationarity=reads(inner.stationarity),
        loss=reads(inner.loss),
        update=reads(inner.update),
        structure=structure._replace(
            product=product if structure.product is not None else None,
            blocks=reads(structure.blocks),
            solve=reads(structure.solve),
        ),
        aux=aux
        and Aux(
            reads(aux.init),
            lambda old, params, x, data, ctx: aux.update(old, params, transform(x, data), data, ctx),
        ),
    )


def _back(transform, x, data, x_bar):
    """The cotangent of `x` from that of `transform(x, data)`, inexact leaves only."""
    halves = trees.split(x)
    through = lambda inexact: trees.split(transform(trees.join(inexact, halves.rest), data)).inexact
    return jax.vjp(through, halves.inexact)[1](x_bar)[0]
