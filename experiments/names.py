"""Values from names, as the command line gives them: `wrmf:rapu-ml-victim,epochs=20` is a recommender.

A factory's arguments are the configuration; an argument it does not have is an error that names the nearest
one it has.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

import attacks
from attacks.attack import Attack
from attacks.threat import Goal
from defenses import adversarial as at
from defenses import apt
from defenses.detectors import DETECTORS, OF_RATINGS
from experiments.guarded import Guard, screened
from models import pcmf, registry
from models.data import relations, sources
from models.data.interactions import Track
from models.recommender import Recommender, ratings_only
from models.registry import nearest

if TYPE_CHECKING:
    from models.data import Dataset, Interactions

RELATIONS = {"ml-100k": ("ml-100k-rcf", "auxiliary-mapping.txt.gz")}
"""What is known of the items of a data set: the folder and the file in it."""

ATTACKS: dict[str, Callable[..., Attack]] = {
    "random": attacks.random,
    "average": attacks.average,
    "popular": attacks.popular,
    "bandwagon": attacks.bandwagon,
    "hcars-bandwagon": attacks.hcars_bandwagon,
    "top-popular": attacks.top_popular,
    "middle": attacks.middle,
    "power-item": attacks.power_item,
    "segment": attacks.segment,
    "pga": attacks.pga,
    "tna": attacks.tna,
    "covisitation": attacks.covisitation,
    "srwa": attacks.srwa,
    "aush": attacks.aush,
    "dl-attack": attacks.dl_attack,
    "revadv": attacks.revadv,
    "rapu-g": attacks.rapu_g,
    "rapu-r": attacks.rapu_r,
    "hcars": attacks.hcars,
    "appgrad": attacks.appgrad,
    "poisonrec": attacks.poisonrec,
}


DEFENSES: dict[str, Callable[..., Any]] = {
    "at": at.adversarial,
    "apt": apt.apt,
    "apt-rand": apt.apt,
    "pcmf": functools.partial(pcmf.pcmf, center=False),
    "filter": screened,
}
"""What makes each defense; beside them there is "none". pcmf is what the studies of APT call so: ratings as they
are, `center=False`. Their pcmf-centered, which is what the recommender of this name does by default, is
`pcmf,center=True`; what it costs is on the page of apt-table2."""
KNOWING = ("revadv", "rapu-g")
"""Attacks whose fake users go through the surrogate's training: a defense inside it is in their derivative."""


def recommender(text: str, data: Dataset | None = None) -> Recommender:
    """A recommender from `name[:preset][,argument=value...]`.

    Args:
        text: what it is.
        data: what it will learn from. One that relates items reads their attributes from the file `relations=FILE` of
            lines `item|values|values|...`, or from the file known for the data set.

    Raises:
        ValueError: unknown name, preset or argument; a value that is not a Python literal; items of which nothing is
            known.

    >>> recommender("wrmf:revadv-toy,epochs=5").config["epochs"]
    5
    >>> recommender("wrmf,epoch=5")
    Traceback (most recent call last):
    ...
    ValueError: 'wrmf' has no argument 'epoch'; did you mean 'epochs'? ...
    """
    head, *changes = pieces(text)
    name, _, preset = head.partition(":")
    factory = registry.factory(name)
    given = dict(_assignment(change, name, factory) for change in changes)
    if "relations" in registry.needs(name):
        given["relations"] = _relations(name, data, given.get("relations"))
    return registry.make(name, preset or None, **given)


def _relations(name: str, data: Dataset | None, file: str | None) -> relations.Relations:
    """The attributes of the items of a data set."""
    if data is None:
        raise ValueError(f"{name} relates the items of a data set by their attributes; none is given here")
    if file is not None:
        return relations.load(str(file), data.item_ids, names=None).relations
    path = sources.beside(*RELATIONS[data.name]) if data.name in RELATIONS else None
    if path is None:
        raise ValueError(
            f"{name} relates items by their attributes, and none are known of {data.name}; give a file of lines "
            f"item|values|values|..., values separated by commas: {name},relations=FILE"
        )
    return relations.load(path, data.item_ids).relations


