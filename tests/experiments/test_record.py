"""Records survive what happens to files, and are found by what they are."""

import json

import pytest

from experiments.record import Records

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
