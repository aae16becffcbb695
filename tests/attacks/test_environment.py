"""PoisonRec's environment: every ranker against a plain retelling of its update, RecNum and its bounds (C11)."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import attacks
import bilevel
from attacks import finetune
from attacks.counted import Offer
from attacks.environment import environment
from models.autorec import autorec
from models.bpr import bpr
from models.covisitation import covisitation
from models.data import Interactions, Profiles, inject, new_items
from models.evaluation import Candidates, recnum
from models.gru4rec import gru4rec
from models.itempop import itempop
from models.ncf import neumf
from models.ngcf import ngcf
from models.pmf import pmf
from models.train import fit, grow
from models.wrmf import wrmf

USERS, ITEMS, TARGETS, FAKES, CLICKS = 12, 15, 3, 2, 6


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(3)
    user, item = (
        rng.integers(0, USERS - 1, 70),
        rng.zipf(1.5, 70) % (ITEMS - TARGETS),
    )  # the last has no click
    data = Interactions.from_arrays(
        user, item, users=USERS, items=ITEMS - TARGETS, time=np.arange(70), track="sequence"
    )
    return new_items(data, TARGETS).data


TARGET_IDS = jnp.arange(ITEMS - TARGETS, ITEMS)
POISON = jnp.array([[13, 0, 13, 13, 4, 14], [12, 12, 1, 14, 2, 13]])
EPOCHS, LEARNED = 2, {"epochs": 3, "batch": 16}
RANKERS = {
    "itempop": itempop(),
    "covisitation": covisitation(history=4),
    "covisitation-target": covisitation(normalization="target"),
    "pmf": pmf(factors=3, learning_rate=0.3, **LEARNED),
    "bpr": bpr(factors=3, learning_rate=0.1, **LEARNED),
    "neumf": neumf(factors=3, tower=2, hidden=(3,), scale=0.5, learning_rate=0.1, **LEARNED),
    "autorec": autorec(hidden=3, learning_rate=0.1, **LEARNED),
    "gru4rec": gru4rec(hidden=3, epochs=3, batch=4, samples=5),
    "ngcf": ngcf(factors=3, layers=(2,), learning_rate=0.1, dropout=0.0, **LEARNED),
}


def make(model, *, update="poison", **settings):
    """A small environment; fine-tuning is short where there is any."""
    tuned = (
        {"ft_epochs": EPOCHS} if model.name not in ("itempop", "covisitation") and update != "scratch" else {}
    )
    return environment(model, update=update, **{"candidates": 6, "k": 2, "block": 5, **tuned, **settings})


def few_passes(model, users, events):
    inner = model.trainer(users, ITEMS, 0, events)
    return dataclasses.replace(inner, steps=EPOCHS * inner.steps // model.config["epochs"])


def retold(model, base, train, clicks, key):
    """Scores of all users and items after the update, told plainly: all U + N users' rows take part and are read."""
    poisoned = inject(train, Profiles.from_clicks(clicks, TARGET_IDS, items=ITEMS))
    none, everybody = jnp.zeros((0, ITEMS)), jnp.arange(USERS)
    if model.name in ("itempop", "covisitation"):
        return model.scores({}, none, model.prepare(poisoned), everybody)
    key = jax.random.split(key)[1]
    params = grow(model, base.params, jax.random.key(0), users=USERS + FAKES, items=ITEMS)
    rows = iter(base.fresh)  # the attackers' rows, drawn once
    tables = {
        n: leaf for n, leaf in params.items() if hasattr(leaf, "shape") and leaf.shape[:1] == (USERS + FAKES,)
    }
    params = params | {name: leaf.at[USERS:].set(next(rows)) for name, leaf in sorted(tables.items())}
    # AutoRec's rows are users without parameters: empty ones would be zeros to learn.
    first = 0 if model.name == "autorec" else USERS
    alone = finetune.events(clicks, first=first, items=ITEMS)
    data = model.prepare(alone)
    if model.name == "gru4rec":
        data = data._replace(cumulative=model.prepare(poisoned).cumulative)
    elif model.name == "ngcf":
        data = model.prepare(poisoned)._replace(pairs=data.pairs)
    params = bilevel.detached(few_passes(model, alone.users, alone.capacity))(none, params, data, key)
    read = model.prepare(train) if model.name in ("autorec", "gru4rec") else data
    return model.scores(params, none, read, everybody)


