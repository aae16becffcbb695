"""Influence against what it stands for: closed forms, refits without an interaction, dense references, retraining."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel
from models import als, autorec, bpr, itemae, lightgcn, multvae, ncf, ncr, ngcf, rcf, wrmf
from models.data import Interactions, sample
from models.data.relations import Relations
from models.explain import blocks, counterfactual, influences, whole
from models.explain.fia import bucket, variant_of
from models.train import Fitted, begin, fit

DECAY = 0.02


def close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1e-12))


def ratings(users=6, items=9, seed=0):
    rng = np.random.default_rng(seed)
    seen = rng.random((users, items)) < 0.6
    seen[:, :2] = [True, False]  # everybody has an item, and lacks one
    values = np.where(seen, rng.integers(1, 6, seen.shape), 0.0)
    return Interactions.from_dense(values, track="explicit", capacity=int(seen.sum()) + 3)


def clicks(users=7, items=9, seed=0):
    """In an order of time that is not that of the ids, so that NCR reads them in another."""
    rng = np.random.default_rng(seed)
    seen = rng.random((users, items)) < 0.55
    seen[:, :2] = [True, False]
    user, item = np.nonzero(seen)
    when = np.random.default_rng(seed + 1).permutation(len(user))
    return Interactions.from_arrays(user, item, time=when, users=users, items=items)


def started(model, train, seed=0, scale=0.6):
    """The recommender at random parameters, of which a test may solve for some."""
    start = begin(model, train, jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape)), start.params)
    embedding = model.embed(params, start.x, start.data)
    return Fitted(model, params, start.data, start.x, embedding)


def begun(model, train):
    """The recommender before its training, without what scores read."""
    start = begin(model, train, jax.random.key(0))
    return Fitted(model, start.params, start.data, start.x, None)


def with_user(fitted, user, vector):
    params = {**fitted.params, "user": fitted.params["user"].at[user].set(vector)}
    return Fitted(
        fitted.model, params, fitted.data, fitted.x, fitted.model.embed(params, fitted.x, fitted.data)
    )


def spearman(a, b):
    rank = lambda v: np.argsort(np.argsort(np.ravel(v)))
    return np.corrcoef(rank(a), rank(b))[0, 1]


# ------------------------------------------------------------------------------------------------ closed forms


def test_ridge_without_a_row_is_exact_up_to_its_leverage(x64):
    """Sherman-Morrison: the change without row z is the influence times 1 / (1 - h_z), the penalty being no row's."""
    train = ratings()
    model = ncf.gmf(factors=4, weight_decay=DECAY, l2=0.0, objective="ratings", batch=None)
    fitted, user = started(model, train), 2
    mine = np.asarray(train.user)[train.real()] == user
    items, r = (np.asarray(c)[train.real()][mine] for c in (train.item, train.weight))
    r = r.astype(float)
    head, bias = np.asarray(fitted.params["last"]["kernel"])[:, 0], float(fitted.params["last"]["bias"][0])
    Q = head * np.asarray(fitted.params["item"])
    ridge = int(train.count) * DECAY / 2 * np.eye(4)

    def solved(rows):
        return np.linalg.solve(Q[rows].T @ Q[rows] + ridge, Q[rows].T @ (r[np.isin(items, rows)] - bias))

    p = solved(items)
    found = influences(with_user(fitted, user, p), train, [user], 3, variant="user", damping=0)
    exact = np.array([[Q[i] @ (p - solved(items[items != z])) for z in items] for i in found.item[0]])
    inverse = np.linalg.inv(Q[items].T @ Q[items] + ridge)
    leverage = np.einsum("zd,de,ze->z", Q[items], inverse, Q[items])
    assert found.history[0].tolist() == items.tolist()
    assert found.code.tolist() == [0]
    close(found.drop[0] / (1 - leverage), exact, 1e-9)
    assert np.max(np.abs(found.drop[0] - exact)) > 0.05 * np.abs(exact).max()  # the factor matters
    fast = influences(with_user(fitted, user, p), train, [user], 3, variant="fast", damping=0)
    assert (
        np.max(np.abs(fast.drop[0] / (1 - leverage) - exact)) > 0.05 * np.abs(exact).max()
    )  # each row its share


