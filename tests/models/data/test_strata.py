"""Popularity strata: a partition, the papers' bounds, draws and published sets."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import PUBLISHED, Interactions, dataset, pick_targets, strata

counts = st.lists(st.integers(0, 30), min_size=1, max_size=80).map(np.array)


@settings(max_examples=200, deadline=None)
@given(counts, st.sampled_from(["revadv", "rapu"]))
def test_strata_partition_the_items(c, preset):
    parts = strata(c, preset)
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(c.size))
    means = [c[ids].mean() for ids in parts.values() if ids.size]
    assert means == sorted(means)  # from unpopular to popular


@settings(max_examples=100, deadline=None)
@given(counts, st.sampled_from(["revadv", "rapu"]))
def test_strict_leaves_out_the_bounds(c, preset):
    percentiles = {"revadv": (50, 75, 95), "rapu": (20, 40, 60, 80)}[preset]
    bounds = np.percentile(c, percentiles)
    loose, strict = strata(c, preset), strata(c, preset, strict=True)
    for name in loose:
        assert set(strict[name]) == {i for i in loose[name] if c[i] not in bounds}


def test_bounds_by_hand():
    c = np.arange(101)  # percentile q is q itself
    parts = strata(c)
    assert {name: (ids.min(), ids.max()) for name, ids in parts.items()} == {
        "tail": (0, 49),
        "lower_torso": (50, 74),
        "upper_torso": (75, 94),
        "head": (95, 100),
    }
    rapu = strata(c, "rapu")
    assert [ids.min() for ids in rapu.values()] == [0, 20, 40, 60, 80]
    assert strata(c, "apt")["unpopular"].tolist() == [0, 1, 2, 3, 4]
    assert strata(c, strict=True)["head"].tolist() == [96, 97, 98, 99, 100]


def test_pick_targets():
    wide = Interactions.from_dense(np.tril(np.ones((80, 80))))
    assert len({tuple(pick_targets(wide, "head", 2, seed).tolist()) for seed in range(20)}) > 3
    data = Interactions.from_dense(np.tril(np.ones((40, 40))))  # item i has 40 - i events
    head = set(strata(data.popularity())["head"].tolist())
    picked = [pick_targets(data, "head", 2, seed) for seed in range(20)]
    assert all(set(t.tolist()) <= head and len(set(t.tolist())) == 2 for t in picked)
    assert pick_targets(data, "tail", 3, 5).tolist() == pick_targets(data, "tail", 3, 5).tolist()
    assert set(pick_targets(data, "unpopular", 4, 0, preset="apt").tolist()) == {36, 37, 38, 39}
    assert pick_targets(data, "random", 40, 0).tolist() == list(range(40))


def test_published_sets():
    data = Interactions.from_arrays([0], [0], items=14007)
    assert pick_targets(data, "gowalla/head").tolist() == [259, 2272, 3010, 6737, 7690]
    assert all(len(set(ids)) == len(ids) == 5 for ids in PUBLISHED.values())
    with pytest.raises(ValueError, match="fixed set of 5 items"):
        pick_targets(data, "gowalla/head", 3)


def test_published_gowalla_sets_lie_in_their_strata():
    if "BILEVEL_DATA" not in os.environ:
        pytest.skip("BILEVEL_DATA is not set")
    parts = strata(dataset("gowalla-15core").split.train.popularity())
    stray = {
        i for name in _GOWALLA for i in PUBLISHED[f"gowalla/{name}"] if i not in set(parts[name].tolist())
    }
    # 19 of the 20 lie where the paper puts them. 9213 is one of the 555 item ids that the reconstruction of this
    # data set could not pin down (exact = 0 in its items file), so its count may be that of another item.
    assert stray <= {9213}


_GOWALLA = ("head", "upper_torso", "lower_torso", "tail")
