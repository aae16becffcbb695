"""Which ratings fake users give: statistics of the real ones, and draws on the grid.

Filler ratings after Lam and Riedl, "Shilling Recommender Systems for Fun and Profit", WWW 2004:

    global  N(mu, sigma)      over all ratings                          Random attack
    item    N(mu_i, sigma_i)  over the ratings of the item              Average attack
    max     r_max             min  r_min                                selected items (Mobasher et al., ACM TOIT 2007)

Draws are rounded to the grid of ratings and clipped to it. Targets get r_max for promotion, r_min for demotion.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from attacks.threat import Goal, Ratings
from bilevel.project import column_mask
from models.data import Interactions

RatingRule = Literal["global", "item", "max", "min"]


class ItemStatistics(NamedTuple):
    """Mean and deviation of the ratings, of each item and of all; made by `item_statistics`.

    Args:
        mean, deviation: (I,); those of all ratings for an item that nobody rated, or whose ratings are all equal.
        overall_mean, overall_deviation: (), of all ratings.
        count: (I,) ratings of each item.
    """

    mean: Float[Array, " I"]
    deviation: Float[Array, " I"]
    overall_mean: Float[Array, ""]
    overall_deviation: Float[Array, ""]
    count: Int[Array, " I"]


def item_statistics(train: Interactions) -> ItemStatistics:
    """Mean and deviation of the ratings of each item; works under `jit` and `vmap`.

    `mu_i = mean_u r_ui`, `sigma_i^2 = mean_u (r_ui - mu_i)^2`; `(mu, sigma)` of all ratings in place of both where
    `sigma_i = 0` or the item has no rating.

    Args:
        train: explicit ratings.

    Returns:
        The statistics; without a single rating all are 0 (draws then give the lowest rating).

    Raises:
        ValueError: the data are not of the explicit track.

    Reference:
        Lam and Riedl, WWW 2004.

    **Differs from the paper:** it does not say what an item without a spread gets. APT's code uses mean 1 and deviation
    0 there; here it is the mean and the deviation of all ratings.

    >>> ratings = Interactions.from_dense(jnp.array([[5.0, 4.0, 0.0], [3.0, 4.0, 0.0]]))
    >>> found = item_statistics(ratings)
    >>> found.mean.tolist(), found.deviation.round(2).tolist()  # items 1 and 2: no spread, no rating
    ([4.0, 4.0, 4.0], [1.0, 0.71, 0.71])
    """
    if train.track != "explicit":
        raise ValueError(
            f"train is of track {train.track!r}, which has no ratings to average; expected the 'explicit' track"
        )
    rating, real, item = train.weight, train.mask, train.item
    count = train.popularity()

    def sums(values: Float[Array, " E"]) -> Float[Array, " I"]:
        return jnp.zeros(train.items, rating.dtype).at[item].add(jnp.where(real, values, 0))

    mean = sums(rating) / jnp.maximum(count, 1)
    # Around the mean, not as a difference of squares: that one is all rounding where the ratings agree.
    deviation = jnp.sqrt(sums((rating - mean[item]) ** 2) / jnp.maximum(count, 1))
    events = jnp.maximum(train.count, 1)
    overall = jnp.sum(jnp.where(real, rating, 0)) / events
    spread = jnp.sqrt(jnp.sum(jnp.where(real, (rating - overall) ** 2, 0)) / events)
    # Not deviation > 0: the mean of equal ratings is rounded too.
    high = jnp.zeros(train.items, rating.dtype).at[item].max(jnp.where(real, rating, 0))
    low = jnp.full(train.items, jnp.inf, rating.dtype).at[item].min(jnp.where(real, rating, jnp.inf))
    known = high > low
    return ItemStatistics(
        jnp.where(known, mean, overall), jnp.where(known, deviation, spread), overall, spread, count
    )


def to_grid(values: Float[ArrayLike, "*shape"], ratings: Ratings) -> Float[Array, "*shape"]:
    """The nearest rating of the grid.

    >>> to_grid(jnp.array([-3.0, 2.4, 2.6, 9.0]), Ratings(1, 5, 1)).tolist()
    [1.0, 2.0, 3.0, 5.0]
    """
    values = jnp.asarray(values, float)
    steps = round((ratings.high - ratings.low) / ratings.step) if ratings.high > ratings.low else 0
    # Looked up, not computed: low + k * step may miss the upper end by a rounding.
    levels = jnp.asarray(np.linspace(ratings.low, ratings.high, steps + 1), values.dtype)
    place = jnp.clip(jnp.round((values - ratings.low) / ratings.step), 0, steps)
    return levels[place.astype(jnp.int32)]


def draw_ratings(
    key: Key[Array, ""],
    statistics: ItemStatistics,
    fakes: int,
    ratings: Ratings,
    *,
    rule: RatingRule = "item",
) -> Float[Array, "F I"]:
    """A rating of every item by every fake user, of which an attack uses those of its fillers.

    `r_fi = grid(N(mu_i, sigma_i))`, independent over fake users and items.

    Args:
        key: consumed.
        statistics: of the ratings the attacker sees.
        fakes: F, >= 1.
        ratings: the grid.
        rule: `"item"` N(mu_i, sigma_i); `"global"` N(mu, sigma); `"max"`, `"min"` the ends of the grid.

    Returns:
        Ratings on the grid, `(F, I)`.

    Raises:
        ValueError: an unknown rule.

    Reference:
        Lam and Riedl, WWW 2004.

    **Differs from the paper:** nothing.

    >>> train = Interactions.from_dense(jnp.array([[5.0, 4.0], [3.0, 4.0]]))
    >>> draw_ratings(jax.random.key(0), item_statistics(train), 3, Ratings(1, 5, 1), rule="max").tolist()
    [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]
    """
    if rule not in get_args(RatingRule):
        raise ValueError(f"rule is {rule!r}; expected one of {', '.join(map(repr, get_args(RatingRule)))}")
    shape = (fakes, statistics.mean.shape[-1])
    if rule == "max":
        return jnp.full(shape, ratings.high, statistics.mean.dtype)
    if rule == "min":
        return jnp.full(shape, ratings.low, statistics.mean.dtype)
    noise = jax.random.normal(key, shape, statistics.mean.dtype)
    if rule == "global":
        return to_grid(statistics.overall_mean + statistics.overall_deviation * noise, ratings)
    return to_grid(statistics.mean + statistics.deviation * noise, ratings)


def target_rating(goal: Goal, ratings: Ratings) -> float:
    """What a fake user gives a target: r_max to promote it, r_min to demote it.

    Raises:
        ValueError: an attack on availability, which has no targets.

    >>> target_rating("demote", Ratings(1, 5, 1))
    1
    """
    if goal == "availability":
        raise ValueError("goal is 'availability', which has no targets to rate")
    return ratings.high if goal == "promote" else ratings.low


def rate(
    clicks: Float[Array, "F I"],
    fillers: Float[Array, "F I"],
    targets: Int[Array, " T"],
    *,
    goal: Goal,
    ratings: Ratings,
) -> Float[Array, "F I"]:
    """Profiles of clicks as profiles of ratings.

    `r_fi = 0` where nothing is clicked, r_max (demotion: r_min) for a target, else `fillers[f, i]`.

    Args:
        clicks: which items each fake user rates, targets included: above 0, `(F, I)`.
        fillers: ratings on the grid, as `draw_ratings` makes them, `(F, I)`.
        targets: item ids, `(T,)`; none on availability.
        goal: as in `ThreatModel`.
        ratings: the grid.

    Returns:
        Ratings `(F, I)`.

    >>> rate(jnp.array([[1.0, 0, 1]]), jnp.full((1, 3), 4.0), jnp.array([2]), goal="promote", ratings=Ratings(1, 5, 1))
    Array([[4., 0., 5.]], dtype=float32)
    """
    if targets.shape[-1]:
        own = column_mask(targets, clicks.shape[-1])
        fillers = jnp.where(own, jnp.asarray(target_rating(goal, ratings), fillers.dtype), fillers)
    return jnp.where(clicks > 0, fillers, 0)
