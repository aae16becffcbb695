"""The benchmark of influence: its exact answers against autodiff, the library against them, and what its rows say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

EVENTS = 500


@pytest.fixture(scope="module")
def folder(benchmark, tmp_path_factory):
    """A trained model of 40 users and 30 items and its exact answers, where workers look for them."""
    where = tmp_path_factory.mktemp("influence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(benchmark.FOLDER, str(where))
        patch.setattr(benchmark.apart, "grown", lambda events: (40, 30, events))
        patch.setattr(benchmark, "EPOCHS", 2000)  # until no curvature lies below minus the damping
        benchmark.prepare({"events": EVENTS, "factors": 3}, where / f"{EVENTS}-3.npz")
        yield where


def task(asked, method):
    return {"asked": asked, "method": method, "events": EVENTS, "factors": 3, "gigabytes": 1.0}


def world_of(benchmark, task):
    return benchmark.world(task, benchmark.apart.events_of(task, "explicit")[0])


@pytest.mark.slow
def test_the_product_written_out_is_that_of_the_loss(benchmark, folder, x64):
    at = world_of(benchmark, task("user", "dense"))
    model, of = at.fitted.model, at.of
    params = {"user": jnp.asarray(of.P), "item": jnp.asarray(of.Q)}
    data = at.fitted.data._replace(rating=jnp.asarray(of.rating), sound=jnp.asarray(1.0))
    ctx = at.start.inner.final_context(at.start.key)
    none = {"fake": jnp.zeros((0, 3))}

    def loss(users_then_items):
        P, Q = users_then_items[: of.P.size], users_then_items[of.P.size :]
        tables = {"user": P.reshape(of.P.shape), "item": Q.reshape(of.Q.shape)}
        return model.loss({**tables, **none}, jnp.zeros((0, 30)), data, ctx)

    theta = jnp.concatenate([params["user"].ravel(), params["item"].ravel()])
    H = np.asarray(jax.hessian(loss)(theta))
    times = benchmark.product(of)
    np.testing.assert_allclose(np.stack([times(row) for row in np.eye(len(H))]), H, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(benchmark.formed(at), H, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        benchmark.right_side(of, "vector", 0, 0), jax.grad(loss)(theta), rtol=1e-9, atol=1e-15
    )
    score = jax.grad(lambda t: t[: of.P.size].reshape(of.P.shape)[4] @ t[of.P.size :].reshape(of.Q.shape)[7])
    np.testing.assert_allclose(benchmark.right_side(of, "user", 4, 7), score(theta), rtol=1e-12)


def test_exact_answers_solve_their_system_and_drops_are_those_of_two_losses(benchmark, folder):
    at = world_of(benchmark, task("user", "dense"))
    of, damping = at.of, benchmark.DAMPING
    b = benchmark.right_side(of, "user", at.user, at.item)
    v, residual = benchmark.minres(of, b, damping)
    assert residual < benchmark.TOLERANCE
    H = benchmark.formed(at) + damping * np.eye(b.size)
    np.testing.assert_allclose(v, np.linalg.solve(H, b), rtol=1e-5, atol=1e-7 * np.abs(v).max())
    # l_z as the difference of two losses over different ratings, by its definition.
    mine = np.flatnonzero(of.user == at.user)
    found = benchmark.drops(of, v, at.user)
    for z, drop in zip(mine[np.argsort(of.item[mine])], found, strict=True):
        kept = np.arange(len(of.user)) != z
        less = of._replace(user=of.user[kept], item=of.item[kept], rating=of.rating[kept])
        part = benchmark.slope(of) - benchmark.slope(less)
        np.testing.assert_allclose(drop, -v @ part, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("asked", "method", "most"),
    [
        pytest.param("user", "full", 2e-3, marks=pytest.mark.slow),
        ("user", "dense", 1e-6),
        ("vector", "cg", 2e-3),
        ("vector", "dense", 1e-6),
    ],
)
def test_the_library_gives_the_exact_answer(benchmark, folder, asked, method, most):
    row = benchmark.measure(task(asked, method), -1)
    assert row["rel_error"] < most
    assert row["spearman"] > 0.999
    assert row["exact_residual"] < benchmark.TOLERANCE
    assert row["peak_mb"] >= row["data_mb"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fast", "user"])
def test_a_block_is_exact_in_itself_and_another_answer_than_all_parameters(benchmark, folder, method):
    row = benchmark.measure(task("user", method), -1)
    assert row["own_rel_error"] < 1e-3
    assert row["rel_error"] > 0.05
    assert row["many_seconds"] < 10


def test_the_published_schedule_is_the_truncated_series_of_the_blocks(benchmark, folder, monkeypatch):
    """With all ratings in a batch, by eigenvalue `(1 - (1 - h)^(J + 1)) / h`; drawn with replacement it is near it."""
    monkeypatch.setitem(benchmark.TERMS, "ml-100k", 30)
    monkeypatch.setattr(benchmark, "BATCH", 400_000)  # more than there are: as many as there are, drawn anew
    at = world_of(benchmark, task("vector", "lissa-published"))
    solver = benchmark.published(task("vector", "lissa-published"), at.fitted)
    g = jax.tree.map(jnp.ones_like, at.fitted.params)
    found = solver(lambda v: v, g).value
    H = benchmark.formed(at)
    users = at.of.P.size
    flat = ravel_pytree(found["user"])[0], ravel_pytree(found["item"])[0]
    for mine, block in zip(flat, (H[:users, :users], H[users:, users:]), strict=True):
        h, vectors = np.linalg.eigh(block)
        exact = vectors @ ((1 - (1 - h) ** 31) / h * (vectors.T @ np.ones(len(h))))
        full = 31 * np.ones(len(h))
        assert np.linalg.norm(mine - exact) < 0.2 * np.linalg.norm(full - exact)


def test_a_hessian_beyond_the_limit_is_said_to_be_too_large(benchmark, folder):
    row = benchmark.measure({**task("vector", "dense"), "gigabytes": 1e-6}, -1)
    assert row["too_large"]
    assert row["gigabytes"] == pytest.approx(8 * (70 * 3) ** 2 / 1e9)
    assert "seconds" not in row


def test_every_task_is_measured_once_and_the_slow_one_at_the_small_size(benchmark):
    tasks = benchmark.tasks(benchmark.Options())
    assert len({json.dumps(each) for each in tasks}) == len(tasks)
    assert {each["size"] for each in tasks if each["method"] == "lissa-block"} == {"ml-100k"}
    assert {each["factors"] for each in benchmark.tasks(benchmark.Options(quick=True))} == {4}


def row(method, seconds, peak, **more):
    spent = {"seconds": seconds, "peak_mb": peak, "data_mb": 100.0, "rel_error": 0.01, "spearman": 0.98}
    where = {"asked": "vector", "method": method, "size": "ml-1m", "factors": 4}
    return {"task": where, "clock": "cpu", "source": "real", **spent, **more}


def test_what_the_rows_say(benchmark, tmp_path):
    report = benchmark.influence_report
    large = {"task": row("dense", 0, 0)["task"], "too_large": True, "gigabytes": 12.2, "parameters": 38_984}
    rows = [row("cg", 0.5, 130.0), row("lissa-published", 6.0, 150.0, spearman=0.5)]
    said = "\n".join(report.said([*rows, large]))
    assert "cg: 12.0x faster than LiSSA as published, 50 MB above the data there, 30 here" in said
    assert "(there 0.5000)" in said
    assert "dense Hessian of 38,984 parameters is too large, 12.2 GB" in said
    failed = {"task": row("identity", 0, 0)["task"], "error": "killed"}
    undamped = row("dense", 60.0, 1100.0, undamped_rel_error=7.0, undamped_spearman=0.1)
    assert "120.0x faster than dense Hessian" in "\n".join(report.said([*rows, undamped, failed]))
    assert report.line(failed).endswith("killed")
    assert "too large, 12 GB" in report.line(large)
    report.figure([*rows, undamped], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    report.write(tmp_path / "rows.json", rows, {"cores": 2})
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows


@pytest.mark.slow
def test_a_measurement_works_in_a_process_of_its_own(benchmark):
    task = {"asked": "user", "method": "dense", "events": 2000, "factors": 2, "gigabytes": 1.0}
    found = benchmark.apart.worker("influence.py", task, 0, 240)
    assert "error" not in found, found
    assert found["source"] == "drawn"
    assert found["rel_error"] < 1e-6


def test_the_page_has_the_rank_correlations_and_errors_of_the_rows(benchmark):
    """Of the variants in which only a user's own vectors move: their range, and each solver that calls itself wrong."""
    rows = json.loads((benchmark.HERE / "results" / "influence.json").read_text())["rows"]
    own = [row for row in rows if row["task"]["method"] in ("fast", "user") and "seconds" in row]
    text = " ".join((benchmark.HERE / "README.md").read_text().split())
    ranks = [row["spearman"] for row in own]
    assert f"{min(ranks):.2f} to {max(ranks):.2f}; " in text
    assert (
        f"with 64 factors never above {max(r['spearman'] for r in own if r['task']['factors'] == 64):.2f}"
        in text
    )
    wrong = [row for row in own if benchmark.influence_report.verdict(row) != "OK"]
    assert {(r["task"]["method"], r["task"]["factors"], r["task"]["size"]) for r in wrong} == {
        ("fast", 64, "ml-100k"),
        ("fast", 64, "ml-1m"),
    }
    assert all(f"{row['history']}" in text for row in wrong)
