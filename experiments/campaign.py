"""One attack against victims over seeds: craft, save the profiles, judge, record. What
`scripts/run_attack.py` does.

The fake users of a seed, and every victim judged with them, are cells: files named by what decides them. So a killed
run continues, inside a craft from the attack's last snapshot, and ends with the same bytes; and another victim or
another length of lists is judged with the fake users there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

import attacks
from attacks.attack import Attack
from attacks.driver import describe
from bilevel.atomic import plain
from experiments.pipeline import Case, judge, make_case, profile_facts, toy_case
from experiments.record import Record, Records
from models.data import PUBLISHED, Dataset, Interactions, Profiles, pick_targets
from models.data.interactions import Track
from models.recommender import Recommender
from models.saved import facts


class Campaign(NamedTuple):
    """What is run.

    Attributes:
        data: a data set; None: the paper's toy data, drawn from the seed.
        attack: how profiles are made; None where they were made before, and nobody looks at it.
        victims: recommenders by the name they were given.
        targets: item ids of the data set's own naming, a popularity stratum, the name of a published set, or "none" for
            an attack on availability.
        count: how many targets are drawn from a stratum; None: 5.
        split: see `experiments.pipeline.make_case`; None: "revadv".
        k: list length of every metric.
        seeds: one repetition each.
    """

    data: Dataset | None
    attack: Attack
    victims: Mapping[str, Recommender]
    targets: str
    count: int | None
    split: str | None
    k: int
    seeds: tuple[int, ...]


def check(campaign: Campaign) -> None:
    """Refuse what would be ignored or fail later; draws the first repetition's targets for it.

    Raises:
        TypeError, ValueError: a setting the data or the targets have no use for, unknown targets, lists longer than
            there are items, a victim that does not learn from such data, or what `attacks.checks.check` refuses.
    """
    case = case_of(campaign, campaign.seeds[0])
    check_length(campaign.k, case.train.items)
    if campaign.attack is not None:
        if campaign.attack.threat.track != case.train.track:
            raise ValueError(
                f"{campaign.attack.name} writes on the {campaign.attack.threat.track!r} track, and the data are read "
                f"on the {case.train.track!r} one: give --track {campaign.attack.threat.track}, or another attack"
            )
        attacks.check(campaign.attack.threat, case.keys["attack"], case.train, case.targets)
    for text, victim in campaign.victims.items():
        check_learns(text, victim, case.train)


def check_length(k: int, items: int) -> None:
    """Refuse lists that cannot be.

    Raises:
        ValueError: shorter than one item or longer than all of them.

    >>> check_length(50, 15)
    Traceback (most recent call last):
    ...
    ValueError: k=50: expected a length of lists of 1 to 15, all items there are
    """
    if not 1 <= k <= items:
        raise ValueError(f"k={k}: expected a length of lists of 1 to {items}, all items there are")


def check_learns(text: str, model: Recommender, train: Interactions) -> None:
    """Refuse a recommender that would not learn from the data, before anything is computed.

    Args:
        text: what it was given as.
        model: the recommender.
        train: the data, or data like them.

    Raises:
        ValueError: data on a track it does not learn from, or what else it refuses of them.

    >>> from models.mf import mf
    >>> check_learns("mf", mf(), Interactions.from_arrays([0, 1], [1, 0]))
    Traceback (most recent call last):
    ...
    ValueError: mf learns on the track explicit, and the data are read on the implicit one: give --track explicit, or
    another recommender
    """
    try:
        _trace(model, train)
    except ValueError as problem:
        tracks = [track for track in get_args(Track) if track != train.track and _learns(model, train, track)]
        if not tracks:
            raise ValueError(f"{text}: {problem}") from problem
        what = f"leave out --track {train.track}" if "implicit" in tracks else f"give --track {tracks[0]}"
        raise ValueError(
            f"{text} learns on the track {' or '.join(tracks)}, and the data are read on the {train.track} one: "
            f"{what}, or another recommender"
        ) from problem


def _learns(model: Recommender, train: Interactions, track: Track) -> bool:
    try:
        _trace(model, replace(train, track=track))
    except ValueError:
        return False
    return True


def _trace(model: Recommender, train: Interactions) -> None:
    """What of a training reads the data's facts, without its numbers."""
    model.trainer(train.users, train.items, 0, train.capacity)
    jax.eval_shape(model.prepare, train)


