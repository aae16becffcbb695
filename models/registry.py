"""Every recommender by name: what saved models, records and the command line say instead of an object.

A recommender is made by a factory, and the factory's arguments are its configuration, so a name and a dictionary are
enough to make it again. Arguments without a default are what is known of the items of a data set (see `needs`).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from models.recommender import Recommender

MODULES: Mapping[str, str] = {
    "wrmf": "wrmf",
    "als": "als",
    "itemae": "itemae",
    "neumf": "ncf",
    "gmf": "ncf",
    "multvae": "multvae",
    "cml": "cml",
    "itemcf": "itemcf",
    "lightgcn": "lightgcn",
    "ngcf": "ngcf",
    "itempop": "itempop",
    "covisitation": "covisitation",
    "pmf": "pmf",
    "bpr": "bpr",
    "autorec": "autorec",
    "gru4rec": "gru4rec",
    "mf": "mf",
    "pcmf": "pcmf",
    "ncr": "ncr",
    "rcf": "rcf",
}
"""The file of each factory."""


def names() -> list[str]:
    """The names of all recommenders.

    >>> "wrmf" in names()
    True
    """
    return list(MODULES)


def module(name: str) -> ModuleType:
    """The file that holds a recommender.

    Raises:
        ValueError: no recommender of that name; says which is nearest.
    """
    return importlib.import_module(f"models.{MODULES[nearest('recommender', name, MODULES)]}")


def factory(name: str) -> Callable[..., Recommender]:
    """The function that makes a recommender.

    >>> factory("wrmf")(factors=2).name
    'wrmf'
    """
    return getattr(module(name), name)


def needs(name: str) -> list[str]:
    """The arguments of a recommender that have no default.

    >>> needs("wrmf"), needs("rcf")
    ([], ['relations'])
    """
    return [p.name for p in inspect.signature(factory(name)).parameters.values() if p.default is p.empty]


def make(name: str, preset: str | None = None, **changes: Any) -> Recommender:
    """A recommender by name, with a preset's settings or the factory's own, some of them replaced.

    Args:
        name: see `names`.
        preset: settings of a paper; None: the factory's defaults.
        changes: arguments of the factory, those that it needs among them.

    Raises:
        ValueError: unknown name or preset, a value outside its range, an argument that is needed and not given.
        TypeError: unknown argument; says which is nearest.

    >>> make("wrmf", "revadv-toy", epochs=5).config["factors"]
    16
    >>> make("wrmf", factor=2)
    Traceback (most recent call last):
    ...
    TypeError: no argument of wrmf 'factor'; did you mean 'factors'? There are: factors, ...
    """
    arguments = list(inspect.signature(factory(name)).parameters)
    try:
        for argument in changes:
            nearest(f"argument of {name}", argument, arguments)
    except ValueError as problem:
        raise TypeError(str(problem)) from None
    missing = [argument for argument in needs(name) if argument not in changes]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}: what is known of the items beside their clicks, "
            "see models.data.relations"
        )
    if preset is None:
        return factory(name)(**changes)
    of = module(name)
    presets = presets_of(name)
    if preset not in presets:
        known = ", ".join(presets) if presets else "it has none"
        near = difflib.get_close_matches(preset, presets, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name} has no preset {preset!r}; {hint}presets: {known}")
    return of.preset(preset, **changes)


def presets_of(name: str) -> list[str]:
    """The presets of a recommender.

    >>> presets_of("itempop"), presets_of("gmf")
    ([], ['rapu-ml', 'rapu-video'])
    """
    of = module(name)
    own = getattr(of, f"{name.upper()}_PRESETS", None)
    return list(getattr(of, "PRESETS", {}) if own is None else own)


def nearest(kind: str, name: str, known: Iterable[str]) -> str:
    """`name`, or an error that names the nearest known one."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    raise ValueError(
        f"no {kind} {name!r}; {f'did you mean {near[0]!r}? ' if near else ''}There are: {', '.join(known)}"
    )
