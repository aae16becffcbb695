"""Other libraries' recommenders: implicit against its own recommend(), RecBole's files and process, a real run."""

import builtins
import json
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import external, recbole
from models.data import Interactions, Profiles, inject
from models.data.split import generator
from models.evaluation import evaluate
from models.train import top_k

U, I, F = 12, 9, 2
LIBRARY = "the implicit library is not installed: pip install -e '.[external]' in the checkout"


@pytest.fixture
def clicks(rng):
    matrix = rng.random((U, I)) < 0.35
    matrix[:, I - 1] = False  # an item nobody clicked
    matrix[3] = False  # a user without clicks
    return matrix


@pytest.fixture
def poisoned(clicks):
    train = Interactions.from_dense(clicks.astype(float))
    return inject(train, Profiles.from_rows(jnp.eye(F, I), targets=[0]))  # capacity left over: padding


def dense(train):
    return np.minimum(np.asarray(train.dense()), 1)


# ------------------------------------------------------------------------------------------------ implicit


def als(**changes):
    return external.implicit_als(**{"factors": 4, "alpha": 20.0, "iterations": 3} | changes)


def bpr(**changes):
    return external.implicit_bpr(**{"factors": 4, "learning_rate": 0.05, "iterations": 5} | changes)


def by_hand(model, train, seed):
    """The library's own model of the same settings, and its scores by `recommend`, all items asked for."""
    pytest.importorskip("implicit", reason=LIBRARY)
    import implicit.als
    import implicit.bpr
    import implicit.nearest_neighbours as near
    import scipy.sparse

    config = dict(model.config)
    config["num_threads"] = config.pop("threads")
    matrix = scipy.sparse.csr_matrix(dense(train))
    if model.name == "implicit_knn":
        kind = {"cosine": near.CosineRecommender, "tfidf": near.TFIDFRecommender}
        kind |= {"bm25": near.BM25Recommender, "overlap": near.ItemItemRecommender}
        made = kind[config["similarity"]](K=config["neighbors"], num_threads=1)
        matrix = matrix.astype(np.float64)
    else:
        name = {"implicit_als": "AlternatingLeastSquares", "implicit_bpr": "BayesianPersonalizedRanking"}[
            model.name
        ]
        made = getattr(implicit.als if model.name == "implicit_als" else implicit.bpr, name)(
            **config, use_gpu=False, random_state=seed
        )
    made.fit(matrix, show_progress=False)
    scores = np.zeros(matrix.shape)
    for user in range(matrix.shape[0]):
        ids, value = made.recommend(user, matrix[user], N=I, filter_already_liked_items=False)
        scores[user, ids] = value
    return made, matrix, scores


