"""RCF against its formulas in loops, exact derivatives, and that only the slots count."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import pairs, rcf, relational, train
from models.data import Interactions, slots
from models.data.relations import Relations, clusters

U, I, K = 4, 7, 2
TABLE = {
    0: {"genre": ["a", "b"], "actor": ["x", "y"]},
    1: {"genre": ["b"], "actor": ["x"]},
    2: {"genre": ["c"]},
    3: {"genre": ["a", "b", "c"], "actor": ["y", "x"]},
    5: {"actor": ["z"]},
    6: {"genre": ["a"], "actor": ["x", "z"]},
}
RELATIONS = Relations.from_table(TABLE, I)
HISTORY = [[0, 1, 2, 3, 5], [2, 4], [], [1, 3, 6]]
SIZE = {"factors": 3, "attention": 2, "hidden": (4,), "epochs": 3, "batch": 4, "scale": 0.7}
MODEL = rcf.rcf(RELATIONS, **SIZE)
USERS, ITEMS = (jnp.array(a, jnp.int32) for a in np.indices((U, I)).reshape(2, -1))  # every pair


@cache
def clicks(capacity=10):
    user, item = np.array([(u, i) for u, items in enumerate(HISTORY) for i in items]).T
    return Interactions.from_arrays(user, item, users=U, items=I, capacity=capacity)


prepare = jax.jit(MODEL.prepare)
rated = jax.jit(rcf.rated)


def none():
    """No fake rows."""
    return jnp.zeros((0, I))


@cache
def parts():
    """Data and parameters, with biases that are not 0."""
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda key: MODEL.init(key, U, I, 0), jax.random.key(0))
        rng = np.random.default_rng(0)
        return prepare(clicks()), jax.tree.map(lambda leaf: jnp.array(rng.normal(0, 0.7, leaf.shape)), shapes)


@pytest.fixture
def problem(x64):
    return parts()


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of five slots and blocks of two pairs, so that tiny data take many of both."""
    monkeypatch.setattr(relational, "CHUNK", 5)
    monkeypatch.setattr(relational, "CELLS", 2 * (K + 1) * I)


# ------------------------------------------------------------------------------------------------ the formulas in loops


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def values_of(item):
    """(type, value) of an item in the numbering of RELATIONS."""
    rows = (RELATIONS.type[item], RELATIONS.value[item], RELATIONS.mask[item])
    return {(int(k), int(v)) for k, v, real in zip(*rows, strict=True) if real}


def by_type(history, i):
    """The slots (j, value) of each type."""
    found = [[] for _ in range(K + 1)]
    for j in history:
        if j == i:
            continue
        both = values_of(i) & values_of(j)
        for k, v in both:
            found[k].append((j, v))
        if not both:
            found[0].append((j, None))
    return found


def reference(params, history, u, i, smoothing=0.5):
    """The score of a pair, written from the formulas."""
    w = jax.tree.map(np.asarray, params)
    p, q = w["user"][u], w["item"]
    logits = np.array([gelu((p * e) @ w["choice"] + w["choice_bias"]) @ w["choice_out"] for e in w["type"]])
    alpha = np.exp(logits) / np.sum(np.exp(logits))
    m = p.copy()
    for k, found in enumerate(by_type(history, i)):
        exps = []
        for j, v in found:
            inner = q[i] @ w["target"][k] + q[j] @ w["other"][k]
            if v is not None:
                inner = inner + w["value"][v] @ w["shared"][k - 1]
            exps.append(np.exp(w["slot_out"][k] @ np.tanh(inner)))
        for (j, _), e in zip(found, exps, strict=True):
            m = m + alpha[k] * e / np.sum(exps) ** smoothing * q[j]
    h = m * q[i]
    for layer in w["layers"].values():
        h = gelu(h @ layer["kernel"] + layer["bias"])
    return h @ w["last"]


def everyone(params, history=HISTORY, smoothing=0.5):
    return np.array([[reference(params, history[u], u, i, smoothing) for i in range(I)] for u in range(U)])


def close(a, b, tolerance=1e-12):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1))


# ------------------------------------------------------------------------------------------------ scores


