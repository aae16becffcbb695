"""CoVis / ConsLOP: fake co-visits that bring a target into the lists of as many items as they pay for.

Yang, Gong, Cai, "Fake Co-visitation Injection Attacks to Recommender Systems", NDSS 2017; as the baselines "ConsLOP" of
Song et al. (PoisonRec), ICDE 2020, and "CoVis" of Zhang et al. (RAPU), KDD 2021. An item-to-item recommender shows with
anchor a the K items of the largest `s_aj = w_aj / f(w_a, w_j)`. With `n` co-visits injected between a and target t,

    n_a = least n with  (w_at + g(n)) / f_t > theta_a,      theta_a = K-th best of  w_aj / f_j  over the other items j
    max sum_a v_a y_a   subject to   sum_a n_a y_a <= M,  0 <= y_a <= 1,  n_a y_a <= C

a fractional knapsack, bought by v_a / n_a; C is what one anchor can be given (a fake user's row clicks it once: C = F).

    v_a = w_a / sum w,    f_j = sqrt(w_j), 1 or w_j, taken for the target at its final visits

A factor of `w_a` divides both sides and is left out; that the injection raises it changes nothing. `n_a` is found by
integer bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from attacks.attack import Attack
from attacks.threat import Goal, ThreatModel, Track, fixed
from bilevel.project import column_mask
from models import covisitation as victim
from models import sparse
from models.data import Interactions, Profiles
from models.recommender import counts, one_of

MARGIN = 1e-5
"""Relative lead over `theta_a` that counts as above it: no tie of whole numbers hides in float32's rounding."""

REACH = 1 << 24
"""Costs are looked for up to here, which float32 still counts one by one."""

CELLS = 1 << 22
"""Co-visits of a block of anchors held at once: 16 MiB in float32."""


class Plan(NamedTuple):
    """What is injected where.

    Attributes:
        value: `v_a`, the anchor's share of the visits.
        cost: `n_a`; 0: the targets are in its list anyway. It may be more than an anchor can be given: then a part of
            it is bought, as the linear program does.
        order: the items by `v_a / n_a`, best first; targets last.
        take: co-visits given to each anchor; they sum to the budget.
        promised: anchors that got their cost: after sequences are injected their lists show the target; on rows they
            would, if the anchors of a row did not co-visit each other.
    """

    value: Float[Array, " I"]
    cost: Int[Array, " I"]
    order: Int[Array, " I"]
    take: Int[Array, " I"]
    promised: Bool[Array, " I"]


class _State(NamedTuple):
    """The rows `(F, I)`, or the clicks `(F, C)` of a sequence."""

    made: Array


