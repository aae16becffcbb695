"""Fast influence analysis: by how much a user's scores would drop without each of its interactions.

Koh, Liang, *Understanding black-box predictions via influence functions*, ICML 2017; Cheng, Shen, Huang, *Incorporating
interpretability into latent factor models via fast influence analysis*, KDD 2019; Tran, Ghazimatin, Saha Roy, SIGIR
2021 (ACCENT). With H the Hessian of the training loss and l_z the part of interaction z in it,

    theta moves by H^-1 grad l_z,        drop[i, z] = s_i - s_i(without z) = -grad s_i . H^-1 grad l_z   (+ direct)

and "direct" is what scores that read the data change at once. Variants differ in which parameters may move:

    fast   the embeddings of the user and of the item, from the ratings that share one of them (ACCENT's NCF)
    user   the embeddings of the user; RCF's score is computed again, the click gone from the history (ACCENT's RCF)
    full   all parameters
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from models.data.interactions import Interactions
from models.explain import blocks, whole
from models.recommender import one_of
from models.train import Fitted, seen

Variant = Literal["fast", "user", "full"]
VARIANTS = get_args(Variant)
DAMPING = {"fast": 1e-6, "user": 1e-2}
"""Added to the Hessian of a mean over rows: ACCENT's for NCF and RCF; for "full" see `models.explain.whole`."""


class Influences(NamedTuple):
    """The R best items of B users and what each of a user's M interactions does to their scores.

    Attributes:
        user: (B,) ids.
        item: (B, R) the best items that the user has not seen, best first.
        scores: (B, R); -inf where a user has seen all others.
        history: (B, M) the user's items, ascending, padded with -1.
        drop: (B, R, M) predicted drop of each score without each interaction; 0 for padding.
        code: (B,) the worst `bilevel.Code` of the linear solves of each user.
    """

    user: Int[np.ndarray, " B"]
    item: Int[np.ndarray, "B R"]
    scores: Float[np.ndarray, "B R"]
    history: Int[np.ndarray, "B M"]
    drop: Float[np.ndarray, "B R M"]
    code: Int[np.ndarray, " B"]


def influences(
    fitted: Fitted,
    train: Interactions,
    users: Int[Array, " B"] | np.ndarray | list[int],
    ranks: int,
    *,
    variant: Variant | None = None,
    damping: float | None = None,
    key: Key[Array, ""] | None = None,
) -> Influences:
    """Influence of every interaction of each user on the scores of its best items.

    All items of a user share its Hessian, which is formed or linearized once.

    Args:
        fitted: from `models.train.fit`.
        train: what it was trained on.
        users: (B,) ids.
        ranks: R, how many of the best unseen items.
        variant: which parameters move, see above; None: ACCENT's for NCF of ratings and for RCF, else "user" where a
            user has embeddings of its own, else "full".
        damping: added to the Hessian, >= 0; None: see `DAMPING`, and for "full" twice the negative curvature that is
            seen and a little of the largest eigenvalue, since a fixed number does not suit losses of all sizes.
        key: of the negatives of sampled losses; None: a fixed one.

    Raises:
        ValueError: an unknown variant, or one that the recommender does not have; users or ranks out of range; all
            parameters of a recommender that `models.explain.whole.check` refuses.

    Reference: Tran, Ghazimatin, Saha Roy, SIGIR 2021, section 3, and released code. **Differs from the paper:** "user"
    weighs a penalty of all parameters as training does, "fast" as ACCENT's code, which counts it once for each related
    rating (there are fewer than in the data, so its Hessian is too flat). Systems are solved directly instead of by CG
    where they are small. The negatives of a click stay what they were when another click is removed. Of RCF the code
    pairs each click with one fixed disliked item; here an item not clicked, drawn once.

    >>> from models.train import fit
    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 1, 2, 3])
    >>> fitted = fit(wrmf(factors=2, epochs=30, learning_rate=0.1), train, jax.random.key(0))
    >>> found = influences(fitted, train, [0], 2)
    >>> found.history.tolist(), found.drop.shape
    ([[0, 1]], (1, 2, 2))
    """
    chosen = variant_of(fitted, variant)
    damping = DAMPING.get(chosen) if damping is None else damping
    check_damping(damping)
    who = _checked(fitted, train, users, ranks)
    key = jax.random.key(0) if key is None else key
    degrees = np.asarray(train.degrees())
    if chosen == "full" and degrees[who].any():
        whole.check(fitted, train, key)
    at_item = int(np.asarray(train.popularity()).max()) if chosen == "fast" else 0
    direct = chosen == "full" and not reads_only_params(fitted)
    width = max(1, int(degrees[who].max(initial=0)))
    made: list[Any] = [None] * len(who)
    # RCF's work grows with the square of the padded length; elsewhere another compilation costs more than padding.
    sizes = [bucket(int(n), width) if fitted.model.name == "rcf" else width for n in degrees[who]]
    for size in sorted(set(sizes)):
        rows = [n for n, mine in enumerate(sizes) if mine == size]
        found = _influences(
            fitted,
            train,
            jnp.asarray(who[rows], jnp.int32),
            key,
            ranks=ranks,
            size=size,
            variant=chosen,
            damping=None if damping is None else float(damping),
            at_item=at_item,
            direct=direct,
        )
        for n, row in zip(rows, zip(*map(np.asarray, found), strict=True), strict=True):
            made[n] = row
    item, scores, history, drop, code = (list(column) for column in zip(*made, strict=True))
    pad = lambda rows, value: np.stack(
        [np.pad(r, [(0, 0)] * (r.ndim - 1) + [(0, width - r.shape[-1])], constant_values=value) for r in rows]
    )
    return Influences(who, np.stack(item), np.stack(scores), pad(history, -1), pad(drop, 0), np.array(code))


