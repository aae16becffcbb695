"""A recommender as a value: pure functions that train it and read it, with the relaxed fake rows as an argument.

Poison is data. The loss reads the real interactions (sparse, inside `data`) and the fake rows `x` (F, I), relaxed or
hard, so that the trained parameters are a differentiable function of `x`. A fake row that is hard is an ordinary
user: the same numbers come out if it is injected into the interactions instead.

What a relaxed cell `x_fi` means is decided here, once, for every loss:

| loss                        | target        | weight                          | derivative in `x_fi` flows through |
|-----------------------------|---------------|---------------------------------|------------------------------------|
| weighted square (WRMF, AE)  | the value     | w+ where `x_fi > 0`, constant   | the target (and the AE's input)    |
| pairwise (BPR, CML)         | a positive    | `x_fi`                          | the weight of the positive         |
| cross-entropy, softmax      | a positive    | `x_fi`                          | the weight of the positive         |
| graph convolution           | an edge       | `x_fi`; a node of degree 0 is 0 | the edge weight                    |
| ratings (MF, PMF, AutoRec)  | the value     | 1 where `x_fi > 0` (rated), else 0, constant | the target            |

Sampled losses of clicks (PMF's too) are of the pairwise kind: a cell is the weight of a positive. The unit of a rating
is that of the model's data: MF's are divided by the largest.

The weight of a squared cell jumps from 1 to w+ at `x = 0`: derivatives hold it constant (as the code of RevAdv does),
and finite differences need it frozen, which `data.observed` does.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bilevel import Inner, Minibatches, fixed_point, gradient_descent, minibatches
from models.data.interactions import Interactions

Params = Any
Data = Any


@dataclass(frozen=True, eq=False, repr=False)
class Recommender:
    """A recommender. Made by a factory (`wrmf`, `als`, `itemae`, ...), used by `models.train.fit` and by attacks.

    Attributes:
        name: what it is.
        config: the factory's arguments, for records.
        prepare: `(train) -> data`, what the loss and the scores read; jit-able. `data.observed` is None, or a (F, I)
            mask that freezes which fake cells carry the weight of a click (None: those with `x > 0`).
        init: `(key, users, items, fakes) -> params`, the raw parameter tree.
        loss: `(params, x, data, ctx) -> scalar`, the training objective; x is (F, I), F may be 0.
        embed: `(params, x, data) -> embedding`, everything scores need that does not depend on the user asked for.
        score: `(embedding, users) -> (B, I)` scores of real users.
        trainer: `(users, items, fakes, events) -> bilevel.Inner`, how it is trained; `events` is the capacity of the
            training data, which matters to models that draw batches of events.
    """

    name: str
    config: Mapping[str, Any]
    prepare: Callable[[Interactions], Data]
    init: Callable[[Array, int, int, int], Params]
    loss: Callable[..., Float[Array, ""]]
    embed: Callable[[Params, Float[Array, "F I"], Data], Any]
    score: Callable[[Any, Int[Array, "B"]], Float[Array, "B I"]]
    trainer: Callable[..., Inner]

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", MappingProxyType(dict(self.config)))

    def scores(
        self, params: Params, x: Float[Array, "F I"], data: Data, users: Int[Array, "B"]
    ) -> Float[Array, "B I"]:
        """Scores (B, I) of the real users `users` (B,) for every item, nothing masked."""
        return self.score(self.embed(params, x, data), users)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"


def cell_weights(
    x: Float[Array, "F I"], observed: Bool[Array, "F I"] | None, weight: float
) -> Float[Array, "F I"]:
    """Weight of each relaxed cell of a squared loss, `weight` where observed and 1 elsewhere, as a constant.

    >>> cell_weights(jnp.array([[0.0, 0.3, 1.0]]), None, 20.0).tolist()
    [[1.0, 20.0, 20.0]]
    """
    clicked = lax.stop_gradient(x) > 0 if observed is None else observed
    return jnp.where(clicked, jnp.asarray(weight, x.dtype), 1)


def sound(train: Interactions) -> Float[Array, ""]:
    """1, or NaN if any weight is: events lost in a trace (too small a capacity) must reach the loss, not vanish."""
    return jnp.where(jnp.any(jnp.isnan(train.weight)), jnp.nan, 1.0).astype(train.weight.dtype)


# ------------------------------------------------------------------------------------------------ for the factories


def untrained(
    name: str,
    config: Mapping[str, Any],
    prepare: Callable[[Interactions], Data],
    embed: Callable[[Params, Float[Array, "F I"], Data], Any],
    score: Callable[[Any, Int[Array, "B"]], Float[Array, "B I"]],
) -> Recommender:
    """A recommender that counts and learns nothing: no parameters, a loss of 0, one step that leaves things alone."""
    nothing = fixed_point(lambda params, x, data, ctx: params, 1)
    return Recommender(
        name=name,
        config=config,
        prepare=prepare,
        init=lambda key, users, items, fakes: {},
        loss=lambda params, x, data, ctx: jnp.zeros((), x.dtype),
        embed=embed,
        score=score,
        trainer=lambda users, items, fakes, events=0: nothing,
    )


def clicks_only(name: str, train: Interactions) -> Interactions:
    """`train`, or an error if it holds ratings: a recommender of clicks never reads them silently as clicks."""
    if train.track == "explicit":
        raise ValueError(
            f"{name} learns from clicks, but the data are ratings (track 'explicit'); binarize() them first"
        )
    return train


def ratings_only(name: str, train: Interactions) -> Interactions:
    """`train`, or an error if it holds clicks: a click is not a rating of 1 unless somebody says so."""
    if train.track != "explicit":
        raise ValueError(
            f"{name} learns from ratings, but the data are clicks (track {train.track!r}); load them with their ratings"
        )
    return train


def flat(module: nnx.Module) -> Params:
    """The parameters of a Flax NNX module as plain nested dictionaries of arrays."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def counts(name: str, **values: Any) -> None:
    """Raise unless every value is a whole number of at least 1.

    >>> counts("wrmf", factors=2.5)
    Traceback (most recent call last):
    ...
    ValueError: wrmf: factors=2.5; expected a whole number of at least 1
    """
    for argument, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: {argument}={value!r}; expected a whole number of at least 1")


