"""The data set that a command line names, and how scripts begin and end.

Nothing here imports JAX, so that a script can choose the device first and `--help` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from models.data import Dataset

OPTIONS = {
    "user": "user_column",
    "item": "item_column",
    "rating": "rating_column",
    "time": "time_column",
    "sep": "separator",
    "threshold": "positive_from",
}
"""Arguments of `models.data.load` and what they are called here."""


@dataclass
class Reading:
    """Options that say what is read; the scripts' own options follow them."""

    data: str = "ml-100k"
    """a name such as ml-100k, or a file (MovieLens u.data, RecBole .inter, CSV, TSV, also .gz)"""
    user_column: str | None = None
    """name of the file's user column, if it is not found by its usual names"""
    item_column: str | None = None
    """name of the item column"""
    rating_column: str | None = None
    """name of the rating column"""
    time_column: str | None = None
    """name of the time column"""
    separator: str | None = None
    """column separator, if it is not to be detected"""
    positive_from: float | None = None
    """ratings of at least this are clicks; default: every rating is one"""
    track: Literal["implicit", "explicit", "sequence"] = "implicit"
    """implicit: clicks, ratings become some; explicit: ratings; sequence: clicks in the order of time"""

    def given(self) -> dict[str, Any]:
        """Arguments of `models.data.load` that were given."""
        named = {argument: getattr(self, option) for argument, option in OPTIONS.items()}
        return {argument: value for argument, value in named.items() if value is not None}

    def read(self) -> Dataset:
        """The data set, on the track that was asked for.

        Raises:
            ValueError: unknown data, a broken file, or data that do not have the track; in terms of the options.
        """
        from models.data import load

        if self.data == "toy" and not Path("toy").exists():
            raise ValueError(
                "--data toy: it is made on the spot by run_attack.py alone; give a name such as ml-100k, or a file"
            )
        given: dict[str, Any] = self.given() | ({} if self.track == "implicit" else {"track": self.track})
        try:
            found = load(self.data, **given)
        except ValueError as problem:
            raise ValueError(in_options(str(problem))) from problem
        if self.track == "implicit" and found.interactions.track == "explicit":
            return found.binarize("all")
        if found.interactions.track != self.track:
            raise ValueError(
                f"--track {self.track}: {self.data} has {found.interactions.track} data only; "
                + ("give a file with ratings" if self.track == "explicit" else "leave --track out")
            )
        return found


def in_options(text: str) -> str:
    """A message of `models.data.load` with its arguments as options.

    >>> in_options("no users in threshold=9: pass user=... or threshold= to make clicks")
    'no users in --positive-from=9: pass --user-column or --positive-from to make clicks'
    """
    pattern = rf"\b({'|'.join(OPTIONS)})=(\.\.\.|(?=[\s).,;]|$))?"
    named = lambda found: "--" + OPTIONS[found[1]].replace("_", "-") + ("=" if found[2] is None else "")
    return re.sub(pattern, named, text)


def grid_of(data: Dataset) -> tuple[float, float, float]:
    """The grid of the ratings in the data: lowest, highest, and the smallest step between two."""
    import numpy as np

    events = data.interactions
    levels = np.unique(np.asarray(events.weight)[events.real()])
    step = float(np.diff(levels).min()) if len(levels) > 1 else float(levels[0])
    return float(levels[0]), float(levels[-1]), step


def fakes_of(value: float | None) -> int | float | None:
    """A number of fake users, or a fraction of the real ones.

    Raises:
        ValueError: neither.

    >>> fakes_of(3.0), fakes_of(0.5), fakes_of(None)
    (3, 0.5, None)
    """
    if value is None or 0 < value < 1:
        return value
    if value != int(value) or value < 1:
        raise ValueError(
            f"--fakes {value}: expected a whole number of fake users, or a fraction between 0 and 1"
        )
    return int(value)


def choose_device(device: str) -> None:
    """Make JAX use one kind of device; before it is imported."""
    if device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(device, device)


def teller(quiet: bool) -> Callable[[str], None]:
    """What a script tells while it runs: a line on standard error, or nothing."""
    return (lambda text: None) if quiet else (lambda text: sys.stderr.writelines((text, "\n")))


@contextmanager
def plainly(script: str) -> Iterator[None]:
    """Mistakes of whoever gave the options end a script with one line instead of a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as problem:
        sys.exit(f"{script}: {problem}")
