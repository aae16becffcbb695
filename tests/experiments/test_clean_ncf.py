"""The study of RAPU's NCF: it reads a training as `fit_early` does; the table says what is within 10%."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.papers import ncf, ncf_curves
from experiments.record import Record
from models.data import PUBLISHED, Interactions, random_events
from models.evaluation import evaluate
from models.stopping import fit_early
from models.train import Fitted

TARGETS = [1, 4]


@pytest.fixture
def toy(monkeypatch, rng):
    """Sixty users and items, 11 epochs, lists of every length the study asks for."""
    monkeypatch.setattr(ncf, "EPOCHS", 11)
    monkeypatch.setattr(ncf, "PAST", 5)
    monkeypatch.setattr(ncf, "EVERY", range(1, 12))
    monkeypatch.setattr(ncf, "TENTH", range(1, 13, 10))
    monkeypatch.setitem(ncf.OURS, "batch", 256)
    monkeypatch.setitem(PUBLISHED, ncf_curves.TARGETS, TARGETS)
    parts = random_events(Interactions.from_dense((rng.random((60, 60)) < 0.2).astype(float)), 0)
    monkeypatch.setattr(ncf, "split_of", lambda data, seed: parts)
    ncf.model_of.cache_clear()
    yield parts
    ncf.model_of.cache_clear()


@pytest.mark.slow
def test_a_reading_is_that_of_early_stopping(toy):
    found = ncf.run({"study": "clean-ncf", "training": "ours", "seed": 3})["readings"]
    key = jax.random.fold_in(jax.random.key(3), 1)
    model = ncf.registry.make("gmf", **{**ncf.OURS, "epochs": ncf.EPOCHS})
    early = fit_early(model, toy.train, key, toy.validation, metric="ndcg", k=10, every=1, patience=10)
    assert found["ndcg@10"]["epoch"] == early.best_epoch
    scores = Partial(Fitted.scores, early.fitted)
    judged: Any = evaluate(scores, toy.train, test=toy.test, targets=np.array(TARGETS), k=50)
    assert found["ndcg@10"]["train masked"] == pytest.approx(float(judged.hr_any), abs=1e-6)
    assert found["ndcg@10"]["test"] == pytest.approx(float(judged.recall), abs=1e-6)


def test_each_user_is_split_and_nothing_is_lost(rng):
    whole = Interactions.from_dense((rng.random((7, 64)) < 0.6).astype(float))
    parts: Any = ncf_curves.each_user(whole, 5)
    assert np.sum([part.dense() for part in parts], axis=0).tolist() == whole.dense().tolist()
    tenth = np.asarray(whole.degrees()) // 10
    assert [part.degrees().tolist() for part in parts[1:]] == [tenth.tolist()] * 2


def test_the_released_split_is_numpys_shuffle_of_the_rows_of_the_file(monkeypatch, rng):
    cells = rng.permutation(7 * 11)[:50]  # rows in the order of a file, not sorted
    user, item = cells // 11, cells % 11
    rows = Interactions.from_arrays(user, item, time=np.arange(50), users=7, items=11, track="sequence")
    monkeypatch.setattr(ncf_curves, "dataset", lambda name, **_: SimpleNamespace(interactions=rows))
    table = np.stack([user, item, np.ones_like(user)], axis=1)  # as theirs: user, item, 1
    np.random.RandomState(3).shuffle(table)
    parts: Any = ncf_curves.released(3)
    for part, expected in zip(parts, (table[:40], table[40:45], table[45:]), strict=True):
        dense = np.zeros((7, 11))
        dense[expected[:, 0], expected[:, 1]] = 1
        assert part.dense().tolist() == dense.tolist()


def test_what_is_masked_too(toy):
    nothing, both = ncf_curves.others(toy)
    assert not nothing.real().any()
    assert both.dense().tolist() == (toy.train.dense() + toy.validation.dense()).tolist()


def reading(value):
    return {"epoch": 1, "test": 0.5} | dict.fromkeys(ncf.LISTS, value)


def test_the_table_names_what_is_within_ten_percent(tmp_path):
    paper = ncf.paper()
    assert paper == 0.0814
    spec = lambda name, seed: {"study": "clean-ncf", "training": name, "seed": seed}
    curve = [paper] * len(ncf.TENTH)
    records = [
        Record(
            spec("library", seed),
            {
                "readings": {"last": reading(0.95 * paper), "mrr@10": reading(0.5 * paper)},
                "level": paper,
                "curve": curve,
            },
            {},
        )
        for seed in range(2)
    ]
    records.append(Record(spec("recbole", 0), {"readings": {"last": reading(1.2 * paper)}}, {}))
    made = ncf.tabulate(records, tmp_path)
    library = dict(zip(made.header, made.rows[0], strict=True))
    assert library["seeds"] == "2"
    assert library["last epoch"].startswith("**")
    assert library["last epoch"].endswith("(0.95)**")
    assert library["best MRR@10"].endswith("(0.50)")
    assert library["best NDCG@10"] == "-"
    assert made.rows[1][4] == "0.0977 (1.20)"
    assert made.pictures == [tmp_path / "clean-ncf.png"]
    assert made.pictures[0].exists()