def covisitation(
    *,
    fakes: int | float,
    budget: int | None = None,
    clicks: int | None = None,
    track: Track = "implicit",
    goal: Goal = "promote",
    k: int = 10,
    normalization: victim.Normalization = "cosine",
) -> Attack:
    """CoVis / ConsLOP: every fake co-visit goes where it buys the most views of lists that show the target.

    `max sum_a v_a y_a` subject to `sum_a n_a y_a <= M`, greedy by `v_a / n_a`; the rest of the budget continues in that
    order.

    Args:
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: anchors a fake user clicks beside all targets, in `[0, I - T]`; for `"implicit"`. `M = F B`, and an
            anchor can be given at most F.
        clicks: clicks C of a sequence, >= 1; for `"sequence"`, which is target, anchor, target, anchor, ... of one
            target drawn from the given ones. `M = F floor(C / 2)`.
        track: `"implicit"`: a user who clicked both of two items co-visits them; `"sequence"`: who clicked one right
            after the other.
        goal: `"promote"`.
        k: K, length of an item's list, >= 1, and at least the number of targets on `"implicit"`.
        normalization: f of the recommender, see `models.covisitation`: `"cosine"`, `"none"` or `"target"`.

    Returns:
        An attack without outer steps; `knowledge="interactions"`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use on the track.

    Reference: Yang, Gong, Cai, NDSS 2017; Song et al. (PoisonRec), ICDE 2020, attack baselines; Zhang et al. (RAPU),
        KDD 2021, baselines.

    **Differs from the paper:** the target's visits are taken at their final value, which couples no costs and keeps the
    promise (`n_a` is never too small). In a sequence of pairs an anchor's n pairs make up to `2 n` co-visits, one less
    for each profile that ends with one of them: `g(n) = 2 n - ceil(n / (C / 2))` for an even C, `2 n` for an odd one.
    On rows `g(n) = n`, and several targets are to be shown together (`theta_a` is then the `K - T + 1`-th best and
    `n_a` the largest over the targets). There nothing is promised: costs are those of pairs injected by themselves,
    but the anchors of one row co-visit each other too and can fill each other's lists. Demotion (the paper's other
    attack) is not offered.

    **How it is detected and what mitigates it:** a few anchors get many co-visits with one target that hardly anybody
    else makes, alternating in a sequence, which a count per account and pair shows. Bounding what one account adds to
    a pair, weighing it by the account's history and limits on new accounts raise the cost.

    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 2, 3], time=[1, 2, 3, 4, 5], track="sequence")
    >>> attack = covisitation(fakes=1, clicks=4, track="sequence", k=1)
    >>> attack(jax.random.key(0), train, jnp.array([3])).clicks.tolist()
    [[3, 0, 3, 0]]
    """
    config = dict(locals())
    if track == "explicit":
        raise ValueError(
            "track is 'explicit'; covisitation counts clicks and has no use for ratings: expected 'implicit' or "
            "'sequence'"
        )
    if goal != "promote":
        raise ValueError(
            f"goal is {goal!r}; covisitation injects co-visits with its targets, which can only promote them: "
            "expected 'promote'"
        )
    if track == "implicit":
        budget = fixed("covisitation", budget)
    counts("covisitation", k=k)
    one_of("covisitation", "normalization", normalization, get_args(victim.Normalization))
    threat = ThreatModel(fakes=fakes, budget=budget, clicks=clicks, track=track, knowledge="interactions")

    def init(key, train: Interactions, targets: Int[Array, " T"], initial=None) -> _State:
        count = threat.count(train.users)
        if clicks is None:
            assert budget is not None
            made = plan_rows(train, targets, count, budget, k=k, normalization=normalization)
            return _State(deal(made, count, budget).at[:, targets].set(1))
        target = targets[jax.random.randint(key, (), 0, targets.size)]
        made = plan_clicks(train, target, count, clicks, k=k, normalization=normalization)
        return _State(alternate(made, target, count, clicks))

    def step(state: _State, train: Interactions, targets: Int[Array, " T"], test=None):
        return state, {}

    def finish(state: _State, train: Interactions, targets: Int[Array, " T"]) -> Profiles:
        if clicks is None:
            assert budget is not None
            return Profiles.from_rows(state.made, targets, clicks_targets=True, width=budget + targets.size)
        return Profiles.from_clicks(state.made, targets, items=train.items, clicks_targets=targets.size == 1)

    return Attack("covisitation", config, threat, 0, init, step, finish)


# ------------------------------------------------------------------------------------------------ what a co-visit buys


def plan_rows(
    train: Interactions,
    targets: Int[Array, " T"],
    fakes: int,
    budget: int,
    *,
    k: int,
    normalization: victim.Normalization,
) -> Plan:
    """The plan for rows: co-visits are shared users, and an anchor gets at most one of each fake user.

    Args:
        train: clicks.
        targets: `(T,)`, clicked by all fake users, `T <= k`.
        fakes, budget, k, normalization: as in `covisitation`.

    Raises:
        ValueError: more targets than a list shows.
    """
    if targets.size > k:
        raise ValueError(
            f"k is {k}, but a list has to show {targets.size} targets; expected k >= {targets.size}"
        )
    cells = sparse.observed(train.user, train.item, train.mask, train.users, train.items)
    ones = jnp.ones(cells.row.shape, train.weight.dtype)

    def covisits(unit: Float[Array, "I N"]) -> Float[Array, "I N"]:
        return jnp.where(unit > 0, 0, sparse.spread_back(ones, sparse.spread(ones, unit, cells), cells))

    return _plan(
        train,
        targets,
        lambda over, target: _lists(covisits, over, targets, target, k - targets.size + 1),
        lambda n: n,
        normalization,
        clicks=fakes,
        most=fakes,
        budget=fakes * budget,
    )


