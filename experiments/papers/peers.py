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


class Pair(NamedTuple):
    """One of ours and its peer.

    Attributes:
        ours: name in `models.registry` and arguments.
        peer: "recbole:NAME" or "implicit-als", "implicit-bpr".
        settings: the peer's arguments.
        epochs: at most; both stop early where `early`.
        early: the peer has validation and early stopping.
        sequence: the last event of each user tests instead of a tenth of all events.
    """

    ours: tuple[str, dict[str, Any]]
    peer: str
    settings: dict[str, Any]
    epochs: int
    early: bool = True
    sequence: bool = False


def _graph(layers: int) -> dict[str, Any]:
    return {"factors": 64, "layers": layers, "learning_rate": 1e-3, "batch": 2048}


PAIRS: dict[str, Pair] = {
    "als": Pair(
        ("als", {"factors": 64, "weight": 20.0, "l2": 1.0}),
        "implicit-als",
        {"factors": 64, "alpha": 20.0, "regularization": 1.0},
        15,
        False,
    ),
    "bpr": Pair(
        ("bpr", {"factors": 64, "learning_rate": 1e-3}),
        "recbole:BPR",
        {"embedding_size": 64, "learning_rate": 1e-3},
        300,
    ),
    "neumf": Pair(
        ("neumf", {"factors": 64, "tower": 64, "hidden": (128, 64), "batch": 2048, "negatives": 1}),
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
        ("lightgcn", {**_graph(3), "l2": 1e-5, "penalty": "norm"}),
        "recbole:LightGCN",
        {"embedding_size": 64, "n_layers": 3, "reg_weight": 1e-5, "learning_rate": 1e-3},
        150,
    ),
    "ngcf": Pair(
        ("ngcf", {"factors": 64, "layers": (64, 64, 64), "learning_rate": 1e-3, "batch": 2048, "l2": 1e-5}),
        "recbole:NGCF",
        {
            "embedding_size": 64,
            "hidden_size_list": [64, 64, 64],
            "node_dropout": 0.0,
            "message_dropout": 0.1,
            "reg_weight": 1e-5,
        },
        100,
    ),
    "multvae": Pair(
        ("multvae", {"hidden": 600, "latent": 128, "batch": 2048}),
        "recbole:MultiVAE",
        {"mlp_hidden_size": [600], "latent_dimension": 128, "dropout_prob": 0.5, "anneal_cap": 0.2},
        300,
    ),
    "gru4rec": Pair(
        ("gru4rec", {}),
        "recbole:GRU4Rec",
        {"hidden_size": 100, "num_layers": 1, "dropout_prob": 0.0},
        10,
        False,
        True,
    ),
}


def cells(quick: bool) -> list[Spec]:
    """Both sides of a pair one after the other."""
    seeds, names = (1, ["als", "bpr"]) if quick else (2, list(PAIRS))
    specs = [
        {"study": "peers", "pair": name, "side": side, "seed": seed}
        for seed in range(seeds)
        for name in names
        for side in ("ours", "peer")
    ]
    return [{**spec, "epochs": 10} for spec in specs] if quick else specs


@functools.lru_cache(maxsize=2)
def _split(sequence: bool, seed: int) -> Split:
    """MovieLens-100K: a tenth of the events, or the last of each user."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    if sequence:
        found = dataset("ml-100k", track="sequence").interactions
        return holdout_one(found, key, order="last", validation=False, least=3)
    return random_events(dataset("ml-100k").binarize("all").interactions, key)


def run(spec: Spec) -> dict[str, Any]:
    """Train one side of a pair and judge its lists."""
    pair, seed = PAIRS[spec["pair"]], spec["seed"]
    train, validation, test = _split(pair.sequence, seed)
    epochs = spec.get("epochs", pair.epochs)
    began = time.perf_counter()
    side = _ours if spec["side"] == "ours" else _peer
    scores, facts = side(pair, train, validation if pair.early else None, seed, epochs)
    seconds = time.perf_counter() - began
    found = evaluate(scores, train, test=test, k=K)
    values = {
        name: float(np.asarray(getattr(found, name)))
        for name in ("recall", "ndcg", "hr_worst")
        if getattr(found, name) is not None
    }
    return {**values, "seconds": seconds, **facts}


def _ours(pair: Pair, train, validation, seed: int, epochs: int) -> tuple[Any, dict[str, Any]]:
    name, arguments = pair.ours
    length = {"sweeps": epochs} if name == "als" else {"epochs": epochs}
    model = registry.make(name, None, **arguments | length)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    if validation is None:
        return Partial(Fitted.scores, fit(model, train, key)), {"epochs": epochs}
    done = fit_early(model, train, key, validation, metric="ndcg", k=10, every=1, patience=10)
    facts = {
        "epochs": done.epochs,
        "best_epoch": done.best_epoch,
        "epoch_seconds": done.seconds / done.epochs,
    }
    return Partial(Fitted.scores, done.fitted), facts


def _peer(pair: Pair, train, validation, seed: int, epochs: int) -> tuple[Any, dict[str, Any]]:
    library, _, name = pair.peer.partition(":")
    if library == "recbole":
        victim = recbole.recbole(name, epochs=epochs, settings=pair.settings, threads=1)  # type: ignore[arg-type]
    else:
        victim = external.implicit_als(iterations=epochs, **pair.settings)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    trained = external.fit(victim, train, key, validation=validation)
    return trained.scores, {"epoch_seconds": float(trained.cost.epoch_seconds)}


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
        "80/10/10 over events (gru4rec: the last event of each user tests); lists without training items, all by our "
        "evaluation",
        "both sides stop early on the same validation events, ours by NDCG@10, RecBole by its default MRR@10, patience "
        "10; als and gru4rec train for a fixed number of epochs",
    ]
    return Report("Our recommenders and other people's", header, table, notes, [picture])


STUDIES = (Study("peers", "our recommenders beside RecBole's and implicit's", cells, run, tabulate, (60, 3)),)
