"""Black-box attacks by trial and error: propose sets of click sequences, be told what each was worth, learn.

    state = learner.init(key, popularity, targets, attackers)
    while ...:
        trials = learner.ask(state)                     # Profiles with a leading axis: one set of fake users a trial
        state = learner.tell(state, rewards)            # a number a trial, the larger the better
    profiles = learner.finish(state)                    # the best set that was tried

The victim may be anything that gives a number: another library, a service, a person. Where it is an
`attacks.environment.Environment`, `against` makes an `Attack` of the two, compiled from end to end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attacks.attack import Attack
from attacks.environment import Environment, World
from attacks.threat import ThreatModel
from models.data import Interactions, Profiles


class Best(NamedTuple):
    """The best set of click sequences tried so far, and what it was worth (-inf before any)."""

    clicks: Int[Array, "N T"]
    reward: Float[Array, ""]


def no_best(fakes: int, clicks: int, targets: Int[Array, " T"]) -> Best:
    """Before any trial: everybody clicks the first target."""
    return Best(jnp.full((fakes, clicks), targets[0], jnp.int32), jnp.asarray(-jnp.inf))


def better(best: Best, clicks: Int[Array, "M N T"], rewards: Float[Array, " M"]) -> Best:
    """The best of the old one and new trials; of equal ones the older. A reward that is no number counts as -inf."""
    rewards = jnp.where(jnp.isnan(rewards), -jnp.inf, rewards)
    at = jnp.argmax(rewards)
    wins = rewards[at] > best.reward
    return Best(jnp.where(wins, clicks[at], best.clicks), jnp.where(wins, rewards[at], best.reward))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AskTell:
    """An attack that learns from rewards alone. Made by `poisonrec_learner`, `appgrad_learner`.

    Attributes:
        name, config: what it is, for records.
        threat: what the attacker may do; `queries` is the number of trials of all `steps`.
        steps: how often it asks and is told.
        init: `(key, popularity, targets, attackers) -> state`: clicks of each item `(I,)`, ids of the targets, N.
        propose: `state -> proposal`, with the trials in `proposal.clicks` `(M, N, T)`; a pure function of the state.
        learn: `(state, proposal, rewards) -> (state, metrics)`.
        best: `state -> Best`.
        targets: `state -> (targets, I)`, whom the clicks are for and how many items there are.
    """

    name: str
    config: Mapping[str, Any]
    threat: ThreatModel
    steps: int
    init: Callable[..., Any]
    propose: Callable[[Any], Any]
    learn: Callable[[Any, Any, Float[Array, " M"]], tuple[Any, dict[str, Array]]]
    best: Callable[[Any], Best]
    targets: Callable[[Any], tuple[Int[Array, " T"], int]]

    def ask(self, state: Any) -> Profiles:
        """The trials of a step, as profiles with a leading axis; `trial(asked, m)` is one of them."""
        targets, items = self.targets(state)
        make = lambda clicks: Profiles.from_clicks(clicks, targets, items=items)
        return jax.vmap(make)(self.propose(state).clicks)

    def tell(self, state: Any, rewards: Float[Array, " M"]) -> Any:
        """The state after the trials of `ask(state)` have earned `rewards`, one each, in their order.

        Raises:
            ValueError: another number of rewards than trials.
        """
        return self.learn(state, *self._checked(state, rewards))[0]

    def told(self, state: Any, rewards: Float[Array, " M"]) -> tuple[Any, dict[str, Array]]:
        """`tell` with the metrics of the step."""
        return self.learn(state, *self._checked(state, rewards))

    def finish(self, state: Any) -> Profiles:
        """The best set of sequences that was tried."""
        targets, items = self.targets(state)
        return Profiles.from_clicks(self.best(state).clicks, targets, items=items)

    def _checked(self, state: Any, rewards: Any) -> tuple[Any, Float[Array, " M"]]:
        proposal, rewards = self.propose(state), jnp.asarray(rewards, float)
        if rewards.shape != proposal.clicks.shape[:1]:
            raise ValueError(
                f"rewards have shape {rewards.shape}; expected one for each of {proposal.clicks.shape[0]} trials"
            )
        # One trial that broke the victim must not break the policy: it counts as the worst of its step.
        finite = jnp.isfinite(rewards)
        worst = jnp.min(jnp.where(finite, rewards, jnp.inf))
        return proposal, jnp.where(finite, rewards, jnp.where(jnp.any(finite), worst, 0))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"


def trial(asked: Profiles, number: int) -> Profiles:
    """One of the trials of `AskTell.ask`."""
    return jax.tree.map(lambda leaf: leaf[number], asked)


class State(NamedTuple):
    """What is carried from one step to the next: the learner's state, the environment's world, a key."""

    own: Any
    world: World
    key: Key[Array, ""]


def against(learner: AskTell, box: Environment, config: Mapping[str, Any]) -> Attack:
    """An `Attack`: a learner that plays against an environment; pure, so that all of it compiles.

    Its state holds the environment's world, so `attacks.run` snapshots both. A call for other targets than those of the
    environment's world is refused; inside `jit`, where they cannot be seen, it gives NaN rewards. To the learner's
    metrics it adds `lost`, see `attacks.environment.Outcome`: above 0, the rewards are those of a system that the
    update broke.

    Args:
        learner: such as from `poisonrec_learner`.
        box: what it is played against.
        config: the attack's arguments, for records.
    """
    sign = -1 if learner.threat.goal == "demote" else 1

    def init(key, train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        for_world, for_learner, rest = jax.random.split(key, 3)
        fakes = learner.threat.count(train.users)
        world = box.open(for_world, train, targets, fakes)
        if world.targets.shape != targets.shape:
            raise ValueError(
                f"the environment's world has {world.targets.size} targets, the call {targets.size}"
            )
        return State(learner.init(for_learner, train.popularity(), targets, fakes), world, rest)

    def step(state: State, train: Interactions, targets: Int[Array, " T"], test=None):
        key, for_rewards = jax.random.split(state.key)
        proposal = learner.propose(state.own)
        found = box.rewards(state.world, proposal.clicks, for_rewards)
        ours = jnp.all(state.world.targets == targets)
        own, metrics = learner.learn(state.own, proposal, sign * jnp.where(ours, found.recnum, jnp.nan))
        return State(own, state.world, key), metrics | {"lost": jnp.mean(found.lost)}

    def finish(state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        return Profiles.from_clicks(learner.best(state.own).clicks, targets, items=train.items)

    show = ("mean_reward", "best_reward", "target_share")
    return Attack(
        learner.name, config, learner.threat, learner.steps, init, step, finish, False, show, only=box.targets
    )