@pytest.mark.slow
def test_a_click_less_of_a_weighted_ridge(x64):
    """WRMF with its items held is convex in a user: influence orders the refits as they are."""
    train = clicks(users=7, items=24)
    fitted, weight = started(wrmf.wrmf(factors=3, weight=4.0, l2=0.5, batch=None), train), 4.0
    Q = np.asarray(fitted.params["item"])

    def solved(row):
        w = np.where(row > 0, weight, 1.0)
        return np.linalg.solve((Q.T * w) @ Q + 0.25 * np.eye(3), Q.T @ (w * row))

    X = np.asarray(train.dense())
    for user in range(2):
        of = with_user(fitted, user, solved(X[user]))
        found = influences(of, train, [user], 6, damping=0)
        exact = []
        for z in found.history[0]:
            row = X[user].copy()
            row[z] = 0
            exact.append(Q[found.item[0]] @ (solved(X[user]) - solved(row)))
        assert variant_of(of, None) == "user"
        assert spearman(found.drop[0], np.array(exact).T) >= 0.95


# ------------------------------------------------------------------------------------------------ ACCENT's two recipes


def test_fast_is_the_dense_formula(x64):
    """ACCENT's NCF: all over the ratings that share u or i, four vectors, the penalty in every row."""
    train = ratings()
    sizes = {"factors": 2, "tower": 2, "hidden": (3, 2), "weight_decay": DECAY, "batch": None}
    fitted, damping, user = started(ncf.preset("accent", **sizes), train, 3), 1e-3, 1
    found = influences(fitted, train, [user], 2, damping=damping)
    assert variant_of(fitted, None) == "fast"
    events = [
        jnp.asarray(np.asarray(column)[train.real()]) for column in (train.user, train.item, train.weight)
    ]

    @jax.jit
    def formula(item):
        at = [("user", user), ("tower_user", user), ("item", item), ("tower_item", item)]
        flat, tree = ravel_pytree([fitted.params[name][row] for name, row in at])

        def moved(b):
            rows = zip(at, tree(b), strict=True)
            return fitted.params | {name: fitted.params[name].at[row].set(v) for (name, row), v in rows}

        def losses(b):  # of every rating, the penalty included
            params = moved(b)
            errors = (events[2] - ncf.rated(params, events[0], events[1][:, None])[0][:, 0]) ** 2
            return errors + DECAY / 2 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))

        related = (events[0] == user) | (events[1] == item)
        n = jnp.sum(related).astype(float)
        H = jax.hessian(lambda b: jnp.sum(jnp.where(related, losses(b), 0)) / n)(flat)
        slope = jax.grad(lambda b: ncf.rated(moved(b), jnp.array([user]), item[None, None])[0][0, 0])(flat)
        return -jax.jacfwd(losses)(flat) @ jnp.linalg.solve(H + damping * jnp.eye(flat.size), slope) / n

    for drop, item in zip(found.drop[0], found.item[0], strict=True):
        close(drop, np.asarray(formula(jnp.asarray(item)))[np.asarray(events[0]) == user], 1e-8)


TABLE = {
    0: {"genre": ["a", "b"], "actor": ["x"]},
    1: {"genre": ["b"], "actor": ["x"]},
    2: {"genre": ["c"]},
    3: {"genre": ["a", "c"], "actor": ["y"]},
    5: {"actor": ["y"]},
    6: {"genre": ["a"], "actor": ["x", "y"]},
}
RELATIONS = Relations.from_table(TABLE, 9)


