"""What RevAdv's pages say of its attacks on Gowalla, from records: gains, transfer, the ensemble, how many fillers.

Differences are paired by seed, with the one rule of experiments/paired.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments import report
from experiments.paired import ENOUGH, Gap, gap
from experiments.record import Record

ATTACKS = ("none", "rand-filter", "wrmf-als", "itemae-pd", "itemae", "wrmf-sgd", "ensemble")
MEMBERS = ("wrmf-sgd", "itemae")
"""The attacks by one of the ensemble's surrogates; the second has settings of its own."""
FILLERS = {"wrmf-sgd": (33, 100), "rand-filter": (33, 200)}
"""Fillers left of the profiles of WRMF+SGD, whose threshold bounds none; and as many drawn at random, by RandFilter.

RandFilter has 33 elsewhere, which is not printed: with the targets as many clicks as a user has.
"""
THINNED = ("ItemCF", "WRMF")
"""The victims that are judged on them."""
PAIRED = (
    "minus: mean difference paired by seed; from three seeds on with its 95% t-interval and a verdict, not corrected "
    "for how many are looked at"
)


def hits(records: list[Record], **wanted: Any) -> dict[int, float]:
    """Target hit rate by seed, of the records whose spec has these values, of whole profiles unless told."""
    wished = {"fillers": None, **wanted}
    return {
        r.spec["seed"]: r.result["victim"]["hr_any"]
        for r in records
        if all(r.spec.get(name) == value for name, value in wished.items())
    }


def minus(records: list[Record], one: str, other: str, **wanted: str) -> Gap | None:
    """One attack minus another, paired by seed."""
    return gap(hits(records, attack=one, **wanted), hits(records, attack=other, **wanted))


def against(records: list[Record], control: str, victims: Iterable[str]) -> list[str]:
    """A line a victim: every attack minus the control. RandFilter alone would flatter: it may itself lower exposure."""
    said = []
    for victim in victims:
        names = [name for name in ATTACKS if name not in ("none", control)]
        gaps = {name: minus(records, name, control, victim=victim) for name in names}
        shown = [f"{name} {each.said(4)}" for name, each in gaps.items() if each]
        said += [f"{victim}, minus {control}: {', '.join(shown)}"] if shown else []
    return said


def transfer(records: list[Record], victims: Iterable[str]) -> list[str]:
    """A line a surrogate: which victims its fake users raise above no attack, for sure or in fewer than three seeds."""
    few = {1: "higher", -1: "lower", 0: "the same"}
    said = []
    for attack in ATTACKS[2:]:
        sort: dict[str, list[str]] = {"above": [], "undecided": [], "below": []}
        for victim in victims:
            each = minus(records, attack, "none", victim=victim)
            if each is None and hits(records, attack=attack, victim=victim):
                sort.setdefault("no seed in common with it", []).append(victim)
            if each:
                seeds = f"{few[each.sign]} on {each.seeds} seed{'s' * (each.seeds > 1)}"
                sort.setdefault(seeds if each.seeds < ENOUGH else each.verdict, []).append(victim)
        shown = [f"{verdict}: {', '.join(victims)}" for verdict, victims in sort.items() if victims]
        said += [f"fake users of {attack}, against no attack: {'; '.join(shown)}"] if shown else []
    return said


def ensemble(records: list[Record], victims: Iterable[str]) -> list[str]:
    """Whether the ensemble is ahead of its better member, by victim; the better one by the mean on the seeds of all."""
    gaps: dict[str, tuple[str, Gap]] = {}
    for victim in victims:
        found = {name: hits(records, attack=name, victim=victim) for name in ("ensemble", *MEMBERS)}
        shared = set.intersection(*(set(each) for each in found.values()))
        better = max(MEMBERS, key=lambda name, found=found, on=shared: sum(found[name][seed] for seed in on))
        each = gap({seed: found["ensemble"][seed] for seed in shared}, found[better])
        if each:
            gaps[victim] = (better, each)
    if not gaps:
        return []
    shown = "; ".join(f"{victim} {each.said(4)}, {better}" for victim, (better, each) in gaps.items())
    ahead = [victim for victim, (_, each) in gaps.items() if each.sign > 0]
    sure = [victim for victim, (_, each) in gaps.items() if each.verdict == "above"]
    return [
        f"ensemble minus the better of its members ({' and '.join(MEMBERS)}): {shown}; it is ahead on "
        f"{', '.join(ahead) or 'none'} of these {len(gaps)} victims, for sure on {', '.join(sure) or 'none'}"
    ]


def by_fillers(records: list[Record], stratum: str) -> list[str]:
    """What the same fake users reach with fewer of their fillers, and random ones with few and many."""
    said = []
    for victim in THINNED:
        at = {"stratum": stratum, "victim": victim}
        reached = [
            (name, f"{count} fillers", hits(records, attack=name, fillers=count, **at))
            for name, counts in FILLERS.items()
            for count in counts
        ]
        seeds = sorted({seed for *_, found in reached for seed in found})
        if not seeds:
            continue
        for name, label in (("wrmf-sgd", "all of them"), ("none", "")):
            whole = hits(records, attack=name, **at)
            reached.append((name, label, {seed: whole[seed] for seed in seeds if seed in whole}))
        shown = [
            f"{name} {label}{' ' if label else ''}{report.interval(list(found.values()), 4, 'mean')}"
            for name, label, found in reached
            if found
        ]
        said.append(
            f"{stratum}, {victim}, by fillers, seeds {', '.join(map(str, seeds))}: {'; '.join(shown)}"
        )
    return said
