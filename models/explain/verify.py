"""Is an explanation true? Train again without its set, several times, and look at the scores.

Tran, Ghazimatin, Saha Roy, SIGIR 2021, section 4: a set is confirmed if, on average over five trainings without it, the
predicted replacement outscores the recommended item. A set for an item at any rank says that the item leaves a list of
k: it is confirmed if at least k items are above it on average. Training again changes rankings by itself, so the same
trainings are also run with nothing removed: a set explains something where the change comes with it and not without it.

Many sets are trained at once: a removal is a mask over the events, all trainings share one compiled program, and
`together` of them are mapped over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from models.data.interactions import Interactions
from models.explain.explanation import Explanations, removals
from models.recommender import Recommender, counts, given
from models.train import fit


class Verified(NamedTuple):
    """What N explanations came to in S trainings.

    Attributes:
        confirmed: (N,) without the set the replacement outscores the item on average, or the item leaves its list;
            False where none was found.
        control: (N,) the same with nothing removed: it does not need the set.
        gap: (N, S) score of the item minus the replacement's without the set; NaN where none was found.
        control_gap: (N, S) with nothing removed.
        rank: (N, S) place of the item among those the user had not seen, from 0, without the set; -1: none was found.
        control_rank: (N, S) with nothing removed.
    """

    confirmed: Bool[np.ndarray, " N"]
    control: Bool[np.ndarray, " N"]
    gap: Float[np.ndarray, "N S"]
    control_gap: Float[np.ndarray, "N S"]
    rank: Int[np.ndarray, "N S"]
    control_rank: Int[np.ndarray, "N S"]


def verify(
    model: Recommender,
    train: Interactions,
    explanations: Explanations,
    key: Key[Array, ""],
    *,
    k: int | None = None,
    seeds: int = 5,
    params0: Any = None,
    together: int = 8,
    tell: Callable[[int, int], Any] | None = None,
) -> Verified:
    """Train again without each set and compare the item with its replacement.

    Args:
        model: how it is trained; the recommender that was explained, or one with fewer epochs beside `params0`.
        train: the data that were explained.
        explanations: with their replacements. A set that several of one user share is trained once.
        key: of all trainings; the s-th of each set and of the control share one key.
        k: length of the lists that items were to leave, for explanations of given items; None: of best items, which are
            to fall behind their replacements.
        seeds: S >= 1 trainings of each set.
        params0: start from these parameters instead of fresh ones.
        together: trainings mapped over at once, >= 1; memory grows with it.
        tell: called with the trainings done and how many there are, after each part of them.

    Raises:
        ValueError: a number outside its range.

    Reference: Tran, Ghazimatin, Saha Roy, SIGIR 2021, section 4, and released code, which trains RCF from fresh
    parameters and NCF from the trained ones. **Differs from the paper:** the control; items at any rank, whose average
    place, from 0, is to be at least k.

    >>> from models.explain.explanation import made
    >>> from models.itempop import itempop
    >>> train = Interactions.from_arrays([0, 1, 1, 2], [0, 1, 2, 1], items=4)
    >>> asked = made(np.array([2]), np.array([1]), [[1]], np.array([2]))
    >>> verify(itempop(), train, asked, jax.random.key(0), seeds=1).gap.tolist()  # one click each
    [[0.0]]
    """
    counts("verify", seeds=seeds, together=together, **given(k=k))
    masks, found, users = removals(explanations, train), explanations.found, explanations.user
    codes = [(int(user), mask.tobytes()) for user, mask in zip(users, masks, strict=True)]
    chosen = {code: n for n, code in enumerate(codes) if found[n]}  # one training a set
    keys = jax.random.split(key, seeds)
    jobs = [(n, s) for n in chosen.values() for s in range(seeds)]
    tell = tell or (lambda done, of: None)
    scored = _in_parts(model, train, masks, users, jobs, keys, params0, together, tell)
    again = dict(zip(jobs, scored, strict=True))
    asked = np.unique(users[found])
    plain = [np.asarray(_all(model, train, one, params0, jnp.asarray(asked))) for one in keys] if jobs else []
    gap, control = (np.full((len(users), seeds), np.nan) for _ in range(2))
    rank, control_rank = (np.full((len(users), seeds), -1, np.int32) for _ in range(2))
    for n in np.flatnonzero(found):
        item, other = explanations.item[n], explanations.replacement[n]
        after = np.stack([again[chosen[codes[n]], s] for s in range(seeds)])
        before = np.stack([scores[np.searchsorted(asked, users[n])] for scores in plain])
        gap[n], control[n] = after[:, item] - after[:, other], before[:, item] - before[:, other]
        unseen = ~np.isin(np.arange(train.items), _items(train, users[n]))
        rank[n], control_rank[n] = (
            np.sum((scores > scores[:, item, None]) & unseen, axis=1) for scores in (after, before)
        )
    behind = lambda gaps: gaps.mean(1) < 0  # NaN, which is not, where none was found
    left = lambda ranks: found & (ranks.mean(1) >= k)
    hold = (behind(gap), behind(control)) if k is None else (left(rank), left(control_rank))
    return Verified(*hold, gap, control, rank, control_rank)


def _items(train: Interactions, user: int) -> Int[np.ndarray, " M"]:
    return np.asarray(train.item)[(np.asarray(train.user) == user) & train.real()]


def _in_parts(
    model: Recommender,
    train: Interactions,
    masks: Bool[np.ndarray, "N E"],
    users: Int[np.ndarray, " N"],
    jobs: list[tuple[int, int]],
    keys: Key[Array, " S"],
    params0: Any,
    together: int,
    tell: Callable[[int, int], Any],
) -> list[np.ndarray]:
    """Scores (I,) of the user of every job (set, seed), in parts of one size, so that there is one compilation."""
    scored: list[np.ndarray] = []
    size = min(together, max(1, len(jobs)))
    for first in range(0, len(jobs), size):
        part = jobs[first : first + size]
        rows = np.array((part + [part[-1]] * (size - len(part))), int)
        given = (jnp.asarray(masks[rows[:, 0]]), jnp.asarray(users[rows[:, 0]]), keys[rows[:, 1]])
        scored += list(np.asarray(_without(model, train, params0, *given))[: len(part)])
        tell(len(scored), len(jobs))
    return scored


@partial(jax.jit, static_argnames="model")
def _without(
    model: Recommender,
    train: Interactions,
    params0: Any,
    keep: Bool[Array, "B E"],
    user: Int[Array, " B"],
    key: Key[Array, " B"],
) -> Float[Array, "B I"]:
    """Scores of one user each, after trainings on what is kept."""

    def one(keep, user, key):
        return fit(model, train.keep(keep), key, params0=params0).scores(user[None])[0]

    if keep.shape[0] == 1:  # a mapped loop computes both sides of every condition
        return one(keep[0], user[0], key[0])[None]
    return jax.vmap(one)(keep, user, key)


@partial(jax.jit, static_argnames="model")
def _all(
    model: Recommender, train: Interactions, key: Array, params0: Any, users: Int[Array, " B"]
) -> Float[Array, "B I"]:
    return fit(model, train, key, params0=params0).scores(users)
