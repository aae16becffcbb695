"""One training from a data set to a saved model, as `scripts/run_training.py` runs it: split, fit, judge, recommend."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from bilevel.atomic import atomic_write, plain
from bilevel.devices import environment, peak_rss
from experiments import report
from experiments.campaign import check_learns, check_length, facts_of
from models import saved
from models.data import Dataset, Split, holdout_one, random_events, revadv_split
from models.evaluation import evaluate
from models.recommender import Recommender
from models.stopping import Metric, fit_early
from models.train import Fitted, fit, top_k

SPLITS = ("rapu", "revadv", "last", "one")


class Training(NamedTuple):
    """What is trained.

    Attributes:
        data: a data set.
        model: a recommender.
        split: "rapu" 80/10/10 over events, "revadv" 20% of each user, "last" the last event of each user, "one" a
            random one.
        early, metric, every, patience: early stopping, see `models.stopping.fit_early`.
        k: list length of every metric.
        seed: decides split, initial parameters and batches.
    """

    data: Dataset
    model: Recommender
    split: Literal["rapu", "revadv", "last", "one"]
    early: bool
    metric: Metric
    every: int
    patience: int
    k: int
    seed: int


def parts_of(plan: Training) -> Split:
    """The split of a training.

    Raises:
        ValueError: early stopping on a split without validation.
    """
    key = jax.random.fold_in(jax.random.key(plan.seed), 0)
    events = plan.data.interactions
    if plan.split == "rapu":
        parts = random_events(events, key)
    elif plan.split == "revadv":
        parts = revadv_split(events, key)
    elif plan.split == "last":
        parts = holdout_one(events, key, order="last", validation=True, least=3)
    else:
        parts = holdout_one(events, key)
    if plan.early and parts.validation is None:
        raise ValueError(
            f"split={plan.split!r} has no validation part to stop early on; use 'rapu' or 'last'"
        )
    return parts


def spec_of(plan: Training) -> dict[str, Any]:
    """The facts that make a training the one it is, in terms of JSON."""
    facts = plan._asdict() | {
        "data": facts_of(plan.data),
        "model": {"name": plan.model.name, **saved.facts(plan.model.config)},
    }
    if not plan.early:
        facts = {name: value for name, value in facts.items() if name not in ("metric", "every", "patience")}
    return plain({name: value for name, value in facts.items() if name != "k"})


def run(
    plan: Training,
    out: Path,
    *,
    users: list[str] | None,
    count: int,
    progress: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train (or read what is in the folder), judge, save, recommend; gives back the record.

    Args:
        plan: what is trained.
        out: folder for `model.npz`, `record.json`, snapshots and the curve.
        users: names of users to print recommendations for; None: nobody.
        count: recommendations a user.
        progress: show a bar.
        say: told one line a stage.

    Raises:
        ValueError: unknown users; a setting the data or the model have no use for.
    """
    parts = parts_of(plan)
    check_length(plan.k, parts.train.items)  # all of it before anything is trained
    check_learns(plan.model.name, plan.model, parts.train)
    who = None if users is None else ids_of(plan.data, users)
    if users is not None:
        check_length(count, parts.train.items)
    fitted, record = trained(plan, parts, out, progress=progress, say=say)
    found = evaluate(Partial(Fitted.scores, fitted), parts.train, test=parts.test, k=plan.k)
    names = ("recall", "ndcg", "precision", "hr_test")
    judged = {f"{name}@{plan.k}": float(np.asarray(getattr(found, name))) for name in names}
    record |= {"test": judged}
    with atomic_write(out / "record.json") as file:
        file.write(json.dumps(record, indent=1, sort_keys=True).encode())
    rows = [[name, f"{value:.4f}"] for name, value in judged.items()]
    rows += [
        ["seconds of training", f"{record['seconds']:.1f}"],
        ["peak memory, GB", f"{record['peak_rss'] / 1e9:.2f}"],
    ]
    report.show(f"{plan.model.name} on {plan.data.name}, split {plan.split}", ["test", "value"], rows)
    if who is not None and users is not None:
        lists = np.asarray(top_k(fitted, jnp.asarray(who), count, exclude=parts.train))
        shown = [
            [name, ", ".join(map(str, plan.data.item_ids[row]))]
            for name, row in zip(users, lists, strict=True)
        ]
        report.show(f"the {count} best items not seen in training", ["user", "items"], shown)
    sys.stdout.write(f"written: {out / 'model.npz'}, {out / 'record.json'}\n")
    return record


def trained(
    plan: Training, parts: Split, out: Path, *, progress: bool, say: Callable[[str], None]
) -> tuple[Fitted, dict[str, Any]]:
    """The model in the folder, or a new one that is put there; and its record.

    Raises:
        ValueError: the folder holds the model of another training.
    """
    out.mkdir(parents=True, exist_ok=True)
    spec = spec_of(plan)
    fitted, record = _read(plan, parts, spec, out, say)
    return (fitted, record) if fitted is not None else _train(plan, parts, spec, out, progress, say)


def ids_of(data: Dataset, users: list[str]) -> list[int]:
    """Numbers of users by the names of the file.

    Raises:
        ValueError: names the data do not have.
    """
    where = {str(name): number for number, name in enumerate(data.user_ids.tolist())}
    missing = [name for name in users if name not in where]
    if missing:
        raise ValueError(f"{data.name} has no user {', '.join(missing)} (ids as in the file)")
    return [where[name] for name in users]


def _read(
    plan: Training, parts: Split, spec: dict[str, Any], out: Path, say
) -> tuple[Fitted | None, dict[str, Any]]:
    path = out / "model.npz"
    if not path.exists():
        return None, {}
    fitted, meta = saved.load(path, parts.train) if _same(path, spec) else (None, {})
    if fitted is None:
        raise ValueError(f"{path} is the model of another training; give another --out, or remove it")
    say(f"read {path}, trained before")
    return fitted, meta["record"]


def _same(path: Path, spec: dict[str, Any]) -> bool:
    return saved.metadata(path).get("spec") == spec


def _train(
    plan: Training, parts: Split, spec: dict[str, Any], out: Path, progress: bool, say
) -> tuple[Fitted, dict[str, Any]]:
    key = jax.random.fold_in(jax.random.key(plan.seed), 1)
    say(f"{plan.data.interactions}; training {plan.model!r}")
    record: dict[str, Any] = {"spec": spec, "environment": plain(environment())}
    if plan.early:
        assert parts.validation is not None
        done = fit_early(
            plan.model,
            parts.train,
            key,
            parts.validation,
            metric=plan.metric,
            k=plan.k,
            every=plan.every,
            patience=plan.patience,
            progress=progress,
            store=out / "snapshots",
            spec=spec,
        )
        fitted, seconds = done.fitted, done.seconds
        record |= {"validation": done.history.tolist(), "best_epoch": done.best_epoch, "epochs": done.epochs}
        _draw(plan, done.history, out)
    else:
        began = time.perf_counter()
        fitted = jax.block_until_ready(fit(plan.model, parts.train, key))
        seconds = time.perf_counter() - began
    record |= {"seconds": seconds, "peak_rss": peak_rss()}
    saved.save(out / "model.npz", fitted, parts.train, meta={"spec": spec, "record": record})
    return fitted, record


def _draw(plan: Training, history: np.ndarray, out: Path) -> None:
    made, axes = report.figure()
    axes[0, 0].plot(plan.every * np.arange(1, len(history) + 1), history)
    axes[0, 0].set(xlabel="epoch", ylabel=f"validation {plan.metric}@{plan.k}", title=f"{plan.model.name}")
    report.save(made, out / "history.png")
