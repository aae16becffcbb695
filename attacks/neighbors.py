"""Attacks by the neighborhoods of items: PowerItem and Segment.

PowerItem (Seminario and Wilson, "Attacking Item-Based Recommender Systems with Power Items", RecSys 2014) marks
the items that most other items have as a neighbor. Segment (Mobasher, Burke, Bhaumik, Williams, ACM TOIT 2007,
section 3) marks the items that are most like the targets, to reach the users who like these. How similarity is
measured is in `attacks.fillers`.
"""

from __future__ import annotations

import jax.numpy as jnp

from attacks.attack import Attack
from attacks.fillers import alike, indegree, pick, ranked
from attacks.rules import Grid, Rule, build, check_count
from attacks.sequences import TargetMode
from attacks.threat import Goal, Track


def power_item(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "implicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
    neighbors: int = 20,
    common: int = 5,
) -> Attack:
    """PowerItem attack: the targets and the items that most other items have as a neighbor.

    `row_f = targets + the B non-targets of the largest in-degree` in the graph where every item points at its
    `neighbors` most similar ones (cosine, at least `common` users in common); ties by clicks, then by id.
    Ratings of fillers `N(mu_i, sigma_i)`. Sequence: a target and one of the floor(T / 2) first power items in
    turn, in random order.

    Args:
        fakes, budget, target_mode, track, ratings, clicks: as in `attacks.random`.
        goal: `"promote"`, on the explicit track also `"demote"`.
        neighbors: k, items that an item points at, >= 1.
        common: users that two items must share to be neighbors, >= 1.

    Returns:
        An attack without outer steps; `knowledge="interactions"`.

    Raises:
        TypeError, ValueError: as in `attacks.random`; neighbors or common below 1.

    Reference:
        Seminario and Wilson, RecSys 2014 (in-degree centrality); Song et al. (PoisonRec), ICDE 2020, section
        IV-A (sequences).

    **Differs from the paper:** similarities of pairs with few users in common are left out, not scaled down.
    PoisonRec does not say how many power items there are, nor how one is chosen at a step.

    **How it is detected and what mitigates it:** all profiles hold the same items, so duplicate and group
    detectors find them as in TopPopular; weighting similarities by the number of common users lowers the reach
    of power items.

    >>> power_item(fakes=3, budget=30)
    power_item(fakes=3, budget=30, target_mode='all', track='implicit', neighbors=20, common=5)
    """
    given = dict(locals())
    check_count("neighbors", neighbors, 1)
    check_count("common", common, 1)

    def fillers(key, train, targets, fakes, budget, mode):
        degree = indegree(train, neighbors=neighbors, common=common)
        wish = ranked(degree.astype(float), train)[None]
        return pick(key, wish, targets, fakes=fakes, selected=budget, budget=budget)

    return build(Rule("power_item", "interactions", fillers, selected="item"), **given)


def segment(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "implicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
    selected: int | None = None,
) -> Attack:
    """Segment attack: the targets, the items most like them, and random ones.

    `row_f = targets + the s non-targets of the largest sum_t cos(i, t) + B - s random others`, t over the
    targets the fake user marks; ties by clicks, then by id. Ratings: r_max for the segment, r_min for the
    random items. Sequence: a target and one of these items in turn, with B = floor(T / 2), in random order.

    Args:
        fakes, budget, target_mode, track, ratings, clicks: as in `attacks.random`; with `"split"` every target
            has its own segment.
        goal: `"promote"`, on the explicit track also `"demote"`.
        selected: s, items of the segment, >= 0 (at most B are used); `None`: all B.

    Returns:
        An attack without outer steps; `knowledge="interactions"`.

    Raises:
        TypeError, ValueError: as in `attacks.random`.

    Reference:
        Mobasher, Burke, Bhaumik, Williams, ACM TOIT 2007, section 3.

    **Differs from the paper:** the segment is found in the interactions; there, a person names a genre and some
    of its favorites. A small s beside fillers of the lowest rating is theirs; the default has no random items,
    because as clicks these would say "liked". Targets that nobody marked are like nothing: the segment is then
    the most clicked items.

    **How it is detected and what mitigates it:** r_max for a group of similar items beside r_min for everything
    else is a rating pattern real users do not have (filler mean difference); it moves the segment's users only,
    so monitoring per group of users shows it where an average over all does not.

    >>> segment(fakes=3, budget=30, selected=5)
    segment(fakes=3, budget=30, target_mode='all', track='implicit', selected=5)
    """
    given = dict(locals())
    if selected is not None:
        check_count("selected", selected, 0)

    def fillers(key, train, targets, fakes, budget, mode):
        like = alike(train, targets)
        if mode == "all":
            wish = ranked(jnp.sum(like, 0), train)[None]
        else:
            wish = ranked(like, train)[jnp.arange(fakes) % targets.size]
        named = budget if selected is None else min(selected, budget)
        return pick(key, wish, targets, fakes=fakes, selected=named, budget=budget)

    return build(Rule("segment", "interactions", fillers, selected="max", others="min"), **given)
