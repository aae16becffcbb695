"""A recommender behind each of several defenses, clean and attacked: what `scripts/run_defense.py` does.

The fake users are injected into the data, where no defense can tell them from the real ones. Every seed has a record of
its own, so a killed run continues.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from attacks.driver import describe
from bilevel.atomic import plain
from experiments import report
from experiments.campaign import Campaign, case_of, check_same, craft, facts_of
from experiments.pipeline import Case, measured, poisoned, profile_facts
from experiments.record import Record, Records
from models.data import Dataset, Interactions, Profiles
from models.evaluation import robustness_improvement
from models.saved import facts
from models.train import Fitted

Trainer = Callable[[Interactions, Array], Fitted]
"""Data at hand and a key; a defended model."""


def run(
    plan: Campaign,
    defenses: Mapping[str, Trainer],
    out: Path,
    *,
    profiles: Path | None,
    progress: bool,
    say: Callable[[str], None],
) -> list[Record]:
    """Run the seeds that have no record yet; give back the records of all.

    Args:
        plan: data, attack, the one victim, targets and seeds.
        defenses: trainers by the name they were given, from `experiments.names.defense`.
        out: folder of `records/`, and of `profiles/` and `snapshots/` of what is crafted.
        profiles: file of fake users made before, in place of `plan.attack`, which nobody looks at then; None: craft.
        progress: show a bar for each craft.
        say: told one line a stage.

    Returns:
        one record a seed, in the order of the seeds.

    Raises:
        ValueError: profiles of other items, another track or other targets than the plan's.
    """
    records, found = Records(out / "records"), []
    for seed in plan.seeds:
        case = case_of(plan, seed)
        spec = spec_of(plan, defenses, seed, profiles)
        record = records.get(spec)
        if record is None:
            say(f"seed {seed}: {'reading' if profiles else 'crafting'} the fake users")
            stem = records.path(spec).stem
            if profiles:
                fakes = load(profiles, case)
            else:
                fakes = craft(plan, case, spec, out, stem, progress=progress).profiles
            source = {"profiles": profiles.name} if profiles else {}
            records.put(spec, source | judged(plan, case, fakes, defenses, say))
            record = records.get(spec)
        else:
            say(f"seed {seed}: done before, {records.path(spec)}")
        assert record is not None
        found.append(record)
    return found


def spec_of(
    plan: Campaign, defenses: Mapping[str, Trainer], seed: int, profiles: Path | None
) -> dict[str, Any]:
    """The facts that make a repetition the one it is, in terms of JSON; saved fake users are what their file holds."""
    ((victim, model),) = plan.victims.items()
    if profiles is None:
        attack = {**describe(plan.attack), "steps": plan.attack.steps}
    else:
        attack = {"profiles": hashlib.sha256(profiles.read_bytes()).hexdigest()}
    return plain(
        {
            "study": "defense",
            "data": facts_of(plan.data),
            "attack": attack,
            "victim": {"given": victim, "name": model.name, **facts(model.config)},
            "defenses": list(defenses),
            "targets": plan.targets,
            "count": plan.count,
            "split": plan.split,
            "k": plan.k,
            "seed": seed,
        }
    )


def load(path: Path, case: Case) -> Profiles:
    """Saved fake users that fit the data and the targets of a repetition.

    Raises:
        ValueError: other items, another track, or other targets.
    """
    profiles, _ = Profiles.load(path)
    if profiles.items != case.train.items or profiles.track != case.train.track:
        raise ValueError(
            f"{path} holds {profiles.track} fake users of {profiles.items} items; the data are {case.train.track} "
            f"with {case.train.items} items: give the data options it was made with"
        )
    theirs, ours = (sorted(np.asarray(targets).tolist()) for targets in (profiles.targets, case.targets))
    if theirs != ours:
        raise ValueError(
            f"{path} was made for the targets {theirs}, but the targets asked for are {ours} (as numbers of the data): "
            "leave out the targets, and the file's are taken"
        )
    return profiles


class Made(NamedTuple):
    """What saved fake users were made with; split and seed are None where the file does not say."""

    targets: str
    split: str | None
    seed: int | None


def made_with(path: Path, data: Dataset) -> Made:
    """The targets of saved fake users by their names in the data, as `Campaign.targets`, and their split and seed.

    Raises:
        ValueError: not a file of fake users, or one made on other data.
    """
    profiles, meta = Profiles.load(path)
    spec = meta.get("spec")
    if spec is not None:
        check_same(path, spec, data)
    targets = np.asarray(profiles.targets)
    if targets.size and targets.max() >= len(data.item_ids):
        raise ValueError(
            f"{path} has the target {targets.max()}, but the data have {len(data.item_ids)} items: "
            "give the data options it was made with"
        )
    names = list(map(str, data.item_ids[targets].tolist()))
    theirs = list(map(str, meta.get("target_names", names)))
    if theirs != names:
        raise ValueError(
            f"{path} was made for the targets {', '.join(theirs)}, which these data have as {', '.join(names)}: "
            "they are other data; give the data options it was made with"
        )
    told = {} if spec is None else spec
    return Made(",".join(names) or "none", told.get("split"), told.get("seed"))


def judged(
    plan: Campaign,
    case: Case,
    profiles: Profiles,
    defenses: Mapping[str, Trainer],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every defense on the clean and on the poisoned data, judged on the real users."""
    found: dict[str, Any] = {}
    both = {"clean": case.train, "attacked": poisoned(case.train, profiles)}
    for name, train in defenses.items():
        say(f"  {name}: training, clean and attacked")
        found[name] = {}
        for at, data in both.items():
            began = time.perf_counter()
            fitted = jax.block_until_ready(train(data, case.keys["victim"]))
            seconds = time.perf_counter() - began
            found[name][at] = measured(fitted, case, k=plan.k) | {"seconds": seconds}
    targets = np.asarray(case.targets).tolist()
    return {"defenses": found, "targets": targets, **profile_facts(profiles, case.train)}


