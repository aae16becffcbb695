"""A measurement in a process of its own, on one core and one thread, and the clicks it is made on.

The process is the script itself, called with `--worker TASK CORE`; it prints its result as the last line, as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SIZES = {
    "ml-100k": (943, 1682, 100_000),
    "ml-1m": (6040, 3706, 1_000_209),
    "gowalla": (13_149, 14_007, 535_610),
}
FOLDERS = {"gowalla": "gowalla-15core"}


@dataclass
class Options:
    """What every benchmark of measurements apart has."""

    core: int = 0
    """the core that every measurement is pinned to, where the system can; -1: none"""
    minutes: float = 4.0
    """a measurement that takes longer is ended, and said to be"""
    again: bool = False
    """measure again what has a row"""
    report_only: bool = False
    """measure nothing; table and picture of the rows there are"""
    out: Path = HERE / "results"
    """folder of the rows (JSON) and the picture (PNG)"""


def worker(script: str, task: dict[str, Any], core: int, seconds: float) -> dict[str, Any]:
    """Run a measurement in a process of its own."""
    # -P: the project root before this folder, so that `attacks` is the package and not the attacks.py beside this file
    command = [sys.executable, "-P", str(HERE / script), "--worker", json.dumps(task), str(core)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not measured: took more than {seconds / 60:g} minutes"}
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"error": said[-1][:300] if said else "killed"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(
    script: str,
    path: Path,
    tasks: list[dict[str, Any]],
    options: Options,
    *,
    note: Callable[[dict[str, Any], list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """The rows of a file, with those of tasks that have none measured (or an error; all of them with `options.again`).

    `note(row, rows)` is called after each, to say and to write it.
    """
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        have = next((row for row in rows if row["task"] == task), None)
        if have is not None and "error" not in have and not options.again:
            continue
        row = {"task": task, **worker(script, task, options.core, 60 * options.minutes), "load": load()}
        rows = [row if other is have else other for other in rows] + ([row] if have is None else [])
        note(row, rows)
    return rows


def pin(core: int) -> tuple[Callable[[], float], str]:
    """Stay on one core where the system lets a process choose; the clock to use, and its name."""
    if core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})  # inherited by what this process starts
        return time.process_time, "cpu"
    return time.perf_counter, "wall"


def events_of(task: dict[str, Any], track: str) -> tuple[Any, str]:
    """The clicks of a size: the real data set where it is at hand, else drawn with its size."""
    from models.data import dataset

    users, items, events = SIZES[task["size"]] if "size" in task else grown(task["events"])
    if "size" in task:
        try:
            found = dataset(FOLDERS.get(task["size"], task["size"]))
        except (FileNotFoundError, ImportError):
            found = None
        if found is not None:
            return of_track(found.interactions, track), "real"
    return of_track(drawn(users, items, events), track), "drawn"


def drawn(users: int, items: int, events: int) -> Any:
    """About so many clicks, with a long tail of items."""
    from models.data import Interactions

    rng = np.random.default_rng(0)
    popularity = 1 / (10 + np.arange(items)) ** 0.8
    user = rng.integers(0, users, int(1.15 * events))
    item = rng.choice(items, int(1.15 * events), p=popularity / popularity.sum())
    pair = np.unique(user.astype(np.int64) * items + item)
    pair = rng.permutation(pair)[:events] if len(pair) > events else pair
    return Interactions.from_arrays(pair // items, pair % items, users=users, items=items)


def grown(events: int) -> tuple[int, int, int]:
    """Users and items that grow with the events, 100 events a user and a catalog of a tenth of the users + 1,000."""
    return events // 100, 1000 + events // 1000, events


def of_track(data: Any, track: str) -> Any:
    """The same events as clicks, ratings or a sequence."""
    from models.data import Interactions

    real = data.real()
    user, item = np.asarray(data.user)[real], np.asarray(data.item)[real]
    sizes = {"users": data.users, "items": data.items}
    if track == "explicit":
        stars = np.asarray(data.weight)[real] if data.track == "explicit" else 1.0 + (user + item) % 5
        return Interactions.from_arrays(user, item, stars, **sizes, track="explicit")
    time_ = None if data.time is None else np.asarray(data.time)[real]
    if track == "sequence":
        return Interactions.from_arrays(
            user, item, None, np.arange(len(user)) if time_ is None else time_, **sizes, track="sequence"
        )
    return Interactions.from_arrays(user, item, None, time_, **sizes)


# ------------------------------------------------------------------------------------------------ the machine


def machine() -> dict[str, Any]:
    """The machine in general words, and the versions: no host name, no paths."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "numpy")}
    kind = f"{platform.system()} {platform.machine()}"
    return {"system": kind, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def load() -> float:
    """Runnable processes over the last minute (NaN where the system does not say)."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else math.nan
