"""From fake rows to what the attacker sees in a model of its own: loss, hypergradient and exposure.

The attacker trains a surrogate on the real interactions and the fake rows, asks how much the real users are now shown
the targets, and wants the derivative of that *through* the training: Tang, Wen, Wang, "Revisiting Adversarially
Learned Injection Attacks Against Recommender Systems", RecSys 2020, eqs 1-2 and 4. How the training is differentiated
is a value, made by `make_estimator`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

import bilevel
from attacks.objective import Objective
from bilevel.unroll import Memory
from models.data import Interactions
from models.evaluation import evaluate
from models.recommender import Recommender

Estimator = Literal["exact", "truncated", "partial", "implicit", "one_step"]
Differentiate = Callable[[bilevel.Inner], bilevel.Solve]


class Response(NamedTuple):
    """What the surrogates say about fake rows.

    Attributes:
        loss: the attacker's loss after training, weighted over the surrogates.
        gradient: its estimated derivative in the rows, `(F, I)`.
        target_hr: share of real users with a target in their list, mean over the surrogates; NaN without targets.
        test_hr: share of users with a held-out item in their list, mean over the surrogates; NaN without a test set.
        code: the worst `bilevel.Code` of the estimates, 0 if all are fine.
    """

    loss: Float[Array, ""]
    gradient: Float[Array, "F I"]
    target_hr: Float[Array, ""]
    test_hr: Float[Array, ""]
    code: Int[Array, ""]


def make_estimator(
    name: Estimator | Differentiate,
    *,
    tau: int | None = None,
    memory: Memory | None = None,
    linear: bilevel.LinearSolver | None = None,
) -> Differentiate:
    """How the surrogate's training is differentiated, by name.

    Args:
        name: `"exact"` all steps (eqs 4, 6-8), `"truncated"` the last `tau` epochs (eq. 9), `"partial"` only what the
            scores read of the rows directly (eq. 10), `"implicit"` the implicit function theorem at the last iterate,
            `"one_step"` one last step; or a function from `bilevel.Inner` to `bilevel.Solve`.
        tau: epochs (steps where training is full-batch, sweeps for ALS), >= 0; for `"truncated"` only.
        memory: what the backward pass keeps, see `bilevel.unrolled`; for `"exact"` and `"truncated"` only.
        linear: linear solver, see `bilevel.cg`; for `"implicit"` only.

    Returns:
        A function from the surrogate's training loop to an estimator over it.

    Raises:
        ValueError: unknown name, or an argument the estimator has no use for.

    Reference: Tang, Wen, Wang, RecSys 2020, sections 3.1-3.3.

    **Differs from the paper:** implicit and one-step estimates are not in it; `tau` counts epochs, as in its code.

    >>> import optax
    >>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.1), steps=8)
    >>> make_estimator("truncated", tau=2)(inner)
    truncated(tau=2)(gradient_descent(steps=8))
    """
    if callable(name):
        _refuse("a function", tau=tau, memory=memory, linear=linear)
        return name
    if name not in get_args(Estimator):
        raise ValueError(
            f"estimator is {name!r}; expected one of {', '.join(map(repr, get_args(Estimator)))}, "
            "or a function from bilevel.Inner to bilevel.Solve"
        )
    kept: dict[str, Any] = {} if memory is None else {"memory": memory}
    if name == "exact":
        _refuse(name, tau=tau, linear=linear)
        return Named(name, kept, lambda inner: bilevel.unrolled(inner, **kept))
    if name == "truncated":
        _refuse(name, linear=linear)
        if isinstance(tau, bool) or not isinstance(tau, int) or tau < 0:
            raise ValueError(f"tau is {tau!r}; the truncated estimator expects a number of epochs >= 0")
        make = lambda inner: bilevel.truncated(inner, _steps(inner, tau), **kept)
        return Named(name, {"tau": tau, **kept}, make)
    if name == "implicit":
        _refuse(name, tau=tau, memory=memory)
        return Named(name, {"linear": linear}, lambda inner: bilevel.implicit(inner, linear))
    _refuse(name, tau=tau, memory=memory, linear=linear)
    return Named(name, {}, bilevel.detached if name == "partial" else bilevel.one_step)


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """An estimator with the name and the settings it was made from, so that records can tell two of them apart."""

    name: str
    config: Mapping[str, Any]
    make: Differentiate

    def __call__(self, inner: bilevel.Inner) -> bilevel.Solve:
        """The estimator over a training loop."""
        return self.make(inner)


def hypergradient(
    model: Recommender,
    differentiate: Differentiate,
    objective: Objective,
    rows: Float[Array, "F I"],
    train: Interactions,
    targets: Int[Array, " T"],
    key: Key[Array, ""],
    *,
    data=None,
) -> bilevel.Hypergrad:
    """Train a surrogate on `train` and `rows`, and differentiate the attacker's loss in the rows.

    `dL/drows = dL_adv/drows + dL_adv/dtheta . dtheta/drows` (eq. 4), the second term as `differentiate` estimates it.

    Args:
        model: the surrogate.
        differentiate: from `make_estimator`.
        objective: `(scores, train, targets) -> loss`, from `attacks.objective.make_objective`.
        rows: fake rows, hard or relaxed, `(F, I)`.
        train: the interactions the attacker sees.
        targets: ids of the targets, `(T,)`.
        key: decides the surrogate's initial parameters and its batches; the same key gives the same training.
        data: `model.prepare(train)` or a changed version of it, if it was made already.

    Returns:
        Value, gradient `(F, I)`, trained parameters and diagnosis.

    Reference: Tang, Wen, Wang, RecSys 2020, eq. 4.

    **Differs from the paper:** nothing.
    """
    key_init, key_train = jax.random.split(key)
    data = model.prepare(train) if data is None else data
    params0 = model.init(key_init, train.users, train.items, rows.shape[0])
    solve = differentiate(model.trainer(train.users, train.items, rows.shape[0], train.capacity))

    def outer(params, x, data):
        embedding = model.embed(params, x, data)
        return objective(lambda users: model.score(embedding, users), train, targets)

    return bilevel.value_and_hypergrad(outer, solve)(rows, params0, data, key_train)


def respond(
    models: Sequence[Recommender],
    weights: Sequence[float],
    differentiate: Differentiate,
    objective: Objective,
    rows: Float[Array, "F I"],
    train: Interactions,
    targets: Int[Array, " T"],
    key: Key[Array, ""],
    *,
    k: int,
    test: Interactions | None = None,
) -> Response:
    """Train every surrogate once on the rows; combine their losses, gradients and exposures.

    `L = sum_m w_m L_m`, `target_hr = mean_m hr_any@K_m`, both of the surrogates trained on these very rows.

    Args:
        models: the surrogates, at least one.
        weights: their weights in the loss, > 0.
        differentiate, objective, rows, train, targets: as in `hypergradient`.
        key: every surrogate draws its own initial parameters from it; the same key gives the same training.
        k: list length of the hit ratios.
        test: held-out interactions for `test_hr`.

    Returns:
        The combined `Response`.

    Reference: Tang, Wen, Wang, RecSys 2020, Alg. 1, lines 4-9; ensembles are proposed at the end of section 3.1.

    **Differs from the paper:** the paper proposes ensembles and leaves their weights open.
    """
    parts = []
    for number, (model, weight) in enumerate(zip(models, weights, strict=True)):
        data = model.prepare(train)
        own = jax.random.fold_in(key, number)
        found = hypergradient(model, differentiate, objective, rows, train, targets, own, data=data)
        scores = functools.partial(model.score, model.embed(found.params, rows, data))
        hits = _exposure(scores, train, test, targets, k)
        parts.append((weight * found.value, weight * found.grad, *hits, found.diagnosis.code))
    loss, gradient, target_hr, test_hr, code = (jnp.stack(column) for column in zip(*parts, strict=True))
    return Response(loss.sum(), gradient.sum(0), target_hr.mean(), test_hr.mean(), code.max())


def _exposure(scores, train: Interactions, test: Interactions | None, targets: Int[Array, " T"], k: int):
    """Hit ratios of targets and of held-out items; NaN where there are none."""
    nothing = jnp.full((), jnp.nan)
    if test is None and not targets.size:
        return nothing, nothing
    judged = evaluate(scores, train, test=test, targets=targets if targets.size else None, k=k)
    return tuple(nothing if hr is None else hr for hr in (judged.hr_any, judged.hr_test))


def _steps(inner: bilevel.Inner, epochs: int) -> int:
    steps = epochs * inner.steps_per_epoch
    if steps > inner.steps:
        raise ValueError(
            f"tau is {epochs} epochs ({steps} steps), but the surrogate trains for {inner.steps} steps only; "
            "lower tau, or use the exact estimator"
        )
    return steps


def _refuse(name: str, **given: object) -> None:
    """An option that would be ignored is an error."""
    extra = [option for option, value in given.items() if value is not None]
    if extra:
        raise ValueError(f"estimator {name!r} has no use for {', '.join(extra)}; leave it out")
