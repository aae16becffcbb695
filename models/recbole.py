"""RecBole's recommenders as victims: exported files, an environment of its own, a table of scores that comes back.

RecBole needs PyTorch and old versions of everything. It runs as a subprocess (`MAKE_RECBOLE` says how to make its
environment) through `benchmarks/peers/recbole_run.py`. What is trained is read as `models.external.Trained`.

Zhao et al., *RecBole: Towards a unified, comprehensive and efficient framework for recommendation algorithms*,
CIKM 2021.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Float

from models.data.interactions import Interactions
from models.external import Cost, External, cost
from models.recommender import counts, numbers, one_of

Peer = Literal["BPR", "NeuMF", "LightGCN", "NGCF", "MultiVAE", "GRU4Rec", "ItemKNN"]
SEQUENTIAL = ("GRU4Rec",)

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "benchmarks" / "peers" / "recbole_run.py"
RECBOLE_PYTHON = "BILEVEL_RECBOLE"
"""Environment variable: the Python that has RecBole, if it is not that of `.venv-recbole` in this project's folder."""
MAKE_RECBOLE = """\
python3.11 -m venv .venv-recbole
.venv-recbole/bin/pip install torch==2.13.0 recbole==1.2.1 psutil \\
    'numpy<2' 'pandas<2.3' 'scipy<1.12' 'setuptools<81'"""
"""How to make RecBole's environment, in the project's folder."""


def recbole(
    model: Peer,
    *,
    epochs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    threads: int = 1,
    timeout: float = 3600,
    python: str | os.PathLike[str] | None = None,
) -> External:
    """A recommender of RecBole, trained in a process of its own; what comes back is its scores of all users and items.

    Items and users without events are part of RecBole's catalog too (it draws them as negatives). GRU4Rec gives a user
    without events the score 0 for every item.

    Args:
        model: RecBole's name of it.
        epochs: >= 1; None: RecBole's default (300). ItemKNN has none.
        settings: further arguments by RecBole's own names, such as `{"embedding_size": 32, "learning_rate": 0.01}`;
            its defaults elsewhere. Plain JSON. A name RecBole does not know is an error.
        threads: of PyTorch, >= 1.
        timeout: seconds after which the process is ended, > 0.
        python: interpreter that has RecBole; None: the environment variable `BILEVEL_RECBOLE`, else `.venv-recbole`.

    Raises:
        ValueError: a value outside its range, an unknown model. FileNotFoundError: no such environment; says how to
            make it.

    Reference: Zhao et al., RecBole 2.0, CIKM 2022 (version 1.2.1).

    **Differs from the paper:** no metric of RecBole's is used (`run_recbole` can give them); without validation data it
    trains for all its epochs.
    """
    name = f"recbole-{model}"
    one_of("recbole", "model", model, get_args(Peer))
    counts(name, threads=threads)
    numbers(name, 0, open_end=True, timeout=timeout)
    if epochs is not None:
        counts(name, epochs=epochs)
        if model == "ItemKNN":
            raise ValueError(f"{name}: epochs={epochs}; it counts and has no epochs, leave them out")
    config = {"model": model, "epochs": epochs, "settings": _plain(name, settings), "threads": threads}
    interpreter = recbole_python(python)

    def train(
        train: Interactions, seed: int, validation: Interactions | None
    ) -> tuple[Float[Array, "U I"], Cost]:
        table, report = run_recbole(
            train, seed, **config, timeout=timeout, python=interpreter, validation=validation
        )
        spent = cost(report["seconds"], report["epoch_seconds"], report["peak_rss_mb"])
        return jax.device_put(table), spent

    return External(name, config, train, lambda table, users: table[users])


