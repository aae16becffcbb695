"""The searches: ACCENT against all subsets, the baselines against their loops, and that padding changes nothing."""

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


def smallest(scores, drop, real, target=0, k=1, replacement=None):
    """Size of the smallest set after which an item behind the list is above the target and so are k in all."""
    others = range(k, R) if replacement is None else [replacement]
    sets = SETS[~SETS[:, ~real].any(1) & SETS.any(1)]
    new = scores - sets @ drop.T.astype(float)
    above = new > new[:, [target]]
    works = above[:, list(others)].any(1) & (above.sum(1) >= k)
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
        assert new[found.replacement[n]] < np.inf
        assert new[found.replacement[n]] > new[0]
        assert not np.any(found.removed[n] & ~real[n])


@given(st.integers(0, 10**6))
def test_an_item_at_any_rank_leaves_its_list(seed):
    """k of the items are above it then; by brute force no set is smaller than the smallest that does it."""
    scores, drop, real = drawn(seed)
    target = np.random.default_rng(seed).integers(0, 3, B)
    found = jax.tree.map(np.asarray, listed(scores, drop, real, target))
    assert not found.found[target == 2].any()  # it is not in the list of two
    for n in np.flatnonzero(found.found):
        new = scores[n] - drop[n][:, found.removed[n]].sum(1)
        assert np.sum(new > new[target[n]]) >= 2
        assert found.replacement[n] >= 2
        assert new[found.replacement[n]] > new[target[n]]
        best = smallest(scores[n], drop[n], real[n], target[n], 2)
        assert best is not None
        assert best <= found.removed[n].sum()


def test_rank_one_of_a_list_of_one_is_accent():
    scores, drop, real = drawn(3)
    again = jax.jit(jax.vmap(lambda *given: evict(*given, k=1)))(scores, drop, real, np.zeros(B, int))
    for a, b in zip(one(scores, drop, real), again, strict=True):
        np.testing.assert_array_equal(a, b)


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
