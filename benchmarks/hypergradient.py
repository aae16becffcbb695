"""Time, memory and error of every hypergradient estimator, and of PyTorch's, on RevAdv's WRMF problem.

    python benchmarks/hypergradient.py --quick        # under 4 minutes on two quiet cores
    python benchmarks/hypergradient.py                # everything, under 12 minutes
    python benchmarks/hypergradient.py --peers        # first makes .venv-peers (PyTorch, higher, TorchOpt)

Measured: seconds of one forward run (L steps of Adam), of every estimator and memory policy as a multiple of it,
compiled temporary memory, peak resident memory (a process of its own each), and the distance to a float64 reference
that shares no code with the engine. Variants and peers run in turn, round after round, and the fastest round counts.
Where `.venv-peers` exists the same gradient is computed by `higher` and by TorchOpt from the same file. At the end the
goals are judged: what falls short is said. Use a quiet machine: two other busy processes change every number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import psutil
import tyro
import wrmf_goals
import wrmf_problem
import wrmf_report
import wrmf_variants
from peers import client, environment
from rich.console import Console
from rich.progress import Progress

HERE = Path(__file__).parent
console = Console(width=None if sys.stdout.isatty() else 150)


@dataclasses.dataclass(frozen=True)
class Options:
    """Benchmark of the hypergradient estimators; see the top of benchmarks/hypergradient.py."""

    problems: Annotated[
        tuple[Literal["tiny", "toy", "movielens"], ...], tyro.conf.arg(metavar="NAME ...")
    ] = (
        "toy",
        "movielens",
    )
    """Which problems: `toy` (900+100 x 300, D=16), `movielens` (943+47 x 1682, D=64; the data if the environment
    variable BILEVEL_DATA names a folder with ml-100k, else the same size drawn), `tiny` (seconds, for a look)."""
    quick: bool = False
    """Fewer variants, fewer rounds, peak memory of the variants the goals are about only."""
    rounds: int | None = None
    """Most rounds over all variants of a problem (default 7, quick 3); at least one is run."""
    seconds: float | None = None
    """No round is begun after this many seconds of rounds on a problem (default 150, quick 45)."""
    peers: bool = False
    """Make `.venv-peers` if it is not there (a few hundred MB). It is used wherever it exists, asked for or not."""
    alone: bool = False
    """Leave the peers out even where `.venv-peers` exists."""
    variants: tuple[str, ...] = ()
    """Only variants whose name has one of these texts in it, and the forward runs (try `exact`, `tau=`, `lean`)."""
    memory: bool = True
    """Measure peak memory, which takes a process per variant."""
    attack: bool = True
    """Also run the whole toy attack (50 outer steps), ours and the peer's."""
    full_attack: bool = False
    """Run all 50 outer steps of the peer's attack; otherwise a few are measured and the rest extrapolated (all do the
    same work, so the extrapolation is linear). Takes minutes."""
    out: Path = HERE / "results"
    """Folder of `hypergradient.json` and `hypergradient.png` (`hypergradient-quick.*` with --quick)."""

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}: expected at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds={self.seconds}: expected a positive number")
        if self.peers and self.alone:
            raise ValueError("--peers makes the peers' environment, --alone leaves them out: choose one")

    def wanted(self, variant: wrmf_variants.Variant) -> bool:
        """Whether a variant was asked for; forward runs always are."""
        asked = not self.variants or any(text in variant.name for text in self.variants)
        return asked or variant.kind == "forward"


