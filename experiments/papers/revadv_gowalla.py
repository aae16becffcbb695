"""RevAdv (Tang, Wen, Wang, RecSys 2020) on Gowalla: Fig. 5a (whose fake users move which victim) and Table 2 (strata).

An ensemble of two surrogates, which the paper proposes, is a row of its own, with the settings of WRMF+SGD.

A craft takes minutes to hours and is kept under runs/crafts, so that every victim is judged on the same fake users.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

import attacks
from attacks.attack import Attack
from experiments import report
from experiments.crafts import crafted
from experiments.paired import ENOUGH, Gap, gap
from experiments.pipeline import Case, judge, measured, profile_facts, trained
from experiments.published import published
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models import registry
from models.data import PUBLISHED, Profiles
from models.data.protocols import Prepared, prepared
from models.recommender import Recommender
from models.train import Fitted

K, FAKES = 50, 0.01
VICTIMS: dict[str, tuple[str, str | None]] = {
    "WRMF": ("wrmf", "revadv-gowalla"),
    "ItemCF": ("itemcf", None),
    "ItemAE": ("itemae", "revadv-gowalla"),
    "Mult-VAE": ("multvae", "revadv"),
    "CML": ("cml", "revadv"),
    "NCF": ("neumf", "revadv"),
}
SLOW = ("CML", "NCF")  # a quarter of an hour each
STRATA = {"head": "head", "upper_torso": "upper torso", "lower_torso": "lower torso", "tail": "tail"}
FILLERS = {"wrmf-sgd": (33, 100), "rand-filter": (33, 200)}
"""Fillers left of the profiles of WRMF+SGD, whose threshold bounds none; and as many drawn at random, by RandFilter.

RandFilter has 33 elsewhere, which is not printed: with the targets as many clicks as a user has.
"""
THINNED = ("ItemCF", "WRMF")
"""The victims that are judged on them."""
ATTACKS = ("none", "rand-filter", "wrmf-als", "itemae-pd", "itemae", "wrmf-sgd", "ensemble")
MEMBERS = ("wrmf-sgd", "itemae")
"""The attacks by one of the ensemble's surrogates; the second has settings of its own."""


@functools.lru_cache
def attack_of(name: str, fillers: int = 33) -> Attack | None:
    """The attack of a row; `fillers` are RandFilter's."""
    if name == "none":
        return None
    if name == "rand-filter":
        return attacks.random(fakes=FAKES, budget=fillers)
    if name == "ensemble":
        surrogates = [_model("wrmf", "revadv-gowalla"), _model("itemae", "revadv-gowalla")]
        return attacks.revadv(
            surrogates,
            fakes=FAKES,
            threshold=0.05,
            steps=30,
            momentum=0.95,
            estimator="truncated",
            tau=10,
            initial="random_users",
            k=K,
        )
    return attacks.revadv_preset(name)


@functools.lru_cache
def _model(name: str, preset: str | None) -> Recommender:
    return registry.make(name, preset)


@functools.lru_cache(maxsize=1)
def _data() -> Prepared:
    return prepared("revadv-gowalla")


@functools.lru_cache(maxsize=1)
def _clean(victim: str, seed: int) -> Fitted:
    """A victim without fake users, which all strata share."""
    train, _, test = _data().split
    case = Case(train, test, np.zeros(0, np.int32), None, jax.random.key(seed))
    return trained(_model(*VICTIMS[victim]), case)[0]


def setting(spec: Spec) -> tuple[Case, Profiles | None, dict[str, Any]]:
    """The repetition of a cell, its fake users, crafted or read, and facts about them."""
    train, _, test = _data().split
    case = Case(
        train, test, np.array(PUBLISHED[f"gowalla/{spec['stratum']}"]), None, jax.random.key(spec["seed"])
    )
    named = {"fillers": spec["fillers"]} if spec["attack"] == "rand-filter" and "fillers" in spec else {}
    attack, profiles, facts = attack_of(spec["attack"], **named), None, {}
    if attack is not None:
        where = {"data": "revadv-gowalla", "stratum": spec["stratum"], "seed": spec["seed"]}
        profiles, facts = crafted(where, attack, case.keys["attack"], train, case.targets)
        if "fillers" in spec and not named:
            profiles = thinned(profiles, spec["fillers"], np.random.default_rng(spec["seed"]))
        facts = _said(profiles, facts, case)
    return case, profiles, facts


