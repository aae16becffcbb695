"""Values from names, as the command line gives them: `wrmf:rapu-ml-victim,epochs=20` is a recommender.

A factory's arguments are the configuration; an argument it does not have is an error that names the nearest
one it has.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import attacks
from attacks.attack import Attack
from models import registry
from models.recommender import Recommender
from models.registry import nearest

ATTACKS: dict[str, Callable[..., Attack]] = {
    "random": attacks.random,
    "top-popular": attacks.top_popular,
    "revadv": attacks.revadv,
}


def recommender(text: str) -> Recommender:
    """A recommender from `name[:preset][,argument=value...]`.

    Raises:
        ValueError: unknown name, preset or argument; a value that is not a Python literal.

    >>> recommender("wrmf:revadv-toy,epochs=5").config["epochs"]
    5
    >>> recommender("wrmf,epoch=5")
    Traceback (most recent call last):
    ...
    ValueError: 'wrmf' has no argument 'epoch'; did you mean 'epochs'? ...
    """
    head, *changes = text.split(",")
    name, _, preset = head.partition(":")
    factory = registry.factory(name)
    given = dict(_assignment(change, name, factory) for change in changes)
    return registry.make(name, preset or None, **given)


def attack(name: str, **arguments: Any) -> Attack:
    """An attack by name, with the arguments that are not None.

    Raises:
        ValueError: unknown name, an argument the attack has no use for, or one it needs and did not get.

    >>> attack("random", fakes=3, budget=2, tau=None)
    random(fakes=3, budget=2, target_mode='all', track='implicit')
    """
    factory = ATTACKS[nearest("attack", name, ATTACKS)]
    given = {argument: value for argument, value in arguments.items() if value is not None}
    known = inspect.signature(factory).parameters
    for argument in given:
        if argument not in known:
            raise ValueError(f"attack {name!r} has no use for {argument!r}; it has: {', '.join(known)}")
    needed = [p.name for p in known.values() if p.default is p.empty and p.name not in given]
    if needed:
        raise ValueError(f"attack {name!r} needs {', '.join(needed)}")
    return factory(**given)


def _assignment(text: str, owner: str, factory: Callable[..., Any]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    known = list(inspect.signature(factory).parameters)
    if not equals:
        raise ValueError(f"{owner!r}: {text!r} is not argument=value")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{owner!r} has no argument {name!r}; {hint}It has: {', '.join(known)}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word such as form=dense
