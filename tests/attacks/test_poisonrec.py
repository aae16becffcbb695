"""PoisonRec: what it learns on two rankers, ask/tell against the compiled form, resume, and what it refuses."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks import asktell
from attacks.poisonrec import fresh
from models.data import Interactions, new_items
from models.itempop import itempop

USERS, ITEMS, TARGETS = 10, 12, 3


@pytest.fixture(scope="module")
def train():
    """Two popular items, eight that nobody will miss, three new ones."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, USERS, 60), np.where(rng.random(60) < 0.5, 0, rng.integers(0, ITEMS, 60))
    data = Interactions.from_arrays(
        user, item, users=USERS, items=ITEMS, time=np.arange(60), track="sequence"
    )
    return new_items(data, TARGETS).data


TARGET_IDS = jnp.arange(ITEMS, ITEMS + TARGETS)
BOX = attacks.environment(itempop(), candidates=6, k=1, at_once=8)
SMALL = {"fakes": 2, "clicks": 4, "sets": 8, "width": 8, "learning_rate": 2e-2}


@pytest.fixture(scope="module")
def attack():
    return attacks.poisonrec(BOX, steps=30, **SMALL)


@pytest.fixture(scope="module")
def done(attack, train):
    """The same attack for six seeds: profiles, history, the last state, fresh sets of its policy and their rewards."""

    @jax.jit
    @jax.vmap
    def run(key):
        state = attack.init(key, train, TARGET_IDS, None)
        step = lambda state, _: attack.step(state, train, TARGET_IDS, None)
        state, history = jax.lax.scan(step, state, None, length=attack.steps)
        late = fresh(state.own, key, sets=10)
        rewards = BOX.rewards(state.world, late, key).recnum
        return attack.finish(state, train, TARGET_IDS), history, state, (late, rewards)

    return run(jax.random.split(jax.random.key(2), 6))


def test_on_itempop_it_learns_to_click_one_target_only(done):
    """Eight clicks on one target show it to all ten users, spread over the three to five."""
    profiles, history, state, (late, rewards) = done
    world = jax.tree.map(lambda leaf: leaf[0], state.world)
    for clicks, shown in (([[12] * 4] * 2, 10), ([[12, 13, 14, 12], [13, 14, 12, 13]], 5)):
        assert BOX.judge(world, jnp.array(clicks), jax.random.key(0)).recnum == shown
    share, reward = np.asarray(history["target_share"]).mean(0), np.asarray(history["mean_reward"]).mean(0)
    assert 0.3 < share[0] < 0.7  # about half at the beginning
    assert share[-5:].mean() > 0.85
    assert reward[-5:].mean() > 2 * reward[:5].mean()
    best = np.asarray(profiles.clicks)
    assert np.isin(best, TARGET_IDS).mean() > 0.85
    assert np.asarray(rewards).mean() > 2 * reward[:5].mean()  # fresh sets of the last policy
    clicks = np.asarray(late).reshape(len(late), -1)
    most = np.max([(clicks == target).mean(1) for target in TARGET_IDS], axis=0)
    assert (most > 0.95).all()  # of each seed's, its favorite; the others and all else have the rest


def test_what_is_returned_is_the_best_set_tried(done):
    profiles, history, state, _ = done
    np.testing.assert_allclose(state.own.best.reward, np.asarray(history["best_reward"]).max(1))
    np.testing.assert_array_equal(history["loss"], -np.asarray(history["mean_reward"]))
    for n in range(6):
        world = jax.tree.map(lambda leaf, n=n: leaf[n], state.world)
        worth = BOX.judge(world, profiles.clicks[n], jax.random.key(0)).recnum
        assert float(worth) == float(state.own.best.reward[n])


def test_the_threat_model_counts_every_trial(attack):
    assert (attack.threat.queries, attack.threat.clicks, attack.threat.knowledge) == (30 * 8, 4, "popularity")


def test_ask_and_tell_are_the_compiled_attack(attack, done, train):
    learner = attacks.poisonrec_learner(steps=30, **SMALL)
    key = jax.random.split(jax.random.key(2), 6)[0]
    for_world, for_learner, rest = jax.random.split(key, 3)
    world = jax.jit(partial(BOX.open, fakes=2))(for_world, train, TARGET_IDS)
    ask, tell = jax.jit(learner.ask), jax.jit(learner.tell)
    own = jax.jit(partial(learner.init, attackers=2))(for_learner, train.popularity(), TARGET_IDS)
    for step in range(3):
        asked = ask(own)
        asktell.trial(jax.tree.map(np.asarray, asked), 1).validate(clicks=4, fakes=2)
        rest, for_rewards = jax.random.split(rest)
        found = BOX.rewards(world, asked.clicks, for_rewards).recnum
        np.testing.assert_allclose(found.mean(), done[1]["mean_reward"][0, step], rtol=1e-5)
        own = tell(own, found)
    learner.finish(own).validate(clicks=4, fakes=2)
    with pytest.raises(ValueError, match="one for each of 8 trials"):
        tell(own, found[:2])


def test_a_reward_that_is_no_number_is_never_the_best():
    before = asktell.Best(jnp.zeros((1, 2), int), jnp.array(1.0))
    sets = jnp.arange(6).reshape(3, 1, 2)
    after = asktell.better(before, sets, jnp.array([jnp.nan, 3.0, 2.0]))
    assert (after.clicks.tolist(), float(after.reward)) == ([[2, 3]], 3.0)
    again = asktell.better(after, sets, jnp.array([jnp.nan, 3.0, 1.0]) - 1)
    assert float(again.reward) == 3.0


@pytest.mark.slow
def test_a_world_of_other_targets_is_reported(attack, train, key):
    init = jax.jit(lambda key, train, targets, initial: attack.init(key, train, TARGET_IDS, None))
    with pytest.raises(FloatingPointError, match="not finite"):
        attacks.run(
            dataclasses.replace(attack, init=init),
            key,
            train,
            TARGET_IDS.at[0].set(1),
            block=4,
            on_block=until_eight,
        )


def until_eight(block):
    return block.done == 8


def test_a_run_that_was_killed_goes_on_with_the_same_bytes(attack, train, key, tmp_path):
    def killed(block):
        if block.done == 8:
            raise KeyboardInterrupt

    run = partial(attacks.run, attack, key, train, TARGET_IDS, block=4)
    whole = run(on_block=until_eight)
    with pytest.raises(KeyboardInterrupt):
        run(store=tmp_path, on_block=killed)
    again = run(store=tmp_path, on_block=until_eight)
    assert (again.resumed, again.done) == (4, 8)
    np.testing.assert_array_equal(whole.profiles.clicks, again.profiles.clicks)
    np.testing.assert_array_equal(whole.history["mean_reward"], again.history["mean_reward"])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"environment": itempop()}, TypeError, "attacks.environment"),
        ({"design": "tree"}, ValueError, "'bplain'"),
        ({"sets": 1}, ValueError, "sets"),
        ({"batch": 9}, ValueError, "more than the 8 sets"),
        ({"clip": 1.0}, ValueError, "clip"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"clicks": 0}, ValueError, "clicks"),
        ({"goal": "availability"}, ValueError, "'demote'"),
    ],
)
def test_a_factory_refuses(change, error, match):
    with pytest.raises(error, match=match):
        attacks.poisonrec(**{"environment": BOX, "steps": 2, **SMALL, **change})