def attack(text: str, *, box: Mapping[str, Any] | None = None, hint: str = "", **arguments: Any) -> Attack:
    """An attack from `name[,argument=value...]`, and arguments of which those that are None are left out.

    Args:
        text: what it is; for a black-box attack with arguments of `attacks.environment` among its own.
        box: arguments of the environment, which is then made around the recommender given as `environment`.
        hint: what else would do where an argument is missing, for the error.
        arguments: the attack's own.

    Raises:
        ValueError: unknown name, an argument the attack has no use for or that is given twice, or one it needs and
            did not get; a value that is not a Python literal.

    >>> attack("random,target_mode=split", fakes=3, budget=2, tau=None)
    random(fakes=3, budget=2, target_mode='split', track='implicit')
    >>> attack("revadv")
    Traceback (most recent call last):
    ...
    ValueError: --attack revadv needs --surrogate and --fakes
    """
    name, *changes = pieces(text)
    factory = ATTACKS[nearest("attack", name, ATTACKS)]
    given = {argument: value for argument, value in arguments.items() if value is not None}
    around = {argument: value for argument, value in (box or {}).items() if value is not None}
    known = inspect.signature(factory).parameters
    for argument in given:
        if argument not in known:
            raise ValueError(f"attack {name!r} has no use for {argument!r}; it has: {', '.join(known)}")
    factories = (factory,) if box is None else (factory, attacks.environment)
    for argument, value in (_assignment(change, name, *factories) for change in changes):
        place = given if argument in known else around
        if argument in place:
            raise ValueError(f"attack {name!r}: {argument!r} is given twice")
        place[argument] = value
    if box is not None:
        given["environment"] = attacks.environment(given["environment"], **around)
    needed = [f"--{p.name}" for p in known.values() if p.default is p.empty and p.name not in given]
    if needed:
        raise ValueError(f"--attack {name} needs {' and '.join(needed)}{hint and f'; {hint}'}")
    return factory(**given)


def list_of_attacks() -> list[list[str]]:
    """Of every attack: its name, first line, what it serves, and its arguments."""
    rows = []
    for name, factory in ATTACKS.items():
        known = inspect.signature(factory).parameters.values()
        arguments = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in known)
        rows.append([name, (inspect.getdoc(factory) or "").split("\n")[0], served(name), arguments])
    return rows


def served(name: str) -> str:
    """Tracks and goals that an attack does not refuse, found by asking for each.

    >>> served("bandwagon")
    'implicit: promote; explicit: promote, demote; sequence: promote'
    """
    known = inspect.signature(ATTACKS[name]).parameters
    found: dict[str, list[str]] = {}
    for track, goal in itertools.product(get_args(Track) if "track" in known else (None,), get_args(Goal)):
        asked: dict[str, Any] = {"fakes": 2, "track": track, "goal": goal}
        asked |= {"clicks": 3} if track == "sequence" else {"budget": 3, "selected": 1}
        asked |= {"ratings": (1, 5, 1)} if track == "explicit" else {}
        asked |= {"environment": attacks.environment(registry.make("itempop"))}
        asked |= (
            {} if name == "hcars" else {"surrogate": registry.make("wrmf")}
        )  # H-CARS has a surrogate of its own
        try:
            made = ATTACKS[name](
                **{argument: value for argument, value in asked.items() if argument in known}
            )
        except (ValueError, TypeError):
            continue
        found.setdefault(made.threat.track, []).append(goal)
    return "; ".join(f"{track}: {', '.join(goals)}" for track, goals in found.items())


