"""APT (Wu et al., SIGIR 2021), Tables 2 and 3 and Fig. 1, made of the cells of apt.py (ablation: apt_figs.py)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from experiments import report
from experiments.papers.apt import ATTACKS, DEFENSES, KINDS, PAPER, WORLDS, run
from experiments.published import published
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models.evaluation import paired_t, robustness_improvement


def cells(quick: bool, study: str = "apt-table2") -> list[Spec]:
    """Quick attacks on the small data first; the slow craft (TNA) and the large data last."""
    if quick:
        return [
            _cell(study, "ml-100k", "average", "unpopular", defense, 2)
            for defense in ("none", "at", "apt", "apt-own")
        ]
    small = [
        _cell(study, data, attack, kind, defense)
        for attack in ATTACKS
        for data in ("ml-100k", "filmtrust")
        for kind in KINDS
        for defense in DEFENSES
    ]
    large = [
        _cell(study, data, attack, kind, defense)
        for data in ("ml-1m", "yelp")
        for attack in ATTACKS
        for kind in KINDS
        for defense in DEFENSES
    ]
    origin = lambda names: [_cell(study, data, "none", kind, "none") for data in names for kind in KINDS]
    return [*origin(("ml-100k", "filmtrust")), *small, *origin(("ml-1m", "yelp")), *large]


def _cell(study: str, data: str, attack: str, kind: str, defense: str, seeds: int | None = None) -> Spec:
    seeds = WORLDS[data].seeds if seeds is None else seeds
    return {
        "study": study,
        "data": data,
        "attack": attack,
        "targets": kind,
        "defense": defense,
        "seeds": seeds,
    }


Cells = dict[tuple[str, str, str, str], Record]


def by_cell(records: list[Record]) -> Cells:
    """Records by data, attack, kind of targets and defense; of several those with the most seeds."""
    few_first = sorted(records, key=lambda record: record.spec["seeds"])
    return {tuple(r.spec[name] for name in ("data", "attack", "targets", "defense")): r for r in few_first}


def table_report(records: list[Record], folder: Path, *, table: str, metric: str) -> Report:
    """Mean and deviation over seeds, with the published number behind the slash."""
    found = by_cell(records)
    header = ["data", "targets", "attack", "seeds", "origin", *DEFENSES]
    rows = []
    for data in WORLDS:
        for kind in KINDS:
            for attack in ATTACKS:
                mine = [found.get((data, attack, kind, defense)) for defense in DEFENSES]
                if not any(mine):
                    continue
                place = (table, "values", WORLDS[data].table, ATTACKS[attack], kind)
                paper = published("apt", *place)
                origin = _shown(found.get((data, "none", kind, "none")), metric, paper["origin"])
                seeds = str(max(r.spec["seeds"] for r in mine if r))
                shown = [
                    _shown(record, metric, paper.get(PAPER.get(defense, "")))
                    for defense, record in zip(DEFENSES, mine, strict=True)
                ]
                rows.append([data, kind, attack, seeds, origin, *shown])
    return Report(
        f"APT, {table.replace('table', 'Table ')}",
        header,
        rows,
        _notes(found, metric),
        _pictures(found, folder),
    )


def _shown(record: Record | None, metric: str, paper: float | None) -> str:
    behind = "" if paper is None else f" / {paper:.4f}"
    if record is None:
        return f"-{behind}"
    values = np.array(record.result[metric])
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{spread}{behind}"


def _notes(found: Cells, metric: str) -> list[str]:
    what = "target hr_mean" if metric == "hr_mean" else "HR of the held-out item"
    ks = ", ".join(f"{world.table} {world.k}" for world in WORLDS.values())
    return [
        f"{what} of the real users, mean ± standard deviation over seeds of the training / published; list length {ks}",
        "one craft of each attack for all seeds and defenses, as in the released code",
        "apt and apt-rand take the ratings of their helpful users from the data before the attack, as the released "
        "code does and no defender can; apt-own and apt-rand-own take them from the data at hand",
        "pcmf begins with the ratings as they are and missing ones 0, which comes nearer to the tables; pcmf-centered "
        "takes mean and biases off first, as the released code of PCMF does; both fill the missing cells in",
        *_unsolved(found),
        *(_robustness(found) if metric == "hr_mean" else []),
        *_tests(found, metric),
        *dict.fromkeys(note for record in found.values() for note in record.result["notes"]),
    ]


def _unsolved(found: Cells) -> list[str]:
    """Whether the linear solves of APT held, as far as the records say."""
    shares = {
        place: r.result["unsolved"]
        for place, r in found.items()
        if "unsolved" in r.result and not place[3].startswith("apt-rand")
    }
    bad = [f"{', '.join(place)} {share:.0%}" for place, share in shares.items() if share > 0]
    if not shares:
        return []
    return [
        f"linear solves of APT that did not hold, in {len(shares)} cells that say: {'; '.join(bad) or 'none'}"
    ]


def _robustness(found: Cells) -> list[str]:
    """The mean of the paper's RI over the cells that all columns have, beside its own over the same cells."""
    said = []
    for kind in KINDS:
        shared = [
            (data, attack)
            for data in WORLDS
            for attack in ATTACKS
            if (data, "none", kind, "none") in found
            and all((data, attack, kind, defense) in found for defense in DEFENSES)
        ]
        mean = lambda *place: float(np.mean(found[place].result["hr_mean"]))
        for defense in DEFENSES[1:] if shared else ():
            ours = [
                [
                    mean(data, attack, kind, defense),
                    mean(data, attack, kind, "none"),
                    mean(data, "none", kind, "none"),
                ]
                for data, attack in shared
            ]
            text = f"RI, {kind} targets, {defense}: {_mean_ri(ours):.3f}"
            if defense in PAPER:
                printed = [
                    published("apt", "table2", "values", WORLDS[data].table, ATTACKS[attack], kind)
                    for data, attack in shared
                ]
                theirs = [[row[PAPER[defense]], row["Attack"], row["origin"]] for row in printed]
                text += f", published {_mean_ri(theirs):.3f}"
            said.append(f"{text} (mean over {len(shared)} cells that all columns have)")
    return said


