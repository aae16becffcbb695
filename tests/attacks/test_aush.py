"""AUSH: fillers and templates as they are, the generator's losses one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import attacks
from attacks.aush import (
    Losses,
    Networks,
    discriminator_loss,
    generate,
    generator_loss,
    init_layers,
    judge,
    widths,
)
from attacks.templates import Batch, audience, cut, templates
from models.data import Interactions

USERS, ITEMS, TARGETS, GRID = 12, 14, (3, 8), (1.0, 5.0, 1.0)


@pytest.fixture
def rating(rng):
    """Ratings; some users have too few for a template."""
    found = rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.7)
    found[:3, 4:] = 0
    return found


@pytest.fixture
def train(rating):
    return Interactions.from_dense(rating, track="explicit", capacity=USERS * ITEMS)


@pytest.fixture
def networks(make_keys):
    one, two = make_keys(2)
    return Networks(init_layers(one, [ITEMS, *widths(2), 2]), init_layers(two, [ITEMS, 5, 5, 1]))


TARGET, SELECTED = jnp.isin(jnp.arange(ITEMS), jnp.array(TARGETS)), jnp.array([1, 6])


@pytest.fixture
def batch(rng):
    """Five templates with ratings of their own for the selected items 1 and 6, in part."""
    fillers = rng.integers(0, 6, (5, ITEMS)).astype(float)
    fillers[:, [1, 6, *TARGETS]] = 0
    own = np.array([[2.0, 0], [2, 3], [0, 0], [2, 3], [2, 3]])
    return Batch(jnp.asarray(fillers), jnp.asarray(own), jnp.ones(5))


def parts(key, networks, batch, **losses):
    return _parts(key, networks, batch, dataclasses.asdict(Losses(**losses)))


@jax.jit
def _parts(key, networks, batch, losses):
    return generator_loss(key, networks, batch, TARGET, SELECTED, 5.0, Losses(**losses))


def test_the_generator_learns_from_the_discriminator(networks, batch, key):
    """A peer cuts the gradient there: its generator never hears of the discriminator."""
    alone = {"shilling": 0.0, "reconstruction": 0.0, "l2": 0.0}
    through = lambda generator: parts(key, networks._replace(generator=generator), batch, **alone)[0]
    gradient = jax.jit(jax.grad(through))(networks.generator)
    assert all(np.abs(layer["kernel"]).max() > 0 for layer in gradient)


@jax.jit
def trained(networks, batch, weights):
    """Generated ratings after training on a weighted choice of the losses."""
    tool = optax.adam(0.05)

    def step(_, carried):
        generator, kept = carried
        loss = lambda g: parts(
            jax.random.key(0),
            networks._replace(generator=g),
            batch,
            adversarial=0.0,
            shilling=weights[0],
            reconstruction=weights[1],
            l2=0.0,
            unrated=0.0,
        )[0]
        updates, kept = tool.update(jax.grad(loss)(generator), kept)
        return optax.apply_updates(generator, updates), kept

    begin = networks.generator, tool.init(networks.generator)
    return generate(jax.lax.fori_loop(0, 400, step, begin)[0], batch.fillers, 5.0)


def test_shilling_alone_drives_selected_ratings_to_the_top_and_reconstruction_to_the_templates(
    networks, batch
):
    np.testing.assert_allclose(trained(networks, batch, jnp.array([1.0, 0.0])), 5, atol=0.1)
    rebuilt = trained(networks, batch, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(rebuilt[:, 0], 2, atol=0.1)
    np.testing.assert_allclose(rebuilt[:, 1], 3, atol=0.1)


def test_losses_are_their_formulas(networks, batch, key):
    written = np.asarray(generate(networks.generator, batch.fillers, 5.0))
    own, weight = np.asarray(batch.own), np.array([1.0, 1, 1, 1, 0])
    masked = batch._replace(weight=jnp.asarray(weight))
    for unrated in (0.0, 1.0):
        loss, found = parts(key, networks, masked, unrated=unrated, l2=0.5)
        square = (written - own) ** 2 * ((own > 0) | (unrated == 1))
        np.testing.assert_allclose(found["reconstruction"], square.sum(1)[:4].mean(), rtol=1e-5)
        np.testing.assert_allclose(found["shilling"], ((written - 5) ** 2)[:4].mean(), rtol=1e-5)
        logit = judge(networks.discriminator, batch, jnp.asarray(written), TARGET, SELECTED)
        np.testing.assert_allclose(found["adversarial"], np.log1p(np.exp(-logit))[:4].mean(), rtol=1e-5)
        squares = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(networks.generator))
        total = found["adversarial"] + found["shilling"] + found["reconstruction"] + 0.25 * squares
        np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_the_discriminator_calls_templates_real_and_profiles_fake(networks, batch, key):
    weight = np.array([1.0, 1, 1, 1, 0])
    masked = batch._replace(weight=jnp.asarray(weight))
    written = generate(networks.generator, batch.fillers, 5.0)
    real, fake = (
        np.asarray(judge(networks.discriminator, batch, rows, TARGET, SELECTED))[:4]
        for rows in (batch.own, written)
    )
    expected = np.mean(np.log1p(np.exp(-real)) + np.log1p(np.exp(fake)))
    at = (key, networks, masked, TARGET, SELECTED, 5.0, Losses(1.0, 1.0, 1.0, 0.5, 0.0))
    np.testing.assert_allclose(discriminator_loss(*at)[0], expected, rtol=1e-5)
    slope = jax.grad(lambda net: discriminator_loss(key, net, *at[2:])[0])(networks)
    assert all(
        np.abs(layer["kernel"]).max() == 0 for layer in slope.generator
    )  # it learns from the other loss
    assert all(np.abs(layer["kernel"]).max() > 0 for layer in slope.discriminator)


def test_half_of_the_unrated_items_are_read(networks, batch, make_keys):
    """Each key draws its own; their mean lies half way between none and all."""
    read = lambda key, unrated: parts(key, networks, batch, unrated=unrated)[1]["reconstruction"]
    none, everything = (float(read(make_keys(1)[0], unrated)) for unrated in (0.0, 1.0))
    halves = np.asarray(jax.vmap(lambda key: read(key, 0.5))(make_keys(400)))
    assert everything > none + 1e-3
    assert len(np.unique(halves)) > 2
    np.testing.assert_allclose(halves.mean(), (none + everything) / 2, atol=0.1 * (everything - none))


def test_targets_are_hidden_from_the_discriminator(networks, batch):
    shown = batch._replace(fillers=batch.fillers.at[:, jnp.array(TARGETS)].set(5.0))
    logits = [judge(networks.discriminator, each, batch.own, TARGET, SELECTED) for each in (batch, shown)]
    np.testing.assert_array_equal(*logits)


_templates = jax.jit(templates, static_argnums=4)


def test_a_template_keeps_its_own_ratings(rating, train, make_keys):
    """Reconstruction reads the template's rating of a selected item, which the fillers do not hold."""
    one, two = make_keys(2)
    order, count = _templates(one, train, TARGET, SELECTED, 5)
    free = np.delete(rating, [1, 6, *TARGETS], axis=1) > 0
    enough = free.sum(1) >= 5
    assert set(order[: int(count)].tolist()) == set(np.flatnonzero(enough))
    assert not enough[:3].any()
    users = order[: int(count)]
    batch = jax.jit(cut, static_argnums=6)(two, train, users, jnp.ones(int(count)), TARGET, SELECTED, 5)
    np.testing.assert_array_equal(batch.own, rating[users][:, [1, 6]])
    assert (batch.own > 0).any()
    fillers = np.asarray(batch.fillers)
    assert (fillers[:, [1, 6, *TARGETS]] == 0).all()
    np.testing.assert_array_equal((fillers > 0).sum(1), 5)
    np.testing.assert_array_equal(fillers[fillers > 0], rating[users][fillers > 0])


