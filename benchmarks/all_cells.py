"""The two forms of the all-cell squared loss against each other: the table behind `models.cells.pick`.

    python benchmarks/all_cells.py              # under 2 minutes on two quiet cores, 4 GB
    python benchmarks/all_cells.py --small      # the first two sizes

One gradient of `models.cells.loss` at the sizes of the papers, on clicks of that size and shape
(`models.data.synthetic.zipf`): dense, observed, and the plain gather + segment_sum that the observed form replaces.
Each number is the least of several runs taken in turn. CPU time counts all threads; other processes move it less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from models import cells
from models.data.synthetic import zipf

SIZES = (  # users, items, density, factors, rounds
    (1000, 300, 0.125, 16, 50),
    (943, 1682, 0.063, 64, 30),
    (6040, 3706, 0.045, 64, 5),
    (13149, 14007, 0.0029, 128, 3),
)
WEIGHT = 20.0


def gather_and_scatter(A: Any, B: Any, user: Any, item: Any) -> tuple[Any, Any]:
    """The gradient of the observed form as one writes it first: three (E, D) temporaries and two scatters."""
    a, b = A[user], B[item]
    c = 2 * ((WEIGHT - 1) * jnp.sum(a * b, 1) - WEIGHT)[:, None]
    to_users = jax.ops.segment_sum(c * b, user, A.shape[0])
    return 2 * A @ (B.T @ B) + to_users, 2 * B @ (A.T @ A) + jax.ops.segment_sum(c * a, item, B.shape[0])


def measure(runs: dict[str, tuple[Callable, tuple]], rounds: int) -> dict[str, list[float]]:
    """Least wall and CPU milliseconds of each compiled function over interleaved rounds, and its temporaries in MiB."""
    compiled = {name: (jax.jit(f).lower(*args).compile(), args) for name, (f, args) in runs.items()}
    best = {name: [float("inf"), float("inf")] for name in runs}
    for _ in range(rounds + 1):  # the first touches the memory
        for name, (f, args) in compiled.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(f(*args))
            spent = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = [min(old, 1e3 * new) for old, new in zip(best[name], spent)]
    analyses = {
        name: f.memory_analysis() for name, (f, _) in compiled.items()
    }  # None where a backend has none
    return {
        name: [*best[name], a.temp_size_in_bytes / 2**20 if a else float("nan")]
        for name, a in analyses.items()
    }


def main(small: bool = False) -> None:
    """Print the table.

    Args:
        small: only the toy and MovieLens-100K sizes.
    """
    gradient = jax.grad(lambda A, B, made: cells.loss(A, B, made, WEIGHT), (0, 1))
    print("| rows x cols, D | full | form | wall ms | CPU ms | temporaries MiB | picked |")
    print("|---|---|---|---|---|---|---|")
    for users, items, density, factors, rounds in SIZES[: 2 if small else None]:
        train = zipf(0, users=users, items=items, density=density)
        keys = jax.random.split(jax.random.key(0))
        A, B = (0.1 * jax.random.normal(key, (n, factors)) for key, n in zip(keys, (users, items)))
        forms = ("dense", "observed")
        runs: dict[str, tuple[Callable, tuple]] = {
            form: (gradient, (A, B, cells.build(train, form=form))) for form in forms
        }
        runs["gather + segment_sum"] = (gather_and_scatter, (A, B, train.user, train.item))
        picked = cells.pick(users, items, train.capacity)
        for form, (wall, cpu, memory) in measure(runs, rounds).items():
            mark = "yes" if form == picked else ""
            size = f"{users} x {items}, {factors} | {density:.1%}"
            print(f"| {size} | {form} | {wall:.2f} | {cpu:.2f} | {memory:.1f} | {mark} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