def check_damping(damping: Any) -> None:
    """Refuse what is no damping.

    Raises:
        ValueError: neither None nor a finite number of at least 0.
    """
    number = isinstance(damping, int | float) and not isinstance(damping, bool)
    if damping is not None and not (number and 0 <= damping < float("inf")):
        raise ValueError(f"influences: damping={damping!r}; expected a number of at least 0, or None")


def variant_of(fitted: Fitted, variant: Variant | None) -> Variant:
    """The variant to use, or the recommender's own where None.

    Raises:
        ValueError: an unknown one, or one that the recommender does not have.
    """
    model, params = fitted.model, fitted.params
    embedded = model.name == "rcf" or ({"user", "item"} <= set(params) and reads_only_params(fitted))
    rated = embedded and hasattr(fitted.data, "rating")
    if model.config.get("summed_penalty"):
        raise ValueError(
            f"influences: {model.name} with summed_penalty=True has a loss that depends on the size of its batches; "
            "train it with summed_penalty=False"
        )
    if not jax.tree.leaves(params):
        raise ValueError(f"influences: {model.name} learns no parameters, so no interaction moves any")
    if variant is None:
        return "fast" if rated else "user" if embedded else "full"
    one_of("influences", "variant", variant, VARIANTS)
    if variant == "fast" and not rated:
        raise ValueError(
            f"influences: variant='fast' needs ratings, a user and an item vector in a score; {model.name} learns "
            "otherwise, use 'user' or 'full'"
        )
    if variant == "user" and not embedded:
        raise ValueError(
            f"influences: variant='user', but a score of {model.name} rests on more than its user's own parameters; "
            "use 'full'"
        )
    return variant


def reads_only_params(fitted: Fitted) -> bool:
    """Whether what scores read is the parameters and nothing else (host only): no history, graph or half step."""
    mine = jax.tree.map(
        lambda leaf: 2 * leaf, fitted.params
    )  # a half step has those it ended at for a fixed point
    read = fitted.model.embed(mine, fitted.x, fitted.data)
    same = lambda a, b: np.shape(a) == np.shape(b) and np.array_equal(a, b, equal_nan=True)
    return jax.tree.structure(mine) == jax.tree.structure(read) and all(
        same(a, b) for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(read), strict=True)
    )


def bucket(degree: int, width: int) -> int:
    """Interactions that a history is padded to: few different sizes, so few compilations, and not much waste.

    >>> [bucket(n, 300) for n in (0, 9, 33, 290)]
    [32, 32, 64, 300]
    """
    return min(max(32, 1 << max(degree - 1, 0).bit_length()), width)


def _checked(fitted: Fitted, train: Interactions, users: Any, ranks: int) -> np.ndarray:
    if train.track == "sequence":
        raise ValueError(
            "influences: the data are sequences (track 'sequence'); give each click once, without order"
        )
    who = np.asarray(users)
    if who.size == 0:
        raise ValueError("influences: users is empty; give at least one")
    if who.ndim != 1 or not np.issubdtype(who.dtype, np.integer) or np.any((who < 0) | (who >= train.users)):
        raise ValueError(f"influences: users={users!r}; expected a list of ids in 0..{train.users - 1}")
    if isinstance(ranks, bool) or not isinstance(ranks, int) or not 1 <= ranks <= train.items:
        raise ValueError(f"influences: ranks={ranks!r}; expected an integer in 1..{train.items}")
    if fitted.x.shape[0]:
        raise ValueError(
            f"influences: trained with {fitted.x.shape[0]} fake rows apart from the data; inject hard profiles"
        )
    return who.astype(np.int32)


@partial(jax.jit, static_argnames=("ranks", "size", "variant", "damping", "at_item", "direct"))
def _influences(
    fitted: Fitted,
    train: Interactions,
    users: Int[Array, " B"],
    key: Array,
    *,
    ranks: int,
    size: int,
    variant: str,
    damping: float | None,
    at_item: int,
    direct: bool,
) -> tuple[Array, ...]:
    model = fitted.model
    solver = whole.solver_of(fitted, train, key, damping) if variant == "full" else None

    def one(user: Array) -> tuple[Array, ...]:
        own = blocks.own(train, user, size)
        raw = fitted.scores(user[None])[0]
        scores, item = lax.top_k(jnp.where(seen(train, user[None])[0], -jnp.inf, raw), ranks)
        args = (fitted, train, user, item.astype(jnp.int32), own)
        if solver is not None:
            drop, code = whole.drops(*args, solver, key, direct=direct)
        else:
            assert damping is not None  # few parameters have a number by default
            if variant == "fast":
                drop, code = blocks.of_pairs(*args, damping, at_item)
            elif model.name == "rcf":
                drop, code = blocks.of_rcf(*args, damping, key)
            else:
                drop, code = blocks.of_user(*args, damping, key)
        history = jnp.where(own.real, own.item, -1)
        return item, scores, history, jnp.where(own.real, drop, 0), jnp.max(code)

    return lax.map(one, users)
