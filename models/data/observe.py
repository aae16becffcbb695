"""What an attacker has seen of the training data: all of it, a part, a part with false clicks, or item counts only.

    view = perturbed(rho=0.9)            # rho n of the n true events, pert n false ones
    surrogate_data = view(train, key)    # what the attack is given; the victim trains on the true data

RAPU (Zhang et al., KDD 2021) crafts from `perturbed(0.9)`, H-CARS (Chen et al., SIGIR 2023) from `partial(0.8)` and
`partial(0.3)`, RevAdv (Tang et al., RecSys 2020) from `full`. In RAPU's released code the attacker sees a view of the
*whole* data set and holds out 20% of that view for itself; the victim's split is drawn on the true data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from models.data import checks
from models.data.interactions import Interactions, Track
from models.data.split import generator

Strategy = Literal["walk", "uniform"]
P_JUMP = 0.1
WALKERS = 0.1  # share of the users that start a walk
PATIENCE = 10  # steps per user of the data without a new event, after which a walker starts anew


class Quota(NamedTuple):
    """How many true events and how many false ones a view holds."""

    true: int
    false: int


@dataclass(frozen=True, eq=False)
class View:
    """A way of looking at the data: `view(train, key)` is what the attacker gets. Made by the functions below.

    >>> partial(0.3)
    partial(rho=0.3)
    """

    name: str
    config: dict[str, Any]
    see: Callable[[Interactions, np.random.Generator], Interactions] = field(repr=False)

    def __call__(self, train: Interactions, key: Key[Array, ""] | int) -> Interactions:
        """The attacker's interactions: the same users and items, without padding.

        Args:
            train: the true interactions.
            key: seed or typed JAX key, consumed here.

        Raises:
            ValueError: the data cannot give such a view; says why.
        """
        return self.see(train, generator(key))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.config.items())})"


def full() -> View:
    """The attacker sees every event: `Xa = X` (RevAdv).

    >>> x = Interactions.from_arrays([0, 1], [1, 0])
    >>> full()(x, 0).dense().tolist() == x.dense().tolist()
    True
    """
    return View("full", {}, lambda train, rng: train.select(train.real()))


def partial(rho: float) -> View:
    """The attacker sees `ceil(rho n)` of the n events, drawn uniformly without replacement; no false ones.

    Args:
        rho: share of the events, in (0, 1].

    Raises:
        ValueError: rho outside (0, 1].

    Reference: Chen et al. (H-CARS), SIGIR 2023, section 5.1 (80% and 30%); the removal sweep of Zhang et al. (RAPU),
    KDD 2021, Fig. 2.

    **Differs from the paper:** H-CARS does not say how the visible part is drawn.

    >>> x = Interactions.from_arrays([0] * 5 + [1] * 4, [*range(5), *range(4)])
    >>> int(partial(0.3)(x, 0).count)
    3
    """
    _share("rho", rho)

    def see(train: Interactions, rng: np.random.Generator) -> Interactions:
        return train.select(_some(train, quota(int(train.real().sum()), rho, 0.0).true, rng))

    return View("partial", {"rho": rho}, see)


def perturbed(
    rho: float = 0.9,
    pert: float | None = None,
    *,
    strategy: Strategy = "walk",
    p_jump: float = P_JUMP,
) -> View:
    """The attacker sees `ceil(rho n)` of the n true clicks and `ceil(pert n)` false ones, on cells nobody clicked.

    `walk`: 10% of the users start a walk on the graph of users and items. At a user, a walker jumps with probability
    `p_jump` to a random item that the user did not click, else goes to a random one of its clicks; the pair enters
    the view if its kind (false, true) is still short and it is not there yet. At an item the same to users, and so on
    until both quotas are full. `uniform`: true events and false cells are drawn uniformly without replacement.

    Args:
        rho: share of the true events, in (0, 1].
        pert: false clicks as a share of the true ones, >= 0; default `1 - rho`.
        strategy: "walk" favors users and items of high degree, as the released code does; "uniform" does not.
        p_jump: probability of a jump of the walk, in [0, 1); above 0 where there are to be false clicks.

    Returns:
        A view for the implicit track (without false clicks: for any). Times are kept where all clicks are true:
        false clicks have none.

    Raises:
        ValueError: an argument out of its range; when called, false clicks on ratings or sequences, a walk on
            sequences, or more false clicks than there are cells.

    Reference: Zhang et al. (RAPU), KDD 2021, appendix A.6 and released code.

    **Differs from the paper:** the text describes a draw per user without memory and calls it a random walk; the code
    walks, and so does `strategy="walk"`. A walker that finds nothing new for `10 U` steps starts anew at a random user
    (in a graph of several parts it could search forever), and one that cannot move as drawn (a user with no click, or
    with all) moves the other way. The shares are rounded up exactly, where the code compares floating-point numbers.

    >>> x = Interactions.from_dense(np.eye(20) + np.eye(20, k=1))
    >>> view = perturbed(0.9)(x, 0)
    >>> both = (view.dense() * x.dense()).sum()
    >>> int(x.count), int(both), int(view.count - both)
    (39, 36, 4)
    """
    _share("rho", rho)
    pert = round(1 - rho, 12) if pert is None else pert
    if not 0 <= pert < np.inf:
        raise ValueError(f"pert={pert}: expected a share >= 0 of the true events")
    checks.option("strategy", strategy, ("walk", "uniform"))
    if not 0 <= p_jump <= 1:
        raise ValueError(f"p_jump={p_jump}: expected a probability")
    if strategy == "uniform" and p_jump != P_JUMP:
        raise ValueError(f"p_jump={p_jump}: strategy='uniform' has no jumps; leave it out")
    if strategy == "walk" and ((p_jump == 0 and pert > 0) or p_jump == 1):
        short = "false" if p_jump == 0 else "true"
        raise ValueError(f"p_jump={p_jump}: the walk never meets a {short} click, so its quota stays open")

    def see(train: Interactions, rng: np.random.Generator) -> Interactions:
        wanted = _possible(train, quota(int(train.real().sum()), rho, pert), strategy)
        if strategy == "walk":
            return _with_false(train, *_walk(train, wanted, p_jump, rng))
        return _with_false(train, _some(train, wanted.true, rng), _free_cells(train, wanted.false, rng))

    config = {"rho": rho, "pert": pert, "strategy": strategy}
    return View("perturbed", config | ({"p_jump": p_jump} if strategy == "walk" else {}), see)


def quota(n: int, rho: float, pert: float) -> Quota:
    """`ceil(rho n)` true and `ceil(pert n)` false events, with the shares meant as decimals.

    >>> quota(100, 0.07, 0.93)
    Quota(true=7, false=93)
    """
    # 0.07 * 100 is 7.000000000000001 in binary: the shortest decimal of the share is what was meant.
    return Quota(*(math.ceil(Fraction(repr(float(share))) * n) for share in (rho, pert)))


# ------------------------------------------------------------------------------------------------ item counts only


@dataclass(frozen=True, eq=False)
class Popularity:
    """What an attacker knows who sees only how often each item was clicked: sizes and counts, no event.

    Whatever asks it for events, a user's clicks or the matrix gets an `AttributeError` that says so.

    Args:
        counts: (I,) int32 events of each item.
        users, items, track: as in `Interactions`.

    >>> known = popularity_only(Interactions.from_arrays([0, 1], [1, 1]))
    >>> known.popularity().tolist()
    [0, 2]
    >>> known.dense()
    Traceback (most recent call last):
    ...
    AttributeError: dense: this attacker sees item counts only (popularity_only); an attack that needs interactions \
