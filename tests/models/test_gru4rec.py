"""GRU4Rec: the three faults that third-party ports have (ALGORITHMS 3.15), and the losses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import gru4rec
from models.data import Interactions
from models.train import fit

LENGTHS = [5, 2, 1, 7, 3, 4]
LANES = 3


@pytest.fixture(scope="module")
def visits():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 8, n) for n in LENGTHS]


@pytest.fixture(scope="module")
def train(visits):
    user = np.repeat(np.arange(len(visits)), LENGTHS)
    flat = np.concatenate(visits)
    return Interactions.from_arrays(
        user, flat, time=np.arange(flat.size), users=len(visits), items=8, track="sequence", capacity=30
    )


@pytest.fixture(scope="module")
def walked(train):
    """What each lane sees over 40 steps."""
    data = gru4rec.prepare(train, alpha=0.75)
    return [jax.tree.map(np.asarray, gru4rec.place(data, step, LANES)) for step in range(40)]


def test_lanes_walk_through_whole_sessions_in_order(visits, walked):
    """(a) a state begins where a session begins and nowhere else; (c) the last item of a session is no input."""
    pairs = {(int(a), int(b)) for v in visits for a, b in itertools.pairwise(v)}
    seen = {lane: [] for lane in range(LANES)}
    for place in walked:
        for lane in range(LANES):
            if place.begins[lane]:
                seen[lane].append([])
            seen[lane][-1].append(int(place.item[lane]))
            if place.counts[lane]:
                assert (int(place.item[lane]), int(place.target[lane])) in pairs
    whole = [list(map(int, v)) for v in visits]
    for sessions in seen.values():
        for session in sessions[:-1]:  # the last one may be under way
            assert session in whole
    every = [session for sessions in seen.values() for session in sessions]
    assert all(session in every for session in whole)


def test_the_last_item_of_a_session_has_no_target(visits, walked):
    usable = sum(n - 1 for n in LENGTHS)
    first_round = walked[: max(LENGTHS) + 5]
    assert sum(place.counts.sum() for place in first_round) >= usable
    for place in walked:
        for lane in range(LANES):
            if not place.counts[lane]:
                assert any(place.item[lane] == v[-1] for v in visits)


@pytest.mark.slow
def test_a_target_is_no_negative_of_itself(x64, train):
    """(b) with one item in the catalog besides, every in-batch negative equal to the target is left out."""
    seen = []

    def spy(s, o, own, regularization):
        seen.append((s, own))
        return s * 0

    data = gru4rec.prepare(train, alpha=0.0)
    params = gru4rec.init(jax.random.key(0), 6, 8, 0, hidden=3)
    ctx = bilevel.Ctx(jax.random.key(1), 0, None, jnp.zeros((LANES, 3)))
    gru4rec.loss(params, None, data, ctx, lanes=LANES, samples=50, ranked=spy, regularization=0.0)
    place = gru4rec.place(data, 0, LANES)
    drawn = jnp.searchsorted(data.cumulative, jax.random.uniform(ctx.key, (50,), data.cumulative.dtype))
    others = np.concatenate([place.target, drawn])
    own = np.asarray(seen[0][1])
    for lane in range(LANES):
        if place.counts[lane]:
            assert not own[lane][others == int(place.target[lane])].any()
            assert own[lane][LANES:][others[LANES:] != int(place.target[lane])].all()


@pytest.fixture
def one_by_one(visits):
    """Parameters, and the states they lead to item by item."""
    params = gru4rec.init(jax.random.key(2), 6, 8, 0, hidden=4)
    step = jax.jit(gru4rec.cell)

    def after(items):
        h = jnp.zeros((1, 4))
        for item in items:
            h = step(params, h, jnp.array([item]))
        return h[0]

    return params, jnp.stack([after(items) for items in visits])


@pytest.mark.parametrize("block", [2, 4, 256])
def test_the_state_after_a_session_is_the_cell_applied_item_by_item(
    x64, train, one_by_one, monkeypatch, block
):
    """With users in one block, in several and with a part of the last one empty; the order of users is kept."""
    monkeypatch.setattr(gru4rec, "BLOCK", block)
    params, expected = one_by_one
    embed = jax.jit(lambda train: gru4rec.embed(params, None, gru4rec.prepare(train, alpha=0.75))["state"])
    np.testing.assert_allclose(embed(train), expected, rtol=1e-10, atol=1e-12)
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), train)
    if block == 4:
        np.testing.assert_allclose(jax.vmap(embed)(copies)[1], expected, rtol=1e-10, atol=1e-12)


def test_scores_read_about_as_many_items_as_there_are_events(train, monkeypatch):
    read, cell = [], gru4rec.cell

    def counted(params, h, item):
        jax.debug.callback(lambda: read.append(item.shape[0]))
        return cell(params, h, item)

    monkeypatch.setattr(gru4rec, "cell", counted)
    monkeypatch.setattr(gru4rec, "BLOCK", 2)
    params = gru4rec.init(jax.random.key(2), 6, 8, 0, hidden=4)
    jax.block_until_ready(gru4rec.embed(params, None, gru4rec.prepare(train, alpha=0.75)))
    jax.effects_barrier()
    assert sum(read) == 2 * (7 + 4 + 2)  # sessions of 7 and 5, 4 and 3, 2 and 1
    assert sum(read) <= sum(LENGTHS) + 2 * max(LENGTHS) < len(LENGTHS) * max(LENGTHS)


def test_losses_by_hand(x64, rng):
    s, o = jnp.asarray(rng.normal(size=2)), jnp.asarray(rng.normal(size=(2, 4)))
    own = jnp.array([[True, True, False, True], [True] * 4])
    sigma = lambda v: 1 / (1 + np.exp(-v))
    for lane in range(2):
        n = np.asarray(o[lane])[np.asarray(own[lane])]
        p = np.exp(n) / np.exp(n).sum()
        a = float(s[lane])
        expected = {
            "top1": np.mean(sigma(n - a) + sigma(n**2)),
            "bpr": np.mean(-np.log(sigma(a - n))),
            "cross-entropy": -a + np.log(np.exp(a) + np.exp(n).sum()),
            "top1-max": np.sum(p * (sigma(n - a) + sigma(n**2))),
            "bpr-max": -np.log(np.sum(p * sigma(a - n))) + 0.7 * np.sum(p * n**2),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(gru4rec.LOSSES[name](s, o, own, 0.7)[lane], value, rtol=1e-9)


def test_it_learns_a_cycle():
    """0 1 2 3 0 1 ...: the next item is certain."""
    visits = [np.arange(k, k + 12) % 4 for k in range(6)]
    train = Interactions.from_arrays(
        np.repeat(np.arange(6), 12), np.concatenate(visits), time=np.arange(72), items=4, track="sequence"
    )
    model = gru4rec.gru4rec(
        hidden=8, objective="cross-entropy", epochs=40, batch=3, samples=8, learning_rate=0.3
    )
    scores = np.asarray(fit(model, train, jax.random.key(0)).scores(jnp.arange(6)))
    assert np.argmax(scores, 1).tolist() == [(v[-1] + 1) % 4 for v in visits]


def test_what_it_refuses(train):
    clicks = Interactions.from_arrays([0, 0], [1, 2])
    for call, match in (
        (lambda: gru4rec.gru4rec().prepare(clicks), "track='sequence'"),
        (lambda: gru4rec.gru4rec(batch=1), "at least 2 lanes"),
        (lambda: gru4rec.gru4rec(objective="bprmax"), "objective='bprmax'"),
        (lambda: gru4rec.gru4rec().trainer(6, 8, 2, 30), "inject click sequences"),
        (lambda: gru4rec.gru4rec().trainer(6, 8, 0), "capacity"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
