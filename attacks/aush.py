"""AUSH: profiles cut from real ones, whose remaining ratings a generator writes so that they pass and promote.

Lin, Chen, Li, Xiao, Li, Tang, "Attacking Recommender Systems with Augmented User Profiles", CIKM 2020. A template is a
real user: B - s of its ratings are kept as they are (the fillers), those of s selected items, which the targets'
audience likes, are written by a network G that reads the fillers, and the targets are rated r_max. A network D tells
templates from profiles:

    D:  min  - log D(fillers + template's selected) - log(1 - D(fillers + G(fillers)))
    G:  min  - log D(fillers + G(fillers))  +  mean (G - r_max)^2  +  sum (G - template's selected)^2  + l2 |G|^2 / 2

the third over the selected items that the template rated, and over half of the others, drawn, with 0 as their rating.
One pass of D and one of G over all templates make an epoch. What the authors' code adds to the paper is in it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from attacks.attack import Attack, History
from attacks.rating import target_rating, to_grid
from attacks.templates import Batch, audience, cut, templates
from attacks.threat import Goal, Ratings, ThreatModel, Track, as_ratings, fixed
from bilevel.project import column_mask
from models.data import Interactions, Profiles
from models.recommender import counts, numbers, xavier

FIRST = 400
"""The generator's first hidden layer has a third of it, the next a third of that, ... (the authors' code)."""

HIDDEN = (150, 150, 150)
"""Widths of the discriminator."""

Layers = list[dict[str, Array]]


class Networks(NamedTuple):
    """Generator and discriminator, or what Adam keeps of them."""

    generator: Any
    discriminator: Any


class State(NamedTuple):
    """Networks and their optimizers' states, epochs done, the selected items `(s,)`, and the key of all draws."""

    networks: Networks
    adam: Networks
    epoch: Int[Array, ""]
    selected: Int[Array, " s"]
    key: Key[Array, ""]


def aush(
    *,
    fakes: int | float,
    budget: int | None = None,
    track: Track = "implicit",
    ratings: Ratings | tuple[float, float, float] | None = None,
    goal: Goal = "promote",
    selected: int = 3,
    steps: int = 150,
    generator_rate: float = 1e-2,
    discriminator_rate: float = 1e-4,
    generator_batch: int = 256,
    discriminator_batch: int = 64,
    adversarial: float = 1.0,
    shilling: float = 1.0,
    reconstruction: float = 1.0,
    unrated: float = 0.5,
    l2: float = 1e-4,
    clicks: int | None = None,
) -> Attack:
    """AUSH: real users' ratings as fillers, and ratings of what the targets' audience likes from a GAN.

    `G: - log D + shilling mean (G - r_max)^2 + reconstruction sum (G - own)^2`, see the head of this file.

    Args:
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: B: selected items and fillers of a fake user, in `[0, I - T]`; the targets come on top. Templates are
            users with enough ratings; where nobody has as many, those with the most, and profiles are shorter.
        track: `"explicit"`: ratings; `"implicit"`: clicks are ratings of 1, and a selected item is clicked where
            G > 1/2.
        ratings: `(low, high, step)`, for `"explicit"`.
        goal: `"promote"`, or on ratings `"demote"`: targets are rated `low`, everything else stays.
        selected: s >= 1, at most B of it is made use of: the items liked by most of the users who like a target.
        steps: epochs, >= 1.
        generator_rate, discriminator_rate: of Adam, > 0.
        generator_batch, discriminator_batch: templates a step, >= 1.
        adversarial, shilling, reconstruction: weights of the generator's losses, >= 0.
        unrated: share of the selected items the template has not rated that reconstruction reads as 0, in [0, 1].
        l2: of the generator's parameters, gradient `l2 * theta`, >= 0.
        clicks: `None`, there is no sequence.

    Returns:
        An attack of `steps` outer steps; `knowledge="interactions"`. Its history has the means over an epoch of
        `loss` (the generator's), its parts `adversarial`, `shilling` and `reconstruction`, and `discriminator`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use here.

    Reference: Lin et al., CIKM 2020, and released code (XMUDM/ShillingAttack).

    **Differs from the paper:** B counts the selected items too, so that attacks compare; several targets are all rated
    r_max; demotion, clicks and the rule for selected items (likes are ratings from the middle of the grid on, ties by
    popularity) are ours; templates are not repeated before all were used. A GAN has no score to choose an epoch by: the
    networks of the last one write the profiles.

    **How it is detected and what mitigates it:** fillers are pieces of real profiles, so their popularity and their
    similarity pass; what stays is that all fake users share the targets and high ratings of the selected items (a dense
    block, found by spectral and group detectors), and that each is nearly contained in a real user's profile.

    >>> train = Interactions.from_dense((jnp.arange(48).reshape(6, 8) % 3 > 0).astype(float))
    >>> attack = aush(fakes=2, budget=4, selected=2, steps=2)
    >>> profiles, history = attack.trace(jax.random.key(0), train, jnp.array([1]))
    >>> profiles.validate(budget=4), sorted(history)[:2]
    (Profiles(2 fakes x 8 items, implicit, rows), ['adversarial', 'discriminator'])
    """
    config = {name: value for name, value in locals().items() if name != "clicks"}
    _check_track(track, goal)
    budget = fixed("aush", budget)
    counts(
        "aush",
        selected=selected,
        steps=steps,
        generator_batch=generator_batch,
        discriminator_batch=discriminator_batch,
    )
    numbers("aush", 0, open_end=True, generator_rate=generator_rate, discriminator_rate=discriminator_rate)
    numbers("aush", 0, adversarial=adversarial, shilling=shilling, reconstruction=reconstruction, l2=l2)
    numbers("aush", 0, unrated=unrated)
    if unrated > 1:
        raise ValueError(f"aush: unrated={unrated!r}; expected a share of at most 1")
    grid = None if ratings is None else as_ratings(ratings)
    threat = ThreatModel(
        fakes=fakes,
        budget=budget,
        goal=goal,
        track=track,
        knowledge="interactions",
        clicks=clicks,
        ratings=grid,
    )
    plan = _Plan(
        threat=threat,
        named=min(selected, budget),
        kept=budget - min(selected, budget),
        high=1.0 if grid is None else grid.high,
        losses=Losses(adversarial, shilling, reconstruction, unrated, l2),
        sizes=Networks(generator_batch, discriminator_batch),
        adam=Networks(optax.adam(generator_rate), optax.adam(discriminator_rate)),
    )
    show = ("loss", "shilling", "discriminator")
    return Attack("aush", config, threat, steps, plan.init, plan.step, plan.finish, show=show)


