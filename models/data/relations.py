"""What items share: attributes of items by type, such as genres, directors and actors.

Two items are related by type `k` once for every value of that type they both have, and by type 0 if they share nothing
at all. Values are numbered through all types, so that one table of embeddings holds them: those of type `k` are
`offsets[k - 1] <= value < offsets[k]`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from models.data.formats import DataError, decode

if TYPE_CHECKING:
    import os


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Relations:
    """The attributes of `I` items, at most `S` each; a pytree. Made by `from_table`, `clusters` or `load`.

    Attributes:
        value: (I, S) int32 values in [0, V), ascending within an item, hence by type; 0 in the padding.
        type: (I, S) int32 types in 1..K; 0 in the padding.
        mask: (I, S) True where an item has a value.
        names: names of the K types, static.
        sizes: values of each type, static; they sum to V.

    >>> movies = Relations.from_table({0: {"genre": ["war"]}, 2: {"genre": ["war", "drama"], "actor": ["Ann"]}}, 3)
    >>> movies
    Relations(3 items; genre: 2 values, actor: 1 value)
    >>> movies.value.tolist(), movies.type[2].tolist()
    ([[0, 0, 0], [0, 0, 0], [0, 1, 2]], [1, 1, 2])
    """

    value: Int[Array, "I S"]
    type: Int[Array, "I S"]
    mask: Bool[Array, "I S"]
    names: tuple[str, ...] = field(metadata={"static": True})
    sizes: tuple[int, ...] = field(metadata={"static": True})

    @property
    def items(self) -> int:
        """The number of items I, with or without attributes."""
        return self.value.shape[0]

    @property
    def types(self) -> int:
        """The number of types K, without type 0."""
        return len(self.sizes)

    @property
    def values(self) -> int:
        """The number of values V of all types."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the values of each type begin, and V at the end.

        >>> Relations.from_table({0: {"genre": [7, 8], "actor": [9]}}, 1).offsets
        (0, 2, 3)
        """
        return (0, *accumulate(self.sizes))

    @property
    def covered(self) -> int:
        """How many items have an attribute (host only)."""
        return int(np.sum(np.any(np.asarray(self.mask), axis=1)))

    @classmethod
    def from_table(
        cls,
        table: Mapping[int, Mapping[str, Iterable[Hashable]]],
        items: int,
        *,
        names: Sequence[str] | None = None,
    ) -> Relations:
        """Relations from a table `item -> (type -> values)`.

        Args:
            table: for each item, its values by type; a value given twice counts once. An item that is left out shares
                nothing with any other. Values are numbered as they first appear, by item and within a type.
            items: the number of items I, >= 1.
            names: the types in their order; None: as they first appear.

        Raises:
            ValueError: an item outside 0..I-1, a type that is not in `names`, no type at all, or text where a list of
                values was expected.

        >>> Relations.from_table({0: {"city": ["Rome"]}, 1: {"city": ["Rome"]}}, 2).value.tolist()
        [[0], [0]]
        """
        if isinstance(items, bool) or not isinstance(items, int | np.integer) or items < 1:
            raise ValueError(f"from_table: items={items!r}; expected a whole number of at least 1")
        wrong = [item for item in table if not isinstance(item, int | np.integer) or not 0 <= item < items]
        if wrong:
            raise ValueError(f"from_table: item {wrong[0]!r}; expected a whole number in 0..{items - 1}")
        ordered = sorted(table)
        found = dict.fromkeys(name for item in ordered for name in table[item])
        known = list(found) if names is None else list(names)
        strange = [name for name in found if name not in known]
        if strange or not known:
            said = f"type {strange[0]!r}" if strange else "no type"
            raise ValueError(f"from_table: {said}; expected types among {', '.join(known) or 'at least one'}")
        return _numbered(table, ordered, known, int(items))

    def __repr__(self) -> str:
        told = [
            f"{name}: {size} value{'s' * (size != 1)}"
            for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return f"Relations({self.items} items; {', '.join(told)})"


def _numbered(table: Mapping[int, Any], ordered: list[int], names: list[str], items: int) -> Relations:
    numbers: list[dict[Hashable, int]] = [{} for _ in names]
    held: list[tuple[int, int, int]] = []  # item, type, number within the type
    for item in ordered:
        for k, name in enumerate(names):
            given = table[item].get(name, ())
            if isinstance(given, str | bytes):
                raise ValueError(
                    f"from_table: {name} of item {item} is the text {given!r}; expected a list of values"
                )
            of = numbers[k]
            held += [(item, k, of.setdefault(value, len(of))) for value in dict.fromkeys(given)]
    sizes = tuple(len(of) for of in numbers)
    item, type_, number = np.array(held, np.int64).reshape(-1, 3).T
    value = number + np.array((0, *accumulate(sizes)))[type_]
    order = np.lexsort((value, item))
    item, type_, value = item[order], type_[order], value[order]
    begin = np.searchsorted(item, np.arange(items + 1))
    slot = np.arange(item.size) - begin[item]
    shape = (items, max(1, int(np.diff(begin).max())))

    def padded(numbers, dtype):
        rows = np.zeros(shape, dtype)
        rows[item, slot] = numbers
        return jax.device_put(rows)

    return Relations(
        padded(value, np.int32), padded(type_ + 1, np.int32), padded(True, bool), tuple(names), sizes
    )


def clusters(ids: Any, *, name: str = "cluster") -> Relations:
    """Relations of one type, whose value is the cluster an item belongs to: for data without attributes.

    Args:
        ids: (I,) integers, the cluster of each item.
        name: of the type.

    Raises:
        ValueError: not one integer an item.

    **Differs from the paper:** RCF has no such relation; it stands in for one on synthetic data.

    >>> clusters([4, 9, 4])
    Relations(3 items; cluster: 2 values)
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"clusters: got {ids.dtype} of shape {ids.shape}; expected one integer an item, the cluster it is in"
        )
    table = {item: {name: [cluster]} for item, cluster in enumerate(ids.tolist())}
    return Relations.from_table(table, ids.size)