def numbers(name: str, low: float, *, open_end: bool = False, **values: Any) -> None:
    """Raise unless every value is a finite number of at least `low` (above it, if `open_end`)."""
    for argument, value in values.items():
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value < float("inf")
        if not fits or (open_end and value == low):
            expected = f"a number above {low:g}" if open_end else f"a number of at least {low:g}"
            raise ValueError(f"{name}: {argument}={value!r}; expected {expected}")


def given(**values: Any) -> dict[str, Any]:
    """The arguments that are not None, to check those that may be left out.

    >>> given(batch=None, scale=0.1)
    {'scale': 0.1}
    """
    return {argument: value for argument, value in values.items() if value is not None}


def one_of(name: str, argument: str, value: Any, allowed: Collection[str]) -> None:
    """Raise unless `value` is one of the names in `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: {argument}={value!r}; expected one of {', '.join(allowed)}")


def settings(
    name: str, presets: Mapping[str, Mapping[str, Any]], chosen: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a preset with some replaced.

    >>> settings("wrmf", {"toy": {"epochs": 100}}, "tyo", {})
    Traceback (most recent call last):
    ...
    ValueError: wrmf has no preset 'tyo'; did you mean 'toy'? It has: toy
    """
    if chosen not in presets:
        near = difflib.get_close_matches(chosen, presets, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name} has no preset {chosen!r}; {hint}It has: {', '.join(presets)}")
    return {**presets[chosen], **changes}


def in_epochs(
    objective: Callable[..., Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    epochs: int,
    batches: Minibatches | None,
    **options: Any,
) -> Inner:
    """Gradient descent for whole passes over the batches (None: one step is a pass), with options of the engine's."""
    steps = epochs * (batches.per_epoch if batches else 1)
    return gradient_descent(objective, optimizer, steps, batches=batches, **options)


def over_rows(
    objective: Callable[..., Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    epochs: int,
    rows: int,
    batch: int | None,
    **options: Any,
) -> Inner:
    """`in_epochs` over batches of rows; a table with no more rows than one batch, or None, is seen whole in every step.

    >>> objective = lambda params, x, data, ctx: jnp.sum(params**2)
    >>> over_rows(objective, optax.sgd(0.1), epochs=4, rows=5, batch=2)  # 3 batches
    gradient_descent(steps=12)
    """
    batches = minibatches(rows, batch) if batch is not None and rows > batch else None
    return in_epochs(objective, optimizer, epochs, batches, **options)


def xavier(inputs: int, outputs: int) -> float:
    """Glorot and Bengio's standard deviation, `sqrt(2 / (inputs + outputs))`.

    >>> xavier(1, 7)
    0.5
    """
    return (2 / (inputs + outputs)) ** 0.5
