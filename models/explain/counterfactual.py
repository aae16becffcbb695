"""Why is this item recommended to this user? The sets of interactions without which it would not be.

Tran, Ghazimatin, Saha Roy, SIGIR 2021 (ACCENT: the best item), and what Chen et al., SIGIR 2023 (H-CARS) ask of an
explanation API: the same for a target at any rank of a list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key

from models.data.interactions import Interactions
from models.explain import attention
from models.explain.accent import Found, evict, walk
from models.explain.blocks import own
from models.explain.explanation import Explanations, OutOfQueries, made
from models.explain.fia import Influences, Variant, influences
from models.recommender import counts, one_of
from models.train import Fitted, seen

Method = Literal["accent", "fia", "pure-fia", "attention", "pure-attention"]
METHODS = get_args(Method)
SPARE = 20
"""Items behind the list that may take a place in it."""


def counterfactual(
    fitted: Fitted,
    train: Interactions,
    users: Int[Array, " N"] | np.ndarray | list[int],
    items: Int[Array, " N"] | np.ndarray | list[int] | None = None,
    *,
    k: int = 10,
    method: Method = "accent",
    variant: Variant | None = None,
    damping: float | None = None,
    key: Key[Array, ""] | None = None,
) -> Explanations:
    """The fewest interactions of each user without which an item leaves its list.

    Args:
        fitted: from `models.train.fit`.
        train: what it was trained on.
        users: (N,) ids; may repeat.
        items: (N,) ids of items in the users' lists of length k: a set makes the item leave the list, for one of the 20
            items behind it. None: each user's best item, which is to lose its place to another item of its list of k,
            as in the paper.
        k: length of the list; at least 2 where `items` is None.
        method: "accent", or one of the searches it is compared with, which explain best items only: "fia" and
            "pure-fia" remove by the influence on the item alone, "attention" and "pure-attention" by RCF's attention
            weights; the pure ones do not put back what does not narrow the gap.
        variant, damping, key: as in `models.explain.influences`; the attention methods have no use for them.

    Returns:
        `Explanations`. An item that is not in the user's list has no explanation. Where the linear solve did not hold
        (a given damping is below the negative curvature around the trained parameters) its `code` says so.

    Raises:
        ValueError: an unknown method, one that the recommender or the question does not have, sizes out of range.

    Reference: Tran, Ghazimatin, Saha Roy, SIGIR 2021, algorithm 1 and section 4. **Differs from the paper:** items at
    any rank, see `models.explain.evict`; influence for any differentiable recommender, see `models.explain.influences`.

    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 3], items=6)
    >>> fitted = fit(wrmf(factors=3, epochs=200, learning_rate=0.1), train, jax.random.key(0))
    >>> asked = counterfactual(fitted, train, [0, 1], k=3)
    >>> asked.queries, asked.removed.shape[0]
    (2, 2)
    """
    counts("counterfactual", k=k)
    one_of("counterfactual", "method", method, METHODS)
    who = np.asarray(users)
    if items is not None and (method != "accent" or np.shape(items) != who.shape):
        raise ValueError(
            f"counterfactual: items of shape {np.shape(items)} for users of shape {who.shape} with method={method!r}; "
            "expected one item a user, and method='accent', the only one for items that are not the best"
        )
    ranks = min(k if items is None else k + SPARE, train.items)
    if ranks < 2 or (items is not None and ranks <= k):
        raise ValueError(
            f"counterfactual: a list of k={k} of {train.items} items leaves none to take a place; "
            f"expected k in 2..{train.items}, below the number of items where items= are given"
        )
    if "attention" in method:
        if variant is not None or damping is not None or key is not None:
            raise ValueError(f"counterfactual: {method} has no use for variant, damping, key")
        return _by_attention(fitted, train, who, k, method == "attention")
    options: dict[str, Any] = {"variant": variant, "damping": damping, "key": key}
    distinct, row = np.unique(who, return_inverse=True)
    known = influences(fitted, train, distinct, ranks, **options)
    return search(_rows(known, row), None if items is None else np.asarray(items), k=k, method=method)


def search(
    known: Influences, items: Int[np.ndarray, " N"] | None = None, *, k: int, method: Method = "accent"
) -> Explanations:
    """`counterfactual` where the influences are known already, one row a question: many lists from one computation.

    Args:
        known: influences on at least k items; where `items` is given, on k and those that may take a place.
        items, k, method: as in `counterfactual`.

    Raises:
        ValueError: fewer items than that; a method that reads no influences.

    **Differs from the paper:** nothing beyond `counterfactual`.

    >>> drop = np.array([[[0.5, 0.0], [0.0, 0.1]]])
    >>> known = Influences(*map(np.array, ([0], [[4, 5]], [[1.0, 0.8]], [[1, 2]], drop, [0])))
    >>> search(known, k=2).removed.tolist()  # without item 1, item 5 is above item 4
    [[1]]
    """
    ranks = known.item.shape[1]
    if ranks < k + (items is not None):
        raise ValueError(f"search: influences on {ranks} items do not do for k={k}; compute those on more")
    one_of("search", "method", method, ("accent", "fia", "pure-fia"))
    here = slice(None) if items is not None else slice(k)
    there = np.isfinite(known.scores[:, here])
    scores = np.where(there, known.scores[:, here], np.finfo(np.float32).min)
    drop, real = known.drop[:, here], known.history >= 0
    item = known.item[:, 0] if items is None else items
    at = np.argmax(known.item == item[:, None], axis=1)
    inside = np.any(known.item == item[:, None], axis=1)
    target = np.where(inside, at, ranks).astype(np.int32)
    length = 1 if items is None else k
    found = jax.tree.map(np.asarray, _search(scores, drop, real, target, k=length, method=method))
    return _told(known.user, item, known.item, known.history, found, known.code)


@partial(jax.jit, static_argnames=("k", "method"))
def _search(scores: Array, drop: Array, real: Array, target: Array, *, k: int, method: str) -> Found:
    def one(scores, drop, real, target):
        if method == "accent":
            return evict(scores, drop, real, target, k=k)
        order = jnp.argsort(jnp.where(real, -drop[0], jnp.inf), stable=True)
        return walk(order, lambda gone: scores - drop @ gone, real, only_reducing=method == "fia")

    return jax.vmap(one)(scores, drop, real, target)


def _rows(known: Influences, row: Int[np.ndarray, " N"]) -> Influences:
    return Influences(*(np.asarray(column)[row] for column in known))


def _told(user, item, ranked, history, found: Found, code=None) -> Explanations:
    sets = [
        h[gone] if there else None for h, gone, there in zip(history, found.removed, found.found, strict=True)
    ]
    rows = np.arange(len(user))
    return made(user, item, sets, ranked[rows, np.maximum(found.replacement, 0)], code)


# ------------------------------------------------------------------------------------------------ by attention


def _by_attention(
    fitted: Fitted, train: Interactions, users: np.ndarray, k: int, only_reducing: bool
) -> Explanations:
    """Remove clicks by RCF's attention to them; scores are computed again with the shortened history."""
    if fitted.model.name != "rcf":
        raise ValueError(
            f"counterfactual: {fitted.model.name} has no attention to clicks; it is a method for rcf"
        )
    counts_of = np.asarray(train.degrees())
    size = max(1, int(counts_of[users].max(initial=0)))
    item, history, found = _attended(
        fitted, train, jnp.asarray(users, jnp.int32), k=k, size=size, only=only_reducing
    )
    return _told(
        users, np.asarray(item)[:, 0], np.asarray(item), np.asarray(history), jax.tree.map(np.asarray, found)
    )