def _mean_ri(triples: list[list[float]]) -> float:
    """Of triples of defended, attacked and clean hit rates."""
    return float(robustness_improvement(*np.array(triples).T).mean)


def _tests(found: Cells, metric: str) -> list[str]:
    """The paper's paired t-test against the best baseline (Table 2), against the clean model (Table 3).

    For target hit rates the best is the nearest to the clean model of the same seed: far below it a defense breaks the
    recommender. What takes ratings from the data at hand is compared with what does too.
    """
    said = []
    for data, attack, kind in ((d, a, k) for d in WORLDS for a in ATTACKS for k in KINDS):
        origin = found.get((data, "none", kind, "none"))
        if origin is None:
            continue
        clean = np.array(origin.result[metric])
        for defense, twin in (("apt", "apt-rand"), ("apt-own", "apt-rand-own")):
            mine = found.get((data, attack, kind, defense))
            if mine is None or mine.spec["seeds"] < 2:
                continue
            start = f"{data}, {attack}, {kind}: "
            if metric != "hr_mean":
                test = paired_t(mine.result[metric], clean)
                said.append(
                    f"{start}{defense} - clean = {test.difference:+.4f}, paired t-test p = {test.p:.2g}"
                )
                continue
            away = lambda name, place=(data, attack, kind), clean=clean: np.abs(
                np.array(found[(*place, name)].result[metric]) - clean
            )
            rivals = [
                name for name in ("at", "pcmf", "pcmf-centered", twin) if (data, attack, kind, name) in found
            ]
            if not rivals:
                continue
            best = min(rivals, key=lambda name: float(np.mean(away(name))))
            test = paired_t(away(defense), away(best))
            said.append(
                f"{start}distance from the clean model, {defense} {np.mean(away(defense)):.4f}, nearest other ({best}) "
                f"{np.mean(away(best)):.4f}, paired t-test p = {test.p:.2g}"
            )
    return said


def _pictures(found: Cells, folder: Path) -> list[Path]:
    """Fig. 1: how far an attack moves the targets in the users' rankings, behind each defense."""
    shown = ("none", "at", "apt", "apt-own")
    places = [(data, attack) for data in WORLDS for attack in ("tna", "average")]
    places = [p for p in places if any((*p, "unpopular", defense) in found for defense in shown)]
    if not places:
        return []
    made, axes = report.figure(1, len(places), width=3.2)
    for axis, (data, attack) in zip(axes[0], places, strict=True):
        boxes = []
        for defense in shown:
            record = found.get((data, attack, "unpopular", defense))
            if record:
                low, first, middle, third, high = record.result["rank_shift"]
                boxes.append(
                    {"label": defense, "whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high}
                )
        axis.bxp(boxes, showfliers=False)
        axis.set(title=f"{WORLDS[data].table}, {attack}", ylabel="rank shift (5 to 95%)")
    return [report.save(made, folder / "apt-rank-shift.png")]


STUDIES = (
    Study(
        "apt-table2",
        "APT, Table 2 and Fig. 1: target hit rates behind each defense",
        cells,
        run,
        functools.partial(table_report, table="table2", metric="hr_mean"),
        (420, 3),
    ),
    Study(
        "apt-table3",
        "APT, Table 3: hit rates of the held-out items (the cells of apt-table2)",
        functools.partial(cells, study="apt-table3"),
        run,
        functools.partial(table_report, table="table3", metric="hr_test"),
        (420, 3),
        twins=("apt-table2",),
    ),
)
