"""A surrogate that trains on the data it believes: squared loss weighted by RAPU's responsibilities, renewed by EM.

Zhang et al., "Data Poisoning Attack against Recommender System Using Incomplete and Perturbed Data", KDD 2021 (RAPU),
eq. 2 and Alg. 2, lines 2-7. In the last epochs of the surrogate's training

    L = sum over real u, i of E_ui w_ui (r_ui - s_ui)^2 + L_train(fake rows) + penalty,    E_ui = E[delta_1 delta_2]

with E constant in the parameters and in the fake rows. What is carried from step to step are EM's ratios, U + I numbers
of each kind; the responsibilities are made of them, block by block, where they are read.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

import bilevel
from attacks.objective import CELLS, over_blocks
from attacks.pgm import Matrix, Pgm, Ratios, em, responsibilities
from models.data import Interactions, sample
from models.data.sample import Lists
from models.recommender import Recommender

BATCHES = {"wrmf": "users", "itemae": "items"}
"""Surrogates with a squared loss over all cells, trained by Adam, and what their batches are made of."""


class Data(NamedTuple):
    """What the denoised surrogate reads.

    Attributes:
        plain: what the surrogate itself reads.
        clicked: the clicks as a matrix where that is small, else None.
        lists: each user's items.
        r_bar: mean of a perturbed cell.
    """

    plain: Any
    clicked: Bool[Array, "U I"] | None
    lists: Lists
    r_bar: Float[Array, ""]


def denoised(
    model: Recommender, pgm: Pgm, *, last: int = 20, every: int = 1, renormalize: bool = False
) -> Recommender:
    """The surrogate with responsibilities in the last epochs of its training.

    Args:
        model: `wrmf` or `itemae`: a squared loss over all cells.
        pgm: the generative model and its EM.
        last: epochs trained with responsibilities, in `[0, epochs]`; those before are the surrogate's own.
        every: epochs from one EM to the next, >= 1; between them the ratios stay, the E-step is renewed.
        renormalize: divide the weighted loss by the mean responsibility, as the code does.

    Returns:
        A recommender of the same parameters and scores.

    Raises:
        ValueError: another surrogate, or a number out of its range; `last` beyond the surrogate's epochs when it is
            trained.

    Reference: Zhang et al. (RAPU), KDD 2021, eq. 2, Alg. 2.

    **Differs from the paper:** the constant `1 / (2 sigma^2)` is dropped and the weights of clicks kept, as in the
    code. The paper has EM in every inner step, the code in the last 3 epochs, from the start each time and on a batch
    of users; here it goes on from where the last one ended, and reads all users.

    >>> from models.wrmf import wrmf
    >>> denoised(wrmf(factors=2, epochs=4), Pgm(), last=2).trainer(5, 6, 1)
    gradient_descent(steps=4)
    """
    if model.name not in BATCHES:
        raise ValueError(
            f"surrogate is {model.name}, whose loss is not a squared error over all cells, so it cannot carry "
            f"responsibilities; expected {' or '.join(BATCHES)}, or pgm=False"
        )
    for name, value, least in (("last", last, 0), ("every", every, 1)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(f"em_{name} is {value!r}; expected an integer >= {least}")
    plan = _Plan(model, pgm, renormalize)

    def trainer(users: int, items: int, fakes: int, events: int = 0) -> bilevel.Inner:
        plain = model.trainer(users, items, fakes, events)
        first = plain.steps - last * plain.steps_per_epoch
        if first < 0:
            raise ValueError(
                f"em_last is {last} epochs, but the surrogate trains for {plain.steps // plain.steps_per_epoch} only; "
                "lower it"
            )

        def renew(ratios: Ratios, params, x, data: Data, ctx) -> Ratios:
            due = (ctx.step >= first) & ((ctx.step - first) % (every * plain.steps_per_epoch) == 0)
            # Constant from here on: a reverse pass cannot go through EM's loop of unknown length.
            held = lax.stop_gradient((params, x, data))
            return lax.cond(due, lambda: em(pgm, plan.matrix(*held), ratios).ratios, lambda: ratios)

        return bilevel.gradient_descent(
            lambda params, x, data, ctx: plan.loss(params, x, data, ctx, first),
            optax.adam(model.config["learning_rate"]),
            plain.steps,
            batches=plain.batches,
            aux=bilevel.Aux(lambda params, x, data, key: pgm.begin(users, items), renew),
        )

    return dataclasses.replace(
        model,
        prepare=plan.prepare,
        loss=lambda params, x, data, ctx: plan.loss(params, x, data, ctx, 0),
        embed=lambda params, x, data: model.embed(params, x, data.plain),
        trainer=trainer,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """The surrogate, the generative model, and the loss they have together."""

    model: Recommender
    pgm: Pgm
    renormalize: bool

    def prepare(self, train: Interactions) -> Data:
        plain, lists = self.model.prepare(train), sample.lists(train)
        cells = train.users * train.items
        clicked = None
        if cells <= CELLS:
            clicked = sample.marked(lists, jnp.arange(train.users, dtype=jnp.int32), train.items)
        r_bar = train.count / cells if self.pgm.r_bar == "mean" else self.pgm.r_bar
        return Data(plain, clicked, lists, jnp.asarray(r_bar, float))

    def clicked(self, data: Data, users: Int[Array, " B"], items: int) -> Bool[Array, "B I"]:
        """What a block of users clicked."""
        return sample.marked(data.lists, users, items) if data.clicked is None else data.clicked[users]

    def matrix(self, params: Any, x: Float[Array, "F I"], data: Data) -> Matrix:
        """The real users' cells for EM; nothing in it is differentiated."""
        embedding = lax.stop_gradient(self.model.embed(params, x, data.plain))
        return Matrix(
            lambda users: self.clicked(data, users, x.shape[1]),
            lambda users: self.model.score(embedding, users),
            data.r_bar,
        )

    def loss(self, params: Any, x: Float[Array, "F I"], data: Data, ctx: Any, first: int) -> Float[Array, ""]:
        """The surrogate's own loss, and from step `first` on `sum (E - 1) w (r - s)^2` over the real cells."""
        plain = self.model.loss(params, x, data.plain, ctx)
        added = lambda: self._added(params, x, data, ctx).astype(plain.dtype)
        return plain + lax.cond(ctx.step >= first, added, lambda: jnp.zeros_like(plain))

    def _added(self, params, x, data: Data, ctx: Any) -> Float[Array, ""]:
        embedding, matrix = self.model.embed(params, x, data.plain), self.matrix(params, x, data)
        users, counts, columns = self._rows(data, ctx.batch, x.shape[1])
        believed = lambda at: (
            responsibilities(self.pgm, matrix, ctx.aux, users[at]) * counts[at][:, None] * columns
        )
        scores = lambda at: self.model.score(embedding, users[at])
        count, block, mean = users.shape[0], self.pgm.block, 1.0
        if self.renormalize:
            kept = over_blocks(lambda at: jnp.sum(believed(at), 1), scores, count, block)
            mean = kept / (jnp.sum(counts) * jnp.sum(jnp.broadcast_to(columns, x.shape[1:])))
            mean = jnp.where(mean > 0, mean, 1)  # nothing is believed: the weighted loss is 0 anyway

        def per_user(at: Int[Array, " B"]) -> Float[Array, " B"]:
            predicted = scores(at)
            r = matrix.clicked(users[at]).astype(predicted.dtype)
            lost = (1 + (self.model.config["weight"] - 1) * r) * (r - predicted) ** 2
            return jnp.sum((believed(at) / mean - counts[at][:, None] * columns) * lost, 1)

        return over_blocks(per_user, scores, count, block)

    def _rows(self, data: Data, batch: Any, items: int):
        """The users the loss reads, how each counts, and how each item counts."""
        everyone = jnp.arange(data.lists.start.shape[0] - 1, dtype=jnp.int32)
        if batch is None:
            return everyone, jnp.ones(everyone.shape), jnp.ones(items)
        if BATCHES[self.model.name] == "items":
            columns = jnp.zeros(items).at[batch.index].add(batch.mask, mode="drop")
            return everyone, jnp.ones(everyone.shape), columns
        real = batch.mask & (batch.index < everyone.shape[0])  # rows past the last are fake users
        return jnp.where(real, batch.index, 0), real.astype(float), jnp.ones(items)