def _check_track(track: Track, goal: Goal) -> None:
    if track == "sequence":
        raise ValueError(
            "track is 'sequence'; aush writes ratings, which have no order: expected 'implicit' or 'explicit'"
        )
    if goal == "availability" or (goal == "demote" and track == "implicit"):
        raise ValueError(
            f"goal is {goal!r} on the {track!r} track; aush rates its targets, and a click cannot rate them low: "
            "expected 'promote', or 'demote' with track 'explicit'"
        )


@dataclasses.dataclass(frozen=True)
class Losses:
    """Weights of the generator's losses, and the share of unrated items that reconstruction reads."""

    adversarial: float = 1.0
    shilling: float = 1.0
    reconstruction: float = 1.0
    unrated: float = 0.5
    l2: float = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """The checked settings, and the attack in three functions of them."""

    threat: ThreatModel
    named: int
    kept: int
    high: float
    losses: Losses
    sizes: Networks
    adam: Networks

    def init(self, key, train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        """Fresh networks; the selected items."""
        key, for_generator, for_discriminator = jax.random.split(key, 3)
        networks = Networks(
            init_layers(for_generator, [train.items, *widths(self.named), self.named]),
            init_layers(for_discriminator, [train.items, *HIDDEN, 1]),
        )
        adam = Networks(*(tool.init(net) for tool, net in zip(self.adam, networks, strict=True)))
        liked = 0.0 if self.threat.ratings is None else sum(self.threat.ratings[:2]) / 2
        chosen = audience(train, targets, self.named, liked=liked)
        return State(networks, adam, jnp.zeros((), jnp.int32), chosen, key)

    def step(self, state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        """One epoch: a pass of the discriminator, then one of the generator."""
        key = jax.random.fold_in(jax.random.split(state.key)[0], state.epoch)
        for_discriminator, for_generator = jax.random.split(key)
        state, judged = self.epoch(for_discriminator, state, train, targets, "discriminator")
        state, wrote = self.epoch(for_generator, state, train, targets, "generator")
        return state._replace(epoch=state.epoch + 1), {**wrote, "discriminator": judged["loss"]}

    def finish(self, state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        """Profiles from the generator as it is."""
        fakes, target = self.threat.count(train.users), column_mask(targets, train.items)
        key_order, key_cut = jax.random.split(jax.random.split(state.key)[1])
        order, count = templates(key_order, train, target, state.selected, self.kept)
        who = order[jnp.arange(fakes) % count]
        batch = cut(key_cut, train, who, jnp.ones(fakes), target, state.selected, self.kept)
        wrote = generate(state.networks.generator, batch.fillers, self.high)
        if self.threat.ratings is None:
            wrote, rated = (wrote > self.high / 2).astype(wrote.dtype), 1.0
        else:
            wrote, rated = (
                to_grid(wrote, self.threat.ratings),
                target_rating(self.threat.goal, self.threat.ratings),
            )
        rows = batch.fillers.at[:, state.selected].set(wrote.astype(batch.fillers.dtype))
        return Profiles.from_rows(
            rows.at[:, targets].set(rated),
            targets,
            track=self.threat.track,
            clicks_targets=True,
            width=min(self.named + self.kept + targets.size, train.items),
        )

    def epoch(
        self, key, state: State, train: Interactions, targets: Int[Array, " T"], who: str
    ) -> tuple[State, History]:
        """One network's pass over all templates in a random order; means of its losses."""
        target, size = column_mask(targets, train.items), getattr(self.sizes, who)
        loss = generator_loss if who == "generator" else discriminator_loss
        tool, key_order = getattr(self.adam, who), jax.random.fold_in(key, 0)
        order, count = templates(key_order, train, target, state.selected, self.kept)
        batches = (count + size - 1) // size

        def learn(number, carried):
            networks, kept, totals = carried
            key_cut, key_loss = jax.random.split(jax.random.fold_in(key, number + 1))
            slot = number * size + jnp.arange(size)
            real = (slot < count).astype(train.weight.dtype)
            chosen = order[jnp.minimum(slot, train.users - 1)]
            batch = cut(key_cut, train, chosen, real, target, state.selected, self.kept)
            own = lambda net: loss(
                key_loss,
                networks._replace(**{who: net}),
                batch,
                target,
                state.selected,
                self.high,
                self.losses,
            )
            gradient, parts = jax.grad(own, has_aux=True)(getattr(networks, who))
            updates, kept = tool.update(gradient, kept, getattr(networks, who))
            moved = optax.apply_updates(getattr(networks, who), updates)
            return networks._replace(**{who: moved}), kept, jax.tree.map(jnp.add, totals, parts)

        names = ("loss", "adversarial", "shilling", "reconstruction") if who == "generator" else ("loss",)
        zero = {name: jnp.zeros((), train.weight.dtype) for name in names}
        begin = state.networks, getattr(state.adam, who), zero
        networks, kept, totals = lax.fori_loop(0, batches, learn, begin)
        means = {name: total / batches for name, total in totals.items()}
        return state._replace(networks=networks, adam=state.adam._replace(**{who: kept})), means


# ------------------------------------------------------------------------------------------------ networks


def widths(selected: int) -> list[int]:
    """The generator's hidden layers: thirds of 400 until they are not above the number of selected items.

    >>> widths(3)
    [133, 44, 14, 4, 1]
    """
    found = [FIRST // 3]
    while found[-1] > max(selected, 1):
        found.append(found[-1] // 3)
    return found


def init_layers(key: Key[Array, ""], sizes: list[int]) -> Layers:
    """Dense layers, Glorot normal kernels and biases of 0."""
    pairs = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(pairs))
    draw = lambda key, pair: xavier(*pair) * jax.random.normal(key, pair)
    return [
        {"kernel": draw(k, pair), "bias": jnp.zeros(pair[1])} for k, pair in zip(keys, pairs, strict=True)
    ]


def through(layers: Layers, h: Float[Array, "N A"]) -> Float[Array, "N B"]:
    """Sigmoid layers, the last one linear."""
    *hidden, last = layers
    for layer in hidden:
        h = jax.nn.sigmoid(h @ layer["kernel"] + layer["bias"])
    return h @ last["kernel"] + last["bias"]


def generate(generator: Layers, fillers: Float[Array, "N I"], high: float) -> Float[Array, "N s"]:
    """Ratings of the selected items, in (0, r_max)."""
    return high * jax.nn.sigmoid(through(generator, fillers))


def judge(
    discriminator: Layers,
    batch: Batch,
    written: Float[Array, "N s"],
    target: Bool[Array, " I"],
    selected: Int[Array, " s"],
) -> Float[Array, " N"]:
    """The logit that a profile with the `written` ratings of the selected items is real; targets are hidden from it."""
    rows = batch.fillers.at[:, selected].set(written)
    return through(discriminator, jnp.where(target, 0, rows))[:, 0]


def discriminator_loss(key, networks: Networks, batch: Batch, target, selected, high: float, losses: Losses):
    """Cross-entropy of templates as real and profiles as fake."""
    written = lax.stop_gradient(generate(networks.generator, batch.fillers, high))
    real, fake = (judge(networks.discriminator, batch, row, target, selected) for row in (batch.own, written))
    loss = _mean(batch, jax.nn.softplus(-real) + jax.nn.softplus(fake))
    return loss, {"loss": loss}


def generator_loss(key, networks: Networks, batch: Batch, target, selected, high: float, losses: Losses):
    """The generator's losses and their sum; `key` draws the unrated items that reconstruction reads."""
    written = generate(networks.generator, batch.fillers, high)
    passed = _mean(batch, jax.nn.softplus(-judge(networks.discriminator, batch, written, target, selected)))
    pushed = _mean(batch, jnp.sum((written - high) ** 2, 1)) / max(written.shape[1], 1)
    read = (batch.own > 0) | jax.random.bernoulli(key, losses.unrated, batch.own.shape)
    rebuilt = _mean(batch, jnp.sum(jnp.where(read, (written - batch.own) ** 2, 0), 1))
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(networks.generator))
    loss = losses.adversarial * passed + losses.shilling * pushed + losses.reconstruction * rebuilt
    loss += losses.l2 / 2 * squares
    return loss, {"loss": loss, "adversarial": passed, "shilling": pushed, "reconstruction": rebuilt}


def _mean(batch: Batch, values: Float[Array, " N"]) -> Float[Array, ""]:
    return jnp.vdot(batch.weight, values) / jnp.maximum(jnp.sum(batch.weight), 1)