def thinned(profiles: Profiles, fillers: int, rng: np.random.Generator) -> Profiles:
    """At most so many of each fake user's clicks, drawn evenly, besides those on targets.

    >>> of = Profiles.from_rows(np.array([[1.0, 1, 1, 1, 0], [0.0, 0, 1, 0, 1]]), np.array([0]))
    >>> rows = thinned(of, 2, np.random.default_rng(0)).to_rows()
    >>> rows.sum(1).tolist(), rows[0, 0].item()
    ([3.0, 2.0], 1.0)
    """
    rows = np.asarray(profiles.to_rows())
    order = rng.random(rows.shape) + (rows == 0)
    order[:, profiles.targets] = 2  # after all others
    place = order.argsort(1).argsort(1)
    kept = (place < fillers) | np.isin(np.arange(rows.shape[1]), profiles.targets)
    return Profiles.from_rows(np.where(kept, rows, 0), profiles.targets)


def run(spec: Spec) -> dict[str, Any]:
    """Craft (or read) the fake users, train one victim on them, judge it."""
    case, profiles, facts = setting(spec)
    if profiles is None:
        victim = measured(_clean(spec["victim"], spec["seed"]), case, k=K)
    else:
        victim = judge(_model(*VICTIMS[spec["victim"]]), case, profiles, k=K)
    return {"victim": victim, "notes": list(_data().notes), **facts}


def _said(profiles: Profiles, facts: dict[str, Any], case: Case) -> dict[str, Any]:
    hr = facts["history"].get("target_hr")
    found = {"craft_seconds": facts["craft_seconds"], **profile_facts(profiles, case.train)}
    return found if hr is None else found | {"surrogate_hr": hr}


# ---------------------------------------------------------------------------------------------------- the studies


def fig5_cells(quick: bool) -> list[Spec]:
    """Fast victims and cheap crafts first; one craft and victim seed for all of it, then the next."""
    names, victims, seeds = (ATTACKS[:2], ("ItemCF", "WRMF"), 1) if quick else (ATTACKS, tuple(VICTIMS), 3)
    order = [v for v in victims if v not in SLOW], [v for v in victims if v in SLOW]
    return [
        {"study": "revadv-fig5", "attack": attack, "stratum": "head", "victim": victim, "seed": seed}
        for seed in range(seeds)
        for group in order
        for attack in names
        for victim in group
    ]


def table2_cells(quick: bool) -> list[Spec]:
    """Clean, a victim for all strata, and WRMF+SGD, a stratum for all victims; slow victims last; the next seed.

    The same fake users with fewer fillers, and random ones with few and many, before the slow victims, tell whether a
    gain is owed to many clicks.
    """
    place = lambda attack, stratum, victim, seed: {
        "study": "revadv-table2",
        "attack": attack,
        "stratum": stratum,
        "victim": victim,
        "seed": seed,
    }
    if quick:
        return [place("none", "head", "ItemCF", 0)]
    fast = [victim for victim in VICTIMS if victim not in SLOW]
    clean = lambda names, seed: [
        place("none", stratum, victim, seed) for victim in names for stratum in STRATA
    ]
    attacked = lambda names, seed: [
        place("wrmf-sgd", stratum, victim, seed) for stratum in STRATA for victim in names
    ]
    counted = lambda seed: [
        {**place(attack, stratum, victim, seed), "fillers": count}
        for stratum in STRATA
        for attack, counts in FILLERS.items()
        for count in counts
        for victim in THINNED
    ]
    of_seed = lambda names, seed: [*clean(names, seed), *attacked(names, seed)]
    return [
        spec for seed in range(3) for spec in (*of_seed(fast, seed), *counted(seed), *of_seed(SLOW, seed))
    ]


def _hits(records: list[Record], **wanted: Any) -> dict[int, float]:
    """Target hit rate by seed, of the records whose spec has these values, of whole profiles unless told."""
    wished = {"fillers": None, **wanted}
    return {
        r.spec["seed"]: r.result["victim"]["hr_any"]
        for r in records
        if all(r.spec.get(name) == value for name, value in wished.items())
    }


