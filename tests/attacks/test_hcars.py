"""H-CARS: what it reports, its stages, and what refits change. Its steps: test_clauses.py."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.clauses import ideal
from attacks.reasoner import reasoner
from models import ncr
from models.explain.explanation import made

KEY = jax.random.key(0)
U, I = 9, 12
SMALL = {"factors": 4, "epochs": 2, "batch": 16}


@pytest.mark.slow
def test_it_reports_what_it_did(x64, train):
    """With all users in V, the same for each fake user: `before` by the definition, `after` of the ideal items."""
    found = made(np.array([0, 1]), np.array([9, 8]), [[1, 3], None], np.array([5, -1]))
    surrogate, targets = reasoner(found, surrogate=ncr.ncr(**SMALL), batch=2), jnp.array([2, 7])
    attack = attacks.hcars(surrogate, fakes=3, budget=4, users=U, climb=5, refine=2)
    profiles, history = attack.trace(KEY, train, targets)
    told = {name: float(values[-1]) for name, values in history.items()}
    rows = np.asarray(profiles.to_rows()) > 0
    assert rows.sum(1).tolist() == [6] * 3
    assert rows[:, [2, 7]].all()
    both = [(rows[m] & rows[n]).sum() / (rows[m] | rows[n]).sum() for m, n in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(told["jaccard"], np.mean(both), rtol=1e-6)
    embedding = attack.init(KEY, train, targets).embedding
    params, clauses = embedding["params"], embedding["clause"]
    system = ncr.logic_of(params)
    worth = [
        ncr.cosine(system.either(chain, ncr.event(params, h, params["item"][t])), system.true)
        for h, chain in zip(params["user"], clauses, strict=True)
        for t in (2, 7)
    ]
    np.testing.assert_allclose(told["before"], np.mean(worth), rtol=1e-6)
    *_, after = jax.jit(lambda: ideal(params, (params["user"], clauses), targets, 0.5, 1e-3, 5))()
    np.testing.assert_allclose(told["after"], after, rtol=1e-6)
    assert told["after"] > told["before"]
    pairs = 6 * told["accepted"]  # of a fake user and a target
    assert pairs == pytest.approx(round(pairs))
    assert 0 <= pairs <= 6


@pytest.mark.parametrize(
    "surrogate",
    [
        ncr.ncr,
        pytest.param(
            lambda **given: reasoner(surrogate=ncr.ncr(**given)), marks=pytest.mark.slow, id="reasoner"
        ),
    ],
)
def test_the_attack_sees_the_whole_history_of_a_real_user(x64, train, params, surrogate):
    """Not the last clicks alone that NCR learned with: without its oldest click a user is another one."""
    attack = attacks.hcars(surrogate(**SMALL, max_history=2), fakes=2, budget=3)
    view = lambda data: np.asarray(
        attack.config["surrogate"].embed(params, jnp.zeros((0, I)), ncr.prepare(data))["clause"]
    )
    oldest = np.arange(train.capacity) == 0
    before, after = view(train), view(train.select(~oldest))
    assert int(train.degrees()[0]) >= 4
    assert np.abs(before[0] - after[0]).max() > 1e-6
    np.testing.assert_array_equal(before[1:], after[1:])
    state = attack.init(KEY, train, jnp.array([2, 7]))
    seen = ncr.whole(state.embedding["params"], ncr.prepare(train))
    np.testing.assert_allclose(state.embedding["clause"], seen, rtol=1e-12)


SPENT = {"fakes": 3, "budget": 3, "climb": 25, "refine": 2, "learning_rate": 0.5, "rho": 3.0}


@pytest.mark.slow
def test_enforced_an_eps_that_fails_is_none(x64, train, monkeypatch):
    """Where the inequality holds nothing changes; where it fails for both targets it is the attack without an eps."""
    targets, module = jnp.array([2, 7]), importlib.import_module("attacks.hcars")
    run = lambda **more: attacks.hcars(ncr.ncr(**SMALL), **{**SPENT, **more}).trace(KEY, train, targets)
    free, told = run()
    none, _ = run(rho=0.0)
    assert not np.array_equal(free.to_rows(), none.to_rows())
    assert float(told["accepted"][-1]) == 1
    np.testing.assert_array_equal(run(enforce=True)[0].to_rows(), free.to_rows())
    monkeypatch.setattr(module, "better", lambda *_: jnp.array([False, False]))
    held, told = run(enforce=True)
    np.testing.assert_array_equal(held.to_rows(), none.to_rows())
    assert float(told["accepted"][-1]) == 0


@pytest.mark.slow
def test_refits_change_later_fake_users_only(train):
    targets, surrogate = jnp.array([2, 7]), ncr.ncr(**{**SMALL, "learning_rate": 0.05})
    run = lambda **more: attacks.hcars(surrogate, **SPENT, **more)(KEY, train, targets).to_rows()
    plain, again = run(), run(refit_every=2, refit_epochs=5)
    np.testing.assert_array_equal(plain[:2], again[:2])
    assert not np.array_equal(plain[2:], again[2:])
    np.testing.assert_array_equal(run(refit_every=3), plain)  # nobody comes after the first refit
    assert again.sum(1).tolist() == [5.0] * 3


@pytest.mark.slow
def test_each_group_reads_the_surrogate_that_learned_from_all_before_it(train, monkeypatch):
    """Groups of two, of five fake users, in four stages: who has been made when each is, and with what vectors."""
    module, targets = importlib.import_module("attacks.hcars"), jnp.array([2, 7])

    def relearned(refit, params, rows, key):
        clicks = jnp.sum(rows)  # what it was given, told to the next group in place of a training
        return {"params": params, "clause": jnp.full((U + 5, 4), clicks)}

    def craft(plan, embedding, train, targets, key):
        nines = jnp.sum(embedding["params"]["user"][U:, 0] == 9)
        said = {"before": embedding["clause"][0, 0], "after": nines, "accepted": 0.0, "objective": 0.0}
        return jnp.full(4, 9.0), jnp.array([0, 1]), said

    monkeypatch.setattr(module, "learned", relearned)
    monkeypatch.setattr(module._Plan, "craft", craft)
    attack = attacks.hcars(ncr.ncr(**SMALL), fakes=5, budget=2, refit_every=2, stages=4)
    state = attack.init(KEY, train, targets)
    clean = float(state.embedding["clause"][0, 0])
    made = []
    for _ in range(attack.steps):
        state, told = jax.jit(attack.step)(state, train, targets)
        made.append(int(state.made))
    assert made == [2, 4, 5, 5]
    np.testing.assert_allclose(
        state.said["before"], [clean, clean, 8, 8, 16]
    )  # two targets and two items each
    assert state.said["after"].tolist() == [0, 1, 2, 3, 4]
    assert float(told["after"]) == 2
    assert float(told["jaccard"]) == 1


@pytest.mark.slow
def test_stages_change_nothing_and_what_is_made_early_stays(train):
    targets, surrogate = jnp.array([2, 7]), ncr.ncr(**SMALL)
    run = lambda stages: attacks.hcars(surrogate, **SPENT, refit_every=2, stages=stages)
    whole = run(1)(KEY, train, targets).to_rows()
    np.testing.assert_array_equal(run(2)(KEY, train, targets).to_rows(), whole)
    first = run(2)
    state, _ = jax.jit(first.step)(first.init(KEY, train, targets), train, targets)
    early = first.finish(state, train, targets).to_rows()
    np.testing.assert_array_equal(early[:2], whole[:2])
    assert early[2].nonzero()[0].tolist() == [2, 7]


@pytest.mark.slow
def test_the_first_fake_users_are_the_attack_with_fewer(train):
    """So a study crafts once, at the largest number, for all of them."""
    targets, surrogate = jnp.array([2, 7]), ncr.ncr(**SMALL)
    run = lambda fakes: attacks.hcars(surrogate, **{**SPENT, "fakes": fakes})(KEY, train, targets).to_rows()
    np.testing.assert_array_equal(run(4)[:2], run(2))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: attacks.hcars(fakes=2, budget=2, goal="demote"), "promote"),
        (lambda: attacks.hcars(fakes=2, budget=2, pool=2.0), "pool"),
        (lambda: attacks.hcars(fakes=2, budget=None), "budget is None"),
        (lambda: attacks.hcars(fakes=2, budget=2, climb=2.5), "climb"),
        (lambda: attacks.hcars(fakes=2, budget=2, refine=1.5), "refine"),
        (lambda: attacks.hcars(fakes=2, budget=2, rho=-1.0), "rho"),
        (lambda: attacks.hcars(fakes=2, budget=2, refit_every=0), "refit_every"),
        (lambda: attacks.hcars(fakes=2, budget=2, refit_epochs=4), "no use without refit_every"),
        (lambda: attacks.reasoner(loss="log"), "loss"),
        (lambda: attacks.reasoner(counterfactual=-1.0), "counterfactual"),
    ],
)
def test_bad_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_enforce_is_yes_or_no():
    with pytest.raises(TypeError, match="enforce"):
        attacks.hcars(fakes=2, budget=2, enforce=1)  # type: ignore[arg-type]
