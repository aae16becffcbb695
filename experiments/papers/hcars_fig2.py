"""H-CARS (Chen et al., SIGIR 2023), Fig. 2: what explanations tell a surrogate of the victim's lists.

Data, victims, views and explanations are those of Table 1 (hcars.py).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.paired import Gap, conclusion, gap
from experiments.papers.hcars import (
    WORLDS,
    K,
    case_of,
    clean,
    explanations_of,
    surrogate_of,
    view_of,
)
from experiments.papers.hcars_table1 import Hits, shown
from experiments.pipeline import measured
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models.train import fit, top_k

SURROGATES = ("hcars", "hcars-wo-cf", "wrmf", "hcars-false", "hcars-as-printed")
READINGS = ("hcars", "hcars-false", "hcars-as-printed")
"""The readings of eq. 8, the loss that learns from explanations."""


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
        notes += [
            f"{shown(visible)} visible, {text}" for text in _claims({n: of(n, visible) for n in SURROGATES})
        ]
    notes += _widens({share: minus(of("hcars", share), of("hcars-wo-cf", share)) for share in shares})
    made, axes = report.figure()
    for name in SURROGATES:
        points = {share: of(name, share) for share in shares}
        means = {100 * share: np.mean(list(v.values())) for share, v in points.items() if v}
        axes[0, 0].plot(list(means), list(means.values()), "o-", label=name, markersize=4)
    axes[0, 0].set(xlabel="visible clicks, %", ylabel="P@10", title="surrogates of NCF, MovieLens")
    axes[0, 0].legend(frameon=False, fontsize=7)
    notes = [
        report.SEEDS,
        "P@10 is undefined in the paper and its figure prints no numbers; here the share of the victim's ten best "
        "items that are among the surrogate's, mean over users, both without what the victim trained on",
        "recall: Recall@10 of the surrogate on the held-out clicks; that of the victim is "
        + report.interval(
            [r.result["victim_recall"] for r in records if r.spec["surrogate"] == "wrmf"], 4, "mean"
        ),
        "hcars is the paper's H-CARS-CF with the contrasting loss; -false and -as-printed are the other readings of "
        "eq. 8; NCR learns for 10 epochs, the paper does not say how long",
        "differences of P@10 are paired by seed; from three seeds on with their 95% t-interval and a verdict, below "
        "that neither; none is corrected for how many are looked at",
        *notes,
    ]
    return Report(
        "H-CARS, Fig. 2",
        ["visible", "surrogate", "seeds", "P@10", "Recall@10"],
        rows,
        notes,
        [report.save(made, folder / "hcars-fig2.png")],
    )


def minus(one: Hits, other: Hits) -> Hits:
    """The difference seed by seed, of the seeds that both have.

    >>> minus({0: 3.0, 1: 2.0}, {1: 0.5, 2: 1.0})
    {1: 1.5}
    """
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def _claims(found: dict[str, Hits]) -> list[str]:
    """The paper's order at a share of visible clicks, the readings of the loss side by side, and each without it."""
    pairs = lambda names: {f"{one} - {other}": gap(found[one], found[other]) for one, other in names}
    said = lambda gaps, **how: "; ".join(f"{pair} {each.said(**how)}" for pair, each in gaps.items() if each)
    paper: dict[str, Gap | None] = pairs([("hcars", "hcars-wo-cf"), ("hcars", "wrmf")])
    groups = {
        f"the paper's order, {conclusion(list(paper.values()))}": said(paper, order=True),
        "the readings of the loss": said(pairs(itertools.combinations(READINGS, 2))),
        "what the other readings add": said(pairs((name, "hcars-wo-cf") for name in READINGS[1:])),
    }
    return [f"{what}: {text}" for what, text in groups.items() if text]


def _widens(adds: dict[float, Hits]) -> list[str]:
    """Whether explanations add more where more is seen, as the paper has it; from what they add, by share and seed."""
    least, most = min(adds), max(adds)
    each = gap(adds[most], adds[least]) if least < most else None
    if each is None:
        return []
    return [
        f"what explanations add grows with what is seen (the paper), {shown(most)} minus {shown(least)} visible: "
        f"{each.said(order=True)}"
    ]


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