def fig5_report(records: list[Record], folder: Path) -> Report:
    """A row a surrogate, a column a victim: the transfer matrix."""
    header, rows = ["attack", *VICTIMS, "clicks", "popularity", "craft s"], []
    made, axes = report.figure(width=9)
    width = 0.8 / len(ATTACKS)
    for number, attack in enumerate(ATTACKS):
        hits = {victim: list(_hits(records, attack=attack, victim=victim).values()) for victim in VICTIMS}
        if not any(hits.values()):
            continue
        crafts = list({r.spec["seed"]: r for r in records if r.spec["attack"] == attack}.values())
        mean = lambda name, crafts=crafts: [r.result.get(name, np.nan) for r in crafts]
        facts = [report.interval(mean(name), 0, "mean") for name in ("clicks", "popularity", "craft_seconds")]
        rows.append([attack, *(report.interval(found, 4, "mean") for found in hits.values()), *facts])
        heights = [np.mean(found) if found else 0.0 for found in hits.values()]
        axes[0, 0].bar(np.arange(len(VICTIMS)) + number * width, heights, width, label=attack)
    clean, attacked = (
        [published("revadv", "table2", "values", "head", key, victim) for victim in VICTIMS]
        for key in ("Clean", "WRMF+SGD")
    )
    rows += [["published: Clean", *(f"{x:.4f}" for x in clean), "", "", ""]]
    rows += [["published: WRMF+SGD", *(f"{x:.4f}" for x in attacked), "", "", ""]]
    axes[0, 0].set_xticks(np.arange(len(VICTIMS)) + 0.4, list(VICTIMS))
    axes[0, 0].set(ylabel=f"target HR@{K}", title="Gowalla, 131 fake users (1%), head targets")
    axes[0, 0].legend(frameon=False, fontsize=7)
    notes = [
        f"{report.SEEDS}; a seed: craft and victim; target set of the released code; the paper "
        "prints numbers for two rows only, in its Table 2",
        PAIRED,
        *_against(records, "none"),
        *_against(records, "rand-filter"),
        *_transfer(records),
        *_ensemble(records),
        "peak memory of a cell, GB: "
        + f"{max(r.about['peak_rss'] for r in records) / 1e9:.1f} (the official code: about 25)",
        *records[0].result["notes"],
    ]
    return Report(
        "RevAdv, Fig. 5a: surrogates x victims",
        header,
        rows,
        notes,
        [report.save(made, folder / "revadv-fig5.png")],
    )


PAIRED = (
    "minus: mean difference paired by seed; from three seeds on with its 95% t-interval and a verdict, not corrected "
    "for how many are looked at"
)


def _minus(records: list[Record], one: str, other: str, **wanted: str) -> Gap | None:
    """One attack minus another, paired by seed."""
    return gap(_hits(records, attack=one, **wanted), _hits(records, attack=other, **wanted))


def _against(records: list[Record], control: str) -> list[str]:
    """A line a victim: every attack minus the control. RandFilter alone would flatter: it may itself lower exposure."""
    said = []
    for victim in VICTIMS:
        names = [name for name in ATTACKS if name not in ("none", control)]
        gaps = {name: _minus(records, name, control, victim=victim) for name in names}
        shown = [f"{name} {each.said(4)}" for name, each in gaps.items() if each]
        said += [f"{victim}, minus {control}: {', '.join(shown)}"] if shown else []
    return said


def _transfer(records: list[Record]) -> list[str]:
    """A line a surrogate: which victims its fake users raise above no attack, for sure or in fewer than three seeds."""
    few = {1: "higher", -1: "lower", 0: "the same"}
    said = []
    for attack in ATTACKS[2:]:
        sort: dict[str, list[str]] = {"above": [], "undecided": [], "below": []}
        for victim in VICTIMS:
            each = _minus(records, attack, "none", victim=victim)
            if each is None and _hits(records, attack=attack, victim=victim):
                sort.setdefault("no seed in common with it", []).append(victim)
            if each:
                seeds = f"{few[each.sign]} on {each.seeds} seed{'s' * (each.seeds > 1)}"
                sort.setdefault(seeds if each.seeds < ENOUGH else each.verdict, []).append(victim)
        shown = [f"{verdict}: {', '.join(victims)}" for verdict, victims in sort.items() if victims]
        said += [f"fake users of {attack}, against no attack: {'; '.join(shown)}"] if shown else []
    return said