def present(records: list[Record], plan: Campaign, out: Path, *, profiles: Path | None) -> None:
    """Table, figure, markdown, and one JSON file with all records; `profiles` as in `run`."""
    test = "hr_test" if plan.split in ("last", "one") else "recall"
    name = "test HR" if test == "hr_test" else "test Recall"
    header = [
        "defense",
        "seeds",
        f"target HR@{plan.k} clean",
        "attacked",
        "RI",
        f"{name}@{plan.k} clean",
        "attacked",
    ]
    values = lambda defense, at, metric: [r.result["defenses"][defense][at][metric] for r in records]
    defenses = list(records[0].result["defenses"])
    rows = []
    for defense in defenses:
        target, kept = (
            [report.interval(values(defense, at, metric), 3, "mean") for at in ("clean", "attacked")]
            for metric in ("hr_any", test)
        )
        rows.append([defense, str(len(records)), *target, _improvement(values, defense, defenses), *kept])
    source = f"fake users of the file {profiles.name}" if profiles else f"attack {plan.attack.name}"
    notes = [
        "mean [95% bootstrap interval] over seeds; HR: share of real users with a target in their list (hr_any)",
        "RI: share of the attack's effect on the undefended model that is gone; 1 is all of it",
        f"{source}; fake users are injected into the data, and no defense is told who they are",
    ]
    title = f"{next(iter(plan.victims))} on {'toy' if plan.data is None else plan.data.name}"
    report.show(title, header, rows, notes)
    made, axes = report.figure(width=1.6 * len(defenses) + 2)
    bars = [(d, at) for d in defenses for at in ("clean", "attacked")]
    report.bars(axes[0, 0], [f"{d}\n{at}" for d, at in bars], [values(d, at, "hr_any") for d, at in bars])
    axes[0, 0].set(ylabel=f"target HR@{plan.k}")
    picture = report.save(made, out / "figure.png")
    text = report.markdown(header, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    (out / "table.md").write_text(text)
    (out / "run.json").write_text(json.dumps({"records": [record._asdict() for record in records]}, indent=1))
    sys.stdout.write(f"written: {out / 'table.md'}, {picture}, {out / 'run.json'}\n")


def _improvement(values: Callable[[str, str, str], list[float]], defense: str, defenses: list[str]) -> str:
    if "none" not in defenses or defense == "none":
        return "-"
    three = [
        values(defense, "attacked", "hr_any"),
        values("none", "attacked", "hr_any"),
        values("none", "clean", "hr_any"),
    ]
    found = robustness_improvement(*(np.mean(v) for v in three))
    return "-" if np.isnan(float(found.value)) else f"{float(found.value):.3f}"
