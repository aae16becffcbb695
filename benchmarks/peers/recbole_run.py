"""Train one recommender of RecBole 1.2.1 and write its scores of all users and items, for `models/recbole.py`.

Runs in an environment of its own, beside the project's (Python 3.11; `.venv*/` is ignored by git):

    python3.11 -m venv .venv-recbole
    .venv-recbole/bin/pip install torch==2.13.0 recbole==1.2.1 psutil \\
        'numpy<2' 'pandas<2.3' 'scipy<1.12' 'setuptools<81'

An index with CPU builds of PyTorch can be passed to pip (`--index-url URL`); where `torch==2.13.0` is a CUDA build it
is several GB, and used on the CPU all the same. `BILEVEL_RECBOLE=PYTHON` names the interpreter of another environment.

Knows nothing of this project. `models.recbole.run_recbole` writes a folder, runs `recbole_run.py FOLDER`, reads it:

    job.json                model, epochs (null: RecBole's), settings (RecBole's names), seed, threads, sequence, parts,
                            piece_seconds (an epoch ends after so many, and no user is scored; null: never)
    data/data.PART.inter    user_id, item_id of train (and valid, test); a sequence model has train as data.inter with
                            timestamps instead, of which RecBole makes its examples
    data/data.user .item    the catalogs: users and items without events exist too
    -> scores.npy           float32 (users, items) in RecBole's order, nothing masked
    -> report.json          users, items (names, in that order), seconds, epoch_seconds, epoch_cpu_seconds, epoch_steps,
                            steps (of a whole epoch), peak_rss_mb (whole process), training_peak_mb (until trained),
                            training_rss_mb (over what it held before), best_validation, test, versions

With a valid part RecBole's own early stopping ends the training and the best epoch is kept; with a test part the report
has RecBole's metrics, ranked without the items of train and valid (a sequence model: event by event, no item left
out). Everything runs on the CPU.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import resident
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.interaction import Interaction
from recbole.data.utils import get_dataloader
from recbole.sampler import RepeatableSampler, Sampler
from recbole.utils import ModelType, get_model, get_trainer, init_seed

PAIRS = 1 << 18  # pairs scored at once by a model that only scores pairs, cells by one that scores rows


class Parts(NamedTuple):
    """The training data set and RecBole's loaders; None where there is no such part."""

    train: Any
    loader: Any
    valid: Any
    test: Any


def main(folder: Path) -> None:
    """Do the job in `folder`."""
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    config = configure(job, folder)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    events = histories(dataset, folder) if job["sequence"] else None
    parts = (sequence_parts if job["sequence"] else plain_parts)(config, dataset, job, folder, events)
    report, made = {"steps": len(parts.loader)}, []

    def train() -> None:
        init_seed(config["seed"], config["reproducibility"])  # as RecBole does: data first, then the model
        began = time.perf_counter()
        model = get_model(config["model"])(config, parts.train).to(config["device"])  # all of ItemKNN's work
        built = time.perf_counter()
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(
            config, model
        )  # loads TensorBoard: not counted
        epochs, ready = timed(trainer, job.get("piece_seconds")), time.perf_counter()
        best, _ = trainer.fit(parts.loader, parts.valid, verbose=False, saved=parts.valid is not None)
        report["seconds"] = time.perf_counter() - ready + built - began
        if config["MODEL_TYPE"] == ModelType.TRADITIONAL:
            epochs.clear()
        for name in Epoch._fields:
            report[f"epoch_{name}"] = [getattr(epoch, name) for epoch in epochs]
        report["best_validation"] = None if parts.valid is None else float(best)
        if parts.valid is not None:
            restore(model, trainer.saved_model_file)
        made.extend((model, trainer))

    before = high_water_mark()
    report["training_rss_mb"] = resident.peak_mb(train)
    report["training_peak_mb"] = high_water_mark()
    model, trainer = made
    judged = None if parts.test is None else trainer.evaluate(parts.test, load_best_model=False)
    report["test"] = judged and {name: float(value) for name, value in judged.items()}
    scored = dataset.user_num if job.get("piece_seconds") is None else 1
    write_scores(model, dataset, config, events, folder / "scores.npy", users=scored - 1)
    report["users"] = list(dataset.field2id_token[dataset.uid_field][1:scored])  # 0 is padding
    report["items"] = list(dataset.field2id_token[dataset.iid_field][1:])
    report["peak_rss_mb"] = max(before, high_water_mark())
    packages = ("recbole", "torch", "numpy", "scipy", "pandas")
    report["versions"] = {name: importlib.metadata.version(name) for name in packages}
    report["versions"]["python"] = platform.python_version()
    (folder / "report.json").write_text(json.dumps(report))


