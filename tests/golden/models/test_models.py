"""Recommenders against `make_models.py`, a second implementation in plain PyTorch: the numbers agree to 1e-10.

The files hold parameters and draws; ours gets both. Draws are put in by replacing what draws them (`models.pairs.draw`
for clicks and their negatives, `jax.random` for noise), so everything that is computed from them is ours: the loss, its
gradient in every parameter and in the fake rows, two steps of the model's own optimizer, and the scores.
"""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import gru4rec, ncr, pairs, registry
from models.data import Interactions, sample, slots
from models.data.relations import Relations

HERE = Path(__file__).resolve().parent
U, I, F = 5, 6, 2
CASES = sorted(path.stem for path in HERE.glob("*.npz"))
COUNTED = [case for case in CASES if case.startswith(("itemcf-", "covisitation-"))]
LEARNED = [case for case in CASES if case not in COUNTED and not case.startswith(("gru4rec-", "pcmf-"))]


FIRST = [
    next(case for case in LEARNED if case.split("-")[0] == name)
    for name in sorted({c.split("-")[0] for c in LEARNED})
]


DEFAULT = [
    case for case in FIRST if not case.startswith("rcf-")
]  # RCF takes seconds to compile; test_rcf.py has loops


def rarely(*cases):
    """Further cases of a model that another one judges already: `make test-all` runs them."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def close(ours, golden, tolerance=1e-10):
    """Every leaf, relative to its largest entry."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * max(1e-3, np.abs(b).max(initial=0))
        ),
        ours,
        golden,
    )


def golden(case):
    """A file as a namespace: nested dictionaries, keys that are numbers as integers."""
    tree = {}
    with np.load(HERE / f"{case}.npz") as file:
        for path in file.files:
            *above, name = [int(part) if part.isdigit() else part for part in path.split("/")]
            inner = tree
            for part in above:
                inner = inner.setdefault(part, {})
            inner[name] = file[path]
    return SimpleNamespace(**{**tree, "meta": json.loads(str(tree["meta"]))})


def interactions(stored):
    """The training data in double precision (ours are float32, in which a golden number would not be reached)."""
    items = stored.meta.get("items", I)
    made = Interactions.from_arrays(
        **stored.train, items=items, users=None if items > I else U, track=stored.meta["track"]
    )
    return dataclasses.replace(made, weight=made.weight.astype(float))


def context(stored, key):
    """The context of the step; models that draw pairs are given them elsewhere."""
    batch, draws = None, getattr(stored, "draws", {})
    if "batch" in draws:
        index = jnp.asarray(draws["batch"], jnp.int32)
        batch = bilevel.Batch(index, jnp.asarray(draws.get("mask", np.ones(len(index), bool))))
    return bilevel.Ctx(key, stored.meta.get("step", 0), batch)


# ------------------------------------------------------------------------------------------------ draws


def put_pairs(monkeypatch, draws):
    """Replace `pairs.draw`; the weight of a fake user's pair is its relaxed cell."""

    def draw(data, x, ctx, negatives):
        assert draws["negative"].shape[1] == negatives
        cell = draws["cell"] == 1
        weight = jnp.asarray(draws["real"])
        if cell.any():
            weight = jnp.where(cell, x[np.where(cell, draws["user"] - U, 0), draws["item"]], weight)
        return pairs.Pairs(draws["user"], draws["item"], jnp.asarray(draws["negative"]), weight)

    monkeypatch.setattr(pairs, "draw", draw)


def put_message_dropout(monkeypatch, draws):
    """NGCF drops entries of real users, fake users and items, layer by layer."""
    kept = {}
    for k in (0, 1):
        keep = draws[f"keep_{k}"]
        for rows, part in ((U, keep[:U]), (F, keep[U : U + F]), (I, keep[U + F :])):
            kept[rows, keep.shape[1]] = part
    assert len(kept) == 6  # the parts differ in shape, which tells them apart
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.asarray(kept[shape]))


