"""RAPU's generative model: E-step against formulas, M-steps against enumeration, what EM does and cannot do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.pgm import Matrix, Pgm, Ratios, _m_step, e_step, em, log_likelihood, responsibilities

USERS, ITEMS = 12, 15
M_STEPS = ["paper", "exact", "hard"]


def matrix(clicked, predicted, r_bar):
    return Matrix(lambda users: clicked[users], lambda users: predicted[users], r_bar)


@functools.partial(jax.jit, static_argnums=0)
def cells(pgm, clicked, predicted, r_bar, ratios):
    return e_step(pgm, matrix(clicked, predicted, r_bar), ratios, jnp.arange(clicked.shape[0]))


@functools.partial(jax.jit, static_argnums=0)
def believed(pgm, clicked, predicted, r_bar, ratios):
    return responsibilities(
        pgm, matrix(clicked, predicted, r_bar), ratios, jnp.arange(clicked.shape[0], dtype=jnp.int32)
    )


@functools.partial(jax.jit, static_argnums=0)
def iterate(pgm, clicked, predicted, r_bar, ratios):
    """One M-step, and the log-likelihood before it."""
    cells = matrix(clicked, predicted, r_bar)
    return _m_step(pgm, cells, ratios), log_likelihood(pgm, cells, ratios)


@functools.partial(jax.jit, static_argnums=0)
def fit(pgm, clicked, predicted, r_bar, ratios=None):
    return em(pgm, matrix(clicked, predicted, r_bar), pgm.begin(*clicked.shape) if ratios is None else ratios)


def draw(seed, users=USERS, items=ITEMS, density=0.3):
    """Clicks, predictions around them, and ratios, in float64."""
    rng = np.random.default_rng(seed)
    clicked = rng.random((users, items)) < density
    predicted = clicked + rng.normal(size=clicked.shape) * rng.uniform(0.1, 0.6)
    ratios = Ratios(*(rng.uniform(0.05, 0.95, size) for size in (users, items, users, items)))
    return clicked, predicted, ratios


def normal(r, mean, sigma=0.3):
    return np.exp(-0.5 * ((r - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


# ------------------------------------------------------------------------------------------------ one iteration


@pytest.mark.parametrize("seed", range(3))
def test_the_e_step_is_equation_3(x64, seed):
    clicked, predicted, ratios = draw(seed)
    found = cells(Pgm(), clicked, predicted, 0.2, ratios)
    K = (ratios.kappa_user[:, None] + ratios.kappa_item) / 2
    G = (ratios.gamma_user[:, None] + ratios.gamma_item) / 2
    M = G * normal(clicked, predicted) + (1 - G) * normal(clicked, 0.2)
    np.testing.assert_allclose(found.kept, np.where(clicked, 1, K * M / (K * M + 1 - K)), rtol=1e-12)
    np.testing.assert_allclose(found.decent, G * normal(clicked, predicted) / M, rtol=1e-12)
    np.testing.assert_allclose(
        found.log_likelihood, np.log(np.where(clicked, K * M, K * M + 1 - K)), rtol=1e-9
    )
    both = believed(Pgm(), clicked, predicted, 0.2, ratios)
    np.testing.assert_allclose(both, found.kept * found.decent, rtol=1e-12)
    hard = believed(Pgm(m_step="hard"), clicked, predicted, 0.2, ratios)
    np.testing.assert_array_equal(hard, (np.asarray(found.kept) > 0.5) & (np.asarray(found.decent) > 0.5))


def by_enumeration(clicked, predicted, ratios, r_bar):
    """The exact EM update: all outcomes of (who decided, kept, who decided, decent) of every cell, in turn."""
    users, items = clicked.shape
    sums = {name: np.zeros((2, size)) for name, size in zip(Ratios._fields, (users, items, users, items))}
    for u in range(users):
        for i in range(items):
            r, likely = float(clicked[u, i]), {}
            kappa = (ratios.kappa_user[u], ratios.kappa_item[i])
            gamma = (ratios.gamma_user[u], ratios.gamma_item[i])
            for who in (0, 1):
                if not clicked[u, i]:
                    likely[who, 0, 0, 0] = 0.5 * (1 - kappa[who])
                for whose in (0, 1):
                    start = 0.5 * kappa[who] * 0.5
                    likely[who, 1, whose, 1] = start * gamma[whose] * normal(r, predicted[u, i])
                    likely[who, 1, whose, 0] = start * (1 - gamma[whose]) * normal(r, r_bar)
            total = sum(likely.values())
            for (who, kept, whose, decent), p in likely.items():
                at = ("kappa_user", u) if who == 0 else ("kappa_item", i)
                sums[at[0]][1 - kept, at[1]] += p / total
                if kept:
                    at = ("gamma_user", u) if whose == 0 else ("gamma_item", i)
                    sums[at[0]][1 - decent, at[1]] += p / total
    return Ratios(*(yes / (yes + no) for yes, no in sums.values()))


def test_the_exact_m_step_is_that_of_all_outcomes(x64):
    clicked, predicted, ratios = draw(7)
    found, _ = iterate(Pgm(m_step="exact"), clicked, predicted, 0.2, ratios)
    expected = by_enumeration(clicked, predicted, ratios, 0.2)
    for name in Ratios._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("m_step", ["paper", "hard"])
def test_the_papers_m_step_is_equation_4(x64, m_step):
    clicked, predicted, ratios = draw(8)
    found, _ = iterate(Pgm(m_step=m_step), clicked, predicted, 0.5, ratios)
    kept, decent, _ = map(np.asarray, cells(Pgm(), clicked, predicted, 0.5, ratios))
    kept = (kept > 0.5) * 1.0 if m_step == "hard" else kept
    for axis, (kappa, gamma) in ((1, (found.kappa_user, found.gamma_user)), (0, (found[1], found[3]))):
        np.testing.assert_allclose(kappa, kept.mean(axis), rtol=1e-12)
        np.testing.assert_allclose(gamma, (kept * decent).sum(axis) / kept.sum(axis), rtol=1e-12)


@pytest.mark.parametrize("m_step", M_STEPS)
def test_blocks_of_users_change_nothing(x64, m_step):
    clicked, predicted, ratios = draw(9)
    whole = iterate(Pgm(m_step=m_step), clicked, predicted, 0.5, ratios)
    blocked = iterate(Pgm(m_step=m_step, block=5), clicked, predicted, 0.5, ratios)  # 12 users: 5, 5, 2
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), whole, blocked)


def test_memory_follows_the_block():
    def temporaries(block):
        def run(factors, ratios):
            table = Matrix(
                lambda u: factors[0][u, :1] > factors[1][:, 0], lambda u: factors[0][u] @ factors[1].T, 0.1
            )
            return _m_step(Pgm(block=block), table, ratios)

        shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
        arguments = (shape(20_000, 4), shape(1000, 4)), Ratios(*map(shape, (20_000, 1000, 20_000, 1000)))
        analysis = jax.jit(run).lower(*arguments).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries(500) < 0.1 * temporaries(20_000)


# ------------------------------------------------------------------------------------------------ EM (C6)


@given(seed=st.integers(0, 2**31 - 1), r_bar=st.sampled_from([0.06, 0.3, 0.5]))
@settings(max_examples=40)
def test_the_exact_m_step_never_lowers_the_log_likelihood(x64, seed, r_bar):
    clicked, predicted, ratios = draw(seed)
    before = -np.inf
    for _ in range(12):
        ratios, likely = iterate(Pgm(m_step="exact"), clicked, predicted, r_bar, ratios)
        assert likely >= before - 1e-10 * abs(likely)
        before = float(likely)


def test_the_papers_m_step_can_lower_it_but_converges(x64):
    rng = np.random.default_rng(0)
    true = rng.random((USERS, ITEMS)) < 0.3
    clicked = true & (rng.random(true.shape) < rng.uniform(0.1, 0.95, (USERS, 1)))
    predicted = true + 0.1 * rng.normal(size=true.shape)
    least = {}
    for m_step in ("paper", "exact"):
        ratios, likely = Pgm().begin(USERS, ITEMS), []
        for _ in range(40):
            ratios, value = iterate(Pgm(m_step=m_step), clicked, predicted, 0.5, ratios)
            likely.append(float(value))
        least[m_step] = np.diff(likely).min()
    assert least["paper"] < -1e-4  # so that the test above says something about `exact`
    assert least["exact"] > -1e-12
    end = fit(Pgm(iterations=5000), clicked, predicted, 0.5)
    assert end.iterations < 5000
    assert end.moved < 1e-5


def sparse_data(seed=0, density=0.06, users=60, items=80):
    """Clicks about as sparse as MovieLens-100K, and predictions of a surrogate that has fitted most of them."""
    rng = np.random.default_rng(seed)
    clicked = rng.random((users, items)) < density
    predicted = np.where(clicked, 0.75, 0.05) + 0.25 * rng.normal(size=clicked.shape)
    return clicked, predicted


def test_with_the_mean_nothing_counts_as_removed():
    clicked, predicted = sparse_data()
    first, _ = iterate(Pgm(m_step="hard"), clicked, predicted, float(clicked.mean()), Pgm().begin(60, 80))
    np.testing.assert_array_equal(first.kappa_user, 1)  # hard: at once
    np.testing.assert_array_equal(first.kappa_item, 1)
    soft = fit(Pgm(), clicked, predicted, float(clicked.mean()))
    assert min(float(soft.ratios.kappa_user.min()), float(soft.ratios.kappa_item.min())) > 0.999
    half = fit(Pgm(), clicked, predicted, 0.5)  # the code's value does infer removals
    assert half.ratios.kappa_user.mean() < 0.9


@pytest.mark.parametrize("r_bar", [0.06, 0.5])
def test_a_hard_zero_is_kept_where_its_density_passes_a_quarter(x64, r_bar):
    # K = 0.8: kept iff M > (1 - K) / K = 0.25, with M = 0.8 N(0; predicted) + 0.2 N(0; r_bar).
    predicted = np.linspace(-1, 2, 61)[None]
    clicked = np.zeros_like(predicted, bool)
    kept = np.asarray(cells(Pgm(), clicked, predicted, r_bar, Pgm().begin(1, 61)).kept) > 0.5
    M = 0.8 * normal(0, predicted) + 0.2 * normal(0, r_bar)
    np.testing.assert_array_equal(kept, M > 0.25)
    assert kept.all() == (r_bar == 0.06)


@pytest.mark.parametrize("m_step", M_STEPS)
def test_clean_data_are_believed(m_step):
    rng = np.random.default_rng(1)
    clicked = rng.random((60, 80)) < 0.1
    predicted = clicked + 0.1 * rng.normal(size=clicked.shape)
    for ratio in fit(Pgm(m_step=m_step), clicked, predicted, float(clicked.mean())).ratios:
        assert ratio.mean() > 0.9


@pytest.mark.parametrize("m_step", ["paper", "exact"])
def test_users_whose_clicks_were_removed_are_found(m_step):
    rng = np.random.default_rng(2)
    true = rng.random((200, 300)) < 0.1
    kappa = rng.uniform(0.2, 0.95, 200)
    seen = true & (rng.random(true.shape) < kappa[:, None])
    predicted = true + 0.1 * rng.normal(size=true.shape)
    found = fit(Pgm(m_step=m_step), seen, predicted, float(seen.mean())).ratios
    assert np.corrcoef(kappa, found.kappa_user)[0, 1] > 0.55


@pytest.mark.parametrize("m_step", M_STEPS)
def test_an_implausible_click_is_believed_less(m_step):
    clicked, predicted = sparse_data()
    u, i = np.argwhere(clicked & (predicted > 0.7))[0]
    away = np.argwhere(~clicked[u] & (np.abs(predicted[u]) < 0.1))[0, 0]
    moved = clicked.copy()  # the genuine click is gone, and there is one the surrogate does not expect
    moved[u, i], moved[u, away] = False, True
    genuine, flipped = (
        cells(Pgm(), seen, predicted, 0.06, fit(Pgm(m_step=m_step), seen, predicted, 0.06).ratios).decent[u]
        for seen in (clicked, moved)
    )
    assert flipped[i] < genuine[i]
    assert flipped[away] < genuine[away]
    assert flipped[away] < genuine[i]


def test_a_warm_start_goes_on_where_it_was():
    clicked, predicted, _ = draw(3)
    short, whole = Pgm(iterations=7, tolerance=0.0), Pgm(iterations=14, tolerance=0.0)
    half = fit(short, clicked, predicted, 0.2)
    twice = fit(short, clicked, predicted, 0.2, half.ratios)
    expected = fit(whole, clicked, predicted, 0.2)
    assert int(half.iterations) == 7
    for a, b in zip(twice.ratios, expected.ratios):
        np.testing.assert_allclose(a, b, atol=1e-6)


# ------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("m_step", M_STEPS)
def test_rows_without_evidence_keep_their_value(m_step):
    # Nothing is kept (kappa = 0, no click), so nothing says what is decent: gamma is 0/0.
    clicked, predicted = jnp.zeros((3, 4), bool), jnp.zeros((3, 4))
    ratios = Ratios(jnp.zeros(3), jnp.zeros(4), jnp.full(3, 0.3), jnp.full(4, 0.6))
    found, likely = iterate(Pgm(m_step=m_step), clicked, predicted, 0.5, ratios)
    jax.tree.map(np.testing.assert_array_equal, found, ratios)
    assert likely == 0  # all zeros, for sure


@pytest.mark.parametrize("m_step", M_STEPS)
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_extreme_ratios_and_predictions_stay_finite(m_step, ratio):
    clicked = jnp.arange(12).reshape(3, 4) % 2 == 0
    predicted = jnp.array([[50.0, -50.0, 0.0, 1.0]] * 3)
    ratios = Ratios(*(jnp.full(size, ratio) for size in (3, 4, 3, 4)))
    found, _ = iterate(Pgm(m_step=m_step), clicked, predicted, 0.5, ratios)
    for values in found:
        assert ((values >= 0) & (values <= 1)).all()
    share = believed(Pgm(m_step=m_step), clicked, predicted, 0.5, ratios)
    np.testing.assert_array_equal(share, ratio)  # all believed, or none


def test_vmap_is_the_loop():
    many = [draw(seed)[:2] for seed in range(3)]
    clicked, predicted = (np.stack(part) for part in zip(*many))
    batch = jax.vmap(lambda c, p: fit(Pgm(), c, p, 0.2))(clicked, predicted)
    for n, (c, p) in enumerate(many):
        alone = fit(Pgm(), c, p, 0.2)
        assert batch.iterations[n] == alone.iterations
        for a, b in zip(batch.ratios, alone.ratios):
            np.testing.assert_allclose(a[n], b, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"m_step": "soft"}, "m_step is 'soft'"),
        ({"r_bar": "median"}, "r_bar is 'median'; expected 'mean' or a finite number"),
        ({"r_bar": float("nan")}, "r_bar is nan"),
        ({"sigma": 0.0}, "sigma is 0"),
        ({"start": 1.0}, r"start is 1\.0"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"iterations": 0}, "iterations is 0"),
        ({"block": 0}, "block is 0"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        Pgm(**arguments)
