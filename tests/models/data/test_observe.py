"""Attacker's views: exact quotas of true and false events, on the cells they must come from, seeded."""

from fractions import Fraction
from math import ceil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import Interactions, binarize, observe


def drawn(seed, users=15, items=12, density=0.3, **options):
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((users, items)) < density)
    weight = rng.integers(1, 6, user.size) if options.get("track") == "explicit" else None
    return Interactions.from_arrays(user, item, weight, users=users, items=items, **options)


def matrix(x):
    out = np.zeros((x.users, x.items))
    frame = x.to_frame()
    np.add.at(out, (frame.user, frame.item), frame.weight)
    return out


seeds = st.integers(0, 2**31)
shares = st.sampled_from([0.05, 0.07, 0.3, 0.5, 0.9, 0.99, 1.0])


@settings(max_examples=60, deadline=None)
@given(seeds, shares, st.sampled_from([None, 0.0, 0.07, 0.3, 1.0]), st.sampled_from(["walk", "uniform"]))
def test_quotas_are_exact(seed, rho, pert, strategy):
    x = drawn(seed)
    view = observe.perturbed(rho, pert, strategy=strategy)(x, seed).validate()
    truth, seen = matrix(x), matrix(view)
    n = int(truth.sum())
    exact = Fraction(str(rho)), 1 - Fraction(str(rho)) if pert is None else Fraction(str(pert))
    assert np.sum((seen > 0) & (truth > 0)) == ceil(exact[0] * n)
    assert np.sum((seen > 0) & (truth == 0)) == ceil(exact[1] * n)
    assert seen.max(initial=0) <= 1
    assert (view.users, view.items, view.track) == (x.users, x.items, "implicit")
    assert view.capacity == max(int(seen.sum()), 1)