def put_autoencoder_noise(monkeypatch, stored):
    """Mult-VAE draws epsilon a row of the batch and dropout a click of the batch, and a cell of the fake rows."""
    draws = stored.draws
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape, dtype: jnp.asarray(draws["noise"][draws["batch"]], dtype)
    )
    if "keep" not in draws:
        return
    of_user = [stored.train["item"][stored.train["user"] == user] for user in range(U)]
    rows = draws["batch"][draws["mask"]]
    clicks = np.concatenate([draws["keep"][user, of_user[user]] for user in rows if user < U])

    def bernoulli(key, p, shape):
        if shape == (F, I):
            return jnp.asarray(draws["keep"][U:])
        return jnp.asarray(np.append(clicks, np.ones(shape[0] - len(clicks), bool)))

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)


def put_reasoning(monkeypatch, draws):
    """NCR draws a negative of each click and the order of the slots behind the oldest one."""
    behind = draws["order"][1:] - 1
    monkeypatch.setattr(jax.random, "permutation", lambda key, count: jnp.asarray(behind))
    monkeypatch.setattr(sample, "negatives", lambda *_: jnp.asarray(draws["negative"], jnp.int32)[:, None])
    monkeypatch.setattr(ncr, "true_vector", lambda factors: jnp.asarray(draws["true"]))


def put(monkeypatch, stored):
    """The draws of a file in place of random ones."""
    name, draws = stored.meta["name"], getattr(stored, "draws", {})
    if "cell" in draws:
        put_pairs(monkeypatch, draws)
    if "keep_0" in draws:
        put_message_dropout(monkeypatch, draws)
    if name == "multvae":
        put_autoencoder_noise(monkeypatch, stored)
    if name == "ncr":
        put_reasoning(monkeypatch, draws)
    if name == "rcf":
        known = {field: jnp.asarray(rows) for field, rows in draws["related"].items()}
        known["exists"] = known["exists"] == 1
        monkeypatch.setattr(slots, "triples", lambda *_: slots.Triples(**known))


def made(stored):
    """The recommender of a file; RCF with its relations."""
    config = stored.meta["config"]
    if "relations" in stored.meta:
        table = {int(item): of for item, of in stored.meta["relations"].items()}
        config = {**config, "relations": Relations.from_table(table, I)}
    return registry.make(stored.meta["name"], **config)


# ------------------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize("case", [*DEFAULT, *rarely(*(case for case in LEARNED if case not in DEFAULT))])
def test_loss_gradient_steps_and_scores(x64, key, monkeypatch, case):
    stored = golden(case)
    put(monkeypatch, stored)
    model, train = made(stored), interactions(stored)
    inner = model.trainer(U, I, len(stored.x), train.capacity)
    ctx = context(stored, key)

    @jax.jit
    def run(params, x):
        data = model.prepare(train)
        value, (grads, grad_x) = jax.value_and_grad(model.loss, (0, 1))(params, x, data, ctx)
        step = lambda state, _: (inner.step(state, x, data, ctx)[0], None)
        state, _ = jax.lax.scan(step, inner.init(params, x, data, key), length=stored.meta["steps"])
        return value, grads, grad_x, state.params, model.scores(params, x, data, jnp.arange(U))

    params = jax.tree.map(jnp.asarray, stored.params)
    expected = jax.eval_shape(lambda key: model.init(key, U, I, len(stored.x)), key)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    value, grads, grad_x, after, scores = run(params, jnp.asarray(stored.x))
    close(value, stored.loss)
    close(grads, stored.grad)
    close(grad_x, stored.grad_x)
    close(after, stored.after)
    close(scores, stored.scores)


