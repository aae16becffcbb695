"""Ask a recommender why: the fewest interactions of a user without which it would recommend something else.

    # ten users of MovieLens-100K, BPR; every set verified by three trainings without it
    python scripts/run_explain.py --data ml-100k --model bpr,factors=32 --users 10 --verify 3

    # NCF and RCF as ACCENT explains them
    python scripts/run_explain.py --data ml-100k --track explicit --model neumf:accent,epochs=200 --users 20 --k 5
    python scripts/run_explain.py --data ml-100k --positive-from 3 --model rcf:accent --users 5

    # the same recommender, two users by name: why is the item at rank 3 in the list?
    python scripts/run_explain.py --data ml-100k --model bpr,factors=32 --users 17,42 --rank 3

    # your own data; the model that run_training.py left in the folder is read
    python scripts/run_explain.py --data ratings.csv --positive-from 4 --model bpr,factors=32 --out runs/mine

Written to --out: model.npz, explanations.json, explanations.png. Recommenders: python scripts/run_training.py --models.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass
class Options:
    """Options of an explanation."""

    model: str = "bpr"
    """name[:preset][,argument=value]"""
    data: str = "ml-100k"
    """a name such as ml-100k, or a file (MovieLens u.data, RecBole .inter, CSV, TSV, also .gz)"""
    track: Literal["implicit", "explicit"] = "implicit"
    """implicit: ratings become clicks; explicit: ratings are learned"""
    positive_from: float | None = None
    """ratings of at least this are clicks; default: every rating is one"""
    split: Literal["rapu", "revadv", "last", "one"] = "rapu"
    """as in run_training.py"""
    seed: int = 0
    """decides split, initial parameters, batches and which users are drawn"""
    users: str = "10"
    """how many users to draw, or names as in the file: 17,42 (one name: 17,)"""
    rank: int | None = None
    """explain the item at this place of each list, which is to leave the list; default: the best item, which another
    item of the list is to overtake"""
    k: int = 10
    """length of the lists"""
    method: Literal["accent", "fia", "pure-fia", "attention", "pure-attention"] = "accent"
    """how sets are searched"""
    variant: Literal["fast", "user", "full"] | None = None
    """which parameters may move; default: the recommender's own"""
    verify: int = 0
    """trainings without each set; 0: not verified"""
    verify_epochs: int | None = None
    """these trainings start from the trained parameters, for so many epochs; default: from fresh ones, all epochs"""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """where to run"""
    out: Path = Path("runs/explain")
    """folder for everything that is written"""
    quiet: bool = False
    """no progress"""


def main(options: Annotated[Options, tyro.conf.OmitArgPrefixes]) -> None:
    """Train or read, explain, verify."""
    if options.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.device, options.device)
    if options.verify_epochs is not None and not options.verify:
        raise ValueError(f"--verify-epochs {options.verify_epochs} has no use without --verify")
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # float32 on accelerators too
    from experiments import names
    from experiments.explaining import Asking, run
    from experiments.training import Training
    from models.data import load

    given: dict[str, Any] = {"threshold": options.positive_from}
    given["track"] = "explicit" if options.track == "explicit" else None
    data = load(options.data, **{name: value for name, value in given.items() if value is not None})
    if options.track == "implicit" and data.interactions.track == "explicit":
        data = data.binarize("all")
    model = names.recommender(options.model, data)
    rest: dict[str, Any] = {"early": False, "metric": "ndcg", "every": 5, "patience": 5, "k": 20}
    plan = Training(data=data, model=model, split=options.split, seed=options.seed, **rest)
    named = [name.strip() for name in options.users.split(",") if name.strip()]
    asking = Asking(
        training=plan,
        users=int(options.users) if options.users.strip().isdigit() else named,
        rank=options.rank,
        k=options.k,
        method=options.method,
        variant=options.variant,
        seeds=options.verify,
        epochs=options.verify_epochs,
    )
    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    run(asking, options.out, progress=not options.quiet, say=say)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, TypeError, FileNotFoundError, ImportError) as problem:
        sys.exit(f"run_explain: {problem}")
