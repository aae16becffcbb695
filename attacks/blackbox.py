"""What an attacker can do to a recommender it cannot look into: inject, look, count.

    box.inject(profiles)     # the system forgets what was injected before and takes these fake users in: one query
    box.recommend(users)     # what these real users are shown
    box.recnum()             # how often targets are shown to real users: PoisonRec's reward (ICDE 2020, eq. 1)
    box.explain(user, item)  # why: items of the user's history, where the system says so

`BlackBox` is a protocol: whatever has these members can be attacked by `attacks.play`. Three adapters: `JaxBox`, a
recommender of `models` in PoisonRec's environment; `Retrained`, anything that trains on interactions and scores (other
libraries, `models.external`, a NumPy function); `attacks.service.Service`, something behind a port.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from attacks.environment import Environment, World
from models.data import Interactions, Profiles, inject
from models.evaluation import Candidates, Scores, draw_candidates, over_users, recnum

Explainer = Callable[[Any, int, int], Int[np.ndarray, " E"]]
"""`(what the system has learned, user, item) -> items of the user's history that explain the recommendation`."""


@runtime_checkable
class BlackBox(Protocol):
    """A recommender from the outside. `queries` counts the injections, which are what costs an attacker."""

    queries: int

    def inject(self, profiles: Profiles) -> None:
        """Take the fake users in, in the place of those of the last call, and learn. One query."""
        ...

    def recommend(self, users: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B K"]:
        """Lists of real users, best first; -1 where there are fewer than K items."""
        ...

    def recnum(self) -> float:
        """`sum_u |L_u and T|` over the lists of all real users (an estimate, where some are counted)."""
        ...

    def explain(self, user: int, item: int) -> Int[np.ndarray, " E"]:
        """The items of the user's history that a recommendation rests on.

        Raises:
            Unexplained: the system gives no explanations.
        """
        ...


class Unexplained(RuntimeError):
    """The victim has no explainer."""


class OverBudget(RuntimeError):
    """More queries than the box answers."""


class _Counter:
    """Counts queries and keeps to a limit."""

    def __init__(self, limit: int | None):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"limit is {limit!r}; expected an integer >= 1 (queries), or None")
        self.limit, self.queries = limit, 0

    def take(self) -> None:
        if self.limit is not None and self.queries >= self.limit:
            raise OverBudget(f"the {self.limit} queries are used up; give a larger limit")
        self.queries += 1


class JaxBox:
    """A recommender of `models` in an environment, as a black box.

    Args:
        environment: from `attacks.environment`; says how it is updated, what is offered, and, with `users=`, from how
            many users, drawn anew for each injection, `recnum` is estimated.
        train: the clean interactions, track "sequence".
        targets: ids of the targets.
        key: decides the clean training, the candidates and every update.
        fakes: attackers of an injection.
        limit: most queries; None: no limit.
        explainer: `(clean world and updated ranker, user, item) -> items`; None: `explain` raises.

    Raises:
        TypeError, ValueError: see `attacks.checks.check`.

    **Differs from the paper:** see `attacks.environment`.

    >>> from attacks.environment import environment
    >>> from models.itempop import itempop
    >>> data = Interactions.from_arrays([0, 0, 1], [0, 1, 1], items=4, time=[0, 1, 0], track="sequence")
    >>> box = JaxBox(environment(itempop(), candidates=2, k=1), data, [3], jax.random.key(0), fakes=1)
    >>> box.inject(Profiles.from_clicks([[3, 3]], [3], items=4))
    >>> box.recnum(), box.recommend(np.array([0])).tolist(), box.queries
    (2.0, [[3]], 1)
    """

    def __init__(
        self,
        environment: Environment,
        train: Interactions,
        targets: Int[Array, " T"] | list[int],
        key: Key[Array, ""],
        *,
        fakes: int,
        limit: int | None = None,
        explainer: Explainer | None = None,
    ):
        for_world, self._key = jax.random.split(key)
        self._environment = environment
        self._fakes, self._counter, self._explainer = fakes, _Counter(limit), explainer
        self._items = train.items
        self._targets = jnp.asarray(targets, jnp.int32)
        self._world: World = environment.open(for_world, train, self._targets, fakes)
        self._learn = jax.jit(lambda world, clicks, key: environment.ranker.update(world.base, clicks, key))
        self._lists, self._count = jax.jit(environment.lists), jax.jit(environment.count)
        self._tuned: Any = environment.ranker.clean(self._world.base)

    @property
    def queries(self) -> int:
        """Injections so far."""
        return self._counter.queries

    def inject(self, profiles: Profiles) -> None:
        """Reload the clean ranker and update it with these click sequences."""
        if profiles.clicks is None or not np.all(np.asarray(profiles.mask)):
            raise ValueError(
                "this system takes click sequences of one length; give profiles in the clicks form"
            )
        if profiles.fakes != self._fakes:
            raise ValueError(f"{profiles.fakes} fake users; this box was made for {self._fakes}, give fakes=")
        if profiles.items != self._items:
            raise ValueError(f"profiles over {profiles.items} items, but the system has {self._items}")
        profiles.validate()
        self._counter.take()
        key = jax.random.fold_in(self._key, self.queries)
        self._tuned = self._learn(self._world, profiles.clicks, key)

    def recommend(self, users: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B K"]:
        """What is shown to users, of what they are offered."""
        asked = _among(users, self._world.offer.users.shape[0])
        return np.asarray(self._lists(self._world, self._tuned))[asked]

    def recnum(self) -> float:
        """The reward of what was injected last; before any injection that of the clean system."""
        for_readers = jax.random.fold_in(jax.random.fold_in(self._key, self.queries), 1)
        rows = self._environment.readers(self._world, for_readers)
        return float(self._count(self._world, self._tuned, rows).recnum)

    def explain(self, user: int, item: int) -> Int[np.ndarray, " E"]:
        """What the explainer says."""
        return _explained(self._explainer, (self._world, self._tuned), user, item)


class Retrained:
    """Anything that trains on interactions and scores, as a black box: it is trained again for every injection.

    Args:
        learn: `(poisoned interactions, number of the query) -> scores`, or `(scores, what the explainer reads)` with
            `scores` a function from user ids (B,) to (B, I). On the host; for a library of `models.external`:
            `lambda data, query: fit(victim, data, key).scores`.
        train: the clean interactions; a sequence, or clicks (then order and repeats of the injected ones are lost).
        targets: ids of the targets.
        key: draws the candidates.
        candidates: original items offered to each user besides the targets; None: the whole catalog is.
        k: length of the lists, >= 1.
        limit: most queries; None: no limit.
        explainer: `(what the explainer reads, user, item) -> items`; None: `explain` raises.

    Raises:
        ValueError: a number outside its range.

    **Differs from the paper:** the victim is trained from scratch where PoisonRec fine-tunes.

    >>> data = Interactions.from_arrays([0, 0, 1], [0, 1, 1], items=4, time=[0, 1, 0], track="sequence")
    >>> learn = lambda data, query: lambda users: jnp.tile(data.popularity().astype(float), (len(users), 1))
    >>> box = Retrained(learn, data, [3], jax.random.key(0), candidates=2, k=1)
    >>> box.inject(Profiles.from_clicks([[3, 3, 3]], [3], items=4))
    >>> box.recnum(), box.recommend(np.array([1])).tolist()
    (2.0, [[3]])
    """

    def __init__(
        self,
        learn: Callable[[Interactions, int], Scores | tuple[Scores, Any]],
        train: Interactions,
        targets: Int[Array, " T"] | list[int],
        key: Key[Array, ""],
        *,
        candidates: int | None = 92,
        k: int = 10,
        limit: int | None = None,
        explainer: Explainer | None = None,
    ):
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= train.items:
            raise ValueError(f"k is {k!r}; expected an integer in 1..{train.items}, the length of a list")
        self._learn_from, self._train, self._k = learn, train, k
        self._targets = jnp.asarray(targets, jnp.int32)
        others = train.items - self._targets.shape[0]
        self._offered = draw_candidates(
            key, train, self._targets, count=others if candidates is None else candidates
        )
        self._counter, self._explainer = _Counter(limit), explainer
        self._take_in(train)

    @property
    def queries(self) -> int:
        """Injections so far."""
        return self._counter.queries

    def inject(self, profiles: Profiles) -> None:
        """Train again on the clean interactions and these fake users."""
        self._counter.take()
        self._take_in(inject(self._train, profiles))

    def _take_in(self, data: Interactions) -> None:
        learned = self._learn_from(data, self.queries)
        scores, self._state = learned if isinstance(learned, tuple) else (learned, None)
        # Once for all users, so that a victim on the host is not called from compiled code.
        parts = np.array_split(np.arange(self._train.users), -(-self._train.users // 1024))
        self._scores = jnp.concatenate([jnp.asarray(scores(jnp.asarray(users))) for users in parts])

    def recommend(self, users: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B K"]:
        """The best of what each user is offered and has not clicked."""
        asked = _among(users, self._train.users)
        return np.asarray(_best(self._scores, self._train, self._targets, self._offered, self._k))[asked]

    def recnum(self) -> float:
        """How often targets are among them."""
        return float(_recnum(self._scores, self._train, self._targets, self._offered, self._k))

    def explain(self, user: int, item: int) -> Int[np.ndarray, " E"]:
        """What the explainer says."""
        return _explained(self._explainer, self._state, user, item)


# Compiled once for all injections; the table of scores is an argument.


@partial(jax.jit, static_argnames="k")
def _recnum(
    table: Array, train: Interactions, targets: Int[Array, " T"], offered: Candidates, k: int
) -> Int[Array, ""]:
    return recnum(lambda users: table[users], train, targets, offered, k=k).total


@partial(jax.jit, static_argnames="k")
def _best(
    table: Array, train: Interactions, targets: Int[Array, " T"], offered: Candidates, k: int
) -> Int[Array, "U K"]:
    """The k best items of the offered ones and the targets that a user has not clicked, -1 where there are fewer."""

    def read(found):
        rows = jnp.arange(found.users.shape[0])[:, None]
        there = (
            jnp.zeros(found.raw.shape, bool)
            .at[rows, offered.item[found.users]]
            .max(offered.offered[found.users])
        )
        there = there.at[:, targets].set(~found.seen[:, targets])
        best, item = jax.lax.top_k(jnp.where(there, found.raw, -jnp.inf), k)
        return jnp.where(jnp.take_along_axis(there, item, axis=1), item, -1)

    return over_users(lambda users: table[users], train, read)


def _among(users: Any, count: int) -> np.ndarray:
    """The ids as an array, once they are known to be of real users."""
    asked = np.asarray(users, dtype=None if np.size(users) else int)
    if asked.size and not 0 <= asked.min() <= asked.max() < count:
        raise ValueError(f"users {asked.min()}..{asked.max()}; the system has 0..{count - 1}")
    return asked


def _explained(explainer: Explainer | None, state: Any, user: int, item: int) -> np.ndarray:
    if explainer is None:
        raise Unexplained(
            "this system gives no explanations; make the box with explainer=, a function (state, user, item) -> items"
        )
    return np.asarray(explainer(state, user, item))
