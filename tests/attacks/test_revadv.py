"""RevAdv: the gradient it follows, the loop around it, and what it refuses."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import attacks
import bilevel
from attacks.surrogate import hypergradient, make_estimator, respond
from models import registry
from models.als import als
from models.data import Interactions
from models.data.relations import clusters
from models.evaluation import evaluate
from models.itemae import itemae
from models.wrmf import wrmf

USERS, ITEMS, FAKES = 12, 9, 3
TARGETS = jnp.array([2, 7])
PROMOTE = attacks.make_objective("promote")
SMALL: dict[str, Any] = {"factors": 3, "learning_rate": 0.1, "epochs": 6, "scale": 0.5, "form": "dense"}


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((USERS, ITEMS)) < 0.35).astype(float))


@pytest.fixture
def rows(rng):
    return jnp.asarray((rng.random((FAKES, ITEMS)) < 0.4).astype(float))


# One compiled function a test and model: what costs time here is compiling.


def by_sgd(model, rate, steps):
    """The same model trained by plain gradient descent."""
    return dataclasses.replace(
        model, trainer=lambda u, i, f, e=0: bilevel.gradient_descent(model.loss, optax.sgd(rate), steps)
    )


def gradient(model, estimator, rows, train, key, **options):
    @jax.jit
    def run(rows, train, key, options):
        return hypergradient(model, estimator, PROMOTE, rows, train, TARGETS, key, **options)

    return run(rows, train, key, options)


def response(models, weights, rows, train, key):
    @jax.jit
    def run(rows, train, key):
        partial = make_estimator("partial")
        return respond(models, weights, partial, PROMOTE, rows, train, TARGETS, key, k=3)

    return run(rows, train, key)


# ------------------------------------------------------------------------------------------------ the gradient


def test_one_sgd_step_has_the_closed_form(x64, train, rows, key):
    # ALGORITHMS 5.3(3): d q_i / d x_vi = 2 alpha w F_v, and L_adv does not read F.
    rate, weight = 1e-3, 20.0
    model = wrmf(**SMALL, weight=weight, l2=0.0)
    found = gradient(by_sgd(model, rate, 1), make_estimator("exact"), rows, train, key)
    start = model.init(jax.random.split(key)[0], USERS, ITEMS, FAKES)

    def outer(item):
        scores = found.params["user"] @ item.T
        return -jnp.sum(jnp.mean(jax.nn.log_softmax(scores)[:, TARGETS], axis=1))

    slope = jax.grad(outer)(found.params["item"])
    expected = 2 * rate * jnp.where(rows > 0, weight, 1.0) * (start["fake"] @ slope.T)
    np.testing.assert_allclose(found.value, outer(found.params["item"]), rtol=1e-12)
    np.testing.assert_allclose(found.grad, expected, rtol=1e-10)


@pytest.mark.parametrize(("name", "options"), [("partial", {}), ("truncated", {"tau": 0})])
def test_without_unrolled_steps_the_gradient_of_wrmf_is_exactly_zero(train, rows, key, name, options):
    found = gradient(wrmf(**SMALL), make_estimator(name, **options), rows, train, key)
    np.testing.assert_array_equal(found.grad, 0)


@pytest.mark.slow
def test_all_epochs_are_exact_whatever_is_kept_in_memory(x64, train, rows, key):
    model = wrmf(**SMALL)
    exact = gradient(model, make_estimator("exact"), rows, train, key).grad
    whole = gradient(model, make_estimator("truncated", tau=6, memory="keep"), rows, train, key).grad
    np.testing.assert_allclose(whole, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("batch", "steps"), [(None, 2), (4, 8)])
def test_tau_is_in_epochs(batch, steps):
    inner = wrmf(**SMALL, batch=batch).trainer(USERS, ITEMS, FAKES)  # 15 rows: 4 steps an epoch
    assert make_estimator("truncated", tau=2)(inner).name == bilevel.truncated(inner, steps).name


def test_the_partial_derivative_of_als_has_the_closed_form(x64, train, rows, key):
    # 5.3: dL/dx_i = C_i G (G' C_i G + l2 E)^-1 G' (dL/dr_i), the fake rows of it, G and C_i held.
    weight, l2 = 5.0, 0.3
    model = als(factors=3, weight=weight, l2=l2, sweeps=2)
    found = gradient(model, make_estimator("partial"), rows, train, key)
    G = np.concatenate([found.params["user"], found.params["fake"]])
    X = np.concatenate([train.dense(), rows])
    expected = np.zeros((FAKES, ITEMS))
    solved = [_solve_item(G, X[:, i], weight, l2) for i in range(ITEMS)]
    R = np.stack([G[:USERS] @ item for item, _ in solved], axis=1)
    loss, slope = jax.value_and_grad(lambda R: attacks.promotion(lambda u: R[u], USERS, TARGETS))(R)
    for i, (_, inverse) in enumerate(solved):
        w = np.where(X[USERS:, i] > 0, weight, 1.0)
        expected[:, i] = w * (G[USERS:] @ inverse @ G[:USERS].T @ np.asarray(slope)[:, i])
    np.testing.assert_allclose(found.value, loss, rtol=1e-10)
    np.testing.assert_allclose(found.grad, expected, rtol=1e-8, atol=1e-10)


def _solve_item(G, column, weight, l2):
    w = np.where(column > 0, weight, 1.0)
    inverse = np.linalg.inv((G * w[:, None]).T @ G + l2 * np.eye(G.shape[1]))
    return inverse @ G.T @ (w * column), inverse


def test_the_partial_derivative_of_itemae_is_that_of_its_scores(train, rows, key):
    model = itemae(hidden=(4,), epochs=3, learning_rate=0.05)
    found = gradient(model, make_estimator("partial"), rows, train, key)

    def outer(rows):
        scores = model.scores(found.params, rows, model.prepare(train), jnp.arange(USERS))
        return attacks.promotion(lambda users: scores[users], USERS, TARGETS)

    np.testing.assert_allclose(found.grad, jax.jit(jax.grad(outer))(rows), rtol=1e-5)
    assert np.abs(found.grad).min() > 0


def test_the_relaxed_loss_decreases_along_the_gradient_with_frozen_weights(x64, train, rows, key):
    # 5.3(6): with w re-read from x > 0 a cell raised from 0 would jump to weight 20 and the loss with it.
    model = wrmf(**SMALL)
    frozen = model.prepare(train)._replace(observed=rows > 0)

    @jax.jit
    def at(rows):
        found = gradient(model, make_estimator("exact"), rows, train, key, data=frozen)
        return found.value, found.grad

    losses, x = [], rows
    for _ in range(8):
        value, slope = at(x)
        losses.append(float(value))
        x = x - 0.02 * slope / jnp.linalg.norm(slope)
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    value, slope = at(rows)
    step = 1e-6 * slope / jnp.linalg.norm(slope)
    change = (at(rows + step)[0] - at(rows - step)[0]) / 2
    np.testing.assert_allclose(change, jnp.vdot(slope, step), rtol=1e-6)


@pytest.mark.slow
def test_an_unconverged_implicit_gradient_is_not_called_ok(train, rows, key):
    estimator = make_estimator("implicit", linear=bilevel.cg(max_steps=5))
    found = gradient(wrmf(**SMALL), estimator, rows, train, key)
    assert found.diagnosis.code != bilevel.Code.OK


@pytest.mark.parametrize("name", ["implicit", "one_step"])
def test_other_estimators_by_name(name):
    inner = wrmf(**SMALL).trainer(USERS, ITEMS, FAKES)
    assert make_estimator(name)(inner).name.startswith(name)


def test_the_worst_code_of_the_surrogates_reaches_the_history(counting, train, key):
    two_step = dataclasses.replace(
        counting, trainer=lambda u, i, f, e=0: bilevel.fixed_point(lambda params, x, data, ctx: params, 2)
    )

    def doubtful(inner):
        solve, code = bilevel.detached(inner), jnp.int32(bilevel.Code.INDEFINITE if inner.steps > 1 else 0)
        zero = jnp.zeros(())
        result = bilevel.LinearResult(None, zero, jnp.int32(1), zero, code)
        return dataclasses.replace(solve, pull=lambda *given: (solve.pull(*given)[0], result))

    attack = attacks.revadv([two_step, counting], fakes=FAKES, steps=2, k=3, estimator=doubtful)
    _, history = attack.trace(key, train, TARGETS)
    np.testing.assert_array_equal(history["code"], [bilevel.Code.INDEFINITE] * 2)


# ------------------------------------------------------------------------------------------------ the loop


def test_two_outer_steps_are_those_of_algorithm_1(x64, train, rows, key):
    # Written out in NumPy: normalized rows, momentum, then the budget's highest non-targets and the targets.
    model, rate, momentum, budget = wrmf(**SMALL), 0.7, 0.9, 2
    attack = attacks.revadv(
        model,
        fakes=FAKES,
        budget=budget,
        projection="topk",
        click_targets=True,
        steps=2,
        learning_rate=rate,
        momentum=momentum,
        k=3,
        initial="given",
    )
    state = attack.init(key, train, TARGETS, rows)
    step = jax.jit(attack.step)
    x = np.asarray(state.outer.x)
    velocity = np.zeros_like(x)
    others = np.setdiff1d(np.arange(ITEMS), TARGETS)
    for _ in range(2):
        own = jax.random.fold_in(state.key, 0)
        slope = np.array(gradient(model, make_estimator("exact"), jnp.asarray(x), train, own).grad)
        slope[:, TARGETS] = 0
        velocity = momentum * velocity + slope / np.linalg.norm(slope, axis=1, keepdims=True)
        moved = x - rate * velocity
        x = np.zeros_like(x)
        x[:, TARGETS] = 1
        for row, values in zip(x, moved, strict=True):
            row[others[np.argsort(-values[others], kind="stable")[:budget]]] = 1
        state, _ = step(state, train, TARGETS)
        np.testing.assert_array_equal(state.outer.x, x)


@pytest.mark.slow
def test_every_step_trains_from_the_same_parameters(train, key):
    # A step too small to move a cell over the threshold: all iterates are equal, and so must be all that is seen.
    attack = attacks.revadv(wrmf(**SMALL), fakes=FAKES, steps=4, learning_rate=1e-9, momentum=0.0, k=3)
    _, history = attack.trace(key, train, TARGETS)
    for name in ("loss", "target_hr", "grad_norm", "mean_clicks"):
        assert len(set(np.asarray(history[name]).tolist())) == 1, name


def test_the_scored_iterate_with_the_best_score_is_returned(counting, train, key):
    attack = attacks.revadv(counting, fakes=FAKES, budget=3, projection="topk", steps=8, k=3)
    profiles, history = attack.trace(key, train, TARGETS)
    again = response([counting], [1.0], profiles.to_rows(), train, key)
    best = int(np.argmax(history["target_hr"]))
    np.testing.assert_allclose(again.target_hr, history["target_hr"][best])
    np.testing.assert_allclose(again.loss, history["loss"][best], rtol=1e-5)
    assert history["target_hr"][best] > history["target_hr"][0]


def test_an_attack_that_never_hits_returns_its_legal_start(counting, key):
    # Everybody has the target, nobody can be shown it: the hit ratio is 0 throughout, and better than nothing scored.
    train = Interactions.from_dense(np.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]] * 4))
    attack = attacks.revadv(counting, fakes=2, budget=1, steps=3, k=1)
    profiles, history = attack.trace(key, train, jnp.array([0]))
    np.testing.assert_array_equal(history["target_hr"], 0)
    np.testing.assert_array_equal(profiles.to_rows()[:, 0], 1)  # a copy of a real user, cut to the budget
    np.testing.assert_array_equal(profiles.to_rows().sum(axis=1), 2)


def test_targets_are_clicked_in_every_iterate_when_asked(counting, train, key):
    attack = attacks.revadv(counting, fakes=FAKES, budget=0, steps=2, k=3, click_targets=True)
    profiles, history = attack.trace(key, train, TARGETS)
    assert profiles.clicks_targets
    np.testing.assert_array_equal(profiles.to_rows().sum(axis=1), 2)
    np.testing.assert_array_equal(history["mean_clicks"], 2)


def test_a_test_set_is_measured_and_changes_nothing_else(counting, train, key, rng):
    held = Interactions.from_arrays(np.arange(USERS), rng.integers(0, ITEMS, USERS), users=USERS, items=ITEMS)
    attack = attacks.revadv(counting, fakes=FAKES, steps=2, k=3)
    without, bare = attack.trace(key, train, TARGETS)
    profiles, history = attack.trace(key, train, TARGETS, test=held)
    np.testing.assert_array_equal(profiles.to_rows(), without.to_rows())
    assert np.isnan(bare["test_hr"]).all()
    assert ((history["test_hr"] >= 0) & (history["test_hr"] <= 1)).all()


def test_an_ensemble_adds_weighted_losses_and_averages_hits(x64, counting, train, rows, key):
    shifted = dataclasses.replace(counting, embed=lambda params, x, data: (data, -data.T @ data - x.T @ x))
    models, weights, partial = [counting, shifted], [2.0, 0.5], make_estimator("partial")
    both = response(models, weights, rows, train, key)
    alone = [gradient(model, partial, rows, train, key) for model in models]
    np.testing.assert_allclose(both.loss, sum(w * one.value for w, one in zip(weights, alone, strict=True)))
    np.testing.assert_allclose(
        both.gradient, sum(w * one.grad for w, one in zip(weights, alone, strict=True))
    )
    tables = [model.scores(0.0, rows, train.dense(), jnp.arange(USERS)) for model in models]
    hits = [np.asarray(evaluate(t.__getitem__, train, targets=TARGETS, k=3).hr_any) for t in tables]
    assert hits[0] != hits[1]  # or the mean would say nothing
    np.testing.assert_allclose(both.target_hr, sum(hits) / 2)


@pytest.mark.slow
def test_an_ensemble_of_different_surrogates_attacks(counting, train, key):
    models = [als(factors=2, sweeps=1), counting]
    attack = attacks.revadv(
        models, weights=[1.0, 0.5], fakes=FAKES, budget=2, steps=2, k=3, estimator="partial"
    )
    profiles, history = attack.trace(key, train, TARGETS)
    profiles.validate(budget=2)
    assert np.isfinite(history["loss"]).all()


def test_initial_rows_of_the_call_win_over_those_of_the_factory(counting, train, rows, key):
    make = functools.partial(attacks.revadv, counting, fakes=FAKES, steps=1, k=3)
    attack = make(initial=np.zeros((FAKES, ITEMS)))
    np.testing.assert_array_equal(attack(key, train, TARGETS).to_rows(), 0)
    np.testing.assert_array_equal(attack(key, train, TARGETS, initial=rows).to_rows(), rows)
    traced = jax.jit(lambda rows: make(initial=rows)(key, train, TARGETS).to_rows())
    np.testing.assert_array_equal(traced(rows), rows)


def test_a_surrogate_that_diverges_is_never_the_best(counting, train, key):
    broken = dataclasses.replace(
        counting,
        embed=lambda params, x, data: (data, data.T @ data + jnp.where(x.sum() > 6, jnp.nan, 1) * (x.T @ x)),
    )
    rows = np.zeros((FAKES, ITEMS))
    rows[:, :2] = 1  # sum 6: finite; topk then clicks 3 each: not finite
    attack = attacks.revadv(broken, fakes=FAKES, budget=3, projection="topk", steps=3, k=3)
    profiles, history = attack.trace(key, train, TARGETS, initial=rows)
    np.testing.assert_array_equal(history["code"], [bilevel.Code.OK] + [bilevel.Code.NON_FINITE] * 2)
    np.testing.assert_array_equal(profiles.to_rows(), rows)


# ------------------------------------------------------------------------------------------------ bad input

GOOD: dict[str, Any] = {"fakes": FAKES, "k": 3, "steps": 1}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1.5}, r"steps is 1\.5"),
        ({"k": 0}, "k is 0"),
        ({"initial_clicks": 0}, "initial_clicks is 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"projection": "round"}, "projection is 'round'"),
        ({"projection": "topk"}, "give a budget"),
        ({"projection": "topk", "budget": 2, "threshold": 0.1}, "has none"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"budget": -1}, "budget is -1"),
        ({"fakes": 0}, "fakes is 0"),
        ({"estimator": "exakt"}, "'exact'"),
        ({"estimator": "exact", "tau": 5}, "no use for tau"),
        ({"estimator": "truncated"}, "tau is None"),
        ({"estimator": "truncated", "tau": -1}, "tau is -1"),
        ({"estimator": "partial", "memory": "lean"}, "no use for memory"),
        ({"estimator": "exact", "linear": "cg"}, "no use for linear"),
        ({"initial": "last"}, "initial is 'last'"),
        ({"initial": np.ones((FAKES, ITEMS)), "initial_clicks": 3}, "initial_clicks is 3, but the rows"),
        ({"initial": "given", "initial_clicks": 3}, "initial_clicks is 3, but the rows"),
        ({"initial": np.zeros(4)}, r"expected rows \(F, I\)"),
        ({"initial": np.full((FAKES, ITEMS), 0.5)}, "other than 0 and 1"),
        ({"weights": [1.0, 2.0]}, "2 weights for 1 surrogates"),
        ({"weights": [-1.0]}, "numbers > 0"),
    ],
)
def test_the_factory_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        attacks.revadv(wrmf(**SMALL), **{**GOOD, **arguments})


@pytest.mark.parametrize(
    ("surrogate", "error", "match"),
    [
        ([], ValueError, "surrogate is empty"),
        ("wrmf", TypeError, "Recommender"),
        (wrmf, TypeError, "Recommender"),
    ],
)
def test_the_factory_refuses_what_is_no_surrogate(surrogate, error, match):
    with pytest.raises(error, match=match):
        attacks.revadv(surrogate, **GOOD)


@pytest.mark.parametrize("name", ["click_targets", "normalize_rows"])
def test_flags_are_flags(name):
    arguments: dict[str, Any] = GOOD | {name: 1}
    with pytest.raises(TypeError, match=name):
        attacks.revadv(wrmf(**SMALL), **arguments)


@pytest.mark.parametrize(
    ("arguments", "call", "error", "match"),
    [
        ({"estimator": "truncated", "tau": 7}, {}, ValueError, "tau is 7 epochs"),
        ({"initial": "given"}, {}, ValueError, "pass initial=rows"),
        ({}, {"initial": np.zeros((FAKES + 1, ITEMS))}, ValueError, r"expected \(3, 9\)"),
        ({"initial": np.zeros((FAKES, ITEMS + 1))}, {}, ValueError, r"expected \(3, 9\)"),
        ({"k": ITEMS + 1}, {}, ValueError, "longer than the list"),
        ({"fakes": 0.01}, {}, ValueError, "no fake user"),
    ],
)
def test_the_call_refuses(train, key, arguments, call, error, match):
    with pytest.raises(error, match=match):
        attacks.revadv(wrmf(**SMALL), **{**GOOD, **arguments})(key, train, TARGETS, **call)


# ------------------------------------------------------------------------------------------------ every surrogate

SIZES = {"factors": 3, "epochs": 3, "learning_rate": 0.05, "batch": 8}
SURROGATES: dict[str, dict[str, Any]] = {
    "wrmf": SMALL,
    "als": {"factors": 3, "sweeps": 2},
    "itemae": {"hidden": (4,), "epochs": 3},
    "gmf": SIZES,
    "neumf": SIZES | {"tower": 3, "hidden": (4,)},
    "multvae": {"hidden": 5, "latent": 2, "epochs": 3, "batch": 6},
    "cml": SIZES,
    "bpr": SIZES,
    "pmf": SIZES,
    "autorec": {"hidden": 4, "epochs": 3, "batch": 6, "by": "user"},
    "lightgcn": SIZES | {"layers": 2},
    "ngcf": SIZES | {"layers": (3, 3)},
    "itemcf": {"neighbors": 4},
    "itempop": {},
}
ORDERED, RATED, HARD = "the order of", "learns from ratings", "inject hard profiles"
NO_SURROGATES = {
    "covisitation": ORDERED,
    "gru4rec": ORDERED,
    "mf": RATED,
    "pcmf": RATED,
    "ncr": HARD,
    "rcf": HARD,
}
"""Recommenders that rows of clicks cannot be learned through, and what they say."""


def test_every_recommender_is_a_surrogate_or_says_why_not(train, key):
    assert sorted([*SURROGATES, *NO_SURROGATES]) == sorted(registry.names())
    for name, why in NO_SURROGATES.items():
        settings = {"relations": clusters(np.arange(ITEMS) % 3)} if name == "rcf" else {}
        attack = attacks.revadv(registry.make(name, None, **settings), **GOOD)
        with pytest.raises(ValueError, match=why):
            attack(key, train, TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROGATES)
def test_every_differentiable_surrogate_moves_the_rows(train, rows, key, name):
    model = registry.make(name, None, **SURROGATES[name])
    slope = gradient(model, make_estimator("exact"), rows, train, key).grad
    assert np.isfinite(np.asarray(slope)).all()
    assert np.abs(np.asarray(slope)).max() > 0
    attack = attacks.revadv(model, fakes=FAKES, budget=3, projection="topk", click_targets=True, steps=2, k=3)
    profiles, history = attack.trace(key, train, TARGETS)
    clicked = np.asarray(profiles.to_rows())
    assert (clicked[:, TARGETS] == 1).all()
    assert (clicked.sum(1) <= 5).all()
    assert np.isfinite(np.asarray(history["loss"])).all()