def run_recbole(
    train: Interactions,
    seed: int,
    *,
    model: Peer,
    epochs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    threads: int = 1,
    timeout: float = 3600,
    python: str | os.PathLike[str] | None = None,
    runner: str | os.PathLike[str] | None = None,
    validation: Interactions | None = None,
    test: Interactions | None = None,
    piece_seconds: float | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train by RecBole once and read back its scores; what `fit` does for `recbole`, with RecBole's own report.

    Args:
        train, model, epochs, settings, threads, timeout, python, validation: as in `fit` and `recbole`.
        seed: RecBole's.
        runner: the program that RecBole's Python runs; None: `benchmarks/peers/recbole_run.py`.
        test: held-out events that RecBole judges by its own metrics, for comparison. It ranks without the items of
            training and validation; a sequence model event by event, with no item left out.
        piece_seconds: an epoch ends after so many CPU seconds, > 0, and no user is scored (for benchmarks: the scores
            come back without rows); None: after its last batch.

    Returns:
        (U, I) float32 scores in the ids of `train`, and the report: `seconds`, `epoch_seconds`, `epoch_cpu_seconds` and
        `epoch_steps` (a list each), `steps` (of a whole epoch), `peak_rss_mb` (whole process), `training_peak_mb` (in
        training), `training_rss_mb` (over what it held before), `best_validation` and `test` (RecBole's metrics, None
        if not asked for), `versions`.

    Raises:
        ValueError: parts of other sizes, a sequence model without order. FileNotFoundError: no environment, no runner.
        TimeoutError, RuntimeError: the process took too long, failed, or wrote something else than scores.
    """
    if piece_seconds is not None:
        numbers(f"recbole-{model}", 0, open_end=True, piece_seconds=piece_seconds)
    interpreter = recbole_python(python)
    program = Path(runner or RUNNER)
    if not program.is_file():
        raise FileNotFoundError(
            f"recbole: the program {program.name} is not at {program}; it is in benchmarks/peers/ of the repository, "
            "which an installed package does not hold: run from a checkout"
        )
    parts = {"train": train, "valid": validation, "test": test}
    job = {
        "model": model,
        "epochs": epochs,
        "settings": _plain(f"recbole-{model}", settings),
        "seed": int(seed),
        "threads": threads,
        "sequence": model in SEQUENTIAL,
        "parts": [part for part, data in parts.items() if data is not None],
        "piece_seconds": piece_seconds,
    }
    with tempfile.TemporaryDirectory(prefix="bilevel-recbole-") as name:
        folder = Path(name)
        _export(folder, model, {part: data for part, data in parts.items() if data is not None})
        (folder / "job.json").write_text(json.dumps(job))
        said = _call(interpreter, program, folder, threads, timeout)
        try:
            return _read(folder, train.users if piece_seconds is None else 0, train.items)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f"recbole-{model} ended without usable scores ({error}); its last lines:\n{_tail(said)}"
            ) from error


def recbole_python(given: str | os.PathLike[str] | None = None) -> Path:
    """The interpreter that has RecBole: `given`, else that of `BILEVEL_RECBOLE`, else that of `.venv-recbole`.

    Raises:
        FileNotFoundError: it is not there; says how to make it.
    """
    usual = ROOT / ".venv-recbole" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    python = Path(
        given or os.environ.get(RECBOLE_PYTHON) or usual
    ).absolute()  # not resolved: a link is a venv
    if not python.is_file():
        where = "python=" if given else RECBOLE_PYTHON if os.environ.get(RECBOLE_PYTHON) else "the default"
        raise FileNotFoundError(
            f"no RecBole: {python} ({where}) does not exist. RecBole needs an environment of its own; make it in the "
            f"project's folder, or set {RECBOLE_PYTHON} to the Python of another one:\n{MAKE_RECBOLE}"
        )
    return python


def _plain(name: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(settings or {})))
    except TypeError as error:
        raise ValueError(
            f"{name}: settings must be plain JSON (numbers, texts, lists), since they go to another process; {error}"
        ) from error


def _export(folder: Path, model: str, parts: Mapping[str, Interactions]) -> None:
    """RecBole's files: a table of events a part (of training in order if the model reads it), and the catalogs."""
    train, sequence = parts["train"], model in SEQUENTIAL
    if sequence and train.track != "sequence":
        raise ValueError(
            f"recbole-{model} learns from the order of clicks; got track {train.track!r}. Load the data with "
            "track='sequence', and inject profiles of the clicks form"
        )
    data = folder / "data"
    data.mkdir()
    for part, events in parts.items():
        if events.users > train.users or events.items != train.items or not events.real().any():
            raise ValueError(
                f"recbole-{model}: {part} is {events!r}; expected events of the {train.items} items of training and of "
                f"its {train.users} users"
            )
        real = events.real()
        user, item = np.asarray(events.user)[real], np.asarray(events.item)[real]
        if sequence and part == "train":  # RecBole makes one example of every prefix itself
            place = np.arange(user.size) - np.searchsorted(user, user)
            rows = (f"u{u}\ti{i}\t{t}" for u, i, t in zip(user, item, place))
            _table(data / "data.inter", "user_id:token\titem_id:token\ttimestamp:float", rows)
        else:
            pairs = np.unique(np.stack([user, item], 1), axis=0)  # repeats count once
            rows = (f"u{u}\ti{i}" for u, i in pairs)
            _table(data / f"data.{part}.inter", "user_id:token\titem_id:token", rows)
    _table(data / "data.user", "user_id:token", (f"u{u}" for u in range(train.users)))
    _table(data / "data.item", "item_id:token", (f"i{i}" for i in range(train.items)))


def _table(path: Path, head: str, rows: Any) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head + "\n")
        file.writelines(f"{row}\n" for row in rows)


