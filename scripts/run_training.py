"""Train a recommender, judge it, save it, and read its recommendations.

    # WRMF with RAPU's settings on MovieLens-100K, 80/10/10 over events
    python scripts/run_training.py --data ml-100k --model wrmf:rapu-ml-victim

    # LightGCN until the validation NDCG@20 has not improved for 5 checks
    python scripts/run_training.py --data ml-100k --model lightgcn:rapu-victim --early --metric ndcg

    # your own ratings of 4 and more; then five recommendations for two of the users, from the saved model
    python scripts/run_training.py --data ratings.csv --positive-from 4 --model bpr,factors=32 --out runs/mine
    python scripts/run_training.py --data ratings.csv --positive-from 4 --model bpr,factors=32 --out runs/mine \\
        --recommend 17,42 --count 5

    # RCF, which reads what items share: known of MovieLens-100K, else from a file of lines item|values|values|...
    python scripts/run_training.py --data ratings.csv --model rcf,relations=attributes.txt --out runs/rcf

    python scripts/run_training.py --models        # every recommender, its presets and arguments

Written to --out: model.npz, record.json, and with --early the curve history.png. A model that is already in the folder
is read instead of trained when model, data, split and seed are the same; a training that was killed goes on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.reading import Reading, choose_device, plainly, teller


@dataclass
class Options(Reading):
    """Options of a training."""

    model: str = "wrmf"
    """name[:preset][,argument=value], see --models"""
    split: Literal["rapu", "revadv", "last", "one"] = "rapu"
    """rapu: 80/10/10 over all events; revadv: 20% of each user's events are held out; last: of each user the last
    event tests and the one before validates; one: a random event of each user tests"""
    early: bool = False
    """stop when the validation metric does, and keep the best parameters (needs a split with validation)"""
    metric: Literal["ndcg", "recall", "hr_test", "precision"] | None = None
    """what --early watches, default ndcg"""
    every: int | None = None
    """epochs between two checks of --early, default 5"""
    patience: int | None = None
    """checks without a new best before --early stops, default 5"""
    k: int = 20
    """list length of every metric"""
    seed: int = 0
    """decides split, initial parameters and batches"""
    recommend: str | None = None
    """user ids as in the file (17,42): print their recommendations"""
    count: int = 10
    """recommendations a user"""
    models: bool = False
    """print every recommender with its presets and arguments, and stop"""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """where to run"""
    out: Path = Path("runs/training")
    """folder for everything that is written"""
    quiet: bool = False
    """no progress"""


def main(options: Annotated[Options, tyro.conf.OmitArgPrefixes]) -> None:
    """Train or read, judge, recommend."""
    choose_device(options.device)
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # float32 on accelerators too
    if options.models:
        list_models()
        return
    early = {name: getattr(options, name) for name in ("metric", "every", "patience")}
    given = [name for name, value in early.items() if value is not None]
    if given and not options.early:
        raise ValueError(f"{', '.join(f'--{name}' for name in given)}: no use without --early")
    from experiments import names
    from experiments.training import Training, run

    data = options.read()
    plan = Training(
        data=data,
        model=names.recommender(options.model, data),
        split=options.split,
        early=options.early,
        metric=options.metric or "ndcg",
        every=5 if options.every is None else options.every,
        patience=5 if options.patience is None else options.patience,
        k=options.k,
        seed=options.seed,
    )
    users = None if options.recommend is None else [name.strip() for name in options.recommend.split(",")]
    say = teller(options.quiet)
    run(plan, options.out, users=users, count=options.count, progress=not options.quiet, say=say)


def list_models() -> None:
    """Every recommender with its presets and arguments."""
    import inspect

    from experiments.report import show
    from models import registry

    rows = []
    for name in registry.names():
        factory = registry.factory(name)
        known = inspect.signature(factory).parameters.values()
        arguments = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in known)
        first = (inspect.getdoc(factory) or "").split("\n")[0]
        rows.append([name, first, ", ".join(registry.presets_of(name)) or "-", arguments or "-"])
    show("recommenders", ["name", "what", "presets", "arguments"], rows)


if __name__ == "__main__":
    with plainly("run_training"):
        main(tyro.cli(Options, description=__doc__))
