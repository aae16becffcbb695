"""What an attack is: a value with `init`, `step` and `finish`, callable like a function.

An attack turns `(key, train, targets)` into `models.data.Profiles`, hard and within its threat model. It is
a pure function of its arguments: `jax.jit(attack)` compiles it, `jax.vmap` runs it over keys and over target
sets, and the real interactions are only read. Learned attacks take `steps` outer steps, heuristics none.

What can be checked without looking at traced values is checked always; ids and rows are checked whenever they are
concrete. Inside `jit` and `vmap` a wrong id cannot be seen (JAX drops and clamps silently), so call
`check` yourself on what you pass in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from attacks.threat import ThreatModel
from models.data import Interactions, Profiles, check_targets
from models.data.interactions import is_concrete

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

    >>> import attacks
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

    def __call__(
        self,
        key: Key[Array, ""],
        train: Interactions,
        targets: Int[Array, " T"],
        *,
        initial: Float[Array, "F I"] | None = None,
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
            TypeError, ValueError: see `check`.
        """
        targets = check(self, key, train, targets, initial)
        state = self.init(key, train, targets, initial)
        state = jax.lax.fori_loop(0, self.steps, lambda _, s: self.step(s, train, targets, None)[0], state)
        return self.finish(state, train, targets)

    def trace(
        self,
        key: Key[Array, ""],
        train: Interactions,
        targets: Int[Array, " T"],
        *,
        test: Interactions | None = None,
        initial: Float[Array, "F I"] | None = None,
    ) -> tuple[Profiles, History]:
        """The same profiles, with the metrics of every outer step.

        Args:
            key, train, targets, initial: as in `__call__`.
            test: held-out interactions of the real users; adds a test metric, changes nothing else.

        Returns:
            The profiles and, by name, one array `(steps,)` per metric.

        Raises:
            TypeError, ValueError: see `check`.
        """
        targets = check(self, key, train, targets, initial, test)
        state = self.init(key, train, targets, initial)
        state, history = jax.lax.scan(
            lambda s, _: self.step(s, train, targets, test), state, None, length=self.steps
        )
        return self.finish(state, train, targets), history

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={_short(value)}" for name, value in self.config.items())
        return f"{self.name}({arguments})"


def check(
    attack: Attack,
    key: Key[Array, ""],
    train: Interactions,
    targets: Int[Array, " T"],
    initial: Float[Array, "F I"] | None = None,
    test: Interactions | None = None,
) -> Int[Array, " T"]:
    """Refuse on the host what the attack cannot work on; values are looked at only where they are concrete.

    Args:
        attack, key, train, targets, initial, test: as in `Attack.trace`.

    Returns:
        The targets as an `int32` array.

    Raises:
        TypeError: the key is not one typed key, the targets are not integers, or `train` is not `Interactions`.
        ValueError: targets empty, repeated or out of range; a budget above the number of other items; another track;
            initial rows of the wrong shape, not binary, or for an attack that does not start from rows; a test set of
            other users or items.
    """
    if not isinstance(train, Interactions):
        raise TypeError(
            f"train is {type(train).__name__}; expected Interactions (see models.data.Interactions.from_arrays)"
        )
    _check_key(key)
    if train.track != attack.threat.track:
        raise ValueError(
            f"train is of track {train.track!r}, but {attack.name} attacks the {attack.threat.track!r} track; "
            "convert the interactions explicitly first"
        )
    targets = _check_targets(targets, train.items)
    budget = attack.threat.budget
    if budget is not None and budget > train.items - targets.size:
        raise ValueError(
            f"budget is {budget}, but only {train.items - targets.size} of the {train.items} items are not targets; "
            "lower the budget"
        )
    fakes = attack.threat.count(train.users)
    if initial is not None:
        _check_initial(attack, initial, fakes, train.items)
    if test is not None and (test.users, test.items) != (train.users, train.items):
        raise ValueError(
            f"test has {test.users} users and {test.items} items, train has {train.users} and {train.items}; "
            "split one set of interactions so that the ids agree"
        )
    return targets


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"key is {_short(key)}; expected a typed key, as from jax.random.key(0)")
    if jnp.shape(key) != ():
        raise TypeError(f"key has shape {jnp.shape(key)}; expected one key (use jax.vmap for several)")


def _check_targets(targets: Any, items: int) -> Int[Array, " T"]:
    array = jnp.asarray(targets)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"targets has shape {array.shape}; expected (T,) with at least one item id")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"targets has dtype {array.dtype}; expected integer item ids")
    if array.size > items:
        raise ValueError(f"{array.size} targets among {items} items; expected distinct item ids")
    if is_concrete(array):
        check_targets(np.asarray(array), items)
    return array.astype(jnp.int32)


def _check_initial(attack: Attack, initial: Any, fakes: int, items: int) -> None:
    if not attack.starts:
        raise ValueError(f"{attack.name} does not start from rows; leave `initial` out")
    check_rows(initial)
    if jnp.shape(initial) != (fakes, items):
        raise ValueError(
            f"initial has shape {jnp.shape(initial)}; expected ({fakes}, {items}), a row for every fake user"
        )


def check_rows(rows: Any) -> None:
    """Refuse rows that are not a binary matrix.

    Args:
        rows: fake rows, `(F, I)`; their values are looked at only where they are concrete.

    Raises:
        ValueError: not two-dimensional, or an entry other than 0 and 1.
    """
    if jnp.ndim(rows) != 2:
        raise ValueError(f"initial has shape {jnp.shape(rows)}; expected rows (F, I)")
    if is_concrete(rows) and not np.isin(np.asarray(rows), (0, 1)).all():
        raise ValueError("initial has entries other than 0 and 1; expected binary rows (implicit clicks)")


def _short(value: object) -> str:
    """Arrays by shape, everything else as it prints: a configuration has to fit on a line."""
    if isinstance(value, np.ndarray | jax.Array):
        return f"<{value.dtype}{list(value.shape)}>"
    return getattr(value, "name", None) or repr(value)
