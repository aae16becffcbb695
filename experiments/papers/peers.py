"""Our recommenders beside other people's, trained on the same split: is any of ours a weaker version of itself?

RecBole (Zhao et al., CIKM 2021) and `implicit`, with the same sizes, rates and batches where the arguments match, both
stopped early on the same validation events where the peer can do so. Lists are judged by our evaluation for both.
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
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models import external, recbole, registry
from models.data import Split, dataset, holdout_one, random_events
from models.evaluation import evaluate
from models.stopping import fit_early
from models.train import Fitted, fit

K = 20
PATIENCE = 10
GRAPH = {"factors": 64, "learning_rate": 1e-3, "batch": 2048}


class Pair(NamedTuple):
    """One of ours and its peer.

    Attributes:
        ours: name in `models.registry` and arguments.
        peer: "recbole:NAME" or "implicit-als".
        settings: the peer's arguments, RecBole's defaults elsewhere.
        epochs: at most; both stop early where `early`.
        early: the peer has validation and early stopping.
        sequence: the last event of each user tests and the one before validates, instead of tenths of all events.
        every: epochs between two looks at the validation events, where an epoch is a step or two.
    """

    ours: tuple[str, dict[str, Any]]
    peer: str
    settings: dict[str, Any]
    epochs: int
    early: bool = True
    sequence: bool = False
    every: int = 1


STOP = {"valid_metric": "NDCG@10", "stopping_step": PATIENCE - 1}
"""Our rule in RecBole's words: it ends when more than `stopping_step` checks bring nothing new."""

PAIRS: dict[str, Pair] = {
    "als": Pair(
        ("als", {"factors": 64, "weight": 20.0, "l2": 1.0}),
        "implicit-als",
        {"factors": 64, "alpha": 20.0, "regularization": 1.0},
        15,
        False,
    ),
    "bpr": Pair(
        ("bpr", {"factors": 64, "learning_rate": 1e-3, "batch": 2048}),
        "recbole:BPR",
        {"embedding_size": 64, "learning_rate": 1e-3},
        300,
    ),
    "multvae": Pair(
        # RecBole's `latent_dimension` counts the mean and the variance; its batch of 2,048 users is all of them;
        # it draws the noise of the code with a hundredth of the deviation. An epoch is one step: looked at after each,
        # training ends by chance somewhere between step 70 and 125, far from its best.
        ("multvae", {"hidden": 600, "latent": 64, "batch": None, "noise": 0.01}),
        "recbole:MultiVAE",
        {"mlp_hidden_size": [600], "latent_dimension": 128, "dropout_prob": 0.5, "anneal_cap": 0.2},
        300,
        every=5,
    ),
    "neumf": Pair(
        # RecBole's batch of 2,048 rows is 1,024 clicks, each with one negative.
        ("neumf", {"factors": 64, "tower": 64, "hidden": (128, 64), "batch": 1024, "negatives": 1}),
        "recbole:NeuMF",
        {
            "mf_embedding_size": 64,
            "mlp_embedding_size": 64,
            "mlp_hidden_size": [128, 64],
            "dropout_prob": 0.0,
        },
        100,
    ),
    "lightgcn": Pair(
        # RAPU's rate: at RecBole's default of 1e-3 neither is done after a hundred epochs.
        ("lightgcn", {**GRAPH, "layers": 2, "l2": 1e-5, "penalty": "norm", "learning_rate": 1e-2}),
        "recbole:LightGCN",
        {"embedding_size": 64, "n_layers": 2, "reg_weight": 1e-5, "learning_rate": 1e-2},
        100,
    ),
    "ngcf": Pair(
        ("ngcf", {**GRAPH, "layers": (64, 64, 64), "l2": 1e-5, "dropout": 0.1}),
        "recbole:NGCF",
        {"embedding_size": 64, "hidden_size_list": [64, 64, 64], "reg_weight": 1e-5},
        100,
    ),
    # RecBole trains on every prefix of every history; the last 20 items and smaller batches make it learn in minutes.
    # Ours in its form: one vector an item, dropout, the softmax (over 2,048 draws where RecBole has all items).
    "gru4rec": Pair(
        (
            "gru4rec",
            {
                "hidden": 128,
                "objective": "cross-entropy",
                "alpha": 0.0,
                "tied": True,
                "dropout": 0.3,
                "learning_rate": 0.05,
            },
        ),
        "recbole:GRU4Rec",
        {"MAX_ITEM_LIST_LENGTH": 20, "train_batch_size": 512},
        15,
        True,
        True,
    ),
}


CHEAP = ("als", "bpr")
"""Pairs of which there are five seeds, the others have two: a seed scatters by more than 2%."""


