"""Heuristic attacks: profiles by a rule, nothing learned.

Random: Lam and Riedl, "Shilling Recommender Systems for Fun and Profit", WWW 2004, adapted to clicks as "RandFilter"
of Tang, Wen, Wang (RecSys 2020, section 4.2). TopPopular: our control. The two are the floor every learned attack has
to clear; TopPopular is often hard to beat (every profile is the same list of the most popular items).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attacks.attack import Attack
from attacks.threat import Knowledge, ThreatModel, Track
from bilevel.project import set_columns, topk
from models.data import Interactions, Profiles

TargetMode = Literal["all", "split"]


class _State(NamedTuple):
    rows: Float[Array, "F I"]


def random(
    *, fakes: int | float, budget: int, target_mode: TargetMode = "all", track: Track = "implicit"
) -> Attack:
    """Random attack: every fake user clicks the targets and `budget` items drawn uniformly.

    `row_f = targets + B items drawn without replacement from the I - T others`.

    Args:
        fakes: number of fake users, or fraction of the real users in (0, 1).
        budget: non-target items a fake user clicks, in `[0, I - T]`.
        target_mode: `"all"`: every fake user clicks all targets; `"split"`: fake user `f` clicks target
            `f mod T` only.
        track: `"implicit"`; the explicit and sequence forms are not part of this version.

    Returns:
        An attack without outer steps; `knowledge="items"`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of its range.

    Reference:
        Lam and Riedl, WWW 2004 (ratings); Tang, Wen, Wang, RecSys 2020, section 4.2 (clicks).

    **Differs from the paper:** clicks instead of ratings, so the filler ratings' distribution has no counterpart.

    **How it is detected:** a uniform popularity profile is unlike any real user's, and the shared targets make the fake
    users a cluster in the latent space (RecSys 2020, Fig. 5); limits on account creation bound `F`.

    >>> random(fakes=0.01, budget=30)
    random(fakes=0.01, budget=30, target_mode='all', track='implicit')
    """

    def wish(key: Key[Array, ""], train: Interactions, count: int) -> Float[Array, "F I"]:
        return jax.random.uniform(key, (count, train.items))

    return _heuristic("random", wish, "items", fakes, budget, target_mode, track)


def top_popular(
    *, fakes: int | float, budget: int, target_mode: TargetMode = "all", track: Track = "implicit"
) -> Attack:
    """TopPopular attack: every fake user clicks the targets and the `budget` most clicked other items.

    `row_f = targets + the B items with the largest c_i`, `c_i` the item's clicks in the training data, ties by id.

    Args:
        fakes: number of fake users, or fraction of the real users in (0, 1).
        budget: non-target items a fake user clicks, in `[0, I - T]`.
        target_mode: `"all"`: every fake user clicks all targets; `"split"`: fake user `f` clicks target
            `f mod T` only.
        track: `"implicit"`; the explicit and sequence forms are not part of this version.

    Returns:
        An attack without outer steps and without randomness; `knowledge="popularity"`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of its range.

    Reference:
        Ours, as the control of learned attacks; the bandwagon attack (Mobasher, Burke, Bhaumik, Williams, ACM TOIT
        2007) with popular fillers only.

    **Differs from the paper:** the classical bandwagon attack mixes a few popular with many random items.

    **How it is detected:** the profiles are equal, so any duplicate or group-similarity detector finds them.

    >>> import jax
    >>> from models.data import Interactions
    >>> train = Interactions.from_dense(jnp.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]]))
    >>> top_popular(fakes=1, budget=2)(jax.random.key(0), train, jnp.array([3])).to_rows().tolist()
    [[1.0, 0.0, 1.0, 1.0]]
    """

    def wish(key: Key[Array, ""], train: Interactions, count: int) -> Float[Array, "F I"]:
        return jnp.broadcast_to(train.popularity().astype(float), (count, train.items))

    return _heuristic("top_popular", wish, "popularity", fakes, budget, target_mode, track)


def _heuristic(
    name: str,
    wish: Callable[[Key[Array, ""], Interactions, int], Float[Array, "F I"]],
    knowledge: Knowledge,
    fakes: int | float,
    budget: int,
    target_mode: TargetMode,
    track: Track,
) -> Attack:
    """An attack that clicks targets and the `budget` other items ranked highest by `wish(key, train, F)`."""
    if target_mode not in get_args(TargetMode):
        raise ValueError(f"target_mode is {target_mode!r}; expected 'all' or 'split'")
    if track != "implicit":
        raise ValueError(
            f"track is {track!r}; {name} writes clicks only in this version: expected 'implicit'"
        )
    if budget is None:
        raise ValueError(
            f"budget is None; {name} has to know how many filler items to click: give an integer"
        )
    threat = ThreatModel(fakes=fakes, budget=budget, track=track, knowledge=knowledge)

    def init(key, train: Interactions, targets: Int[Array, " T"], initial=None) -> _State:
        count = threat.count(train.users)
        fillers = topk(budget, exclude=targets)(wish(key, train, count))
        if target_mode == "all":
            return _State(set_columns(targets)(fillers))
        own = targets[jnp.arange(count) % targets.size]
        return _State(fillers.at[jnp.arange(count), own].set(1))

    def step(state: _State, train: Interactions, targets: Int[Array, " T"], test=None):
        return state, {}

    def finish(state: _State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        every = target_mode == "all"
        width = budget + (targets.size if every else 1)
        return Profiles.from_rows(state.rows, targets, clicks_targets=every, width=width)

    config = {"fakes": fakes, "budget": budget, "target_mode": target_mode, "track": track}
    return Attack(name, config, threat, 0, init, step, finish)
