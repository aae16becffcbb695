"""One attack against victims over seeds: craft, save the profiles, judge, record. What
`scripts/run_attack.py` does.

Every seed is a cell: its profiles and its record are files named by what they are, so a killed run continues,
inside a seed from the attack's last snapshot, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import attacks
from attacks.attack import Attack
from attacks.driver import describe
from experiments.pipeline import Case, judge, make_case, profile_facts, toy_case
from experiments.record import Record, Records
from models.data import PUBLISHED, Dataset, Profiles, pick_targets
from models.recommender import Recommender


class Campaign(NamedTuple):
    """What is run.

    Attributes:
        data: a data set; None: the paper's toy data, drawn from the seed.
        attack: how profiles are made.
        victims: recommenders by the name they were given.
        targets: item ids of the data set's own naming, a popularity stratum, or the name of a published set.
        count: how many targets are drawn from a stratum.
        split: "revadv" or "rapu".
        k: list length of every metric.
        seeds: one repetition each.
    """

    data: Dataset | None
    attack: Attack
    victims: Mapping[str, Recommender]
    targets: str
    count: int
    split: str
    k: int
    seeds: tuple[int, ...]


def case_of(campaign: Campaign, seed: int) -> Case:
    """The repetition of a seed: split and targets.

    Raises:
        ValueError: unknown target ids or stratum.
    """
    if campaign.data is None:
        if campaign.targets not in ("toy", "0"):
            raise ValueError(
                f"targets={campaign.targets!r}: the toy data has one target, item 0; leave --targets out"
            )
        return toy_case(seed)
    case = make_case(campaign.data.interactions, seed, np.zeros(1, np.int32), campaign.split)
    return case._replace(targets=_targets(campaign, case, seed))


def _targets(campaign: Campaign, case: Case, seed: int):
    assert campaign.data is not None
    names = [part.strip() for part in campaign.targets.split(",")]
    where = {str(name): number for number, name in enumerate(campaign.data.item_ids.tolist())}
    if all(name in where for name in names):
        return np.array([where[name] for name in names], np.int32)
    if len(names) > 1:
        missing = [name for name in names if name not in where]
        raise ValueError(
            f"targets: {campaign.data.name} has no item {', '.join(missing)} (ids as in the file)"
        )
    count = len(PUBLISHED[names[0]]) if names[0] in PUBLISHED else campaign.count
    return pick_targets(case.train, names[0], count, seed)


def run(
    campaign: Campaign, out: Path, *, block: int, progress: bool, say: Callable[[str], None]
) -> list[Record]:
    """Run the seeds that have no record yet; give back the records of all.

    Args:
        campaign: what to run.
        out: folder for `profiles/`, `records/` and `snapshots/`.
        block: outer steps between two snapshots.
        progress: show a bar for each craft.
        say: told one line a stage.

    Returns:
        one record a seed, in the order of the seeds.
    """
    records = Records(out / "records")
    found = []
    for number, seed in enumerate(campaign.seeds):
        spec = spec_of(campaign, seed)
        record = records.get(spec)
        if record is None:
            say(f"seed {seed} ({number + 1} of {len(campaign.seeds)})")
            records.put(
                spec, _repetition(campaign, seed, spec, records.path(spec).stem, out, block, progress, say)
            )
            record = records.get(spec)
        else:
            say(f"seed {seed}: done before, {records.path(spec)}")
        assert record is not None
        found.append(record)
    return found


def spec_of(campaign: Campaign, seed: int) -> dict[str, Any]:
    """The facts that make a repetition the one it is, in terms of JSON."""
    data = (
        {"name": "toy"} if campaign.data is None else {"name": campaign.data.name, **campaign.data.provenance}
    )
    attack = {**describe(campaign.attack), "steps": campaign.attack.steps}
    victims = {name: {"name": model.name, **model.config} for name, model in campaign.victims.items()}
    rest = {
        "targets": campaign.targets,
        "count": campaign.count,
        "split": campaign.split,
        "k": campaign.k,
        "seed": seed,
    }
    return {"study": campaign.attack.name, "data": data, "attack": attack, "victims": victims, **rest}


def _repetition(
    campaign: Campaign, seed: int, spec, stem: str, out: Path, block: int, progress: bool, say
) -> dict[str, Any]:
    case = case_of(campaign, seed)
    done = attacks.run(
        campaign.attack,
        case.keys["attack"],
        case.train,
        case.targets,
        test=case.test,
        initial=case.initial if campaign.attack.starts else None,
        block=block,
        progress=progress,
        store=out / "snapshots" / stem,
    )
    path = out / "profiles" / f"{stem}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    targets = np.asarray(case.targets).tolist()
    names = targets if campaign.data is None else campaign.data.item_ids[targets].tolist()
    done.profiles.save(path, {"spec": spec, "targets": targets, "target_names": names})
    history = {name: np.asarray(values).tolist() for name, values in done.history.items()}
    result: dict[str, Any] = {
        "profiles": path.name,
        "targets": targets,
        "history": history,
        "craft_seconds": done.seconds,
    }
    result |= profile_facts(done.profiles, case.train)
    return result | {"victims": judged(campaign, case, done.profiles, say)}


def judged(campaign: Campaign, case: Case, profiles: Profiles, say: Callable[[str], None]) -> dict[str, Any]:
    """Every victim, clean and attacked."""
    found = {}
    for name, victim in campaign.victims.items():
        say(f"  training the victim {name}, clean and attacked")
        clean, attacked = (judge(victim, case, poison, k=campaign.k) for poison in (None, profiles))
        found[name] = {"clean": clean, "attacked": attacked}
    return found