must be given full, partial or perturbed data
    """

    counts: Int[Array, " I"]
    users: int
    items: int
    track: Track

    def popularity(self) -> Int[Array, " I"]:
        """Events of each item, `c_i`."""
        return self.counts

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name}: this attacker sees item counts only (popularity_only); an attack that needs interactions must "
            "be given full, partial or perturbed data"
        )

    def __repr__(self) -> str:
        return f"Popularity({self.users} users x {self.items} items, {self.track}, item counts only)"


def popularity_only(train: Interactions) -> Popularity:
    """Item counts, the number of users and nothing else (popularity attacks such as Bandwagon)."""
    real = train.real()
    counts = np.bincount(np.asarray(train.item)[real], minlength=train.items)
    return Popularity(jax.device_put(counts.astype(np.int32)), train.users, train.items, train.track)


# ---------------------------------------------------------------------------------------------------------- inside


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value}: expected a share of the events in (0, 1]")


def _possible(train: Interactions, wanted: Quota, strategy: Strategy) -> Quota:
    if train.track == "sequence" and strategy == "walk":
        raise ValueError(
            "the walk meets a pair once, a sequence may repeat it: use partial(rho), or strategy='uniform'"
        )
    if wanted.false and train.track != "implicit":
        raise ValueError(
            f"false clicks have no {'place in time' if train.track == 'sequence' else 'rating'}: pert > 0 is for the "
            f"implicit track, not for {train.track!r} data; use partial(rho), or binarize() ratings first"
        )
    free = train.users * train.items - int(train.real().sum())
    if wanted.false > free:
        raise ValueError(f"pert asks for {wanted.false} false clicks, but only {free} cells are free")
    return wanted


def _some(train: Interactions, count: int, rng: np.random.Generator) -> np.ndarray:
    """A mask over the slots that holds `count` random real events."""
    chosen = np.zeros(train.capacity, bool)
    chosen[rng.choice(np.flatnonzero(train.real()), count, replace=False)] = True
    return chosen


def _with_false(train: Interactions, chosen: np.ndarray, false: np.ndarray) -> Interactions:
    """The chosen true events and the false cells `u I + i`, all clicks of weight 1."""
    if not false.size:
        return train.select(chosen)
    user = np.concatenate([np.asarray(train.user)[chosen], false // train.items])
    item = np.concatenate([np.asarray(train.item)[chosen], false % train.items])
    return Interactions.from_arrays(user, item, users=train.users, items=train.items, track=train.track)


def _cells(train: Interactions) -> np.ndarray:
    """The clicked cells `u I + i`, ascending."""
    real = train.real()
    return np.asarray(train.user, np.int64)[real] * train.items + np.asarray(train.item)[real]


def _free_cells(train: Interactions, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` distinct cells nobody clicked, uniformly: the r-th free cell is `r + k`, k clicked cells below it."""
    cells = _cells(train)
    rank = rng.choice(train.users * train.items - cells.size, count, replace=False, shuffle=False)
    return _nth_other(cells, rank)