@pytest.mark.parametrize("objective", ["bpr-max", *rarely("top1", "bpr", "cross-entropy", "top1-max")])
def test_gru4rec_over_two_epochs(x64, key, monkeypatch, objective):
    """The state carried and reset: event by event as in the authors' code, then as our loop carries it.

    Their state is the one of the forward pass; our loop reads the last event again with the updated parameters.
    """
    stored = golden(f"gru4rec-{objective}")
    train, params = interactions(stored), jax.tree.map(jnp.asarray, stored.params)
    model = registry.make("gru4rec", **stored.meta["config"])
    users, items, lanes = train.users, train.items, stored.meta["config"]["batch"]
    inner, data, x = model.trainer(users, items, 0, train.capacity), model.prepare(train), stored.x
    assert inner.steps == len(stored.losses)
    law, sampled = np.append(0, data.cumulative), stored.draws["sampled"]
    middles = jnp.asarray((law[sampled] + law[sampled + 1]) / 2)  # each of them draws its item
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: middles)

    @jax.jit
    def step(state, before, t):
        ctx = bilevel.Ctx(key, t, None, before)
        value, grads = jax.value_and_grad(model.loss)(state.params, x, data, ctx)
        seen = jnp.where(gru4rec.place(data, t, lanes).begins[:, None], 0, before)
        after = gru4rec.advance(before, state.params, x, data, ctx._replace(step=t + 1), lanes=lanes)
        return inner.step(state, x, data, ctx)[0], after, value, grads, seen

    state = inner.init(params, x, data, key)
    before = state.aux
    for t in range(inner.steps):
        state, before, value, grads, seen = step(state, before, jnp.asarray(t))
        close(value, stored.losses[t])
        close(seen, stored.states[t])
        if t in stored.grads:
            close(grads, stored.grads[t])
    close(state.params, stored.after)
    close(model.scores(state.params, x, data, jnp.arange(users)), stored.scores)
    close(jax.jit(bilevel.detached(inner))(x, params, data, key), stored.after_fresh)


def test_each_of_the_laws_of_ncr(x64, monkeypatch):
    """All 15 together at single vectors: a law that is missing or mixed up shows at most of them."""
    stored = golden("ncr-histories")
    put_reasoning(monkeypatch, stored.draws)
    logic = ncr.logic_of(jax.tree.map(jnp.asarray, stored.params))
    ours = [ncr.laws(logic, v[None], jnp.ones(1)) for v in jnp.asarray(stored.draws["vectors"])]
    close(jnp.stack(ours), stored.draws["laws"].sum(1))


@pytest.mark.parametrize("case", COUNTED)
def test_scores_of_those_that_count(x64, case):
    stored = golden(case)
    model, train = registry.make(stored.meta["name"], **stored.meta["config"]), interactions(stored)
    scores = jax.jit(lambda x: model.scores({}, x, model.prepare(train), jnp.arange(U)))
    close(scores(jnp.asarray(stored.x)), stored.scores)


@pytest.mark.parametrize("case", ["pcmf-plain", *rarely("pcmf-centered")])
def test_a_run_of_pcmf(x64, key, case):
    stored = golden(case)
    model, train = registry.make("pcmf", **stored.meta["config"]), interactions(stored)
    inner, x = model.trainer(U, I, F), jnp.asarray(stored.x)
    params, data = jax.tree.map(jnp.asarray, stored.params), model.prepare(train)
    fitted = jax.jit(bilevel.detached(inner))(x, params, data, key)
    close(fitted, stored.after)
    close(model.loss(fitted, x, data, inner.final_context(key)), stored.loss)
    close(model.scores(fitted, x, data, jnp.arange(U)), stored.scores)


def test_no_file_is_missing():
    """The cases are what lies in the folder, so a file that was lost would be a test that was lost."""
    names = {
        "neumf",
        "gmf",
        "multvae",
        "cml",
        "bpr",
        "lightgcn",
        "ngcf",
        "autorec",
        "pmf",
        "gru4rec",
        "mf",
        "ncr",
        "rcf",
    }
    assert {case.split("-")[0] for case in CASES} == names | {"pcmf", "itemcf", "covisitation"}
    assert len(CASES) == 38
