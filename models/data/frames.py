"""Interactions that are in memory or in parquet: frames, matrices, tuples of arrays, turned into columns."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from models.data import checks
from models.data.formats import DataError, Raw, Roles, by_name, named_roles

if TYPE_CHECKING:
    from collections.abc import Sequence


def from_memory(source: Any, roles: Roles) -> Raw:
    """Columns of a frame, a SciPy sparse or dense matrix, or a tuple of arrays.

    Raises:
        DataError: no user or item column, or no events.
        TypeError, ValueError: nothing that holds interactions; columns named of what has none.
    """
    if hasattr(source, "collect") and hasattr(source, "collect_schema"):  # a lazy polars frame
        source = source.collect()
    if hasattr(source, "columns"):
        return _frame(source, "frame", roles)
    named = named_roles(roles)
    if named:
        raise ValueError(f"{named[0]}=...: only a frame has columns to name, not a {type(source).__name__}")
    if hasattr(source, "tocoo"):
        return _matrix("sparse matrix", *_cells(source), source.shape, roles)
    if isinstance(source, np.ndarray) and source.ndim == 2:
        values = checks.matrix(source)
        at = np.nonzero(values)
        return _matrix("matrix", at[0], at[1], values[at], source.shape, roles)
    if isinstance(source, tuple | list) and 2 <= len(source) <= 4 and np.ndim(source[0]) == 1:
        given = [np.asarray(column) for column in source]
        columns = [*given, *[None] * (5 - len(given))]
        return _rows("arrays", [None if role is False else c for c, role in zip(columns, roles)])
    raise TypeError(
        f"cannot load a {type(source).__name__}: expected a path, a data set's name, a frame, a users x items "
        "matrix (NumPy or SciPy), or a tuple (user, item[, rating[, time]]) of arrays"
    )


def is_parquet(path: str) -> bool:
    """Whether a file is parquet, by its name."""
    return path.lower().endswith((".parquet", ".pq"))


def read_parquet(data: bytes, path: str, roles: Roles) -> Raw:
    """Columns of a parquet file, read by pandas with pyarrow, else by polars.

    Raises:
        ImportError: neither is installed.
        DataError: not parquet, damaged, a missing column or no rows.
    """
    have = {name for name in ("pandas", "pyarrow", "polars") if importlib.util.find_spec(name)}
    if {"pandas", "pyarrow"} <= have:
        frame = _parquet_by_pandas(data, path)
    elif "polars" in have:
        frame = _parquet_by_polars(data, path)
    else:
        raise ImportError(
            f"reading {path} needs pandas with pyarrow, or polars: pip install pyarrow (or pip install polars)"
        )
    return _frame(frame, path, roles)


def _parquet_by_pandas(data: bytes, path: str) -> Any:
    import pandas as pd
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    try:
        return pd.read_parquet(io.BytesIO(data), engine="pyarrow")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            path, 1, f"not a parquet file, or a damaged one ({_first_line(error)})", "row"
        ) from error


def _parquet_by_polars(data: bytes, path: str) -> Any:
    import polars as pl  # pyright: ignore[reportMissingImports]

    try:
        return pl.read_parquet(io.BytesIO(data))
    # A damaged footer makes polars panic, which is no Exception but has a name to catch it by.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise DataError(
            path, 1, f"not a parquet file, or a damaged one ({_first_line(error)})", "row"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _frame(frame: Any, path: str, roles: Roles) -> Raw:
    names = [str(column) for column in frame.columns]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise DataError(path, 1, f"several columns are called {sorted(repeated)[0]!r}", "row")
    where = by_name(names, roles, path)
    return _rows(path, [None if at is None else _column(frame[frame.columns[at]]) for at in where])


def _column(values: Any) -> np.ndarray:
    """A frame's column in NumPy; dates become seconds since 1970 (NaN where missing)."""
    if getattr(values.dtype, "kind", None) == "M":  # pandas, with or without a time zone: as UTC
        array = values.to_numpy(dtype="datetime64[us]")
    else:
        array = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    if array.dtype.kind != "M":
        return array
    seconds = array.astype("datetime64[us]").astype(np.int64) / 1e6
    return np.where(np.isnat(array), np.nan, seconds)


def _cells(source: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(source.shape) != 2 or 0 in source.shape:
        raise ValueError(f"expected a users x items matrix; got shape {source.shape}")
    cells = source.tocsr().tocoo()  # by way of rows: repeated cells are summed, as SciPy means them
    kept = cells.data != 0
    return cells.row[kept], cells.col[kept], cells.data[kept]


def _matrix(
    what: str, user: np.ndarray, item: np.ndarray, value: np.ndarray, shape: Sequence[int], roles: Roles
) -> Raw:
    raw = _rows(what, [user, item, None if roles.rating is False else value, None, None])
    return raw._replace(sizes=(int(shape[0]), int(shape[1])))


def _rows(path: str, columns: list[np.ndarray | None]) -> Raw:
    for role, column in zip(Roles._fields, columns):
        if column is not None and column.ndim != 1:
            raise ValueError(f"{path}: {role} has shape {column.shape}; expected one value an event")
    sizes = {len(column) for column in columns if column is not None}
    if len(sizes) > 1:
        raise ValueError(f"{path}: columns of different lengths {sorted(sizes)}")
    size = sizes.pop()
    if size == 0:
        raise DataError(path, 1, "no events", "row")
    return Raw(*columns, path, np.arange(1, size + 1), "row")  # type: ignore[arg-type]
