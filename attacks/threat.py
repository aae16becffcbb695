"""What the attacker may do: the threat model, as one validated record.

Every attack carries one. It fixes how many accounts are created, how much each may click, what for, on which kind
of data, what the attacker has to have seen and how often it may try. A comparison between two attacks is fair only
where these agree, so they are printed and stored with every result. The words (goal, knowledge, capability) are those
of the literature on injection attacks, as Tang, Wen, Wang (RecSys 2020, section 2) use them; the record is ours.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal, NamedTuple, get_args

from models.data import Profiles

Goal = Literal["promote", "demote", "availability"]
Track = Literal["implicit", "explicit", "sequence"]
Knowledge = Literal["items", "popularity", "interactions"]


class Ratings(NamedTuple):
    """The grid of ratings a profile may hold: `low`, `low + step`, ..., `high`; 0 is no rating.

    >>> Ratings(1.0, 5.0, 1.0).high
    5.0
    """

    low: float
    high: float
    step: float


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """Fake users, what each may click, goal, kind of data, knowledge, and how often the black box may be asked.

    `F = fakes` if an integer, else `F = floor(fakes * U)` accounts; at most `budget + T` clicks each, of which
    at most `budget` on items that are not targets; with `clicks`, exactly that many, of whatever items.

    Args:
        fakes: accounts the attacker creates: an integer >= 1, or a fraction of the real users in (0, 1).
        budget: non-target items a fake user may click, >= 0; `None` leaves it unbounded.
        goal: `"promote"`: bring the targets into the lists of real users; `"demote"`: take them out of there;
            `"availability"`: make the lists of real users bad, no targets.
        track: kind of feedback the attack writes: `"implicit"` clicks, `"explicit"` ratings, click `"sequence"`.
        knowledge: what the attacker has to have seen: `"items"` the catalog's ids, `"popularity"` the items'
            click counts (for ratings: their means and deviations too), `"interactions"` the training interactions (all
            or an observed part of them).
        clicks: length of a click sequence, targets and repeats included, >= 1; for the `"sequence"` track, in
            place of `budget`.
        queries: how often a black box is asked at most, >= 1: injected, updated and read once; `None`: never, the
            attack needs none.
        ratings: grid of the `"explicit"` track; `None` elsewhere.

    Raises:
        TypeError: a number is not of the stated kind.
        ValueError: a value is out of its range, not an option, or has no use on the track.

    Reference:
        Tang, Wen, Wang. Revisiting Adversarially Learned Injection Attacks Against Recommender Systems. RecSys 2020,
        section 2; click budgets: Song et al. (PoisonRec), ICDE 2020, section III.

    **Differs from the paper:** RevAdv bounds the number of fake users only; the budget per profile is ours, because
    attacks with different profile sizes cannot be compared.

    >>> ThreatModel(fakes=0.01, budget=30).count(13_149)
    131
    """

    fakes: int | float
    budget: int | None = None
    goal: Goal = "promote"
    track: Track = "implicit"
    knowledge: Knowledge = "interactions"
    clicks: int | None = None
    queries: int | None = None
    ratings: Ratings | None = None

    def __post_init__(self) -> None:
        _check_fakes(self.fakes)
        _check_integer("budget", self.budget, 0, "items a click")
        _check_integer("clicks", self.clicks, 1, "clicks of a sequence")
        _check_integer("queries", self.queries, 1, "trials of the black box")
        _check_option("goal", self.goal, get_args(Goal))
        _check_option("track", self.track, get_args(Track))
        _check_option("knowledge", self.knowledge, get_args(Knowledge))
        if (self.clicks is not None) != (self.track == "sequence"):
            raise ValueError(
                f"clicks is {self.clicks} on the {self.track!r} track; a click sequence has a length, "
                "and nothing else has"
            )
        if self.clicks is not None and self.budget is not None:
            raise ValueError("clicks and budget are given; a sequence is bounded by its clicks alone")
        object.__setattr__(self, "ratings", _check_ratings(self.track, self.ratings))

    def count(self, users: int) -> int:
        """Number of fake users `F` among `users` real ones.

        Args:
            users: number of real users `U`, >= 1.

        Returns:
            `F`, >= 1.

        Raises:
            ValueError: the fraction amounts to less than one fake user.

        >>> ThreatModel(fakes=0.03).count(943)
        28
        """
        if isinstance(self.fakes, numbers.Integral):
            return int(self.fakes)
        # 0.29 * 100 is 28.999999999999996 in binary: the nudge keeps the decimal meaning of the fraction.
        count = math.floor(self.fakes * users + 1e-9)
        if count < 1:
            raise ValueError(
                f"fakes is {self.fakes} of {users} users, which is no fake user at all; "
                f"expected at least {1 / users:.3g}, or an integer"
            )
        return count

    def validate(self, profiles: Profiles, users: int) -> Profiles:
        """Check on the host that profiles stay within this threat model, and return them.

        Args:
            profiles: what an attack made.
            users: number of real users `U`.

        Raises:
            ValueError: naming the first fake user, item and value at fault.

        >>> import numpy as np
        >>> ThreatModel(fakes=1, budget=1).validate(Profiles.from_rows(np.eye(1, 3), targets=[0]), users=9)
        Profiles(1 fakes x 3 items, implicit, rows)
        """
        if profiles.track != self.track:
            raise ValueError(f"profiles of track {profiles.track!r}; expected {self.track!r}")
        scale = None if self.ratings is None else (self.ratings.low, self.ratings.high)
        return profiles.validate(
            budget=self.budget, clicks=self.clicks, fakes=self.count(users), ratings=scale
        )


def _check_fakes(fakes: Any) -> None:
    if isinstance(fakes, bool) or not isinstance(fakes, numbers.Real):
        raise TypeError(f"fakes is {fakes!r}; expected an integer >= 1 or a fraction of the users in (0, 1)")
    if isinstance(fakes, numbers.Integral):
        if fakes < 1:
            raise ValueError(f"fakes is {fakes}; expected at least 1 fake user")
    elif not 0 < float(fakes) < 1:
        raise ValueError(
            f"fakes is {fakes}; a float is a fraction of the users and must lie in (0, 1); "
            "give a number of fake users as an integer"
        )


def _check_integer(name: str, value: Any, low: int, unit: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}; expected an integer >= {low} ({unit}) or None")
    if value < low:
        raise ValueError(f"{name} is {value}; expected >= {low}, or None for no bound")


def _check_option(name: str, given: object, options: tuple[str, ...]) -> None:
    if given not in options:
        raise ValueError(f"{name} is {given!r}; expected one of {', '.join(map(repr, options))}")


def fixed(name: str, budget: int | None) -> int:
    """The budget of an attack that clicks exactly so many items beside its targets.

    Raises:
        ValueError: None, which bounds nothing.

    >>> fixed("pga", None)
    Traceback (most recent call last):
    ...
    ValueError: budget is None, but pga needs budget, the number of filler items of a fake user: give an integer
    """
    if budget is None:
        raise ValueError(
            f"budget is None, but {name} needs budget, the number of filler items of a fake user: give an integer"
        )
    return budget


def as_ratings(ratings: Any) -> Ratings:
    """Three numbers as the grid of the ratings.

    Raises:
        ValueError: not three numbers.

    >>> as_ratings((1, 5, 0.5))
    Ratings(low=1.0, high=5.0, step=0.5)
    """
    try:
        low, high, step = map(float, ratings)
    except (TypeError, ValueError) as problem:
        raise ValueError(
            f"ratings is {ratings!r}; expected (low, high, step), such as (1, 5, 1)"
        ) from problem
    return Ratings(low, high, step)


def _check_ratings(track: str, ratings: Any) -> Ratings | None:
    if ratings is None:
        if track == "explicit":
            raise ValueError("the explicit track needs ratings=(low, high, step), such as (1, 5, 1)")
        return None
    if track != "explicit":
        raise ValueError(f"ratings is {ratings!r}, but the {track!r} track has no ratings; leave it out")
    found = as_ratings(ratings)
    steps = (found.high - found.low) / found.step if found.step > 0 else math.nan
    if not (0 < found.low <= found.high and math.isfinite(steps) and abs(steps - round(steps)) < 1e-6):
        raise ValueError(
            f"ratings is {tuple(found)}; expected (low, high, step) with 0 < low <= high, a whole number of steps apart"
        )
    return found