def test_scores_equal_the_loops(problem, small_chunks):
    data, params = problem
    assert {len(found) for u in range(U) for i in range(I) for found in by_type(HISTORY[u], i)} >= {
        0,
        1,
        2,
        3,
    }
    expected = everyone(params)
    score = jax.jit(lambda params, users: MODEL.scores(params, none(), data, users))
    close(score(params, jnp.array([3, 0, 3, 1, 2])), expected[[3, 0, 3, 1, 2]])  # over the catalog
    close(score(params, jnp.array([0])), expected[[0]])  # pair by pair
    close(
        jax.jit(partial(rcf.rated))(params, data, USERS, ITEMS), expected.ravel()
    )  # partial: a cache of its own


def test_which_path_scores_take(problem, monkeypatch):
    data, params = problem
    embedding = MODEL.embed(params, none(), data)
    monkeypatch.setattr(rcf, "_many", lambda *args: "catalog")
    assert rcf.score(embedding, jnp.arange(3)) == "catalog"  # 3 x 10 clicks in 4 users against 7 items
    assert rcf.score(embedding, jnp.arange(2)).shape == (2, I)


def test_chunks_and_blocks_change_nothing(problem, monkeypatch):
    data, params = problem
    whole = rated(params, data, USERS, ITEMS)
    monkeypatch.setattr(relational, "CHUNK", 1)
    monkeypatch.setattr(relational, "CELLS", 1)
    close(jax.jit(partial(rcf.rated))(params, data, USERS[:9], ITEMS[:9]), whole[:9])


def test_without_an_item_is_as_if_it_had_not_been_clicked(problem):
    data, params = problem
    for gone in (1, 3):
        shorter = [[j for j in history if j != gone] for history in HISTORY]
        found = rated(params, data, USERS, ITEMS, without=jnp.full_like(ITEMS, gone))
        close(found, everyone(params, shorter).ravel())


@pytest.mark.slow
def test_types_apart_make_the_score_of_a_moved_user(problem):
    """What ACCENT needs: a score as a function of the user's vector alone, and its second derivative."""
    data, params = problem
    users, items = jnp.zeros(3, jnp.int32), jnp.array([1, 4, 6], jnp.int32)
    apart = relational.attended(params, data.index, data.catalog, users, items)

    def of(p):
        alpha = rcf.on_types(params, jnp.broadcast_to(p, (3, 3)))
        return rcf.through(params, (p + jnp.einsum("nk,nkd->nd", alpha, apart)) * params["item"][items])

    def moved(p):
        return rcf.rated({**params, "user": params["user"].at[0].set(p)}, data, users, items)

    second = lambda f: jax.jit(lambda p: (f(p), jax.hessian(lambda p: jnp.sum(f(p)))(p)))
    p = params["user"][0] + 0.1
    for a, b in zip(second(of)(p), second(moved)(p), strict=True):
        close(a, b, 1e-10)


def test_attention_without_weights_is_uniform(problem):
    """Nothing shared and no attention: n slots of weight n^-1/2 each, and types that hold nothing keep their share."""
    data, params = problem
    none = {
        name: jnp.zeros_like(params[name]) for name in ("choice", "choice_bias", "choice_out", "slot_out")
    }
    params = {**params, **none}
    read = jax.jit(relational.attended)(
        params, data.index, data.catalog, jnp.array([0, 3]), jnp.array([4, 4])
    )
    for n, history in enumerate((HISTORY[0], HISTORY[3])):  # item 4 has no attributes
        expected = np.sum(np.asarray(params["item"])[history], axis=0) * len(history) ** -0.5
        close(read[n, 0], expected)
        assert not np.any(read[n, 1:])
    close(rcf.on_types(params, params["user"]), np.full((U, K + 1), 1 / (K + 1)))


def test_weights_of_what_is_no_slot_are_exactly_zero(problem, small_chunks):
    data, params = problem
    of = lambda params: relational.exponentials(
        relational.table(params, RELATIONS), data.index, data.catalog, USERS, ITEMS, jnp.full_like(ITEMS, -1)
    )
    mass = jax.jit(of)(params)
    expected = np.zeros((U * I, K + 1, I), bool)
    for n in range(U * I):
        u, i = divmod(n, I)
        for k, found in enumerate(by_type(HISTORY[u], i)):
            expected[n, k, [j for j, _ in found]] = True
    assert np.array_equal(np.asarray(mass) != 0, expected)
    assert not expected[:, 1:].all(axis=2).any()


