"""Users x items as a sparse matrix, as detectors read it. Host code."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.data import Interactions


def matrix(train: Interactions) -> Any:
    """Users x items as a sparse matrix: ratings, or 1 where there is a click (repeats count once)."""
    found: Any = train.to_csr().astype(float)
    found.sum_duplicates()
    if train.track != "explicit":
        found.data[:] = 1.0
    return found


def lengths(R: Any) -> np.ndarray:
    """Items of every user."""
    return np.diff(R.indptr).astype(float)


def rows(R: Any) -> np.ndarray:
    """The user of each stored cell."""
    return np.repeat(np.arange(R.shape[0]), np.diff(R.indptr))


def unit(R: Any) -> Any:
    """Rows of length 1; empty ones stay."""
    from scipy.sparse import diags

    norm = np.sqrt(np.asarray(R.multiply(R).sum(1)).ravel())
    return diags(1 / np.where(norm > 0, norm, 1.0)) @ R
