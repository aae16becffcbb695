"""A recommender behind each of several defenses, clean and attacked: what `scripts/run_defense.py` does.

The fake users are injected into the data, where no defense can tell them from the real ones. Where the attacker knows
the defenses, each meets fake users of its own beside those that are the same for all. Every craft and every defense has
a record of its own, so a killed run continues, and another defense is judged with the fake users there are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import attacks
from attacks.attack import Attack
from bilevel.atomic import plain
from experiments import campaign, report
from experiments.campaign import Campaign, case_of, check_same, crafted, facts_of, judgment_of
from experiments.guarded import Guard
from experiments.pipeline import Case, measured, poisoned, profile_facts
from experiments.record import Record, Records
from models.data import Dataset, Interactions, Profiles
from models.evaluation import robustness_improvement

Knowing = Mapping[str, Callable[[Interactions], Attack]]
"""By defense: the attack of one who knows it, from a view of the real users. "none" needs none: it is the attack."""


def check(plan: Campaign, knowing: Knowing) -> None:
    """Refuse an attacker who cannot know a defense, by making each for the first seed.

    Raises:
        TypeError, ValueError: a defense that cannot be put into the surrogate's training.
    """
    view = case_of(plan, plan.seeds[0]).train
    for text, made in knowing.items():
        try:
            made(view)
        except ValueError as problem:
            raise ValueError(f"an attacker who knows {text}: {problem}") from problem


def run(
    plan: Campaign,
    defenses: Mapping[str, Guard],
    out: Path,
    *,
    profiles: Path | None,
    knowing: Knowing | None = None,
    progress: bool,
    say: Callable[[str], None],
) -> list[Record]:
    """Run the seeds that have no record yet; give back the records of all.

    Args:
        plan: data, attack, the one victim, targets and seeds.
        defenses: by the name they were given, from `experiments.names.defense`.
        out: folder of `records/`, and of `profiles/` and `snapshots/` of what is crafted.
        profiles: file of fake users made before, in place of `plan.attack`, which nobody looks at then; None: craft.
        knowing: attackers who know a defense: its fake users are crafted and judged as well.
        progress: show a bar for each craft.
        say: told one line a stage.

    Returns:
        one record a seed, in the order of the seeds.

    Raises:
        ValueError: profiles of other items, another track or other targets than the plan's.
    """
    records, found = Records(out / "records"), []
    keep = functools.partial(crafted, records=records, out=out, progress=progress, say=say)
    for seed in plan.seeds:
        case = case_of(plan, seed)
        spec = spec_of(plan, seed, profiles)
        asked = asked_of(plan, defenses, spec, knowing or {})
        todo = [one for one in asked if records.get(asked[one]) is None]
        if todo or not (profiles or records.get(spec)):
            say(f"seed {seed}: {'reading' if profiles else 'crafting'} the fake users")
            fakes = load(profiles, case) if profiles else keep(plan, case, spec)
            for text, knows in todo:
                own = fakes
                if knows:
                    assert knowing is not None
                    say(f"  crafting those of one who knows {text}")
                    aware = _begun(knowing[text](case.train), defenses[text], case, fakes)
                    own = keep(plan._replace(attack=aware), case, spec | {"against": text})
                say(f"  {text}: training, {'known' if knows else 'clean, attacked'}")
                records.put(asked[text, knows], judged(plan, case, own, defenses[text], knows))
        else:
            say(f"seed {seed}: done before, {records.folder}")
        found.append(_together(records, plan, spec, asked, _source(records, case, spec, profiles)))
    return found


def _begun(attack: Attack, guard: Guard, case: Case, blind: Profiles) -> Attack:
    """The attack of one who knows, begun where the one who does not ended, or with Random where more of those pass."""
    rows = blind.to_rows()
    clicks = np.delete(np.asarray(rows), np.asarray(case.targets), axis=1).sum(1).max()
    others = attacks.random(fakes=blind.fakes, budget=int(clicks))(
        case.keys["attack"], case.train, case.targets
    )
    first = guard.beginning(case.train, rows, others.to_rows())
    init = lambda key, train, targets, given=None: attack.init(
        key, train, targets, first if given is None else given
    )
    return dataclasses.replace(attack, init=init, config={**attack.config, "initial": first})


Asked = dict[tuple[str, bool], dict[str, Any]]
"""By a defense and whether the attacker knows it: what decides how it fares, in terms of JSON."""


def asked_of(plan: Campaign, defenses: Mapping[str, Guard], spec: dict[str, Any], knowing: Knowing) -> Asked:
    """All that is judged beside the fake users of `spec`; who knows a defense has fake users of its own."""
    (model,) = plan.victims.values()
    found: Asked = {}
    for text, guard in defenses.items():
        for knows in (False, True) if text in knowing else (False,):
            fakes = spec | {"against": text} if knows else spec
            behind = {"defense": {"given": text, **guard.facts()}}
            found[text, knows] = judgment_of(fakes, model, plan.k) | behind
    return found


def _source(records: Records, case: Case, spec: dict[str, Any], profiles: Path | None) -> dict[str, Any]:
    """Facts of the fake users: what is on record of their craft, or those of the file."""
    if profiles is None:
        made = records.get(spec)
        assert made is not None
        return made.result
    facts_ = profile_facts(load(profiles, case), case.train)
    return {"profiles": profiles.name, "targets": np.asarray(case.targets).tolist(), **facts_}


def _together(
    records: Records, plan: Campaign, spec: dict[str, Any], asked: Asked, source: dict[str, Any]
) -> Record:
    """The defenses of a seed as one record, which says where the last of them ran."""
    ((victim, _),) = plan.victims.items()
    found = {one: record for one, text in asked.items() if (record := records.get(text)) is not None}
    told = {text: dict(record.result) for (text, knows), record in found.items() if not knows}
    for text, knows in found:
        if knows:
            told[text]["known"] = found[text, knows].result["attacked"]
    last = list(found.values())[-1]
    facts_: dict[str, Any] = {
        "study": "defense",
        "victim": {"given": victim, **last.spec["model"]},
        "defenses": {text: record.spec["defense"] for (text, _), record in found.items()},
        "k": plan.k,
    }
    facts_ |= {"knows": known} if (known := [text for text, knows in found if knows]) else {}
    return Record(plain(spec | facts_), {"defenses": told, **source}, last.about)


def spec_of(plan: Campaign, seed: int, profiles: Path | None) -> dict[str, Any]:
    """What decides the fake users of a repetition; saved ones are what their file holds."""
    if profiles is None:
        return campaign.spec_of(plan, seed)
    return {
        "study": "given",
        "data": facts_of(plan.data),
        "profiles": hashlib.sha256(profiles.read_bytes()).hexdigest(),
        "targets": plan.targets,
        "count": plan.count,
        "split": plan.split,
        "seed": seed,
    }


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


def judged(plan: Campaign, case: Case, fakes: Profiles, guard: Guard, knows: bool) -> dict[str, Any]:
    """A defense on the clean and on the poisoned data, judged on the real users; of one who knows it, without clean."""
    ends = {} if knows else {"clean": case.train}
    found: dict[str, Any] = {}
    for at, data in (ends | {"attacked": poisoned(case.train, fakes)}).items():
        began = time.perf_counter()
        fitted = jax.block_until_ready(guard.fit(data, case.keys["victim"]))
        seconds = time.perf_counter() - began
        found[at] = measured(fitted, case, k=plan.k) | {"seconds": seconds}
    if knows:
        found["attacked"] |= profile_facts(fakes, case.train)
    return found


def present(records: list[Record], plan: Campaign, out: Path, *, profiles: Path | None) -> None:
    """Table, figure, markdown, and one JSON file with all records; `profiles` as in `run`."""
    test = "hr_test" if plan.split in ("last", "one") else "recall"
    name = "test HR" if test == "hr_test" else "test Recall"
    values = lambda defense, at, metric: [r.result["defenses"][defense][at][metric] for r in records]
    told = records[0].result["defenses"]
    defenses = list(told)
    attacked = ["attacked", *(["known"] if any("known" in of for of in told.values()) else [])]
    header = [
        "defense",
        "seeds",
        f"target HR@{plan.k} clean",
        *attacked,
        *("RI" if at == "attacked" else f"RI, {at}" for at in attacked),
        f"{name}@{plan.k} clean",
        *attacked,
    ]
    rows = []
    for defense in defenses:
        # whoever knows that there is no defense attacks as before
        ends = ["clean", *(at if at in told[defense] else "attacked" for at in attacked)]
        target, kept = (
            [report.interval(values(defense, at, metric), 3, "mean") for at in ends]
            for metric in ("hr_any", test)
        )
        gone = [_improvement(values, defense, defenses, at) for at in ends[1:]]
        rows.append([defense, str(len(records)), *target, *gone, *kept])
    source = f"fake users of the file {profiles.name}" if profiles else f"attack {plan.attack.name}"
    notes = [
        "mean [95% bootstrap interval] over seeds; HR: share of real users with a target in their list (hr_any)",
        "RI: share of the attack's effect on the undefended model that is gone; 1 is all of it",
        f"{source}; fake users are injected into the data, and no defense is told who they are",
    ]
    if "known" in attacked:
        notes.append(
            "known: fake users of the same attack by one who knows the defense and has it inside the surrogate: AT's "
            "change, held in the derivative, APT's helpful users renewed in its training, the soft side of a filter's "
            "detector with the cut of the attacker's data; it goes on from the fake users of one who does not know, or "
            "from Random's where more of those pass; who knows there is none attacks as before"
        )
    title = f"{next(iter(plan.victims))} on {'toy' if plan.data is None else plan.data.name}"
    report.show(title, header, rows, notes)
    made, axes = report.figure(width=0.8 * (1 + len(attacked)) * len(defenses) + 2)
    bars = [(d, at) for d in defenses for at in ("clean", *attacked) if at in told[d]]
    report.bars(axes[0, 0], [f"{d}\n{at}" for d, at in bars], [values(d, at, "hr_any") for d, at in bars])
    axes[0, 0].set(ylabel=f"target HR@{plan.k}")
    picture = report.save(made, out / "figure.png")
    text = report.markdown(header, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    (out / "table.md").write_text(text)
    (out / "run.json").write_text(json.dumps({"records": [record._asdict() for record in records]}, indent=1))
    sys.stdout.write(f"written: {out / 'table.md'}, {picture}, {out / 'run.json'}\n")


def _improvement(
    values: Callable[[str, str, str], list[float]], defense: str, defenses: list[str], at: str
) -> str:
    if "none" not in defenses or defense == "none":
        return "-"
    three = [
        values(defense, at, "hr_any"),
        values("none", "attacked", "hr_any"),
        values("none", "clean", "hr_any"),
    ]
    found = robustness_improvement(*(np.mean(v) for v in three))
    return "-" if np.isnan(float(found.value)) else f"{float(found.value):.3f}"
