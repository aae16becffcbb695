"""Records survive what happens to files, and are found by what they are."""

import json
import subprocess

import pytest

from experiments.record import Records, commit

SPEC = {"study": "demo", "seed": 1, "how": {"tau": 5}}


def test_put_get_select(tmp_path):
    records = Records(tmp_path)
    assert records.get(SPEC) is None
    for seed in (1, 2):
        records.put({**SPEC, "seed": seed}, {"hr": seed / 10})
    assert records.get(dict(reversed(SPEC.items()))).result == {"hr": 0.1}
    assert [r.result["hr"] for r in records.select(seed=2)] == [0.2]
    assert len(list(records)) == 2
    assert {"jax", "optax"} <= set(records.get(SPEC).about["versions"])
    assert records.get(SPEC).about["commit"] == commit()


def test_records_come_seed_after_seed(tmp_path):
    """So that a page prints two seeds' values in the same order in every row."""
    records = Records(tmp_path)
    for seed in (5, 3, 0, 4, 1, 2):
        for how in ("a", "b"):
            records.put({"study": "demo", "seed": seed, "how": how}, {})
    assert [record.spec["seed"] for record in records] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_record_without_a_commit_is_read(tmp_path):
    """Those from before it was kept."""
    records = Records(tmp_path)
    records.put(SPEC, {"hr": 0.1})
    body = json.loads(records.path(SPEC).read_text())
    del body["about"]["commit"]
    records.path(SPEC).write_text(json.dumps(body))
    assert "commit" not in records.get(SPEC).about


def test_the_commit_is_that_of_the_checkout_and_says_where_its_code_differs(tmp_path):
    def git(*said):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *who, "-C", tmp_path, *said], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    ask = commit.__wrapped__  # not what this process has been told before
    assert ask(tmp_path) is None
    git("init", "-q")
    assert ask(tmp_path) is None  # nothing in it yet
    (tmp_path / "code.py").write_text("one = 1\n")
    (tmp_path / "record.json").write_text("{}")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "record.json").write_text('{"hr": 0.1}')
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "notes.py").write_text("not tracked")
    assert ask(tmp_path) == head
    assert ask(tmp_path / "inside") is None  # installed into somebody else's checkout
    (tmp_path / "code.py").write_text("one = 2\n")
    assert ask(tmp_path) == f"{head}-dirty"


def test_a_cell_is_its_whole_spec(tmp_path):
    records = Records(tmp_path)
    paths = {
        records.path({**SPEC, **change})
        for change in ({}, {"seed": 2}, {"how": {"tau": 6}}, {"study": "other"})
    }
    assert len(paths) == 4


@pytest.mark.parametrize("text", ["{", "", '{"version": 1}', "\x00"])
def test_damaged_records_are_named(tmp_path, text):
    records = Records(tmp_path)
    records.put(SPEC, {"hr": 0.1})
    records.path(SPEC).write_text(text)
    with pytest.raises(ValueError, match=r"demo-.*\.json: not a record"):
        records.get(SPEC)


def test_a_newer_version_is_refused(tmp_path):
    records = Records(tmp_path)
    records.put(SPEC, {"hr": 0.1})
    body = json.loads(records.path(SPEC).read_text()) | {"version": 99}
    records.path(SPEC).write_text(json.dumps(body))
    with pytest.raises(ValueError, match="version 99"):
        records.get(SPEC)


def test_results_must_be_plain(tmp_path):
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        Records(tmp_path).put(SPEC, {"hr": object()})
    assert not list(tmp_path.glob("*.json"))