def test_huge_logits_stay_finite(problem):
    data, params = problem
    attended = jax.jit(relational.attended)
    for large in (1e4, -1e4):
        low = jax.tree.map(lambda a: a.astype(jnp.float32), params)
        low["slot_out"] = jnp.full_like(low["slot_out"], large)
        read = attended(low, data.index, data.catalog, jnp.zeros(1, int), jnp.array([6]))[0]
        assert np.all(np.isfinite(read))
        assert np.all(np.any(read, axis=1))
        assert [j for j, _ in by_type(HISTORY[0], 6)[0]] == [
            2
        ]  # a slot shuts out type 0 however small its logit
        ratio = read[0] / low["item"][2]
        close(ratio, np.full(3, ratio[0]), 1e-5)


@pytest.mark.slow
def test_smoothing_is_the_exponent(problem):
    _, params = problem
    for smoothing in (0.0, 1.0):
        model = rcf.rcf(RELATIONS, **SIZE, smoothing=smoothing)
        data = prepare(clicks())
        data = data._replace(catalog=replace(data.catalog, smoothing=model.config["smoothing"]))
        assert jax.eval_shape(model.prepare, clicks()).catalog.smoothing == smoothing
        close(rated(params, data, USERS, ITEMS), everyone(params, smoothing=smoothing).ravel())


def test_names_of_items_and_order_of_clicks_change_nothing(problem):
    _, params = problem
    order = np.random.default_rng(0).permutation(I)  # item i is called order[i]
    back = np.argsort(order)
    rows = {name: getattr(RELATIONS, name)[back] for name in ("value", "type", "mask")}
    model = rcf.rcf(replace(RELATIONS, **rows), **SIZE)
    user, item = np.array([(u, order[i]) for u, items in enumerate(HISTORY) for i in items]).T
    time = np.random.default_rng(1).permutation(user.size)  # a sequence keeps its order
    events = Interactions.from_arrays(user, item, time=time, users=U, items=I, track="sequence")
    moved = {**params, "item": params["item"][back]}
    data = jax.jit(model.prepare)(events)
    close(rated(moved, data, USERS, ITEMS).reshape(U, I)[:, order], everyone(params))


def test_max_history_reads_the_latest_clicks_and_learns_from_all(problem):
    _, params = problem
    user, item = np.array([(u, i) for u, items in enumerate(HISTORY) for i in items]).T
    events = Interactions.from_arrays(user, item, time=np.arange(user.size)[::-1], users=U, items=I)
    model = rcf.rcf(RELATIONS, **SIZE, max_history=2)
    data = jax.jit(model.prepare)(events)
    latest = [history[:2] for history in HISTORY]
    score = jax.jit(lambda params, data: model.scores(params, none(), data, jnp.arange(U)))
    close(score(params, data), everyone(params, latest))  # over the catalog, which is not cut
    close(rated(params, data, USERS, ITEMS), everyone(params, latest).ravel())
    assert int(jnp.sum(data.pairs.real)) == user.size


@pytest.mark.slow
def test_padding_changes_nothing(problem):
    data, params = problem
    wide = prepare(clicks(60))
    slots = bilevel.inner.Batch(jnp.array([7, 0, 9, 3], jnp.int32), jnp.ones(4, bool))

    @jax.jit
    def f(params, data):
        loss = MODEL.loss(params, none(), data, bilevel.Ctx(jax.random.key(3), 0, slots))
        return loss, MODEL.scores(params, none(), data, jnp.arange(U))

    for a, b in zip(f(params, data), f(params, wide), strict=True):
        close(a, b)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.slow