DEAR = (
    "pmf",
    "covisitation-target",
    "autorec",
    "neumf",
    "ngcf",
    "gru4rec",
)  # to compile, beside others of their kind


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEAR)) for n in RANKERS])
def test_every_ranker_is_updated_and_read_as_told_plainly(name, train, key):
    model = RANKERS[name]
    box = make(model)

    @jax.jit
    def run(train, key):
        world = box.open(key, train, TARGET_IDS, FAKES)
        read = lambda tuned: box.ranker.read(world.base, tuned, jnp.arange(USERS), world.offer)
        tuned, clean = box.ranker.update(world.base, POISON, key), box.ranker.clean(world.base)
        scores = retold(model, world.base, train, POISON, key)
        offered = Candidates(world.offer.item[:, :-TARGETS], world.offered)
        total = recnum(lambda users: scores[users], train, TARGET_IDS, offered, k=2).total
        return (
            world,
            scores,
            read(tuned),
            read(clean),
            total,
            box.count(world, tuned),
            box.lists(world, tuned),
        )

    world, scores, found, clean, total, outcome, lists = run(train, key)
    expected = np.take_along_axis(np.asarray(scores), np.asarray(world.offer.item), axis=1)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    assert np.any(clean != found)
    # RecNum is that of the evaluation, on the same candidates, and what the lists show.
    assert (float(outcome.error), float(outcome.lost)) == (0, 0)
    assert int(outcome.recnum) == int(total) == np.isin(lists, TARGET_IDS).sum() <= 2 * USERS


def test_a_network_is_read_at_the_candidates_as_everywhere(key):
    model = RANKERS["neumf"]
    offer = Offer(jnp.array([3, 0]), jnp.array([[1, 14], [14, 2]]))

    @jax.jit
    def run(key):
        params = model.init(key, USERS, ITEMS, 0)
        return finetune.read_few(model, params, offer), model.score(params, offer.users)

    few, every = run(key)
    np.testing.assert_allclose(few, np.take_along_axis(every, offer.item, axis=1), rtol=1e-5)


@pytest.fixture(scope="module")
def popular(train):
    box = make(itempop(), at_once=1)
    return box, jax.jit(partial(box.open, fakes=FAKES))(jax.random.key(1), train, TARGET_IDS)


def test_many_sets_at_once_are_the_sets_one_by_one(popular, rng):
    box, world = popular
    sets = jnp.asarray(rng.integers(ITEMS - TARGETS - 1, ITEMS, (5, FAKES, CLICKS))).at[0].set(13)
    together = dataclasses.replace(box, at_once=3)

    @jax.jit
    def run(world, key):
        alone = jnp.stack(
            [box.judge(world, one, key).recnum for one in sets]
        )  # ItemPop's update draws nothing
        return box.rewards(world, sets, key).recnum, together.rewards(world, sets, key).recnum, alone

    first, second, third = run(world, jax.random.key(0))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    assert len(set(first.tolist())) > 1


def test_a_fixed_world_is_reused_and_named_in_the_records(popular, train, key):
    box, world = popular
    fixed = box.at(world)
    assert fixed.open(key, train, TARGET_IDS, FAKES) is world
    assert fixed.config["world"] != box.at(world._replace(base=world.base + 1)).config["world"]
    attack = attacks.poisonrec(fixed, fakes=FAKES, clicks=3)
    for call in (attack, attack.trace, lambda *given: attacks.run(attack, *given)):
        with pytest.raises(ValueError, match="the environment's world has"):
            call(key, train, TARGET_IDS[::-1])


