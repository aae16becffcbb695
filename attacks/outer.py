"""The outer loop that learned injection attacks share, whatever they want and however they project.

Algorithm 1 of Tang, Wen, Wang, "Revisiting Adversarially Learned Injection Attacks Against Recommender Systems",
RecSys 2020 (RevAdv), which Algorithm 2 of Zhang et al., KDD 2021 (RAPU-G), repeats:

    X0 <- legal rows
    for t = 0 .. T-1:
        theta <- the surrogates trained from the same initial parameters on [X; Xt]
        g     <- d L_adv / d Xt, estimated exactly, truncated, partially, ...
        score Xt by hr_any@K of theta, keep the best
        velocity <- momentum velocity + g / |g_row|;   Xt+1 <- Proj(Xt - eta velocity)
    return the best Xt

The projected (binary) rows are what the surrogate trains on, so what is scored is what is returned.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from attacks.attack import Attack
from attacks.feasible import feasible
from attacks.initial import Initial, check_initial, start
from attacks.objective import Objective
from attacks.surrogate import Differentiate, respond
from attacks.threat import ThreatModel
from bilevel.descend import Descend, DescendState
from bilevel.project import column_mask
from models.data import Interactions, Profiles
from models.recommender import Recommender

Project = Callable[[Float[Array, "F I"], Interactions, Int[Array, " T"]], Float[Array, "F I"]]


class State(NamedTuple):
    """What is carried from one outer step to the next: the descent, and the key every training starts from."""

    outer: DescendState
    key: Key[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class Outer:
    """The checked settings of the loop, and the loop in three functions of them: `init`, `step`, `finish`.

    Attributes:
        threat: what the attack may do.
        models, weights: the surrogates and the weights of their losses, from `surrogates` and `loss_weights`.
        differentiate: how their training is differentiated, from `attacks.surrogate.make_estimator`.
        objective: L_adv, from `attacks.objective.make_objective`.
        descent: step size, momentum and normalization, from `bilevel.descend.descend`.
        project: `(relaxed rows, train, targets) -> binary rows`.
        click_targets: every fake user clicks every target, whose cells are not learned.
        initial, initial_clicks: rows to start from, see `attacks.initial.start`.
        k: list length of the hit ratio an iterate is scored by.
        project_first: whether the rows the loop starts from are projected too, and not only brought within the budget.
    """

    threat: ThreatModel
    models: tuple[Recommender, ...]
    weights: tuple[float, ...]
    differentiate: Differentiate
    objective: Objective
    descent: Descend
    project: Project
    click_targets: bool
    initial: Initial | Float[ArrayLike, "F I"]
    initial_clicks: int
    k: int
    project_first: bool = False

    def attack(self, name: str, config: Mapping[str, Any], steps: int) -> Attack:
        """The loop as an attack of `steps` outer steps."""
        show = ("target_hr", "loss", "test_hr", "mean_clicks")
        return Attack(name, config, self.threat, steps, self.init, self.step, self.finish, True, show, True)

    def init(self, key, train: Interactions, targets: Int[Array, " T"], rows=None) -> State:
        """Legal rows, nothing scored yet."""
        key_rows, key_cut, key_train = jax.random.split(key, 3)
        fakes = self.threat.count(train.users)
        rows = start(rows, self.initial, key_rows, train, fakes, clicks=self.initial_clicks)
        rows = feasible(key_cut, rows, targets, budget=self.threat.budget, click_targets=self.click_targets)
        if self.project_first:  # what the rows leave open is filled, at random where the projection ties
            chance = jax.random.uniform(jax.random.fold_in(key_cut, 1), rows.shape, rows.dtype)
            rows = self.project(rows + 1e-6 * chance, train, targets)
        return State(self.descent.init(rows), key_train)

    def step(self, state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        """Train on the current rows, score them, move them."""
        rows = state.outer.x
        found = respond(
            self.models,
            self.weights,
            self.differentiate,
            self.objective,
            rows,
            train,
            targets,
            state.key,  # the same in every step: the same initial parameters and batches
            k=self.k,
            test=test,
        )
        outer = self.descent.step(
            state.outer,
            found.gradient,
            found.target_hr if self.threat.goal == "promote" else -found.loss,
            project=lambda x: self.project(x, train, targets),
            frozen=column_mask(targets, train.items) if self.click_targets else None,
        )
        metrics = {
            "loss": found.loss,
            "target_hr": found.target_hr,
            "test_hr": found.test_hr,
            "grad_norm": jnp.linalg.norm(found.gradient),
            "code": found.code,
            "mean_clicks": jnp.mean(jnp.sum(rows, axis=1)),
        }
        return State(outer, state.key), metrics

    def finish(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        """The best rows that were scored."""
        budget = self.threat.budget
        width = None if budget is None else min(budget + targets.size, train.items)
        rows = state.outer.best_x
        return Profiles.from_rows(rows, targets, clicks_targets=self.click_targets, width=width)


# ------------------------------------------------------------------------------------------------ arguments


def check_loop(*, steps: Any, k: Any, initial_clicks: Any, initial: Any, **flags: Any) -> None:
    """Refuse what the loop cannot be run with.

    Args:
        steps, k, initial_clicks: integers >= 1.
        initial: a rule, `"given"` or binary rows, see `attacks.initial.check_initial`.
        flags: True or False, by name.

    Raises:
        TypeError: a flag is no flag.
        ValueError: any other argument out of its range.
    """
    for name, value in (("steps", steps), ("k", k), ("initial_clicks", initial_clicks)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an integer >= 1")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; expected True or False")
    check_initial(initial)


def surrogates(surrogate: Any) -> tuple[Recommender, ...]:
    """One or several surrogates as a tuple.

    Raises:
        TypeError: one of them is no recommender.
        ValueError: there is none.
    """
    several = isinstance(surrogate, Sequence) and not isinstance(surrogate, str)
    models: tuple[Any, ...] = tuple(surrogate) if several else (surrogate,)
    if not models:
        raise ValueError("surrogate is empty; give at least one recommender")
    for model in models:
        if not isinstance(model, Recommender):
            raise TypeError(f"surrogate is {model!r}; expected a Recommender, such as models.wrmf.wrmf()")
    return models


def loss_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """A positive weight for each surrogate's loss; None: 1 each.

    Raises:
        ValueError: another number of weights, or one that is not finite and positive.

    >>> loss_weights(None, 2)
    (1.0, 1.0)
    """
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} surrogates; give one for each")
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weights has {weight!r}; expected finite numbers > 0")
    return tuple(map(float, weights))