@pytest.mark.slow
def test_rcf_without_a_click_does_not_read_it(x64):
    """The user's Hessian, the click's gradient and the new score all read the shortened history, as one by one."""
    train = clicks(users=4)
    fitted = started(rcf.rcf(RELATIONS, factors=3, attention=2, hidden=(4,)), train, 1)
    key, user, damping = jax.random.key(4), 1, 0.01
    found = influences(fitted, train, [user], 2, key=key)
    history, p = found.history[0], fitted.params["user"][user]
    M = bucket(len(history), len(history))
    drawn = sample.negatives(key, fitted.data.pairs.lists, jnp.full(M, user), 1, train.items)[:, 0]

    @jax.jit
    def scores(p, items, gone):
        params = {**fitted.params, "user": fitted.params["user"].at[user].set(p)}
        at = jnp.full_like(items, user)
        return rcf.rated(params, fitted.data, at, items, without=jnp.full_like(items, gone))

    def losses(p, gone):
        liked, others = scores(p, jnp.asarray(history), gone), scores(p, drawn, gone)
        return jax.nn.softplus(others - liked)

    items = jnp.asarray(found.item[0])
    second = jax.jit(
        lambda p, gone: (jax.hessian(lambda p: jnp.mean(losses(p, gone)))(p), jax.jacfwd(losses)(p, gone))
    )

    def move(gone, z):
        H, first = map(np.asarray, second(p, gone))
        return np.linalg.pinv(H + damping * np.eye(3)) @ first[z] / len(history)

    now, shortcut = scores(p, items, -1), []
    for z, gone in enumerate(history):
        close(found.drop[0, :, z], now - scores(p + move(gone, z), items, gone), 1e-7)
        shortcut.append(now - scores(p + move(-1, z), items, -1))
    assert (
        np.max(np.abs(found.drop[0] - np.array(shortcut).T)) > 0.3 * np.abs(found.drop).max()
    )  # the tempting one


# ------------------------------------------------------------------------------------------------ every recommender


@pytest.mark.slow
def test_full_is_the_engines_influence(x64):
    """`bilevel.influence` in the weights of the events; a mean over fewer events makes it E / (E - 1) of that."""
    train = ratings(users=4, items=5)
    fitted = started(ncf.gmf(factors=2, weight_decay=0.5, objective="ratings", batch=None), train)
    u, i, r = (jnp.asarray(np.asarray(c)[train.real()]) for c in (train.user, train.item, train.weight))
    E = r.shape[0]

    def loss(params, w, data, ctx):
        error = (r - ncf.rated(params, u, i[:, None])[0][:, 0]) ** 2
        return jnp.vdot(w, error) / jnp.sum(w) + 0.25 * sum(
            jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)
        )

    step = jax.jit(
        lambda p: jax.tree.map(lambda a, g: a - 0.05 * g, p, jax.grad(loss)(p, jnp.ones(E), None, None))
    )
    params = fitted.params
    for _ in range(3000):
        params = step(params)
    fitted = Fitted(
        fitted.model, params, fitted.data, fitted.x, fitted.model.embed(params, fitted.x, fitted.data)
    )
    found = influences(fitted, train, [1], 1, variant="full", damping=0)
    item = int(found.item[0, 0])
    score = lambda p, w, data: ncf.rated(p, jnp.array([1]), jnp.array([[item]]))[0][0, 0]
    theirs = bilevel.influence(loss, score, params, jnp.ones(E), solver=bilevel.dense()).effect
    close(found.drop[0, 0], np.asarray(theirs)[np.asarray(u) == 1] * E / (E - 1), 1e-3)


@pytest.mark.slow
def test_influence_orders_retrainings(x64):
    """All parameters, trained until nothing moves, then without each rating from where it stood: Spearman 0.95."""
    train = ratings(users=30, items=40)
    model = ncf.gmf(
        factors=2, weight_decay=0.02, objective="ratings", batch=None, epochs=4000, learning_rate=0.02
    )
    fitted = fit(model, train, jax.random.key(0))
    found = influences(fitted, train, [0, 3], 2, variant="full")
    refit = lambda keep: fit(model, train.keep(keep), jax.random.key(0), params0=fitted.params)
    again = jax.jit(lambda keep: refit(keep).scores(jnp.arange(30)))
    for n, user in enumerate((0, 3)):
        before, after = fitted.scores(jnp.array([user]))[0], []
        for z in found.history[n][found.history[n] >= 0]:
            keep = ~((np.asarray(train.user) == user) & (np.asarray(train.item) == z))
            after.append((before - again(jnp.asarray(keep))[user])[found.item[n]])
        assert spearman(found.drop[n][:, : len(after)], np.array(after).T) >= 0.95


HELD = 1e15  # damping with which no parameter moves


