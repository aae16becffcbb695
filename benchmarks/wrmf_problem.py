"""The problems that benchmarks/hypergradient.py measures: RevAdv's WRMF inner training, as plain arrays in one file.

toy       900 real + 100 fake rows x 300 items, D = 16, Adam 0.5, L = 100: the synthetic data of Tang, Wen, Wang
          (RecSys 2020, section 3); every real user holds out one item.
movielens 943 real + 47 fake rows x 1682 items, D = 64, Adam 1e-2, L = 100: MovieLens-100K where `BILEVEL_DATA` names a
          folder that has it (`ml-100k/interactions.tsv.gz` or `ml-100k/u.data`), else drawn at the same density.
tiny      90 + 10 x 40, D = 4, L = 10: for the tests of the benchmark itself.

The file is what the peers read too (peers/torch_wrmf.py says what each array is), so all see the same bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

NAMES = ("tiny", "toy", "movielens")
_MOVIELENS = (943, 1682)  # users and items of MovieLens-100K
_DENSITY = 100_000 / (943 * 1682)


class Problem(NamedTuple):
    """One bilevel problem as arrays; field names are those of the problem file, `source` says where X is from."""

    X: UInt8[np.ndarray, "U I"]
    fake: Float[np.ndarray, "F I"]
    P0: Float[np.ndarray, "N D"]
    Q0: Float[np.ndarray, "I D"]
    weight: float
    lr: float
    steps: int
    targets: Int[np.ndarray, " T"]
    test: Int[np.ndarray, " U"]
    threshold: float
    outer_lr: float
    momentum: float
    source: str

    @property
    def shape(self) -> str:
        """Sizes for a heading, such as `900+100 x 300, D=16, L=100`."""
        users, items = self.X.shape
        return f"{users}+{len(self.fake)} x {items}, D={self.Q0.shape[1]}, L={self.steps}"


def save(problem: Problem, path: Path) -> Path:
    """Write a problem file; plain arrays only, so that it is read without pickles."""
    np.savez(path, **{name: np.asarray(value) for name, value in problem._asdict().items()})  # pyright: ignore[reportArgumentType]
    return path


def load(path: Path) -> Problem:
    """Read a problem file back."""
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in Problem._fields}
    scalars = {name: float(values[name]) for name in ("weight", "lr", "threshold", "outer_lr", "momentum")}
    return Problem(**{**values, **scalars, "steps": int(values["steps"]), "source": str(values["source"])})


def synthetic(users: int, fakes: int, items: int, factors: int, steps: int, seed: int = 0) -> Problem:
    """The toy generator: `X = 1[A C > 5]`, A and C standard normal of rank 20; fake rows drawn from the same law."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(users + fakes, 20)) @ rng.normal(size=(20, items))
    x = (scores > 5).astype(np.uint8)
    for row in np.flatnonzero(x.sum(1) < 2):  # a user needs a held-out item and one to train on
        x[row, np.argsort(scores[row])[-2:]] = 1
    test = np.array([rng.choice(np.flatnonzero(row)) for row in x[:users]])
    x[np.arange(users), test] = 0
    return Problem(
        X=x[:users],
        fake=x[users:].astype(np.float32),
        P0=rng.normal(size=(users + fakes, factors)).astype(np.float32),
        Q0=rng.normal(size=(items, factors)).astype(np.float32),
        weight=20.0,
        lr=0.5,
        steps=steps,
        targets=np.array([0], dtype=np.int32),
        test=test.astype(np.int32),
        threshold=0.2,
        outer_lr=1.0,
        momentum=0.99,
        source="synthetic (the generator of the RevAdv toy)",
    )


def _movielens_file() -> Path | None:
    """The MovieLens-100K file below `BILEVEL_DATA`, if there is one."""
    folder = os.environ.get("BILEVEL_DATA")
    names = ("interactions.tsv.gz", "u.data")
    found = (Path(folder) / "ml-100k" / name for name in names) if folder else ()
    return next((path for path in found if path.exists()), None)


def _read_movielens(path: Path) -> UInt8[np.ndarray, "943 1682"]:
    """Users x items, 1 where rated; `u.data` has no header and ids from 1, the .tsv.gz has a header."""
    header = 0 if path.name == "u.data" else 1
    pairs = np.loadtxt(path, dtype=np.int64, delimiter="\t", skiprows=header, usecols=(0, 1))
    pairs -= pairs.min(axis=0)  # both count from 0 or from 1; the smallest id of each exists
    x = np.zeros(_MOVIELENS, dtype=np.uint8)
    x[pairs[:, 0], pairs[:, 1]] = 1
    return x


def movielens(seed: int = 0) -> Problem:
    """MovieLens-100K with 5% fake rows that start as copies of real users with at most 100 clicks.

    Without the data, cells are drawn one by one with the probability that gives the same density and a popularity
    skew; the cost of every variant depends on the sizes only.
    """
    rng = np.random.default_rng(seed)
    path = _movielens_file()
    if path is None:
        popularity = rng.permutation(1 / np.arange(10, 10 + _MOVIELENS[1]))
        x = (rng.random(_MOVIELENS) < popularity * _DENSITY / popularity.mean()).astype(np.uint8)
        source = (
            "synthetic at the size and density of MovieLens-100K (BILEVEL_DATA names no folder with ml-100k)"
        )
    else:
        x, source = _read_movielens(path), f"MovieLens-100K ({path.name})"
    users, items = _MOVIELENS
    small = np.flatnonzero((x.sum(1) <= 100) & (x.sum(1) > 0))
    return Problem(
        X=x,
        fake=x[rng.choice(small, size=47, replace=False)].astype(np.float32),
        P0=(0.1 * rng.normal(size=(users + 47, 64))).astype(np.float32),
        Q0=(0.1 * rng.normal(size=(items, 64))).astype(np.float32),
        weight=20.0,
        lr=1e-2,
        steps=100,
        targets=rng.choice(np.argsort(x.sum(0))[: items // 2], size=1).astype(
            np.int32
        ),  # an item of the tail
        test=np.full(users, -1, dtype=np.int32),
        threshold=0.05,
        outer_lr=1.0,
        momentum=0.95,
        source=source,
    )


def make(name: str, seed: int = 0) -> Problem:
    """The problem of that name (`tiny`, `toy` or `movielens`)."""
    if name == "tiny":
        return synthetic(90, 10, 40, 4, 10, seed)
    if name == "toy":
        return synthetic(900, 100, 300, 16, 100, seed)
    if name == "movielens":
        return movielens(seed)
    raise ValueError(f"unknown problem {name!r}: expected one of {', '.join(NAMES)}")
