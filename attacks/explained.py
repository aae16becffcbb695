"""What an attacker makes of explanations without reasoning: asks for them, and takes their sets for negatives.

Chen, Silvestri, Wang, Zhang, Tolomei, SIGIR 2023, sections 5.1 and 5.2. The clicks of a set that explains an item are,
to an attack that learns from clicks, no clicks (`as_negatives`), or zeros that weigh as much as one (`emphasized`).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bilevel import with_loss
from models import ncf, pairs
from models.data import Interactions
from models.explain.explanation import Explanations
from models.recommender import Recommender


def collect(api: Any, best: Int[np.ndarray, " U"], *, share: float = 0.6, seed: int = 0) -> Explanations:
    """Ask an explanation API why a random share of the visible users see their best item.

    Args:
        api: anything with `explain(users, items)`, such as `models.explain.ExplanationAPI`.
        best: the item that is recommended first to each visible user, from the platform's lists.
        share: of the users that are asked about, in (0, 1]; the paper says 60%.
        seed: decides which.

    Raises:
        ValueError: a share outside its range; whatever the API raises.

    Reference: Chen et al., SIGIR 2023, section 5.1. **Differs from the paper:** "60% interactions generate
    counterfactuals" is read as 60% of the users.

    >>> api = type("Api", (), {"explain": lambda self, users, items: (users.tolist(), items.tolist())})()
    >>> collect(api, np.array([7, 8, 9]), share=1.0)
    ([0, 1, 2], [7, 8, 9])
    """
    if not 0 < share <= 1:
        raise ValueError(f"collect: share={share!r}; expected a share in (0, 1]")
    count = max(1, round(share * len(best)))
    users = np.sort(np.random.default_rng(seed).permutation(len(best))[:count])
    return api.explain(users, np.asarray(best)[users])


def as_negatives(train: Interactions, explanations: Explanations) -> Interactions:
    """What an attack that knows no reasoning learns from explanations: the clicks of their sets count as not clicked.

    A recommender of clicks takes what a user has not clicked for its negatives, drawn or weighed, and popularity
    counts clicks, so that this one view serves every surrogate and every heuristic (host only).

    Args:
        train: what the attacker sees.
        explanations: about its users; those without a set change nothing, and so do clicks it does not see.

    Returns:
        The same users and items, without the (user, item) pairs of the sets.

    Raises:
        ValueError: explanations of users that the data do not have.

    Reference: Chen et al., SIGIR 2023, section 5.2: counterfactuals are "also used as negative samples for DL-Attack,
    RAPU-R, and Bandwagon".

    **Differs from the paper:** which says no more than that. Its counterfactual is a set of clicks, so these are the
    negatives. The other reading, that the explained item is one for the user without the set, tells a recommender
    without premises nothing: that item is not clicked anyway. Here a pair is a negative like any other: of weight 1 in
    WRMF, and drawn as often as another by DL-Attack's NeuMF (`emphasized` gives it a click's weight in both). Bandwagon
    has no model, only counts.

    >>> from models.explain.explanation import made
    >>> train = Interactions.from_arrays([0, 0, 1], [2, 3, 3], items=5)
    >>> as_negatives(train, made(np.array([0]), np.array([4]), [[3]], np.array([1]))).dense().tolist()
    [[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]]
    """
    user, item = _pairs(explanations)
    _known_users("as_negatives", np.asarray(explanations.user), train.users)
    code = lambda user, item: np.asarray(user, np.int64) * train.items + np.asarray(item, np.int64)
    return train.select(train.real() & ~np.isin(code(train.user, train.item), code(user, item)))


def emphasized(surrogate: Recommender, explanations: Explanations) -> Recommender:
    """WRMF or NCF to which the clicks of the sets are zeros that weigh as much as clicks, for `as_negatives`'s view.

        WRMF          L + (w+ - 1) sum over the pairs (u, i) of the sets of (p_u . q_i)^2
        NeuMF, GMF    L + 1 / ((1 + N) B) sum over the pairs of a step of log(1 + exp(s_ui))

    NCF sees every pair once an epoch, as it sees every click, among the `N` negatives of each of a step's `B` clicks.

    Args:
        surrogate: `models.wrmf.wrmf(...)`, which gives cells without a click the weight 1; `models.ncf.neumf(...)` or
            `gmf(...)`, of clicks.
        explanations: about users of the data it will be trained on. A pair counts once; one that the attacker does not
            see is a zero too.

    Returns:
        The same recommender with this loss. Its configuration has the number of pairs: WRMF's as `negatives`, NCF's as
        `zeros`.

    Raises:
        ValueError: another recommender (of those here only WRMF by SGD has a w+ and a loss to add to, and only NCF of
            clicks draws the negatives that DL-Attack learns from), or in training, explanations of users that the data
            do not have.

    Reference: Chen et al., SIGIR 2023, section 5.2, see `as_negatives`.

    **Differs from the paper:** which names no weight; w+ is our reading, in NCF a click's, which is a negative's too.
    NCF's penalty of the embeddings that a step looks up does not count the pairs.

    >>> from models import ncf, wrmf
    >>> from models.explain.explanation import made
    >>> told = made(np.array([0]), np.array([4]), [[3, 2]], np.array([1]))
    >>> emphasized(wrmf.wrmf(factors=2), told).config["negatives"], emphasized(ncf.neumf(), told).config["zeros"]
    (2, 2)
    """
    user, item = _pairs(explanations)
    if surrogate.name == "wrmf":
        more, count = partial(_squared, user, item, surrogate.config["weight"] - 1), "negatives"
    elif surrogate.name in ("neumf", "gmf") and surrogate.config["objective"] == "clicks":
        more, count = partial(_classified, user, item, surrogate.config["negatives"]), "zeros"
    else:
        raise ValueError(
            f"emphasized: surrogate={surrogate!r}; expected models.wrmf.wrmf(...), which has a w+, or "
            "models.ncf.neumf(...) or gmf(...) of clicks"
        )

    def objective(params, x, data, ctx):
        _known_users("emphasized", user, params["user"].shape[0])
        return surrogate.loss(params, x, data, ctx) + more(params, x, data, ctx)

    return dataclasses.replace(
        surrogate,
        config={**surrogate.config, count: len(user)},
        loss=objective,
        trainer=lambda users, items, fakes, events=0: with_loss(
            surrogate.trainer(users, items, fakes, events), objective
        ),
    )


def _squared(
    user: np.ndarray, item: np.ndarray, weight: float, params: Any, x: Array, data: Any, ctx: Any
) -> Array:
    """`weight` times the pairs' squared errors as zeros, in WRMF."""
    score = jnp.sum(params["user"][user] * params["item"][item], 1)
    if ctx.batch is not None:  # a step has the pairs of its users
        index, real = ctx.batch
        inside = (
            jnp.zeros(params["user"].shape[0], score.dtype)
            .at[index]
            .max(real.astype(score.dtype), mode="drop")
        )
        score *= inside[user]
    return weight * jnp.vdot(score, score)


