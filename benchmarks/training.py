"""Seconds of an epoch and peak memory of every recommender, beside `implicit` and RecBole, and how cost grows.

    python benchmarks/training.py --quick                 # ML-100K size and growth to 1e6, without RecBole
    python benchmarks/training.py --peers                 # everything; goes on where it was stopped
    python benchmarks/training.py --models wrmf als --sizes gowalla --no-growth --again

Every measurement runs in a process of its own, on one core and one thread, ours and the peers' alike: where the system
lets a process choose (`taskset` in words of a shell), all are pinned to `--core`. Seconds are then CPU seconds, which a
busy machine hardly moves; elsewhere they are wall seconds. The output says which. Compilation is told apart, and peak
memory is the process's. An epoch of more than a few seconds is measured on some of its steps and scaled, on both sides.

With `BILEVEL_DATA` the sizes are the real data sets; without it clicks of the same size are drawn, and the output says
so. RecBole runs in its own environment (see models/recbole.py). Rows are written as they come; what is there is not
measured again without `--again`.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import apart
import training_report
import tyro

HERE = Path(__file__).resolve().parent
MODELS: dict[str, str] = {
    "wrmf": "revadv-gowalla",
    "als": "revadv-gowalla",
    "bpr": "recbole",
    "neumf": "recbole",
    "lightgcn": "recbole",
    "ngcf": "recbole",
    "multvae": "original",
    "itemae": "revadv-gowalla",
    "gmf": "rapu-ml",
    "cml": "revadv",
    "pmf": "poisonrec",
    "autorec": "poisonrec",
    "mf": "apt-ml-100k",
    "gru4rec": "poisonrec",
    "ncr": "original",
    "itemcf": "",
    "covisitation": "",
}
TRACKS = {"mf": "explicit", "gru4rec": "sequence", "covisitation": "sequence"}
RECBOLE = {"bpr": "BPR", "neumf": "NeuMF", "lightgcn": "LightGCN", "ngcf": "NGCF", "multvae": "MultiVAE"}
IMPLICIT = ("als", "als-cg", "bpr")
GROWTH = {"wrmf": 1, "als": 0, "bpr": 50, "lightgcn": 4}
"""Models whose growth is measured, and into how many batches an epoch is cut, whatever the size (als has none)."""
ENOUGH = 4.0  # seconds of steps that are timed
Side = Literal["ours", "implicit", "recbole"]


@dataclass
class Options(apart.Options):
    """Options of the benchmark."""

    models: list[str] = field(default_factory=lambda: list(MODELS))
    """which recommenders"""
    sizes: list[Literal["ml-100k", "ml-1m", "gowalla"]] = field(default_factory=lambda: list(apart.SIZES))
    """which data sizes"""
    growth: bool = True
    """cost from 1e5 to 1e7 synthetic interactions"""
    peers: bool = False
    """RecBole too; `implicit` is measured wherever it is installed"""
    quick: bool = False
    """ML-100K size, growth to 1e6"""


def main(options: Options) -> None:
    """Measure what has no row yet, judge, print, write."""
    from rich.console import Console

    console = Console(width=110)
    path = options.out / ("training-quick.json" if options.quick else "training.json")

    def note(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        console.print(training_report.line(row))
        write(path, rows)

    rows = apart.measured(
        "training.py",
        path,
        [] if options.report_only else tasks(options),
        options,
        note=note,
    )
    console.print()
    for goal in training_report.show(console, rows):
        console.print(goal)
    if rows:
        training_report.figure(rows, path.with_suffix(".png"))
        console.print(f"rows: {path.name}, picture: {path.with_suffix('.png').name}, in {options.out}")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, the machine, and which goals they meet."""
    record = {
        "machine": apart.machine(),
        "exponents": training_report.exponents(rows),
        "goals": training_report.goals(rows),
    }
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
    part.replace(path)


def tasks(options: Options) -> list[dict[str, Any]]:
    """What is to be measured: what has a peer first, size by size, then growth, then the rest."""
    sizes = ["ml-100k"] if options.quick else options.sizes
    first, rest = [], []
    for size in sizes:
        for model in options.models:
            paired = model in RECBOLE or model in ("als", "wrmf")
            (first if paired else rest).append({"side": "ours", "model": model, "size": size})
            if model in RECBOLE and options.peers and not options.quick:
                first.append({"side": "recbole", "model": model, "size": size})
        if importlib.util.find_spec("implicit") is not None:
            first += [
                {"side": "implicit", "model": m, "size": size}
                for m in IMPLICIT
                if m.removesuffix("-cg") in options.models
            ]
    counts = (10**5, 10**6) if options.quick else (10**5, 10**6, 10**7)
    grown_ = [
        {"side": "ours", "model": m, "events": n} for m in GROWTH if m in options.models for n in counts
    ]
    return first + (grown_ if options.growth else []) + rest


# ------------------------------------------------------------------------------------------------ in the worker


def measure(task: dict[str, Any], core: int) -> dict[str, Any]:
    """One measurement, on one core where the system lets a process choose."""
    clock, name = apart.pin(core)
    of = {"ours": measure_ours, "implicit": measure_implicit, "recbole": measure_recbole}[task["side"]]
    train, source = apart.events_of(task, TRACKS.get(task["model"], "implicit"))
    found = of(task, train, clock)
    return {"source": source, "events": int(train.count), "clock": name, **found}