def case_of(campaign: Campaign, seed: int) -> Case:
    """The repetition of a seed: split and targets.

    Raises:
        ValueError: unknown target ids or stratum; a split or count that has no use here.
    """
    if campaign.data is None:
        if campaign.targets not in ("toy", "0"):
            raise ValueError(
                f"targets={campaign.targets!r}: the toy data has one target, item 0; leave it out"
            )
        if campaign.split is not None or campaign.count is not None:
            raise ValueError(
                "the toy data has its own split and one target: leave out split and target count"
            )
        return toy_case(seed)
    case = make_case(campaign.data.interactions, seed, np.zeros(1, np.int32), campaign.split or "revadv")
    return case._replace(targets=_targets(campaign, case, seed))


def _targets(campaign: Campaign, case: Case, seed: int):
    assert campaign.data is not None
    if campaign.targets == "none":
        return np.zeros(0, np.int32)
    names = [part.strip() for part in campaign.targets.split(",") if part.strip()]
    if not names:
        raise ValueError(f"targets={campaign.targets!r}: expected ids, the name of a set, or none")
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"targets: {again} is given more than once")
    where = {str(name): number for number, name in enumerate(campaign.data.item_ids.tolist())}
    drawn = len(names) == 1 and names[0] not in where and names[0] not in PUBLISHED
    if campaign.count is not None and not drawn:
        raise ValueError(f"targets={campaign.targets!r} are fixed: leave out the target count")
    if all(name in where for name in names):
        return np.array([where[name] for name in names], np.int32)
    if len(names) > 1:
        missing = [name for name in names if name not in where]
        raise ValueError(
            f"targets: {campaign.data.name} has no item {', '.join(missing)} (ids as in the file)"
        )
    count = 5 if campaign.count is None else campaign.count
    try:
        return pick_targets(case.train, names[0], count if drawn else len(PUBLISHED[names[0]]), seed)
    except ValueError as problem:
        raise ValueError(
            f"targets={campaign.targets!r}: no item of {campaign.data.name} has this id, and as a set: {problem}"
        ) from problem


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
        one record a seed, in the order of the seeds: what is on record of the craft and of every victim, put together.
    """
    records = Records(out / "records")
    found = []
    for number, seed in enumerate(campaign.seeds):
        spec = spec_of(campaign, seed)
        asked = {text: judgment_of(spec, victim, campaign.k) for text, victim in campaign.victims.items()}
        todo = [text for text, one in asked.items() if records.get(one) is None]
        if todo or records.get(spec) is None:
            say(f"seed {seed} ({number + 1} of {len(campaign.seeds)})")
            case = case_of(campaign, seed)
            profiles = crafted(
                campaign, case, spec, records=records, out=out, block=block, progress=progress, say=say
            )
            for text in todo:
                say(f"  training the victim {text}, clean and attacked")
                records.put(asked[text], judged(campaign.victims[text], case, profiles, campaign.k))
        else:
            say(f"seed {seed}: done before, {records.path(spec)}")
        found.append(_together(records, spec, asked))
    return found


def _together(records: Records, spec: dict[str, Any], asked: Mapping[str, dict[str, Any]]) -> Record:
    """A craft and its victims as one record, which says where the craft ran and the peak memory of all."""
    made, *judgments = [record for one in (spec, *asked.values()) if (record := records.get(one)) is not None]
    peak = max(record.about["peak_rss"] for record in (made, *judgments))
    of = dict(zip(asked, judgments, strict=True))
    told = {
        "victims": {text: record.spec["model"] for text, record in of.items()},
        "k": judgments[0].spec["k"],
    }
    victims = {text: record.result for text, record in of.items()}
    return Record(made.spec | told, made.result | {"victims": victims}, made.about | {"peak_rss": peak})


def spec_of(campaign: Campaign, seed: int) -> dict[str, Any]:
    """What decides the fake users of a repetition, in terms of JSON: nothing of who is judged, or by how long lists."""
    attack = {**describe(campaign.attack), "steps": campaign.attack.steps}
    rest = {"targets": campaign.targets, "count": campaign.count, "split": campaign.split, "seed": seed}
    return {"study": campaign.attack.name, "data": facts_of(campaign.data), "attack": attack, **rest}


def judgment_of(spec: Mapping[str, Any], model: Recommender, k: int) -> dict[str, Any]:
    """What decides how a recommender fares against the fake users of `spec`, in terms of JSON."""
    return {
        "study": "judged",
        "fakes": dict(spec),
        "model": {"name": model.name, **facts(model.config)},
        "k": k,
    }


def facts_of(data: Dataset | None) -> dict[str, Any]:
    """What makes a data set the one it is: its name, checksum and what was done to it, not where the file lies."""
    if data is None:
        return {"name": "toy"}
    return {"name": data.name, **{name: fact for name, fact in data.provenance.items() if name != "file"}}


def check_same(path: Path, spec: Mapping[str, Any], data: Dataset | None) -> None:
    """Refuse saved profiles of other data.

    Args:
        path: of the profiles, for the message.
        spec: what they were made with, `meta["spec"]` of the file.
        data: the data set at hand.

    Raises:
        ValueError: names what differs.
    """
    now = plain(facts_of(data))
    differs = [name for name in sorted({*now, *spec["data"]}) if now.get(name) != spec["data"].get(name)]
    if differs:
        pairs = "; ".join(
            f"{name}: {spec['data'].get(name)!r} then, {now.get(name)!r} now" for name in differs
        )
        raise ValueError(f"{path} was made on other data: {pairs}. Give the data options it was made with")


def judge_again(
    path: Path,
    data: Dataset | None,
    victims: Mapping[str, Recommender],
    k: int | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], int]:
    """Judge saved profiles on the repetition they were made for.

    Returns:
        what `judged` returns for each victim, and the list length.

    Raises:
        ValueError: the data are not those of the file; names what differs.
    """
    profiles, meta = Profiles.load(path)
    spec = meta["spec"]
    check_same(path, spec, data)
    length = int(meta.get("k", spec.get("k")) if k is None else k)  # files of before have it in their spec
    check_length(length, profiles.items)
    seed = spec["seed"]
    again = Campaign(data, None, victims, spec["targets"], spec["count"], spec["split"], length, (seed,))  # pyright: ignore[reportArgumentType]
    case = case_of(again, seed)
    if np.asarray(case.targets).tolist() != meta["targets"]:
        raise ValueError(
            f"{path}: its targets are {meta['targets']}, but the data give {np.asarray(case.targets).tolist()}"
        )
    for text, victim in victims.items():
        check_learns(text, victim, case.train)
    found = {}
    for text, victim in victims.items():
        say(f"  training the victim {text}, clean and attacked")
        found[text] = judged(victim, case, profiles, length)
    return found, length


def crafted(
    campaign: Campaign,
    case: Case,
    spec: Mapping[str, Any],
    *,
    records: Records,
    out: Path,
    block: int = 1,
    progress: bool,
    say: Callable[[str], None],
) -> Profiles:
    """The fake users of a repetition: those made before, whoever they were judged against, or new ones.

    Their record has their facts, the attack's history and the seconds it took; arguments as in `craft` and `run`.
    """
    stem = records.path(spec).stem
    path = out / "profiles" / f"{stem}.npz"
    if records.get(spec) is not None and path.exists():
        say(f"  fake users made before: {path}")
        return Profiles.load(path)[0]
    done = craft(campaign, case, spec, out, stem, block=block, progress=progress)
    history = {name: np.asarray(values).tolist() for name, values in done.history.items()}
    made = {"profiles": path.name, "targets": np.asarray(case.targets).tolist(), "history": history}
    records.put(spec, made | {"craft_seconds": done.seconds} | profile_facts(done.profiles, case.train))
    return done.profiles


def craft(
    campaign: Campaign,
    case: Case,
    spec: Mapping[str, Any],
    out: Path,
    stem: str,
    *,
    block: int = 1,
    progress: bool,
) -> attacks.Run:
    """Craft the fake users of a repetition, from the last snapshot of a killed run on, and keep them.

    Args:
        campaign, case: what is run, and the repetition.
        spec: of the repetition; whoever reads the profiles is told by it what they were made on.
        out: folder of `snapshots/STEM` and `profiles/STEM.npz`.
        stem: the repetition's name among files.
        block: outer steps between two snapshots.
        progress: show a bar.
    """
    done = attacks.run(
        campaign.attack,
        case.keys["attack"],
        case.train,
        case.targets,
        test=case.test if campaign.attack.tests else None,
        initial=case.initial if campaign.attack.starts else None,
        block=block,
        progress=progress,
        store=out / "snapshots" / stem,
    )
    path = out / "profiles" / f"{stem}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    targets = np.asarray(case.targets).tolist()
    names = targets if campaign.data is None else campaign.data.item_ids[targets].tolist()
    done.profiles.save(path, {"spec": spec, "targets": targets, "target_names": names, "k": campaign.k})
    return done


def judged(victim: Recommender, case: Case, profiles: Profiles, k: int) -> dict[str, Any]:
    """A victim, clean and attacked."""
    clean, attacked = (judge(victim, case, poison, k=k) for poison in (None, profiles))
    return {"clean": clean, "attacked": attacked}
