"""What an attacker learns from explanations: asked for, and added to the training of a surrogate.

Chen, Silvestri, Wang, Zhang, Tolomei, "The Dark Side of Explanations: Poisoning Recommender Systems with Counterfactual
Examples", SIGIR 2023 (H-CARS), section 4.1, eqs 7-9. Without the set CF of its clicks, user u would not be recommended
x. With `c+` the sentence "u's clicks imply x" of a logical surrogate and `c_CF` the one whose premises lack CF,

    L = L_fa + lambda1 L_cf + lambda2 R,      L_cf = -sum over (u, x) of log sigmoid(-10 cos(c+, c_CF))

A surrogate without sentences takes the pair (u, x) for a negative sample (section 5.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from bilevel import with_loss
from models import ncf, ncr
from models.explain.explanation import Explanations
from models.recommender import Recommender, numbers, one_of

Kind = Literal["contrast", "false", "as_printed"]
KINDS = get_args(Kind)


class Explainer(Protocol):
    """Whoever answers why items are recommended to users, such as `models.explain.ExplanationAPI`."""

    def explain(self, users: Any, items: Any) -> Explanations:
        """The sets for N pairs of user and item."""
        ...


class Told(NamedTuple):
    """The explanations that name a set: user, item and the set's items, padded with -1."""

    user: Int[Array, " N"]
    item: Int[Array, " N"]
    removed: Int[Array, "N M"]


class Sentences(NamedTuple):
    """Items of the premises, which of them `c+` has and which `c_CF` has."""

    premises: Int[Array, "N H"]
    known: Bool[Array, "N H"]
    kept: Bool[Array, "N H"]


def collect_counterfactuals(
    api: Explainer,
    recommendations: Int[ArrayLike, "U K"],
    *,
    share: float = 0.6,
    key: Key[Array, ""],
    users: Int[ArrayLike, " V"] | None = None,
) -> Explanations:
    """Ask an explanation API why a random share of the users are recommended their best item.

    Args:
        api: what answers.
        recommendations: (U, K) lists of all users, best item first.
        share: of the users that are asked about, in (0, 1]; at least one is.
        key: draws them.
        users: ids of the users the attacker sees; None: all.

    Returns:
        One answer a user asked about, in ascending order of the users.

    Raises:
        ValueError: a share out of its range, or nobody to ask about.

    Reference: Chen et al., SIGIR 2023, section 5.2.

    **Differs from the paper:** "60% interactions generate CFs" does not say of which; ACCENT explains the best item of
    a list, so we ask for that of 60% of the users.

    >>> from models.explain.explanation import made
    >>> class Api:
    ...     def explain(self, users, items):
    ...         return made(users, items, [[0]] * len(users), items)
    >>> collect_counterfactuals(Api(), np.array([[4], [5], [6]]), share=0.7, key=jax.random.key(0)).user.size
    2
    """
    lists = np.asarray(recommendations)
    seen = np.arange(len(lists)) if users is None else np.asarray(users)
    numbers("collect_counterfactuals", 0, open_end=True, share=share)
    if share > 1 or not seen.size:
        raise ValueError(
            f"collect_counterfactuals: share={share!r} of {seen.size} users; expected (0, 1] of at least one"
        )
    count = max(1, int(share * seen.size + 1e-9))  # 0.6 * 5 must not fall below 3
    asked = np.sort(seen[np.asarray(jax.random.permutation(key, seen.size))[:count]])
    return api.explain(asked, lists[asked, 0])