def cells(quick: bool) -> list[Spec]:
    """Both sides of a pair one after the other; a record holds for the arguments in its spec only."""
    seeds, names = (1, ["als", "bpr"]) if quick else (5, list(PAIRS))
    return [
        {
            "study": "peers",
            "pair": name,
            "side": side,
            "seed": seed,
            "epochs": min(PAIRS[name].epochs, 10) if quick else PAIRS[name].epochs,
            "arguments": arguments,
            **({} if PAIRS[name].every == 1 else {"every": PAIRS[name].every}),
        }
        for seed in range(seeds)
        for name in names
        if quick or seed < 2 or name in CHEAP
        for side, arguments in (("ours", PAIRS[name].ours[1]), ("peer", PAIRS[name].settings))
    ]


@functools.lru_cache(maxsize=2)
def _split(sequence: bool, seed: int) -> Split:
    """MovieLens-100K: a tenth of the events, or the last of each user."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    if sequence:
        found = dataset("ml-100k", track="sequence").interactions
        return holdout_one(found, key, order="last", validation=True, least=3)
    return random_events(dataset("ml-100k").binarize("all").interactions, key)


def run(spec: Spec) -> dict[str, Any]:
    """Train one side of a pair and judge its lists."""
    pair, seed = PAIRS[spec["pair"]], spec["seed"]
    train, validation, test = _split(pair.sequence, seed)
    began = time.perf_counter()
    side = _ours if spec["side"] == "ours" else _peer
    key = jax.random.fold_in(jax.random.key(seed), 1)
    scores, facts = side(pair, spec, train, validation if pair.early else None, key)
    seconds = time.perf_counter() - began
    found = evaluate(scores, train, test=test, k=K)
    values = {name: float(np.asarray(getattr(found, name))) for name in ("recall", "ndcg")}
    return {**values, "seconds": seconds, **facts}


def _ours(pair: Pair, spec: Spec, train, validation, key) -> tuple[Any, dict[str, Any]]:
    name = pair.ours[0]
    length = {"sweeps" if name == "als" else "epochs": spec["epochs"]}
    model = registry.make(name, None, **spec["arguments"], **length)
    if validation is None:
        return Partial(Fitted.scores, fit(model, train, key)), {"epochs": spec["epochs"]}
    done = fit_early(model, train, key, validation, metric="ndcg", k=10, every=pair.every, patience=PATIENCE)
    return Partial(Fitted.scores, done.fitted), {"epochs": done.epochs, "best_epoch": done.best_epoch}


def _peer(pair: Pair, spec: Spec, train, validation, key) -> tuple[Any, dict[str, Any]]:
    library, _, name = pair.peer.partition(":")
    if library == "recbole":
        settings = spec["arguments"] | (STOP | {"eval_step": pair.every} if pair.early else {})
        victim = recbole.recbole(name, epochs=spec["epochs"], settings=settings, timeout=4 * 3600)  # type: ignore[arg-type]
    else:
        victim = external.implicit_als(iterations=spec["epochs"], **spec["arguments"])
    trained = external.fit(victim, train, key, validation=validation)
    return trained.scores, {"epochs": int(trained.cost.epochs)}


def tabulate(records: list[Record], folder: Path) -> Report:
    """Ours, the peer's and the ratio of the means."""
    header = [
        "model",
        "peer",
        "seeds",
        f"Recall@{K} ours",
        "peer",
        "ratio",
        f"NDCG@{K} ours",
        "peer",
        "ratio",
    ]
    table, ratios = [], {}
    for name, pair in PAIRS.items():
        sides = {
            side: [r.result for r in records if (r.spec["pair"], r.spec["side"]) == (name, side)]
            for side in ("ours", "peer")
        }
        if not all(sides.values()):
            continue
        row = [name, pair.peer, str(min(map(len, sides.values())))]
        for metric in ("recall", "ndcg"):
            ours, theirs = ([r[metric] for r in sides[side]] for side in ("ours", "peer"))
            ratios[name, metric] = float(np.mean(ours) / np.mean(theirs))
            row += [f"{np.mean(ours):.4f}", f"{np.mean(theirs):.4f}", f"{ratios[name, metric]:.2f}"]
        table.append(row)
    made, axes = report.figure(width=7)
    names = list(dict.fromkeys(name for name, _ in ratios))
    for metric, mark in (("recall", "o"), ("ndcg", "s")):
        axes[0, 0].plot(names, [ratios[name, metric] for name in names], mark, label=f"{metric}@{K}")
    axes[0, 0].axhline(0.98, color="0.7", linestyle="--")
    axes[0, 0].set(ylabel="ours / peer", title="MovieLens-100K, same split; dashed: 2% below")
    axes[0, 0].legend(frameon=False)
    picture = report.save(made, folder / "peers.png")
    notes = [
        "80/10/10 over events (gru4rec: the last event of each user tests, the one before validates); lists without "
        "training items, all by our evaluation",
        f"both sides stop after {PATIENCE} epochs without a better NDCG@10 on the same validation events (RecBole's "
        "GRU4Rec ranks there with the items of training); als: 15 sweeps each",
    ]
    return Report("Our recommenders and other people's", header, table, notes, [picture])


STUDIES = (Study("peers", "our recommenders beside RecBole's and implicit's", cells, run, tabulate, (60, 3)),)
