"""The whole toy attack (RevAdv, 50 outer steps) as shipped, against the same attack through `higher`.

Ours trains, differentiates, scores target and test hit ratio once an outer step, and updates, in one compiled program.
The peer does what the official notebook does, and is also run without its evaluation at every inner step.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import wrmf_problem
from peers import client

import attacks
from models.data.interactions import Interactions

OUTER = 50


def ours(problem: wrmf_problem.Problem) -> dict[str, Any]:
    """Seconds of one `jax.jit(attack.trace)`, and of its compilation apart from that; best target HR@10."""
    users, items = problem.X.shape
    held_out = np.zeros((users, items), np.float32)
    held_out[np.arange(users), problem.test] = 1
    changes = {"factors": problem.Q0.shape[1], "epochs": problem.steps}
    attack = attacks.revadv_preset("toy", surrogate=changes, fakes=len(problem.fake), steps=OUTER)
    train, test = Interactions.from_dense(problem.X.astype(np.float32)), Interactions.from_dense(held_out)
    inputs = (jax.random.key(0), train, jnp.asarray(problem.targets), test, jnp.asarray(problem.fake))

    def trace(key, train, targets, test, rows):
        return attack.trace(key, train, targets, test=test, initial=rows)

    start = time.perf_counter(), time.process_time()
    compiled = jax.jit(trace).lower(*inputs).compile()
    compile_seconds = time.perf_counter() - start[0]
    begun = time.perf_counter()
    _, history = jax.block_until_ready(compiled(*inputs))
    return {
        "outer_steps": OUTER,
        "seconds": time.perf_counter() - begun,
        "compile_seconds": compile_seconds,
        "cpu_seconds": time.process_time() - start[1],  # compilation included
        "first_target_hr": float(history["target_hr"][0]),
        "best_target_hr": float(history["target_hr"].max()),
    }


def measure(path: Path, python: Path | None, measured: int) -> dict[str, Any]:
    """Ours, and where there are peers theirs with and without the inner evaluations, from one problem file."""
    found: dict[str, Any] = {"ours": ours(wrmf_problem.load(path))}
    if python is None:
        return found
    count = ("--outer", str(OUTER), "--measured", str(measured))
    for name, more in (("higher", ()), ("higher_without_evaluation", ("--no-inner-evaluation",))):
        result = client.call(python, "attack", path, *count, *more, timeout=3600)
        hits = [entry["hr_target"] for entry in result.pop("history")]
        found[name] = result | {"first_target_hr": hits[0], "best_target_hr": max(hits)}
    return found