def test_recnum_is_at_most_eight_a_user_and_an_oracle_reaches_it(train, key):
    wide, targets = new_items(train, 8)
    box = environment(itempop(), candidates=6)

    @jax.jit
    def run(key, train):
        world = box.open(key, train, targets, 20)
        return box.judge(world, jnp.tile(targets, (20, 5)), key).recnum, box.clean(world).recnum

    oracle, clean = run(key, wide)
    assert float(oracle) == 8 * USERS > float(clean)


def test_counting_some_users_is_unbiased_and_says_how_uncertain_it_is(train):
    box, whole = make(itempop(), users=5), make(itempop())
    world = box.open(jax.random.key(1), train, TARGET_IDS, FAKES)
    exact = whole.judge(world, POISON, jax.random.key(0))
    found = jax.jit(jax.vmap(lambda key: box.judge(world, POISON, key)))(
        jax.random.split(jax.random.key(0), 400)
    )
    off = np.asarray(found.recnum - exact.recnum)
    assert np.std(off) > 0.5  # the candidates differ from user to user
    assert abs(np.mean(off)) < 4 * np.std(off) / 20
    np.testing.assert_allclose(np.mean(np.asarray(found.error) ** 2), np.var(off), rtol=0.25)
    assert not np.any(exact.error)
    assert float(box.clean(world).recnum) == float(whole.clean(world).recnum)  # of everybody


def test_every_call_draws_other_users_and_all_its_sets_the_same(train, popular):
    _, world = popular
    box = make(itempop(), users=5)
    same = jnp.broadcast_to(POISON, (6, FAKES, CLICKS))
    calls = jax.jit(lambda keys: lax.map(lambda key: box.rewards(world, same, key).recnum, keys))
    found = np.asarray(calls(jax.random.split(jax.random.key(0), 20)))
    assert np.all(found == found[:, :1])
    assert len(set(found[:, 0].tolist())) > 2


def test_alternating_beats_repeating_on_covisitation_by_brute_force(train, key):
    """All sequences (a, b, a, b, ...): the best click one target and one original; one item alone gives nothing."""
    box = make(covisitation(), at_once=64)
    world = jax.jit(partial(box.open, fakes=FAKES))(key, train, TARGET_IDS)
    pairs = np.stack(np.meshgrid(np.arange(ITEMS), np.arange(ITEMS), indexing="ij"), -1).reshape(-1, 2)
    clicks = jnp.asarray(np.broadcast_to(np.tile(pairs, (1, 3))[:, None], (len(pairs), FAKES, CLICKS)))
    worth = np.asarray(jax.jit(box.rewards)(world, clicks, key).recnum)
    target = pairs >= ITEMS - TARGETS
    best = worth == worth.max()
    assert worth.max() > 0
    assert np.all(target[best].sum(1) == 1)
    assert np.all(worth[pairs[:, 0] == pairs[:, 1]] == 0)


@pytest.mark.slow
def test_an_update_that_diverges_is_told(train, key):
    box = make(pmf(factors=3, learning_rate=100.0, scale=1e-3, **LEARNED), ft_batch=1, ft_epochs=40)
    world = box.open(key, train, TARGET_IDS, FAKES)
    broken = box.judge(world, POISON, key)
    assert (float(broken.recnum), float(broken.lost)) == (0, 1)


def test_a_batch_of_a_fine_tuning_is_the_model_s_own_or_a_given_one():
    own = finetune._passes(bpr(batch=1000), FAKES, ITEMS, 12, 10, None)
    small = finetune._passes(bpr(batch=1000), FAKES, ITEMS, 12, 10, 5)
    assert (own.steps, small.steps) == (10, 30)
    assert (small.batches.count, small.batches.size) == (12, 5)


