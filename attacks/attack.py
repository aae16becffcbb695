"""What an attack is: a value with `init`, `step` and `finish`, callable like a function.

An attack turns `(key, train, targets)` into `models.data.Profiles`, hard and within its threat model. It is
a pure function of its arguments: `jax.jit(attack)` compiles it, `jax.vmap` runs it over keys and over target
sets, and the real interactions are only read. Learned attacks take `steps` outer steps, heuristics none.

What a call is given is checked first (`attacks.checks`). Long runs go through `attacks.run`, with progress, history and
resume.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from attacks.checks import check
from attacks.threat import ThreatModel
from models.data import Interactions, Profiles

History = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Attack:
    """A data-poisoning attack as a value.

    Args:
        name: what tables call it.
        config: the factory's arguments, for records.
        threat: what the attack may do and has to know.
        steps: outer steps, >= 0.
        init: `(key, train, targets, initial) -> state`; `initial` is `None` or fake rows `(F, I)`.
        step: `(state, train, targets, test) -> (state, metrics)`; metrics are scalars by name, and `test` (held-out
            interactions or `None`) is used for metrics only.
        finish: `(state, train, targets) -> Profiles`.
        starts: `True` if the attack starts from rows, so that `initial=` is allowed.
        show: metrics that a progress display shows, in order.
        tests: `True` if it trains a recommender whose lists are held against `test`, so that `test=` is allowed.
        only: targets of the one world that it plays in, `(T,)`: a call for others is refused; `None`: any.

    >>> import attacks
    >>> import jax.numpy as jnp
    >>> from models.data import Interactions
    >>> train = Interactions.from_dense(jnp.eye(4, 6))
    >>> attack = attacks.random(fakes=2, budget=3)
    >>> profiles = jax.jit(attack)(jax.random.key(0), train, jnp.array([5]))
    >>> profiles.to_rows().sum(axis=1).tolist()
    [4.0, 4.0]
    """

    name: str
    config: Mapping[str, Any]
    threat: ThreatModel
    steps: int
    init: Callable[..., Any]
    step: Callable[..., tuple[Any, History]]
    finish: Callable[..., Profiles]
    starts: bool = False
    show: tuple[str, ...] = ()
    tests: bool = False
    only: Int[np.ndarray, " T"] | None = None

    def __call__(
        self,
        key: Key[Array, ""],
        train: Interactions,
        targets: Int[ArrayLike, " T"],
        *,
        initial: Float[ArrayLike, "F I"] | None = None,
    ) -> Profiles:
        """The profiles the attack ends with.

        Args:
            key: a typed key (`jax.random.key`), consumed.
            train: the interactions the attacker sees.
            targets: distinct item ids, `(T,)`.
            initial: binary rows to start from, `(F, I)`; only for attacks that start from rows.

        Returns:
            Hard profiles within the budget of `threat`.

        Raises:
            TypeError, ValueError: see `attacks.checks.check`.
        """
        targets = check(self.threat, key, train, targets, initial=initial, starts=self.starts, only=self.only)
        return _profiles(self, key, train, targets, initial)

    def trace(
        self,
        key: Key[Array, ""],
        train: Interactions,
        targets: Int[ArrayLike, " T"],
        *,
        test: Interactions | None = None,
        initial: Float[ArrayLike, "F I"] | None = None,
    ) -> tuple[Profiles, History]:
        """The same profiles, with the metrics of every outer step.

        Args:
            key, train, targets, initial: as in `__call__`.
            test: held-out interactions of the real users; adds a test metric, changes nothing else. Only for attacks
                that have one, see `tests`.

        Returns:
            The profiles and, by name, one array `(steps,)` per metric.

        Raises:
            TypeError, ValueError: see `attacks.checks.check`.
        """
        check_test(self, test)
        targets = check(
            self.threat, key, train, targets, initial=initial, starts=self.starts, only=self.only, test=test
        )
        return _traced(self, key, train, targets, initial, test)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={_short(value)}" for name, value in self.config.items())
        return f"{self.name}({arguments})"


# Compiled once for an attack and shapes, also when the attack is called outside of jit.


@functools.partial(jax.jit, static_argnums=0)
def _profiles(attack: Attack, key, train, targets, initial) -> Profiles:
    state = attack.init(key, train, targets, initial)
    state = jax.lax.fori_loop(0, attack.steps, lambda _, s: attack.step(s, train, targets, None)[0], state)
    return attack.finish(state, train, targets)


@functools.partial(jax.jit, static_argnums=0)
def _traced(attack: Attack, key, train, targets, initial, test) -> tuple[Profiles, History]:
    state = attack.init(key, train, targets, initial)
    state, history = jax.lax.scan(
        lambda s, _: attack.step(s, train, targets, test), state, None, length=attack.steps
    )
    return attack.finish(state, train, targets), history


def in_stages(make: Callable[[Any], Any], state: Any, stages: int) -> Any:
    """A stage of an attack that makes its fake users one after another: the next `ceil(F / stages)` of them.

    Args:
        make: `state -> state`, one more fake user.
        state: has their rows, `rows` (F, I), and how many are made, `made`.
        stages: how many such calls make all of them.

    Returns:
        The state with at most F fake users made.
    """
    fakes = state.rows.shape[0]
    stop = jnp.minimum(state.made + -(-fakes // stages), fakes)
    return jax.lax.fori_loop(state.made, stop, lambda _, held: make(held), state)


def check_test(attack: Attack, test: Interactions | None) -> None:
    """Refuse a test set that no metric of the attack would read.

    Raises:
        ValueError: what to do instead.
    """
    if test is not None and not attack.tests:
        raise ValueError(
            f"{attack.name} has no test metric, so test= would be ignored: leave it out (revadv and rapu_g have one)"
        )


def _short(value: object) -> str:
    """Arrays by shape, everything else as it prints: a configuration has to fit on a line."""
    if isinstance(value, np.ndarray | jax.Array):
        return f"<{value.dtype}{list(value.shape)}>"
    return getattr(value, "name", None) or repr(value)
