"""PoisonRec (Song et al., ICDE 2020), Fig. 6 and what goes with it: which items the final policy clicks.

Items lie in a plane by t-SNE of the vectors the ranker learned of them. ItemPop, CoVisitation and AutoRec have no such
vectors: the paper takes those of PMF, and so does `poisonrec.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments import report
from experiments.record import Record
from models.data import Interactions
from models.evaluation import plane

DRAWN, CLICKED = 400, 200
HABITS = ("clicks on targets", "on its favorite item", "neighbors of which one is a target")
"""Shares of the clicks of a final policy; the last one of neighboring clicks."""


def strategy(
    clicks: Int[np.ndarray, "M N T"],
    targets: Int[np.ndarray, " G"],
    table: Float[np.ndarray, "I D"],
    train: Interactions,
) -> dict[str, Any]:
    """What the final policy clicks: how often it alternates, what it clicks most, and where that lies.

    Returns:
        `alternation`: share of neighboring clicks of which exactly one is a target; `clicked`: the 20 items clicked
        most with their share of clicks; `plane`: t-SNE of the drawn items (the targets, those clicked most, and
        others, 400 together), `popularity` and `times` clicked of each, and whether it is a `target`.
    """
    aimed = np.isin(clicks, targets)
    item, times = np.unique(clicks, return_counts=True)
    order = np.argsort(-times, kind="stable")
    known = np.concatenate([targets, np.setdiff1d(item[order][:CLICKED], targets)])
    rest = np.random.default_rng(0).permutation(
        np.setdiff1d(np.arange(train.items), np.append(item, targets))
    )
    drawn = np.concatenate([known, rest])[:DRAWN]
    counted = dict(zip(item.tolist(), times.tolist(), strict=True))
    return {
        "alternation": float(np.mean(aimed[..., 1:] != aimed[..., :-1])),
        "clicked": [[int(item[k]), float(times[k] / clicks.size)] for k in order[:20]],
        "plane": plane(table[drawn], "tsne").round(2).tolist(),
        "popularity": np.asarray(train.popularity())[drawn].tolist(),
        "times": [counted.get(int(one), 0) for one in drawn],
        "target": np.isin(drawn, targets).tolist(),
    }


def habits(found: list[Record]) -> list[str]:
    """What the final policy clicks, of the record that says it: the cells of `HABITS`."""
    told = [r.result for r in found if "alternation" in r.result]
    if not told:
        return ["-"] * len(HABITS)
    return [f"{share:.0%}" for share in (told[0]["share"], told[0]["clicked"][0][1], told[0]["alternation"])]


def notes_of(records: list[Record]) -> list[str]:
    """What the picture shows."""
    said = []
    drawn = [r for r in records if "plane" in r.result]
    if drawn:
        said.append(
            "pictures of items (Fig. 6): colored by popularity, what the policy clicks circled, targets as stars"
        )
    old = [r.spec["ranker"] for r in drawn if "target" not in r.result]
    if old:
        said.append(f"records older than the stars, which do not say where the targets lie: {', '.join(old)}")
    return said


def planes(records: list[Record], folder: Path) -> list[Path]:
    """Fig. 6: the items by popularity, those the policy clicks circled, targets as green stars."""
    found = [r for r in records if "plane" in r.result]
    if not found:
        return []
    made, axes = report.figure(1, len(found), width=3.2, height=3.2)
    for axis, record in zip(axes.flat, found, strict=True):
        points, times = np.array(record.result["plane"]), np.array(record.result["times"])
        axis.scatter(*points.T, c=np.log1p(record.result["popularity"]), s=6, cmap="viridis")
        hit = times > 0
        size = 20 + 200 * times[hit] / max(times.max(), 1)
        axis.scatter(*points[hit].T, s=size, facecolors="none", edgecolors="C3", linewidths=0.7)
        stars = points[np.array(record.result.get("target", [False] * len(points)))]
        axis.scatter(*stars.T, s=36, marker="*", color="limegreen", edgecolors="k", linewidths=0.3, zorder=3)
        ranker, space = record.spec["ranker"], record.result.get("space")
        where = f" (items of {space})" if space not in (None, ranker) else ""
        axis.set(title=f"{record.spec['data']}, {ranker}{where}", xticks=[], yticks=[])
        axis.title.set_fontsize(9)
    return [report.save(made, folder / "poisonrec-strategies.png")]