def test_loss_is_its_formula_on_the_pairs_and_triples_drawn(problem):
    data, params = problem
    weight, negatives = 0.3, 2
    ctx = MODEL.trainer(U, I, 0, 10).context(
        jax.random.key(5), 2
    )  # the last batch: two of four slots are padding
    for_pairs, for_relations = jax.random.split(ctx.key)
    found = pairs.draw(data.pairs, none(), ctx._replace(key=for_pairs), negatives)
    assert found.weight.tolist() == [1, 1, 0, 0]
    known = (data.index, data.history, data.catalog.index, data.catalog.relations)
    drawn = jax.tree.map(np.asarray, slots.triples(for_relations, *known, found.user, found.item))
    scores, w = everyone(params), jax.tree.map(np.asarray, params)
    ranked, related = [], []
    for n in range(2):
        u, i = int(found.user[n]), int(found.item[n])
        gaps = [scores[u, i] - scores[u, int(x)] for x in found.negative[n]]
        ranked.append(np.mean([np.log1p(np.exp(-gap)) for gap in gaps]))
        for k in range(K):
            if drawn.exists[n, k]:
                link = w["type"][k + 1] + w["value"][drawn.value[n, k]]
                of = lambda j: w["item"][i] @ (link * w["item"][j])
                gap = of(drawn.tail[n, k]) - of(drawn.negative[n, k])
                related.append(np.log1p(np.exp(-gap)))
    assert 0 < len(related) < 2 * K
    expected = np.mean(ranked) + weight * np.mean(related)
    options = {"negatives": negatives, "relation_weight": weight}
    of = lambda **changes: jax.jit(lambda: rcf.loss(params, none(), data, ctx, **{**options, **changes}))()
    close(of(divide_by="data"), expected * 2 / 10)
    close(of(divide_by="batch", relation_weight=0.0), np.mean(ranked))


@pytest.mark.slow
def test_gradients_equal_central_differences(problem, small_chunks):
    data, params = problem
    ctx = MODEL.trainer(U, I, 0, 10).context(jax.random.key(5), 0)
    flat, tree = jax.flatten_util.ravel_pytree(params)

    def f(flat):
        scores = MODEL.scores(tree(flat), none(), data, jnp.array([0, 3, 1]))
        return rcf.loss(
            tree(flat), none(), data, ctx, negatives=2, relation_weight=0.5, divide_by="batch"
        ) + jnp.sum(jnp.sin(scores))

    both = jax.jit(jax.value_and_grad(f))
    exact, step = both(flat)[1], 1e-6
    differences = np.array(
        [both(flat.at[n].add(step))[0] - both(flat.at[n].add(-step))[0] for n in range(flat.size)]
    )
    close(exact, differences / (2 * step), 1e-8)
    names = {path[0].key for path, leaf in jax.tree_util.tree_leaves_with_path(tree(exact)) if np.any(leaf)}
    assert names == set(params)  # everything is learned
    v = jnp.array(np.random.default_rng(6).normal(size=flat.shape))
    product = jax.jit(lambda flat: jax.jvp(jax.grad(f), (flat,), (v,))[1])(flat)
    close(product, (both(flat + step * v)[1] - both(flat - step * v)[1]) / (2 * step), 1e-7)


@pytest.mark.slow
def test_a_step_is_adagrads_without_an_epsilon(problem):
    data, params = problem
    model = rcf.preset("accent", relations=RELATIONS, **{**SIZE, "epochs": 1, "batch": None})
    inner = model.trainer(U, I, 0, 10)
    ctx = inner.context(jax.random.key(8), 0)
    step = jax.jit(lambda p: inner.step(inner.init(p, none(), data, jax.random.key(8)), none(), data, ctx))
    state, grads = step(params)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g / np.sqrt(1e-8 + g**2), params, grads)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
        close(a, b, 1e-10)


@pytest.mark.slow
def test_fit_learns_repeats_itself_and_passes_lost_events_on():
    """Users of two tastes, items of two clusters: held-out items rank above those of the other taste."""
    rng = np.random.default_rng(0)
    likes = np.arange(14) % 2 == (np.arange(30) % 2)[:, None]
    shown = likes & (rng.random(likes.shape) < 0.6)
    events = Interactions.from_dense(shown)
    model = rcf.rcf(clusters(np.arange(14) % 2), factors=4, attention=3, hidden=(4,), epochs=20, batch=32)
    first, second = (train.fit(model, events, jax.random.key(0)) for _ in range(2))
    scores = np.asarray(first.scores(jnp.arange(30)))
    assert scores.tobytes() == np.asarray(second.scores(jnp.arange(30))).tobytes()
    above = [
        np.mean(row[hidden][:, None] > row[~like])
        for row, hidden, like in zip(scores, likes & ~shown, likes, strict=True)
        if hidden.any()
    ]
    assert np.mean(above) > 0.9
    lost = replace(events, weight=jnp.full_like(events.weight, jnp.nan))
    assert np.all(np.isnan(train.fit(model, lost, jax.random.key(0)).scores(jnp.arange(30))))


