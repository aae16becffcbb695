"""What the heuristic attacks have in common: from a rule to an attack.

A rule says which items are fillers (`attacks.fillers`), how they are rated where there are ratings
(`attacks.rating`), and in which order they are clicked where there is an order (`attacks.sequences`). Nothing
is learned, so an attack by a rule has no outer steps. What a rule has no form of, it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attacks.attack import Attack
from attacks.fillers import Fillers
from attacks.rating import RatingRule, draw_ratings, item_statistics, rate
from attacks.sequences import TargetMode, alternate, shuffled, target_clicks
from attacks.threat import Goal, Knowledge, Ratings, ThreatModel, Track, as_ratings, fixed
from models.data import Interactions, Profiles

Grid = Ratings | tuple[float, float, float]
# (key, train, targets, fakes, budget, target_mode) -> Fillers
Pick = Callable[[Key[Array, ""], Interactions, Int[Array, " T"], int, int, TargetMode], Fillers]
# (key, train, targets, fakes, clicks, target_mode) -> item of every step
Order = Callable[[Key[Array, ""], Interactions, Int[Array, " T"], int, int, TargetMode], Int[Array, "F C"]]


class Rule(NamedTuple):
    """A heuristic attack before its threat model.

    Args:
        name: what tables call it.
        knowledge: what it has to have seen of clicks; of ratings it needs their statistics at least.
        pick: chooses the fillers of rows; `None`: the rule is for sequences only.
        order: chooses the clicks of a sequence; `None`: a target and the fillers of `pick` in turn.
        selected, others: how the items the rule names and the random ones are rated.
        availability: whether it makes sense without targets, in rows.
        refused: tracks it has no form of, with the reason and what to use instead.
    """

    name: str
    knowledge: Knowledge
    pick: Pick | None = None
    order: Order | None = None
    selected: RatingRule = "max"
    others: RatingRule = "global"
    availability: bool = False
    refused: Mapping[str, str] = {}


class _State(NamedTuple):
    made: Float[Array, "F I"] | Int[Array, "F C"]


def build(
    rule: Rule,
    *,
    fakes: int | float,
    budget: int | None,
    clicks: int | None,
    target_mode: TargetMode,
    track: Track,
    goal: Goal,
    ratings: Grid | None,
    **more: Any,
) -> Attack:
    """An attack from a rule and its threat model.

    Args:
        rule: which items, ratings and order.
        fakes, budget, clicks, target_mode, track, goal, ratings: as in `attacks.random`.
        more: further arguments of the factory, for the record; `None` is left out.

    Returns:
        An attack without outer steps.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range or without a use; a track or a
        goal the
            rule does not serve.
    """
    if target_mode not in get_args(TargetMode):
        raise ValueError(f"target_mode is {target_mode!r}; expected 'all' or 'split'")
    if track in rule.refused:
        raise ValueError(f"track is {track!r}, but {rule.name} {rule.refused[track]}")
    if track != "sequence":
        budget = fixed(rule.name, budget)
    knowledge = "popularity" if track == "explicit" and rule.knowledge == "items" else rule.knowledge
    threat = ThreatModel(
        fakes=fakes,
        budget=budget,
        goal=goal,
        track=track,
        knowledge=knowledge,
        clicks=clicks,
        ratings=None if ratings is None else as_ratings(ratings),
    )
    _check_goal(rule, track, goal, target_mode)
    make = _ordered if track == "sequence" else _rated if track == "explicit" else _clicked

    def init(key, train: Interactions, targets: Int[Array, " T"], initial=None) -> _State:
        return _State(make(key, train, targets, rule=rule, threat=threat, mode=target_mode))

    def step(state: _State, train: Interactions, targets: Int[Array, " T"], test=None):
        return state, {}

    def finish(state: _State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        if budget is None:
            return Profiles.from_clicks(state.made, targets, items=train.items)
        every = target_mode == "all"
        width = budget + (targets.size if every else 1)
        promised = every and targets.size > 0
        return Profiles.from_rows(
            state.made, targets, track=track, clicks_targets=promised, width=min(width, train.items)
        )

    # What has no use on a track or is what everybody expects is left out: a configuration has to fit on a line.
    named = {"clicks": clicks, "goal": None if goal == "promote" else goal, "ratings": threat.ratings} | more
    config = {"fakes": fakes, "budget": budget, "target_mode": target_mode, "track": track} | named
    config = {name: value for name, value in config.items() if value is not None}
    return Attack(rule.name, config, threat, 0, init, step, finish)


def _check_goal(rule: Rule, track: Track, goal: Goal, mode: TargetMode) -> None:
    if goal == "demote" and track != "explicit":
        learned = "attacks.revadv" if track == "implicit" else "attacks.poisonrec and attacks.appgrad"
        raise ValueError(
            f"goal is 'demote', but {rule.name} on the {track!r} track clicks the targets, which promotes them. Low "
            "ratings demote: track='explicit', as of attacks.random. Of clicks only learned attacks can, by promoting "
            f"what competes with the targets: {learned}"
        )
    if goal != "availability":
        return
    if not rule.availability or track == "sequence":
        raise ValueError(
            f"goal is 'availability', but {rule.name} is built around its targets on the {track!r} track; profiles of "
            "noise without targets are attacks.random on the 'implicit' or 'explicit' track and attacks.average on the "
            "'explicit' one, a learned attack is attacks.revadv"
        )
    if mode == "split":
        raise ValueError("target_mode is 'split', but an attack on availability has no targets to share out")


def check_share(name: str, value: object, *, zero: bool = False) -> None:
    """Refuse what is not a share in (0, 1], or in [0, 1] with `zero`.

    Raises:
        TypeError, ValueError: what was given and what was expected.
    """
    expected = f"a share in {'[' if zero else '('}0, 1]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    if not (0 <= value <= 1 and (zero or value > 0)):
        raise ValueError(f"{name} is {value}; expected {expected}")


def check_count(name: str, value: object, low: int) -> None:
    """Refuse what is not an integer >= `low`.

    Raises:
        TypeError, ValueError: what was given and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; expected an integer >= {low}")
    if value < low:
        raise ValueError(f"{name} is {value}; expected >= {low}")


