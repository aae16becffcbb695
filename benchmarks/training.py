"""Seconds of an epoch and peak memory of every recommender, beside `implicit` and RecBole, and how cost grows.

    python benchmarks/training.py --quick                 # ML-100K size and growth to 1e6, without RecBole
    python benchmarks/training.py --sizes ml-100k ml-1m gowalla --peers
    python benchmarks/training.py --models wrmf als --sizes gowalla --no-growth

Every measurement runs in a process of its own: peak memory is the process's, compilation is told apart, and the seconds
are the fastest of the epochs timed. With `BILEVEL_DATA` the sizes are the real data sets; without it clicks of the same
size are drawn, and the output says which. The peers train on the same events: `implicit` (one process, all cores, as it
comes), RecBole in its own environment (see models/recbole.py) with the number of threads this machine has.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

HERE = Path(__file__).resolve().parent
SIZES = {
    "ml-100k": (943, 1682, 100_000),
    "ml-1m": (6040, 3706, 1_000_209),
    "gowalla": (13_149, 14_007, 535_610),
}
FOLDERS = {"gowalla": "gowalla-15core"}
MODELS: dict[str, str] = {
    "wrmf": "rapu-ml-victim",
    "als": "revadv-gowalla",
    "itemae": "revadv-gowalla",
    "bpr": "recbole",
    "gmf": "rapu-ml",
    "neumf": "recbole",
    "cml": "revadv",
    "pmf": "poisonrec",
    "multvae": "original",
    "lightgcn": "rapu-victim",
    "ngcf": "recbole",
    "autorec": "poisonrec",
    "mf": "apt-ml-100k",
    "gru4rec": "poisonrec",
    "ncr": "original",
    "itemcf": "",
    "covisitation": "",
}
TRACKS = {"mf": "explicit", "gru4rec": "sequence", "covisitation": "sequence"}
HEAVY = ("ncr", "gru4rec", "cml", "neumf")  # an epoch of these on the larger sets takes minutes
RECBOLE = {"bpr": "BPR", "neumf": "NeuMF", "lightgcn": "LightGCN", "ngcf": "NGCF", "multvae": "MultiVAE"}
GROWTH = ("wrmf", "als", "bpr", "lightgcn")


@dataclass
class Options:
    """Options of the benchmark."""

    models: list[str] = field(default_factory=lambda: list(MODELS))
    """which recommenders"""
    sizes: list[Literal["ml-100k", "ml-1m", "gowalla"]] = field(default_factory=lambda: ["ml-100k"])
    """which data sizes"""
    heavy: bool = False
    """measure the slow ones (ncr, gru4rec, cml, neumf) on the large sizes too"""
    growth: bool = True
    """cost from 1e5 to 1e7 synthetic interactions"""
    peers: bool = False
    """RecBole too; `implicit` is measured wherever it is installed"""
    quick: bool = False
    """ML-100K size, growth to 1e6"""
    out: Path = HERE / "results"
    """folder of training.json and training.png"""


def main(options: Options) -> None:
    """Measure, judge, print, write."""
    from rich.console import Console

    console = Console()
    sizes = ["ml-100k"] if options.quick else options.sizes
    results: dict[str, Any] = {
        "machine": machine(),
        "quick": options.quick,
        "epochs": [],
        "peers": [],
        "growth": [],
    }
    for size in sizes:
        for model in options.models:
            if model in HEAVY and size != "ml-100k" and not options.heavy:
                continue
            note(console, results["epochs"], worker({"model": model, "preset": MODELS[model], "size": size}))
        for task in peer_tasks(size, options):
            note(console, results["peers"], worker(task))
    if options.growth:
        for model in (m for m in GROWTH if m in options.models):
            for events in (10**5, 10**6) if options.quick else (10**5, 10**6, 10**7):
                task = {"model": model, "preset": MODELS[model], "events": events, "factors": 32}
                note(console, results["growth"], worker(task))
    results["exponents"] = exponents(results["growth"])
    results["machine"]["load_after"] = load()
    show(console, results)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "training-quick" if options.quick else "training"
    (options.out / f"{name}.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
    figure(results, options.out / f"{name}.png")
    console.print(f"wrote {name}.json and {name}.png to {options.out}")


def peer_tasks(size: str, options: Options) -> list[dict[str, Any]]:
    """What the peers are asked for at a size."""
    tasks: list[dict[str, Any]] = []
    if importlib.util.find_spec("implicit") is not None:
        tasks += [
            {"peer": "implicit", "model": m, "size": size} for m in ("als", "bpr") if m in options.models
        ]
    if options.peers and not options.quick:
        names = [m for m in RECBOLE if m in options.models and (size == "ml-100k" or m not in HEAVY)]
        tasks += [{"peer": "recbole", "model": m, "size": size} for m in names]
    return tasks


def worker(task: dict[str, Any]) -> dict[str, Any]:
    """Run a measurement in a process of its own."""
    command = [sys.executable, str(HERE / "training.py"), "--worker", json.dumps(task)]
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        return {
            **task,
            "error": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "killed",
        }
    return {**task, **json.loads(done.stdout.strip().splitlines()[-1])}


# ------------------------------------------------------------------------------------------------ in the worker


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """One measurement: compile, time epochs, tell memory."""
    if task.get("peer") == "implicit":
        return measure_implicit(task)
    if task.get("peer") == "recbole":
        return measure_recbole(task)
    import jax

    from bilevel.devices import peak_rss
    from bilevel.unroll import run_some
    from models import registry
    from models.train import begin

    train, source = events_of(task, TRACKS.get(task["model"], "implicit"))
    before = peak_rss()
    changes = {"factors": task["factors"]} if "factors" in task else {}
    model = registry.make(task["model"], task["preset"] or None, **changes)
    start = begin(model, train, jax.random.key(0))
    steps = start.inner.steps_per_epoch
    epoch = jax.jit(
        lambda state, x, data, key, first: run_some(start.inner, state, x, data, key, first, steps)
    )
    state = start.inner.init(start.params, start.x, start.data, start.key)
    clock, first = [], time.perf_counter()
    for number in range(4):
        began = time.perf_counter()
        state = jax.block_until_ready(epoch(state, start.x, start.data, start.key, number * steps))
        clock.append(time.perf_counter() - began)
        if time.perf_counter() - first > 120:
            break
    read = jax.jit(model.embed)
    jax.block_until_ready(read(state.params, start.x, start.data))
    began = time.perf_counter()
    jax.block_until_ready(read(state.params, start.x, start.data))
    return {
        "source": source,
        "events": int(train.count),
        "seconds": min(clock[1:] or clock),
        "embed_seconds": time.perf_counter() - began,
        "compile_seconds": clock[0] - min(clock[1:] or clock),
        "steps": steps,
        "data_mb": before / 1e6,
        "peak_mb": peak_rss() / 1e6,
    }


def measure_implicit(task: dict[str, Any]) -> dict[str, Any]:
    """`implicit` as it comes: all cores; one iteration is an epoch."""
    from bilevel.devices import peak_rss
    from models import external

    train, source = events_of(task, "implicit")
    make = {"als": external.implicit_als, "bpr": external.implicit_bpr}[task["model"]]
    factors = {"als": 128, "bpr": 64}[task["model"]]
    seconds = {}
    for iterations in (1, 21):
        model = make(factors=factors, iterations=iterations, threads=os.cpu_count() or 1)
        began = time.perf_counter()
        external.fit(model, train, 0)
        seconds[iterations] = time.perf_counter() - began
    each = (seconds[21] - seconds[1]) / 20
    return {"source": source, "events": int(train.count), "seconds": each, "peak_mb": peak_rss() / 1e6}


def measure_recbole(task: dict[str, Any]) -> dict[str, Any]:
    """RecBole with our preset's sizes; its own seconds an epoch and peak memory."""
    from models import recbole

    train, source = events_of(task, "implicit")
    settings = recbole_settings(task["model"])
    _, report = recbole.run_recbole(
        train, 0, model=RECBOLE[task["model"]], epochs=3, settings=settings, threads=os.cpu_count() or 1
    )
    clock = report["epoch_seconds"]
    return {
        "source": source,
        "events": int(train.count),
        "seconds": min(clock[1:] or clock),
        "peak_mb": report["peak_rss_mb"],
        "settings": settings,
    }