@pytest.mark.filterwarnings("ignore:OpenBLAS", "ignore:Method expects")
@pytest.mark.parametrize(
    "make",
    [als, bpr]
    + [
        lambda kind=kind: external.implicit_knn(similarity=kind, neighbors=4)
        for kind in ("cosine", "tfidf", "bm25", "overlap")
    ],
    ids=["als", "bpr", "cosine", "tfidf", "bm25", "overlap"],
)
def test_scores_are_those_the_library_recommends_by(poisoned, make):
    pytest.importorskip("implicit", reason=LIBRARY)
    model, key = make(), jax.random.key(7)
    trained = external.fit(model, poisoned, key)
    _, _, expected = by_hand(model, poisoned, int(generator(key).integers(2**31)))
    users = np.array([7, 0, U + 1, 3, 7, *range(U)])
    np.testing.assert_allclose(trained.scores(jnp.asarray(users)), expected[users], rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0.05
    assert trained.cost.seconds > 0
    assert int(trained.cost.epochs) == {"implicit_als": 3, "implicit_bpr": 5}.get(model.name, 0)


@pytest.mark.filterwarnings("ignore:OpenBLAS")
def test_evaluate_and_top_k_read_it_like_a_model_of_ours(poisoned, clicks):
    pytest.importorskip("implicit", reason=LIBRARY)
    key = jax.random.key(1)
    trained = external.fit(als(), poisoned, key)
    made, matrix, scores = by_hand(als(), poisoned, int(generator(key).integers(2**31)))
    lists = np.asarray(top_k(trained, jnp.arange(U), 3, exclude=poisoned))
    for user in np.flatnonzero(clicks.sum(1)):  # the others' scores are all 0: any order is right
        assert lists[user].tolist() == made.recommend(user, matrix[user], N=3)[0].tolist()
    train = Interactions.from_dense(clicks.astype(float))
    masked = np.where(clicks, -np.inf, scores[:U])
    hits = [0 in np.argsort(-row, kind="stable")[:3] for row in masked]
    found = evaluate(trained.scores, train, targets=[0], k=3)
    assert float(found.hr_any) == pytest.approx(np.mean(hits))
    assert 0 < np.mean(hits) < 1
    traced = jax.jit(lambda trained: evaluate(trained.scores, train, targets=[0], k=3).hr_any)
    assert float(traced(trained)) == float(found.hr_any)


@pytest.mark.parametrize("make", [als, bpr])
def test_the_key_is_the_seed(poisoned, make):
    pytest.importorskip("implicit", reason=LIBRARY)
    first, again, other = (
        np.asarray(external.fit(make(), poisoned, jax.random.key(seed)).scores(jnp.arange(U)))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("make", [als, external.implicit_knn])
def test_repeats_in_a_sequence_count_once(make):
    pytest.importorskip("implicit", reason=LIBRARY)
    once = Interactions.from_arrays([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    user, item = [0, 0, 0, 1, 2, 2, 2], [1, 0, 1, 1, 2, 0, 2]
    often = Interactions.from_arrays(user, item, time=np.arange(7), track="sequence")
    scores = [external.fit(make(), train, 0).scores(jnp.arange(3)) for train in (once, often)]
    np.testing.assert_array_equal(*scores)


def test_what_cannot_be_trained_is_refused_before_it_is_tried(poisoned):
    def never(train, seed, validation):
        raise AssertionError("trained")

    model = external.External("peer", {}, never, lambda embedding, users: embedding)
    ratings = Interactions.from_arrays([0, 1], [0, 1], [3.0, 5.0])
    nothing = Interactions.from_arrays([], [], users=2, items=2)
    lost = jax.tree.map(lambda leaf: leaf * jnp.nan if leaf.dtype == jnp.float32 else leaf, poisoned)
    for data, told in ((ratings, "clicks"), (nothing, "no event"), (lost, "NaN")):
        with pytest.raises(ValueError, match=told):
            external.fit(model, data, 0)
    with pytest.raises(ValueError, match="outside JAX"):
        jax.jit(lambda data: external.fit(model, data, 0).x)(poisoned)
    with pytest.raises(ValueError, match="outside JAX"):
        jax.vmap(lambda key: external.fit(model, poisoned, key).x)(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="outside JAX"):
        external.fit(model, jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), poisoned), 0)


def test_wrong_settings_name_what_was_expected(poisoned):
    pytest.importorskip("implicit", reason=LIBRARY)
    with pytest.raises(ValueError, match="factors=0"):
        als(factors=0)
    with pytest.raises(ValueError, match="learning_rate=0"):
        bpr(learning_rate=0)
    with pytest.raises(ValueError, match="cosine, tfidf, bm25, overlap"):
        external.implicit_knn(similarity="pearson")
    with pytest.raises(ValueError, match="implicit_als has no early stopping"):
        external.fit(als(), poisoned, 0, validation=poisoned)


@pytest.mark.parametrize("factory", [external.implicit_als, external.implicit_bpr, external.implicit_knn])
def test_without_the_library_the_factory_says_what_to_install(monkeypatch, factory):
    for module in ("implicit", "implicit.als", "implicit.bpr", "implicit.nearest_neighbours"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[external\]'.*implicit>=0.7"):
        factory()


# ------------------------------------------------------------------------------------------------ RecBole, by files

# Plays RecBole: reads the job, answers in an order of its own with scores that name the user and the item.
FAKE = """
import json, pathlib, sys
import numpy as np
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
read = lambda file: [line.split("\\t") for line in file.read_text().splitlines()]
files = {file.name: read(file) for file in sorted((folder / "data").iterdir())}
names = lambda file: [row[0] for row in files[file][1:]]
rng = np.random.default_rng(job["seed"])
users, items = rng.permutation(names("data.user")).tolist(), rng.permutation(names("data.item")).tolist()
scores = np.array([[100 * int(u[1:]) + int(i[1:]) for i in items] for u in users], np.float32)
np.save(folder / "scores.npy", scores)
report = {"users": users, "items": items, "seconds": 3.0, "epoch_seconds": [1.0, 9.0, 2.0], "peak_rss_mb": 5.0}
report |= {"job": job, "files": files, "cwd": str(pathlib.Path.cwd() == folder)}
{change}
(folder / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(change)`: a program that behaves like `recbole_run.py`, `change` being what it does differently."""

    def write(change=""):
        path = tmp_path / "fake_run.py"
        path.write_text(FAKE.replace("{change}", textwrap.dedent(change)))
        monkeypatch.setattr(recbole, "RUNNER", path)
        return {"python": sys.executable, "runner": path}

    return write


def test_what_goes_to_recbole_and_comes_back(poisoned, fake):
    held = Interactions.from_arrays([0, 4], [2, 8], users=U, items=I)
    run = {"model": "LightGCN", "epochs": 7, "settings": {"n_layers": 3}, "threads": 2}
    table, report = recbole.run_recbole(poisoned, 5, **run, validation=held, **fake())
    expected = 100 * np.arange(U + F)[:, None] + np.arange(I)  # every score is back in its place
    np.testing.assert_array_equal(table, expected)
    assert table.dtype == np.float32
    job, files = report["job"], report["files"]
    more = {"seed": 5, "sequence": False, "parts": ["train", "valid"], "piece_seconds": None}
    assert job == run | more
    assert sorted(files) == ["data.item", "data.train.inter", "data.user", "data.valid.inter"]
    assert files["data.train.inter"][0] == ["user_id:token", "item_id:token"]
    sent = {tuple(row) for row in files["data.train.inter"][1:]}
    assert sent == {(f"u{u}", f"i{i}") for u, i in zip(*np.nonzero(dense(poisoned)))}
    assert len(sent) == len(files["data.train.inter"]) - 1 == int(poisoned.count)
    assert files["data.valid.inter"][1:] == [["u0", "i2"], ["u4", "i8"]]
    assert report["cwd"] == "True"  # RecBole's logs stay in the folder, which is gone


def test_fit_reads_the_table_and_the_cost(poisoned, clicks, fake):
    model = recbole.recbole("BPR", epochs=3, python=fake()["python"])
    trained = external.fit(model, poisoned, 0)
    users = jnp.array([4, 0])
    np.testing.assert_array_equal(trained.scores(users), 100 * np.array([[4], [0]]) + np.arange(I))
    assert [float(value) for value in trained.cost] == [3.0, 3, 2.0, 5.0]
    assert top_k(trained, users, 2).tolist() == [[I - 1, I - 2]] * 2
    train = Interactions.from_dense(clicks.astype(float))
    assert float(evaluate(trained.scores, train, targets=[I - 1], k=1).hr_any) == 1.0
    assert repr(model) == "recbole-BPR(model='BPR', epochs=3, settings={}, threads=1)"


def test_a_sequence_model_gets_the_clicks_in_order_with_repeats(fake):
    user, item, time = [1, 0, 1, 0, 1], [2, 0, 0, 1, 2], [5, 9, 1, 3, 7]
    train = Interactions.from_arrays(user, item, time=time, users=3, track="sequence").pad(9)
    _, report = recbole.run_recbole(train, 0, model="GRU4Rec", **fake())
    assert report["files"]["data.inter"] == [
        ["user_id:token", "item_id:token", "timestamp:float"],
        *(["u0", "i1", "0"], ["u0", "i0", "1"]),
        *(["u1", "i0", "0"], ["u1", "i2", "1"], ["u1", "i2", "2"]),
    ]
    assert report["files"]["data.user"] == [["user_id:token"], ["u0"], ["u1"], ["u2"]]
    _, report = recbole.run_recbole(train, 0, model="BPR", **fake())  # an unordered model: each pair once
    assert report["files"]["data.train.inter"][1:] == [["u0", "i0"], ["u0", "i1"], ["u1", "i0"], ["u1", "i2"]]


def test_data_recbole_cannot_use_is_refused(poisoned, fake):
    with pytest.raises(ValueError, match="GRU4Rec learns from the order of clicks; got track 'implicit'"):
        recbole.run_recbole(poisoned, 0, model="GRU4Rec", **fake())
    for held in (
        Interactions.from_arrays([0], [0], users=U + F + 1, items=I),
        Interactions.from_arrays([0], [0], users=U, items=I + 1),
        Interactions.from_arrays([], [], users=U, items=I),
    ):
        with pytest.raises(ValueError, match=f"valid is .*; expected events of the {I} items"):
            recbole.run_recbole(poisoned, 0, model="BPR", validation=held, **fake())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("np.save(folder / 'scores.npy', scores[1:])", r"shape \(13, 9\).*expected float32 \(14, 9\)"),
        ("np.save(folder / 'scores.npy', scores.astype(float))", "type float64"),
        ("np.save(folder / 'scores.npy', np.array([None]))", "without usable scores"),
        ("report['users'][0] = report['users'][1]", "expected each of u0..u13 once"),
        ("report['users'], report['items'] = items, users", "expected each of u0..u13 once"),
        ("del report['epoch_seconds']", "epoch_seconds"),
        ("report = 'done'", "without usable scores"),
        ("print('last words', file=sys.stderr); sys.exit(0)", "(?s)without usable scores.*last words"),
    ],
)
def test_an_answer_that_is_none_is_an_error(poisoned, fake, change, told):
    with pytest.raises(RuntimeError, match=told):
        recbole.run_recbole(poisoned, 0, model="BPR", **fake(change))


def test_a_process_that_fails_is_quoted_by_its_last_lines(poisoned, fake):
    change = "print('\\n'.join(f'line {n}' for n in range(50)), file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"exit 3.*\nline 38\n[^!]*line 49$") as caught:
        recbole.run_recbole(poisoned, 0, model="BPR", **fake(change))
    assert "line 37\n" not in str(caught.value)


@pytest.mark.slow
def test_a_process_that_takes_too_long_is_ended_and_quoted(poisoned, fake):
    change = "print('epoch 1', file=sys.stderr, flush=True); import time; time.sleep(60)"
    with pytest.raises(TimeoutError, match=r"(?s)within 3 s; raise timeout=.*epoch 1"):
        recbole.run_recbole(poisoned, 0, model="BPR", timeout=3, **fake(change))


def test_the_other_environment_does_not_see_this_one(poisoned, fake, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    change = "import os; report['env'] = [os.environ.get(n) for n in ('PYTHONPATH', 'OMP_NUM_THREADS')]"
    _, report = recbole.run_recbole(poisoned, 0, model="BPR", threads=2, **fake(change))
    assert report["env"] == [None, "2"]


def test_without_the_environment_the_error_says_how_to_make_it(poisoned, monkeypatch, tmp_path):
    monkeypatch.delenv("BILEVEL_RECBOLE", raising=False)
    monkeypatch.setattr(recbole, "ROOT", tmp_path)
    for call in (
        lambda: recbole.recbole("BPR"),
        lambda: recbole.recbole("BPR", python=tmp_path / "bin" / "python"),
        lambda: recbole.run_recbole(poisoned, 0, model="BPR"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert recbole.MAKE_RECBOLE in str(caught.value)
    monkeypatch.setenv("BILEVEL_RECBOLE", str(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"other \(BILEVEL_RECBOLE\)"):
        recbole.recbole("BPR")
    monkeypatch.setenv("BILEVEL_RECBOLE", sys.executable)
    assert str(recbole.recbole_python()) == sys.executable
    with pytest.raises(FileNotFoundError, match="run from a checkout"):
        recbole.run_recbole(poisoned, 0, model="BPR", runner=tmp_path / "gone.py")


def test_the_program_says_how_to_make_its_environment_as_the_error_does():
    text = recbole.RUNNER.read_text()
    docstring = text.split('"""')[1].replace("\\\\\n", "\\\n")
    for line in recbole.MAKE_RECBOLE.splitlines():
        assert line.strip() in docstring
    compile(text, str(recbole.RUNNER), "exec")


def test_wrong_arguments_of_recbole():
    python = sys.executable
    with pytest.raises(ValueError, match="model='SASRec'; expected one of BPR, NeuMF"):
        recbole.recbole("SASRec", python=python)
    with pytest.raises(ValueError, match="ItemKNN: epochs=3; it counts and has no epochs"):
        recbole.recbole("ItemKNN", epochs=3, python=python)
    with pytest.raises(ValueError, match="timeout=0"):
        recbole.recbole("BPR", timeout=0, python=python)
    with pytest.raises(ValueError, match="settings must be plain JSON"):
        recbole.recbole("BPR", settings={"learner": builtins.print}, python=python)


# ------------------------------------------------------------------------------------------------ RecBole itself


@pytest.fixture(scope="module")
def recbole_python():
    try:
        return recbole.recbole_python()
    except FileNotFoundError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture
def drawn():
    """60 users x 40 items with a test set; an item and a user without events."""
    rng = np.random.default_rng(0)
    draw = rng.random((60, 40))
    draw[:, 39] = draw[59] = 1
    train = draw < 0.15
    test = (draw >= 0.15) & (draw < 0.2)
    return train, *(Interactions.from_dense(part.astype(float)) for part in (train, test))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["BPR", "NeuMF", "LightGCN", "NGCF", "MultiVAE", "ItemKNN"])
def test_recbole_judges_its_model_as_we_judge_its_scores(drawn, recbole_python, model):
    _, train, test = drawn
    run = {
        "model": model,
        "epochs": None if model == "ItemKNN" else 2,
        "settings": {"topk": [5]},
        "python": recbole_python,
    }
    table, report = recbole.run_recbole(train, 3, **run, test=test)
    scores = jnp.asarray(table)
    ours = evaluate(lambda users: scores[users], train, test=test, k=5)
    theirs = report["test"]  # rounded to four places
    for name, metric in (
        ("recall", "recall"),
        ("ndcg", "ndcg"),
        ("precision", "precision"),
        ("hit", "hr_test"),
    ):
        assert float(getattr(ours, metric)) == pytest.approx(theirs[f"{name}@5"], abs=1e-4)
    assert theirs["recall@5"] > 0
    assert len(report["epoch_seconds"]) == (0 if model == "ItemKNN" else 2)
    assert report["peak_rss_mb"] > report["training_rss_mb"] > 0
    again, _ = recbole.run_recbole(train, 3, **run)
    np.testing.assert_array_equal(again, table)


@pytest.mark.slow
def test_recbole_judges_its_sequence_model_as_we_judge_its_scores(drawn, recbole_python, rng):
    matrix, _, test = drawn
    user, item = np.nonzero(matrix)
    train = Interactions.from_arrays(
        user, item, time=rng.permutation(user.size), users=60, items=40, track="sequence"
    )
    run = {"model": "GRU4Rec", "epochs": 2, "settings": {"topk": [5], "MAX_ITEM_LIST_LENGTH": 4}}
    table, report = recbole.run_recbole(train, 3, **run, python=recbole_python, test=test)
    events = [(u, i) for u, i in zip(*np.nonzero(np.asarray(test.dense()))) if matrix[u].any()]
    hits = [(table[u] > table[u, i]).sum() < 5 for u, i in events]  # one list an event, nothing left out
    assert np.mean(hits) == pytest.approx(report["test"]["hit@5"], abs=1e-4)
    assert np.ptp(table[:59], axis=1).min() > 0
    np.testing.assert_array_equal(table[59], 0)  # a user without history


@pytest.mark.slow
def test_recbole_stops_early_and_refuses_unknown_settings(drawn, recbole_python):
    _, train, test = drawn
    settings = {"stopping_step": 2, "valid_metric": "NDCG@10", "train_batch_size": 64}
    run = {"model": "LightGCN", "epochs": 30, "python": recbole_python}
    _, report = recbole.run_recbole(train, 3, settings=settings, validation=test, test=test, **run)
    assert 3 <= len(report["epoch_seconds"]) < 30
    assert report["best_validation"] == pytest.approx(
        report["test"]["ndcg@10"], abs=1e-4
    )  # the best epoch is kept
    for settings, told in (
        ({"embeding_size": 8}, "did you mean embedding_size"),
        ({"seed": 1}, "seed: set by"),
    ):
        with pytest.raises(RuntimeError, match=told):
            recbole.run_recbole(train, 3, settings=settings, **run)
    assert json.dumps(report)
