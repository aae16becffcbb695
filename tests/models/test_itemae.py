"""ItemAE: the network as Flax runs it, the weighted loss by the letter, batches of items, forms, presets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import itemae
from models.data import Interactions

U, I, F = 9, 12, 4


@pytest.fixture
def drawn(x64, rng):
    matrix = (rng.random((U, I)) < 0.3).astype(float)
    x = jnp.array(rng.random((F, I)) * (rng.random((F, I)) < 0.5))
    network = itemae.AutoEncoder(U + F, (6, 3), rngs=nnx.Rngs(params=jax.random.key(0)))
    return matrix, x, network, nnx.to_pure_dict(nnx.state(network, nnx.Param))


def predicted(network, matrix, x):
    """The network on item columns, layer by layer, as Flax computes it: (I, U + F)."""
    *hidden, last = network.layers
    h = jnp.concatenate([matrix, x]).T
    for layer in hidden:
        h = jnp.tanh(layer(h))
    return last(h)


def defined(params, x, matrix, graph, l2):
    network = nnx.merge(graph, params)
    target = jnp.concatenate([matrix, x])
    w = jax.lax.stop_gradient(jnp.where(target > 0, 20.0, 1.0))
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.sum(w * (target - predicted(network, matrix, x).T) ** 2) + l2 / 2 * penalty


def close(a, b, tolerance=1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1, np.abs(y).max(initial=0)))


@pytest.mark.parametrize("form", [pytest.param("dense", marks=pytest.mark.slow), "observed"])
def test_loss_gradient_and_scores_equal_the_network_as_flax_runs_it(drawn, form):
    matrix, x, network, params = drawn
    model = itemae.itemae(hidden=(6, 3), l2=0.2, form=form)
    data = model.prepare(Interactions.from_dense(matrix))
    ctx = model.trainer(U, I, F).context(jax.random.key(0), 0)
    graph, state = nnx.split(network, nnx.Param)
    expected = jax.value_and_grad(defined, (0, 1))(state, x, matrix, graph, 0.2)
    close(jax.jit(jax.value_and_grad(model.loss, (0, 1)))(params, x, data, ctx), expected)
    users = jnp.array([4, 0])
    close(model.scores(params, x, data, users), predicted(network, matrix, x).T[users])


@pytest.mark.parametrize("form", ["dense", "observed"])
def test_batches_of_an_epoch_add_up_to_the_full_loss(drawn, form):
    matrix, x, _, params = drawn
    model = itemae.itemae(hidden=(6, 3), l2=0.0, form=form, batch=5)
    data = model.prepare(Interactions.from_dense(matrix))
    inner = model.trainer(U, I, F)
    assert inner.steps_per_epoch == 3  # ceil(12 / 5)
    loss = jax.jit(lambda step: model.loss(params, x, data, inner.context(jax.random.key(1), step)))
    close(
        sum(loss(step) for step in range(3)),
        model.loss(params, x, data, inner.final_context(jax.random.key(1))),
    )


def test_hessian_products_agree_between_forms(drawn):
    matrix, x, _, params = drawn
    products = []
    for form in ("dense", "observed"):
        model = itemae.itemae(hidden=(6, 3), form=form)
        data = model.prepare(Interactions.from_dense(matrix))
        ctx = model.trainer(U, I, F).context(jax.random.key(0), 0)
        gradient = jax.grad(model.loss, (0, 1))
        along = jax.tree.map(jnp.cos, params)
        products.append(
            jax.jit(lambda p: jax.jvp(lambda p: gradient(p, x, data, ctx), (p,), (along,))[1])(params)
        )
    close(*products)


def test_fake_users_are_part_of_the_network():
    model = itemae.itemae(hidden=(5,))
    none, some = (model.init(jax.random.key(0), U, I, fakes)["layers"][0]["kernel"].shape for fakes in (0, F))
    assert (none, some) == ((U, 5), (U + F, 5))


def test_initial_values_are_pytorchs():
    layers = itemae.itemae(hidden=(50,)).init(jax.random.key(0), 400, 10, 0)["layers"]
    for layer, inputs in ((layers[0], 400), (layers[1], 50)):
        for leaf in (layer["kernel"], layer["bias"]):
            assert 0.9 / np.sqrt(inputs) < np.abs(leaf).max() <= 1 / np.sqrt(inputs)
            assert np.std(leaf) == pytest.approx(1 / np.sqrt(3 * inputs), rel=0.2)


def test_presets_are_the_settings_of_the_released_code():
    big, toy = (itemae.preset(name).config for name in ("revadv-gowalla", "revadv-toy"))
    assert (big["hidden"], big["activation"], big["learning_rate"], big["l2"]) == (
        (256, 128, 256),
        "tanh",
        1e-3,
        1e-6,
    )
    assert (toy["hidden"], toy["activation"], toy["learning_rate"], toy["epochs"]) == (
        (64, 32, 64),
        "selu",
        1e-2,
        100,
    )
    assert itemae.preset("revadv-gowalla").trainer(13149, 14007, 131).steps == 50 * 7
    assert itemae.preset("revadv-toy").trainer(900, 300, 100).steps == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": ()}, "at least one hidden layer"),
        ({"hidden": (4, 0)}, r"hidden\[1\]=0"),
        ({"activation": "gelu"}, "tanh, selu, relu"),
        ({"form": "sparse"}, "auto, dense, observed"),
        ({"l2": -1.0}, "l2=-1.0"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        itemae.itemae(**arguments)