NET = {"factors": 2, "tower": 2, "hidden": (3,)}
ATTENTIVE = {"factors": 3, "attention": 2, "hidden": (4,)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "variant", "reads"),
    [
        (partial(bpr.bpr, factors=3), "user", False),
        (partial(ncf.neumf, **NET), "user", False),
        (partial(ncf.neumf, **NET), "full", False),
        (partial(rcf.rcf, RELATIONS, **ATTENTIVE), "user", True),
        (partial(rcf.rcf, RELATIONS, **ATTENTIVE), "full", True),
        (partial(lightgcn.lightgcn, factors=3), "full", True),
        (partial(ngcf.ngcf, factors=3, layers=(3,)), "full", True),
        (partial(multvae.multvae, hidden=5, latent=3), "full", True),
        (partial(autorec.autorec, hidden=4), "full", True),
        (partial(ncr.ncr, factors=3, max_history=3), "full", True),
        # who reads an item's own row of clicks reads no other item's for one that the user has not seen
        (partial(autorec.autorec, by="item", hidden=4), "full", False),
        (partial(itemae.itemae, hidden=(4,)), "full", False),
        (partial(als.als, factors=3), "full", False),
    ],
)
def test_what_scores_read_of_the_data_is_gone_at_once(make, variant, reads):
    """Parameters that cannot move: a drop is the old score less that on data prepared without the event."""
    train, model = clicks(), make()
    fitted, users = started(model, train), [0, 4]
    own = variant_of(fitted, None) == variant
    found = influences(fitted, train, users, 4, variant=None if own else variant, damping=HELD)

    @jax.jit
    def again(keep, user):
        return model.scores(fitted.params, fitted.x, model.prepare(train.keep(keep)), user[None])[0]

    for n, user in enumerate(users):
        for z, item in enumerate(found.history[n]):
            keep = ~((np.asarray(train.user) == user) & (np.asarray(train.item) == item))
            expected = found.scores[n] - again(jnp.asarray(keep), jnp.array(user))[found.item[n]]
            np.testing.assert_allclose(
                found.drop[n, :, z], expected if item >= 0 else 0, atol=2e-5 * np.abs(found.scores).max()
            )
    assert np.any(np.abs(found.drop) > 1e-3 * np.abs(found.scores).max()) == reads
    if own:
        asked = counterfactual(fitted, train, [4, 0, 4], k=4, damping=HELD)
        assert asked.code.tolist() == found.code[[1, 0, 1]].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        partial(itemae.itemae, hidden=(4,), epochs=30),
        partial(lightgcn.lightgcn, factors=3, layers=1, l2=0.1, epochs=30, learning_rate=0.1),
        partial(autorec.autorec, hidden=4, epochs=30),
        partial(ngcf.ngcf, factors=3, layers=(3,), epochs=30),
        partial(multvae.multvae, hidden=5, latent=3, dropout=0.0),
    ],
)
def test_of_all_parameters_by_a_dense_solve(make, x64):
    """After training the Hessian is not definite, and the default solves hold.

    Against a damped Newton step for the loss less its event, in the formed Hessian, and what scores read of the event.
    """
    train, model, user, key = clicks(), make(), jnp.array(4), jax.random.key(3)
    fitted = fit(model, train, jax.random.key(0))
    found = influences(fitted, train, [4], 3, variant="full", key=key)
    items, mine = jnp.asarray(found.item[0]), jnp.asarray(found.history[0])
    params, data, x = fitted.params, fitted.data, fitted.x
    flat, tree = ravel_pytree(params)
    steps = model.trainer(train.users, train.items, 0, train.capacity).steps
    ctx = bilevel.Ctx(key, jnp.asarray(steps - 1))

    def without(z):
        """Prepared again; an event among pairs keeps its place, its weight gone, so that the others draw the same."""
        keep = (train.user != user) | (train.item != z)
        rest = model.prepare(train.keep(keep))
        pairs = getattr(data, "pairs", None)
        return rest if pairs is None else rest._replace(pairs=pairs._replace(real=pairs.real & keep))

    @jax.jit
    def dense():
        slope = jax.grad(lambda f, data: model.loss(tree(f), x, data, ctx))
        scores = lambda f, data: model.scores(tree(f), x, data, user[None])[0, items]
        each = lambda z: (slope(flat, without(z)) - slope(flat, data), scores(flat, without(z)))
        return (
            jax.jacfwd(slope)(flat, data),
            jax.jacrev(scores)(flat, data),
            scores(flat, data),
            *jax.lax.map(each, mine),
        )

    H, rows, now, more, read = map(np.asarray, dense())
    ends = bilevel.spectrum(lambda v: tree(H @ ravel_pytree(v)[0]), params, steps=20)
    low, high = np.linalg.eigvalsh(H)[[0, -1]]
    assert low < -1e-3 * high  # conjugate gradients without damping would meet negative curvature
    moved = np.linalg.solve(H + float(ends.damping(whole.RELATIVE)) * np.eye(len(H)), -more.T)
    through, at_once = -rows @ moved, now[:, None] - read.T
    assert found.code.tolist() == [0]
    assert np.abs(through).max() > 0.1 * np.abs(found.drop).max()
    np.testing.assert_allclose(found.drop[0] - at_once, through, atol=1e-3 * np.abs(through).max())