def plan_clicks(
    train: Interactions,
    target: Int[Array, ""],
    fakes: int,
    clicks: int,
    *,
    k: int,
    normalization: victim.Normalization,
) -> Plan:
    """The plan for click sequences against one target: co-visits are those of `models.covisitation`.

    Args:
        train: visits in order.
        target: its id.
        fakes, clicks, k, normalization: as in `covisitation`.
    """
    found = victim.prepare(train, normalization="none", history=1)
    pairs, last = clicks // 2, clicks % 2
    return _plan(
        train,
        target[None],
        lambda over, _: _few_lists(found.pairs, over, target, k),
        lambda n: 2 * n if last else 2 * n + (-n // max(pairs, 1)),  # a profile ends with half a link
        normalization,
        clicks=fakes * (pairs + last),
        most=fakes * pairs,
        budget=fakes * pairs,
    )


def _plan(
    train: Interactions,
    targets: Int[Array, " T"],
    lists: Callable[[Array, Array], tuple[Float[Array, " I"], Float[Array, "I T"]]],
    gain: Callable[[Int[Array, " I"]], Int[Array, " I"]],
    normalization: victim.Normalization,
    *,
    clicks: int,
    most: int,
    budget: int,
) -> Plan:
    """Costs by bisection, the knapsack, and what is left of the budget.

    `lists` maps f of the items and the mask of the targets to `theta` and `w_at`; `gain` is g. A target is visited
    `clicks` times more, an anchor can be given `most`, and all together get `budget`.
    """
    target = column_mask(targets, train.items)
    visits = train.popularity().astype(train.weight.dtype)
    over = lambda count: {"cosine": jnp.sqrt, "none": jnp.ones_like, "target": jnp.asarray}[normalization](
        jnp.maximum(count, 1)
    )
    theta, have = lists(over(visits), target)
    need = (theta * (1 + MARGIN))[:, None] * over(visits[targets] + clicks)
    cost = least(lambda n: jnp.all(have + gain(n)[:, None] > need, axis=1), train.items, REACH)
    value = visits / jnp.maximum(jnp.sum(visits), 1)
    order = jnp.argsort(jnp.where(target, 1, -value / jnp.maximum(cost, 1)), stable=True)
    bought = knapsack(jnp.where(target, 0, jnp.minimum(cost, most)), order, budget)
    more = jnp.where(target, 0, most - bought)
    take = bought + knapsack(more, order, budget - jnp.sum(bought))
    return Plan(value, cost, order, take, ~target & (take >= cost))


def _lists(covisits, over: Float[Array, " I"], targets, target: Bool[Array, " I"], place: int):
    """Of every anchor, the `place`-th best `w_aj / f_j` over non-targets (-inf: no such item) and `w_at`, `(I, T)`."""
    items = over.shape[0]
    size = max(1, min(items, CELLS // items))

    def block(start):
        anchors = start + jnp.arange(size)
        unit = (jnp.arange(items)[:, None] == anchors).astype(over.dtype)
        found = covisits(unit)
        others = jnp.where(target[:, None] | (unit > 0), -jnp.inf, found / over[:, None])
        best = lax.top_k(others.T, min(place, items))[0]
        return jnp.min(best, axis=1), found[targets].T  # not best[:, -1]: XLA would sort whole rows for it

    theta, have = lax.map(block, jnp.arange(0, items, size))
    theta = jnp.full(items, -jnp.inf) if place > items else theta.reshape(-1)[:items]
    return theta, have.reshape(-1, targets.size)[:items]


def _few_lists(pairs: sparse.Observed, over: Float[Array, " I"], target: Int[Array, ""], place: int):
    """`_lists` of one target from the co-visits there are, a slot each; all other items are visited 0 times with it."""
    items, slots = over.shape[0], pairs.row.shape[0]
    real = jnp.arange(slots) < pairs.row_start[-1]
    first = jnp.append(
        True, (jnp.diff(pairs.row) != 0) | (jnp.diff(pairs.col) != 0)
    )  # of the slots of a pair
    run = jnp.cumsum(first) - 1
    together = jnp.zeros(slots, over.dtype).at[run].add(real.astype(over.dtype))[run]
    counts = real & first
    have = jnp.zeros((items, 1), over.dtype)
    have = have.at[pairs.row, 0].add(jnp.where(counts & (pairs.col == target), together, 0))
    counts &= (pairs.col != target) & (pairs.col != pairs.row)
    lost = jnp.where(counts, -together / over[pairs.col], jnp.inf)
    _, lost = lax.sort((jnp.where(real, pairs.row, items), lost), num_keys=2)  # each row's best first
    at = pairs.row_start[:-1] + place - 1
    known = jnp.zeros(items, jnp.int32).at[pairs.row].add(counts.astype(jnp.int32))
    beyond = jnp.where(place <= items - 2 + (jnp.arange(items) == target), 0.0, -jnp.inf)
    theta = jnp.where(place <= known, -lost[jnp.minimum(at, slots - 1)], beyond)
    return theta, have


def least(holds: Callable[[Int[Array, " N"]], Bool[Array, " N"]], size: int, most: int) -> Int[Array, " N"]:
    """For each of `size` entries the least integer in `[0, most]` for which `holds`, `most + 1` if there is none.

    Args:
        holds: `(N,)` integers to `(N,)` truth values, each entry on its own; once true, true for all larger ones.
        size: N.
        most: >= 0.

    >>> least(lambda n: n * n >= jnp.array([0, 10, 99]), 3, most=5).tolist()
    [0, 4, 6]
    """

    def halve(_, span):
        low, high = span  # the answer is in low .. high
        middle = (low + high) // 2
        found = holds(middle)
        return jnp.where(found, low, jnp.minimum(middle + 1, high)), jnp.where(found, middle, high)

    span = jnp.zeros(size, jnp.int32), jnp.full(size, most + 1, jnp.int32)
    return lax.fori_loop(0, (most + 1).bit_length(), halve, span)[0]


def knapsack(
    cost: Int[Array, " N"], order: Int[Array, " N"], budget: Int[Array, ""] | int
) -> Int[Array, " N"]:
    """What each item gets when they are bought in `order` until the budget is spent: `min(cost, what is left)`.

    In the order of value / cost this is the solution of `max sum v y, sum cost y <= budget, 0 <= y <= 1` with
    `y = take / cost`: all items before some place, a part of the one there.

    Args:
        cost: `(N,)`, >= 0.
        order: the items, first bought first.
        budget: >= 0, below 2^30.

    Reference: Yang, Gong, Cai, NDSS 2017 (their linear program); Dantzig 1957 (the greedy solution).

    **Differs from the paper:** the greedy solution instead of a solver for linear programs.

    >>> knapsack(jnp.array([4, 3, 2]), jnp.array([2, 0, 1]), 5).tolist()
    [3, 0, 2]
    """
    wanted = jnp.minimum(cost[order], budget + 1)  # a saturated sum does not overflow, and stays associative
    spent = lax.associative_scan(lambda a, b: jnp.minimum(a + b, budget + 1), wanted)
    before = jnp.concatenate([jnp.zeros(1, spent.dtype), spent[:-1]])
    return jnp.zeros_like(cost).at[order].set(jnp.clip(budget - before, 0, wanted))


# ------------------------------------------------------------------------------------------------ from counts to clicks


def deal(plan: Plan, fakes: int, budget: int) -> Float[Array, "F I"]:
    """Rows in which every fake user clicks exactly `budget` anchors, and anchor a is clicked `take_a <= F` times.

    The anchors' clicks are laid out one anchor after the other and dealt to the fake users like cards, so no fake user
    gets the same one twice.
    """
    rows = jnp.zeros((fakes, plan.take.shape[0]))
    if budget == 0:
        return rows
    cards = jnp.repeat(plan.order, plan.take[plan.order], total_repeat_length=fakes * budget)
    return rows.at[jnp.arange(fakes * budget) % fakes, cards].set(1)


def alternate(plan: Plan, target: Int[Array, ""], fakes: int, clicks: int) -> Int[Array, "F C"]:
    """Sequences target, anchor, target, anchor, ...; an anchor's pairs follow each other, in the plan's order."""
    pairs = clicks // 2
    made = jnp.full((fakes, clicks), target)
    if pairs == 0:
        return made
    anchors = jnp.repeat(plan.order, plan.take[plan.order], total_repeat_length=fakes * pairs)
    return made.at[:, 1::2].set(anchors.reshape(fakes, pairs))
