"""The searches: ACCENT against all subsets, it and the baselines against their loops; padding is in no set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.explain.accent import evict, walk

R, M = 5, 10
one = jax.jit(jax.vmap(evict, (0, 0, 0)))
listed = jax.jit(jax.vmap(lambda *given: evict(*given, k=2)))
B = 64
SETS = np.unpackbits(np.arange(2**M, dtype=">u2")[:, None].view(np.uint8), axis=1)[:, -M:].astype(bool)
"""All sets of M interactions."""


def drawn(seed):
    """B problems of up to M interactions, on a grid: sums are exact, so that ties are ties."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.integers(0, 40, (B, R)), axis=1)[:, ::-1] / 8
    drop = rng.integers(-12, 20, (B, R, M)) / 8
    real = np.arange(M) < rng.integers(0, M + 1, B)[:, None]
    return scores.astype(np.float32), drop.astype(np.float32), real


def smallest(scores, drop, real):
    """Size of the smallest set after which another item is above the first."""
    sets = SETS[~SETS[:, ~real].any(1) & SETS.any(1)]
    new = scores - sets @ drop.T.astype(float)
    works = (new[:, 1:] > new[:, [0]]).any(1)
    return int(sets[works].sum(1).min()) if works.any() else None


@given(st.integers(0, 10**6))
def test_accent_is_minimal(seed):
    """Of 1600 drawn problems: as small as the best of all subsets, and a set that works by its own prediction."""
    scores, drop, real = drawn(seed)
    found = jax.tree.map(np.asarray, one(scores, drop, real))
    for n in range(B):
        size = smallest(scores[n], drop[n], real[n])
        assert found.found[n] == (size is not None)
        if size is None:
            assert found.replacement[n] == -1
            assert not found.removed[n].any()
            continue
        assert found.removed[n].sum() == size
        new = scores[n] - drop[n][:, found.removed[n]].sum(1)
        assert new[found.replacement[n]] > new[0]
        assert not np.any(found.removed[n] & ~real[n])


def by_rule(scores, drop, real, target, k):
    """Algorithm 1 as a loop, for a target in a list of k: its set and the item that passes, None and -1 without."""
    found = []
    for i in range(k, R if target < k else k):
        gain, new, gone = drop[target] - drop[i], scores, []
        for z in sorted(np.flatnonzero(real), key=lambda z: -gain[z]):
            if gain[z] < 0:
                break
            new, gone = new - drop[:, z], [*gone, z]
            if new[i] > new[target] and sum(new > new[target]) >= k:
                found.append((len(gone), new[target] - new[i], i, set(gone)))
                break
    *_, item, gone = min(found, default=(-1, None))
    return gone, item


@pytest.mark.parametrize("k", [1, 2])
def test_an_item_at_any_rank_leaves_its_list_by_the_rule(k):
    """Of 128 problems with a target of any of three ranks: the sets of the loop, in every case that has one."""
    search, sets = {1: one, 2: listed}[k], []
    for seed in range(2):
        scores, drop, real = drawn(seed)
        scores *= 3  # far apart, so that sets have more than two
        target = np.arange(B) % 3 if k > 1 else np.zeros(B, int)
        found = jax.tree.map(np.asarray, search(scores, drop, real, *([target] if k > 1 else [])))
        for n in range(B):
            gone, item = by_rule(scores[n], drop[n], real[n], target[n], k)
            assert found.found[n] == (gone is not None)
            assert set(np.flatnonzero(found.removed[n])) == (gone or set())
            assert found.replacement[n] == item
            sets += [len(gone)] if gone else []
    assert len(sets) > B / 2  # a target of the third rank is in no list of two
    assert max(sets) > 3


def reference(scores, drop, real, only_reducing):
    """FIA and pure FIA as loops."""
    gone, gap, now = [], scores[0] - scores[1:].max(), scores
    for z in sorted(np.flatnonzero(real), key=lambda z: -drop[0, z]):
        new = now - drop[:, z]
        if not only_reducing or new[0] - new[1:].max() < gap:
            gone, gap, now = [*gone, z], new[0] - new[1:].max(), new
        if gone and gap < 0:
            return set(gone), int(np.argmax(now[1:])) + 1
    return None, -1


@pytest.mark.parametrize("only_reducing", [True, False])
def test_walks_equal_their_loops(only_reducing):
    scores, drop, real = drawn(5)
    scores[:, 0] += 0.125  # the first is the best

    def search(scores, drop, real):
        order = jnp.argsort(jnp.where(real, -drop[0], jnp.inf), stable=True)
        return walk(order, lambda gone: scores - drop @ gone, real, only_reducing=only_reducing)

    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(search))(scores, drop, real))
    sets = 0
    for n in range(B):
        gone, replacement = reference(scores[n], drop[n], real[n], only_reducing)
        assert found.found[n] == (gone is not None)
        assert set(np.flatnonzero(found.removed[n])) == (gone or set())
        assert found.replacement[n] == replacement
        sets += gone is not None
    assert 10 < sets < B


def test_a_list_needs_an_item_outside():
    with pytest.raises(ValueError, match=r"k=5 with 5 items; expected 1\.\.4"):
        evict(jnp.zeros(5), jnp.zeros((5, 2)), jnp.ones(2, bool), k=5)