@pytest.mark.slow
def test_vmap_over_data_and_keys_equals_a_loop(problem):
    _, params = problem
    other = Interactions.from_dense(np.arange(U * I).reshape(U, I) % 3 == 0, capacity=10)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), clicks(), other)
    keys = jax.random.split(jax.random.key(5), 2)
    inner = MODEL.trainer(U, I, 0, 10)

    @jax.jit
    def f(events, key):
        data = MODEL.prepare(events)
        loss = MODEL.loss(params, none(), data, inner.context(key, 1))
        return loss, MODEL.scores(params, none(), data, jnp.arange(U))

    batched, one_by_one = (
        jax.vmap(f)(both, keys),
        [f(e, k) for e, k in zip((clicks(), other), keys, strict=True)],
    )
    for a, b in zip(batched, map(jnp.stack, zip(*one_by_one, strict=True)), strict=True):
        close(a, b)


# ------------------------------------------------------------------------------------------------ what is refused


def test_what_cannot_be_read_is_refused():
    fake = jnp.zeros((2, I))
    with pytest.raises(ValueError, match=r"2 fake rows.*inject"):
        MODEL.trainer(U, I, 2, 10)
    with pytest.raises(ValueError, match="2 fake rows"):
        train.fit(MODEL, clicks(), jax.random.key(0), fakes_rows=fake)
    data, params = parts()
    with pytest.raises(ValueError, match="2 fake rows"):
        MODEL.embed(params, fake, data)
    with pytest.raises(ValueError, match="2 fake rows"):
        MODEL.loss(params, fake, data, bilevel.Ctx(jax.random.key(0), 0))
    with pytest.raises(ValueError, match="data have 9 items, its relations tell of 7"):
        MODEL.prepare(Interactions.from_arrays([0], [0], items=9))
    with pytest.raises(ValueError, match="ratings"):
        MODEL.prepare(Interactions.from_arrays([0], [0], [3.0], items=I))
    with pytest.raises(ValueError, match="capacity"):
        MODEL.trainer(U, I, 0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("factors", 0),
        ("attention", 1.5),
        ("hidden", (4, 0)),
        ("max_history", 0),
        ("batch", 0),
        ("negatives", 0),
        ("learning_rate", 0.0),
        ("scale", -1.0),
        ("relation_weight", -0.1),
        ("smoothing", 1.5),
        ("divide_by", "epoch"),
    ],
)
def test_arguments_outside_their_range_are_named(argument, value):
    with pytest.raises(ValueError, match=f"rcf: {argument}"):
        rcf.rcf(RELATIONS, **{argument: value})


def test_relations_without_values_are_refused():
    for wrong in (Relations.from_table({}, I, names=["genre"]), {"genre": [1]}):
        with pytest.raises(ValueError, match=r"expected models\.data\.relations\.Relations with values"):
            rcf.rcf(wrong)


def test_config_and_presets_rebuild_the_model():
    assert dict(rcf.rcf(**MODEL.config).config) == dict(MODEL.config)
    accent = rcf.preset("accent", relations=RELATIONS)
    assert accent.config["divide_by"] == "data"
    ours = rcf.preset("default", relations=RELATIONS)
    assert {name for name in ours.config if ours.config[name] != accent.config[name]} == {"divide_by"}
    assert repr(MODEL).startswith(
        "rcf(relations=Relations(7 items; genre: 3 values, actor: 3 values), factors=3,"
    )
    with pytest.raises(ValueError, match="did you mean 'accent'"):
        rcf.preset("acent", relations=RELATIONS)
    shapes = jax.tree.map(jnp.shape, MODEL.init(jax.random.key(0), U, I, 0))
    assert shapes["layers"][0] == {"kernel": (3, 4), "bias": (4,)}
    flat = rcf.rcf(RELATIONS, **{**SIZE, "hidden": ()}).init(jax.random.key(0), U, I, 0)
    assert flat["last"].shape == (3,)
    assert rcf.through(flat, jnp.ones((2, 3))).shape == (2,)