@partial(jax.jit, static_argnames=("k", "size", "only"))
def _attended(
    fitted: Fitted, train: Interactions, users: Int[Array, " B"], *, k: int, size: int, only: bool
) -> tuple[Int[Array, "B K"], Int[Array, "B M"], Found]:
    params, data = fitted.params, fitted.data
    smoothing = data.catalog.smoothing

    def one(user):
        mine = own(train, user, size)
        raw = fitted.scores(user[None])[0]
        item = lax.top_k(jnp.where(seen(train, user[None])[0], -jnp.inf, raw), k)[1]
        shown, p = attention.view(params, data, user, item, mine.item, mine.real), params["user"][user]
        weight = attention.weights(params, p, shown, mine.real, smoothing)[0]
        order = jnp.argsort(jnp.where(mine.real, -weight, jnp.inf), stable=True)
        rescored = lambda gone: attention.rated(params, p, shown, mine.real & ~gone, smoothing)
        return item, jnp.where(mine.real, mine.item, -1), walk(order, rescored, mine.real, only_reducing=only)

    return lax.map(one, users)


# ------------------------------------------------------------------------------------------------ as a service


class ExplanationAPI:
    """What a platform offers: explanations on request, counted. The model stays behind it.

    Args:
        fitted, train: what is explained.
        k: length of the lists; an item outside its user's list is not explained.
        limit: most questions; None: no limit.
        variant, damping: as in `counterfactual`.

    Raises:
        ValueError: a limit that is no whole number of at least 1; see `counterfactual` for the rest.

    **Differs from the paper:** not an algorithm of a paper; H-CARS takes such an interface for given.

    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 3], items=6)
    >>> fitted = fit(wrmf(factors=3, epochs=200, learning_rate=0.1), train, jax.random.key(0))
    >>> api = ExplanationAPI(fitted, train, k=2, limit=3)
    >>> answer, one = api.explain([0, 1], [2, 0]), api.explain_one(0, 2)
    >>> api.queries, answer.item.tolist()
    (3, [2, 0])
    >>> api.explain_one(0, 2)
    Traceback (most recent call last):
    ...
    models.explain.explanation.OutOfQueries: 1 question more than the 0 left of 3; give a larger limit
    """

    def __init__(
        self,
        fitted: Fitted,
        train: Interactions,
        *,
        k: int = 10,
        limit: int | None = None,
        variant: Variant | None = None,
        damping: float | None = None,
    ):
        if limit is not None:
            counts("ExplanationAPI", limit=limit)
        self._ask = partial(counterfactual, fitted, train, k=k, variant=variant, damping=damping)
        self.limit, self.queries = limit, 0

    def explain(self, users: Any, items: Any) -> Explanations:
        """The sets for N pairs of user and item; N queries.

        Raises:
            OutOfQueries: more than are left; nothing is answered or counted then.
        """
        count = len(np.atleast_1d(users))
        if self.limit is not None and self.queries + count > self.limit:
            left = self.limit - self.queries
            raise OutOfQueries(
                f"{count} question{'s' * (count != 1)} more than the {left} left of {self.limit}; give a larger limit"
            )
        answer = self._ask(np.atleast_1d(users), np.atleast_1d(items))
        self.queries += count
        return answer

    def explain_one(self, user: int, item: int) -> Int[np.ndarray, " E"]:
        """The set for one pair, empty where there is none; what `attacks.blackbox.BlackBox.explain` answers."""
        row = self.explain([user], [item]).removed[0]
        return row[row >= 0]


def explainer(
    *, k: int = 10, variant: Variant | None = None, damping: float | None = None
) -> Callable[[tuple[Fitted, Interactions], int, int], Int[np.ndarray, " E"]]:
    """An `explainer=` for `attacks.blackbox.Retrained`, of a victim that is trained anew for every injection.

    Its `learn` returns `(fitted.scores, (fitted, data))`: the second is what is explained.

    Args:
        k, variant, damping: as in `counterfactual`.

    **Differs from the paper:** not an algorithm of a paper.

    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 3], items=6)
    >>> state = fit(wrmf(factors=3, epochs=200, learning_rate=0.1), train, jax.random.key(0)), train
    >>> explainer(k=2)(state, 0, 0).size  # user 0 has item 0: it is in no list
    0
    """
    return lambda state, user, item: ExplanationAPI(
        *state, k=k, variant=variant, damping=damping
    ).explain_one(user, item)