def test_where_nobody_has_enough_those_with_most_are_templates(train, rating, key):
    free = (np.delete(rating, [1, 6, *TARGETS], axis=1) > 0).sum(1)
    order, count = _templates(key, train, TARGET, SELECTED, ITEMS)
    assert set(order[: int(count)].tolist()) == set(np.flatnonzero(free == free.max()))


def test_selected_items_are_those_the_audience_likes():
    rating = np.array([[5, 4, 0, 1, 0], [4, 5, 4, 2, 0], [1, 0, 5, 5, 5], [0, 0, 5, 0, 5]])
    train = Interactions.from_dense(rating, track="explicit")
    liked = lambda target: audience(train, jnp.array([target]), 2, liked=3.0).tolist()
    assert liked(0) == [1, 2]  # users 0 and 1 like item 0; both like 1, one likes 2
    assert liked(3) == [2, 4]  # user 2 alone likes item 3; of its items 2 is the most popular


@pytest.mark.slow
def test_profiles_are_pieces_of_real_users(rating, train, key):
    attack = attacks.aush(
        fakes=6, budget=5, selected=2, steps=2, track="explicit", ratings=GRID, goal="demote"
    )
    profiles, history = attack.trace(key, train, jnp.array(TARGETS))
    rows = np.asarray(profiles.rows)
    assert (rows[:, TARGETS] == 1).all()  # demotion
    chosen = np.asarray(audience(train, jnp.array(TARGETS), 2, liked=3.0))
    assert (rows[:, chosen] > 0).all()
    for row in rows:
        fillers = np.setdiff1d(np.flatnonzero(row), [*chosen, *TARGETS])
        assert len(fillers) == 3
        assert (rating[:, fillers] == row[fillers]).all(axis=1).any()
    assert set(history) == {"loss", "adversarial", "shilling", "reconstruction", "discriminator"}
    assert np.isfinite(list(history.values())).all()


def test_the_generator_narrows_by_thirds():
    assert [widths(n) for n in (3, 10, 0)] == [[133, 44, 14, 4, 1], [133, 44, 14, 4], [133, 44, 14, 4, 1]]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"track": "sequence"}, "'sequence'.*no order"),
        ({"goal": "demote"}, "'demote' on the 'implicit' track"),
        ({"goal": "availability"}, "'availability'"),
        ({"track": "explicit"}, "needs ratings"),
        ({"budget": None}, "budget is None"),
        ({"selected": 0}, "selected=0"),
        ({"unrated": 1.5}, "at most 1"),
        ({"shilling": -1.0}, "shilling"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        attacks.aush(**{"fakes": 1, "budget": 5} | arguments)