def measure_ours(task: dict[str, Any], train: Any, clock: Callable[[], float]) -> dict[str, Any]:
    """Compile, time an epoch or a piece of it, tell memory."""
    import jax
    import jax.numpy as jnp

    from bilevel.devices import peak_rss
    from bilevel.unroll import run_some
    from models.train import begin

    before = peak_rss()
    model = ours(task)
    start = begin(model, train, jax.random.key(0))
    steps = start.inner.steps_per_epoch
    piece = min(steps, 10)  # compiled once, run until the time is up
    run = jax.jit(
        lambda state, x, data, key, first: run_some(start.inner, state, x, data, key, first, piece),
        donate_argnums=0,  # as in a loop over the whole training
    )
    state = start.inner.init(start.params, start.x, start.data, start.key)
    spent: list[float] = []
    while not spent or (sum(spent[1:]) < ENOUGH and len(spent) * piece <= max(3 * steps, 3 * piece)):
        began = clock()
        state = jax.block_until_ready(
            run(state, start.x, start.data, start.key, jnp.asarray(len(spent) * piece))
        )
        spent.append(clock() - began)
    each = statistics.median(spent[1:])
    return {
        "seconds": each * steps / piece,
        "compile_seconds": spent[0] - each,
        "steps": steps,
        "timed_steps": min(steps, piece * (len(spent) - 1)),
        "data_mb": before / 1e6,
        "peak_mb": peak_rss() / 1e6,
    }


def ours(task: dict[str, Any]) -> Any:
    """The model of a task: a preset, for growth with 32 factors and batches in proportion to the events."""
    from models import registry

    preset = MODELS[task["model"]] or None
    if "events" not in task:
        return registry.make(task["model"], preset)
    parts = GROWTH[task["model"]]
    batch = {"batch": max(1, task["events"] // parts) if parts > 1 else None} if parts else {}
    return registry.make(task["model"], preset, factors=32, **batch)


def measure_implicit(task: dict[str, Any], train: Any, clock: Callable[[], float]) -> dict[str, Any]:
    """`implicit` with our preset's width; one iteration is an epoch."""
    from bilevel.devices import peak_rss
    from models import external, registry

    name, _, cg = task["model"].partition("-")
    factors = registry.make(name, MODELS[name]).config["factors"]
    make = {"als": external.implicit_als, "bpr": external.implicit_bpr}[name]
    solver = {"use_cg": bool(cg)} if name == "als" else {}
    spent: dict[int, float] = {}
    many = 5 if task["model"] == "als" else max(10, int(4e7 / int(train.count)))
    for iterations in (1, 1 + many):
        model = make(factors=factors, iterations=iterations, threads=1, **solver)
        began = clock()
        external.fit(model, train, 0)
        spent[iterations] = clock() - began
    return {"seconds": (spent[1 + many] - spent[1]) / many, "peak_mb": peak_rss() / 1e6}


def measure_recbole(task: dict[str, Any], train: Any, clock: Callable[[], float]) -> dict[str, Any]:
    """RecBole with our preset's sizes; its own seconds an epoch and peak memory while training."""
    from models import recbole

    settings = recbole_settings(task["model"])
    _, report = recbole.run_recbole(
        train, 0, model=RECBOLE[task["model"]], epochs=2, settings=settings, piece_seconds=ENOUGH
    )
    spent = report["epoch_cpu_seconds" if clock is time.process_time else "epoch_seconds"]
    share = [done / report["steps"] for done in report["epoch_steps"]]
    return {
        "seconds": min(seconds / part for seconds, part in zip(spent, share)),
        "steps": report["steps"],
        "timed_steps": max(report["epoch_steps"]),
        "peak_mb": report["training_peak_mb"],
        "settings": settings,
    }


def recbole_settings(model: str) -> dict[str, Any]:
    """The sizes of our preset in RecBole's words, so that both do the same work."""
    from models import registry

    config = registry.make(model, MODELS[model]).config
    found = {
        "bpr": lambda: {"embedding_size": config["factors"]},
        "neumf": lambda: {
            "mf_embedding_size": config["factors"],
            "mlp_embedding_size": config["tower"],
            "mlp_hidden_size": list(config["hidden"]),
            "dropout_prob": 0.0,
        },
        "lightgcn": lambda: {"embedding_size": config["factors"], "n_layers": config["layers"]},
        "ngcf": lambda: {
            "embedding_size": config["factors"],
            "hidden_size_list": list(config["layers"]),
            "message_dropout": config["dropout"],
        },
        # RecBole's width of the code counts the mean and the variance
        "multvae": lambda: {
            "mlp_hidden_size": [config["hidden"]],
            "latent_dimension": 2 * config["latent"],
            "dropout_prob": config["dropout"],
        },
    }[model]()
    # its batch counts rows, and a pointwise model has a row for each negative
    rows = 1 + config["negatives"] if model == "neumf" else 1
    return {"train_batch_size": config["batch"] * rows, **found}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(json.loads(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(tyro.cli(Options, description=__doc__))
