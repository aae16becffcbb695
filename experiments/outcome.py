"""What came out of a campaign: a table on the screen and in markdown, a picture, and one JSON file with all records."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel import Code
from bilevel.atomic import plain
from bilevel.devices import environment
from experiments import report
from experiments.campaign import Campaign
from experiments.record import Record
from models.evaluation import paired_bootstrap


def present(records: list[Record], plan: Campaign, out: Path) -> None:
    """Table, figure, markdown."""
    header = [
        "victim",
        "seeds",
        f"target HR@{plan.k} clean",
        "attacked",
        "gain (mean, paired)",
        f"test Recall@{plan.k} clean",
        "attacked",
    ]
    rows = []
    values = lambda victim, at, name: [record.result["victims"][victim][at][name] for record in records]
    for victim in plan.victims:
        clean, attacked = (values(victim, at, "hr_any") for at in ("clean", "attacked"))
        gain = f"{attacked[0] - clean[0]:+.3f}"
        if len(records) > 1:
            found = paired_bootstrap(np.asarray(attacked), np.asarray(clean))
            gain = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        recall = [report.interval(values(victim, at, "recall")) for at in ("clean", "attacked")]
        rows.append(
            [victim, str(len(records)), report.interval(clean), report.interval(attacked), gain, *recall]
        )
    facts = {
        name: float(np.mean([r.result[name] for r in records]))
        for name in ("clicks", "popularity", "similarity", "craft_seconds")
    }
    notes = [
        "median [95% bootstrap interval] over seeds; HR: share of real users with a target in their list, "
        "seen items excluded",
        f"profiles: {facts['clicks']:.0f} clicks each, mean popularity {facts['popularity']:.0f}, "
        f"mean cosine {facts['similarity']:.2f}; {facts['craft_seconds']:.0f} s to craft, "
        f"peak memory {max(r.about['peak_rss'] for r in records) / 1e9:.1f} GB",
        *believed([code for r in records for code in r.result["history"].get("code", [])]),
    ]
    report.show(
        f"{plan.attack.name} on {'toy' if plan.data is None else plan.data.name}", header, rows, notes
    )
    write(out, "table.md", header, rows, notes)
    (out / "run.json").write_text(json.dumps({"records": [record._asdict() for record in records]}, indent=1))
    picture = draw(records, plan, out)
    sys.stdout.write(f"written: {out / 'table.md'}, {picture}, {out / 'run.json'}, {out / 'profiles'}/\n")


def believed(codes: Sequence[int]) -> list[str]:
    """A note on whether the gradients that an attack followed are to be believed; none if it followed none.

    Args:
        codes: a `bilevel.Code` an outer step.

    >>> believed([0, 5])[0]
    'gradient: code OK in 1 of 2 outer steps; NOT_STATIONARY in 1: The inner loop has not converged: train longer, ...'
    """
    if not codes:
        return []
    seen = Counter(map(Code, codes))
    good = seen.pop(Code.OK, 0)
    rest = "".join(f"; {code.name} in {number}: {code.advice}" for code, number in sorted(seen.items()))
    return [f"gradient: code OK in {good} of {len(codes)} outer steps{rest}"]


def write(out: Path, name: str, header: list[str], rows: list[list[str]], notes: list[str]) -> None:
    """A table and its notes in markdown."""
    text = report.markdown(header, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    (out / name).write_text(text)


def present_again(path: Path, victims: dict[str, Any], k: int, out: Path) -> None:
    """Saved profiles against other victims: table, figure and record, named by the profiles' file."""
    header = ["victim", f"target HR@{k} clean", "attacked", f"test Recall@{k} clean", "attacked"]
    rows = [
        [name, *(f"{of[at][metric]:.4f}" for metric in ("hr_any", "recall") for at in ("clean", "attacked"))]
        for name, of in victims.items()
    ]
    notes = [f"profiles: {path}; HR: share of real users with a target in their list, seen items excluded"]
    report.show(f"{path}", header, rows, notes)
    base = f"judged-{path.stem}"
    write(out, f"{base}.md", header, rows, notes)
    about = {"profiles": str(path), "k": k, "environment": environment()}
    (out / f"{base}.json").write_text(json.dumps(plain(about | {"victims": victims}), indent=1))
    made, axes = report.figure()
    bars = [(victim, at) for victim in victims for at in ("clean", "attacked")]
    names = [f"{victim}\n{at}" for victim, at in bars]
    report.bars(axes[0, 0], names, [[victims[victim][at]["hr_any"]] for victim, at in bars])
    axes[0, 0].set(ylabel=f"target HR@{k} of the victim")
    picture = report.save(made, out / f"{base}.png")
    sys.stdout.write(f"written: {out / base}.md, {picture}, {out / base}.json\n")


def draw(records: list[Record], plan: Campaign, out: Path) -> Path:
    """The attack's history where it has one, and every victim before and after."""
    told = [name for name in ("target_hr", "test_hr") if name in records[0].result["history"]]
    made, axes = report.figure(1, 2 if told else 1)
    if told:
        report.curves(
            axes[0, 0],
            {name.removesuffix("_hr"): [r.result["history"][name] for r in records] for name in told},
        )
        of = plan.attack.config.get("k", plan.k)
        axes[0, 0].set(xlabel="outer step", ylabel=f"HR@{of} of the surrogate")
        axes[0, 0].legend(frameon=False)
    names = [f"{victim}\n{at}" for victim in plan.victims for at in ("clean", "attacked")]
    heights = [
        [r.result["victims"][v][at]["hr_any"] for r in records]
        for v in plan.victims
        for at in ("clean", "attacked")
    ]
    report.bars(axes[0, -1], names, heights)
    axes[0, -1].set(ylabel=f"target HR@{plan.k} of the victim")
    return report.save(made, out / "figure.png")
