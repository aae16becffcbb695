"""Can one see the fake users? What they click, how alike they are, where they lie (RevAdv Fig. 5b, 5c; RAPU Fig. 5).

MovieLens-100K at 3%, RAPU's setting, and Gowalla at 1%, RevAdv's, with the fake users of revadv_gowalla.py. Users are
drawn in the latent space of WRMF and of Mult-VAE trained on the poisoned data; 512 real users are drawn beside all fake
ones, as in RAPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import report
from experiments.papers import rapu, revadv_gowalla
from experiments.pipeline import Case, poisoned
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models import registry
from models.data import Profiles
from models.evaluation import mean_jaccard, neighbor_purity, plane, popularity_distance
from models.train import fit

ATTACKS = ("random", "popular", "top-popular", "revadv", "rapu-r", "rapu-g", "covis", "pga", "srwa")
GOWALLA = ("rand-filter", "wrmf-als", "wrmf-sgd")
"""The paper's figure has the first and the last, whose craft takes hours."""
DATA = {"ml": ("MovieLens-100K, 3%", ATTACKS), "gowalla": ("Gowalla, 1%, head targets", GOWALLA)}
SPACES = {
    "ml": {"WRMF": ("wrmf", "rapu-ml-victim"), "Mult-VAE": ("multvae", "revadv")},
    "gowalla": {"WRMF": ("wrmf", "revadv-gowalla"), "Mult-VAE": ("multvae", "revadv")},
}
DRAWN = 512
NEIGHBORS = 10


def cells(quick: bool) -> list[Spec]:
    """Every attack of a seed; coordinates are kept for the first seed. Gowalla, which takes longer, last."""
    place = lambda data, name, seed: {"study": "detectability", "data": data, "attack": name, "seed": seed}
    if quick:
        return [place("ml", name, 0) for name in (*ATTACKS[:3], "rapu-r")]
    small = [place("ml", name, seed) for seed in range(3) for name in ATTACKS]
    cheap = [place("gowalla", name, seed) for seed in range(3) for name in GOWALLA[:2]]
    return [*small, *cheap, *(place("gowalla", GOWALLA[2], seed) for seed in range(3))]


def setting(spec: Spec) -> tuple[Case, Profiles, dict[str, Any]]:
    """The repetition of a cell and its fake users, those of the study whose data it has."""
    if spec["data"] == "gowalla":
        case, profiles, facts = revadv_gowalla.setting({**spec, "stratum": "head"})
    else:
        case, profiles, facts = rapu.setting(spec)
    assert profiles is not None
    return case, profiles, facts


def run(spec: Spec) -> dict[str, Any]:
    """Craft, inject, train the two models, measure and project."""
    case, profiles, facts = setting(spec)
    F, data = profiles.fakes, poisoned(case.train, profiles)
    values: dict[str, Any] = {
        **facts,
        "popularity_distance": popularity_distance(profiles, case.train),
        "jaccard": mean_jaccard(profiles),
        "base_rate": (F - 1) / (case.train.users + F - 1),
    }
    shown = np.random.default_rng(spec["seed"]).choice(case.train.users, DRAWN, replace=False)
    for space, (name, preset) in SPACES[spec["data"]].items():
        fitted = fit(registry.make(name, preset), data, case.keys["victim"])
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
        **{f"purity {space}": f"fakes among {NEIGHBORS} neighbors, {space}" for space in SPACES["ml"]},
    }
    header, rows, pictures, chance = ["data", "attack", "seeds", *names.values()], [], [], []
    for data, (label, shown) in DATA.items():
        mine = [r for r in records if r.spec["data"] == data]
        for attack in shown:
            found = [r.result for r in mine if r.spec["attack"] == attack]
            if found:
                means = (report.interval([r[name] for r in found], 3, "mean") for name in names)
                rows.append([data, attack, str(len(found)), *means])
        first = {r.spec["attack"]: r.result for r in mine if r.spec["seed"] == 0}
        first = {attack: first[attack] for attack in shown if attack in first}
        pictures += [_draw(first, method, folder, data) for method in ("pca", "tsne")] if first else []
        chance += [f"{mine[0].result['base_rate']:.3f} ({label})"] if mine else []
    notes = [
        f"{report.SEEDS}; who is fake is known here, which no detector may know",
        f"fakes among neighbors: by chance {', '.join(chance)}; 1: they lie in a cluster of their own",
        f"pictures: seed 0, {DRAWN} real users (gray) and all fake ones",
    ]
    return Report("Can one see the fake users?", header, rows, notes, pictures)


def _draw(first: dict[str, dict[str, Any]], method: str, folder: Path, data: str) -> Path:
    spaces = SPACES[data]
    made, axes = report.figure(len(spaces), len(first), width=2.4, height=2.4)
    for line, space in enumerate(spaces):
        for column, (attack, found) in enumerate(first.items()):
            points, axis = np.array(found[f"{method} {space}"]), axes[line, column]
            axis.plot(*points[: -found["fakes"]].T, ".", color="0.75", markersize=2)
            axis.plot(*points[-found["fakes"] :].T, ".", color="C3", markersize=5)
            axis.set(title=f"{attack}, {space}", xticks=[], yticks=[])
            axis.title.set_fontsize(8)
    return report.save(made, folder / f"detectability-{method}{'' if data == 'ml' else f'-{data}'}.png")


STUDIES = (
    Study(
        "detectability",
        "how fake users look: popularity, similarity, PCA and t-SNE",
        cells,
        run,
        table,
        (120, 4),
    ),
)
