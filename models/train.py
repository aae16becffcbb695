"""Fit any recommender, fine-tune it from given parameters, and read its recommendations.

A fitted recommender is a pytree, so `fit` runs under `jit` and under `vmap` over keys, fake rows or poisoned data:

    fitted = jax.vmap(lambda key: fit(model, train, key))(keys)

Training is the forward pass of the model's own `bilevel.Inner`; whoever wants its derivative passes that to an
estimator instead (`bilevel.unrolled(model.trainer(...))`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

import bilevel
from models.data import sample
from models.data.interactions import Interactions
from models.data.sample import Lists
from models.recommender import Data, Params, Recommender


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained recommender; a pytree. Made by `fit`.

    Attributes:
        model: the recommender, static.
        params: its parameters, to warm-start another fit from.
        data: what it read of the training set.
        x: (F, I) fake rows it was trained with, F may be 0.
        embedding: what `scores` reads.
    """

    model: Recommender = field(metadata={"static": True})
    params: Params
    data: Data
    x: Float[Array, "F I"]
    embedding: Any

    def scores(self, users: Int[Array, "B"]) -> Float[Array, "B I"]:
        """Scores of the real users `users` (B,) for every item, nothing masked."""
        return self.model.score(self.embedding, users)


class Trains(Protocol):
    """What knows how to train a recommender: a defense of the training, such as `defenses.apt.apt` makes."""

    def fit(self, data: Interactions, key: Key[Array, ""], /) -> Fitted: ...


def fit(
    model: Recommender | Trains,
    train: Interactions,
    key: Key[Array, ""],
    *,
    fakes_rows: Float[Array, "F I"] | None = None,
    params0: Params | None = None,
) -> Fitted:
    """Train `model` on `train`, and on fake users beside it if `fakes_rows` are given.

    One compilation per model value and set of sizes (users, items, capacity, fakes).

    Args:
        model: made by a factory (`wrmf`, `als`, ...), hardened by `adversarial` or not; or what trains one itself, such
            as `defenses.apt.apt` makes, which takes neither fake rows nor `params0`.
        train: the real interactions, or poisoned ones from `models.data.inject`.
        key: draws the initial parameters, the order of batches, and nothing else.
        fakes_rows: (F, I) rows in [0, 1] of fake users kept apart from `train`, relaxed or hard. Every cell costs;
            hard ones are the same users, and cost their clicks only, if `models.data.inject` puts them into `train`.
        params0: start from these (fine-tuning); None: from the model's own initialization. `grow` fits
            parameters trained with fewer users.

    Raises:
        TypeError: `model` is nothing that trains, `train` is no `Interactions`, `key` is no key.
        ValueError: fake rows or `params0` whose shapes do not belong to this model and data, or that it does not take.

    **Differs from the paper:** not an algorithm of a paper.

    >>> from models.wrmf import wrmf
    >>> train = Interactions.from_arrays([0, 0, 1, 2], [0, 1, 1, 2])
    >>> fitted = fit(wrmf(factors=2, epochs=50, learning_rate=0.1), train, jax.random.key(0))
    >>> fitted.scores(jnp.array([0, 2])).shape
    (2, 3)
    >>> top_k(fitted, jnp.array([1]), 2, exclude=train).shape
    (1, 2)
    """
    x = _rows(train, fakes_rows)
    _check_key(key)
    if not isinstance(model, Recommender):
        return _by_itself(model, train, key, fakes_rows, params0)
    if params0 is not None:
        _check_params(model, params0, train.users, train.items, x.shape[0])
    return _fit(model, train, key, x, params0)


def _by_itself(model: Trains, train: Interactions, key: Array, fakes_rows: Any, params0: Any) -> Fitted:
    if not callable(getattr(model, "fit", None)):
        raise TypeError(
            f"fit: model is {type(model).__name__}; expected a recommender such as models.wrmf.wrmf(), or a defense "
            "of its training; the order is fit(model, train, key)"
        )
    given = {"fakes_rows": fakes_rows, "params0": params0}
    unused = [name for name, value in given.items() if value is not None]
    if unused:
        raise ValueError(
            f"fit: {', '.join(unused)} given, but {type(model).__name__} trains by itself and takes the data only; "
            "put fake users into them by models.data.inject"
        )
    return model.fit(train, key)


def _check_key(key: Any) -> None:
    """One key, typed or as `jax.random.PRNGKey` makes them."""
    dtype, shape = getattr(key, "dtype", None), jnp.shape(key)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if typed and shape == ():
        return
    raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if dtype != raw.dtype or shape != raw.shape:
        raise TypeError(
            f"fit: key is {type(key).__name__} of shape {shape}; expected one key, as from jax.random.key(0) "
            "(jax.vmap for several)"
        )


@partial(jax.jit, static_argnames="model")
def _fit(model: Recommender, train: Interactions, key: Array, x: Array, params0: Params | None) -> Fitted:
    start = _begin(model, train, key, x, params0)
    params = bilevel.detached(start.inner)(x, start.params, start.data, start.key)
    return Fitted(model, params, start.data, x, model.embed(params, x, start.data))


class Start(NamedTuple):
    """What a training begins with: the loop, parameters, fake rows, what the loss reads, and the loop's key."""

    inner: bilevel.Inner
    params: Params
    x: Float[Array, "F I"]
    data: Data
    key: Key[Array, ""]


