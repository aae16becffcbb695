"""Is a victim as well trained as in its paper? Every victim on its paper's data, without any attack.

Nothing that is measured against a weak imitation can be believed. Ours stands beside the published clean figure where
there is one, with the difference, on the data that could be had: the notes say where it is another edition.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from experiments import report
from experiments.published import published
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models import registry
from models.data import PUBLISHED
from models.data.protocols import Prepared, prepared
from models.evaluation import evaluate
from models.recommender import Recommender
from models.stopping import fit_early
from models.train import Fitted, fit

HOURS = ("revadv-gowalla cml:revadv", "revadv-gowalla neumf:revadv")


class Row(NamedTuple):
    """One victim on one paper's data.

    Attributes:
        paper, data: of the row; `data` is a preset of `models.data.protocols`.
        victim: name and preset of `models.registry`.
        metrics: what is compared, by name of `models.evaluation.Evaluation`, and the published value or None.
        k: list length.
        seeds: repetitions in the full study.
        early: validated: the parameters of the best validation score, as the paper's code keeps them.
        changes: arguments beyond the preset.
        targets: of the target metrics, a name of `models.data.PUBLISHED`.
    """

    paper: str
    data: str
    victim: tuple[str, str | None]
    metrics: dict[str, float | None]
    k: int
    seeds: int
    early: bool = False
    changes: tuple[tuple[str, Any], ...] = ()
    targets: str | None = None


def rows() -> list[Row]:
    """Every victim with a published clean figure, the cheap ones first."""
    gowalla = lambda name: {"recall": published("revadv", "table1", "values", name, "recall@50")}
    rapu = lambda data, victim: {"hr_any": published("rapu", "table2", "values", data, victim, "None", "1%")}
    apt = lambda data, key: {
        "hr_test": published("apt", "table3", "values", data, "Average", key, "origin"),
        "hr_mean": published("apt", "table2", "values", data, "Average", key, "origin"),
    }
    targets_only = lambda found: {"hr_mean": found["hr_mean"]}  # the test figure stands in the row before
    ours = (("highest", 1.0),)  # the preset of the data has divided by the largest rating
    ml, video = "rapu-ml-100k", "rapu-amazon-video"
    movies, other, trust = "ml-100k/rapu", "ml-100k/apt", "filmtrust/apt-random"
    return [
        Row(
            "apt", "apt-ml-100k", ("mf", "apt-ml-100k"), apt("ML-100K", "random"), 50, 10, False, ours, movies
        ),
        Row(
            "apt",
            "apt-ml-100k",
            ("mf", "apt-ml-100k"),
            targets_only(apt("ML-100K", "unpopular")),
            50,
            10,
            False,
            ours,
            other,
        ),
        Row(
            "apt",
            "apt-filmtrust",
            ("mf", "apt-ml-100k"),
            apt("FilmTrust", "random"),
            50,
            10,
            False,
            ours,
            trust,
        ),
        Row(
            "apt",
            "apt-filmtrust",
            ("mf", "apt-ml-100k"),
            targets_only(apt("FilmTrust", "unpopular")),
            50,
            10,
            False,
            ours,
            "filmtrust/apt-unpopular",
        ),
        Row(
            "rapu", ml, ("wrmf", "rapu-ml-victim"), rapu("MovieLens", "WRMF"), 50, 10, targets="ml-100k/rapu"
        ),
        Row("rapu", ml, ("gmf", "rapu-ml"), rapu("MovieLens", "NCF"), 50, 5, targets="ml-100k/rapu"),
        Row("rapu", ml, ("gmf", "rapu-ml"), rapu("MovieLens", "NCF"), 50, 5, True, targets="ml-100k/rapu"),
        Row(
            "rapu",
            ml,
            ("lightgcn", "rapu-victim"),
            rapu("MovieLens", "LightGCN"),
            50,
            5,
            targets="ml-100k/rapu",
        ),
        Row(
            "rapu",
            ml,
            ("lightgcn", "rapu-victim"),
            rapu("MovieLens", "LightGCN"),
            50,
            5,
            True,
            targets="ml-100k/rapu",
        ),
        Row("rapu", video, ("wrmf", "rapu-video-victim"), {"recall": None}, 50, 5),
        Row("revadv", "revadv-gowalla", ("wrmf", "revadv-gowalla"), gowalla("WRMF+SGD"), 50, 2),
        Row("revadv", "revadv-gowalla", ("itemcf", None), gowalla("ItemCF"), 50, 1),
        Row("revadv", "revadv-gowalla", ("als", "revadv-gowalla"), gowalla("WRMF+ALS"), 50, 2),
        Row("revadv", "revadv-gowalla", ("itemae", "revadv-gowalla"), gowalla("ItemAE"), 50, 2),
        Row("revadv", "revadv-gowalla", ("multvae", "revadv"), gowalla("Mult-VAE"), 50, 2),
        Row("apt", "apt-ml-1m", ("mf", "apt-ml-1m"), {"hr_test": _apt_ml_1m()}, 50, 2, False, ours),
        Row("revadv", "revadv-gowalla", ("cml", "revadv"), gowalla("CML"), 50, 2),
        Row("revadv", "revadv-gowalla", ("neumf", "revadv"), gowalla("NCF"), 50, 2),
    ]


def _apt_ml_1m() -> float:
    return published("apt", "table3", "values", "ML-1M", "Average", "random", "origin")


def label(row: Row) -> str:
    """What a record calls the row."""
    name, preset = row.victim
    return f"{row.paper} {row.data} {name}{'' if preset is None else ':' + preset}{' early' if row.early else ''}"


def cells(quick: bool) -> list[Spec]:
    """One seed of every row first, then the rest, what takes hours last.

    The rows of a label differ in their targets only and share a cell.
    """
    chosen: dict[str, int] = {}
    for row in rows():
        chosen[label(row)] = max(chosen.get(label(row), 0), row.seeds)
    if quick:
        chosen = dict.fromkeys(list(chosen)[:4], 1)
    pairs = [(seed, name) for seed in range(max(chosen.values())) for name in chosen if seed < chosen[name]]
    pairs.sort(key=lambda pair: pair[1].endswith(HOURS))  # stable
    return [{"study": "clean", "row": name, "seed": seed} for seed, name in pairs]


@functools.lru_cache
def _model(name: str, preset: str | None, changes: tuple[tuple[str, Any], ...]) -> Recommender:
    return registry.make(name, preset, **dict(changes))


@functools.lru_cache(maxsize=2)
def _data(name: str, seed: int) -> Prepared:
    return prepared(name, jax.random.fold_in(jax.random.key(seed), 0))


def run(spec: Spec) -> dict[str, Any]:
    """Train the victim and judge it on the test events, and on every target set of its rows."""
    mine = [row for row in rows() if label(row) == spec["row"]]
    row, seed = mine[0], spec["seed"]
    made, model = _data(row.data, seed), _model(*row.victim, row.changes)
    train, validation, test = made.split
    key = jax.random.fold_in(jax.random.key(seed), 1)
    began, epochs = time.perf_counter(), None
    if row.early:
        assert validation is not None
        done = fit_early(model, train, key, validation, metric="ndcg", k=10, every=1, patience=10)
        fitted, epochs = done.fitted, done.best_epoch
    else:
        fitted = jax.block_until_ready(fit(model, train, key))
    seconds = time.perf_counter() - began
    scores = Partial(Fitted.scores, fitted)
    values: dict[str, Any] = {"seconds": seconds, "best_epoch": epochs, "notes": list(made.notes)}
    judged = evaluate(scores, train, test=test, k=row.k)
    values |= {name: float(np.asarray(getattr(judged, name))) for name in ("recall", "ndcg", "hr_test")}
    for one in mine:
        if one.targets is not None:
            found = evaluate(scores, train, targets=np.array(PUBLISHED[one.targets]), k=row.k)
            values[one.targets] = {
                name: float(np.asarray(getattr(found, name))) for name in ("hr_any", "hr_mean")
            }
    return values


def tabulate(records: list[Record], folder: Path) -> Report:
    """Ours beside the published figure, row by row and metric by metric."""
    header = [
        "paper",
        "data",
        "victim",
        "metric",
        "seeds",
        "ours",
        "published",
        "ours / published",
        "seconds",
    ]
    table, marks, names = [], [], []
    for row in rows():
        found = [record.result for record in records if record.spec["row"] == label(row)]
        if not found:
            continue
        for metric, paper in row.metrics.items():
            value = lambda r, metric=metric, row=row: (
                r[row.targets][metric] if metric in r.get(row.targets, {}) else r[metric]
            )
            ours = [value(r) for r in found]
            name = f"{metric}@{row.k}" + (f" of {row.targets}" if metric in ("hr_any", "hr_mean") else "")
            ratio = "-" if not paper else f"{np.mean(ours) / paper:.2f}"
            victim = label(row).split(" ", 2)[2]
            shown = "-" if paper is None else f"{paper:.4f}"
            seconds = report.interval([r["seconds"] for r in found], 1)
            cells = [str(len(found)), report.interval(ours, 4, statistic="mean"), shown, ratio, seconds]
            table.append([row.paper, row.data, victim, name, *cells])
            if paper:
                marks.append(np.mean(ours) / paper)
                names.append(f"{victim}\n{metric}")
    made, axes = report.figure(width=9)
    axes[0, 0].axhspan(0.9, 1.1, color="0.9")
    axes[0, 0].plot(marks, "o")
    axes[0, 0].set(
        ylabel="ours / published", xticks=range(len(names)), title="clean victims; gray: within 10%"
    )
    axes[0, 0].set_xticklabels(names, rotation=90, fontsize=7)
    picture = report.save(made, folder / "clean.png")
    notes = [f"{report.SEEDS}; a published split has no seed: only the training differs"]
    notes += ["seconds: wall clock of a machine that did other work too, not a benchmark"]
    notes += [
        "early: parameters of the best validation NDCG@10; RAPU's code keeps the best of every tenth epoch by Recall@50"
    ]
    notes += ["gmf: every reading of RAPU's paper and code, beside RecBole itself, is in the study clean-ncf"]
    for data in dict.fromkeys(row.data for row in rows()):
        said = next((r.result["notes"] for r in records if f" {data} " in r.spec["row"]), [])
        notes += [f"{data}: {note}" for note in said]
    return Report("Clean victims beside their papers", header, table, notes, [picture])


STUDIES = (
    Study("clean", "every victim on its paper's data, without attack", cells, run, tabulate, (240, 2)),
)
