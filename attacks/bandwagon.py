"""Bandwagon attacks: fake users who like what everybody likes, so that many real users have a neighbor among
them.

Mobasher, Burke, Bhaumik, Williams, "Toward Trustworthy Recommender Systems", ACM TOIT 2007, section 3. Three
definitions are in use, with P the most clicked tenth of the items that are not targets:

    bandwagon        the s most clicked items, B - s random ones           Mobasher et al. 2007
    popular          a tenth of the B from P, the rest from the others     "Popular" of RAPU (KDD 2021)
    hcars_bandwagon  all B from P                                          "Bandwagon" of H-CARS (SIGIR 2023)

With ratings the popular items get r_max and the random ones N(mu, sigma). As a sequence, Popular is the one of
PoisonRec (ICDE 2020, section IV-A).
"""

from __future__ import annotations

import jax

from attacks.attack import Attack
from attacks.fillers import by_clicks, pick, popular_set, popular_size
from attacks.rules import Grid, Rule, build, check_count, check_share
from attacks.sequences import TargetMode, alternate, draw, target_clicks
from attacks.threat import Goal, Track


def popular(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "implicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
    share: float | None = None,
    top: float = 0.1,
) -> Attack:
    """Popular attack: a tenth of the fillers are popular items, the others are not.

    `row_f = targets + round(share B) random items of P + B - round(share B) random items outside P`, P the
    `round(top (I - T))` most clicked non-targets (at least one), ties by id. Sequence: `target, item of P,
    target, ...`, with repeats.

    Args:
        fakes, budget, target_mode, track, ratings, clicks: as in `attacks.random`.
        goal: `"promote"`, on the explicit track also `"demote"`.
        share: of the fillers that are popular, in [0, 1]; default 0.1. Not for sequences, where all of them
            are.
        top: share of the items that are popular, in (0, 1].

    Returns:
        An attack without outer steps; `knowledge="popularity"`.

    Raises:
        TypeError, ValueError: as in `attacks.random`; a share out of its range or without a use.

    Reference:
        Zhang et al. (RAPU), KDD 2021, section 5.1.3; Song et al. (PoisonRec), ICDE 2020, section IV-A
        (sequences).

    **Differs from the paper:** RAPU does not say what is popular; the top tenth is PoisonRec's. Where P or its
    rest is too small for a budget, the other one fills it up.

    **How it is detected and what mitigates it:** the random nine tenths look as in the Random attack, and in
    the latent space the fake users form clusters (RAPU, Fig. 5); group detectors and limits on accounts apply.

    >>> popular(fakes=3, budget=30)
    popular(fakes=3, budget=30, target_mode='all', track='implicit', share=0.1, top=0.1)
    """
    given = dict(locals())
    check_share("top", top)
    if share is not None:
        check_share("share", share, zero=True)
        if track == "sequence":
            raise ValueError(
                f"share is {share}, but every item of the sequence is popular; leave share out, or use attacks.middle"
            )
    part = 0.1 if share is None else share
    if track != "sequence":
        given["share"] = part

    def fillers(key, train, targets, fakes, budget, mode):
        return _of_set(key, train, targets, top, fakes=fakes, selected=round(part * budget), budget=budget)

    def order(key, train, targets, fakes, clicks, mode):
        target, other = jax.random.split(key)
        pool = by_clicks(train, targets)[: popular_size(top, train.items, targets.size)]
        items = draw(other, pool, fakes, clicks)
        return alternate(target_clicks(target, targets, fakes, clicks, mode), items)

    return build(Rule("popular", "popularity", fillers, order), **given)


def bandwagon(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "implicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
    selected: int = 3,
) -> Attack:
    """Classical bandwagon attack: the few most popular items, and random ones.

    `row_f = targets + the s most clicked non-targets + B - s random others`, s at most B. Sequence: a target
    and one of these items in turn, with B = floor(T / 2), in random order.

    Args:
        fakes, budget, target_mode, track, ratings, clicks: as in `attacks.random`.
        goal: `"promote"`, on the explicit track also `"demote"`.
        selected: s, popular items of each profile, >= 0.

    Returns:
        An attack without outer steps; `knowledge="popularity"`.

    Raises:
        TypeError, ValueError: as in `attacks.random`.

    Reference:
        Mobasher, Burke, Bhaumik, Williams, ACM TOIT 2007, section 3.

    **Differs from the paper:** popular is what has the most clicks here, and what is widely known there. The
    default s is ours.

    **How it is detected and what mitigates it:** all profiles share the same extreme ratings of the same s
    popular items; the length of the random part and its ratings show as in the Random attack.

    >>> bandwagon(fakes=3, budget=30, selected=5)
    bandwagon(fakes=3, budget=30, target_mode='all', track='implicit', selected=5)
    """
    given = dict(locals())
    check_count("selected", selected, 0)

    def fillers(key, train, targets, fakes, budget, mode):
        wish = train.popularity().astype(float)[None]
        return pick(key, wish, targets, fakes=fakes, selected=min(selected, budget), budget=budget)

    return build(Rule("bandwagon", "popularity", fillers), **given)


def hcars_bandwagon(
    *,
    fakes: int | float,
    budget: int | None = None,
    target_mode: TargetMode = "all",
    track: Track = "implicit",
    goal: Goal = "promote",
    ratings: Grid | None = None,
    clicks: int | None = None,
    top: float = 0.1,
) -> Attack:
    """Bandwagon attack of H-CARS: every filler is a random popular item.

    `row_f = targets + B items drawn without replacement from P`, P the `round(top (I - T))` most clicked
    non-targets. Sequence: a target and one of these items in turn, with B = floor(T / 2).

    Args:
        fakes, budget, target_mode, track, ratings, clicks: as in `attacks.random`.
        goal: `"promote"`, on the explicit track also `"demote"`.
        top: share of the items that are popular, in (0, 1].

    Returns:
        An attack without outer steps; `knowledge="popularity"`.

    Raises:
        TypeError, ValueError: as in `attacks.random`.

    Reference:
        Chen et al. (H-CARS), SIGIR 2023, section 5.1.

    **Differs from the paper:** "randomly selects popular items" does not say which are popular; the top tenth
    is ours. If B exceeds P, random other items fill it up. H-CARS has clicks only; with ratings every filler
    gets r_max.

    **How it is detected and what mitigates it:** profiles without a single unpopular item are rare among real
    users with as many clicks, and they overlap strongly with each other.

    >>> hcars_bandwagon(fakes=3, budget=30)
    hcars_bandwagon(fakes=3, budget=30, target_mode='all', track='implicit', top=0.1)
    """
    given = dict(locals())
    check_share("top", top)

    def fillers(key, train, targets, fakes, budget, mode):
        return _of_set(key, train, targets, top, fakes=fakes, selected=budget, budget=budget)

    return build(Rule("hcars_bandwagon", "popularity", fillers), **given)


def _of_set(key, train, targets, top: float, *, fakes: int, selected: int, budget: int):
    """`selected` random items of the popular set and random ones outside of it, each as far as there are any."""
    named, rest = jax.random.split(key)
    favorites = popular_set(train, targets, top)
    wish = jax.random.uniform(named, (fakes, train.items)) + favorites
    return pick(rest, wish, targets, fakes=fakes, selected=selected, budget=budget, last=favorites)