# ------------------------------------------------------------------------------------------------ profiles


def _clicked(key, train: Interactions, targets, *, rule: Rule, threat: ThreatModel, mode: TargetMode):
    """Rows of 0 and 1."""
    fakes = threat.count(train.users)
    return _with_targets(_fillers(key, train, targets, rule, threat, mode).clicked, targets, fakes, mode)


def _rated(key, train: Interactions, targets, *, rule: Rule, threat: ThreatModel, mode: TargetMode):
    """Rows of ratings."""
    grid, fakes = threat.ratings, threat.count(train.users)
    assert grid is not None  # ThreatModel has seen to it
    which, named, random = jax.random.split(key, 3)
    fillers = _fillers(which, train, targets, rule, threat, mode)
    known = item_statistics(train)
    given = draw_ratings(random, known, fakes, grid, rule=rule.others)
    if rule.selected != rule.others:
        best = draw_ratings(named, known, fakes, grid, rule=rule.selected)
        given = jnp.where(fillers.selected > 0, best, given)
    clicks = _with_targets(fillers.clicked, targets, fakes, mode)
    return rate(clicks, given, targets, goal=threat.goal, ratings=grid)


def _ordered(key, train: Interactions, targets, *, rule: Rule, threat: ThreatModel, mode: TargetMode):
    """Sequences of clicks."""
    clicks, fakes = threat.clicks, threat.count(train.users)
    assert clicks is not None  # ThreatModel has seen to it
    others = train.items - targets.size
    if others < 1:
        raise ValueError(
            f"all {train.items} items are targets; a sequence of {rule.name} needs an item that is not"
        )
    if rule.order is not None:
        return rule.order(key, train, targets, fakes, clicks, mode)
    assert rule.pick is not None  # a rule has one of the two
    which, place, target = jax.random.split(key, 3)
    slots = max(1, clicks // 2)
    distinct = min(slots, others)
    chosen = rule.pick(which, train, targets, fakes, distinct, mode).clicked
    between = shuffled(place, chosen, distinct, slots)
    return alternate(target_clicks(target, targets, fakes, clicks, mode), between)


def _fillers(key, train: Interactions, targets, rule: Rule, threat: ThreatModel, mode: TargetMode) -> Fillers:
    assert rule.pick is not None  # rules without rows refuse the track
    assert threat.budget is not None
    return rule.pick(key, train, targets, threat.count(train.users), threat.budget, mode)


def _with_targets(
    fillers: Float[Array, "F I"], targets: Int[Array, " T"], fakes: int, mode: TargetMode
) -> Float[Array, "F I"]:
    """Every target (`"all"`), or target `f mod T` (`"split"`), clicked beside the fillers."""
    if mode == "all":
        return fillers.at[:, targets].set(1)
    own = targets[jnp.arange(fakes) % targets.size]
    return fillers.at[jnp.arange(fakes), own].set(1)
