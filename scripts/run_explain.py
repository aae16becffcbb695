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

Written to --out: model.npz, explanations.json and explanations.png of the latest question, and a record of each. What
was trained, found or verified before is read from there. Recommenders: python scripts/run_training.py --models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.reading import Reading, choose_device, plainly, teller


@dataclass
class Options(Reading):
    """Options of an explanation."""

    track: Literal["implicit", "explicit"] = "implicit"
    """implicit: ratings become clicks; explicit: ratings are learned"""
    model: str = "bpr"
    """name[:preset][,argument=value]"""
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
    damping: float | None = None
    """added to the Hessian; default: by its spectrum where all parameters move, else ACCENT's numbers"""
    verify: int = 0
    """trainings without each set, which confirm it if the item falls behind the other one, with --rank if it leaves the
    list; 0: not verified"""
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
    choose_device(options.device)
    if options.verify_epochs is not None and not options.verify:
        raise ValueError(f"--verify-epochs {options.verify_epochs} has no use without --verify")
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # float32 on accelerators too
    from experiments import names
    from experiments.explaining import Asking, run
    from experiments.training import Training

    data = options.read()
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
        damping=options.damping,
        seeds=options.verify,
        epochs=options.verify_epochs,
    )
    run(asking, options.out, progress=not options.quiet, say=teller(options.quiet))


if __name__ == "__main__":
    with plainly("run_explain"):
        main(tyro.cli(Options, description=__doc__))
