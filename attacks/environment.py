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
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from attacks.counted import Offer, Ranker
from attacks.rankers import Update, ranker
from bilevel.store import digest
from models.data import Interactions, sample
from models.evaluation.candidates import among_best, draw_candidates
from models.recommender import Recommender, given


class World(NamedTuple):
    """The part of an environment that stays: what is offered to whom, and the clean ranker.

    Attributes:
        offer: users that are counted, `(n,)`, and their candidates and the targets, `(n, C + T)`.
        offered, seen: candidates that are there, `(n, C)`; targets a user has clicked before, `(n, T)`.
        targets: `(T,)`.
        users: real users U, of whom n are counted.
        base: the ranker's own.
    """

    offer: Offer
    offered: Bool[Array, "n C"]
    seen: Bool[Array, "n T"]
    targets: Int[Array, " T"]
    users: Float[Array, ""]
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
        sampled: whether some users are counted for all.
        block: users read at a time.
        at_once: sets of sequences judged side by side.

    What is asked of a world is compiled once for an environment and shapes, also outside of `jit`.
    """

    name: str
    config: Mapping[str, Any]
    ranker: Ranker
    open: Callable[[Key[Array, ""], Interactions, Int[Array, " T"], int], World]
    k: int
    sampled: bool
    block: int
    at_once: int

    @functools.partial(jax.jit, static_argnums=0)
    def judge(self, world: World, clicks: Int[Array, "N T"], key: Key[Array, ""]) -> Outcome:
        """RecNum after N click sequences of length T; `key` is that of the update (batches, negatives)."""
        return self.count(world, self.ranker.update(world.base, clicks, key))

    @functools.partial(jax.jit, static_argnums=0)
    def rewards(self, world: World, clicks: Int[Array, "M N T"], key: Key[Array, ""]) -> Outcome:
        """`judge` of M sets, each from the clean ranker, in one call; fields `(M,)`."""
        keys = jax.random.split(key, clicks.shape[0])
        return lax.map(lambda one: self.judge(world, *one), (clicks, keys), batch_size=self.at_once)

    @functools.partial(jax.jit, static_argnums=0)
    def clean(self, world: World) -> Outcome:
        """RecNum without any poison."""
        return self.count(world, self.ranker.clean(world.base))

    @functools.partial(jax.jit, static_argnums=0)
    def count(self, world: World, tuned: Any) -> Outcome:
        """RecNum of an updated ranker."""
        T = world.targets.shape[0]

        def shown(rows, offer, offered, known):
            scores = self.ranker.read(world.base, tuned, rows, offer)
            other, own, item = scores[:, :-T], scores[:, -T:], offer.item[:, :-T]
            best = among_best(own, other, world.targets, item, offered, known, k=self.k)
            return jnp.stack([jnp.sum(best, 1, dtype=float), jnp.any(jnp.isnan(scores), 1).astype(float)], 1)

        hits, lost = self._blocks(world, shown).T
        n, total = hits.shape[0], jnp.sum(hits)
        if not self.sampled:  # a whole number, which a division might spoil
            return Outcome(total, jnp.zeros_like(total), jnp.mean(lost))
        left = jnp.maximum(1 - n / world.users, 0)
        spread = jnp.sqrt(left * jnp.var(hits, ddof=int(n > 1)) / n)
        return Outcome(world.users * jnp.mean(hits), world.users * spread, jnp.mean(lost))

    @functools.partial(jax.jit, static_argnums=0)
    def lists(self, world: World, tuned: Any) -> Int[Array, "n K"]:
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
        return dataclasses.replace(self, config=config, open=lambda key, train, targets, fakes: world)

    def _blocks(self, world: World, read: Callable[..., Array]) -> Array:
        """`read` of all rows of the offer, a block at a time (the last one padded with its last row)."""
        n = world.offer.users.shape[0]
        count = -(-n // self.block)
        size = -(-n // count)
        every = jnp.minimum(jnp.arange(count * size), n - 1).reshape(count, size)

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
    ft_epochs: int = 10,
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
        ft_epochs: passes over the clicks of a fine-tuning, >= 1.
        ft_batch: clicks of a step of it, >= 1; None: the model's own batch, which is often more than there are clicks:
            then a pass is one step, and little moves. The learning rate stays the model's. For models of sampled pairs
            (PMF, BPR, NeuMF, NGCF, ...) only.
        candidates: original items offered to each user besides the targets, at most I - T.
        k: length of the lists, >= 1.
        users: real users that are counted, drawn once; RecNum is then an estimate, with its standard error
            `U sqrt((1 - n/U) s^2 / n)`. None: all of them.
        block: users read at a time, >= 1.
        at_once: sets of sequences judged side by side, >= 1: more for an accelerator, 1 where cores are few.

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
    numbers = {"candidates": candidates, "k": k, "block": block, "at_once": at_once} | given(users=users)
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an integer >= 1")
    inside = ranker(model, update=update, epochs=ft_epochs, batch=ft_batch)

    def open_(key, train: Interactions, targets: Int[Array, " T"], fakes: int) -> World:
        if users is not None and users > train.users:
            raise ValueError(f"users is {users}, but the data have {train.users}; leave it out to count all")
        for_offer, for_users, for_ranker = jax.random.split(key, 3)
        drawn = draw_candidates(for_offer, train, targets, count=candidates)
        chosen = jnp.arange(train.users, dtype=jnp.int32)
        if users is not None:
            chosen = jnp.sort(jax.random.choice(for_users, chosen, (users,), replace=False))
        own = jnp.broadcast_to(targets, (chosen.shape[0], targets.shape[0]))
        offer = Offer(chosen, jnp.concatenate([drawn.item[chosen], own], 1))
        base = inside.open(for_ranker, train, fakes, offer)
        known = sample.clicked(sample.lists(train), chosen, own, train.items)
        return World(offer, drawn.offered[chosen], known, targets, jnp.asarray(float(train.users)), base)

    return Environment("environment", config, inside, open_, k, users is not None, block, at_once)