def test_replay_mixes_in_the_last_clicks_of_as_many_real_users(train):
    new = finetune.events(POISON, first=USERS, items=ITEMS)
    mixed = jax.jit(finetune.mixed, static_argnums=3)(jax.random.key(2), train, new, CLICKS)
    real = np.asarray(mixed.mask)
    user, item = np.asarray(mixed.user)[real], np.asarray(mixed.item)[real]
    assert np.all(np.diff(user) >= 0)
    olds = np.unique(user[user < USERS])
    assert len(olds) == FAKES
    for old in olds:
        history = np.asarray(train.item)[np.asarray(train.user) == old]
        np.testing.assert_array_equal(item[user == old], history[-CLICKS:])
    np.testing.assert_array_equal(item[user >= USERS], np.asarray(POISON).ravel())


@pytest.mark.parametrize("name", ["bpr", pytest.param("ngcf", marks=pytest.mark.slow)])
def test_older_clicks_of_a_replayed_user_are_no_negatives_of_his(name, train):
    new, model = finetune.events(POISON, first=USERS, items=ITEMS), RANKERS[name]

    @jax.jit
    def read(key):
        few = finetune.mixed(key, train, new, CLICKS)
        return finetune._read_by(model, finetune._kind(model), train, few, POISON, replay=True)

    data = read(jax.random.key(2))
    data = data.pairs if name == "ngcf" else data
    real = np.asarray(data.real)
    user, clicked = np.asarray(data.user)[real], np.asarray(data.item)[real]
    start, item, older = np.asarray(data.lists.start), np.asarray(data.lists.item), 0
    for one in np.unique(user[user < USERS]):
        history = np.unique(np.asarray(train.item)[np.asarray(train.user) == one])
        np.testing.assert_array_equal(item[start[one] : start[one + 1]], history)
        older += len(np.setdiff1d(history, clicked[user == one]))
    assert older > 0


@pytest.mark.slow
@pytest.mark.parametrize("update", ["replay", "scratch"])
def test_replay_moves_the_real_users_whose_clicks_it_mixes_in_and_scratch_trains_again(update, train, key):
    model = RANKERS["bpr"]
    box = make(model, update=update)

    @jax.jit
    def run(train, key):
        world = box.open(key, train, TARGET_IDS, FAKES)
        tuned = box.ranker.update(world.base, POISON, key)
        return box.ranker.clean(world.base), tuned, box.count(world, tuned).recnum

    before, tuned, worth = run(train, key)
    if update == "scratch":
        poisoned = inject(train, Profiles.from_clicks(POISON, TARGET_IDS, items=ITEMS))
        np.testing.assert_allclose(tuned["item"], fit(model, poisoned, key).params["item"], rtol=1e-5)
    else:
        moved = np.any(np.asarray(tuned["user"]) != np.asarray(before["user"]), axis=1)
        assert moved.shape == (USERS,)
        assert moved.sum() == FAKES
    assert 0 <= float(worth) <= 2 * USERS


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"model": itempop(), "update": "replay"}, "only counts"),
        ({"model": wrmf(epochs=2)}, 'update="scratch"'),
        ({"model": autorec(by="item", epochs=2)}, 'update="scratch"'),
        ({"model": bpr(), "update": "all"}, "'replay'"),
        ({"model": autorec(), "update": "replay"}, "whole rows"),
        ({"model": bpr(), "ft_epochs": 0}, "ft_epochs"),
        ({"model": bpr(), "ft_batch": 0}, "ft_batch"),
        ({"model": autorec(), "ft_batch": 8}, "batches of clicks"),
        ({"model": itempop(), "ft_epochs": 77}, "itempop is not fine-tuned here but counts"),
        (
            {"model": bpr(), "update": "scratch", "ft_epochs": 77},
            "bpr is not fine-tuned here but trained again",
        ),
        ({"model": bpr(), "candidates": 0}, "candidates"),
        ({"model": bpr(), "users": 0}, "users"),
    ],
)
def test_an_environment_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        environment(**arguments)


def test_more_users_than_there_are_is_refused(train, key):
    with pytest.raises(ValueError, match="the data have 12"):
        make(itempop(), users=13).open(key, train, TARGET_IDS, FAKES)
