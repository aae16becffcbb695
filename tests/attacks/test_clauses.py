"""The steps of H-CARS: the bounded ideal item, the greedy profile and its climb, inequality 12."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.clauses import better, climbed, greedy, ideal, in_rounds
from models import ncr

I = 12


def everybody(params, train):
    return params["user"], ncr.whole(params, ncr.prepare(train))


@jax.jit
def truth(params, h, chain, x):
    """How true it is that a user with this clause likes an item with this vector."""
    system = ncr.logic_of(params)
    return ncr.cosine(system.either(chain, ncr.event(params, h, x)), system.true)


def test_the_ideal_item_is_truer_within_its_bound(x64, train, params):
    """For each target; `before` and `after` are the means over users and targets, by the definition."""
    targets, views = jnp.array([2, 7]), everybody(params, train)
    find = jax.jit(lambda rho: ideal(params, views, targets, rho, 0.05, 60))
    q = params["item"][targets]
    moved, before, after = find(0.5)
    worth = lambda x: np.mean([truth(params, h, chain, x) for h, chain in zip(*views, strict=True)])
    of_q, of_moved = ([worth(x) for x in some] for some in (q, moved))
    assert (np.array(of_moved) > np.array(of_q) + 1e-3).all()
    np.testing.assert_allclose([before, after], [np.mean(of_q), np.mean(of_moved)], rtol=1e-9)
    assert (np.linalg.norm(moved - q, axis=1) <= 0.5 * np.linalg.norm(q, axis=1) * (1 + 1e-9)).all()
    still, before, after = find(0.0)
    np.testing.assert_array_equal(still, q)
    assert float(after) == float(before)


@pytest.mark.slow
def test_greedy_takes_the_best_next_item_and_beats_random_ones(x64, params):
    h, moved = params["user"][0], params["item"][jnp.array([2, 7])]
    candidates = jnp.array([0, 1, 3, 4, 5, 6, 8, 9, 10, 11])
    chosen, value = jax.jit(lambda: greedy(params, h, moved, candidates, 4))()
    assert len(set(np.asarray(chosen).tolist())) == 4
    system = ncr.logic_of(params)

    def worth(items):
        premises = ncr.event(params, h, params["item"][jnp.asarray(items)])[None]
        chain, _ = ncr.clause(system, premises, jnp.ones((1, len(items)), bool))
        return float(jnp.sum(ncr.cosine(system.either(chain, ncr.event(params, h, moved)), system.true)))

    np.testing.assert_allclose(worth(chosen), value, rtol=1e-9)
    for size in range(4):
        so_far = np.asarray(chosen[:size]).tolist()
        rest = [int(j) for j in candidates if int(j) not in so_far]
        assert int(chosen[size]) == max(rest, key=lambda j: worth([*so_far, j]))
    rng = np.random.default_rng(0)
    assert float(value) >= np.mean([worth(rng.permutation(candidates)[:4]) for _ in range(20)])


@pytest.mark.slow
def test_a_fake_users_vector_climbs_the_objective_of_its_items(params):
    """Eq. 13 with the items held: more after the climb; a second round of choosing is not behind the first."""
    h, moved, candidates = params["user"][0], params["item"][:2], jnp.arange(2, I)
    chosen, value = greedy(params, h, moved, candidates, 3)
    alone = lambda h: float(greedy(params, h, moved, chosen, 3)[1])
    higher = climbed(params, h, moved, chosen, 50, 1e-2)
    assert alone(higher) > alone(h) + 1e-3
    once = in_rounds(params, h, moved, candidates, 3, (1, 50, 1e-2))
    twice = in_rounds(params, h, moved, candidates, 3, (2, 50, 1e-2))
    np.testing.assert_array_equal(once[0], h)
    np.testing.assert_array_equal(twice[0], higher)
    assert float(twice[2]) > float(once[2]) == float(value)


def test_greedy_refuses_more_items_than_candidates(params):
    with pytest.raises(ValueError, match="budget=3 of 2 candidates"):
        greedy(params, params["user"][0], params["item"][:1], jnp.array([3, 4]), 3)


def test_inequality_12_is_its_sum_over_the_real_users_and_the_fake_one(x64, train, params):
    """The sums by the definition; of three perturbations of two targets some pass and some do not."""
    views, fake = everybody(params, train), (jnp.ones(4), jnp.array([1, 5, 8]))
    system, targets = ncr.logic_of(params), jnp.array([2, 7])
    q = params["item"][targets]
    true = lambda *given: float(truth(params, *given))
    rule = jax.jit(lambda moved: better(params, views, fake, targets, moved))
    chain = None
    for j in (1, 5, 8):
        part = system.negation(ncr.event(params, fake[0], params["item"][j]))
        chain = part if chain is None else system.either(chain, part)
    seen = set()
    for number in range(3):
        moved = q + jax.random.normal(jax.random.key(number), q.shape)
        total = lambda x: sum(true(h, c, x) for h, c in zip(*views, strict=True)) + true(fake[0], chain, x)
        expected = [total(moved[t]) >= total(q[t]) for t in range(2)]
        assert rule(moved).tolist() == expected
        seen |= set(expected)
    assert seen == {True, False}
    assert rule(q).tolist() == [True, True]
