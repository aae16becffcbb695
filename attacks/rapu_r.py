"""RAPU-R: profiles found by walking a recommender's training backwards, with one trained surrogate.

Zhang, Tian, Li, Su, Yang, Zhao, Gao, "Data Poisoning Attack against Recommender System Using Incomplete and Perturbed
Data", KDD 2021 (RAPU), section 4, Alg. 3, eq. 7. For a target t and real users V:

    shift       q' = q_t + eps,  eps = mean_{u in V} p_u        the direction in which V's scores of t grow fastest
    controlled  p* = argmin_p (1 - p . q')^2                    the fake user that pulls q_t to q'
    proxy       q* = argmin_q (1 - p* . q)^2                    the items that make a fake user p*
    search      the B items nearest to q* among the most clicked ones

Both minimizers form a hyperplane; with those of least norm the two middle steps undo each other: q* = q'.
"""

from __future__ import annotations

import numbers
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attacks.attack import Attack
from attacks.fillers import most_clicked, share_of
from attacks.threat import Goal, ThreatModel, fixed
from attacks.tracks import one_track
from models import wrmf
from models.data import Interactions, Profiles
from models.recommender import Recommender
from models.train import fit

Mode = Literal["per_target_round_robin", "joint"]
Similarity = Literal["dot", "cosine", "l2"]


class State(NamedTuple):
    """The finished rows; there are no outer steps."""

    rows: Float[Array, "F I"]


