"""H-CARS (Chen et al., SIGIR 2023), Fig. 2: what explanations tell a surrogate of the victim's lists.

Data, victims, views and explanations are those of Table 1 (hcars.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.papers.hcars import (
    WORLDS,
    K,
    case_of,
    clean,
    explanations_of,
    surrogate_of,
    view_of,
)
from experiments.papers.hcars_table1 import Hits, gap, shown
from experiments.pipeline import measured
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models.train import fit, top_k

SURROGATES = ("hcars", "hcars-wo-cf", "wrmf", "hcars-false", "hcars-as-printed")


def fig2_cells(quick: bool) -> list[Spec]:
    """MovieLens and NCF, by how much of the data the surrogate sees."""
    base = {"study": "hcars-fig2", "data": "ml", "victim": "NCF"}
    seeds, shares = (range(1), (0.8,)) if quick else (range(WORLDS["ml"].seeds), (0.8, 0.3, 0.5))
    return [
        {**base, "surrogate": name, "visible": visible, "seed": seed}
        for seed in seeds
        for visible in shares
        for name in (SURROGATES[:3] if quick else SURROGATES)
    ]


def run_fig2(spec: Spec) -> dict[str, Any]:
    """Train the surrogate on the view; of each user's ten best items, how many has the victim, how many are true."""
    world, seed = spec["data"], spec["seed"]
    case = case_of(world, seed)
    told = None
    if spec["surrogate"] not in ("hcars-wo-cf", "wrmf"):
        told = explanations_of(world, seed, spec["victim"])
    model = surrogate_of(spec["surrogate"], world, told)
    view = view_of(world, seed, spec["visible"])
    fitted = jax.block_until_ready(fit(model, view, jax.random.fold_in(case.key, 5)))
    users = jnp.arange(case.train.users)
    victim, _ = clean(world, seed, spec["victim"])
    lists = [np.asarray(top_k(one, users, K, exclude=case.train)) for one in (victim, fitted)]
    explained = {} if told is None else {"asked": told.queries, "explained": int(told.found.sum())}
    return {
        "p_at_10": fidelity(*lists),
        "recall": measured(fitted, case, k=K)["recall"],
        "victim_recall": measured(victim, case, k=K)["recall"],
        **explained,
    }


def fidelity(one: np.ndarray, other: np.ndarray) -> float:
    """Mean share of a user's list that is in its other list too.

    >>> fidelity(np.array([[1, 2], [3, 4]]), np.array([[2, 5], [4, 3]]))
    0.75
    """
    both = one[:, :, None] == other[:, None, :]
    return float(both.any(2).mean())


def fig2_report(records: list[Record], folder: Path) -> Report:
    """P@10 of every surrogate by how much it sees, and what explanations add."""

    def of(name: str, visible: float, metric: str = "p_at_10") -> Hits:
        wanted = {"surrogate": name, "visible": visible}
        return {
            r.spec["seed"]: r.result[metric]
            for r in records
            if all(r.spec[key] == value for key, value in wanted.items())
        }

    shares = sorted({r.spec["visible"] for r in records})
    rows, notes = [], []
    for visible in shares:
        for name in SURROGATES:
            found = of(name, visible)
            if found:
                scores = [list(of(name, visible, metric).values()) for metric in ("p_at_10", "recall")]
                means = [report.interval(values, 4, "mean") for values in scores]
                rows.append([shown(visible), name, str(len(found)), *means])
        for one, other in (("hcars", "hcars-wo-cf"), ("hcars", "wrmf")):
            text = gap(of(one, visible), of(other, visible))
            notes += [f"{shown(visible)} visible: P@10 of {one} - {other} = {text}"] if text else []
    made, axes = report.figure()
    for name in SURROGATES:
        points = {share: of(name, share) for share in shares}
        means = {100 * share: np.mean(list(v.values())) for share, v in points.items() if v}
        axes[0, 0].plot(list(means), list(means.values()), "o-", label=name, markersize=4)
    axes[0, 0].set(xlabel="visible clicks, %", ylabel="P@10", title="surrogates of NCF, MovieLens")
    axes[0, 0].legend(frameon=False, fontsize=7)
    notes = [
        "P@10 is undefined in the paper and its figure prints no numbers; here the share of the victim's ten best "
        "items that are among the surrogate's, mean over users, both without what the victim trained on",
        "recall: Recall@10 of the surrogate on the held-out clicks; that of the victim is "
        + report.interval(
            [r.result["victim_recall"] for r in records if r.spec["surrogate"] == "wrmf"], 4, "mean"
        ),
        "hcars is the paper's H-CARS-CF with the contrasting loss; -false and -as-printed are the other readings of "
        "eq. 8; NCR learns for 10 epochs, the paper does not say how long",
        *notes,
    ]
    return Report(
        "H-CARS, Fig. 2",
        ["visible", "surrogate", "seeds", "P@10", "Recall@10"],
        rows,
        notes,
        [report.save(made, folder / "hcars-fig2.png")],
    )


STUDIES = (
    Study(
        "hcars-fig2",
        "H-CARS, Fig. 2: how well surrogates know the victim's lists, with and without explanations",
        fig2_cells,
        run_fig2,
        fig2_report,
        (120, 6),
    ),
)
