"""One training judged after every epoch by every rule: what the study of RAPU's NCF (`ncf.py`) reads.

A rule says what parameters are kept (`kept`), a kind of list what is left out of it and whose lists count (`judge`).
Both are cheap beside the training, so one training answers all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from bilevel.unroll import run_some
from models.data import PUBLISHED, Split, dataset, random_events
from models.data.interactions import Interactions
from models.data.observe import perturbed
from models.data.protocols import prepared
from models.data.split import generator
from models.evaluation import evaluate
from models.recommender import Recommender, xavier
from models.train import begin

TARGETS = "ml-100k/rapu"
K = 50
LISTS = {  # kinds of list, and on whose code each is founded
    "train masked": "RAPU's code",
    "users with test events": "RevAdv's code",
    "nothing masked": "none",
    "validation masked too": "RecBole's lists for test",
}


class Others(NamedTuple):
    """What else can be left out of the lists: nothing, or the events of training and validation."""

    nothing: Interactions
    both: Interactions


# ------------------------------------------------------------------------------------------------ data


@functools.lru_cache(maxsize=4)
def split_of(data: str, seed: int) -> Split:
    """The events of a seed: drawn and split as in the study `clean`, or by another reading.

    "events": 80/10/10 over all events. "per user": RecBole's default, a tenth of each user's events for validation and
    for test. "all": the same parts as "events" are judged, but all events are learned from and masked. "perturbed": the
    split of the attacker's view (90% of the clicks, 10% false ones). "released 0": the split of RAPU's code, which its
    two scripts draw with NumPy's seed 0 (their arguments' default is 1234), the same for every seed of ours.
    """
    if data.startswith("released"):
        return released(int(data.split()[1]))
    key = jax.random.fold_in(jax.random.key(seed), 0)
    made = prepared("rapu-ml-100k", key)
    whole = made.data.interactions
    if data == "per user":
        return each_user(whole, key)
    if data == "all":
        return made.split._replace(train=whole)
    if data == "perturbed":
        return random_events(perturbed(0.9)(whole, jax.random.fold_in(jax.random.key(seed), 2)), key)
    return made.split


def each_user(whole: Interactions, key: Key[Array, ""] | int) -> Split:
    """A random `floor(n_u / 10)` of each user's events for test, as many for validation, the rest for training.

    >>> parts = each_user(Interactions.from_arrays([0] * 20 + [1] * 9, [*range(20), *range(9)]), 0)
    >>> [part.degrees().tolist() for part in parts]
    [[16, 9], [2, 0], [2, 0]]
    """
    real = np.flatnonzero(whole.real())
    user = np.asarray(whole.user)[real]
    order = np.lexsort((generator(key).random(user.size), user))
    count = np.bincount(user, minlength=whole.users)
    place = np.empty(user.size, int)
    place[order] = np.arange(user.size) - np.repeat(np.cumsum(count) - count, count)
    held = (count // 10)[user]
    parts = (place >= 2 * held, (place >= held) & (place < 2 * held), place < held)
    return Split(*(whole.select(real[part]) for part in parts))


def released(seed: int) -> Split:
    """The split of RAPU's code: NumPy shuffles the rows of the file, the first 80% are training, then 10% and 10%."""
    rows = dataset("ml-100k", track="sequence", time=False, rating=False).interactions
    real = rows.real()
    order = np.argsort(
        np.asarray(rows.time)[real], kind="stable"
    )  # without times, a sequence counts the rows
    pairs = np.stack([rows.user, rows.item], axis=1)[real][order]
    np.random.RandomState(seed).shuffle(pairs)  # their generator
    ends = [int(len(pairs) * share) for share in (0.8, 0.9)]
    users, items = rows.users, rows.items
    made = [
        Interactions.from_arrays(part[:, 0], part[:, 1], users=users, items=items, track="implicit")
        for part in np.split(pairs, ends)
    ]
    return Split(*made)


def others(parts: Split) -> Others:
    """The further masks of a split."""
    train, validation = parts.train, parts.validation
    assert validation is not None
    pairs = [np.stack([part.user, part.item])[:, part.real()] for part in (train, validation)]
    user, item = np.concatenate(pairs, axis=1)
    none, users, items = np.zeros(0, int), train.users, train.items
    both = Interactions.from_arrays(user, item, users=users, items=items, duplicates="first")
    return Others(Interactions.from_arrays(none, none, users=users, items=items), both)


