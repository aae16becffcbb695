"""What came out of a campaign: a table on the screen and in markdown, a picture, and one JSON file with all records."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

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
    ]
    report.show(
        f"{plan.attack.name} on {'toy' if plan.data is None else plan.data.name}", header, rows, notes
    )
    picture = draw(records, plan, out)
    (out / "table.md").write_text(
        report.markdown(header, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    )
    (out / "run.json").write_text(json.dumps({"records": [record._asdict() for record in records]}, indent=1))
    sys.stdout.write(f"written: {out / 'table.md'}, {picture}, {out / 'run.json'}, {out / 'profiles'}/\n")


def draw(records: list[Record], plan: Campaign, out: Path) -> Path:
    """The attack's history where it has one, and every victim before and after."""
    learned = "target_hr" in records[0].result["history"]
    made, axes = report.figure(1, 2 if learned else 1)
    if learned:
        report.curves(
            axes[0, 0],
            {
                "target": [r.result["history"]["target_hr"] for r in records],
                "test": [r.result["history"]["test_hr"] for r in records],
            },
        )
        axes[0, 0].set(xlabel="outer step", ylabel=f"HR@{plan.attack.config['k']} of the surrogate")
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
