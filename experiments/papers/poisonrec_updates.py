"""PoisonRec (Song et al., ICDE 2020): what RecNum owes to the update of the black box, which the paper does not state.

Cells run as in poisonrec.py, with other epochs and batches of the fine-tuning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import report
from experiments.papers.poisonrec import DATA, cell, run, values_of
from experiments.published import published
from experiments.record import Record
from experiments.study import Report, Spec, Study

UPDATES: tuple[tuple[int, int | None], ...] = ((10, None), (10, 32), (100, None), (100, 32))
"""Epochs and batch of an update (None: the model's own, more than the 400 clicks), which the paper does not state."""


def updates_cells(quick: bool) -> list[Spec]:
    """Rankers of sampled pairs on Clothing under four updates."""
    rankers, steps = (("PMF",), 3) if quick else (("PMF", "BPR", "NeuMF", "NGCF"), 30)
    return [
        {
            **cell("steam" if quick else "clothing", ranker, attack, 0, steps),
            "study": "poisonrec-updates",
            "ft_epochs": epochs,
            "ft_batch": batch,
        }
        for ranker in rankers
        for epochs, batch in (UPDATES[:2] if quick else UPDATES)
        for attack in ("Random", "Popular", "PoisonRec")
    ]


def updates_report(records: list[Record], folder: Path) -> Report:
    """A row a ranker and an attack, a column an update."""
    header = [
        "data",
        "ranker",
        "attack",
        *(f"{e} epochs, batch {'own' if b is None else b}" for e, b in UPDATES),
    ]
    rows = []
    for place_ in dict.fromkeys((r.spec["data"], r.spec["ranker"], r.spec["attack"]) for r in records):
        data, ranker, attack = place_
        wanted = {"data": data, "ranker": ranker, "attack": attack}
        mine = [values_of(records, "recnum", **wanted, ft_epochs=e, ft_batch=b) for e, b in UPDATES]
        paper = published("poisonrec", "table3", "values", DATA[data][1], ranker, attack)
        broken = [_broken(records, **wanted, ft_epochs=e, ft_batch=b) for e, b in UPDATES]
        shown = ["diverged" if bad else report.interval(v, 0, "mean") for v, bad in zip(mine, broken)]
        rows.append([*place_, *shown, f"{paper:,}"])
    notes = [
        "RecNum of all users, one seed; the last column is the paper's, whose update is not stated",
        "diverged: the update leaves scores that are no numbers; the learning rate is that of the model's own batch",
        "steps of PoisonRec: "
        + ", ".join(sorted({str(r.spec["steps"]) for r in records if "steps" in r.spec})),
    ]
    return Report("PoisonRec: epochs and batch of an update", [*header, "published"], rows, notes, [])


def _broken(records: list[Record], **wanted: Any) -> bool:
    """Whether the update of a cell broke most users' scores: its RecNum of 0 says nothing of the attack."""
    mine = [r.result for r in records if all(r.spec.get(k) == v for k, v in wanted.items())]
    return any(result["diverged"] > 0.5 for result in mine)


STUDIES = (
    Study(
        "poisonrec-updates",
        "PoisonRec: what RecNum owes to the update, which the paper does not state",
        updates_cells,
        run,
        updates_report,
        (60, 5),
    ),
)