def with_counterfactuals(
    model: Recommender, explanations: Explanations, *, lambda1: float = 0.76, kind: Kind = "contrast"
) -> Recommender:
    """NCR that learns from counterfactual explanations too: `L_fa + lambda1 L_cf + lambda2 R`.

        contrast     L_cf = -sum log sigmoid(-10 cos(c+, c_CF))
        false        L_cf = -sum log sigmoid(-10 cos(c_CF, 1))
        as_printed   L_cf = -sum log max((1 + cos(c+, c_CF)) / 2, 1e-6)

    Args:
        model: `models.ncr.ncr`; its `logic` is lambda2.
        explanations: of users and items of the data it will be fitted to.
        lambda1: >= 0.
        kind: which L_cf.

    Returns:
        A recommender that differs in its training only. Every explanation counts once an epoch.

    Raises:
        ValueError: another recommender, a negative lambda1 or an unknown kind; in training: ids the data do not have.

    Reference: Chen et al., SIGIR 2023, eqs 7-9.

    **Differs from the paper:** eq. 8 as printed makes the two sentences alike, against the text ("very distinct"), and
    is undefined where the cosine is not positive; `"contrast"` is what the text asks for. Eq. 8 sums over clicked
    items, of which there is no counterfactual: x is the item explained. Premises are the set and the last
    `max_history` other clicks, not all of them, as in the rest of the training; the set is known to the attacker even
    where the clicks in it are not. An explanation that leaves no other click does not count.

    >>> from models.explain.explanation import made
    >>> told = made(np.array([0]), np.array([2]), [[1]], np.array([3]))
    >>> with_counterfactuals(ncr.ncr(factors=4), told, kind="false").name
    'counterfactual-ncr'
    """
    if model.name != "ncr":
        raise ValueError(
            f"with_counterfactuals: model is {model.name}; sentences are those of models.ncr.ncr(). Other recommenders "
            "take counterfactuals for negative samples: with_negatives"
        )
    numbers("with_counterfactuals", 0, lambda1=lambda1)
    one_of("with_counterfactuals", "kind", kind, KINDS)
    told, length = _told(explanations), model.config["max_history"]

    def extra(params, data, ctx, index, inside):
        _inside(explanations, params["user"].shape[0], params["item"].shape[0])
        here = Told(*(jnp.asarray(column)[index] for column in told))
        order = jax.random.fold_in(ctx.key, 2)
        return lambda1 * data.sound * loss(params, here, data, inside, order, kind=kind, length=length)

    more = {"counterfactuals": explanations, "lambda1": lambda1, "kind": kind}
    return _added(model, f"counterfactual-{model.name}", more, len(told.user), extra)


def with_negatives(model: Recommender, explanations: Explanations) -> Recommender:
    """A recommender of clicks that takes every explained pair (u, x) for a zero with the weight of a click.

        wrmf         L + w+ sum of s_ux^2
        neumf, gmf   L + mean over the clicks of sum of log(1 + exp(s_ux)) / (1 + negatives)

    Args:
        model: `models.wrmf.wrmf`, `models.ncf.neumf` or `models.ncf.gmf` of clicks.
        explanations: of users and items of the data it will be fitted to; those without a set do not count.

    Returns:
        A recommender that differs in its training only. Every pair counts once an epoch.

    Raises:
        ValueError: another recommender, whose loss has no zeros; in training: ids the data do not have.

    Reference: Chen et al., SIGIR 2023, section 5.2 ("also used as negative samples").

    **Differs from the paper:** it does not say how. The user would be recommended x less *without* CF; as a zero of the
    user who still has CF the pair contradicts what the black box recommends.

    >>> from models.explain.explanation import made
    >>> told = made(np.array([0]), np.array([2]), [[1]], np.array([3]))
    >>> with_negatives(ncf.gmf(factors=4), told).name
    'negatives-gmf'
    """
    squared = model.name == "wrmf"
    if not squared and (model.name not in ("neumf", "gmf") or model.config.get("objective") == "ratings"):
        raise ValueError(
            f"with_negatives: model is {model.name}, whose loss has no zeros to add; expected wrmf, neumf or gmf of "
            "clicks"
        )
    told = _told(explanations)

    def extra(params, data, ctx, index, inside):
        _inside(explanations, params["user"].shape[0], params["item"].shape[0])
        user, item = (jnp.asarray(column)[index] for column in told[:2])
        if squared:
            s = jnp.sum(params["user"][user] * params["item"][item], -1)
            return model.config["weight"] * data.sound * jnp.vdot(inside.astype(s.dtype), s**2)
        s = ncf.rated(params, user, item[:, None])[0][:, 0]
        clicks = data.real if ctx.batch is None else data.real[ctx.batch.index] & ctx.batch.mask
        each = (1 + model.config["negatives"]) * jnp.maximum(jnp.sum(clicks), 1)
        return data.sound * jnp.vdot(inside.astype(s.dtype), jax.nn.softplus(s)) / each

    return _added(model, f"negatives-{model.name}", {"pairs": explanations}, len(told.user), extra)