def reading(params, data, user, stop):
    """What a user's two latest clicks by time before a slot of NCR's data add up to."""
    history, known = ncr.premises(data, user, stop, 2)
    return jnp.sum(jnp.where(known[..., None], params["item"][history], 0), 1)


def recent_loss(params, x, data, ctx):
    """Clicks against drawn items, by what was read before them."""
    index, real = ctx.batch or (jnp.arange(data.user.shape[0]), True)
    user, q = data.user[index], params["item"]
    negative = sample.negatives(ctx.key, data.lists, user, 1, x.shape[1])[:, 0]
    gap = jnp.sum(reading(params, data, user, index) * (q[negative] - q[data.item[index]]), 1)
    return jnp.vdot(data.real[index] & real, jax.nn.softplus(gap))


RECENT = dataclasses.replace(
    ncr.ncr(),
    name="recent",
    init=lambda key, users, items, fakes: {"item": jax.random.normal(key, (items, 2))},
    loss=recent_loss,
    embed=lambda params, x, data: (
        params | {"read": reading(params, data, jnp.arange(data.start.shape[0] - 1), data.start[1:])}
    ),
    score=lambda embedding, users: embedding["read"][users] @ embedding["item"].T,
)
"""A small recommender with NCR's data: it reads the latest clicks by time and draws for every click."""


@pytest.mark.slow
def test_what_goes_is_what_is_named_and_the_others_draw_the_same():
    """The prepared data are in another order than the training data, and scores and loss read of it."""
    train, user, items, key = clicks(), jnp.array(4), jnp.arange(3), jax.random.key(0)
    fitted, size = begun(RECENT, train), int(train.degrees()[4])
    assert not np.array_equal(fitted.data.item, train.item)

    def still(matvec, b):  # no parameter moves
        return bilevel.cg(max_steps=1)(lambda v: v, jax.tree.map(jnp.zeros_like, b))

    @jax.jit
    def asked(fitted):
        """Drops; scores without each click, what each adds to the loss, and through the user's own clicks alone."""
        own, data = blocks.own(train, user, size), fitted.data
        at = lambda data, batch: recent_loss(fitted.params, fitted.x, data, bilevel.Ctx(key, 0, batch))
        scores = lambda data: RECENT.scores(fitted.params, fitted.x, data, user[None])[0, items]
        mine = data.user == user

        def without(item):
            rest = RECENT.prepare(train.keep((train.user != user) | (train.item != item)))
            less = whole.without(data, rest, user, item)
            alone = bilevel.Batch(less.batch.index, less.batch.mask & mine)
            own = bilevel.Batch(jnp.arange(mine.shape[0]), mine)
            parts = at(data, None) - at(less.data, less.batch), at(data, own) - at(less.data, alone)
            return scores(data) - scores(rest), *parts

        drop = whole.drops(fitted, train, user, items, own, still, key, direct=True)[0]
        return drop, *jax.lax.map(without, own.item)

    drop, expected, every, alone = asked(fitted)
    assert np.sum(np.abs(drop).max(0) > 0.01) == 2  # the two latest, whatever their ids
    np.testing.assert_allclose(drop, expected.T, atol=1e-5)
    np.testing.assert_allclose(every, alone, atol=1e-4)
    assert np.abs(alone).min() > 1e-3


