"""The feasible set: projections and the initial rows' way into it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attacks.feasible import feasible, make_projection

FAKES, ITEMS = 4, 9
TARGETS = jnp.array([6, 2])
OTHERS = np.setdiff1d(np.arange(ITEMS), TARGETS)
PROJECTIONS = {
    (kind, budget, clicked): jax.jit(make_projection(kind, budget=budget, click_targets=clicked))
    for kind in ("threshold", "topk")
    for budget in (0, 3, 7)
    for clicked in (False, True)
}
rows_of = hnp.arrays(
    np.float32, (FAKES, ITEMS), elements=st.floats(-2, 2, width=32) | st.sampled_from([0.05, 0.0, np.nan])
)


@pytest.mark.parametrize("setting", list(PROJECTIONS), ids=str)
@given(rows=rows_of)
def test_projected_rows_are_legal_and_a_second_projection_changes_nothing(setting, rows):
    kind, budget, clicked = setting
    project = PROJECTIONS[setting]
    once = np.asarray(project(rows, TARGETS))
    assert np.isin(once, (0, 1)).all()
    held = once[:, OTHERS].sum(axis=1)
    assert (held == budget).all() if kind == "topk" else (held <= budget).all()
    if clicked:
        assert (once[:, TARGETS] == 1).all()
    if kind == "threshold":
        np.testing.assert_array_equal(project(once, TARGETS), once)


@given(rows=rows_of)
def test_threshold_is_strict_and_keeps_the_highest(rows):
    free = np.asarray(make_projection("threshold")(jnp.asarray(rows), TARGETS))
    np.testing.assert_array_equal(free, rows > np.float32(0.05))
    capped = np.asarray(PROJECTIONS["threshold", 3, False](rows, TARGETS))
    np.testing.assert_array_equal(capped[:, TARGETS], free[:, TARGETS])
    for row, kept, passed in zip(rows[:, OTHERS], capped[:, OTHERS], free[:, OTHERS], strict=True):
        assert kept.sum() == min(3, passed.sum())
        if 0 < kept.sum() < passed.sum():
            assert row[kept > 0].min() >= row[(passed > 0) & (kept == 0)].max()


def test_topk_clicks_a_target_among_the_highest_cells_only():
    rows = jnp.array([[5.0, 4.0, 3.0, 9.0, 0.0], [5.0, 4.0, 3.0, 1.0, 2.0], [5.0, 4.0, 3.0, 9.0, 3.5]])
    project = make_projection("topk", budget=1)  # with two targets: among the three highest
    np.testing.assert_array_equal(
        project(rows, jnp.array([3, 4])), [[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [1, 0, 0, 1, 0]]
    )


@pytest.mark.parametrize("click_targets", [False, True])
@pytest.mark.parametrize("budget", [None, 0, 2, 7])
@given(rows=hnp.arrays(np.float32, (FAKES, ITEMS), elements=st.sampled_from([0.0, 1.0])))
def test_feasible_keeps_clicks_and_drops_only_the_excess(budget, click_targets, rows):
    made = np.asarray(feasible(jax.random.key(3), rows, TARGETS, budget=budget, click_targets=click_targets))
    before, after = rows[:, OTHERS], made[:, OTHERS]
    assert (after <= before).all()
    limit = ITEMS if budget is None else budget
    np.testing.assert_array_equal(after.sum(axis=1), np.minimum(before.sum(axis=1), limit))
    np.testing.assert_array_equal(
        made[:, TARGETS], np.ones((FAKES, 2)) if click_targets else rows[:, TARGETS]
    )


def test_what_feasible_keeps_is_drawn_by_the_key():
    rows = jnp.ones((1, 40))
    kept = [feasible(jax.random.key(s), rows, TARGETS, budget=5, click_targets=False) for s in (0, 0, 1)]
    assert (kept[0] == kept[1]).all()
    assert (kept[0] != kept[2]).any()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "round"}, "projection is 'round'"),
        ({"kind": "topk"}, "give a budget"),
        ({"kind": "topk", "budget": 3, "threshold": 0.1}, "has none"),
        ({"kind": "threshold", "threshold": float("nan")}, "finite"),
        ({"kind": "threshold", "threshold": "high"}, "'high'"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        make_projection(**arguments)
