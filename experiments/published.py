"""The numbers that the papers print, to stand beside ours: facts, read from `published.json` and never typed in."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


def published(*path: str) -> Any:
    """What stands at a path of the file: paper, table, and its keys in order.

    Raises:
        KeyError: nothing there; says what is there instead.

    >>> published("rapu", "table2", "values", "MovieLens", "WRMF", "None", "3%")
    0.0541
    """
    found = _tables()
    for depth, name in enumerate(path):
        if name not in found:
            raise KeyError(
                f"published: no {name!r} at {'/'.join(path[:depth])}; there is: {', '.join(found)}"
            )
        found = found[name]
    return found


@functools.lru_cache
def _tables() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "published.json").read_text())