@one_track("implicit", "rapu_r fills rows of 0 and 1, which have no order")
def rapu_r(
    surrogate: Recommender,
    *,
    fakes: int | float,
    budget: int,
    mode: Mode = "per_target_round_robin",
    resample_users: bool = False,
    user_share: float = 0.1,
    pool: float = 0.1,
    similarity: Similarity = "dot",
    goal: Goal = "promote",
) -> Attack:
    """RAPU-R: every fake user clicks the targets and the `budget` popular items nearest to `q* = q_t + eps_t`.

    Args:
        surrogate: a recommender whose score is an inner product of a user's and an item's factors (wrmf, als, bpr,
            lightgcn, ...); trained once.
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: non-target items a fake user clicks, in `[0, I - T]`.
        mode: `"per_target_round_robin"`: fake user m serves target `m mod T` with that target's own eps;
            `"joint"`: the same with `eps = sum_t eps_t` for all.
        resample_users: draw the users V anew for every fake user, instead of once for every target.
        user_share: share of the real users in V, in (0, 1].
        pool: share of the items that are candidates, the most clicked non-targets, in (0, 1]; `int(pool I)` of
            them, or `budget` if that is more.
        similarity: nearness to q*: `"dot"`, `"cosine"`, or `"l2"` (Euclidean distance).
        goal: `"promote"`; it serves no other.

    Returns:
        An attack without outer steps; `knowledge="interactions"`. Every row has exactly `budget + T` clicks.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or a surrogate without factors.

    Reference: Zhang et al. (RAPU), KDD 2021, section 4.1, Alg. 3, eqs 5-7; the share of users, the dot product and the
    assignment of targets to fake users are those of the released code.

    **Differs from the paper:** eq. 7 lacks the square, without which it is unbounded. Alg. 3 sums eps over the targets
    (`mode="joint"`) and leaves open whose q the fake user serves; the code has one eps and one list per target, and
    adds to it the mean of q_t's components, which we do not. The code leaves targets among the candidates. The pool
    grows to the budget, so that every profile is full.

    **How it is detected and what mitigates it:** with `per_target_round_robin` there are at most T distinct profiles,
    so any duplicate or group detector finds them (`resample_users` varies them a little); all are made of the few most
    popular items beside cold targets. On MovieLens-100K a pool of 168 leaves a budget of 100 little choice, and the
    effect is that of clicking the most popular items (`attacks.top_popular`). Limits on account creation bound `F`.

    >>> attack = rapu_r(wrmf.wrmf(factors=2, epochs=3), fakes=3, budget=2)
    >>> train = Interactions.from_dense((jnp.arange(40).reshape(5, 8) % 3 == 0).astype(float))
    >>> attack(jax.random.key(0), train, jnp.array([1, 4])).to_rows().sum(axis=1).tolist()
    [4.0, 4.0, 4.0]
    """
    config = {**locals()}
    _check(surrogate, budget, mode, resample_users, similarity, goal)
    _check_share(user_share=user_share, pool=pool)
    threat = ThreatModel(fakes=fakes, budget=budget, goal=goal, knowledge="interactions")

    def init(key: Key[Array, ""], train: Interactions, targets: Int[Array, " T"], initial=None) -> State:
        key_fit, key_users = jax.random.split(key)
        count = threat.count(train.users)
        factors = fit(surrogate, train, key_fit).embedding
        serve = jnp.arange(count if resample_users else targets.size) % targets.size
        if mode == "joint":  # a set of users for every target, and for every fake user if resampled
            sets = count if resample_users else 1
            eps = user_means(key_users, factors["user"], sets * targets.size, user_share)
            eps = eps.reshape(sets, targets.size, -1).sum(1)
        else:
            eps = user_means(key_users, factors["user"], serve.size, user_share)
        ideal = proxy(controlled(factors["item"][targets[serve]] + eps))
        candidates = most_clicked(train, targets, max(share_of(pool, train.items), budget))
        rows = nearest(ideal, factors["item"], candidates, budget, similarity)
        return State(rows[jnp.arange(count) % serve.size].at[:, targets].set(1))

    def finish(state: State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        return Profiles.from_rows(state.rows, targets, clicks_targets=True, width=budget + targets.size)

    return Attack(
        "rapu_r", config, threat, 0, init, lambda state, train, targets, test=None: (state, {}), finish
    )


# ------------------------------------------------------------------------------------------------ the steps


def user_means(
    key: Key[Array, ""], user: Float[Array, "U D"], count: int, share: float
) -> Float[Array, "N D"]:
    """`eps = mean_{u in V} p_u` for `count` sets V of `max(1, int(share U))` users, each without replacement.

    >>> user_means(jax.random.key(0), jnp.ones((10, 2)), 3, 0.1).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    users = user.shape[0]
    size = max(1, share_of(share, users))
    mean = lambda key: user[jax.random.permutation(key, users)[:size]].mean(0)
    return lax.map(mean, jax.random.split(key, count))


def controlled(
    shifted: Float[Array, "N D"], *, weight: float = 1.0, ridge: float = 0.0
) -> Float[Array, "N D"]:
    """The fake user `p* = argmin_p weight (1 - p . q')^2 + ridge |p|^2 = weight q' / (weight |q'|^2 + ridge)`.

    Without a ridge it is the minimizer of least norm; 0 where `q'` is 0.

    >>> controlled(jnp.array([[3.0, 4.0]])).tolist()
    [[0.12, 0.16]]
    """
    square = weight * jnp.sum(shifted**2, -1, keepdims=True) + ridge
    return weight * shifted / jnp.where(square > 0, square, 1)


def proxy(fake: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """The ideal item `q* = argmin_q (1 - p* . q)^2` of least norm (eq. 7, squared); 0 where `p*` is 0."""
    return controlled(fake)


def nearest(
    ideal: Float[Array, "N D"],
    item: Float[Array, "I D"],
    candidates: Int[Array, " C"],
    budget: int,
    similarity: Similarity,
) -> Float[Array, "N I"]:
    """Rows with a 1 at the `budget` candidates nearest to each ideal item; equal ones by ascending id.

    >>> item = jnp.array([[1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    >>> nearest(jnp.array([[1.0, 1.0]]), item, jnp.arange(3), 2, "dot").tolist()
    [[1.0, 1.0, 0.0]]
    """
    offered = item[candidates]
    near = ideal @ offered.T
    if similarity == "cosine":
        norm = jnp.linalg.norm(offered, axis=-1)
        near = near / jnp.where(norm > 0, norm, 1)  # the norm of q* is the same for all of a row's candidates
    elif similarity == "l2":
        near = near - jnp.sum(offered**2, -1) / 2  # -|q* - q|^2 / 2 up to a constant of the row
    chosen = candidates[lax.top_k(near, budget)[1]]
    return jnp.zeros((ideal.shape[0], item.shape[0])).at[jnp.arange(ideal.shape[0])[:, None], chosen].set(1)


# ------------------------------------------------------------------------------------------------ checks


def _check(surrogate: Any, budget: Any, mode: Any, resample_users: Any, similarity: Any, goal: Any) -> None:
    if not isinstance(surrogate, Recommender):
        raise TypeError(f"surrogate is {surrogate!r}; expected a Recommender, such as models.wrmf.wrmf()")
    if surrogate.score is not wrmf.score:
        raise ValueError(
            f"surrogate is {surrogate.name}, whose score is no inner product of factors, so there is nothing to "
            "reverse; give one such as models.wrmf.wrmf(), als, bpr or lightgcn"
        )
    budget = fixed("rapu_r", budget)
    for name, value, options in (("mode", mode, Mode), ("similarity", similarity, Similarity)):
        if value not in get_args(options):
            raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, get_args(options)))}")
    if not isinstance(resample_users, bool):
        raise TypeError(f"resample_users is {resample_users!r}; expected True or False")
    if goal != "promote":
        raise ValueError(
            f"goal is {goal!r}; rapu_r serves 'promote' only: its fake users pull the targets toward real users"
        )


def _check_share(**shares: Any) -> None:
    for name, value in shares.items():
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not 0 < float(value) <= 1:
            raise ValueError(f"{name} is {value!r}; expected a share in (0, 1]")