def test_a_loss_that_cannot_be_followed_is_refused():
    """It draws and shows no events, does not read those it is given, or orders them by one another."""
    train, key = clicks(), jax.random.key(0)
    fitted = begun(RECENT, train)

    def turned(train):
        data = RECENT.prepare(train)
        return data._replace(**{name: jnp.roll(getattr(data, name), train.count) for name in whole.EVENTS})

    changed = lambda data, **functions: dataclasses.replace(
        fitted, model=dataclasses.replace(RECENT, **functions), data=data
    )
    hidden = lambda params, x, data, ctx: recent_loss(params, x, data[0], ctx)
    deaf = lambda params, x, data, ctx: recent_loss(params, x, data, ctx._replace(batch=None))
    with pytest.raises(ValueError, match="the loss of recent draws numbers"):
        whole.check(changed([fitted.data], loss=hidden), train, key)
    with pytest.raises(ValueError, match=r"does not read ctx\.batch"):
        whole.check(changed(fitted.data, loss=deaf), train, key)
    with pytest.raises(ValueError, match="in another order"):
        influences(changed(turned(train), prepare=turned), train, [0], 2)


@pytest.mark.slow
def test_the_dropout_of_other_users_does_not_count():
    """Mult-VAE draws its masks by places, which a removal shifts: their noise would be larger than what is asked."""
    train = clicks()
    fitted = started(multvae.multvae(hidden=5, latent=3), train)
    plain = dataclasses.replace(fitted, model=multvae.multvae(hidden=5, latent=3, dropout=0.0))
    one, other = (influences(at, train, [0], 3, damping=100.0).drop for at in (fitted, plain))
    close(one, other, 1e-5)


@pytest.mark.slow
def test_bpr_without_a_click_is_a_refit_of_the_user(x64):
    """A sampled loss: the negatives of the other clicks stay, and its user block is convex."""
    train = clicks(items=24)
    fitted, user = started(bpr.bpr(factors=3, l2=0.1, batch=None), train), 3
    mine, key = blocks.own(train, jnp.array(user), int(train.degrees()[user])), jax.random.key(0)
    of = blocks.problem(fitted, train, mine, key)
    newton = lambda loss: lambda b: b - jnp.linalg.solve(jax.hessian(loss)(b), jax.grad(loss)(b))

    @jax.jit
    def solved(gone):
        loss = lambda b: (
            of.loss({"user": b}) - jnp.where(gone >= 0, of.part({"user": b}, jnp.maximum(gone, 0)), 0)
        )
        return jax.lax.fori_loop(0, 12, lambda _, b: newton(loss)(b), jnp.zeros(3))

    p = solved(-1)
    found = influences(with_user(fitted, user, p), train, [user], 5, damping=0)
    Q = fitted.params["item"][found.item[0]]
    exact = np.array([Q @ (p - solved(z)) for z in range(len(found.history[0]))]).T
    assert spearman(found.drop[0], exact) >= 0.95


def test_what_is_refused():
    train = clicks()
    fitted = begun(bpr.bpr(factors=2), train)
    for options, text in [
        ({"variant": "fast"}, "needs ratings"),
        ({"variant": "own"}, "expected one of fast, user, full"),
        ({"damping": -1}, "damping=-1"),
        ({"users": [7]}, r"ids in 0\.\.6"),
        ({"users": []}, "empty"),
        ({"ranks": 0}, "ranks=0"),
    ]:
        with pytest.raises(ValueError, match=text):
            influences(fitted, **{"train": train, "users": [0], "ranks": 2, **options})
    graph = begun(lightgcn.lightgcn(factors=2), train)
    with pytest.raises(ValueError, match="rests on more than its user's own"):
        influences(graph, train, [0], 2, variant="user")


def test_by_default_the_solves_of_a_trained_network_hold_where_a_fixed_damping_meets_negative_curvature():
    """In float32, as it is used."""
    train = clicks(users=30, items=20)
    fitted = fit(itemae.itemae(hidden=(4,), epochs=40), train, jax.random.key(0))
    solved = {d: influences(fitted, train, [0, 1], ranks=1, variant="full", damping=d) for d in (None, 1e-4)}
    assert (solved[None].code == bilevel.Code.OK).all()
    assert (solved[1e-4].code == bilevel.Code.INDEFINITE).all()
