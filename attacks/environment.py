"""A recommender that is poisoned, updated and asked over and over, in compiled code: PoisonRec's environment.

Song, Zhao et al., "PoisonRec: An Adaptive Data Poisoning Framework for Attacking Black-box Recommender Systems",
ICDE 2020, Alg. 1 (`DataPoisoning`), eq. 1 and section IV-A:

    once:       the ranker is trained on clean data, whose catalog already has the targets
    each time:  the clean ranker is reloaded and updated with N click sequences, and nothing of it stays
    reward:     RecNum = sum over users u of |L_u and T|,  L_u the 10 best of 92 original items and the targets

What the attack sees of all this is one number. `open` makes the part that does not change (a pytree), `judge` is a pure
function of it and of the clicks, and `rewards` maps it over many sets of sequences in one call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from attacks.counted import Offer, Ranker
from attacks.rankers import EPOCHS, Update, ranker
from bilevel.store import digest
from models.data import Interactions, sample
from models.evaluation.candidates import among_best, draw_candidates
from models.recommender import Recommender, given


class World(NamedTuple):
    """The part of an environment that stays: what is offered to whom, and the clean ranker.

    Attributes:
        offer: the real users, `(U,)`, and their candidates and the targets, `(U, C + T)`.
        offered, seen: candidates that are there, `(U, C)`; targets a user has clicked before, `(U, T)`.
        targets: `(T,)`.
        base: the ranker's own.
    """

    offer: Offer
    offered: Bool[Array, "U C"]
    seen: Bool[Array, "U T"]
    targets: Int[Array, " T"]
    base: Any


class Outcome(NamedTuple):
    """`recnum`: the reward; `error`: its standard error where users are sampled, else 0; `lost`: share of users whose
    scores are no numbers, because the update diverged: they see no target.
    """

    recnum: Float[Array, ""]
    error: Float[Array, ""]
    lost: Float[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Environment:
    """A black box inside JAX, as a value. Made by `environment`; `at` fixes its world.

    Attributes:
        name, config: what it is, for records.
        ranker: how the recommender is updated and read.
        open: `(key, train, targets, fakes) -> World`, trains the clean ranker; `fakes` is the number N of attackers.
        k: length of the lists.
        sample: users drawn for each reward, who stand for all; None: all are counted.
        block: users read at a time.
        at_once: sets of sequences judged side by side.
        targets: of the world that `at` has fixed; None: any.

    What is asked of a world is compiled once for an environment and shapes, also outside of `jit`.
    """

    name: str
    config: Mapping[str, Any]
    ranker: Ranker
    open: Callable[[Key[Array, ""], Interactions, Int[Array, " T"], int], World]
    k: int
    sample: int | None
    block: int
    at_once: int
    targets: Int[np.ndarray, " T"] | None = None

    @functools.partial(jax.jit, static_argnums=0)
    def judge(self, world: World, clicks: Int[Array, "N T"], key: Key[Array, ""]) -> Outcome:
        """RecNum after N click sequences of length T; `key` is of its update and of the sample."""
        return jax.tree.map(lambda found: found[0], self.rewards(world, clicks[None], key))

    @functools.partial(jax.jit, static_argnums=0)
    def rewards(self, world: World, clicks: Int[Array, "M N T"], key: Key[Array, ""]) -> Outcome:
        """RecNum of M sets, each from the clean ranker, in one call; fields `(M,)`. All are read by the same users."""
        for_users, for_updates = jax.random.split(key)
        rows = self.readers(world, for_users)

        def one(given):
            clicks, key = given
            return self.count(world, self.ranker.update(world.base, clicks, key), rows)

        return lax.map(one, (clicks, jax.random.split(for_updates, clicks.shape[0])), batch_size=self.at_once)

    def readers(self, world: World, key: Key[Array, ""]) -> Int[Array, " n"] | None:
        """The rows of the offer that a reward is counted from, `sample` of them drawn by the key; None: all."""
        if self.sample is None:
            return None
        every = world.offer.users.shape[0]
        return jnp.sort(jax.random.choice(key, every, (self.sample,), replace=False))

    @functools.partial(jax.jit, static_argnums=0)
    def clean(self, world: World) -> Outcome:
        """RecNum of all users without any poison."""
        return self.count(world, self.ranker.clean(world.base))

    @functools.partial(jax.jit, static_argnums=0)
    def count(self, world: World, tuned: Any, rows: Int[Array, " n"] | None = None) -> Outcome:
        """RecNum of an updated ranker: of all users, or as these `rows` of them make expect."""
        T, U = world.targets.shape[0], world.offer.users.shape[0]

        def shown(rows, offer, offered, known):
            scores = self.ranker.read(world.base, tuned, rows, offer)
            other, own, item = scores[:, :-T], scores[:, -T:], offer.item[:, :-T]
            best = among_best(own, other, world.targets, item, offered, known, k=self.k)
            return jnp.stack([jnp.sum(best, 1, dtype=float), jnp.any(jnp.isnan(scores), 1).astype(float)], 1)

        hits, lost = self._blocks(world, shown, rows).T
        total = jnp.sum(hits)
        if rows is None:  # a whole number, which a division might spoil
            return Outcome(total, jnp.zeros_like(total), jnp.mean(lost))
        n = hits.shape[0]
        spread = jnp.sqrt((1 - n / U) * jnp.var(hits, ddof=int(n > 1)) / n)
        return Outcome(U * jnp.mean(hits), U * spread, jnp.mean(lost))

    @functools.partial(jax.jit, static_argnums=0)
    def lists(self, world: World, tuned: Any) -> Int[Array, "U K"]:
        """The lists that `count` counts in: the k best of what each user is offered, -1 where there are fewer."""

        def best(rows, offer, offered, known):
            scores = self.ranker.read(world.base, tuned, rows, offer)
            there = jnp.concatenate([offered, ~known], 1)
            order = jnp.lexsort((offer.item, -scores, ~there))[:, : self.k]
            item = jnp.where(there, offer.item, -1)
            return jnp.take_along_axis(item, order, axis=1)

        return self._blocks(world, best)

    def at(self, world: World) -> Environment:
        """The same environment with a world that is there already: nothing is trained when an attack begins.

        The world's digest joins the configuration, so that records tell two of them apart.
        """
        config = {**self.config, "world": digest(jax.tree.leaves(world))}
        fixed = lambda key, train, targets, fakes: world
        return dataclasses.replace(self, config=config, open=fixed, targets=np.asarray(world.targets))

    def _blocks(
        self, world: World, read: Callable[..., Array], rows: Int[Array, " n"] | None = None
    ) -> Array:
        """`read` of rows of the offer (None: all), a block at a time (the last one padded with its last row)."""
        rows = jnp.arange(world.offer.users.shape[0]) if rows is None else rows
        n = rows.shape[0]
        count = -(-n // self.block)
        size = -(-n // count)
        every = rows[jnp.minimum(jnp.arange(count * size), n - 1)].reshape(count, size)

        def one(rows):
            offer = Offer(world.offer.users[rows], world.offer.item[rows])
            return read(rows, offer, world.offered[rows], world.seen[rows])

        found = lax.map(one, every)
        return found.reshape(count * size, *found.shape[2:])[:n]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"


def environment(
    model: Recommender,
    *,
    update: Update = "poison",
    ft_epochs: int = EPOCHS,
    ft_batch: int | None = None,
    candidates: int = 92,
    k: int = 10,
    users: int | None = None,
    block: int = 256,
    at_once: int = 1,
) -> Environment:
    """PoisonRec's black box around a recommender of `models`.

    Args:
        model: the ranker under attack. Its own training makes the clean one; an update uses the same loss, optimizer
            (fresh) and batch.
        update: "poison": fine-tuned on the attackers' clicks only, who are new users; "replay": with the last T clicks
            of N real users, drawn anew each time, among them; "scratch": trained again on everything.
        ft_epochs: passes over the clicks of a fine-tuning, >= 1; other than 10 only where there is one: not for ItemPop
            and CoVisitation, not with "scratch".
        ft_batch: clicks of a step of it, >= 1; None: the model's own batch, which is often more than there are clicks:
            then a pass is one step, and little moves. The learning rate stays the model's. For models of sampled pairs
            (PMF, BPR, NeuMF, NGCF, ...) only.
        candidates: original items offered to each user besides the targets, at most I - T.
        k: length of the lists, >= 1.
        users: n, real users that a reward is counted from, drawn anew for each call and the same for all sets of it;
            RecNum is then an estimate, with its standard error `U sqrt((1 - n/U) s^2 / n)`. None: all of them. (Were
            they drawn once for all, whoever learns from rewards would learn these n users by heart.)
        block: users read at a time, >= 1.
        at_once: sets of sequences judged side by side, >= 1: more for an accelerator, 1 where cores are few.

    Returns:
        An `Environment`, to be given to `attacks.poisonrec` or `attacks.appgrad`.

    Raises:
        ValueError: a number outside its range, or an `update` that the model has no use for.

    Reference: Song et al., ICDE 2020, Alg. 1, eq. 1, section IV-A.

    **Differs from the paper:** it states neither epochs (10 here) nor batch of an update; negatives are fresh, and the
    targets are items like any other when negatives are drawn for the clean ranker. Candidates are drawn once and not
    "each time", so that attacks are compared on the same ones, and are items the user has not clicked. The counting
    rankers add the clicks. Sampled users are ours.

    >>> from models.itempop import itempop
    >>> data = Interactions.from_arrays([0, 0, 1], [0, 1, 1], items=4, time=[0, 1, 0], track="sequence")
    >>> box = environment(itempop(), candidates=2, k=1)
    >>> world = box.open(jax.random.key(0), data, jnp.array([3]), 1)
    >>> box.judge(world, jnp.array([[3, 3, 3]]), jax.random.key(1)).recnum, box.clean(world).recnum
    (Array(2., dtype=float32), Array(0., dtype=float32))
    """
    config = dict(locals())
    if not isinstance(model, Recommender):
        raise TypeError(f"model is {model!r}; expected a Recommender, such as models.itempop.itempop()")
    numbers = {"candidates": candidates, "k": k, "block": block, "at_once": at_once} | given(users=users)
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an integer >= 1")
    inside = ranker(model, update=update, epochs=ft_epochs, batch=ft_batch)

    def open_(key, train: Interactions, targets: Int[Array, " T"], fakes: int) -> World:
        if users is not None and users > train.users:
            raise ValueError(f"users is {users}, but the data have {train.users}; leave it out to count all")
        others = train.items - targets.shape[0]
        if candidates > others:
            raise ValueError(
                f"candidates is {candidates}, but only {others} of the {train.items} items are not targets: lower it"
            )
        for_offer, for_ranker = jax.random.split(key)
        drawn = draw_candidates(for_offer, train, targets, count=candidates)
        everybody = jnp.arange(train.users, dtype=jnp.int32)
        own = jnp.broadcast_to(targets, (train.users, targets.shape[0]))
        offer = Offer(everybody, jnp.concatenate([drawn.item, own], 1))
        base = inside.open(for_ranker, train, fakes, offer)
        known = sample.clicked(sample.lists(train), everybody, own, train.items)
        return World(offer, drawn.offered, known, targets, base)

    return Environment("environment", config, inside, open_, k, users, block, at_once)
