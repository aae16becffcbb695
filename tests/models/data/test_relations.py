"""Attributes of items: numbered as told, read from a file, mapped to the data set's own ids."""

import gzip

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data import DataError, load
from models.data.relations import Relations, clusters
from models.data.relations import load as load_relations

TABLE = {
    2: {"genre": ["war", "drama"], "actor": ["Ann"]},
    0: {"actor": ["Bob", "Ann", "Bob"], "genre": ["drama"]},
}


def held(relations):
    """The (type, value) pairs of each item."""
    rows = zip(*(np.asarray(a) for a in (relations.type, relations.value, relations.mask)), strict=True)
    return [{(int(k), int(v)) for k, v, real in zip(*row, strict=True) if real} for row in rows]


def test_values_are_numbered_by_type_as_they_first_appear():
    made = Relations.from_table(TABLE, 4)
    assert (made.names, made.sizes, made.offsets) == (("actor", "genre"), (2, 2), (0, 2, 4))
    assert (made.items, made.types, made.values, made.covered) == (4, 2, 4, 2)
    assert held(made) == [{(1, 0), (1, 1), (2, 2)}, set(), {(1, 1), (2, 2), (2, 3)}, set()]
    assert made.value.tolist()[0] == [0, 1, 2]
    assert repr(made) == "Relations(4 items; actor: 2 values, genre: 2 values)"
    named = Relations.from_table(TABLE, 4, names=["genre", "director", "actor"])
    assert named.sizes == (2, 0, 2)
    assert held(named)[0] == {(1, 0), (3, 2), (3, 3)}


attributes = st.dictionaries(
    st.integers(0, 6),
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), max_size=4)),
    max_size=7,
)


@given(attributes)
def test_what_two_items_share_is_what_the_table_says(table):
    made = Relations.from_table(table, 7, names="abc")
    of = held(made)
    for i in range(7):
        for j in range(7):
            for k, name in enumerate("abc", 1):
                both = [set(table.get(item, {}).get(name, [])) for item in (i, j)]
                assert len({v for t, v in of[i] & of[j] if t == k}) == len(both[0] & both[1])
    ascending = [
        row[real].tolist() for row, real in zip(np.asarray(made.value), np.asarray(made.mask), strict=True)
    ]
    assert all(row == sorted(set(row)) for row in ascending)
    assert not np.any(np.asarray(made.type)[~np.asarray(made.mask)])
    bounds = np.array(made.offsets)
    assert all(bounds[k - 1] <= v < bounds[k] for item in of for k, v in item)


def test_relations_are_a_pytree_with_static_sizes():
    made = Relations.from_table(TABLE, 3)
    again = jax.jit(lambda r: r)(made)
    assert again.sizes == made.sizes
    assert held(again) == held(made)
    assert jax.vmap(lambda r, _: r.value, (None, 0))(made, np.arange(2)).shape == (2, *made.value.shape)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({3: {"a": [1]}}, {}, r"item 3; expected a whole number in 0\.\.2"),
        ({"x": {"a": [1]}}, {}, "item 'x'"),
        ({0: {"b": [1]}}, {"names": ["a"]}, "type 'b'; expected types among a"),
        ({}, {}, "no type"),
        ({0: {"a": "war"}}, {}, "a of item 0 is the text 'war'; expected a list"),
    ],
)
def test_bad_tables_are_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        Relations.from_table(table, 3, **options)
    with pytest.raises(ValueError, match="items=0"):
        Relations.from_table({}, 0)


def test_clusters():
    made = clusters(np.array([7, -1, 7, 3]))
    assert made.sizes == (3,)
    of = held(made)
    assert of[0] == of[2]
    assert len({frozenset(item) for item in of}) == 3
    for wrong in ([0.5, 1.0], [], [[1], [2]]):
        with pytest.raises(ValueError, match="one integer an item"):
            clusters(np.array(wrong))


LINES = "20|1,3|7|4,5\n10|3|8|\n\n99|1|7|4\n"


@pytest.mark.parametrize("packed", [False, True])
def test_load_maps_the_ids_of_the_data(tmp_path, packed):
    file = tmp_path / "map.txt"
    file.write_bytes(gzip.compress(LINES.encode()) if packed else LINES.replace("\n", "\r\n").encode())
    data = load(([1, 1, 2], [10, 30, 20]))
    made, covered, missing, unused = load_relations(file, data.item_ids)
    assert (covered, missing.tolist(), unused) == (2, [30], 1)
    assert made.names == ("genre", "director", "actor")
    assert made.sizes == (2, 2, 2)
    assert held(made) == [{(1, 0), (2, 2)}, {(1, 0), (1, 1), (2, 3), (3, 4), (3, 5)}, set()]
    named = load_relations(file, ["99", "20"]).relations  # ids that are text
    assert held(named)[0] == {(1, 0), (2, 2), (3, 3)}
    assert len(held(named)[0] & held(named)[1]) == 3


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("1|2|3|4\n2|3|4\n", 2, "3 columns separated by '|'; expected 4: item, genre, director, actor"),
        ("1|2,,3|3|4\n", 1, "an empty genre"),
        ("1|2|3|4\n3|2|3|4\n1|5|3|4\n", 3, "item 1 has a line before"),
        ("8|2|3|4\n", 1, "none of the 2 items"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, text, line, message):
    file = tmp_path / "map.txt"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        load_relations(file, np.array([1, 3]))
    assert caught.value.line == line
    assert message in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_relations(tmp_path / "none.txt", [1])


def test_movielens(data_dir):
    file = data_dir / "ml-100k-rcf" / "auxiliary-mapping.txt.gz"
    if not file.is_file():
        pytest.skip("no attributes of MovieLens-100K in the folder")
    made, covered, missing, unused = load_relations(file, np.arange(1, 1683))
    assert (covered, made.covered, unused) == (1674, 1674, 0)
    assert made.sizes == (26, 1154, 3946)
    assert missing.tolist() == [267, 1358, 1359, 1420, 1536, 1581, 1590, 1591]
    assert len(held(made)[0]) == 3 + 1 + 4  # 1|0,1,2|0|0,1,2,3