@given(st.integers(0, 10**7), st.integers(1, 10**6))
def test_shares_are_meant_as_decimals(n, millionths):
    """0.07 of 100 is 7, though 0.07 * 100 is a little more in binary; 0.0001 of 1,000,001 is a little over 100."""
    assert observe.quota(n, millionths / 10**6, 0.07) == (-(-n * millionths // 10**6), -(-n * 7 // 100))


@settings(max_examples=40, deadline=None)
@given(seeds, shares, st.sampled_from(["implicit", "explicit", "sequence"]))
def test_partial_takes_a_share_and_changes_nothing(seed, rho, track):
    x = drawn(seed, track=track, capacity=200)
    seen = observe.partial(rho)(x, seed).validate()
    n = int(x.real().sum())
    assert int(seen.real().sum()) == ceil(Fraction(str(rho)) * n)
    whole = {tuple(row) for row in x.to_frame().itertuples(index=False)}
    assert {tuple(row) for row in seen.to_frame().itertuples(index=False)} <= whole


@pytest.mark.parametrize("track", ["implicit", "explicit", "sequence"])
def test_all_of_it_is_the_data_itself(track):
    x = drawn(3, track=track)
    views = [observe.full(), observe.partial(1.0), observe.perturbed(1.0, 0.0, strategy="uniform")]
    if track != "sequence":
        views.append(observe.perturbed(1.0, 0.0))
    for view in views:
        for padded in (x, x.pad(150)):
            seen = view(padded, 5)
            for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(x), strict=True):
                assert a.dtype == b.dtype
                assert np.array_equal(a, b)


def test_same_key_same_view():
    x = drawn(0)
    for view in (observe.partial(0.5), observe.perturbed(0.5), observe.perturbed(0.5, strategy="uniform")):
        a, b, c = (matrix(view(x, key)) for key in (7, jax.random.key(7), 8))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_uniform_draws_every_cell_alike():
    x = drawn(1, users=6, items=8, density=0.4)
    n, free = int(x.count), 48 - int(x.count)
    view = observe.perturbed(0.5, 0.5, strategy="uniform")
    seen = sum(matrix(view(x, seed)) for seed in range(1000)) / 1000
    truth = matrix(x) > 0
    quota = ceil(n / 2)
    # standard deviation of a share of 1000 draws is at most 0.016
    assert np.abs(seen[truth] - quota / n).max() < 0.07
    assert np.abs(seen[~truth] - quota / free).max() < 0.07


def test_the_walk_favors_high_degrees():
    """Half of all clicks are user 0's, so about half the steps from a user, and of the false clicks, are too."""
    x = Interactions.from_arrays([0] * 10 + list(range(1, 11)), [*range(10), *range(10)], items=40)
    truth = matrix(x) > 0
    share = {}
    for strategy in ("walk", "uniform"):
        view = observe.perturbed(0.1, 0.2, strategy=strategy)
        false = sum(matrix(view(x, seed)) * ~truth for seed in range(100))
        share[strategy] = false[0].sum() / false.sum()
    assert share["uniform"] < 0.12  # 30 of its 40 cells are free, of 420
    assert share["walk"] > 2 * share["uniform"]


def test_a_graph_of_many_parts_is_searched_by_new_starts():
    """Without jumps a walker never leaves its own user and item; two walkers find all 20 pairs only by restarting."""
    x = Interactions.from_dense(np.eye(20))
    seen = observe.perturbed(1.0, 0.0, p_jump=0.0)(x, 0)
    assert np.array_equal(matrix(seen), np.eye(20))


def test_users_and_items_without_or_with_all_clicks():
    dense = np.zeros((4, 5))
    dense[0] = 1  # user 0 clicked all; users 1 and 2 nothing; items 1.. only user 0
    dense[3, 0] = 1
    x = Interactions.from_dense(dense)
    for seed in range(20):
        seen = matrix(observe.perturbed(1.0, 2.3)(x, seed))
        assert seen.sum() == 6 + 14  # every free cell, and no more
        assert np.array_equal(seen, np.ones((4, 5)))
    with pytest.raises(ValueError, match="asks for 15 false clicks, but only 14 cells are free"):
        observe.perturbed(1.0, 2.5)(x, 0)


def test_a_step_of_the_walk_by_hand():
    """From user 0 (items 0 and 2 of 4): a true step goes to 0 or 2, a jump to 1 or 3, each with its probability."""
    side = observe._side(np.array([0, 0, 1]), np.array([0, 2, 1]), 2, 4)
    rng = np.random.default_rng(0)
    to, true = observe._step(side, np.zeros(20_000, np.int64), 0.25, rng)
    shares = np.bincount(to, minlength=4) / to.size
    assert np.abs(shares - [0.375, 0.125, 0.375, 0.125]).max() < 0.02
    assert np.array_equal(true, np.isin(to, [0, 2]))


def test_times_are_kept_while_all_events_are_true():
    x = Interactions.from_arrays([0, 0, 1, 1], [0, 1, 0, 2], time=[9, 8, 7, 6])
    assert sorted(observe.partial(0.5)(x, 0).time.tolist()) != [0, 0]
    assert observe.perturbed(0.5, 0.0)(x, 0).time is not None
    assert observe.perturbed(0.5, 0.5)(x, 0).time is None


def test_item_counts_only():
    x = drawn(2, capacity=100)
    known = observe.popularity_only(x)
    assert np.array_equal(known.popularity(), x.popularity())
    assert (known.users, known.items, known.track) == (15, 12, "implicit")
    assert repr(known) == "Popularity(15 users x 12 items, implicit, item counts only)"
    assert not hasattr(known, "user")
    for call in (
        lambda: known.user,
        lambda: known.dense,
        lambda: known.degrees,
        lambda: known.row_pointers,
    ):
        with pytest.raises(AttributeError, match="sees item counts only"):
            call()


def test_what_a_view_refuses():
    rated = drawn(0, track="explicit")
    order = drawn(0, track="sequence")
    for call, message in (
        (lambda: observe.partial(0), r"rho=0: expected a share of the events in \(0, 1\]"),
        (lambda: observe.perturbed(1.2), "rho=1.2"),
        (lambda: observe.perturbed(float("nan")), "rho=nan"),
        (lambda: observe.perturbed(0.9, -0.1), "pert=-0.1"),
        (lambda: observe.perturbed(0.9, p_jump=2), "p_jump=2: expected a probability"),
        (lambda: observe.perturbed(0.9, p_jump=0), "never meets a false click"),
        (lambda: observe.perturbed(0.9, p_jump=1), "never meets a true click"),
        (lambda: observe.perturbed(0.9, strategy="uniform", p_jump=0.3), "has no jumps"),
        (lambda: observe.perturbed(0.9, strategy="jump"), "strategy='jump'"),
        (lambda: observe.perturbed(0.9)(rated, 0), "false clicks have no rating"),
        (
            lambda: observe.perturbed(0.9, 0.1, strategy="uniform")(order, 0),
            "false clicks have no place in time",
        ),
        (lambda: observe.perturbed(0.9, 0.0)(order, 0), "a sequence may repeat it"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert observe.perturbed(0.9, 0.0)(rated, 0).track == "explicit"
    assert observe.perturbed(0.9)(binarize(rated), 0).track == "implicit"


def test_a_view_says_what_it_is():
    assert repr(observe.perturbed(0.9)) == "perturbed(rho=0.9, pert=0.1, strategy='walk', p_jump=0.1)"
    assert (
        repr(observe.perturbed(0.8, 0.0, strategy="uniform"))
        == "perturbed(rho=0.8, pert=0.0, strategy='uniform')"
    )
    assert repr(observe.full()) == "full()"
