"""Attacks of one track, asked for another: they say why not and who does, where Python would name an argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from models.data.interactions import Track

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")
ELSEWHERE = {
    "implicit": "revadv, rapu_g, rapu_r, pga and srwa learn clicks without order",
    "explicit": "pga and tna learn ratings",
    "sequence": "poisonrec and appgrad learn sequences",
}


def one_track(own: Track, why: str) -> Callable[[Callable[Arguments, Made]], Callable[Arguments, Made]]:
    """Make a factory of one track answer to `track=`, which is no argument of it.

    Args:
        own: `"implicit"`, `"explicit"` or `"sequence"`, the track of its profiles.
        why: what ties it to that track.

    Returns:
        A decorator. Asked for its own track the factory makes what it makes without being asked; its signature and the
        configuration of its attacks stay as they are.

    Raises:
        ValueError: from the factory, asked for another track.

    >>> from attacks.threat import ThreatModel
    >>> make = one_track("implicit", "it flips clicks")(lambda fakes: ThreatModel(fakes))
    >>> make(3, track="sequence")
    Traceback (most recent call last):
    ...
    ValueError: track is 'sequence', but it flips clicks: expected 'implicit'; poisonrec and appgrad learn sequences
    """

    def answering(factory: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
        @functools.wraps(factory)
        def made(*given: Arguments.args, **named: Arguments.kwargs) -> Made:
            track = named.pop("track", own)
            if track != own:
                others = f"; {ELSEWHERE[str(track)]}" if track in ELSEWHERE else ""
                raise ValueError(f"track is {track!r}, but {why}: expected {own!r}{others}")
            return factory(*given, **named)

        return made

    return answering