def recbole_settings(model: str) -> dict[str, Any]:
    """The sizes of our preset in RecBole's words, so that both do the same work."""
    from models import registry

    config = registry.make(model, MODELS[model]).config
    common = {"train_batch_size": config["batch"]}
    return (
        common
        | {
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
            "multvae": lambda: {"mlp_hidden_size": [config["hidden"]], "latent_dimension": config["latent"]},
        }[model]()
    )


def events_of(task: dict[str, Any], track: str) -> tuple[Any, str]:
    """The clicks of a size: the real data set where it is at hand, else drawn with its size."""
    from models.data import Interactions, dataset

    users, items, events = SIZES[task["size"]] if "size" in task else grown(task["events"])
    if "size" in task:
        try:
            found = dataset(FOLDERS.get(task["size"], task["size"]))
        except (FileNotFoundError, ImportError):
            found = None
        if found is not None:
            return of_track(found.interactions, track), "real"
    rng = np.random.default_rng(0)
    popularity = 1 / (10 + np.arange(items)) ** 0.8
    user = rng.integers(0, users, int(1.15 * events))
    item = rng.choice(items, int(1.15 * events), p=popularity / popularity.sum())
    pair = np.unique(user.astype(np.int64) * items + item)
    pair = rng.permutation(pair)[:events] if len(pair) > events else pair
    made = Interactions.from_arrays(pair // items, pair % items, users=users, items=items)
    return of_track(made, track), "drawn"


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


# ------------------------------------------------------------------------------------------------ what came out


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Slope of log seconds over log events between the two largest sizes of each model; 1 is proportional."""
    found = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        good = sorted(
            (row["events"], row["seconds"]) for row in rows if row["model"] == model and "error" not in row
        )
        if len(good) > 1:
            (a, s), (b, t) = good[-2:]
            found[model] = math.log(t / s) / math.log(b / a)
    return found


def note(console: Any, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Keep a row, and say it."""
    rows.append(row)
    where = row.get("size") or f"{row['events']:.0e}"
    who = f"{row['peer']} " if "peer" in row else ""
    said = row.get("error") or f"{row['seconds']:.3f} s an epoch, peak {row['peak_mb']:.0f} MB"
    console.print(f"{where} {who}{row['model']}: {said}")


def show(console: Any, results: dict[str, Any]) -> None:
    """The table of epochs beside the peers', and the exponents of growth."""
    from rich.table import Table

    peers = {(row["peer"], row["model"], row["size"]): row for row in results["peers"] if "error" not in row}
    table = Table(
        "data", "model", "s an epoch", "compile s", "peak MB", "implicit s", "RecBole s", "RecBole / ours"
    )
    for row in results["epochs"]:
        if "error" in row:
            table.add_row(row["size"], row["model"], row["error"])
            continue
        theirs = [peers.get((peer, row["model"], row["size"])) for peer in ("implicit", "recbole")]
        cells = ["-" if other is None else f"{other['seconds']:.3f}" for other in theirs]
        ratio = "-" if theirs[1] is None else f"{theirs[1]['seconds'] / row['seconds']:.1f}x"
        own = [f"{row['seconds']:.3f}", f"{row['compile_seconds']:.1f}", f"{row['peak_mb']:.0f}"]
        table.add_row(f"{row['size']} ({row['source']})", row["model"], *own, *cells, ratio)
    console.print(table)
    for model, slope in results["exponents"].items():
        console.print(f"growth of {model}: seconds ~ events^{slope:.2f} between the two largest sizes")
    slower = [
        f"{row['model']} ({row['size']})"
        for row in results["epochs"]
        if "error" not in row
        and (other := peers.get(("recbole", row["model"], row["size"]))) is not None
        and other["seconds"] < row["seconds"]
    ]
    if any(peer == "recbole" for peer, *_ in peers):
        console.print(f"slower than RecBole: {', '.join(slower) or 'none'}")


def figure(results: dict[str, Any], path: Path) -> None:
    """Seconds an epoch by model and size, and the growth curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    made, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    good = [row for row in results["epochs"] if "error" not in row]
    names = list(dict.fromkeys(row["model"] for row in good))
    for size in dict.fromkeys(row["size"] for row in good):
        rows = [row for row in good if row["size"] == size]
        left.plot(
            [names.index(row["model"]) for row in rows], [row["seconds"] for row in rows], "o", label=size
        )
    left.set(yscale="log", ylabel="seconds an epoch", xticks=range(len(names)))
    left.set_xticklabels(names, rotation=60, ha="right")
    left.legend(frameon=False)
    for model in dict.fromkeys(row["model"] for row in results["growth"]):
        rows = [row for row in results["growth"] if row["model"] == model and "error" not in row]
        right.plot([row["events"] for row in rows], [row["seconds"] for row in rows], "o-", label=model)
    right.set(xscale="log", yscale="log", xlabel="interactions", ylabel="seconds an epoch")
    right.legend(frameon=False)
    made.savefig(path, dpi=120)
    plt.close(made)


def machine() -> dict[str, Any]:
    """The machine in general words, and the versions: no host name, no paths."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "numpy")}
    kind = f"{platform.system()} {platform.machine()}"
    return {
        "system": kind,
        "cores": os.cpu_count(),
        "load": load(),
        "python": platform.python_version(),
        **versions,
    }


def load() -> float:
    """Runnable processes over the last minute (NaN where the system does not say)."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        main(tyro.cli(Options, description=__doc__))