def _nth_other(taken: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The numbers of the given ranks among 0, 1, 2, ... without `taken`, which ascends."""
    return rank + np.searchsorted(taken - np.arange(taken.size), rank, side="right")


class _Side(NamedTuple):
    """Neighbors of every user (or item) in ascending order: those of n are `other[start[n] : start[n + 1]]`."""

    other: np.ndarray
    start: np.ndarray
    size: int  # of the other side


def _side(near: np.ndarray, far: np.ndarray, count: int, size: int) -> _Side:
    order = np.lexsort((far, near))
    return _Side(far[order], np.concatenate([[0], np.cumsum(np.bincount(near, minlength=count))]), size)


def _step(
    side: _Side, at: np.ndarray, p_jump: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Where each walker goes from `at`, and whether it goes along a true click."""
    known = side.start[at + 1] - side.start[at]
    true = rng.random(at.size) >= p_jump
    true = (true & (known > 0)) | (known == side.size)  # no click to follow, or nothing to jump to
    rank = np.floor(rng.random(at.size) * np.where(true, known, side.size - known)).astype(np.int64)
    to = np.empty_like(at)
    to[true] = side.other[side.start[at[true]] + rank[true]]
    for n in np.flatnonzero(~true):
        neighbors = side.other[side.start[at[n]] : side.start[at[n] + 1]]
        to[n] = _nth_other(neighbors, rank[n])
    return to, true


def _walk(
    train: Interactions, wanted: Quota, p_jump: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random walks until both quotas are full: a mask of true events and the false cells."""
    real = train.real()
    user, item = np.asarray(train.user, np.int64)[real], np.asarray(train.item, np.int64)[real]
    sides = (
        _side(user, item, train.users, train.items),
        _side(item, user, train.items, train.users),
    )
    at = rng.choice(train.users, max(1, int(WALKERS * train.users)), replace=False)
    cells, found = _cells(train), ({}, {})  # false and true cells in the order they were met
    idle = np.zeros(at.size, np.int64)
    while len(found[True]) < wanted.true or len(found[False]) < wanted.false:
        tired = idle >= PATIENCE * train.users
        at[tired], idle[tired] = rng.integers(train.users, size=int(tired.sum())), 0
        for from_user in (True, False):
            to, true = _step(sides[0 if from_user else 1], at, p_jump, rng)
            pair = at * train.items + to if from_user else to * train.items + at
            idle += 1
            # The moves depend on the data alone, so all walkers step at once; the view takes them in their order.
            for n, (cell, kind) in enumerate(zip(pair.tolist(), true.tolist())):
                if len(found[kind]) < wanted[0 if kind else 1] and cell not in found[kind]:
                    found[kind][cell] = None
                    idle[n] = 0
            at = to
    chosen = np.zeros(train.capacity, bool)
    chosen[np.searchsorted(cells, np.fromiter(found[True], np.int64, len(found[True])))] = True
    return chosen, np.fromiter(found[False], np.int64, len(found[False]))