def _call(python: Path, runner: Path, folder: Path, threads: int, timeout: float) -> str:
    """Run the program on the folder; what it wrote to stderr."""
    ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")  # packages of this environment are not for that one
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    try:
        done = subprocess.run(
            [str(python), str(runner.resolve()), str(folder)],
            cwd=folder,  # RecBole leaves logs where it runs
            env=env,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"RecBole did not end within {timeout:g} s; raise timeout=, or train for fewer epochs. Its last lines:\n"
            f"{_tail(_text(error.stderr))}"
        ) from error
    said = _text(done.stderr)
    if done.returncode:
        raise RuntimeError(f"RecBole failed (exit {done.returncode}); its last lines:\n{_tail(said)}")
    return said


def _text(written: bytes | None) -> str:
    return (written or b"").decode(errors="replace")


def _tail(said: str, lines: int = 12) -> str:
    return "\n".join(said.strip().splitlines()[-lines:]) or "(it said nothing)"


def _read(folder: Path, users: int, items: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The scores, from RecBole's order of users and items into ours, and the report."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    needed = {"users", "items", "seconds", "epoch_seconds", "peak_rss_mb"}
    if not isinstance(report, dict) or not needed <= set(report):
        raise ValueError(f"a report without {', '.join(sorted(needed.difference(report)))}")
    raw = np.load(folder / "scores.npy", mmap_mode="r", allow_pickle=False)
    if raw.shape != (users, items) or raw.dtype != np.float32:
        raise ValueError(
            f"scores of shape {raw.shape} and type {raw.dtype}; expected float32 ({users}, {items})"
        )
    table = np.empty((users, items), np.float32)
    row, column = _ids(report.pop("users"), "u", users), _ids(report.pop("items"), "i", items)
    table[np.ix_(row, column)] = raw
    return table, report


def _ids(tokens: list[str], prefix: str, count: int) -> np.ndarray:
    ids = np.array([int(token.removeprefix(prefix)) for token in tokens if token.startswith(prefix)], int)
    if not np.array_equal(np.sort(ids), np.arange(count)):
        raise ValueError(
            f"{len(tokens)} names, the first {tokens[:3]}; expected each of {prefix}0..{prefix}{count - 1} once"
        )
    return ids