def main(options: Options) -> int:
    """Run the benchmark; returns the number of goals that fall short."""
    start = time.perf_counter()
    python = environment.create() if options.peers else None if options.alone else environment.find()
    if python is None:
        console.print("PyTorch's numbers are left out (--peers makes .venv-peers and includes them)")
    results: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "quick": options.quick,
        "problems": {},
    }
    if results["machine"]["load"] > 0.3 * results["machine"]["cores"]:
        console.print(
            f"[yellow]the machine is busy (load {results['machine']['load']:.1f}): provisional numbers; pinned to one "
            "core (taskset -c 0 ...) both sides run on one thread, and the comparison stays fair"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(options.problems):
            path = wrmf_problem.save(wrmf_problem.make(name), Path(folder) / f"{name}.npz")
            results["problems"][name] = measure(name, path, python, options)
            wrmf_report.print_problem(console, name, results["problems"][name])
        if options.attack and set(options.problems) & {"toy", "tiny"}:
            name = "toy" if "toy" in options.problems else "tiny"
            import wrmf_attack  # only here: it imports the attacks too

            with console.status(f"whole attack on the {name} problem"):
                measured = 50 if options.full_attack else 2
                results["attack"] = wrmf_attack.measure(Path(folder) / f"{name}.npz", python, measured)
    goals = wrmf_goals.judge(results)
    results |= {"goals": [goal._asdict() for goal in goals], "total_seconds": time.perf_counter() - start}
    results["machine"]["load_after"] = load()
    wrmf_report.print_goals(console, goals)
    write(results, options)
    return sum(goal.verdict == wrmf_goals.FALL_SHORT for goal in goals)


def measure(name: str, path: Path, python: Path | None, options: Options) -> dict[str, Any]:
    """Everything about one problem: compile, time in rounds, peak memory, errors."""
    problem = wrmf_problem.load(path)
    chosen = [
        variant for variant in wrmf_variants.variants(problem, quick=options.quick) if options.wanted(variant)
    ]
    with contextlib.ExitStack() as stack, Progress(console=console, transient=True) as progress:
        bar = progress.add_task(name, total=None)
        note = lambda text: progress.update(bar, description=f"{name}: {text}")
        note("float64 reference")
        exact = reference(path)
        compiled = {}
        for variant in chosen:
            note(f"compiling {variant.name}")
            compiled[variant.name] = wrmf_variants.compile_variant(problem, variant)
        runs: dict[str, Callable[[], tuple[float, float]]] = {k: v.run for k, v in compiled.items()}
        if python is not None:
            server = stack.enter_context(client.Server(python, path))
            runs |= {f"peer {method}": lambda method=method: server.run(method) for method in client.METHODS}
            for method in client.METHODS:
                note(f"warming up PyTorch {method}")
                server.run(method)
        limits = (3, 45.0) if options.quick else (7, 150.0)
        samples = interleave(runs, options.rounds or limits[0], options.seconds or limits[1], note)
        rows = {variant.name: _row(variant, compiled[variant.name], samples, exact) for variant in chosen}
        for variant in _with_memory(name, chosen, options):
            note(f"peak memory of {variant.name}")
            rows[variant.name]["peak_rss_mb"] = peak(path, variant.name)
        peers = {} if python is None else _peers(python, path, samples, exact, note)
    rounds = len(next(iter(samples.values())))
    about = {
        "shape": problem.shape,
        "source": problem.source,
        "rounds": rounds,
        "form": wrmf_variants.picked(problem),
    }
    return {**about, "variants": rows, "peers": peers}


def interleave(
    runs: Mapping[str, Callable[[], tuple[float, float]]],
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
) -> dict[str, list[tuple[float, float]]]:
    """Run everything once a round, every other round backwards, so that a drift of the machine hits all alike."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    start = time.perf_counter()
    for number in range(rounds):
        for label in list(runs)[:: -1 if number % 2 else 1]:
            note(f"round {number + 1} of at most {rounds}, {label}")
            samples[label].append(runs[label]())
        if time.perf_counter() - start > seconds:
            break
    return samples


def reference(path: Path) -> np.ndarray:
    """The float64 gradient of a problem file, computed in a process of its own."""
    out = path.with_suffix(".reference.npz")
    subprocess.run([sys.executable, str(HERE / "wrmf_reference.py"), str(path), str(out)], check=True)
    with np.load(out) as file:
        return file["gradient"]


def peak(path: Path, variant: str) -> float:
    """Peak RSS over start of one variant, compilation included, in a process of its own (MB)."""
    command = [sys.executable, str(HERE / "wrmf_variants.py"), str(path), variant]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HERE.parent)}
    )
    return json.loads(done.stdout.strip().splitlines()[-1])["peak_rss_mb"]


def compare(gradient: np.ndarray, exact: np.ndarray) -> dict[str, float | None]:
    """Relative error and cosine with the reference; None where the gradient is 0 (its direction is undefined)."""
    size, norm = float(np.linalg.norm(gradient)), float(np.linalg.norm(exact))
    cosine = float(np.vdot(gradient.astype(np.float64), exact) / (size * norm)) if size else None
    return {"relative_error": float(np.linalg.norm(gradient - exact)) / norm, "cosine": cosine}


def _timing(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Fastest round, in wall and in CPU seconds, and the median round."""
    wall, cpu = zip(*samples)
    return {"seconds": min(wall), "cpu_seconds": min(cpu), "median_seconds": float(np.median(wall))}


def _row(variant: wrmf_variants.Variant, compiled: wrmf_variants.Compiled, samples, exact) -> dict[str, Any]:
    row = {"kind": variant.kind, "path": variant.path, **_timing(samples[variant.name])}
    row |= {"temp_mb": compiled.temp_mb, "compile_seconds": compiled.compile_seconds}
    if compiled.gradient is not None:
        row |= compare(compiled.gradient, exact)
    if variant.kind == "implicit":
        row["code"] = compiled.code
    return row


def _with_memory(
    name: str, chosen: list[wrmf_variants.Variant], options: Options
) -> list[wrmf_variants.Variant]:
    """Whose peak memory is measured: all, or with `quick` the policies the goals compare, not on the toy."""
    if not options.memory or (options.quick and name == "toy"):
        return []
    return [variant for variant in chosen if not options.quick or variant.name.endswith(("keep", "lean"))]


def _peers(python: Path, path: Path, samples, exact, note) -> dict[str, Any]:
    """Time, peak memory and error of PyTorch's forward run, of `higher` and of TorchOpt."""
    rows: dict[str, Any] = {}
    for method in client.METHODS:
        note(f"peak memory of PyTorch {method}")
        out = path.with_suffix(f".{method}.npz")
        found = client.call(python, "once", path, "--method", method, "--out", str(out))
        rows[method] = {"kind": "peer", "path": "peer", **_timing(samples[f"peer {method}"])}
        rows[method] |= {"peak_rss_mb": found["peak_rss_mb"], "versions": found["versions"]}
        if method != "forward":
            with np.load(out) as file:
                rows[method] |= compare(file["gradient"], exact)
    return rows


def load() -> float:
    """Runnable processes over the last minute, this one included (NaN where the system does not say)."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan


def machine() -> dict[str, Any]:
    """The machine in general words: no host name, no paths."""
    memory = round(psutil.virtual_memory().total / 2**30)
    kind = f"{platform.system()} {platform.machine()}"
    return {
        "system": kind,
        "cores": client.threads(),
        "memory_gib": memory,
        "backend": jax.default_backend(),
        "load": load(),
    }


def versions() -> dict[str, str]:
    """Versions of what is compared."""
    return {"python": platform.python_version()} | {
        k: importlib.metadata.version(k) for k in ("jax", "optax", "numpy")
    }


def write(results: Mapping[str, Any], options: Options) -> None:
    """Write the JSON record and the figure, and say where."""
    options.out.mkdir(parents=True, exist_ok=True)
    base = options.out / ("hypergradient-quick" if options.quick else "hypergradient")
    text = json.dumps(_rounded(results), indent=1, allow_nan=False)
    base.with_suffix(".json").write_text(text + "\n")
    wrmf_report.figure(results, base.with_suffix(".png"))
    console.print(
        f"{results['total_seconds']:.0f} s; wrote {base.name}.json and {base.name}.png to {options.out}"
    )


def _rounded(value: Any) -> Any:
    """Five digits are more than a timing has; NaN has no place in JSON."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
