"""A game between an attack that learns from rewards and a black box: ask, inject, count, tell."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Key

from attacks.asktell import AskTell, trial
from attacks.blackbox import BlackBox
from bilevel.progress import Block, Tell, display
from models.data import Profiles, check_targets


class Played(NamedTuple):
    """The end of a game: the best profiles tried, one array per metric `(done,)`, the learner's last state."""

    profiles: Profiles
    history: dict[str, np.ndarray]
    state: Any


def play(
    learner: AskTell,
    box: BlackBox,
    key: Key[Array, ""],
    popularity: Int[ArrayLike, " I"],
    targets: Int[Array, " T"] | list[int],
    *,
    users: int | None = None,
    steps: int | None = None,
    progress: bool | Tell = False,
) -> Played:
    """Let an attack learn from a black box: every trial is injected and counted, one after the other.

    Args:
        learner: from `attacks.poisonrec_learner` or `attacks.appgrad_learner`.
        box: the victim.
        key: of the learner.
        popularity: clicks of each item, which is all the attacker knows of the data.
        targets: ids of the targets.
        users: real users, >= 1, for a learner whose `fakes` is a fraction of them; None elsewhere.
        steps: how often it asks, >= 1, within the queries of its threat model; None: the learner's own number.
        progress: as in `attacks.run`.

    Returns:
        `Played`. The reward is RecNum, its negative for `goal="demote"`.

    Raises:
        TypeError, ValueError: targets that are no distinct ids; `users` missing, out of its range or without a use;
            more `steps` than the queries of the learner allow. All before the first query.
        OverBudget: the box answers fewer queries.

    Reference: Song et al., ICDE 2020, Algorithm 1. **Differs from the paper:** nothing.

    >>> from attacks.appgrad import appgrad_learner
    >>> class Store:
    ...     queries = 0
    ...     def inject(self, profiles):
    ...         self.queries, self.shown = self.queries + 1, int((np.asarray(profiles.clicks) == 0).sum())
    ...     def recnum(self):
    ...         return self.shown
    >>> learner = appgrad_learner(fakes=2, clicks=3, queries=4, directions=1)
    >>> box = Store()  # which shows item 0 as often as it was clicked
    >>> played = play(learner, box, jax.random.key(0), np.ones(6, int), [0])
    >>> played.profiles.clicks.shape, played.history["best_reward"].shape, box.queries
    ((2, 3), (2,), 4)
    """
    check_targets(np.asarray(targets), np.size(popularity))
    _check_users(learner, users)
    count = _steps(learner, steps)
    sign = -1.0 if learner.threat.goal == "demote" else 1.0
    init = jax.jit(learner.init, static_argnums=3)
    state = init(key, jnp.asarray(popularity), jnp.asarray(targets), learner.threat.count(users or 1))
    ask, told, began = jax.jit(learner.ask), jax.jit(learner.told), perf_counter()
    series: dict[str, list[float]] = {}
    with display(progress, learner.name, ("mean_reward", "best_reward", "target_share")) as tell:
        for number in range(count):
            tell(_block(number, count, began, state, series))
            state, metrics = told(state, sign * jnp.asarray(_worth(box, ask(state))))
            for name, value in metrics.items():
                series.setdefault(name, []).append(float(value))
        tell(_block(count, count, began, state, series))
    return Played(learner.finish(state), {name: np.array(values) for name, values in series.items()}, state)


def _check_users(learner: AskTell, users: Any) -> None:
    fakes, fraction = learner.threat.fakes, not isinstance(learner.threat.fakes, numbers.Integral)
    if users is None:
        if fraction:
            raise ValueError(f"fakes is {fakes}, a fraction: give users=, the number of real ones")
        return
    if isinstance(users, bool) or not isinstance(users, numbers.Integral) or users < 1:
        raise ValueError(f"users is {users!r}; expected an integer >= 1, the number of real ones")
    if not fraction:
        raise ValueError(f"users is {users}, but fakes is {fakes}, no fraction of them: leave users= out")


def _steps(learner: AskTell, steps: Any) -> int:
    """How often the learner asks, within the queries of its threat model."""
    if steps is None:
        return learner.steps
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected an integer >= 1, or None for all {learner.steps}")
    count = int(steps)
    if count > learner.steps:
        raise ValueError(
            f"steps is {steps}, but {learner.name} was made to ask {learner.steps} times, {learner.threat.queries} "
            f"queries in all: give steps <= {learner.steps}, or make it with more"
        )
    return count


def _worth(box: BlackBox, asked: Profiles) -> list[float]:
    """RecNum of each trial."""
    asked, found = jax.tree.map(np.asarray, asked), []
    for number in range(asked.targets.shape[0]):
        box.inject(trial(asked, number))
        found.append(box.recnum())
    return found


def _block(done: int, steps: int, began: float, state: Any, series: Mapping[str, list[float]]) -> Block:
    last = {name: np.array(values[-1:]) for name, values in series.items()}
    return Block(done, steps, perf_counter() - began, state, last, 0)
