"""Detectors of fake users by name, and one learned from the others: every one scores all users.

Unsupervised, and never told how many fakes there are or who they are: those of `defenses.profiles` look at one profile,
those of `defenses.neighbors` hold users against each other. `supervised` makes a detector out of their scores by
logistic regression, and is tested on other attacks than it was trained on. Host code on sparse matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from defenses.neighbors import deg_sim, duplicate, fap, knn, lof, pca
from defenses.profiles import Scores, fmtd, length_var, mean_var, popularity, rdma
from models.data import Interactions
from models.evaluation.detection import Detection, detection
from models.recommender import Recommender, one_of
from models.train import fit

Detector = Callable[[Interactions], Scores]

DETECTORS: Mapping[str, Detector] = {
    "rdma": rdma,
    "wdma": lambda train: rdma(train, power=2),
    "wda": lambda train: rdma(train, mean=False),
    "length-var": length_var,
    "deg-sim": deg_sim,
    "pca": pca,
    "popularity": popularity,
    "lof": lof,
    "knn": knn,
    "duplicate": duplicate,
    "fap": fap,
}
"""Detectors of clicks and ratings by name, with their defaults."""
OF_RATINGS: Mapping[str, Detector] = {"mean-var": mean_var, "fmtd": fmtd}
"""Detectors that read ratings only."""
EMBEDDED: Mapping[str, Callable[..., Scores]] = {"lof": lof, "knn": knn}
"""Detectors that look at points, one a user: in `DETECTORS` the first singular directions of the clicks."""
OF_A_USER = ("user", "tower_user")
"""What recommenders call the vectors of their users; NeuMF has two of each."""


def features(train: Interactions, without: Sequence[str] = ()) -> Float[np.ndarray, "U N"]:
    """The scores of all detectors that can read the data, a column each, as ranks in [0, 1] among these users.

    Args:
        train: interactions.
        without: names of detectors whose scores are left out.

    Raises:
        ValueError: no detector has such a name.

    >>> features(Interactions.from_dense(np.tri(8))).shape
    (8, 11)
    """
    from scipy.stats import rankdata

    unknown = [name for name in without if name not in DETECTORS and name not in OF_RATINGS]
    if unknown:
        raise ValueError(f"features: without={unknown}; there are: {', '.join({**DETECTORS, **OF_RATINGS})}")
    chosen = {**DETECTORS, **(OF_RATINGS if train.track == "explicit" else {})}
    columns = [rankdata(detector(train)) for name, detector in chosen.items() if name not in without]
    return (np.stack(columns, 1) - 1) / max(train.users - 1, 1)


def supervised(
    known: Sequence[tuple[Interactions, Bool[np.ndarray, " U"]]], *, without: Sequence[str] = ()
) -> Detector:
    """A detector learned from data whose fakes are known: logistic regression on `features`.

    Test it on other attacks than those in `known`: on the same it only recognizes what it was shown. What the attacks
    share by chance, such as the length of their profiles, it recognizes as well: `without=["length-var"]` forbids it.

    Args:
        known: data sets with fake users and which users those are; all clicks or all ratings.
        without: names of detectors it must not use.

    Returns:
        A detector like the others: log odds of being fake.

    Raises:
        ValueError: nothing known, a mask of another length, or an unknown name.

    Reference: classifiers on such features: Burke et al., KDD 2006. **Differs from the paper:** features are ranks, so
    that they carry over between data sets; classes are balanced.

    >>> train, fake = Interactions.from_dense(np.vstack([np.tri(8), np.eye(2, 8)])), np.arange(10) >= 8
    >>> supervised([(train, fake)])(train).shape
    (10,)
    """
    from sklearn.linear_model import LogisticRegression

    if not known or any(np.shape(fake) != (train.users,) for train, fake in known):
        raise ValueError(
            "supervised: expected at least one (train, fake) with one truth value a user of train"
        )
    X = np.concatenate([features(train, without) for train, _ in known])
    y = np.concatenate([np.asarray(fake, bool) for _, fake in known])
    learned = LogisticRegression(class_weight="balanced", max_iter=1000).fit(X, y)
    return lambda train: learned.decision_function(features(train, without))


def among_vectors(name: str, model: Recommender, key: Key[Array, ""]) -> Detector:
    """`lof` or `knn` among the users' vectors in a victim trained on the very data, fake users among them.

    Args:
        name: one of `EMBEDDED`.
        model: the victim, with a vector for each user.
        key: of its training.

    Returns:
        A detector like the others; it costs a training.

    Raises:
        ValueError: another detector; when called, a model without vectors.

    Reference: RevAdv's Fig. 5c and RAPU's Fig. 5 look there. **Differs from the paper:** they draw it; neither scores.

    >>> from models.itempop import itempop
    >>> among_vectors("knn", itempop(), jax.random.key(0))(Interactions.from_dense(np.eye(3)))
    Traceback (most recent call last):
    ...
    ValueError: itempop has no vector for each user that a detector could look at; let it look at the clicks
    """
    one_of("among_vectors", "name", name, EMBEDDED)

    def detector(train: Interactions) -> Scores:
        found = vectors(model, train)
        embedding = fit(model, train, key).embedding
        return EMBEDDED[name](train, embedding=np.concatenate([embedding[part] for part in found], 1))

    return detector


def vectors(model: Recommender, train: Interactions) -> tuple[str, ...]:
    """The tables in what `model` is scored by that hold a vector for each user; nothing is trained.

    Raises:
        ValueError: none.

    >>> from models.wrmf import wrmf
    >>> vectors(wrmf(), Interactions.from_dense(np.eye(3)))
    ('user',)
    """

    def made(key, train):
        nobody = jnp.zeros((0, train.items))
        return model.embed(model.init(key, train.users, train.items, 0), nobody, model.prepare(train))

    embedding = jax.eval_shape(made, jax.random.key(0), train)
    there = embedding if isinstance(embedding, Mapping) else {}
    found = tuple(part for part in OF_A_USER if part in there and there[part].shape[:-1] == (train.users,))
    if not found:
        raise ValueError(
            f"{model.name} has no vector for each user that a detector could look at; let it look at the clicks"
        )
    return found


def judged(detector: Detector, train: Interactions, real: int) -> Detection:
    """`models.evaluation.detection.detection` of a detector on data whose users from number `real` on are fake.

    >>> train = Interactions.from_arrays([0, 1, 1, 2, 2], [2, 0, 1, 0, 1])
    >>> judged(duplicate, train, 1).auc
    1.0
    """
    return detection(detector(train), np.arange(train.users) >= real)
