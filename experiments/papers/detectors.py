"""Which detector sees which attack? Every detector of clicks, and one learned from the other attacks.

MovieLens-100K at 3%, RAPU's setting. A detector gets the poisoned clicks and nothing else. `supervised` has learned
from the same real users with the fake users of every attack but the one it is tested on: an operator who makes attacks
he knows against his own data. Its real users are known to it as real, which favors it. All of these attacks spend one
budget, so that the length of a profile betrays them together: `supervised-no-length` has to do without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defenses.detectors import DETECTORS, judged, supervised
from experiments import report
from experiments.papers.rapu import setting
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models.data import Interactions, inject

ATTACKS = ("random", "popular", "top-popular", "pga", "covis", "revadv", "rapu-r", "rapu-g")
LEARNED: Mapping[str, Sequence[str]] = {"supervised": (), "supervised-no-length": ("length-var",)}
"""Learned detectors and the scores that are kept from them."""
SEEN_BY = (*DETECTORS, *LEARNED)
NAMES = {
    "auc": "ROC area",
    "average_precision": "average precision",
    "precision_at_count": "precision at the true count",
    "recall_at_1": "recall at 1% false positives",
    "recall_at_5": "recall at 5%",
}


def cells(quick: bool) -> list[Spec]:
    """A seed has every attack, because `supervised` learns from the others."""
    chosen, seeds = (ATTACKS[:3], 1) if quick else (ATTACKS, 3)
    return [
        {"study": "detectors", "data": "ml", "attacks": list(chosen), "learned": list(LEARNED), "seed": seed}
        for seed in range(seeds)
    ]


def run(spec: Spec) -> dict[str, Any]:
    """Craft and inject every attack, then let every detector judge every attack."""
    poisoned: dict[str, Interactions] = {}
    real, facts = 0, {}
    for attack in spec["attacks"]:
        case, profiles, facts[attack] = setting({**spec, "attack": attack})
        assert profiles is not None
        real, poisoned[attack] = case.train.users, inject(case.train, profiles)
    seen: dict[str, dict[str, dict[str, float]]] = {}
    for attack, train in poisoned.items():
        others = [(data, np.arange(data.users) >= real) for name, data in poisoned.items() if name != attack]
        learned = {name: supervised(others, without=hidden) for name, hidden in LEARNED.items()}
        tried = {**DETECTORS, **learned}
        seen[attack] = {name: judged(detector, train, real)._asdict() for name, detector in tried.items()}
    return {"seen": seen, "attacks": facts}


def table(records: list[Record], folder: Path) -> Report:
    """A row an attack and detector, means over seeds; the heat map has areas."""
    rows, areas = [], np.full((len(ATTACKS), len(SEEN_BY)), np.nan)
    for line, attack in enumerate(ATTACKS):
        for column, detector in enumerate(SEEN_BY):
            found = [r.result["seen"][attack][detector] for r in records if attack in r.result["seen"]]
            if found:
                areas[line, column] = np.mean([values["auc"] for values in found])
                means = [report.interval([values[name] for values in found], 3, "mean") for name in NAMES]
                rows.append([attack, detector, str(len(found)), *means])
    notes = [
        f"{report.SEEDS}; no detector is told how many users are fake or who",
        "an area below 0.5: the fake users look less suspicious than the real ones do",
        "lof and knn look at the first singular directions of the clicks at hand, not at a victim's vectors of the "
        "users: no victim is trained here",
        "supervised: logistic regression on the ranks of all scores, learned from the other attacks on these users; "
        "they share the budget and, on MovieLens, the targets; supervised-no-length does not see length-var",
        *_best(areas),
    ]
    header = ["attack", "detector", "seeds", *NAMES.values()]
    pictures = [_picture(areas, folder)] if rows else []
    return Report("Which detector sees which attack? MovieLens-100K, 3%", header, rows, notes, pictures)


def _best(areas: np.ndarray) -> list[str]:
    """Over the attacks there are: the best detector in hindsight, and each attack's own."""
    there = np.asarray(np.isfinite(areas).all(1))
    if not there.any():
        return []
    mean, least = areas[there].mean(0), areas[there].min(0)
    order = np.argsort(-mean)
    return [
        "mean (least) area over attacks: "
        + ", ".join(f"{SEEN_BY[n]} {mean[n]:.2f} ({least[n]:.2f})" for n in order),
        "best for each attack, known only afterwards: "
        + ", ".join(
            f"{attack} {SEEN_BY[int(np.argmax(areas[line]))]} {areas[line].max():.2f}"
            for line, attack in enumerate(ATTACKS)
            if there[line]
        ),
    ]


def _picture(areas: np.ndarray, folder: Path) -> Path:
    made, axes = report.figure(1, 1, width=8, height=4.2)
    axis = axes[0, 0]
    axis.grid(visible=False)
    shown = axis.imshow(areas, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
    for (line, column), value in np.ndenumerate(areas):
        if np.isfinite(value):
            color = "w" if abs(value - 0.5) > 0.35 else "k"
            axis.text(column, line, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(SEEN_BY)), SEEN_BY, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(ATTACKS)), ATTACKS, fontsize=8)
    made.colorbar(shown, label="ROC area; 0.5 is chance")
    return report.save(made, folder / "detectors.png")


STUDIES = (
    Study(
        "detectors",
        "every detector and a learned one against every attack",
        cells,
        run,
        table,
        (20, 2),
    ),
)
