"""Surrogates of attackers who know of APT: training beside helpful users, held constant or made anew during it.

Helpful users (`defenses.apt`) answer to the parameters, and through them to the attacker's rows. A renewal is a draw
and has no derivative, so every estimator holds them constant; what differs is whether they are those of one training of
the attacker's (held) or of the very training that is differentiated (made anew).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

import bilevel
from defenses import helpful
from defenses.apt import Defense, number_of
from defenses.influence import Point
from models.data import Interactions
from models.recommender import Recommender
from models.train import Start


def apt_surrogate(defended: Recommender | Defense, rows: Float[Array, "n I"] | None = None) -> Recommender:
    """What an attacker who knows of APT optimizes against: training beside helpful users, held or made anew.

    Args:
        defended: a recommender, beside `rows` that are held; or a `Defense` of `apt`: the helpful users are then
            renewed within the surrogate's training, as the defense does it, in answer to the attacker's rows.
        rows: the helpful users, such as `rows` of a defense's trace, in the unit of the data.

    Returns:
        A recommender that takes fake rows and is differentiated by every estimator; helpful users count as constants.

    Raises:
        ValueError: rows beside a defense, or none beside a recommender; when trained, one without a gradient-descent
            loop or with an auxiliary state of its own.

    **Differs from the paper:** not in it. A renewal knows the users with the shortest profiles, the levels of ratings
    and the risk of "paper" from the data without the attack. What is read after the training (`embed`, where it reads
    fake rows) are helpful users renewed once more. Where their number is a fraction, it is one of the known users, and
    of the defender, who cannot tell, one of all.

    >>> from defenses.apt import apt
    >>> from models.wrmf import wrmf
    >>> apt_surrogate(wrmf(), jnp.zeros((2, 5))).name
    'apt-wrmf'
    >>> apt_surrogate(apt(wrmf(), users=2, grid=None)).name
    'apt-wrmf'
    """
    if isinstance(defended, Defense):
        if rows is not None:
            raise ValueError("apt_surrogate: rows beside a defense, which makes its own; leave them out")
        return _renewing(defended)
    if rows is None:
        raise ValueError(
            "apt_surrogate: a recommender without rows; give the helpful users, or an apt(...) defense"
        )
    return _holding(
        defended, jnp.asarray(rows) / defended.config.get("highest", 1.0)
    )  # the unit of fake rows


def _holding(model: Recommender, rows: Array) -> Recommender:
    beside = lambda x, data: jnp.concatenate([x, rows.astype(x.dtype)])
    more = rows.shape[0]
    return dataclasses.replace(
        model,
        name=f"apt-{model.name}",
        config={**model.config, "helpers": more},
        init=lambda key, users, items, fakes: model.init(key, users, items, fakes + more),
        loss=lambda params, x, data, ctx: model.loss(params, beside(x, data), data, ctx),
        embed=lambda params, x, data: model.embed(params, beside(x, data), data),
        trainer=lambda users, items, fakes, events=0: bilevel.precompose(
            model.trainer(users, items, fakes + more, events), beside
        ),
    )


class _Known(NamedTuple):
    """What the model reads, and the data that helpful users are made from."""

    plain: Any
    train: Interactions


def _renewing(defense: Defense) -> Recommender:
    """The helpful users are the loop's auxiliary state, which every derivative holds constant."""
    model, helpers = defense.model, defense.helpers
    highest = model.config.get("highest", 1.0)
    beside = lambda x, rows: jnp.concatenate([x, rows.astype(x.dtype)])

    def made(inner: bilevel.Inner, params, x, data: _Known, key) -> Float[Array, "n I"]:
        params, x = lax.stop_gradient((params, x))
        number = number_of(helpers.users, data.train.users)
        level = None if helpers.grid is None else helpful.levels(data.train, helpers.grid[0])
        whole = beside(x, jnp.zeros((number, x.shape[1])))
        at = Point(Start(inner, params, whole, data.plain, key), params, whole, data.train)
        rows, _, _ = helpers.renewed(model, at, key, level, number)
        return lax.stop_gradient(rows / highest).astype(x.dtype)

    def prepare(train: Interactions) -> _Known:
        helpers.check(model, train)
        return _Known(model.prepare(train), train)

    def loss(params, x, data: _Known, ctx):
        return model.loss(params, beside(x, ctx.aux), data.plain, ctx)

    def trainer(users: int, items: int, fakes: int, events: int = 0) -> bilevel.Inner:
        number = number_of(helpers.users, users)
        inner = model.trainer(users, items, fakes + number, events)
        if inner.loss is None or inner.optimizer is None or inner.aux is not None:
            raise ValueError(
                f"apt_surrogate: {model.name} has no gradient-descent loop, or one with a state of its own"
            )
        if not inner.structure.gradient:  # AT, or AT within another defense
            raise ValueError(
                "apt_surrogate: AT within APT loses its adjoint; give adversarial(apt_surrogate(...))"
            )
        if helpers.pretrain * inner.steps_per_epoch >= inner.steps:
            raise ValueError(
                f"apt_surrogate: pretrain={helpers.pretrain} leaves no epoch; raise the model's epochs"
            )
        first, each = helpers.pretrain * inner.steps_per_epoch, helpers.every * inner.steps_per_epoch

        def renew(rows, params, x, data, ctx):
            due = (ctx.step >= first) & ((ctx.step - first) % each == 0)
            key = jax.random.fold_in(ctx.key, 2)  # a step draws from the first two that its key splits into
            return lax.cond(due, lambda: made(inner, params, x, data, key), lambda: rows)

        aux = bilevel.Aux(lambda params, x, data, key: jnp.zeros((number, items), x.dtype), renew)
        return bilevel.gradient_descent(
            loss, inner.optimizer, inner.steps, batches=inner.batches, aux=aux, epoch=inner.epoch
        )

    def embed(params, x, data: _Known):
        inner = model.trainer(
            data.train.users,
            data.train.items,
            x.shape[0] + number_of(helpers.users, data.train.users),
            data.train.capacity,
        )
        return model.embed(params, beside(x, made(inner, params, x, data, jax.random.key(0))), data.plain)

    return dataclasses.replace(
        model,
        name=f"{defense.name}-{model.name}",
        config={
            **model.config,
            **{f.name: repr(getattr(helpers, f.name)) for f in dataclasses.fields(helpers)},
        },
        prepare=prepare,
        init=lambda key, users, items, fakes: model.init(
            key, users, items, fakes + number_of(helpers.users, users)
        ),
        loss=loss,
        embed=embed,
        trainer=trainer,
    )