# ------------------------------------------------------------------------------------------------ configuration


def configure(job: dict[str, Any], folder: Path) -> Config:
    """RecBole's configuration: ours fixed, the job's settings checked against the names RecBole knows."""
    fixed: dict[str, Any] = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id"], "user": ["user_id"], "item": ["item_id"]},
        "eval_args": {"split": {"RS": [1, 0, 0]}, "group_by": "user", "order": "RO", "mode": "full"},
        "seed": job["seed"],
        "reproducibility": True,
        "use_gpu": False,
        "gpu_id": "",
        "worker": 0,
        "show_progress": False,
        "state": "WARNING",
        "log_wandb": False,
        "save_dataset": False,
        "save_dataloaders": False,
    }
    if job["sequence"]:
        fixed["load_col"]["inter"].append("timestamp")
        fixed["eval_args"]["order"] = "TO"
    else:
        fixed["benchmark_filename"] = job["parts"]
    if job["epochs"] is not None:
        fixed["epochs"] = job["epochs"]
    settings = dict(job["settings"])
    ours = {*fixed, "epochs", "model", "dataset", "benchmark_filename"} & set(settings)
    if ours:
        raise SystemExit(
            f"recbole_run: {', '.join(sorted(ours))}: set by the program or its arguments, not by settings"
        )
    cross_entropy = job["sequence"] and settings.get("loss_type", "CE") == "CE"
    if (
        job["model"] == "MultiVAE" or cross_entropy
    ):  # their losses need no negatives, and RecBole wants to be told
        fixed["train_neg_sample_args"] = None
    defaults = Config(job["model"], "data", config_dict={**fixed, "train_neg_sample_args": None})
    known = set(defaults.final_config_dict)
    for name in sorted(set(settings) - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SystemExit(f"recbole_run: RecBole's {job['model']} has no setting {name!r}{hint}")
    return Config(job["model"], "data", config_dict={**fixed, **settings})


# ------------------------------------------------------------------------------------------------ data


def plain_parts(config: Config, dataset: Any, job: dict[str, Any], folder: Path, events: None) -> Parts:
    """The parts as they are in their files."""
    names = job["parts"]
    built = dict(zip(names, dataset.build()))
    sampler = samplers(config, dataset, list(built.values()), names)
    return loaders(config, built, sampler, sampler)


def sequence_parts(
    config: Config, dataset: Any, job: dict[str, Any], folder: Path, events: Sequence[list[int]]
) -> Parts:
    """All prefixes of all histories for training; a history and one held-out item for each event of the others."""
    train = dataset.build()[0]
    built = {"train": train}
    for name in job["parts"][1:]:
        pairs = read_pairs(dataset, folder / "data" / f"data.{name}.inter")
        pairs = pairs[
            [bool(events[user]) for user in pairs[:, 0]]
        ]  # nothing is known of a user without history
        rows = prompt(dataset, config, events, pairs[:, 0])
        rows.update(Interaction({dataset.iid_field: torch.from_numpy(pairs[:, 1])}))
        built[name] = train.copy(rows)
    return loaders(config, built, samplers(config, dataset, [train], ["train"]), None)


def samplers(config: Config, dataset: Any, built: list[Any], names: list[str]) -> Any:
    """RecBole's sampler of negatives; for evaluation it only says which items a user already has."""
    drawn = config["train_neg_sample_args"]
    law, alpha = drawn["distribution"], drawn["alpha"]
    law, alpha = ("uniform", 1.0) if law == "none" else (law, alpha)
    if config["repeatable"]:
        return RepeatableSampler(names, dataset, law, alpha)
    return Sampler(names, built, law, alpha)


def loaders(config: Config, built: dict[str, Any], sampler: Any, judging: Any) -> Parts:
    """RecBole's loaders of the parts there are."""
    draws = config["train_neg_sample_args"]["distribution"] != "none"
    train = get_dataloader(config, "train")(
        config, built["train"], sampler.set_phase("train") if draws else None, shuffle=config["shuffle"]
    )
    phase = lambda name: judging.set_phase(name) if judging is not None else None
    rest = [
        get_dataloader(config, name)(config, built[name], phase(name), shuffle=False)
        if name in built
        else None
        for name in ("valid", "test")
    ]
    return Parts(built["train"], train, *rest)


def read_pairs(dataset: Any, path: Path) -> np.ndarray:
    """The (user, item) rows of a file in RecBole's numbers, in the file's order."""
    rows = [line.split("\t")[:2] for line in path.read_text().splitlines()[1:]]
    fields = (dataset.uid_field, dataset.iid_field)
    return np.array(
        [[dataset.field2token_id[f][token] for f, token in zip(fields, row)] for row in rows], np.int64
    )


def histories(dataset: Any, folder: Path) -> list[list[int]]:
    """Each user's items in order, by RecBole's numbers (the file is in the order of user and time)."""
    found: list[list[int]] = [[] for _ in range(dataset.user_num)]
    for user, item in read_pairs(dataset, folder / "data" / "data.inter"):
        found[user].append(int(item))
    return found


def prompt(dataset: Any, config: Config, events: Sequence[list[int]], users: np.ndarray) -> Interaction:
    """The histories of `users` as a sequence model reads them: the last items, padded with 0."""
    width = config["MAX_ITEM_LIST_LENGTH"]
    lists = torch.zeros((len(users), width), dtype=torch.int64)
    length = torch.ones(len(users), dtype=torch.int64)
    for row, user in enumerate(users):
        last = events[user][-width:]
        lists[row, : len(last)] = torch.tensor(last, dtype=torch.int64)
        length[row] = max(len(last), 1)
    names = (dataset.uid_field, dataset.iid_field + config["LIST_SUFFIX"], dataset.item_list_length_field)
    return Interaction(dict(zip(names, (torch.as_tensor(users), lists, length))))


# ------------------------------------------------------------------------------------------------ training, scores


class Epoch(NamedTuple):
    """What an epoch took, evaluation not counted, and how many steps it had."""

    seconds: float
    cpu_seconds: float
    steps: int


class Piece:
    """A loader that ends after some seconds."""

    def __init__(self, loader: Any, limit: float) -> None:
        self.loader, self.limit, self.steps = loader, limit, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        began = time.process_time()
        for batch in self.loader:
            yield batch
            self.steps += 1
            if time.process_time() - began > self.limit:
                return


def timed(trainer: Any, limit: float | None) -> list[Epoch]:
    """A list that fills with the training epochs; each is also told on stderr. `limit`: CPU seconds of an epoch."""
    epochs: list[Epoch] = []
    epoch: Callable[..., Any] = trainer._train_epoch

    def measured(loader: Any, *arguments: Any, **named: Any) -> Any:
        part = loader if limit is None else Piece(loader, limit)
        began, cpu = time.perf_counter(), time.process_time()
        loss = epoch(part, *arguments, **named)
        steps = part.steps if isinstance(part, Piece) else len(loader)
        epochs.append(Epoch(time.perf_counter() - began, time.process_time() - cpu, steps))
        print(f"epoch {len(epochs)}: {epochs[-1].seconds:.2f} s", file=sys.stderr, flush=True)
        return loss

    trainer._train_epoch = measured
    return epochs


def restore(model: Any, path: str) -> None:
    """The parameters of the best epoch. The checkpoint holds more than weights, which torch refuses unless told."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint.get("other_parameter"))


@torch.no_grad()
def write_scores(
    model: Any, dataset: Any, config: Config, events: Sequence[list[int]] | None, path: Path, *, users: int
) -> None:
    """Scores of the first `users` users and all items, a block of users at a time, straight into the file."""
    model.eval()
    items = dataset.item_num - 1
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(users, items))
    block = max(1, PAIRS // (items + 1))
    for begin in range(0, users, block):
        who = np.arange(begin + 1, min(begin + block, users) + 1)
        if events is None:
            asked = Interaction({dataset.uid_field: torch.from_numpy(who)})
        else:
            asked = prompt(dataset, config, events, who)
        try:
            scores = model.full_sort_predict(asked)
        except NotImplementedError:  # NeuMF
            pairs = asked.repeat_interleave(items + 1)
            pairs.update(Interaction({dataset.iid_field: torch.arange(items + 1).repeat(len(who))}))
            scores = model.predict(pairs)
        rows = scores.reshape(len(who), items + 1)[:, 1:].cpu().numpy()
        if events is not None:
            rows = rows * np.array([[bool(events[user])] for user in who])  # no history, no opinion
        table[who - 1] = rows
    table.flush()


def high_water_mark() -> float:
    """Most memory this process has held, in 1e6 bytes (since `resident` last reset the mark, on Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        mark = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(mark.split()[1]) * 1024 / 1e6
    import psutil

    return resident._high_water_mark(psutil.Process()) / 1e6


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    main(place)
