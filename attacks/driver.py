"""Long attacks: one outer step after the other with progress, history, snapshots and bit-identical resume.

The engine's driver (`bilevel.loop`) does the work; this says what makes a run of an attack the one it is, so that a
folder is never continued with other settings, other data or another key.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from attacks.attack import Attack, check_test
from attacks.checks import check
from bilevel import loop
from bilevel.progress import Block, Tell
from bilevel.store import Store
from models.data import Interactions, Profiles


class Run(NamedTuple):
    """The end of a run: hard profiles, one array per metric `(done,)`, outer steps done, seconds, where it resumed."""

    profiles: Profiles
    history: dict[str, np.ndarray]
    done: int
    seconds: float
    resumed: int


def run(
    attack: Attack,
    key: Key[Array, ""],
    train: Interactions,
    targets: Int[ArrayLike, " T"],
    *,
    test: Interactions | None = None,
    initial: Float[ArrayLike, "F I"] | None = None,
    block: int = 1,
    progress: bool | Tell = False,
    on_block: Callable[[Block], bool | None] | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Run:
    """Run an attack from the host, step by step; the profiles are validated at the end.

    Args:
        attack, key, train, targets, test, initial: as in `Attack.trace`; concrete values.
        block: outer steps in one compiled call, >= 1: how often there is progress and a snapshot.
        progress: `True` for a bar or log lines, or a function of `bilevel.progress.Block`.
        on_block: called after every block; a true value ends the run.
        store: folder for snapshots. A run that was killed continues from the last one and returns the same bytes.
        spec: further facts that make this run the one it is, in terms of JSON; the attack's arguments, the key and the
            data are included anyway.

    Returns:
        `Run`. A run ended by `on_block` has the best profiles so far; where fake users are made one after the other
        (`stages`), those not made yet have the targets only.

    Raises:
        TypeError, ValueError: see `attacks.checks.check`; the store holds another run (the text names what differs).
        FloatingPointError: no outer step had a finite loss, so there is nothing to return. If only some had none, a
            warning says how many.

    Reference: none.

    **Differs from the paper:** nothing.

    >>> import attacks
    >>> train = Interactions.from_dense(np.eye(4, 6))
    >>> attacks.run(attacks.random(fakes=2, budget=3), jax.random.key(0), train, np.array([5])).profiles
    Profiles(2 fakes x 6 items, implicit, rows)
    """
    check_test(attack, test)
    targets = check(
        attack.threat, key, train, targets, initial=initial, starts=attack.starts, only=attack.only, test=test
    )
    data = {"key": key, "train": train, "targets": targets, "initial": initial, "test": test}
    if progress is True and attack.steps:
        sys.stderr.write(f"{attack.name}: preparing\n")  # some train a surrogate before their first step
    facts = None if store is None else describe(attack) | _leaves(data) | {"more": dict(spec or {})}
    result = loop.run(
        attack.step,
        jax.jit(attack.init)(key, train, targets, initial),
        attack.steps,
        args=(train, targets, test),
        block=block,
        progress=progress,
        label=attack.name,
        show=attack.show or None,
        on_block=on_block,
        store=store,
        spec=facts,
    )
    _check_finite(attack, result.history)
    profiles = attack.finish(result.state, train, targets)
    attack.threat.validate(profiles, train.users)
    return Run(profiles, result.history, result.done, result.seconds, result.resumed)


def _check_finite(attack: Attack, history: Mapping[str, np.ndarray]) -> None:
    """A surrogate that diverged in every step leaves the initial rows: an error, not a result."""
    lost = {
        name: ~np.isfinite(np.asarray(history[metric], float))
        for name, metric in (("loss", "loss"), ("gradient", "grad_norm"))
        if metric in history
    }
    for name, steps in lost.items():
        if not steps.any():
            continue
        text = f"{attack.name}: the {name} was not finite in {steps.sum()} of {steps.size} outer steps; "
        text += "the surrogate diverged" if name == "loss" else "the rows could not move"
        if steps.all():
            raise FloatingPointError(f"{text}. Give it a smaller learning rate, or clean data (no NaN)")
        warnings.warn(f"{text} there; the profiles are the best of the others", RuntimeWarning, stacklevel=3)


def describe(attack: Attack) -> dict[str, Any]:
    """Name and arguments of an attack in terms of JSON (and arrays), without the number of outer steps.

    The steps are left out because a finished run may be prolonged.

    >>> import attacks
    >>> describe(attacks.random(fakes=2, budget=3))["config"]["budget"]
    3
    """
    config = {name: value for name, value in attack.config.items() if name != "steps"}
    return {"attack": attack.name, "config": _plain(config)}


def _leaves(data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every entry as the list of its arrays: a run's snapshots hold their fingerprints."""
    return {name: jax.tree.leaves(value) for name, value in data.items()}


def _plain(value: Any) -> Any:
    """Values that are made by a factory by its name and arguments, functions by where they are defined."""
    if value is None or isinstance(value, bool | int | float | str | np.ndarray | jax.Array):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if hasattr(value, "name") and hasattr(value, "config"):
        return {"name": value.name, "config": _plain(value.config)}
    if isinstance(value, functools.partial):
        return {"function": _plain(value.func), "arguments": [_plain(value.args), _plain(value.keywords)]}
    if hasattr(value, "__qualname__"):
        if "<" in value.__qualname__:  # a lambda or a closure: two different ones look alike
            raise ValueError(
                f"a saved run must tell its settings apart, and {value.__qualname__} does not say what it holds; "
                "give an estimator by name, or a function defined in a module (functools.partial keeps its arguments)"
            )
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
