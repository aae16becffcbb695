"""Victims nobody here wrote, read like our own models: what they share, and the `implicit` library.

An attack that only works on recommenders written beside it may work on their quirks. Here the victim's code is
somebody else's:

    victim = recbole("LightGCN", epochs=20)                 # or implicit_als(), implicit_bpr(), implicit_knn()
    trained = fit(victim, inject(train, profiles), key)     # fake users are injected, as users like any other
    evaluate(trained.scores, train, test=test, targets=targets)

Training happens on the host and has no derivative. What comes back is arrays (factors, similarities or a table of
scores), so `Trained` is a pytree, and `models.evaluation.evaluate` and `models.train.top_k` read it as they read a
`models.train.Fitted`. RecBole is in `models/recbole.py`.
"""

from __future__ import annotations

import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from models import itemcf, sparse
from models.data.interactions import Interactions, is_concrete
from models.data.split import generator
from models.recommender import clicks_only, counts, numbers, one_of

Similarity = Literal["cosine", "tfidf", "bm25", "overlap"]


class Cost(NamedTuple):
    """What the training took, as scalars; NaN where it is not known.

    `seconds`: wall time; `epochs`: how many were run (validation may stop early); `epoch_seconds`: their median;
    `peak_rss_mb`: the most memory the training process held, in 1e6 bytes (NaN when trained in this process).
    """

    seconds: Float[Array, ""]
    epochs: Int[Array, ""]
    epoch_seconds: Float[Array, ""]
    peak_rss_mb: Float[Array, ""]


