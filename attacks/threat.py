"""What the attacker may do: the threat model, as one validated record.

Every attack carries one. It fixes how many accounts are created, how much each may click, what for, on which kind
of data and what the attacker has to have seen. A comparison between two attacks is fair only where these agree, so
they are printed and stored with every result. The words (goal, knowledge, capability) are those of the literature on
injection attacks, as Tang, Wen, Wang (RecSys 2020, section 2) use them; the record is ours.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal, get_args

Goal = Literal["promote"]
Track = Literal["implicit", "explicit", "sequence"]
Knowledge = Literal["items", "popularity", "interactions"]


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """Number of fake users, clicks each may spend, goal, kind of data and knowledge.

    `F = fakes` if an integer, else `F = floor(fakes * U)` accounts; at most `budget + T` clicks each, of which
    at most `budget` on items that are not targets.

    Args:
        fakes: accounts the attacker creates: an integer >= 1, or a fraction of the real users in (0, 1).
        budget: non-target items a fake user may click, >= 0; `None` leaves it unbounded.
        goal: `"promote"`: bring the targets into the lists of real users.
        track: kind of feedback the attack writes: `"implicit"` clicks, `"explicit"` ratings, click `"sequence"`.
        knowledge: what the attacker has to have seen: `"items"` the catalog's ids, `"popularity"` the items'
            click counts, `"interactions"` the training interactions (all or an observed part of them).

    Raises:
        TypeError: `fakes` or `budget` is not a number of the stated kind.
        ValueError: a value is out of its range or not an option.

    Reference:
        Tang, Wen, Wang. Revisiting Adversarially Learned Injection Attacks Against Recommender Systems. RecSys 2020,
        section 2.

    **Differs from the paper:** the paper bounds the number of fake users only; the budget per profile is ours, because
    attacks with different profile sizes cannot be compared. Demotion ("nuke") is not offered.

    >>> ThreatModel(fakes=0.01, budget=30).count(13_149)
    131
    """

    fakes: int | float
    budget: int | None = None
    goal: Goal = "promote"
    track: Track = "implicit"
    knowledge: Knowledge = "interactions"

    def __post_init__(self) -> None:
        _check_fakes(self.fakes)
        if self.budget is not None:
            if isinstance(self.budget, bool) or not isinstance(self.budget, numbers.Integral):
                raise TypeError(
                    f"budget is {self.budget!r}; expected an integer >= 0 (items a click) or None"
                )
            if self.budget < 0:
                raise ValueError(f"budget is {self.budget}; expected >= 0, or None for no bound")
        _check_option("goal", self.goal, get_args(Goal))
        _check_option("track", self.track, get_args(Track))
        _check_option("knowledge", self.knowledge, get_args(Knowledge))

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


def _check_option(name: str, given: object, options: tuple[str, ...]) -> None:
    if given not in options:
        raise ValueError(f"{name} is {given!r}; expected one of {', '.join(map(repr, options))}")
