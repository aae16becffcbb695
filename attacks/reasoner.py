"""The surrogate of H-CARS: NCR, which also learns from counterfactual explanations of the victim.

Chen, Silvestri, Wang, Zhang, Tolomei, *The dark side of explanations: Poisoning recommender systems with counterfactual
examples*, SIGIR 2023, eqs 2-9. For a pair (u, x) with the explanation "without CF you would not see x":

    c = clause of all premises of u -> x,      c_CF = clause of the premises without CF -> x
    L = L_fa + counterfactual * L_cf + logic * L_reg            sums over all clicks and over all explained pairs

    contrast     L_cf = -sum log sigmoid(-10 cos(c, c_CF))           the two sentences disagree
    false        L_cf = -sum log sigmoid(-10 cos(c_CF, 1))           the second is false
    as_printed   L_cf = -sum log max((1 + cos(c, c_CF)) / 2, 1e-6)   eq. 8, which makes them alike
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bilevel import with_loss
from models import ncr
from models.explain.explanation import Explanations
from models.recommender import Recommender, counts, numbers, one_of

Disagreement = Literal["contrast", "false", "as_printed"]


class Asked(NamedTuple):
    """Explanations with a set, as constants of a training: who, which item, and the items of the set (-1: padding)."""

    user: Any
    item: Any
    removed: Any


def reasoner(
    explanations: Explanations | None = None,
    *,
    surrogate: Recommender | None = None,
    loss: Disagreement = "contrast",
    counterfactual: float = 0.76,
    history: int = 50,
    batch: int = 32,
) -> Recommender:
    """NCR with a counterfactual loss, as a `Recommender`.

    Args:
        explanations: what an API answered about users of the data; None, or none with a set: plain NCR.
        surrogate: NCR to start from; None: `models.ncr.preset("hcars-ml")`.
        loss: how the sentences of a pair are to differ.
        counterfactual: lambda_1 >= 0; the paper has 0.76 on MovieLens and 0.68 on Yelp.
        history: latest items of a user that are premises of the counterfactual sentences, >= 1. A pair with no item of
            its set among them says nothing and is left out, see `live`.
        batch: explained pairs of a step, >= 1, drawn anew and weighed so that an epoch counts each pair once, as it
            does each click.

    Returns:
        A recommender with the parameters and scores of `surrogate`, and another loss.

    Raises:
        ValueError: a number outside its range, an unknown loss, another recommender than NCR.

    Reference: Chen et al., SIGIR 2023, eqs 6-9.

    **Differs from the paper:** eq. 8 as printed rewards sentences that agree, against its own text, and is undefined
    for a negative cosine: "contrast" is ours, "as_printed" is there to compare. Eq. 8 sums over clicked items, but
    explanations exist for recommended ones: those are the x. All of I_u are premises there; here the `history`
    latest, since training costs as much as the longest.

    >>> reasoner().name, reasoner(loss="false").config["loss"]
    ('reasoner', 'false')
    """
    config = {k: v for k, v in locals().items() if k not in ("explanations", "surrogate")}
    one_of("reasoner", "loss", loss, get_args(Disagreement))
    counts("reasoner", history=history, batch=batch)
    numbers("reasoner", 0, counterfactual=counterfactual)
    model = ncr.preset("hcars-ml") if surrogate is None else surrogate
    if model.name != "ncr":
        raise ValueError(
            f"reasoner: surrogate={model!r}; expected models.ncr.ncr(...), which reasons by clauses"
        )
    asked = known_sets(explanations)

    def objective(params, x, data, ctx):
        plain = model.loss(params, x, data, ctx)
        if asked is None:
            return plain
        there = live(data, asked, history).astype(plain.dtype)
        pick = jax.random.choice(jax.random.fold_in(ctx.key, 2), len(there), (batch,), p=there)
        some = Asked(*(jnp.asarray(values)[pick] for values in asked))
        clicks = data.item.shape[0]
        steps = -(-clicks // min(model.config["batch"] or clicks, clicks))
        share = counterfactual * jnp.sum(there) / (steps * batch)
        return plain + share * jnp.sum(disagreement(params, data, some, history, loss))

    return dataclasses.replace(
        model,
        name="reasoner",
        config={**model.config, **config, "explained": 0 if asked is None else len(asked.user)},
        loss=objective,
        trainer=lambda users, items, fakes, events=0: with_loss(
            model.trainer(users, items, fakes, events), objective
        ),
    )


def known_sets(explanations: Explanations | None) -> Asked | None:
    """Those with a set; None if there is none.

    >>> from models.explain.explanation import made
    >>> told = made(np.array([0, 1]), np.array([4, 4]), [[3], None], np.array([1, -1]))
    >>> known_sets(told).removed.tolist()
    [[3]]
    """
    if explanations is None or not np.any(explanations.found):
        return None
    answers = (explanations.user, explanations.item, explanations.removed)
    return Asked(*(np.asarray(values)[np.asarray(explanations.found)] for values in answers))


def live(data: ncr.Data, asked: Asked, history: int) -> Bool[Array, " N"]:
    """Whether an item of each pair's set is among the premises: without one the two sentences are the same.

    Args:
        data: of NCR.
        asked: N pairs and their sets.
        history: latest items that are premises.

    >>> from models.data import Interactions
    >>> data = ncr.prepare(Interactions.from_arrays([0, 0], [2, 3], items=5))
    >>> live(data, Asked(np.array([0, 0]), np.array([4, 4]), np.array([[3], [1]])), 50).tolist()
    [True, False]
    """
    user = jnp.asarray(asked.user)
    items, known = ncr.premises(data, user, data.start[user + 1], history)
    return jnp.any(known[:, :, None] & (items[:, :, None] == jnp.asarray(asked.removed)[:, None]), (1, 2))


def disagreement(
    params: Any, data: ncr.Data, asked: Asked, history: int, loss: Disagreement
) -> Float[Array, " N"]:
    """L_cf of each explained pair.

    Args:
        params, data: of NCR.
        asked: N pairs and their sets.
        history: latest items that are premises.
        loss: see `reasoner`.

    Reference: Chen et al., SIGIR 2023, eqs 7-8. **Differs from the paper:** see `reasoner`.

    >>> from models.data import Interactions
    >>> data = ncr.prepare(Interactions.from_arrays([0, 0], [2, 3], items=5))
    >>> params = ncr.ncr(factors=2).init(jax.random.key(0), 1, 5, 0)
    >>> nothing_removed = Asked(np.array([0]), np.array([4]), np.array([[-1]]))  # log(1 + exp(10)), the cosine is 1
    >>> jax.jit(lambda: disagreement(params, data, nothing_removed, 50, "contrast"))().round(3).tolist()
    [10.0]
    """
    system = ncr.logic_of(params)
    user = jnp.asarray(asked.user)
    items, known = ncr.premises(data, user, data.start[user + 1], history)
    h = params["user"][user]
    events = ncr.event(params, h[:, None], params["item"][items])
    head = ncr.event(params, h, params["item"][asked.item])
    left = known & ~jnp.any(items[:, :, None] == jnp.asarray(asked.removed)[:, None], 2)
    whole, without = (system.either(ncr.clause(system, events, there)[0], head) for there in (known, left))
    return _cost(whole, without, system.true, loss)


def _cost(whole: Array, without: Array, true: Array, loss: Disagreement) -> Array:
    if loss == "false":
        return jax.nn.softplus(ncr.SCALE * ncr.cosine(without, true))
    alike = ncr.cosine(whole, without)
    if loss == "contrast":
        return jax.nn.softplus(ncr.SCALE * alike)
    return -jnp.log(jnp.maximum((1 + alike) / 2, 1e-6))