def _classified(
    user: np.ndarray, item: np.ndarray, negatives: int, params: Any, x: Array, data: pairs.Data, ctx: Any
) -> Array:
    """The cross-entropy of a step's share of the pairs as zeros, in NCF, relative to the clicks of the step."""
    clicks = pairs.draw(data, x, ctx, negatives).weight
    slots = data.user.shape[0]
    cells = jnp.zeros((1, len(user)), x.dtype)  # dealt out like a fake user's: each once an epoch
    _, at, inside = pairs.share(cells, ctx, slots, slots if ctx.batch is None else ctx.batch[0].shape[0])
    s, _ = ncf.rated(params, jnp.asarray(user)[at], jnp.asarray(item)[at][:, None])
    total = jnp.sum(clicks)
    share = jnp.vdot(inside.astype(x.dtype), jax.nn.softplus(s[:, 0])) / jnp.where(total > 0, total, 1)
    return data.sound * share / (1 + negatives)


def _pairs(explanations: Explanations) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The users and clicks of the sets, each pair once."""
    who, removed = np.asarray(explanations.user), np.asarray(explanations.removed)
    there = removed >= 0
    found = np.stack([np.broadcast_to(who[:, None], there.shape)[there], removed[there]])
    user, item = np.unique(found, axis=1)
    return user, item


def _known_users(name: str, who: np.ndarray, users: int) -> None:
    if np.any((who < 0) | (who >= users)):
        raise ValueError(
            f"{name}: explanations of users {who.min()}..{who.max()}; the data have 0..{users - 1}"
        )