def begin(
    model: Recommender,
    train: Interactions,
    key: Key[Array, ""],
    fakes_rows: Float[Array, "F I"] | None = None,
    params0: Params | None = None,
) -> Start:
    """What `fit` starts from, for whoever trains in pieces; arguments and errors as there.

    >>> from models.wrmf import wrmf
    >>> begin(wrmf(epochs=7), Interactions.from_arrays([0, 1], [1, 0]), jax.random.key(0)).inner
    gradient_descent(steps=7)
    """
    x = _rows(train, fakes_rows)
    if params0 is not None:
        _check_params(model, params0, train.users, train.items, x.shape[0])
    inner = model.trainer(train.users, train.items, x.shape[0], train.capacity)
    rest = jax.jit(lambda train, key, x, params0: _begin(model, train, key, x, params0)[1:])
    return Start(inner, *rest(train, key, x, params0))


def _begin(model: Recommender, train: Interactions, key: Array, x: Array, params0: Params | None) -> Start:
    init_key, train_key = jax.random.split(key)
    sizes = (train.users, train.items, x.shape[0])
    params = model.init(init_key, *sizes) if params0 is None else params0
    return Start(model.trainer(*sizes, train.capacity), params, x, model.prepare(train), train_key)


def _rows(train: Interactions, fakes_rows: Float[Array, "F I"] | None) -> Float[Array, "F I"]:
    if not isinstance(train, Interactions):
        raise TypeError(
            f"train is {type(train).__name__}, expected models.data.Interactions; "
            "the order is fit(model, train, key)"
        )
    x = jnp.zeros((0, train.items)) if fakes_rows is None else jnp.asarray(fakes_rows)
    if x.ndim != 2 or x.shape[1] != train.items or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"fit: fakes_rows has shape {x.shape} and dtype {x.dtype}; expected floating (F, {train.items}), "
            "one row per fake user and one column per item"
        )
    return x


def grow(
    model: Recommender, params: Params, key: Key[Array, ""], *, users: int, items: int, fakes: int = 0
) -> Params:
    """`params` with rows (and columns) for new users: the trained numbers where there are any, fresh ones elsewhere.

    For fine-tuning on data with injected users, which come after the real ones.

    >>> from models.wrmf import wrmf
    >>> model = wrmf(factors=2)
    >>> old = model.init(jax.random.key(0), 3, 4, 0)
    >>> new = grow(model, old, jax.random.key(1), users=5, items=4)
    >>> new["user"].shape, bool(jnp.all(new["user"][:3] == old["user"]))
    ((5, 2), True)
    """

    def place(path, old, fresh):
        if old.ndim != fresh.ndim or any(
            have > want for have, want in zip(old.shape, fresh.shape, strict=True)
        ):
            raise ValueError(
                f"grow: params{jax.tree_util.keystr(path)} has shape {old.shape}, the model's {fresh.shape}: "
                "new users come after the old ones, so sizes can only grow"
            )
        return fresh.at[tuple(slice(0, size) for size in old.shape)].set(old)

    return jax.tree_util.tree_map_with_path(place, params, model.init(key, users, items, fakes))


def top_k(
    fitted: Fitted, users: Int[Array, "B"], k: int, *, exclude: Interactions | None = None, block: int = 1024
) -> Int[Array, "B K"]:
    """The `k` best items of each user, best first, equal scores by ascending item id; memory is `block` x items.

    Args:
        fitted: from `fit`.
        users: (B,) ids of real users.
        k: K, 1 to the number of items.
        exclude: interactions whose items are never recommended to their user (usually the training set). If fewer
            than k items are left, the excluded ones follow.
        block: users scored at a time.

    Raises:
        ValueError: `k` outside 1..items.
    """
    items = fitted.x.shape[-1]
    if not 1 <= k <= items:
        raise ValueError(f"top_k: k={k}; expected 1..{items} (there are {items} items)")
    users = jnp.asarray(users, jnp.int32)

    def best(users):
        scores = fitted.scores(users)
        if exclude is not None:
            scores = jnp.where(seen(exclude, users), -jnp.inf, scores)
        return lax.top_k(scores, k)[1]

    count = users.shape[0]
    if count <= block:
        return best(users)
    blocks = jnp.pad(users, (0, -count % block)).reshape(-1, block)
    return lax.map(best, blocks).reshape(-1, k)[:count]


def seen(train: Interactions, users: Int[Array, "B"]) -> Bool[Array, "B I"]:
    """Which items each of `users` has in `train`; work follows the longest of their histories.

    >>> seen(Interactions.from_arrays([0, 1, 1], [2, 0, 1]), jnp.array([1])).tolist()
    [[True, True, False]]
    """
    return sample.marked(Lists(train.item, train.row_pointers()), users, train.items)


def _check_params(model: Recommender, params0: Params, users: int, items: int, fakes: int) -> None:
    expected = jax.eval_shape(lambda key: model.init(key, users, items, fakes), jax.random.key(0))
    have, want = (jax.tree.map(jnp.shape, tree) for tree in (params0, expected))
    if have != want:
        raise ValueError(
            f"fit: params0 has shapes {have}; {model.name} with {users} + {fakes} users and {items} items has {want}. "
            "models.train.grow adds rows for new users"
        )
