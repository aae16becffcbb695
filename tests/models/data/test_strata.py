"""Popularity strata: a partition, the papers' bounds, draws and published sets."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import PUBLISHED, Interactions, Split, dataset, holdout_one, new_items, pick_targets, strata

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


@settings(max_examples=100, deadline=None)
@given(counts, st.booleans())
def test_the_papers_strata_cover_what_they_say(c, strict):
    """RevAdv and RAPU: all items between them, less those on a bound when strict; APT: fewer than 5, and all."""
    for preset, percentiles in (("revadv", (50, 75, 95)), ("rapu", (20, 40, 60, 80))):
        parts = strata(c, preset, strict=strict)
        held = np.concatenate(list(parts.values()))
        assert held.size == np.unique(held).size
        left_out = np.isin(c, np.percentile(c, percentiles)).sum() if strict else 0
        assert held.size == c.size - left_out
    apt = strata(c, "apt")
    assert set(apt["unpopular"]) == {i for i in range(c.size) if c[i] < 5}
    assert apt["random"].tolist() == list(range(c.size))


@pytest.mark.parametrize("track", ["implicit", "explicit", "sequence"])
def test_new_items_have_no_event(track):
    weight = [3.0, 1.0, 2.0] if track == "explicit" else None
    x = Interactions.from_arrays([0, 1, 1], [1, 0, 1], weight, users=3, items=4, track=track, capacity=5)
    wider, targets = new_items(x)
    assert targets.tolist() == list(range(4, 12))
    assert (wider.users, wider.items, wider.capacity) == (3, 12, 5)
    wider.validate()
    assert np.array_equal(wider.dense()[:, :4], x.dense())
    assert not np.any(wider.popularity()[4:])
    assert np.all(np.diff(wider.item[3:]) == 0)  # padding still carries the last item
    assert wider.item.tolist()[3:] == [11, 11]
    assert np.array_equal(wider.weight, x.weight)


def test_new_items_of_a_split():
    x = Interactions.from_arrays([0, 0, 0, 1, 1], [0, 1, 2, 0, 1])
    for validation in (False, True):
        split = holdout_one(x, 0, validation=validation)
        wide, targets = new_items(split, 2)
        assert isinstance(wide, Split)
        assert targets.tolist() == [3, 4]
        assert (wide.validation is None) == (split.validation is None)
        for part, old in zip(wide, split, strict=True):
            if part is not None:
                assert part.validate().items == 5
                assert int(part.count) == int(old.count)
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match="expected a whole number >= 1"):
            new_items(x, bad)


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
