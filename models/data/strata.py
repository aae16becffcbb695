"""Which items an attack promotes: popularity strata, target draws and the fixed sets of released code.

`c_i` is the number of training events of item i; `p_q` the q-th percentile of c over all items.

    revadv   tail c < p50 <= lower_torso < p75 <= upper_torso < p95 <= head      (Tang et al., RecSys 2020)
    rapu     most_unpopular < p20 <= unpopular < p40 <= ordinary < p60 <= popular < p80 <= most_popular
                                                                                 (Zhang et al., KDD 2021)
    apt      unpopular c < 5, random: all items                                  (Wu et al., SIGIR 2021)

H-CARS (Chen et al., SIGIR 2023) draws its 5 from all items: APT's `random`. The 8 targets of PoisonRec (Song et al.,
ICDE 2020) are new items that nobody clicked: `new_items` appends them to the catalog.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Key

from models.data import checks
from models.data.interactions import Interactions
from models.data.split import Split, generator

Preset = Literal["revadv", "rapu", "apt"]
_NAMES = {
    "revadv": (("tail", "lower_torso", "upper_torso", "head"), (50, 75, 95)),
    "rapu": (("most_unpopular", "unpopular", "ordinary", "popular", "most_popular"), (20, 40, 60, 80)),
}
_STRATA = {**{preset: names for preset, (names, _) in _NAMES.items()}, "apt": ("random", "unpopular")}

# Item ids from 0. Gowalla: the ids of the authors' 15-core; the torso names follow their counts, not the text.
PUBLISHED: dict[str, tuple[int, ...]] = {
    "gowalla/head": (259, 2272, 3010, 6737, 7690),
    "gowalla/upper_torso": (1181, 1200, 2725, 4228, 6688),
    "gowalla/lower_torso": (3227, 5810, 7402, 9272, 10551),
    "gowalla/tail": (5611, 9213, 10359, 10395, 12308),
    "amazon-video/rapu": (3183, 3648, 1703, 2821, 1051),  # numbered by first appearance in the filtered file
    "ml-100k/rapu": (1018, 946, 597, 575, 516),
    "ml-100k/apt": (1485, 1320, 821, 1562, 1531),
    "filmtrust/apt-unpopular": (1576, 926, 942, 848, 107),
    "filmtrust/apt-random": (539, 117, 1600, 1326, 208),
}


def strata(
    counts: Int[ArrayLike, " I"], preset: Preset = "revadv", *, strict: bool = False
) -> dict[str, Int[np.ndarray, " N"]]:
    """Item ids of each stratum.

    Args:
        counts: (I,) training events of each item, as `train.popularity()` gives them.
        preset: whose strata, see the head of this file.
        strict: leave out items exactly on a percentile, as the released code of RevAdv does. Default: a stratum
            is [low, high), so that the strata partition the items.

    **Differs from the paper:** half-open by default; RevAdv's text has the bounds of the lower torso swapped (above
    p75, below p50: empty); its code and this function do not.

    >>> {name: ids.tolist() for name, ids in strata(np.arange(8)).items()}
    {'tail': [0, 1, 2, 3], 'lower_torso': [4, 5], 'upper_torso': [6], 'head': [7]}
    """
    checks.option("preset", preset, tuple(_STRATA))
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.size == 0 or not np.issubdtype(counts.dtype, np.number):
        raise ValueError(f"counts must hold one number an item; got {counts.dtype} of shape {counts.shape}")
    if preset == "apt":
        return {"random": np.arange(counts.size), "unpopular": np.flatnonzero(counts < 5)}
    names, percentiles = _NAMES[preset]
    bounds = [-np.inf, *np.percentile(counts, percentiles), np.inf]
    above = np.greater if strict else np.greater_equal
    return {
        name: np.flatnonzero(above(counts, low) & (counts < high))
        for name, low, high in zip(names, bounds[:-1], bounds[1:], strict=True)
    }


def pick_targets(
    train: Interactions,
    stratum: str,
    count: int = 5,
    key: Key[Array, ""] | int = 0,
    *,
    preset: Preset | None = None,
    strict: bool = False,
) -> Int[Array, " T"]:
    """`count` distinct random items of a popularity stratum, sorted, or a published set by its name.

    Args:
        stratum: a name of `strata` such as "head", or a key of `PUBLISHED` such as "gowalla/head" (then `count`
            must be its size and the key is not used).
        key: seed or typed JAX key.
        preset: needed only for names that two papers share ("unpopular").

    Raises:
        ValueError: unknown stratum, or fewer items in it than asked for.

    >>> x = Interactions.from_arrays([0, 1, 2, 0], [0, 0, 0, 1], items=8)
    >>> pick_targets(x, "head", 1).tolist()
    [0]
    """
    if stratum in PUBLISHED:
        return _published(train, stratum, count)
    presets = [p for p, names in _STRATA.items() if stratum in names and preset in (None, p)]
    if not presets:
        allowed = {p: _STRATA[p] for p in _STRATA if preset in (None, p)}
        listed = "; ".join(f"{p}: {', '.join(names)}" for p, names in allowed.items())
        raise ValueError(f"unknown stratum {stratum!r}; {listed}; published sets: {', '.join(PUBLISHED)}")
    if len(presets) > 1:
        raise ValueError(f"stratum {stratum!r} is defined by {' and '.join(presets)}; say preset=")
    pool = strata(np.asarray(train.popularity()), presets[0], strict=strict)[stratum]  # type: ignore[arg-type]
    if not 1 <= count <= pool.size:
        raise ValueError(f"count={count}: the stratum {stratum!r} holds {pool.size} items")
    chosen = np.sort(generator(key).choice(pool, count, replace=False))
    return jax.numpy.asarray(chosen, jax.numpy.int32)


class NewItems(NamedTuple):
    """Data with new items at the end of the catalog, and their ids."""

    data: Interactions | Split
    targets: Int[Array, " T"]


def new_items(data: Interactions | Split, count: int = 8) -> NewItems:
    """Append `count` items without a single event to the catalog: the targets of PoisonRec.

    Args:
        data: interactions of any track, or all parts of a split; events, users and order stay.
        count: T, number of new items; they get the ids `I .. I + T - 1`.

    Raises:
        ValueError: count below 1.

    Reference: Song et al. (PoisonRec), ICDE 2020, section IV-A (8 new target items).

    >>> new_items(Interactions.from_arrays([0, 1], [1, 0]), 2)
    NewItems(data=Interactions(2 users x 4 items, 2 events, implicit), targets=Array([2, 3], dtype=int32))
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"count={count!r}: expected a whole number >= 1")
    if isinstance(data, Split):
        wide = [None if part is None else new_items(part, count).data for part in data]
        return NewItems(Split(*wide), new_items(data.train, count).targets)  # type: ignore[arg-type]
    # Padding carries the last item, so it moves to the new last one.
    item = np.where(data.real(), np.asarray(data.item), data.items + count - 1).astype(np.int32)
    wider = replace(data, item=jax.device_put(item), items=data.items + int(count))
    return NewItems(wider, jax.device_put(np.arange(data.items, wider.items, dtype=np.int32)))


def _published(train: Interactions, name: str, count: int) -> Int[Array, " T"]:
    ids = PUBLISHED[name]
    if count != len(ids):
        raise ValueError(f"{name!r} is a fixed set of {len(ids)} items; count={count}")
    if max(ids) >= train.items:
        raise ValueError(
            f"{name!r} holds item {max(ids)}, but the data has {train.items} items: another data set?"
        )
    return jax.numpy.asarray(ids, jax.numpy.int32)
