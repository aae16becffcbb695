"""What an explanation is: the fewest interactions of a user without which another item is recommended.

Tran, Ghazimatin, Saha Roy, *Counterfactual explanations for neural recommenders*, SIGIR 2021; as the side channel of
Chen, Silvestri, Wang, Zhang, Tolomei, *The dark side of explanations: Poisoning recommender systems with counterfactual
examples*, SIGIR 2023. Whoever asks sees the sets and the replacements, and nothing of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from models.data.interactions import Interactions


class OutOfQueries(RuntimeError):
    """More explanations asked for than are given."""


class Explanations(NamedTuple):
    """What was answered to N questions "why is this item recommended to this user?".

    Attributes:
        user, item: (N,) int32, what was asked.
        removed: (N, M) int32 item ids of the counterfactual set, ascending, padded with -1; none where not found.
        found: (N,) whether there is a set.
        replacement: (N,) int32 the item that takes the place in the list, -1 where there is no set.
        queries: how many questions were asked.
        code: (N,) the worst `bilevel.Code` of the linear solves behind each answer, 0 where none was needed: an answer
            from a solve that did not hold is a guess (see `sound`).
    """

    user: Int[np.ndarray, " N"]
    item: Int[np.ndarray, " N"]
    removed: Int[np.ndarray, "N M"]
    found: Bool[np.ndarray, " N"]
    replacement: Int[np.ndarray, " N"]
    queries: int
    code: Int[np.ndarray, " N"]

    @property
    def sound(self) -> Bool[np.ndarray, " N"]:
        """Whether the linear solves behind each answer held.

        >>> made(np.array([3]), np.array([1]), [[4, 7]], np.array([2])).sound.tolist()
        [True]
        """
        return self.code == 0

    @property
    def sizes(self) -> Int[np.ndarray, " N"]:
        """Items of each set; 0 where there is none.

        >>> made(np.array([3]), np.array([1]), [[4, 7]], np.array([2])).sizes.tolist()
        [2]
        """
        return np.sum(self.removed >= 0, axis=1)


def made(
    user: Int[np.ndarray, " N"],
    item: Int[np.ndarray, " N"],
    removed: Sequence[Sequence[int] | np.ndarray | None],
    replacement: Int[np.ndarray, " N"],
    code: Int[np.ndarray, " N"] | None = None,
) -> Explanations:
    """Explanations from one set of items a question, None where none was found; without a code nothing was solved.

    >>> made(np.array([0, 1]), np.array([5, 6]), [[9, 8], None], np.array([4, 3]))[2:5]
    (array([[ 8,  9], [-1, -1]], dtype=int32), array([ True, False]), array([ 4, -1], dtype=int32))
    """
    found = np.array([items is not None for items in removed], bool)
    rows = [np.sort(np.asarray(() if items is None else items, np.int32)) for items in removed]
    sets = np.full((len(rows), max([1, *map(len, rows)])), -1, np.int32)
    for n, row in enumerate(rows):
        sets[n, : len(row)] = row
    ids = lambda values: np.asarray(values, np.int32).reshape(len(rows))
    there = np.where(found, ids(replacement), -1).astype(np.int32)
    codes = np.zeros(len(rows), np.int32) if code is None else ids(code)
    return Explanations(ids(user), ids(item), sets, found, there, len(rows), codes)


def removals(explanations: Explanations, train: Interactions) -> Bool[np.ndarray, "N E"]:
    """The events of `train` that stay without each set, as masks for `Interactions.keep`.

    >>> train = Interactions.from_arrays([0, 0, 1], [2, 5, 5], items=6)
    >>> removals(made(np.array([0]), np.array([1]), [[5]], np.array([0])), train).tolist()
    [[True, False, True]]
    """
    user, item = np.asarray(train.user), np.asarray(train.item)
    masks = np.ones((len(explanations.user), train.capacity), bool)
    for n, (who, gone) in enumerate(zip(explanations.user, explanations.removed, strict=True)):
        masks[n] = ~((user == who) & np.isin(item, gone[gone >= 0]))
    return masks & train.real()
