"""Heuristic attacks that name no item by its neighbors: profiles by a rule, nothing learned.

Random and Average: Lam and Riedl, "Shilling Recommender Systems for Fun and Profit", WWW 2004; as clicks,
Random is "RandFilter" of Tang, Wen, Wang (RecSys 2020, section 4.2); as sequences, Random and Middle are
baselines of Song et al. (PoisonRec, ICDE 2020, section IV-A). TopPopular: our control. They are the floor every
learned attack has to clear; TopPopular is often hard to beat (every profile is the same list of the most
popular items).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from attacks.attack import Attack
from attacks.fillers import by_clicks, pick, popular_size
from attacks.rules import Grid, Rule, build, check_share
from attacks.sequences import TargetMode, alternate, draw, mixed, target_clicks
from attacks.threat import Goal, Track


def random(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "implicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
) -> Attack:
    """Random attack: every fake user marks the targets and `budget` items drawn uniformly.

    `row_f = targets + B items drawn without replacement from the I - T others`; ratings of fillers `N(mu,
    sigma)` of all ratings. Sequence: `target, item, target, item, ...`, items with repeats from the I - T
    others.

    Args:
        fakes: number of fake users, or fraction of the real users in (0, 1).
        budget: non-target items a fake user marks, in `[0, I - T]`; not for sequences.
        target_mode: `"all"`: every fake user marks all targets, in a sequence a random one at each turn;
            `"split"`: fake user `f` marks target `f mod T` only.
        track: `"implicit"` clicks, `"explicit"` ratings, or click `"sequence"`.
        goal: `"promote"`; on the explicit track also `"demote"`, where targets get the lowest rating instead of
            the highest; on the implicit and explicit tracks also `"availability"`: the fillers alone, as noise.
        ratings: `(low, high, step)`, the grid of ratings; for the explicit track only.
        clicks: length of a sequence, >= 1, targets and repeats included; for the sequence track only.

    Returns:
        An attack without outer steps; `knowledge="items"`, with ratings `"popularity"` (their mean and
        deviation).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range or without a use.

    Reference:
        Lam and Riedl, WWW 2004 (ratings); Tang, Wen, Wang, RecSys 2020, section 4.2 (clicks); Song et al., ICDE
        2020, section IV-A (sequences).

    **Differs from the paper:** ratings are rounded to the grid. PoisonRec does not say which comes first,
    target or item. Profiles without targets are ours, as the
    control of attacks on availability.

    **How it is detected and what mitigates it:** a uniform popularity profile is unlike any real user's, and
    the shared targets make the fake users a cluster in the latent space (RecSys 2020, Fig. 5); ratings that
    agree with no item's mean show as a high deviation from mean agreement (RDMA); limits on account creation
    bound `F`.

    >>> random(fakes=0.01, budget=30)
    random(fakes=0.01, budget=30, target_mode='all', track='implicit')
    """
    given = dict(locals())

    def fillers(key, train, targets, fakes, budget, mode):
        return pick(key, jnp.zeros((1, train.items)), targets, fakes=fakes, selected=0, budget=budget)

    def order(key, train, targets, fakes, clicks, mode):
        target, other = jax.random.split(key)
        items = draw(other, by_clicks(train, targets), fakes, clicks)
        return alternate(target_clicks(target, targets, fakes, clicks, mode), items)

    rule = Rule("random", "items", fillers, order, selected="global", others="global", availability=True)
    return build(rule, **given)


def average(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "explicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
) -> Attack:
    """Average attack: the Random attack whose fillers get ratings around each item's mean.

    `r_fi = grid(N(mu_i, sigma_i))` for B items drawn uniformly; r_max for the targets (demotion: r_min).

    Args:
        fakes, budget, target_mode, goal, ratings: as in `random`.
        track: `"explicit"`. Without ratings this is the Random attack, so the other tracks are refused.
        clicks: `None`, there is no sequence.

    Returns:
        An attack without outer steps; `knowledge="popularity"` (means and deviations of the items).

    Raises:
        TypeError, ValueError: as in `random`.

    Reference:
        Lam and Riedl, WWW 2004.

    **Differs from the paper:** an item that nobody rated, or whose ratings are all equal, gets ratings around
    the mean of all ratings.

    **How it is detected and what mitigates it:** the ratings agree with the means too well: a low deviation
    from mean agreement beside extreme ratings of few items (Chirita et al., WIDM 2005); the uniform choice of
    items shows as in the Random attack. Trimmed or robust means per item and limits on accounts bound the
    effect.

    >>> average(fakes=3, budget=30, ratings=(1, 5, 1))
    average(fakes=3, budget=30, target_mode='all', track='explicit', ratings=Ratings(low=1.0, high=5.0,
    step=1.0))
    """
    given = dict(locals())

    def fillers(key, train, targets, fakes, budget, mode):
        return pick(key, jnp.zeros((1, train.items)), targets, fakes=fakes, selected=0, budget=budget)

    why = "differs from the Random attack in its ratings only, which clicks do not have; use attacks.random"
    refused = {"implicit": why, "sequence": why}
    rule = Rule(
        "average", "popularity", fillers, selected="item", others="item", availability=True, refused=refused
    )
    return build(rule, **given)


def top_popular(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "implicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
    rated: Literal["max", "item"] | None = None,
) -> Attack:
    """TopPopular attack: every fake user marks the targets and the `budget` most clicked other items.

    `row_f = targets + the B items with the largest c_i`, `c_i` the item's clicks in the training data, ties by
    id. Sequence: a target and one of the floor(T / 2) most clicked items in turn, in random order.

    Args:
        fakes, budget, target_mode, track, ratings, clicks: as in `random`.
        goal: `"promote"`, on the explicit track also `"demote"`.
        rated: ratings of the fillers: `"max"` (default) r_max, `"item"` N(mu_i, sigma_i); for the explicit
            track only.

    Returns:
        An attack without outer steps, and as clicks without randomness; `knowledge="popularity"`.

    Raises:
        TypeError, ValueError: as in `random`.

    Reference:
        Ours, as the control of learned attacks; the bandwagon attack (Mobasher, Burke, Bhaumik, Williams, ACM
        TOIT 2007) with popular fillers only.

    **Differs from the paper:** the classical bandwagon attack mixes a few popular with many random items.

    **How it is detected and what mitigates it:** the profiles are equal, so any duplicate or group-similarity
    detector finds them; counting equal profiles once takes their effect away.

    >>> import jax
    >>> from models.data import Interactions
    >>> train = Interactions.from_dense(jnp.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]]))
    >>> top_popular(fakes=1, budget=2)(jax.random.key(0), train, jnp.array([3])).to_rows().tolist()
    [[1.0, 0.0, 1.0, 1.0]]
    """
    given = dict(locals())
    if rated is not None and track != "explicit":
        raise ValueError(f"rated is {rated!r}, but the {track!r} track has no ratings; leave it out")
    if rated not in (None, "max", "item"):
        raise ValueError(f"rated is {rated!r}; expected 'max' or 'item'")

    def fillers(key, train, targets, fakes, budget, mode):
        wish = train.popularity().astype(float)[None]
        return pick(key, wish, targets, fakes=fakes, selected=budget, budget=budget)

    if track == "explicit":
        given["rated"] = rated or "max"
    return build(Rule("top_popular", "popularity", fillers, selected=rated or "max"), **given)


def middle(
    *,
    fakes: int | float,
    clicks: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "sequence",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    budget: int | None = None,
    top: float = 0.1,
) -> Attack:
    """Middle attack: at every step a random target, popular item or other item.

    `a_t ~ uniform over a kind`, the kind of each step uniform over {targets, popular, others}; popular: the
    `top` share of the I - T non-targets by clicks. Targets may follow one another, unlike in the alternating
    attacks.

    Args:
        fakes, clicks, target_mode: as in `random`.
        track: `"sequence"`: what sets this attack apart is its order.
        goal: `"promote"`.
        ratings, budget: `None`; a sequence has neither.
        top: share of the items that are popular, in (0, 1].

    Returns:
        An attack without outer steps; `knowledge="popularity"`.

    Raises:
        TypeError, ValueError: as in `random`.

    Reference:
        Song et al. (PoisonRec), ICDE 2020, section IV-A.

    **Differs from the paper:** it does not give the chances of the three kinds; here they are equal. A catalog
    without others (all items are popular) leaves two kinds.

    **How it is detected and what mitigates it:** a third of the clicks of every fake user fall on few new
    items, and repeats without pause are unlike real histories; rate limits, and counting a user's repeated
    clicks once, bound the effect.

    >>> from models.data import Interactions
    >>> train = Interactions.from_arrays([0, 0], [1, 2], items=4, track="sequence")
    >>> middle(fakes=3, clicks=20)(jax.random.key(0), train, jnp.array([3]))
    Profiles(3 fakes x 4 items, sequence, clicks)
    """
    given = dict(locals())
    check_share("top", top)

    def order(key, train, targets, fakes, clicks, mode):
        kind, target, popular, other = jax.random.split(key, 4)
        items = by_clicks(train, targets)
        size = popular_size(top, train.items, targets.size)
        kinds = [
            target_clicks(target, targets, fakes, clicks, mode),
            draw(popular, items[:size], fakes, clicks),
        ]
        if size < items.shape[-1]:
            kinds.append(draw(other, items[size:], fakes, clicks))
        return mixed(kind, *kinds)

    why = "is an order of clicks, which rows do not have; use attacks.popular or attacks.random"
    rule = Rule("middle", "popularity", order=order, refused={"implicit": why, "explicit": why})
    return build(rule, **given)