def defense(
    text: str,
    model: Recommender,
    grid: tuple[float, float] | None = None,
    train: Interactions | None = None,
) -> Guard:
    """A recommender behind a defense: `name[:preset or detector][,argument=value...]`.

    Args:
        text: "none", "at", "apt", "apt:ml-100k", "apt-rand", "pcmf" (in place of the model), or "filter:DETECTOR".
        model: what is defended.
        grid: largest rating and step of the data; None for clicks.
        train: data like those to come, which the defense is checked against; None: not yet.

    Raises:
        ValueError: unknown name, preset, detector or argument; a value out of its range; data that do not do.

    >>> from models.mf import mf
    >>> defense("at,epsilon=-1", mf())
    Traceback (most recent call last):
    ...
    ValueError: adversarial: epsilon=-1; expected a number of at least 0
    """
    head, *changes = pieces(text)
    name, _, what = head.partition(":")
    if head == "none" and not changes:
        return Guard(model)
    factory = DEFENSES[nearest("defense", name, DEFENSES)]
    given: dict[str, Any] = dict(_assignment(change, name, factory) for change in changes)
    if what and name in ("at", "pcmf"):
        raise ValueError(f"defense {name!r} has no presets; it was given {what!r}")
    if name == "filter":
        given["detector"] = nearest("detector", what, {**DETECTORS, **OF_RATINGS})
        found = screened(model, **given)
    elif name.startswith("apt"):
        found = Guard(_apt(name, model, what, grid, given))
    else:
        found = Guard(factory(**given) if name == "pcmf" else factory(model, **given))
    if train is not None:
        found.check(train)
        if name == "pcmf":
            ratings_only("pcmf", train)
    return found


def knowing(name: str, text: str, surrogate: Recommender, grid: tuple[float, float] | None = None) -> Guard:
    """The defense `text` around an attacker's surrogate; `known` of it is what the attack `name` optimizes against.

    Raises:
        ValueError: an attack that does not differentiate through its surrogate's training, another recommender in place
            of the surrogate, or what `defense` refuses.

    >>> from models.wrmf import wrmf
    >>> knowing("random", "at", wrmf())
    Traceback (most recent call last):
    ...
    ValueError: attack 'random' has no training that a defense could be put into; revadv, rapu-g have
    """
    if pieces(name)[0] not in KNOWING:
        raise ValueError(
            f"attack {pieces(name)[0]!r} has no training that a defense could be put into; {', '.join(KNOWING)} have"
        )
    if pieces(text)[0] == "pcmf":
        raise ValueError("pcmf is a recommender of its own, not a defense around the attacker's surrogate")
    return defense(text, surrogate, grid)


def _apt(
    name: str, model: Recommender, preset: str, grid: tuple[float, float] | None, given: dict[str, Any]
) -> apt.Defense:
    """APT on the grid of the data; a preset's bonus keeps its share of the largest rating."""
    settings: dict[str, Any] = {"grid": grid, "selection": "random" if name == "apt-rand" else "influence"}
    if preset:
        chosen = dict(apt.PRESETS[nearest("preset of apt", preset, apt.PRESETS)])
        highest = chosen.pop("grid", (5.0, 1.0))[0]
        settings |= chosen | ({} if grid is None else {"bonus": chosen["bonus"] * grid[0] / highest})
    return apt.apt(model, **{**settings, **given})


def has(text: str, argument: str) -> bool:
    """Whether the factory of an attack takes an argument.

    >>> has("random", "track"), has("revadv", "track")
    (True, False)
    """
    factory = ATTACKS[nearest("attack", pieces(text)[0], ATTACKS)]
    return argument in inspect.signature(factory).parameters


def pieces(text: str) -> list[str]:
    """A text cut at its commas, but not inside brackets or quotes.

    >>> pieces("random,ratings=(1, 5, 1),track=explicit")
    ['random', 'ratings=(1, 5, 1)', 'track=explicit']
    """
    found, depth, quote = [""], 0, ""
    for letter in text:
        quote = "" if letter == quote else (quote or (letter if letter in "'\"" else ""))
        depth += 0 if quote else (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    return found


def _assignment(text: str, owner: str, *factories: Callable[..., Any]) -> tuple[str, Any]:
    """An argument of one of the factories and its value."""
    name, equals, value = text.partition("=")
    known = list(dict.fromkeys(p for factory in factories for p in inspect.signature(factory).parameters))
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
