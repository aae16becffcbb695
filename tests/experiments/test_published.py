"""The published numbers load, and say what the papers' texts say of them."""

import numpy as np
import pytest

from experiments.published import published


def test_the_toy_numbers_of_revadv():
    toy = published("revadv", "in_text", "toy")
    assert (toy["hr10_target_exact_tau100"], toy["hr10_target_tau5"]) == (0.568, 0.368)
    np.testing.assert_allclose(toy["hr10_target_tau5"] / toy["hr10_target_exact_tau100"], 0.65, atol=0.005)


def test_rapu_table_2_is_complete_for_movielens_wrmf():
    column = published("rapu", "table2", "values", "MovieLens", "WRMF")
    assert column["None"]["1%"] == column["None"]["5%"] == 0.0541
    assert all(set(row) == {"0.5%", "1%", "3%", "5%"} for row in column.values())


def test_a_wrong_path_says_what_is_there():
    with pytest.raises(KeyError, match=r"there is: .*table2"):
        published("rapu", "table9")