class Loaded(NamedTuple):
    """Relations of a file for the items of a data set.

    Attributes:
        relations: one row an item of the data set, in its numbering.
        covered: how many items of the data set the file tells of.
        missing: original ids of those it does not tell of; they share nothing.
        unused: lines of the file about items that the data set does not hold.
    """

    relations: Relations
    covered: int
    missing: np.ndarray
    unused: int


def load(
    path: str | os.PathLike[str],
    item_ids: Any,
    *,
    names: Sequence[str] | None = ("genre", "director", "actor"),
    sep: str = "|",
) -> Loaded:
    """Read a file of item attributes, `item|values|values|...`, one column a type, values separated by commas.

    Args:
        path: the file, also gzipped; RCF's `auxiliary-mapping.txt` for MovieLens-100K has three types.
        item_ids: (I,) the original ids of the items, `Dataset.item_ids`: row `i` of the result is item `item_ids[i]`.
        names: of the types, as many as there are columns after the item. None: numbers, by the first line.
        sep: between the columns.

    Raises:
        FileNotFoundError: no such file.
        DataError: the line that has another number of columns, an empty value or an item told of before; or no item of
            the data set in the file.

    Reference: Xin et al., SIGIR 2019; the file as released with ACCENT (Tran et al., SIGIR 2021).

    **Differs from the paper:** nothing.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp(), "attributes.txt")
    >>> _ = file.write_text("7|war,drama|Ann\\n9|war|Bob\\n")
    >>> load(file, [9, 8], names=("genre", "director"))[:2]
    (Relations(2 items; genre: 1 value, director: 1 value), 1)
    """
    lines = decode(Path(path).read_bytes(), str(path)).splitlines()
    first = next((line for line in lines if line.strip()), "")
    names = tuple(f"type {k + 1}" for k in range(first.count(sep))) if names is None else tuple(names)
    ids = [str(name) for name in np.asarray(item_ids).tolist()]
    index = {name: item for item, name in enumerate(ids)}
    table: dict[int, dict[str, list[str]]] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, values = _columns(line, names, sep, str(path), number)
        if name in seen:
            raise DataError(str(path), number, f"item {name} has a line before; give each item one line")
        seen.add(name)
        if name in index:
            table[index[name]] = values
    if not table:
        raise DataError(
            str(path),
            1,
            f"none of the {len(ids)} items is in the file; item_ids are the original ids of the items",
        )
    missing = np.asarray(item_ids)[[item not in table for item in range(len(ids))]]
    relations = Relations.from_table(table, len(ids), names=names)
    return Loaded(relations, len(table), missing, len(seen) - len(table))


def _columns(
    line: str, names: tuple[str, ...], sep: str, path: str, number: int
) -> tuple[str, dict[str, list[str]]]:
    """The item of a line and its values by type."""
    columns = line.strip("\r\n").split(sep)
    if len(columns) != 1 + len(names):
        raise DataError(
            path,
            number,
            f"{len(columns)} columns separated by {sep!r}; expected {1 + len(names)}: item, {', '.join(names)}",
        )
    values = {
        name: [] if not column.strip() else [value.strip() for value in column.split(",")]
        for name, column in zip(names, columns[1:], strict=True)
    }
    for name, given in values.items():
        if "" in given:
            raise DataError(path, number, f"an empty {name}; expected values separated by single commas")
    return columns[0].strip(), values
