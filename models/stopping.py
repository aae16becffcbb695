"""Train until the validation metric stops improving, and keep the parameters that had the best.

    every `every` epochs: judge the lists of the real users on the validation events;
    after `patience` checks without a new best: stop

The steps are those of `models.train.fit` with the same key, so without an early end the parameters are too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from bilevel import loop
from bilevel.progress import Tell
from bilevel.store import Store
from bilevel.unroll import run_some
from models.data.interactions import Interactions
from models.evaluation import evaluate
from models.recommender import Params, Recommender, counts
from models.train import Fitted, begin

Metric = Literal["ndcg", "recall", "hr_test", "precision"]


class Early(NamedTuple):
    """The end of a training with validation.

    Attributes:
        fitted: with the parameters of the best score.
        history: one score a check, `(checks,)`.
        best_epoch: epochs behind the best score.
        epochs: epochs trained.
        seconds: of training and checks.
    """

    fitted: Fitted
    history: Float[np.ndarray, " C"]
    best_epoch: int
    epochs: int
    seconds: float


class _State(NamedTuple):
    inner: Any
    best: Params
    score: Float[Array, ""]
    at: Array
    done: Array


def fit_early(
    model: Recommender,
    train: Interactions,
    key: Key[Array, ""],
    validation: Interactions,
    *,
    metric: Metric = "ndcg",
    k: int = 20,
    every: int = 5,
    patience: int = 5,
    fakes_rows: Float[Array, "F I"] | None = None,
    params0: Params | None = None,
    progress: bool | Tell = False,
    store: Store | str | os.PathLike[str] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Early:
    """Train with early stopping on validation events.

    Args:
        model, train, key, fakes_rows, params0: as in `models.train.fit`.
        validation: held-out events of the same users and items.
        metric: of the lists of length `k` without the training items: "ndcg", "recall", "hr_test" or "precision".
        k: list length, >= 1.
        every: epochs between two checks, >= 1. A last, shorter piece of the model's epochs is not trained.
        patience: checks without a new best before it stops, >= 1.
        progress, store, spec: as in `bilevel.loop.run`: a bar, and snapshots to resume from after a kill.

    Returns:
        `Early`. A score that is not finite is never the best; the first check always counts.

    Raises:
        ValueError: a number outside its range, more epochs between checks than the model trains, unknown metric, or as
            `models.train.fit`.

    **Differs from the paper:** not an algorithm of a paper.

    >>> from models.data import random_events
    >>> from models.wrmf import wrmf
    >>> parts = random_events(Interactions.from_dense(np.indices((8, 9)).sum(0) % 3 == 0), 0)
    >>> assert parts.validation is not None
    >>> done = fit_early(wrmf(factors=2, epochs=20), parts.train, jax.random.key(0), parts.validation, k=2)
    >>> len(done.history), done.best_epoch <= done.epochs <= 20
    (4, True)
    """
    counts("fit_early", k=k, every=every, patience=patience)
    if metric not in get_args(Metric):
        raise ValueError(f"fit_early: metric={metric!r}; expected one of {', '.join(get_args(Metric))}")
    start = begin(model, train, key, fakes_rows, params0)
    steps = start.inner.steps_per_epoch * every
    checks = start.inner.steps // steps
    if checks < 1:
        epochs = start.inner.steps // start.inner.steps_per_epoch
        raise ValueError(f"fit_early: every={every}, but the model trains for {epochs} epochs only")

    def step(state: _State, x, data, key, train, validation):
        first = state.done * steps
        inner = run_some(start.inner, state.inner, x, data, key, first, steps)
        scores = Partial(model.score, model.embed(inner.params, x, data))
        found = evaluate(scores, train, test=validation, k=k)
        score = jnp.asarray(getattr(found, metric))
        better = (score > state.score) | ((state.done == 0) & ~jnp.isfinite(state.score))
        keep = lambda new, old: jnp.where(better, new, old)
        best = jax.tree.map(keep, inner.params, state.best)
        moved = _State(inner, best, keep(score, state.score), keep(state.done + 1, state.at), state.done + 1)
        return moved, {metric: score, "best": moved.score}

    def ends(block) -> bool:
        return int(block.state.done) - int(block.state.at) >= patience

    inner = start.inner.init(start.params, start.x, start.data, start.key)
    zero = jnp.zeros((), jnp.int32)
    result = loop.run(
        step,
        _State(inner, start.params, jnp.asarray(-jnp.inf), zero, zero),
        checks,
        args=(start.x, start.data, start.key, train, validation),
        block=1,
        progress=progress,
        label=model.name,
        show=(metric, "best"),
        on_block=ends,
        store=store,
        spec=None if store is None else dict(spec or {}),
    )
    best = result.state.best
    fitted = Fitted(model, best, start.data, start.x, _embed(model, best, start.x, start.data))
    at = int(result.state.at) * every
    return Early(fitted, result.history[metric], at, result.done * every, result.seconds)


@partial(jax.jit, static_argnums=0)
def _embed(model: Recommender, params: Params, x: Array, data: Any) -> Any:
    return model.embed(params, x, data)
