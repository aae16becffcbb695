"""Explanations of a trained model from the command line, as `scripts/run_explain.py` runs it: train, ask, verify."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel.atomic import atomic_write, plain
from bilevel.devices import environment, peak_rss
from experiments import report
from experiments.record import Records
from experiments.training import Training, ids_of, parts_of, spec_of, trained
from models import registry
from models.data import Dataset, Interactions
from models.explain import Explanations, Verified, counterfactual, verify, whole
from models.explain.counterfactual import Method
from models.explain.fia import Variant, check_damping, variant_of
from models.train import Fitted, begin, top_k


class Asking(NamedTuple):
    """What is asked.

    Attributes:
        training: of the recommender.
        users: names of users as in the file, or how many to draw.
        rank: which item of each list is explained, from 1; None: the best one by the paper's rule, which another item
            of the list is to overtake. A number: that item is to leave the list.
        k: length of the lists.
        method, variant, damping: see `models.explain.counterfactual`.
        seeds: trainings without each set; 0: nothing is verified.
        epochs: of these trainings, from the trained parameters; None: from fresh ones, as the model is trained.
    """

    training: Training
    users: list[str] | int
    rank: int | None
    k: int
    method: Method
    variant: Variant | None
    damping: float | None
    seeds: int
    epochs: int | None


def run(asking: Asking, out: Path, *, progress: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Train, explain, verify, each unless the folder holds it already; write, and give back the record.

    Args:
        asking: what is asked.
        out: folder for `model.npz`, `explanations.json` and `explanations.png`, and `records/` of all that was asked.
        progress: show a bar.
        say: told one line a stage.

    Raises:
        ValueError: unknown users; numbers out of range; what the recommender cannot explain.
    """
    plan = asking.training
    parts = parts_of(plan)
    who = _users(plan.data, parts.train, asking)
    _check(asking, parts.train)
    fitted, _ = trained(plan, parts, out, progress=progress, say=say)
    records = Records(out / "records")
    spec = _spec(asking)
    question = {"study": "sets"} | {
        name: value for name, value in spec.items() if name not in ("seeds", "epochs")
    }

    def explain() -> Explanations:
        items = None
        if asking.rank is not None:
            best = top_k(fitted, jnp.asarray(who), asking.k, exclude=parts.train)
            items = np.asarray(best)[:, asking.rank - 1]
        say(f"explaining {len(who)} recommendations, after a compilation")
        options: dict[str, Any] = {
            name: getattr(asking, name) for name in ("k", "method", "variant", "damping")
        }
        return counterfactual(fitted, parts.train, who, items, **options)

    def check(asked: Explanations) -> Verified:
        model, start = plan.model, None
        if asking.epochs is not None:
            model, start = (
                registry.make(model.name, **{**model.config, "epochs": asking.epochs}),
                fitted.params,
            )
        key = jax.random.fold_in(jax.random.key(plan.seed), 2)
        told = lambda done, of: say(f"  {done} of {of} trainings without a set")
        leaves = None if asking.rank is None else asking.k
        return verify(model, parts.train, asked, key, k=leaves, seeds=asking.seeds, params0=start, tell=told)

    asked = _once(records, question, Explanations, explain)
    found, seen = records.get(question), None
    if asking.seeds:
        say(f"training {asking.seeds} times without each of {int(asked.found.sum())} sets")
        seen = _once(records, {"study": "verified", **spec}, Verified, lambda: check(asked))
    record = _record(asking, asked, seen, found.about["seconds"] if found else 0.0)
    with atomic_write(out / "explanations.json") as file:
        file.write(json.dumps(plain(record), indent=1, sort_keys=True).encode())
    _show(asking, asked, seen)
    _draw(asking, asked, seen, out)
    sys.stdout.write(f"written: {out / 'explanations.json'}, {out / 'explanations.png'}\n")
    return record


Answer = TypeVar("Answer", Explanations, Verified)


def _once(
    records: Records, spec: Mapping[str, Any], kind: type[Answer], make: Callable[[], Answer]
) -> Answer:
    """What was found before for the same question, or what `make` finds now, kept."""
    record = records.get(spec)
    if record is None:
        began = time.perf_counter()
        found = make()
        records.put(spec, found._asdict(), seconds=time.perf_counter() - began)
        return found
    return kind(*(_array(record.result[name], name) for name in kind._fields))


def _array(value: Any, name: str) -> Any:
    """A field of an answer as it was before it became JSON."""
    if name == "queries":
        return value
    kinds = {"found": bool, "confirmed": bool, "control": bool, "gap": float, "control_gap": float}
    return np.asarray(value, kinds.get(name, np.int32))


def _check(asking: Asking, train: Interactions) -> None:
    """Refuse before the training what could not be explained after it.

    Raises:
        ValueError: a list as long as there are items; parameters, or a variant, that the recommender does not have; a
            loss that cannot be followed.
    """
    spare = 0 if asking.rank is None else 1
    if not 2 - spare <= asking.k <= train.items - spare:
        raise ValueError(
            f"k={asking.k}: expected {2 - spare} to {train.items - spare}, lists that leave an item to take a place"
        )
    check_damping(asking.damping)
    if "attention" in asking.method:
        if asking.variant is not None or asking.damping is not None:
            raise ValueError(f"{asking.method} follows no gradient: leave out --variant and --damping")
    else:
        key = jax.random.key(0)
        start = begin(asking.training.model, train, key)
        fitted = Fitted(asking.training.model, start.params, start.data, start.x, None)
        if variant_of(fitted, asking.variant) == "full":
            whole.check(fitted, train, key)


def _spec(asking: Asking) -> dict[str, Any]:
    rest = {name: value for name, value in asking._asdict().items() if name != "training"}
    return {"training": spec_of(asking.training), **rest}


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
                row["control_rank"] = (seen.control_rank[n] + 1).tolist()
        rows.append(row)
    return {
        "spec": _spec(asking),
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
            "longer, give a larger --damping, or verify them"
        )
    if seen is not None and found:
        event = (
            "the other item is ahead" if asking.rank is None else f"the item is not among the best {asking.k}"
        )
        notes.append(
            f"{int(seen.confirmed.sum())} of {asked.queries} confirmed: {event}, on average over {asking.seeds} "
            f"trainings without the set; so it is of {int(seen.control.sum())} with nothing removed"
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