def _ensemble(records: list[Record]) -> list[str]:
    """Whether the ensemble is ahead of its better member, by victim; the better one by the mean on the seeds of all."""
    gaps: dict[str, tuple[str, Gap]] = {}
    for victim in VICTIMS:
        found = {name: _hits(records, attack=name, victim=victim) for name in ("ensemble", *MEMBERS)}
        shared = set.intersection(*(set(hits) for hits in found.values()))
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


def table2_report(records: list[Record], folder: Path) -> Report:
    """Strata x victims, ours / published."""
    header, rows = ["stratum", "attack", *VICTIMS], []
    made, axes = report.figure(width=6)
    for stratum, name in STRATA.items():
        for attack, key in (("none", "Clean"), ("wrmf-sgd", "WRMF+SGD")):
            hits = {
                v: list(_hits(records, attack=attack, stratum=stratum, victim=v).values()) for v in VICTIMS
            }
            if any(hits.values()):
                paper = {v: published("revadv", "table2", "values", name, key, v) for v in VICTIMS}
                rows.append(
                    [
                        stratum,
                        attack,
                        *(f"{report.interval(hits[v], 4, 'mean')} / {paper[v]:.4f}" for v in VICTIMS),
                    ]
                )
                shown = [v for v in VICTIMS if hits[v]]
                axes[0, 0].loglog(
                    [paper[v] for v in shown],
                    [np.mean(hits[v]) for v in shown],
                    "o",
                    label=f"{stratum}, {attack}",
                )
    said = [PAIRED]
    for stratum in STRATA:
        gaps = {v: _minus(records, "wrmf-sgd", "none", stratum=stratum, victim=v) for v in VICTIMS}
        shown = [f"{v} {each.said(4)}" for v, each in gaps.items() if each]
        said += [f"{stratum}, wrmf-sgd minus none: {', '.join(shown)}"] if shown else []
        said += _by_fillers(records, stratum)
    axes[0, 0].plot([1e-4, 0.3], [1e-4, 0.3], "k--", linewidth=1)
    axes[0, 0].set(xlabel="published target HR@50", ylabel="ours")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return Report(
        "RevAdv, Table 2",
        header,
        rows,
        [f"ours / published; {report.SEEDS}", *said, *records[0].result["notes"]],
        [report.save(made, folder / "revadv-table2.png")],
    )


def _by_fillers(records: list[Record], stratum: str) -> list[str]:
    """What the same fake users reach with fewer of their fillers, and random ones with few and many."""
    said = []
    for victim in THINNED:
        at = {"stratum": stratum, "victim": victim}
        reached = [
            (name, f"{count} fillers", _hits(records, attack=name, fillers=count, **at))
            for name, counts in FILLERS.items()
            for count in counts
        ]
        seeds = sorted({seed for *_, hits in reached for seed in hits})
        if not seeds:
            continue
        for name, label in (("wrmf-sgd", "all of them"), ("none", "")):
            whole = _hits(records, attack=name, **at)
            reached.append((name, label, {seed: whole[seed] for seed in seeds if seed in whole}))
        shown = [
            f"{name} {label}{' ' if label else ''}{report.interval(list(hits.values()), 4, 'mean')}"
            for name, label, hits in reached
            if hits
        ]
        said.append(
            f"{stratum}, {victim}, by fillers, seeds {', '.join(map(str, seeds))}: {'; '.join(shown)}"
        )
    return said


STUDIES = (
    Study(
        "revadv-fig5",
        "RevAdv, Fig. 5a: surrogates x victims on Gowalla",
        fig5_cells,
        run,
        fig5_report,
        (1350, 6),
        twins=("revadv-table2",),
    ),
    Study(
        "revadv-table2",
        "RevAdv, Table 2: popularity of the targets on Gowalla",
        table2_cells,
        run,
        table2_report,
        (1800, 3),
        twins=("revadv-fig5",),
    ),
)