# ------------------------------------------------------------------------------------------------ training, judging


def curves(
    model: Recommender, parts: Split, key: Key[Array, ""], *, by_size: bool = False
) -> dict[str, np.ndarray]:
    """Every figure of `judge` after every epoch, each of shape (epochs,); the training is that of `models.train.fit`.

    Args:
        model: GMF or NeuMF.
        parts: what it learns from and is judged on.
        key: as in `fit`.
        by_size: start the two tables of GMF from RecBole's `xavier_normal_initialization` instead: deviation
            `sqrt(2 / (rows + width))`.
    """
    params, train = None, parts.train
    if by_size:
        params = model.init(jax.random.split(key)[0], train.users, train.items, 0)  # as `fit` draws them
        for table in ("user", "item"):
            params[table] *= xavier(*params[table].shape) / model.config["scale"]
    start = begin(model, train, key, params0=params)
    found = _curves(model, start.params, start.x, start.data, start.key, parts, others(parts))
    return {figure: np.asarray(values) for figure, values in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _curves(model, params, x, data, key, parts, masks):
    inner = model.trainer(parts.train.users, parts.train.items, 0, parts.train.capacity)
    steps = inner.steps_per_epoch

    def epoch(state, done):
        state = run_some(inner, state, x, data, key, done * steps, steps)
        return state, judge(Partial(model.score, model.embed(state.params, x, data)), parts, masks)

    return jax.lax.scan(epoch, inner.init(params, x, data, key), jnp.arange(inner.steps // steps))[1]


def judge(scores: Any, parts: Split, masks: Others) -> dict[str, Any]:
    """The validation figures, HR@50 of the targets on every kind of list, and Recall@50 on the test events."""
    targets = np.array(PUBLISHED[TARGETS])
    of = functools.partial(evaluate, scores, targets=targets)
    valid: Any = of(parts.train, test=parts.validation, k=(10, K), per_user=True)
    tested = of(parts.train, test=parts.test, k=K, users="with_test")
    return {
        "ndcg@10": valid.ndcg[0],
        "mrr@10": reciprocal_rank(valid.per_user.relevant[:, :10], valid.per_user.test_count),
        "recall@50": valid.recall[1],
        "train masked": valid.hr_any[1],
        "users with test events": tested.hr_any,
        "nothing masked": of(masks.nothing, k=K).hr_any,
        "validation masked too": of(masks.both, k=K).hr_any,
        "test": tested.recall,
    }


def reciprocal_rank(relevant: Bool[Array, "U K"], count: Int[Array, "U"]) -> Float[Array, ""]:
    """Mean over the users with events of 1 / (position of the first hit), 0 without a hit.

    >>> hits = jnp.array([[False, True, True], [False, False, False], [True, False, False]])
    >>> float(reciprocal_rank(hits, jnp.array([2, 1, 0])))
    0.25
    """
    first = jnp.where(jnp.any(relevant, axis=1), 1 / (1 + jnp.argmax(relevant, axis=1)), 0.0)
    return jnp.sum(jnp.where(count > 0, first, 0)) / jnp.sum(count > 0)


def kept(
    scores: Sequence[float] | np.ndarray,
    checks: Sequence[int],
    *,
    patience: int | None = None,
    ties: bool = False,
) -> int:
    """The epoch whose parameters are kept.

    Args:
        scores: validation figure after epoch 1, 2, ...
        checks: epochs at which it is looked at.
        patience: checks without a new best after which training ends; None: never. `models.stopping` waits for 10;
            RecBole, whose `stopping_step` 10 must be exceeded, for 11.
        ties: a figure as good as the best is a new best (RecBole).

    >>> kept([0.1, 0.3, 0.2, 0.3, 0.9], range(1, 6), patience=2)
    2
    >>> kept([0.1, 0.3, 0.2, 0.3, 0.9], range(1, 6), patience=2, ties=True)
    5
    >>> kept([0.1, 0.3, 0.2, 0.3, 0.9], range(1, 6, 2))
    5
    """
    best, at = -np.inf, 0
    for number, epoch in enumerate(checks):
        score = scores[epoch - 1]
        if score > best or (ties and score == best):
            best, at = score, number
        elif patience is not None and number - at >= patience:
            break
    return checks[at]
