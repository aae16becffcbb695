"""Heuristic attacks in rows: which fillers, which ratings, every rule at once on drawn keys and data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import attacks
from models.data import Interactions
from tests.attacks.test_rating import law

USERS, ITEMS, FAKES, BUDGET = 25, 42, 4, 10
TARGETS = (3, 20)
OTHERS = np.setdiff1d(np.arange(ITEMS), TARGETS)
POPULAR = 4  # a tenth of the 40 items that are not targets
GRID = (1.0, 5.0, 1.0)
CLICKS = {
    "random": attacks.random,
    "top_popular": attacks.top_popular,
    "popular": attacks.popular,
    "bandwagon": attacks.bandwagon,
    "hcars_bandwagon": attacks.hcars_bandwagon,
    "power_item": attacks.power_item,
    "segment": attacks.segment,
}
FIXED = ("top_popular", "power_item", "segment")  # the same for every key
RATINGS = CLICKS | {"average": attacks.average}


def matrix():
    rng = np.random.default_rng(5)
    chance = rng.beta(1, 2, ITEMS)
    chance[list(TARGETS)] = 0.5
    rows = rng.random((USERS, ITEMS)) < chance
    return rows * rng.integers(1, 6, rows.shape) * 1.0


def stacked(makers, keys, train, targets, **more):
    """`{name: rows of every key}`, in one compiled call."""
    made = {name: make(fakes=FAKES, budget=BUDGET, **more) for name, make in makers.items()}
    every = lambda key: {name: attack(key, train, targets).to_rows() for name, attack in made.items()}
    return {name: np.asarray(rows) for name, rows in jax.jit(jax.vmap(every))(keys).items()}


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(11), 300)


@pytest.fixture(scope="module")
def rated(keys):
    train = Interactions.from_dense(matrix(), track="explicit")
    return stacked(RATINGS, keys, train, jnp.array(TARGETS), track="explicit", ratings=GRID)


@pytest.fixture(scope="module")
def clicks(rated):
    """What was rated, by the rules that clicks have too."""
    return {name: (rated[name] > 0).astype(int) for name in CLICKS}


def cosines(real):
    length = np.linalg.norm(real, axis=0)
    over = np.outer(length, length)
    return np.divide(real.T @ real, over, out=np.zeros_like(over), where=over > 0)


def by_clicks():
    count = (matrix() > 0).sum(0)
    return sorted(OTHERS, key=lambda i: (-count[i], i))


def uniform(counts):
    # Drawn without replacement the counts vary less than multinomial ones, so the test is conservative.
    return scipy.stats.chisquare(counts).pvalue > 1e-3


def test_row_sums_are_exact_and_targets_clicked(rated):
    for rows in (rows > 0 for rows in rated.values()):
        np.testing.assert_array_equal(rows.sum(-1), BUDGET + 2)
        assert rows[..., TARGETS].all()


def test_random_rules_differ_between_keys_and_fake_users_and_fixed_ones_do_not(clicks):
    for name, rows in clicks.items():
        distinct = len(np.unique(rows.reshape(-1, ITEMS), axis=0))
        assert distinct == 1 if name in FIXED else distinct > 100, name


def test_fillers_of_every_rule(clicks):
    order = by_clicks()
    top, rest = order[:POPULAR], order[POPULAR:]
    np.testing.assert_array_equal(clicks["popular"][..., top].sum(-1), round(0.1 * BUDGET))
    np.testing.assert_array_equal(clicks["bandwagon"][..., order[:3]].sum(-1), 3)
    np.testing.assert_array_equal(
        clicks["hcars_bandwagon"][..., top].sum(-1), POPULAR
    )  # fewer than the budget
    np.testing.assert_array_equal(clicks["top_popular"][..., order[:BUDGET]].sum(-1), BUDGET)
    total = {name: rows.sum((0, 1)) for name, rows in clicks.items()}
    for name, free in {
        "random": OTHERS,
        "bandwagon": order[3:],
        "hcars_bandwagon": rest,
        "popular": rest,
    }.items():
        assert uniform(total[name][free]), name
    assert uniform(total["popular"][top])


def test_popular_shares(key):
    train = Interactions.from_dense((matrix() > 0) * 1.0)
    order = by_clicks()
    shares = {(0.5, 0.25): (5, 10), (0.0, 0.5): (0, 20), (0.9, 0.05): (2, 2)}
    makers = {pair: attacks.popular(fakes=50, budget=BUDGET, share=pair[0], top=pair[1]) for pair in shares}
    rows = jax.jit(lambda key: [made(key, train, jnp.array(TARGETS)).to_rows() for made in makers.values()])
    for got, (held, size) in zip(rows(key), shares.values(), strict=True):
        np.testing.assert_array_equal(got[:, np.array(order[:size])].sum(1), held)


def test_ratings_are_on_the_grid_and_targets_get_its_end(rated):
    for rows in rated.values():
        assert np.isin(rows, [0, 1, 2, 3, 4, 5]).all()
        assert (rows[..., TARGETS] == 5).all()


def test_selected_items_get_their_ratings(rated):
    order = by_clicks()
    top, rest = order[:POPULAR], order[POPULAR:]
    chosen = lambda name, items: rated[name][..., items][rated[name][..., items] > 0]
    assert (chosen("popular", top) == 5).all()
    assert (chosen("bandwagon", order[:3]) == 5).all()
    assert (chosen("hcars_bandwagon", OTHERS) == 5).all()
    assert (chosen("top_popular", OTHERS) == 5).all()
    assert (chosen("segment", OTHERS) == 5).all()
    every = matrix()[matrix() > 0]
    mean, deviation = law(every.mean(), every.std(), attacks.Ratings(*GRID))
    for name, items in {"popular": rest, "bandwagon": order[3:], "random": OTHERS}.items():
        values = chosen(name, items)
        assert abs(values.mean() - mean) < 4 * deviation / np.sqrt(values.size), name
        assert abs(values.std() - deviation) < 0.03 * deviation, name


@pytest.mark.parametrize("name", ["average", "power_item"])
def test_ratings_around_the_mean_of_each_item(rated, name):
    real = matrix()
    found = 0
    for i in OTHERS:
        own = real[real[:, i] > 0, i]
        values = rated[name][..., i][rated[name][..., i] > 0]
        if own.size < 2 or own.std() == 0 or not values.size:
            continue
        mean, deviation = law(own.mean(), own.std(), attacks.Ratings(*GRID))
        assert abs(values.mean() - mean) < 5 * deviation / np.sqrt(values.size) + 1e-9, i
        found += 1
    assert found >= (30 if name == "average" else BUDGET)


def test_demotion_lowers_the_targets_alone_and_noise_has_none(keys, rated):
    train = Interactions.from_dense(matrix(), track="explicit")
    common = {"track": "explicit", "ratings": GRID}
    down = stacked(
        {"bandwagon": attacks.bandwagon}, keys[:3], train, jnp.array(TARGETS), goal="demote", **common
    )
    assert (down["bandwagon"][..., TARGETS] == 1).all()
    np.testing.assert_array_equal(down["bandwagon"][..., OTHERS], rated["bandwagon"][:3][..., OTHERS])
    noise = [
        make(fakes=FAKES, budget=BUDGET, goal="availability", **common)
        for make in (attacks.random, attacks.average)
    ]
    for profiles in jax.jit(lambda key: [made(key, train, []) for made in noise])(keys[0]):
        profiles.validate(budget=BUDGET, ratings=(1, 5))
        np.testing.assert_array_equal((profiles.rows > 0).sum(-1), BUDGET)
        assert not profiles.clicks_targets


def test_split_gives_each_target_its_own_segment_and_rating(key):
    real = matrix()
    train = Interactions.from_dense(real, track="explicit")
    made = attacks.segment(
        fakes=FAKES, budget=BUDGET, selected=4, target_mode="split", track="explicit", ratings=GRID
    )
    rows = np.asarray(jax.jit(made)(key, train, jnp.array(TARGETS)).to_rows())
    for fake, row in enumerate(rows):
        own, other = TARGETS[fake % 2], TARGETS[1 - fake % 2]
        cosine = cosines(real)[own]
        best = sorted(OTHERS, key=lambda i: -cosine[i])[:4]
        assert (row[best] == 5).all()
        assert row[own] == 5
        assert row[other] == 0
        rest = np.setdiff1d(np.flatnonzero(row), [own, *best])
        assert rest.size == BUDGET - 4
        assert (row[rest] == 1).all()


def test_the_segment_of_several_targets_is_like_all_of_them(clicks):
    cosine = cosines(matrix())[:, TARGETS].sum(1)
    best = sorted(OTHERS, key=lambda i: -cosine[i])[:BUDGET]
    assert clicks["segment"][..., best].all()


def test_power_items_have_the_largest_in_degree(clicks):
    real = matrix()
    shared = (real > 0).T @ (real > 0).astype(int)
    cosine, count = cosines(real), np.diag(shared)
    degree = np.zeros(ITEMS, int)
    for i in range(ITEMS):
        near = [j for j in range(ITEMS) if j != i and shared[i, j] >= 5]
        degree[sorted(near, key=lambda j: (-cosine[i, j], j))[:20]] += 1
    best = sorted(OTHERS, key=lambda i: (-degree[i], -count[i], i))[:BUDGET]
    assert degree[best].min() > 0
    assert clicks["power_item"][..., best].all()


def test_targets_nobody_marked_leave_the_most_clicked_items_as_their_segment(key):
    real = (matrix() > 0) * 1.0
    real[:, TARGETS] = 0
    train = Interactions.from_dense(real)
    made = jax.jit(attacks.segment(fakes=2, budget=BUDGET))(key, train, jnp.array(TARGETS))
    assert np.asarray(made.to_rows())[:, by_clicks()[:BUDGET]].all()


def test_a_record_says_what_was_used():
    made = attacks.top_popular(fakes=2, budget=3, track="explicit", ratings=(1, 5, 0.5), goal="demote")
    assert repr(made) == (
        "top_popular(fakes=2, budget=3, target_mode='all', track='explicit', goal='demote', "
        "ratings=Ratings(low=1.0, high=5.0, step=0.5), rated='max')"
    )
    assert made.threat.knowledge == "popularity"
    assert attacks.random(fakes=2, budget=3).threat.knowledge == "items"
    assert attacks.random(fakes=2, budget=3, track="explicit", ratings=GRID).threat.knowledge == "popularity"
    assert attacks.segment(fakes=2, budget=3).threat.knowledge == "interactions"
