"""How fake users look beside real ones: what they click, how alike they are, where they lie in a model's latent space.

The measures behind the pictures of Tang, Wen, Wang (RevAdv), RecSys 2020, Fig. 5b and 5c, and Zhang et al. (RAPU), KDD
2021, Fig. 5. They take the fake users as known, which no defender can: detectors, which may not, are elsewhere. Host
code on NumPy arrays.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import ArrayLike, Float

from models.data import Interactions, checks
from models.data.profiles import Profiles

Projection = Literal["pca", "tsne"]


def clicked_popularity(rows: Float[ArrayLike, "F I"], train: Interactions) -> np.ndarray:
    """The training clicks of every item that a row marks, one number a mark.

    >>> train = Interactions.from_arrays([0, 1, 1], [0, 0, 1])
    >>> clicked_popularity(np.array([[1, 1], [1, 0]]), train).tolist()
    [2, 1, 2]
    """
    _, item = np.nonzero(np.asarray(rows))
    return np.asarray(train.popularity())[item]


def popularity_distance(profiles: Profiles, train: Interactions) -> float:
    """Kolmogorov-Smirnov distance between the popularity of what fake and of what real users clicked.

    `max_c |F_fake(c) - F_real(c)|` of the two distributions of `clicked_popularity`, targets included.

    Args:
        profiles: fake users, F >= 1, with at least one click.
        train: the real interactions.

    Returns:
        a number in [0, 1]; 0: the same popularity profile as the real users together.

    Raises:
        ValueError: no click on either side.

    Reference: RevAdv (RecSys 2020), Fig. 5b shows the two densities. **Differs from the paper:** it gives no number.

    >>> train = Interactions.from_arrays([0, 1, 1], [0, 0, 1])
    >>> popularity_distance(Profiles.from_rows(np.eye(1, 2), targets=[0]), train)
    0.333...
    """
    fake = np.sort(clicked_popularity(np.asarray(profiles.to_rows()) > 0, train))
    real = np.sort(np.asarray(train.popularity())[np.asarray(train.item)[train.real()]])
    if not fake.size or not real.size:
        raise ValueError(f"{fake.size} fake and {real.size} real clicks; the distance needs some of both")
    at = np.concatenate([fake, real])
    below = (np.searchsorted(side, at, side="right") / side.size for side in (fake, real))
    return float(np.max(np.abs(next(below) - next(below))))


def pairwise_jaccard(rows: Float[ArrayLike, "F I"]) -> np.ndarray:
    """`|a and b| / |a or b|` of every two rows, (F, F); two empty rows are equal: 1.

    >>> pairwise_jaccard(np.array([[1, 1, 0], [1, 0, 0]])).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    marked = (np.asarray(rows) > 0).astype(float)
    both, each = marked @ marked.T, marked.sum(1)
    either = each[:, None] + each - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def mean_jaccard(profiles: Profiles) -> float:
    """Mean Jaccard similarity of two different fake users; 1: all the same. NaN for fewer than two.

    >>> mean_jaccard(Profiles.from_rows(np.ones((3, 2)), targets=[0]))
    1.0
    """
    alike = pairwise_jaccard(np.asarray(profiles.to_rows()))
    F = len(alike)
    return float((alike.sum() - np.trace(alike)) / (F * (F - 1))) if F > 1 else float("nan")


def neighbor_purity(latent: Float[ArrayLike, "N D"], fakes: int, *, k: int = 10) -> float:
    """Share of fake users among the `k` nearest neighbors of a fake user; the last `fakes` rows are the fake ones.

    The base rate is `(F - 1) / (N - 1)`; 1: they cluster.

    Args:
        latent: vectors of real and fake users, `(U + F, D)`.
        fakes: F, 2 to N - 1.
        k: neighbors, 1 to F - 1 (so that 1 can be reached).

    Raises:
        ValueError: a number outside its range.

    Reference: RevAdv (RecSys 2020), section 4.3, Fig. 5c. **Differs from the paper:** it shows the clusters only.

    >>> neighbor_purity(np.array([[0.0], [1.0], [2.0], [9.0], [9.1]]), 2, k=1)
    1.0
    """
    points = np.asarray(latent, float)
    if not 2 <= fakes < len(points):
        raise ValueError(f"fakes={fakes}; expected 2 to {len(points) - 1} of the {len(points)} users")
    if not 1 <= k <= fakes - 1:
        raise ValueError(f"k={k}; expected 1 to {fakes - 1}, the other fake users")
    own = points[-fakes:]
    apart = (own**2).sum(1)[:, None] - 2 * own @ points.T + (points**2).sum(1)
    apart[np.arange(fakes), len(points) - fakes + np.arange(fakes)] = np.inf
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :k]
    return float(np.mean(nearest >= len(points) - fakes))


def plane(
    latent: Float[ArrayLike, "N D"], method: Projection = "pca", *, seed: int = 0
) -> Float[np.ndarray, "N 2"]:
    """Coordinates of users in a plane, to be drawn: the two first principal components, or t-SNE.

    Args:
        latent: vectors `(N, D)`, D >= 2.
        method: "pca", or "tsne" (scikit-learn; N well above its perplexity of 30).
        seed: of t-SNE.

    Raises:
        ValueError: an unknown method. ImportError: t-SNE without scikit-learn.

    >>> plane(np.array([[0.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, -2.0, 1.0]]))[:, 0].round(6).tolist()
    [0.0, 2.0, -2.0]
    """
    checks.option("method", method, ("pca", "tsne"))
    centered = np.asarray(latent, float) - np.mean(latent, axis=0)
    if method == "tsne":
        from sklearn.manifold import TSNE

        return TSNE(init="pca", random_state=seed).fit_transform(centered.astype(np.float32))
    U, S, V = np.linalg.svd(centered, full_matrices=False)
    sign = np.sign(V[np.arange(2), np.argmax(np.abs(V[:2]), axis=1)])  # an axis has no direction of its own
    return U[:, :2] * S[:2] * sign
