"""NCR: exact Boolean modules satisfy every law, padding is nothing, premises are the items before (ALGORITHMS 8.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import ncr
from models.data import Interactions
from models.train import fit

TRUE, FALSE = jnp.array([1.0, 0.0]), jnp.array([-1.0, 0.0])


def boolean():
    """AND, OR and NOT on the vectors (1, 0) and (-1, 0)."""
    value = lambda v: v[..., :1]
    out = lambda bit: jnp.concatenate([bit, jnp.zeros_like(bit)], -1)
    either = lambda a, b: out(jnp.maximum(value(a), value(b)))
    both = lambda a, b: out(jnp.minimum(value(a), value(b)))
    return ncr.Logic(lambda a: -a, either, both, TRUE)


def _module(layers, *inputs):
    """The module as it is written, on the concatenated inputs."""
    h = jnp.concatenate(inputs) @ layers["first"]["kernel"] + layers["first"]["bias"]
    return jnp.maximum(h, 0) @ layers["second"]["kernel"] + layers["second"]["bias"]


def test_exact_logic_violates_no_law():
    """C12: all 15 terms vanish."""
    rows = jnp.stack([TRUE, FALSE, TRUE])
    np.testing.assert_allclose(ncr.laws(boolean(), rows, jnp.ones(3)), 0, atol=1e-6)


def test_the_laws_are_fifteen_means_over_the_vectors(x64, rng):
    """Written out, for modules without logic and order, on vectors of unequal weight: no term may be missing."""
    first, second, turned, true = (rng.normal(size=shape) for shape in ((3, 3), (3, 3), (3, 3), 3))
    no = lambda a: a @ turned + 0.3
    either, both = (lambda a, b, add=add: a @ first + add * b @ second - 0.1 for add in (1.0, -0.5))
    rows, weight = rng.normal(size=(4, 3)), np.array([1.0, 0.0, 2.0, 0.5])
    cos = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
    near, far = (lambda a, b: 1 - cos(a, b)), (lambda a, b: 1 + cos(a, b))
    t, f, violated = true, no(true), []
    for v in rows:
        n = no(v)
        violated.append(
            [
                *(near(no(f), t), near(no(n), v), far(n, v), far(no(n), n), far(t, f)),
                *(near(both(v, t), v), near(both(v, f), f), near(both(v, v), v)),
                *(near(both(v, n), f), near(both(n, v), f)),
                *(near(either(v, t), t), near(either(v, f), v), near(either(v, v), v)),
                *(near(either(v, n), t), near(either(n, v), t)),
            ]
        )
    assert np.abs(violated).min() > 1e-3
    found = ncr.laws(ncr.Logic(no, either, both, jnp.asarray(true)), jnp.asarray(rows), jnp.asarray(weight))
    np.testing.assert_allclose(found, np.sum(weight @ np.array(violated)) / weight.sum(), rtol=1e-10)


def test_rows_of_weight_zero_do_not_count():
    logic = boolean()._replace(negation=lambda a: jnp.where(a[..., 1:] > 5, a, -a))
    rows = jnp.stack([TRUE, FALSE, jnp.array([1.0, 9.0])])
    assert ncr.laws(logic, rows, jnp.array([1.0, 1.0, 0.0])) < 1e-6 < ncr.laws(logic, rows, jnp.ones(3))


def test_a_clause_is_true_iff_a_premise_is_false():
    """not e_1 or not e_2 or ... or not e_n."""
    for bits in np.ndindex(2, 2, 2):
        premises = jnp.stack([TRUE if bit else FALSE for bit in bits])
        found, prefixes = ncr.clause(boolean(), premises, jnp.ones(3, bool))
        assert found[0] == (1 if 0 in bits else -1)
        assert prefixes[0, 0] == (-1 if bits[0] else 1)


@pytest.mark.slow
def test_padding_and_where_it_stands_change_nothing(x64, rng):
    params = ncr.ncr(factors=4).init(jax.random.key(0), 3, 5, 0)
    params = jax.tree.map(lambda leaf: 30 * leaf, params)  # away from 0, where everything is alike
    logic, premises = ncr.logic_of(params), jnp.asarray(rng.normal(size=(3, 4)))
    plain, _ = ncr.clause(logic, premises, jnp.ones(3, bool))
    junk = jnp.full((1, 4), 7.0)
    padded = jnp.concatenate([junk, premises[:1], junk, premises[1:], junk])
    known = jnp.array([False, True, False, True, True, False])
    np.testing.assert_allclose(ncr.clause(logic, padded, known)[0], plain, rtol=1e-12)


def test_premises_are_the_items_before_in_time():
    train = Interactions.from_arrays([0, 0, 0, 1, 1], [3, 1, 2, 0, 3], time=[5, 7, 6, 2, 1], items=4)
    data = ncr.prepare(train)
    assert data.item[:5].tolist() == [3, 2, 1, 3, 0]
    items, known = ncr.premises(data, jnp.array([0, 1]), jnp.array([2, 4]), 2)
    assert known.tolist() == [[True, True], [True, False]]
    assert items[0].tolist() == [3, 2]
    assert int(items[1, 0]) == 3


def skewed(rng):
    """11 users of 0 to 30 clicks, in no order of length, with padding."""
    sizes = rng.permutation([0, 0, 1, 1, 2, 3, 3, 5, 8, 13, 30])
    user = np.repeat(np.arange(11), sizes)
    item = np.concatenate([rng.permutation(200)[:size] for size in sizes])
    return Interactions.from_arrays(user, item, time=rng.permutation(len(user)), users=11, items=200).pad(80)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_a_whole_clause_has_every_item_of_the_history(x64, rng, chunk):
    data = ncr.prepare(skewed(rng))
    params = ncr.ncr(factors=4).init(jax.random.key(0), 11, 200, 0)
    params = jax.tree.map(lambda leaf: 30 * leaf, params)
    found = jax.jit(lambda: ncr.whole(params, data, chunk=chunk))()
    logic = ncr.logic_of(params)
    for user in range(11):
        so_far = None
        for item in data.item[int(data.start[user]) : int(data.start[user + 1])]:
            part = logic.negation(_module(params["event"], params["user"][user], params["item"][item]))
            so_far = part if so_far is None else logic.either(so_far, part)
        np.testing.assert_allclose(found[user], np.zeros(4) if so_far is None else so_far, rtol=1e-9)


@pytest.mark.slow
def test_whole_clauses_cost_the_clicks_and_not_users_by_items(rng, monkeypatch):
    train, ors, plain = skewed(rng), [], ncr.module

    def counted(layers, *inputs):
        if len(inputs) == 2 and layers is params["either"]:
            jax.debug.callback(lambda rows: ors.append(len(rows)), inputs[0])
        return plain(layers, *inputs)

    monkeypatch.setattr(ncr, "module", counted)
    params = ncr.ncr(factors=4).init(jax.random.key(0), 11, 200, 0)
    jax.block_until_ready(ncr.whole(params, ncr.prepare(train), chunk=2))
    jax.effects_barrier()
    assert 66 - 9 <= sum(ors) <= 66 + 2 * 30  # 66 clicks, the longest history 30


@pytest.mark.slow
def test_scores_are_ten_cosines_and_equal_the_definition(x64):
    train = Interactions.from_arrays([0, 0, 0, 1], [3, 1, 2, 0], time=[5, 7, 6, 2], users=3, items=5)
    model = ncr.ncr(factors=4, max_history=2)
    params = jax.tree.map(lambda leaf: 30 * leaf, model.init(jax.random.key(0), 3, 5, 0))
    scores = model.scores(params, jnp.zeros((0, 5)), model.prepare(train), jnp.arange(3))
    assert jnp.abs(scores).max() <= 10
    logic = ncr.logic_of(params)
    event = lambda i: _module(params["event"], params["user"][0], params["item"][i])
    so_far = logic.either(logic.negation(event(2)), logic.negation(event(1)))  # the last two by time
    for item in range(5):
        expected = 10 * ncr.cosine(logic.either(so_far, event(item)), logic.true)
        np.testing.assert_allclose(scores[0, item], expected, rtol=1e-10)


@pytest.mark.slow
def test_a_trained_score_hardly_knows_the_order_of_the_history(rng):
    """The standard deviation of a score over orders of the same clicks, beside that over the items of a user."""
    kind = np.arange(80) % 2
    user, item = np.nonzero((rng.random((80, 30)) < 0.6) & (np.arange(30) % 2 == kind[:, None]))
    made = lambda: Interactions.from_arrays(user, item, time=rng.permutation(len(user)), users=80, items=30)
    fitted = fit(ncr.ncr(factors=8, epochs=40, batch=64), made(), jax.random.key(0))
    model, none = fitted.model, jnp.zeros((0, 30))
    read = jax.jit(lambda data: model.scores(fitted.params, none, data, jnp.arange(80)))
    found = np.stack([np.asarray(read(model.prepare(made()))) for _ in range(6)])
    over_orders, over_items = found.std(0).mean(), found.mean(0).std(1).mean()
    assert 0 < over_orders < 0.5 * over_items, (over_orders, over_items)


def test_the_loss_is_bpr_plus_the_laws(x64):
    """One click with one premise, one other item: nothing is left to chance."""
    train = Interactions.from_arrays([0, 0], [0, 1], time=[1, 2], users=1, items=3)
    model = ncr.ncr(factors=4, max_history=1, logic=0.3, l2=0.1, batch=None)
    params = jax.tree.map(lambda leaf: 30 * leaf, model.init(jax.random.key(0), 1, 3, 0))
    data, ctx = model.prepare(train), bilevel.Ctx(jax.random.key(1), 0)

    def expected(params):
        logic = ncr.logic_of(params)
        event = lambda i: _module(params["event"], params["user"][0], params["item"][i])
        premise = logic.negation(event(0))
        heads = [event(1), event(2)]
        ends = [logic.either(premise, head) for head in heads]
        s, z = (10 * ncr.cosine(end, logic.true) for end in ends)
        vectors = jnp.stack(
            [event(0), event(0), premise, premise, *heads, *ends]
        )  # the premise is in two sentences
        laws = ncr.laws(logic, vectors, jnp.ones(8))
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.log1p(jnp.exp(z - s)) + 0.3 * laws + 0.05 * penalty

    found = jax.jit(lambda params: model.loss(params, jnp.zeros((0, 3)), data, ctx))(params)
    np.testing.assert_allclose(found, jax.jit(expected)(params), rtol=1e-10)


def test_fake_rows_are_refused():
    with pytest.raises(ValueError, match="inject hard profiles"):
        ncr.ncr().trainer(3, 5, 2, 10)
