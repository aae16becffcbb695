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

    For what stands between an attacker's rows and the training: a filter, a weighting, a change of variables. It is
    applied, and pulled back through, at every step: where it is costly, give an estimator of the plain loop
    `transform(x, data)` for `x`.

    Args:
      inner: any loop.
      transform: `(x, data) -> x'`, of a structure the loop accepts; differentiable in `x`, and in `data` where somebody
        differentiates in it.

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
        bar, moved_bar, data_bar = inner.pull(state, saved, transform(x, data), data, ctx, bar, wants)
        if not wants.data:
            return bar, _back(lambda x: transform(x, data), x, moved_bar), None
        x_bar, more = _back(lambda pair: transform(*pair), (x, data), moved_bar)
        return bar, x_bar, trees.add(data_bar, more)

    def product(params, x, data, ctx, v):
        through, x_bar = structure.product(params, transform(x, data), data, ctx, v)  # pyright: ignore[reportOptionalCall]
        return through, _back(lambda x: transform(x, data), x, trees.split(x_bar).inexact)

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


def _back(function, argument, bar):
    """The cotangent of `argument` from that of `function(argument)`, inexact leaves only."""
    halves = trees.split(argument)
    through = lambda inexact: trees.split(function(trees.join(inexact, halves.rest))).inexact
    return jax.vjp(through, halves.inexact)[1](bar)[0]
