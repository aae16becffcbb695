"""Can one see the fake users? What they click, how alike they are, where they lie (RevAdv Fig. 5b, 5c; RAPU Fig. 5).

MovieLens-100K at 3%, RAPU's setting. Users are drawn in the latent space of WRMF and of Mult-VAE trained on the
poisoned data; 512 real users are drawn beside all fake ones, as in RAPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import report
from experiments.papers.rapu import setting
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models import registry
from models.data import inject
from models.evaluation import mean_jaccard, neighbor_purity, plane, popularity_distance
from models.train import fit

ATTACKS = ("random", "popular", "top-popular", "revadv", "rapu-r", "rapu-g", "covis")
SPACES = {"WRMF": ("wrmf", "rapu-ml-victim"), "Mult-VAE": ("multvae", "revadv")}
DRAWN = 512
NEIGHBORS = 10


def cells(quick: bool) -> list[Spec]:
    """Every attack of a seed; coordinates are kept for the first seed."""
    names, seeds = (ATTACKS[:3], 1) if quick else (ATTACKS, 3)
    return [
        {"study": "detectability", "data": "ml", "attack": name, "seed": seed}
        for seed in range(seeds)
        for name in names
    ]


def run(spec: Spec) -> dict[str, Any]:
    """Craft, inject, train the two models, measure and project."""
    case, profiles, facts = setting(spec)
    assert profiles is not None
    poisoned, F = inject(case.train, profiles), profiles.fakes
    values: dict[str, Any] = {
        **facts,
        "popularity_distance": popularity_distance(profiles, case.train),
        "jaccard": mean_jaccard(profiles),
        "base_rate": (F - 1) / (case.train.users + F - 1),
    }
    shown = np.random.default_rng(spec["seed"]).choice(case.train.users, DRAWN, replace=False)
    for space, (name, preset) in SPACES.items():
        fitted = fit(registry.make(name, preset), poisoned, case.keys["victim"])
        latent = np.asarray(jax.block_until_ready(fitted.embedding["user"]))
        values[f"purity {space}"] = neighbor_purity(latent, F, k=min(NEIGHBORS, F - 1))
        if spec["seed"] == 0:
            chosen = latent[np.append(shown, np.arange(case.train.users, len(latent)))]
            values[f"pca {space}"] = plane(chosen).round(3).tolist()
            values[f"tsne {space}"] = plane(chosen, "tsne").round(2).tolist()
    return {**values, "fakes": F}


def table(records: list[Record], folder: Path) -> Report:
    """A row an attack; pictures of the first seed."""
    names = {
        "popularity_distance": "KS distance of popularity",
        "jaccard": "mean Jaccard of two fakes",
        **{f"purity {space}": f"fakes among {NEIGHBORS} neighbors, {space}" for space in SPACES},
    }
    header, rows = ["attack", "seeds", *names.values()], []
    for attack in ATTACKS:
        found = [r.result for r in records if r.spec["attack"] == attack]
        if found:
            rows.append(
                [
                    attack,
                    str(len(found)),
                    *(report.interval([r[name] for r in found], 3, "mean") for name in names),
                ]
            )
    first = {r.spec["attack"]: r.result for r in records if r.spec["seed"] == 0}
    pictures = [_draw(first, method, folder) for method in ("pca", "tsne")] if first else []
    chance = records[0].result["base_rate"]
    notes = [
        f"{report.SEEDS}; who is fake is known here, which no detector may know",
        f"fakes among neighbors: by chance {chance:.3f}, 1: they lie in a cluster of their own",
        f"pictures: seed 0, {DRAWN} real users (gray) and all fake ones",
    ]
    return Report("Can one see the fake users? MovieLens-100K, 3%", header, rows, notes, pictures)


def _draw(first: dict[str, dict[str, Any]], method: str, folder: Path) -> Path:
    made, axes = report.figure(len(SPACES), len(first), width=2.4, height=2.4)
    for line, space in enumerate(SPACES):
        for column, (attack, found) in enumerate(first.items()):
            points, axis = np.array(found[f"{method} {space}"]), axes[line, column]
            axis.plot(*points[: -found["fakes"]].T, ".", color="0.75", markersize=2)
            axis.plot(*points[-found["fakes"] :].T, ".", color="C3", markersize=5)
            axis.set(title=f"{attack}, {space}", xticks=[], yticks=[])
            axis.title.set_fontsize(8)
    return report.save(made, folder / f"detectability-{method}.png")


STUDIES = (
    Study(
        "detectability",
        "how fake users look: popularity, similarity, PCA and t-SNE",
        cells,
        run,
        table,
        (40, 4),
    ),
)
