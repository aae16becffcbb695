"""Attacks of one track, asked for another: they say why not and who does, where Python would name an argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from attacks.attack import Attack

Arguments = ParamSpec("Arguments")
ELSEWHERE = {"explicit": "pga and tna learn ratings", "sequence": "poisonrec and appgrad learn sequences"}


def clicks_only(why: str) -> Callable[[Callable[Arguments, Attack]], Callable[Arguments, Attack]]:
    """Make a factory of the `"implicit"` track answer to `track=`, which is no argument of it.

    Args:
        why: what ties it to clicks without order.

    Returns:
        A decorator. Asked for `"implicit"` the factory makes what it makes without being asked; its signature and the
        configuration of its attacks stay as they are.

    Raises:
        ValueError: from the factory, asked for another track.

    >>> from attacks.threat import ThreatModel
    >>> make = clicks_only("it flips clicks")(lambda fakes: ThreatModel(fakes))
    >>> make(3, track="sequence")
    Traceback (most recent call last):
    ...
    ValueError: track is 'sequence', but it flips clicks: expected 'implicit'; poisonrec and appgrad learn sequences
    """

    def answering(factory: Callable[Arguments, Attack]) -> Callable[Arguments, Attack]:
        @functools.wraps(factory)
        def made(*given: Arguments.args, **named: Arguments.kwargs) -> Attack:
            track = named.pop("track", "implicit")
            if track != "implicit":
                others = f"; {ELSEWHERE[str(track)]}" if track in ELSEWHERE else ""
                raise ValueError(f"track is {track!r}, but {why}: expected 'implicit'{others}")
            return factory(*given, **named)

        return made

    return answering