@dataclass(frozen=True, eq=False, repr=False)
class External:
    """A recommender of another library. Made by `implicit_als` and its kin, or `recbole`; trained by `fit`.

    Attributes:
        name: what it is.
        config: the factory's arguments, for records.
        train: `(train, seed, validation) -> (embedding, cost)`, on the host.
        score: `(embedding, users) -> (B, I)` scores, jit-able.
    """

    name: str
    config: Mapping[str, Any]
    train: Callable[[Interactions, int, Interactions | None], tuple[Any, Cost]]
    score: Callable[[Any, Int[Array, " B"]], Float[Array, "B I"]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", MappingProxyType(dict(self.config)))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Trained:
    """A recommender trained elsewhere; a pytree that reads like `models.train.Fitted`. Made by `fit`.

    Attributes:
        model: what was trained, static.
        embedding: what `scores` reads.
        x: (0, I), no fake rows: here fake users are always part of the training data.
        cost: seconds and memory.
    """

    model: External = field(metadata={"static": True})
    embedding: Any
    x: Float[Array, "0 I"]
    cost: Cost

    def scores(self, users: Int[Array, " B"]) -> Float[Array, "B I"]:
        """Scores of `users` (B,) for every item, nothing masked."""
        return self.model.score(self.embedding, users)


def fit(
    model: External,
    train: Interactions,
    key: Key[Array, ""] | int,
    *,
    validation: Interactions | None = None,
) -> Trained:
    """Train another library's recommender on `train`; on the host, not under `jit` or `vmap`.

    Args:
        model: made by a factory of this file.
        train: the real interactions, or poisoned ones from `models.data.inject`: real users first, fake ones after.
            Clicks; in a sequence a repeated click counts once, except for a sequence model, which reads the order.
        key: a typed key or a seed; becomes the library's seed. With `threads=1` the same key gives the same numbers.
        validation: held-out events for early stopping by RecBole's rule; refused by what has none.

    Returns:
        `Trained`; `scores(users)` takes the ids of `train`.

    Raises:
        ValueError: ratings, no event at all, traced or batched data, lost events (NaN weights), validation where there
            is none. RuntimeError, TimeoutError: RecBole failed; the end of what it said is in the message.

    **Differs from the paper:** not an algorithm of a paper.

    Any other library joins as a function that trains and one that reads:

    >>> learn = lambda train, seed, validation: (train.popularity().astype(float), cost(0.0))
    >>> read = lambda popular, users: jnp.broadcast_to(popular, (*users.shape, *popular.shape))
    >>> victim = External("most-popular", {}, learn, read)
    >>> trained = fit(victim, Interactions.from_arrays([0, 1, 1], [2, 2, 0]), jax.random.key(0))
    >>> trained.scores(jnp.array([1])).tolist()
    [[1.0, 0.0, 2.0]]
    """
    if not is_concrete(train.weight, key) or np.ndim(train.weight) != 1:
        raise ValueError(
            f"fit: {model.name} trains outside JAX, one data set at a time; got {train!r}. Call fit from the host, in "
            "a Python loop over keys or poisoned sets, not under jit or vmap"
        )
    for data in (train, validation):
        if data is not None and np.isnan(np.asarray(data.weight)).any():
            raise ValueError("fit: weights are NaN, which says that events were lost (too small a capacity)")
    if not train.real().any():
        raise ValueError(f"fit: {train!r} has no event to learn from")
    clicks_only(model.name, train)
    embedding, spent = model.train(train, int(generator(key).integers(2**31)), validation)
    return Trained(model, embedding, jnp.zeros((0, train.items)), spent)


# ------------------------------------------------------------------------------------------------ the implicit library


class Factors(NamedTuple):
    """`s_ui = user_u . item_i`."""

    user: Float[Array, "U D"]
    item: Float[Array, "I D"]


def implicit_als(
    *,
    factors: int = 100,
    regularization: float = 0.01,
    alpha: float = 1.0,
    iterations: int = 15,
    use_cg: bool = True,
    threads: int = 1,
) -> External:
    """Alternating least squares of the `implicit` library.

    Args:
        factors: D, >= 1.
        regularization: of the squared norms, >= 0.
        alpha: weight of a clicked cell, where all others weigh 1, > 0 (our `weight`; the paper's is 1 + alpha).
        iterations: passes over users and items, >= 1.
        use_cg: three steps of conjugate gradients instead of a Cholesky solve per row (the library's default).
        threads: of the library, >= 1.

    Raises:
        ValueError: a number outside its range. ImportError: the library is not installed; says what to do.

    Reference: Hu, Koren, Volinsky, ICDM 2008; Frederickson, implicit 0.7.

    **Differs from the paper:** whatever the library differs in; that is the point.
    """
    config = dict(locals())
    counts("implicit_als", factors=factors, iterations=iterations, threads=threads)
    numbers("implicit_als", 0, regularization=regularization)
    numbers("implicit_als", 0, open_end=True, alpha=alpha)
    return _implicit("implicit_als", config, "als", "AlternatingLeastSquares", config)


def implicit_bpr(
    *,
    factors: int = 100,
    learning_rate: float = 0.01,
    regularization: float = 0.01,
    iterations: int = 100,
    threads: int = 1,
) -> External:
    """Bayesian personalized ranking of the `implicit` library; its factors hold the item bias as a last column.

    Args:
        factors: D, >= 1.
        learning_rate: of plain stochastic gradient descent, > 0.
        regularization: >= 0.
        iterations: epochs, >= 1.
        threads: of the library, >= 1; several write to the same factors unlocked, so their numbers do not repeat.

    Raises:
        ValueError: a number outside its range. ImportError: the library is not installed; says what to do.

    Reference: Rendle et al., UAI 2009; Frederickson, implicit 0.7.

    **Differs from the paper:** whatever the library differs in; negatives are checked against the clicks.
    """
    config = dict(locals())
    counts("implicit_bpr", factors=factors, iterations=iterations, threads=threads)
    numbers("implicit_bpr", 0, open_end=True, learning_rate=learning_rate)
    numbers("implicit_bpr", 0, regularization=regularization)
    return _implicit("implicit_bpr", config, "bpr", "BayesianPersonalizedRanking", config)


def implicit_knn(*, similarity: Similarity = "cosine", neighbors: int = 20, threads: int = 1) -> External:
    """Item-based nearest neighbors of the `implicit` library: the similarities to a user's clicks, added up.

    Args:
        similarity: cosine, cosine after TF-IDF weights, BM25 weights, or the number of common users.
        neighbors: items kept of each item, >= 1; the item itself is one of them.
        threads: of the library, >= 1.

    Raises:
        ValueError: a number outside its range, an unknown similarity. ImportError: the library is not installed.

    Reference: Frederickson, implicit 0.7.

    **Differs from the paper:** float32 sums where the library adds in float64. It draws nothing: the key is not used.
    """
    config = dict(locals())
    counts("implicit_knn", neighbors=neighbors, threads=threads)
    one_of("implicit_knn", "similarity", similarity, get_args(Similarity))
    kind = {"cosine": "Cosine", "tfidf": "TFIDF", "bm25": "BM25", "overlap": "ItemItem"}[similarity]
    arguments = {"K": neighbors, "threads": threads}
    return _implicit("implicit_knn", config, "nearest_neighbours", f"{kind}Recommender", arguments)


def _implicit(
    name: str, config: Mapping[str, Any], module: str, kind: str, arguments: Mapping[str, Any]
) -> External:
    """A model of the library by module and class, `arguments` being its own but for `threads` and the seed."""
    # Here and not in `train`: a missing library should be known before an attack has run for an hour.
    library, pools = _library(name, f"implicit.{module}"), _library(name, "threadpoolctl")
    arguments = dict(arguments)
    arguments["num_threads"] = arguments.pop("threads")
    neighbors = module == "nearest_neighbours"

    def train(
        train: Interactions, seed: int, validation: Interactions | None
    ) -> tuple[Factors | itemcf.Alike, Cost]:
        if validation is not None:
            raise ValueError(f"fit: {name} has no early stopping; leave validation out")
        epochs: list[float] = []
        clicks = train.to_csr().astype(
            np.float64 if neighbors else np.float32
        )  # what each kernel is compiled for
        clicks.data[:] = 1
        began = time.perf_counter()
        # The library runs its own threads and asks that BLAS starts none.
        with pools.threadpool_limits(1, "blas"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Method expects CSR input")  # from its own conversion
            if neighbors:
                made = getattr(library, kind)(**arguments)
                made.fit(clicks, show_progress=False)
            else:
                made = getattr(library, kind)(**arguments, use_gpu=False, random_state=seed)
                seen = lambda iteration, seconds, *rest: epochs.append(seconds)
                made.fit(clicks, show_progress=False, callback=seen)
        spent = cost(time.perf_counter() - began, epochs)
        if neighbors:
            return _alike(name, made.similarity, train), spent
        return Factors(jnp.asarray(made.user_factors), jnp.asarray(made.item_factors)), spent

    return External(name, config, train, itemcf.score if neighbors else _inner_products)


def _inner_products(embedding: Factors, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    return embedding.user[users] @ embedding.item.T


def _alike(name: str, similarity: Any, train: Interactions) -> itemcf.Alike:
    """The library's sparse similarities (row: clicked, column: recommended) as our ItemCF reads them."""
    similarity.sum_duplicates()  # sorts by row and column: the order of the pairs
    cells = similarity.tocoo()
    if not np.isfinite(cells.data).all():
        raise ValueError(
            f"fit: {name} has similarities that are not numbers on {train!r} (a weight of the library is 0/0 there); "
            "choose another similarity"
        )
    size, row, col = train.items, cells.row.astype(np.int32), cells.col.astype(np.int32)
    pairs = sparse.observed(jnp.asarray(row), jnp.asarray(col), jnp.ones(row.shape, bool), size, size)
    value = np.zeros(pairs.row.shape[0], np.float32)
    value[: cells.nnz] = cells.data
    return itemcf.Alike(pairs, jnp.asarray(value), itemcf.prepare(train).cells)


def _library(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{name} needs the implicit library, which is not installed: pip install -e '.[external]' in the checkout "
            f"(or pip install 'implicit>=0.7'). Python says: {error}"
        ) from error


def cost(seconds: float, epochs: Sequence[float] = (), peak_rss_mb: float = float("nan")) -> Cost:
    """A `Cost` from the seconds in all, the seconds of each epoch (none: it has no epochs) and the peak of memory."""
    # As float32 whatever the precision mode: a different type of leaf would compile every evaluation again.
    number = lambda value: jnp.asarray(value, jnp.float32)
    median = statistics.median(epochs) if epochs else float("nan")
    return Cost(number(seconds), jnp.asarray(len(epochs), jnp.int32), number(median), number(peak_rss_mb))
