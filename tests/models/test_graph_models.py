"""LightGCN and NGCF: what the graph does to embeddings (ALGORITHMS 3.8, 3.9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import cells, graph, lightgcn, ngcf
from models.data import Interactions

U, I, F, D = 5, 7, 2, 3


@pytest.fixture
def matrices(rng):
    """Clicks (one user and one item without any), relaxed fake rows, and embeddings."""
    X = (rng.random((U, I)) < 0.4).astype(float)
    X[2], X[:, 4] = 0, 0
    x = rng.random((F, I))
    x[:, 4] = 0
    tables = [rng.normal(size=(n, D)) for n in (U, F, I)]
    return X, x, tables


def edges_of(X, form="auto"):
    return graph.edges_of(cells.build(Interactions.from_dense(X), form=form))


def normalized(X, x):
    """The dense normalized adjacency of users, fake users and items."""
    both = np.concatenate([X, x])
    n = U + F
    A = np.zeros((n + I, n + I))
    A[:n, n:], A[n:, :n] = both, both.T
    degree = A.sum(1)
    root = np.where(degree > 0, np.where(degree > 0, degree, 1) ** -0.5, 0)
    return root[:, None] * A * root


@pytest.mark.parametrize("form", ["dense", "observed"])
def test_propagation_is_the_normalized_adjacency(x64, matrices, form):
    X, x, tables = matrices
    made = graph.build(edges_of(X, form=form), jnp.asarray(x))
    found = jnp.concatenate(graph.propagate(made, tuple(map(jnp.asarray, tables))))
    np.testing.assert_allclose(found, normalized(X, x) @ np.concatenate(tables), rtol=1e-12, atol=1e-12)
    values = np.linalg.eigvalsh(normalized(X, x))
    assert np.abs(values).max() <= 1 + 1e-12


def test_on_the_complete_graph_everybody_gets_the_mean(x64, rng):
    item = jnp.asarray(rng.normal(size=(I, D)))
    made = graph.build(edges_of(np.ones((U, I))), jnp.zeros((0, I)))
    user, _, _ = graph.propagate(made, (jnp.zeros((U, D)), jnp.zeros((0, D)), item))
    np.testing.assert_allclose(user, np.broadcast_to(item.sum(0) / np.sqrt(U * I), (U, D)), rtol=1e-12)


def test_layers_are_averaged(x64, matrices):
    X, x, (user, fake, item) = matrices
    E, A = np.concatenate([user, fake, item]), normalized(X, x)
    expected = (E + A @ E + A @ A @ E) / 3
    params = {"user": jnp.asarray(user), "fake": jnp.asarray(fake), "item": jnp.asarray(item)}
    edges = edges_of(X)
    found = jnp.concatenate(lightgcn.smoothed(params, jnp.asarray(x), edges, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", ["squared", "norm"])
def test_the_penalty_reads_layer_zero_of_the_batch(x64, rng, penalty):
    from models.pairs import Pairs

    params = {"user": jnp.asarray(rng.normal(size=(U, D))), "item": jnp.asarray(rng.normal(size=(I, D)))}
    params["fake"] = jnp.zeros((0, D))
    found = Pairs(jnp.array([0, 3]), jnp.array([1, 2]), jnp.array([[4], [5]]), jnp.ones(2))
    blocks = [
        np.asarray(params[n])[list(w)] for n, w in (("user", (0, 3)), ("item", (1, 2)), ("item", (4, 5)))
    ]
    if penalty == "squared":
        expected = 0.1 / 2 * sum((b**2).sum() for b in blocks) / 2
    else:
        expected = 0.1 * sum(np.linalg.norm(b) for b in blocks) / 2
    np.testing.assert_allclose(lightgcn.penalized(params, found, 0.1, penalty), expected, rtol=1e-12)


def test_ngcf_without_its_parts_is_a_linear_graph_convolution(x64, matrices, monkeypatch):
    """W2 = 0, identity activation, no bias, no normalization: (A + E) E W1 layer by layer, concatenated."""
    X, x, tables = matrices
    model = ngcf.ngcf(factors=D, layers=(4, 2))
    params = model.init(jax.random.key(0), U, I, F)
    for name, rows in zip(("user", "fake", "item"), tables, strict=True):
        params[name] = jnp.asarray(rows)
    for k in params["product"]:
        params["product"][k]["kernel"] *= 0
    monkeypatch.setattr(jax.nn, "leaky_relu", lambda h, slope: h)
    monkeypatch.setattr(ngcf, "_unit", lambda rows: rows)
    A, E = normalized(X, x), np.concatenate(tables)
    kept = [E]
    for k in params["sum"]:
        E = (A @ E + E) @ np.asarray(params["sum"][k]["kernel"])
        kept.append(E)
    found = jnp.concatenate(ngcf.convolved(params, jnp.asarray(x), edges_of(X)))
    assert found.shape == (U + F + I, D + 4 + 2)
    np.testing.assert_allclose(found, np.concatenate(kept, 1), rtol=1e-10, atol=1e-12)


def test_a_hard_fake_row_is_an_injected_user(x64, matrices):
    X, x, tables = matrices
    hard = (x > 0.5).astype(float)
    params = dict(zip(("user", "fake", "item"), map(jnp.asarray, tables), strict=True))
    apart = lightgcn.smoothed(params, jnp.asarray(hard), edges_of(X), 2)
    both = np.concatenate([X, hard])
    joined = {"user": jnp.concatenate([params["user"], params["fake"]]), "item": params["item"]}
    joined["fake"] = params["fake"][:0]
    together = lightgcn.smoothed(joined, jnp.zeros((0, I)), edges_of(both), 2)
    np.testing.assert_allclose(jnp.concatenate(apart), jnp.concatenate(together), rtol=1e-12, atol=1e-12)


def test_the_gradient_reaches_the_edges(x64, matrices):
    """Through the degrees too: by central differences, at interior weights."""
    X, x, tables = matrices
    params = dict(zip(("user", "fake", "item"), map(jnp.asarray, tables), strict=True))
    edges = edges_of(X)
    x = jnp.asarray(x)
    f = jax.jit(lambda x: jnp.sum(jnp.sin(lightgcn.smoothed(params, x, edges, 2)[2])))
    slope, step = jax.grad(f)(x), 1e-6
    for at in [(0, 0), (1, 3), (1, 6)]:
        move = jnp.zeros_like(x).at[at].set(step)
        np.testing.assert_allclose(slope[at], (f(x + move) - f(x - move)) / (2 * step), rtol=1e-6)
    assert np.all(np.isfinite(slope))  # item 4 has no edge at all


def test_layers_and_options_are_checked():
    for make, match in (
        (lambda: lightgcn.lightgcn(layers=0), "layers=0"),
        (lambda: lightgcn.lightgcn(penalty="l1"), "penalty='l1'; expected one of squared, norm"),
        (lambda: ngcf.ngcf(layers=()), "at least one"),
        (lambda: ngcf.ngcf(dropout=1.0), "dropout=1.0"),
        (lambda: lightgcn.lightgcn().trainer(3, 4, 0), "capacity of the training data"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    assert bilevel.Inner is type(lightgcn.lightgcn().trainer(3, 4, 0, 10))
