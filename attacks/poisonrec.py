"""PoisonRec: click sequences against a black box, by reinforcement learning.

Song, Zhao et al., "PoisonRec: An Adaptive Data Poisoning Framework for Attacking Black-box Recommender Systems",
ICDE 2020, Algorithm 1:

    for step = 1, 2, ...:
        sample M sets of N trajectories of T clicks from the policy pi_theta'
        inject each set into the clean system, read its RecNum                              R(tau), eqs 1, 4
        K times: ascend PPO's clipped objective on B of the sets                            eqs 7-9, attacks/policy.py

The attacker sees the items' popularity and one number a trial. What it chooses from (one softmax or a tree) is in
`attacks/tree.py`, the system it plays against in `attacks/environment.py`.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from attacks import policy
from attacks.asktell import AskTell, Best, against, better, no_best
from attacks.attack import Attack
from attacks.environment import Environment
from attacks.policy import Trajectories
from attacks.threat import Goal, ThreatModel
from attacks.tracks import one_track
from attacks.tree import Design, Space, check_design, make_space


class State(NamedTuple):
    """The policy, its optimizer, what it chooses from, the best set so far, and a key."""

    params: policy.Params
    opt: optax.OptState
    space: Space
    best: Best
    key: Key[Array, ""]


@one_track("sequence", "poisonrec learns the order of clicks, as its black boxes read them")
def poisonrec(
    environment: Environment,
    *,
    fakes: int | float = 20,
    clicks: int = 20,
    design: Design = "bcbt-popular",
    steps: int = 100,
    sets: int = 32,
    epochs: int = 3,
    batch: int | None = None,
    learning_rate: float = 2e-3,
    clip: float = 0.1,
    width: int = 64,
    scale: float = 0.1,
    goal: Goal = "promote",
) -> Attack:
    """PoisonRec against an environment: `theta <- theta + alpha grad J(theta)` from RecNum alone.

    Args:
        environment: the black box, from `attacks.environment`; it is asked `sets * steps` times.
        fakes: attackers N, or fraction of the real users in (0, 1).
        clicks: T, clicks of each, targets and repeats included, >= 1.
        design: action space: "plain", "bplain", "bcbt-popular" or "bcbt-random", see `attacks.tree`.
        steps: training steps, >= 1.
        sets: M, sets of trajectories tried in a step, >= 2 (their rewards are compared).
        epochs: K, steps of the optimizer on them, >= 1.
        batch: B, sets of an epoch, 2 to `sets`; `None`: all.
        learning_rate: of Adam, > 0.
        clip: epsilon of PPO, in (0, 1).
        width: of all embeddings and layers, >= 1.
        scale: standard deviation of the initial embeddings, > 0.
        goal: `"promote"`: reward RecNum; `"demote"`: reward -RecNum. RecNum knows no availability.

    Returns:
        An attack on the `"sequence"` track; `knowledge="popularity"`, `queries = sets * steps`. Its profiles are the
        best set tried in any step. Its history has `mean_reward` and `best_reward` (of the `sets` of the step),
        `target_share` (clicks on targets, of all), `loss` (`-mean_reward`), `lost` (share of users whose scores an
        update broke). The rewards of a step are those of the policy after the updates before it.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of its range.

    Reference: Song et al., ICDE 2020, Algorithm 1 and section IV-A.

    **Differs from the paper:** it states no number of steps (100 here), no initialization, and prints a gradient that
    goes on moving clipped decisions (see `attacks.policy.surrogate`); it reports the final policy, here the best set is
    returned: `fresh` samples sets of a policy, whose mean is the paper's number. `goal="demote"` is ours.

    **How it is detected and what mitigates it:** a few accounts click cold items many times in a row, from the first
    day of the item on: limits on repeated clicks, on the share of an account's clicks that a new item may take, and
    counting a user once (not a click) take most of it away. The attack learns by trial: every trial is N accounts and
    a change of a page view count, so the trials (thousands) are what shows first; noise or delay in the counts that
    sellers see makes each worth less. Detectors of sequences see alternation (CoVisitation) and runs (ItemPop).

    >>> from attacks.environment import environment
    >>> from models.data import Interactions
    >>> from models.itempop import itempop
    >>> data = Interactions.from_arrays([0, 0, 1], [0, 1, 1], items=6, time=[0, 1, 0], track="sequence")
    >>> attack = poisonrec(environment(itempop(), candidates=3, k=1), fakes=2, clicks=3, steps=2, sets=4, width=4)
    >>> profiles, history = attack.trace(jax.random.key(0), data, jnp.array([4, 5]))
    >>> profiles.clicks.shape, history["mean_reward"].shape
    ((2, 3), (2,))
    """
    config = {**locals()}
    if not isinstance(environment, Environment):
        raise TypeError(
            f"environment is {environment!r}; expected attacks.environment(model, ...). A victim outside "
            "JAX is played with poisonrec_learner and attacks.play"
        )
    learner = poisonrec_learner(**{name: value for name, value in config.items() if name != "environment"})
    return against(learner, environment, config)


@one_track("sequence", "poisonrec learns the order of clicks, as its black boxes read them")
def poisonrec_learner(
    *,
    fakes: int | float = 20,
    clicks: int = 20,
    design: Design = "bcbt-popular",
    steps: int = 100,
    sets: int = 32,
    epochs: int = 3,
    batch: int | None = None,
    learning_rate: float = 2e-3,
    clip: float = 0.1,
    width: int = 64,
    scale: float = 0.1,
    goal: Goal = "promote",
) -> AskTell:
    """PoisonRec in ask/tell form, for a victim outside JAX.

    Args:
        fakes, clicks, design, steps, sets, epochs, batch, learning_rate, clip, width, scale, goal: as in `poisonrec`.

    Returns:
        An `AskTell`, such as `attacks.play` plays. Rewards are told as they are to be maximized: RecNum, or for
        `goal="demote"` its negative (`attacks.play` does that).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of its range.

    Reference: Song et al., ICDE 2020, Algorithm 1.

    **Differs from the paper:** see `poisonrec`.

    **How it is detected and what mitigates it:** see `poisonrec`: by the trials first, which here are real ones.

    >>> learner = poisonrec_learner(fakes=2, clicks=3, sets=4, width=4)
    >>> state = learner.init(jax.random.key(0), jnp.arange(6), jnp.array([0]), 2)
    >>> learner.ask(state).clicks.shape
    (4, 2, 3)
    >>> state = learner.tell(state, [1.0, 0.0, 3.0, 2.0])
    >>> learner.finish(state).validate(clicks=3)
    Profiles(2 fakes x 6 items, sequence, clicks)
    """
    config = {**locals()}
    _check(config)
    optimizer = optax.adam(learning_rate)
    B = sets if batch is None else batch

    def init(key, popularity: Int[Array, " I"], targets: Int[Array, " T"], attackers: int) -> State:
        for_space, for_policy, rest = jax.random.split(key, 3)
        space = make_space(design, for_space, jnp.asarray(popularity), jnp.asarray(targets, jnp.int32))
        params = policy.init(for_policy, space, attackers, width=width, scale=scale)
        return State(params, optimizer.init(params), space, no_best(attackers, clicks, space.targets), rest)

    def propose(state: State) -> Trajectories:
        return policy.sample(
            state.params, state.space, jax.random.fold_in(state.key, 0), sets=sets, clicks=clicks
        )

    def learn(
        state: State, made: Trajectories, rewards: Float[Array, " M"]
    ) -> tuple[State, dict[str, Array]]:
        key, for_batches = jax.random.split(jax.random.fold_in(state.key, 1))
        params, opt = policy.improve(
            state.params,
            state.opt,
            optimizer,
            state.space,
            made,
            rewards,
            for_batches,
            epochs=epochs,
            batch=B,
            clip=clip,
        )
        metrics = {
            "loss": -jnp.mean(rewards),
            "mean_reward": jnp.mean(rewards),
            "best_reward": jnp.max(rewards),
            "target_share": policy.target_share(made.clicks, state.space.targets),
        }
        return State(params, opt, state.space, better(state.best, made.clicks, rewards), key), metrics

    of = lambda state: (state.space.targets, state.space.item.shape[0])
    threat = ThreatModel(
        fakes=fakes, goal=goal, track="sequence", knowledge="popularity", clicks=clicks, queries=sets * steps
    )
    return AskTell("poisonrec", config, threat, steps, init, propose, learn, lambda state: state.best, of)


def fresh(state: State, key: Key[Array, ""], *, sets: int = 10) -> Int[Array, "M N T"]:
    """Sets of trajectories of the policy as it is: the mean of their RecNum is the number the paper reports.

    Args:
        state: of the learner; of an attack, its state's `own` (the driver hands it to `on_block`).
        key: consumed.
        sets: how many.

    Reference: Song et al., ICDE 2020, section IV-D. **Differs from the paper:** it does not say over how many sets.
    """
    clicks = state.best.clicks.shape[-1]
    return policy.sample(state.params, state.space, key, sets=sets, clicks=clicks).clicks


def _check(config: dict[str, Any]) -> None:
    """Refuse what has no meaning; the threat model checks fakes, clicks and goal."""
    check_design(config["design"])
    for name, low in (("steps", 1), ("sets", 2), ("epochs", 1), ("width", 1), ("batch", 2), ("clicks", 1)):
        value = config[name]
        if name == "batch" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
            raise ValueError(f"{name} is {value!r}; expected an integer >= {low}")
    if config["batch"] is not None and config["batch"] > config["sets"]:
        raise ValueError(f"batch is {config['batch']}, more than the {config['sets']} sets of a step")
    for name, high in (("learning_rate", math.inf), ("clip", 1.0), ("scale", math.inf)):
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < high:
            raise ValueError(
                f"{name} is {value!r}; expected a number above 0" + (", below 1" if high == 1 else "")
            )
    if config["goal"] == "availability":
        raise ValueError(
            "goal is 'availability', but RecNum counts targets: it serves 'promote' and 'demote'; use revadv or pga"
        )
