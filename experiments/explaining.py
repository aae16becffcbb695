"""Explanations of a trained model from the command line, as `scripts/run_explain.py` runs it: train, ask, verify."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel.atomic import atomic_write, plain
from bilevel.devices import environment, peak_rss
from experiments import report
from experiments.training import Training, ids_of, parts_of, spec_of, trained
from models import registry
from models.data import Dataset, Interactions
from models.explain import Explanations, Verified, counterfactual, verify
from models.explain.counterfactual import Method
from models.explain.fia import Variant
from models.train import top_k


class Asking(NamedTuple):
    """What is asked.

    Attributes:
        training: of the recommender.
        users: names of users as in the file, or how many to draw.
        rank: which item of each list is explained, from 1; None: the best one by the paper's rule, which another item
            of the list is to overtake. A number: that item is to leave the list.
        k: length of the lists.
        method, variant: see `models.explain.counterfactual`.
        seeds: trainings without each set; 0: nothing is verified.
        epochs: of these trainings, from the trained parameters; None: from fresh ones, as the model is trained.
    """

    training: Training
    users: list[str] | int
    rank: int | None
    k: int
    method: Method
    variant: Variant | None
    seeds: int
    epochs: int | None


def run(asking: Asking, out: Path, *, progress: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Train (or read what is in the folder), explain, verify, write; gives back the record.

    Args:
        asking: what is asked.
        out: folder for `model.npz`, `explanations.json` and `explanations.png`.
        progress: show a bar.
        say: told one line a stage.

    Raises:
        ValueError: unknown users; numbers out of range; what the recommender cannot explain.
    """
    plan = asking.training
    parts = parts_of(plan)
    who = _users(plan.data, parts.train, asking)
    fitted, _ = trained(plan, parts, out, progress=progress, say=say)
    items = None
    if asking.rank is not None:
        items = np.asarray(top_k(fitted, jnp.asarray(who), asking.k, exclude=parts.train))[:, asking.rank - 1]
    say(f"explaining {len(who)} recommendations")
    began = time.perf_counter()
    asked = counterfactual(
        fitted, parts.train, who, items, k=asking.k, method=asking.method, variant=asking.variant
    )
    seconds, seen = time.perf_counter() - began, None
    if asking.seeds:
        say(f"training {asking.seeds} times without each of {int(asked.found.sum())} sets")
        model, start = plan.model, None
        if asking.epochs is not None:
            model, start = (
                registry.make(model.name, **{**model.config, "epochs": asking.epochs}),
                fitted.params,
            )
        key = jax.random.fold_in(jax.random.key(plan.seed), 2)
        seen = verify(model, parts.train, asked, key, seeds=asking.seeds, params0=start)
    record = _record(asking, asked, seen, seconds)
    with atomic_write(out / "explanations.json") as file:
        file.write(json.dumps(plain(record), indent=1, sort_keys=True).encode())
    _show(asking, asked, seen)
    _draw(asking, asked, seen, out)
    sys.stdout.write(f"written: {out / 'explanations.json'}, {out / 'explanations.png'}\n")
    return record


def _users(data: Dataset, train: Interactions, asking: Asking) -> np.ndarray:
    if asking.rank is not None and not 1 <= asking.rank <= asking.k:
        raise ValueError(f"rank={asking.rank}; expected 1..{asking.k}, a place in the list")
    if asking.seeds < 0:
        raise ValueError(f"seeds={asking.seeds}; expected 0 (no verification) or more")
    if isinstance(asking.users, list):
        return np.asarray(ids_of(data, asking.users), np.int32)
    there = np.flatnonzero(np.asarray(train.degrees()) > 0)
    if not 1 <= asking.users <= there.size:
        raise ValueError(
            f"users={asking.users}; expected 1..{there.size}, users with interactions to draw from"
        )
    rng = np.random.default_rng(asking.training.seed)
    return np.sort(rng.choice(there, asking.users, replace=False)).astype(np.int32)


def _record(asking: Asking, asked: Explanations, seen: Verified | None, seconds: float) -> dict[str, Any]:
    data = asking.training.data
    user, item = data.user_ids, data.item_ids
    rows: list[dict[str, Any]] = []
    for n in range(asked.queries):
        row: dict[str, Any] = {"user": str(user[asked.user[n]]), "item": str(item[asked.item[n]])}
        row |= {"found": bool(asked.found[n]), "solver": bilevel.Code(int(asked.code[n])).name}
        if asked.found[n]:
            row["removed"] = [str(item[i]) for i in asked.removed[n] if i >= 0]
            row["replacement"] = str(item[asked.replacement[n]])
            if seen is not None:
                row |= {"confirmed": bool(seen.confirmed[n]), "control": bool(seen.control[n])}
                row |= {"gap": seen.gap[n].tolist(), "rank": (seen.rank[n] + 1).tolist()}
        rows.append(row)
    rest = {name: value for name, value in asking._asdict().items() if name != "training"}
    return {
        "spec": {"training": spec_of(asking.training), **rest},
        "explanations": rows,
        "queries": asked.queries,
        "seconds": seconds,
        "peak_rss": peak_rss(),
        "environment": environment(),
    }


def _show(asking: Asking, asked: Explanations, seen: Verified | None) -> None:
    data, rows = asking.training.data, []
    name = lambda i: str(data.item_ids[i])
    for n in range(asked.queries):
        sets = ", ".join(name(i) for i in asked.removed[n] if i >= 0) or "-"
        row = [str(data.user_ids[asked.user[n]]), name(asked.item[n]), sets]
        row.append(name(asked.replacement[n]) if asked.found[n] else "-")
        if seen is not None:
            row.append("-" if not asked.found[n] else "yes" if seen.confirmed[n] else "no")
        rows.append(row)
    header = ["user", "recommended", "because of", "else", *(["confirmed"] if seen is not None else [])]
    found = int(asked.found.sum())
    size = f", by {asked.sizes[asked.found].mean():.1f} items each" if found else ""
    notes = [f"{found} of {asked.queries} explained{size}"]
    if not asked.sound.all():
        notes.append(
            f"{int((~asked.sound).sum())} answers rest on a linear solve that did not hold (see the record): train "
            "longer, or verify them"
        )
    if seen is not None and found:
        notes.append(
            f"{int(seen.confirmed.sum())} of {asked.queries} confirmed by {asking.seeds} trainings without the set; "
            f"{int(seen.control.sum())} swaps happen with nothing removed"
        )
    report.show(f"why {asking.training.model.name} recommends on {data.name}", header, rows, notes)


def _draw(asking: Asking, asked: Explanations, seen: Verified | None, out: Path) -> None:
    sizes = asked.sizes[asked.found]
    made, axes = report.figure()
    bins = np.arange(1, max(2, int(sizes.max(initial=1)) + 2)) - 0.5
    if seen is None:
        axes[0, 0].hist(sizes, bins)
    else:
        yes = seen.confirmed[asked.found]
        axes[0, 0].hist([sizes[yes], sizes[~yes]], bins, stacked=True, label=["confirmed", "not"])
        axes[0, 0].legend(frameon=False)
    title = f"{asking.training.model.name}, {asking.method}: {sizes.size} of {asked.queries} explained"
    axes[0, 0].set(xlabel="items in the set", ylabel="explanations", title=title)
    report.save(made, out / "explanations.png")
