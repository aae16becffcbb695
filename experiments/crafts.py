"""Fake users that took long to make: crafted once, kept in a folder, judged against many victims.

A record says what came out; the profiles themselves are larger and can be made again, so they lie under `runs/`, which
is not committed. A craft that was killed goes on from its last snapshot.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Int, Key

import attacks
from attacks.attack import Attack
from attacks.driver import describe
from bilevel.atomic import plain
from models.data import Interactions, Profiles

FOLDER = Path(__file__).resolve().parents[1] / "runs" / "crafts"


def crafted(
    spec: Mapping[str, Any],
    attack: Attack,
    key: Key[Array, ""],
    train: Interactions,
    targets: Int[ArrayLike, " T"],
    *,
    test: Interactions | None = None,
    folder: Path = FOLDER,
) -> tuple[Profiles, dict[str, Any]]:
    """The profiles of a craft and its facts (`craft_seconds`, `history`), from the folder if they are there.

    Args:
        spec: what tells this craft apart besides the attack: data, seed, targets' name.
        attack, key, train, targets, test: as in `attacks.run`.
        folder: where crafts lie.

    Returns:
        Hard profiles, and facts in terms of JSON.

    >>> import jax, tempfile
    >>> train, attack = Interactions.from_dense(np.eye(4, 6)), attacks.random(fakes=2, budget=3)
    >>> where = Path(tempfile.mkdtemp())
    >>> first, _ = crafted({"seed": 0}, attack, jax.random.key(0), train, np.array([5]), folder=where)
    >>> again, _ = crafted({"seed": 0}, attack, jax.random.key(1), train, np.array([5]), folder=where)
    >>> bool((first.to_rows() == again.to_rows()).all())
    True
    """
    facts = plain({"spec": dict(spec), "attack": {**describe(attack), "steps": attack.steps}})
    name = hashlib.sha256(json.dumps(facts, sort_keys=True, default=_fingerprint).encode()).hexdigest()[:16]
    path = folder / f"{name}.npz"
    if path.exists():
        profiles, meta = Profiles.load(path)
        return profiles, meta["facts"]
    folder.mkdir(parents=True, exist_ok=True)
    done = attacks.run(attack, key, train, targets, test=test, store=folder / name)
    said = {
        "craft_seconds": done.seconds,  # of all processes that worked at it
        "history": {metric: _known(values) for metric, values in done.history.items()},
    }
    done.profiles.save(path, {"facts": said})
    return done.profiles, said


def _known(values: ArrayLike) -> list[float | None]:
    """A history in terms of JSON, which knows no NaN (a metric that had nothing to look at)."""
    return [value if math.isfinite(value) else None for value in np.asarray(values, float).tolist()]


def _fingerprint(value: Any) -> str:
    """Arrays among an attack's arguments by what they hold."""
    return hashlib.sha256(np.ascontiguousarray(np.asarray(value)).tobytes()).hexdigest()