def _added(
    model: Recommender,
    name: str,
    more: dict[str, Any],
    count: int,
    extra: Callable[..., Float[Array, ""]],
) -> Recommender:
    """The recommender with `extra(params, data, ctx, index, inside)` in its loss, over the step's share of `count`."""

    def objective(epoch: int):
        def total(params, x, data, ctx):
            plain = model.loss(params, x, data, ctx)
            if not count:
                return plain
            turn = 0 if epoch == 1 else ctx.step % epoch
            slot = jnp.arange(-(-count // epoch)) * epoch + turn
            inside = slot < count
            return plain + extra(params, data, ctx, jnp.where(inside, slot, 0), inside)

        return total

    def trainer(users, items, fakes, events=0):
        inner = model.trainer(users, items, fakes, events)
        return with_loss(inner, objective(inner.steps_per_epoch))

    config = {**model.config, **more}
    return dataclasses.replace(model, name=name, config=config, loss=objective(1), trainer=trainer)


def _told(explanations: Explanations) -> Told:
    if not isinstance(explanations, Explanations):
        raise TypeError(
            f"explanations are {type(explanations).__name__}; expected models.explain.Explanations, as from "
            "collect_counterfactuals"
        )
    return Told(*(jnp.asarray(column[explanations.found], jnp.int32) for column in explanations[:3]))


def _inside(explanations: Explanations, users: int, items: int) -> None:
    """Ids are looked at when sizes are known; JAX would clamp them silently."""
    for what, ids, size in (
        ("user", explanations.user, users),
        ("item", explanations.item, items),
        ("item", explanations.removed, items),
    ):
        if np.size(ids) and np.max(ids) >= size:
            raise ValueError(
                f"explanations name {what} {np.max(ids)}, but the data have {size}; ask about users of these data"
            )


# ------------------------------------------------------------------------------------------------ sentences


def sentences(told: Told, data: ncr.Data, length: int) -> Sentences:
    """The last `length` clicks of each user that are not in the set, and the set.

    >>> from models.data import Interactions
    >>> data = ncr.prepare(Interactions.from_arrays([0, 0, 0], [0, 1, 2], time=[1, 2, 3], items=5))
    >>> made = sentences(Told(jnp.array([0]), jnp.array([4]), jnp.array([[1, -1]])), data, 2)
    >>> made.premises[0, :3].tolist(), made.known.tolist(), made.kept.tolist()
    ([0, 2, 1], [[True, True, True, False]], [[True, True, False, False]])
    """
    most = told.removed.shape[1]
    items, there = ncr.premises(data, told.user, data.start[told.user + 1], length + most)
    gone = jnp.any(items[:, :, None] == told.removed[:, None], -1)
    others = there & ~gone
    place = jnp.argsort(others, axis=1, stable=True)[:, most:]  # the last ones, oldest first
    items, others = (jnp.take_along_axis(rows, place, 1) for rows in (items, others))
    place = jnp.argsort(~others, axis=1, stable=True)  # padding behind: the oldest begins the sentence
    items, others = (jnp.take_along_axis(rows, place, 1) for rows in (items, others))
    in_set = told.removed >= 0
    return Sentences(
        jnp.concatenate([items, jnp.where(in_set, told.removed, 0)], 1),
        jnp.concatenate([others, in_set], 1),
        jnp.concatenate([others, jnp.zeros_like(in_set)], 1),
    )


def both(
    params: Any, told: Told, data: ncr.Data, length: int, order: Key[Array, ""] | None = None
) -> tuple[Float[Array, "N D"], Float[Array, "N D"], Bool[Array, " N"]]:
    """`c+`, `c_CF` and whether the latter has a premise; premises in one random order, or as they stand."""
    made = sentences(told, data, length)
    if order is not None:
        turn = jax.random.permutation(order, made.premises.shape[1])
        made = Sentences(*(rows[:, turn] for rows in made))
    logic, h = ncr.logic_of(params), params["user"][told.user]
    events = ncr.event(params, h[:, None], params["item"][made.premises])
    head = ncr.event(params, h, params["item"][told.item])
    end = lambda known: logic.either(ncr.clause(logic, events, known)[0], head)
    return end(made.known), end(made.kept), jnp.any(made.kept, 1)


def loss(
    params: Any,
    told: Told,
    data: ncr.Data,
    weight: Bool[Array, " N"],
    order: Key[Array, ""] | None = None,
    *,
    kind: Kind = "contrast",
    length: int = 5,
) -> Float[Array, ""]:
    """`L_cf`, the sum over the explanations of weight 1; see `with_counterfactuals`."""
    full, without, usable = both(params, told, data, length, order)
    if kind == "as_printed":
        each = -jnp.log(jnp.maximum((1 + ncr.cosine(full, without)) / 2, 1e-6))
    else:
        other = full if kind == "contrast" else ncr.logic_of(params).true
        each = jax.nn.softplus(ncr.SCALE * ncr.cosine(without, other))
    return jnp.vdot((weight & usable).astype(each.dtype), each)
