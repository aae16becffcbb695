"""Your own Flax model as a recommender: one function that says how a user and items are scored is enough.

    class Net(nnx.Module):                                          # or a Linen module, see `plug`
        def __init__(self, users, items, *, rngs):
            self.user, self.item = nnx.Embed(users, 16, rngs=rngs), nnx.Embed(items, 16, rngs=rngs)
        def __call__(self, user, item):                                # (B,), (B, N) -> (B, N)
            return jnp.einsum("bd,bnd->bn", self.user(user), self.item(item))

    model = plug(Net)
    fit(model, train, key)       # a victim; in attacks.revadv(model, ...) a surrogate: relaxed fake rows work in it

Training draws clicks and negatives like the other models of this kind (`models.pairs`) and learns by BPR or by
cross-entropy. A model that learns in another way is a `models.recommender.Recommender` of its own functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from jax import lax
from jaxtyping import Array, Float, Int

from models import pairs
from models.recommender import Params, Recommender, counts, flat, given, numbers, one_of

Objective = Literal["bpr", "cross-entropy"]


def plug(
    make: Callable[..., Any],
    *,
    name: str | None = None,
    objective: Objective = "bpr",
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    epochs: int = 100,
    batch: int | None = 2048,
    negatives: int = 1,
) -> Recommender:
    """A recommender from a Flax module that scores items for users.

    Args:
        make: a Flax NNX module class, or a function `(users, items, *, rngs) -> nnx.Module`; or a function
            `(users, items) -> linen.Module`. The module maps user ids `(B,)` and item ids `(B, N)` to scores `(B, N)`.
            `users` counts real and fake users, the fake ones last, so its tables change shape with their number.
        name: what tables call it; None: the name of `make`.
        objective: "bpr" or "cross-entropy" of clicks against sampled items.
        optimizer: any optax transformation; None: Adam of `learning_rate`.
        learning_rate: > 0; of no use beside an `optimizer`.
        l2: gradient `l2 * theta` of all parameters, >= 0.
        epochs: passes over the clicks, >= 1.
        batch: clicks per step; None: all of them.
        negatives: items drawn for each click, >= 1; their losses are averaged.

    Returns:
        A `Recommender`; random streams of the module (dropout) run on the step's key in training. In scores NNX modules
        are in `eval` mode, Linen modules get no random stream.

    Raises:
        TypeError: `make` gives no Flax module, or a Linen module with other collections than "params".
        ValueError: a number outside its range, an unknown objective.

    **Differs from the paper:** not an algorithm of a paper.

    >>> class Bias(nnx.Module):
    ...     def __init__(self, users, items, *, rngs):
    ...         self.item = nnx.Param(jnp.zeros(items))
    ...
    ...     def __call__(self, user, item):
    ...         return self.item[...][item]
    >>> model = plug(Bias, epochs=3)
    >>> model.name, model.init(jax.random.key(0), 3, 5, 0)["item"].shape
    ('Bias', (5,))
    """
    called = name or getattr(make, "__name__", type(make).__name__)
    config = {
        "make": make,
        "objective": objective,
        "l2": l2,
        "epochs": epochs,
        "batch": batch,
        "negatives": negatives,
    }
    config |= {"learning_rate": learning_rate} if optimizer is None else {"optimizer": optimizer}
    counts(called, epochs=epochs, negatives=negatives, **given(batch=batch))
    numbers(called, 0, open_end=True, learning_rate=learning_rate)
    numbers(called, 0, l2=l2)
    one_of(called, "objective", objective, get_args(Objective))
    of_nnx = inspect.isclass(make) and issubclass(make, nnx.Module)
    module = _Nnx(make) if of_nnx or "rngs" in inspect.signature(make).parameters else _Linen(make)
    judged = partial(loss, module=module, objective=objective, l2=l2, negatives=negatives)

    return Recommender(
        name=called,
        config=config,
        prepare=partial(pairs.prepare, name=called),
        init=lambda key, users, items, fakes: module.init(key, users + fakes, items),
        loss=judged,
        embed=embed,
        score=partial(score, module=module),
        trainer=pairs.trainer(called, judged, optimizer or optax.adam(learning_rate), epochs, batch),
    )


# ------------------------------------------------------------------------------------------------ the two kinds of Flax


class _Nnx:
    """An NNX module, made anew in every trace and given its parameters."""

    def __init__(self, make: Callable[..., Any]):
        self.make = make

    def _module(self, users: int, items: int, rngs: nnx.Rngs) -> nnx.Module:
        made = self.make(users, items, rngs=rngs)
        if not isinstance(made, nnx.Module):
            raise TypeError(
                f"plug: make(users, items, rngs=...) gave a {type(made).__name__}; expected an nnx.Module"
            )
        return made

    def init(self, key: Array, users: int, items: int) -> Params:
        return flat(self._module(users, items, nnx.Rngs(key)))

    def __call__(
        self, sizes: tuple[int, int], params: Params, user: Array, item: Array, key: Array | None
    ) -> Array:
        module = self._module(*sizes, nnx.Rngs(jax.random.key(0) if key is None else key))
        state = nnx.state(module, nnx.Param)
        nnx.replace_by_pure_dict(state, params)
        nnx.update(module, state)
        if key is None:
            module.eval()
        else:
            module.train()
        return module(user, item)  # pyright: ignore[reportCallIssue]


class _Linen:
    """A Linen module."""

    def __init__(self, make: Callable[..., Any]):
        self.make = make

    def _module(self, users: int, items: int) -> linen.Module:
        made = self.make(users, items)
        if not isinstance(made, linen.Module):
            raise TypeError(
                f"plug: make(users, items) gave a {type(made).__name__}; expected a linen.Module (a function that "
                "makes an NNX module needs an argument rngs)"
            )
        return made

    def init(self, key: Array, users: int, items: int) -> Params:
        one = jnp.zeros(1, jnp.int32)
        made = dict(self._module(users, items).init(key, one, one[:, None]))
        params = made.pop("params")
        if made:
            raise TypeError(
                f"plug: the Linen module has the collections {', '.join(made)}; only params can be trained"
            )
        return params

    def __call__(
        self, sizes: tuple[int, int], params: Params, user: Array, item: Array, key: Array | None
    ) -> Array:
        streams = None if key is None else {"dropout": key}
        found = self._module(*sizes).apply({"params": params}, user, item, rngs=streams)
        return jnp.asarray(found)


# ------------------------------------------------------------------------------------------------ pure functions


def loss(
    params: Params,
    x: Float[Array, "F I"],
    data: pairs.Data,
    ctx: Any,
    *,
    module: _Nnx | _Linen,
    objective: Objective,
    l2: float,
    negatives: int,
) -> Float[Array, ""]:
    """The objective over the pairs of the step."""
    found = pairs.draw(data, x, ctx, negatives)
    items = jnp.concatenate([found.item[:, None], found.negative], 1)
    sizes = (data.lists.start.shape[0] - 1 + x.shape[0], x.shape[1])
    s = module(sizes, params, found.user, items, jax.random.fold_in(ctx.key, 2))  # 0, 1: pairs.draw
    if objective == "bpr":
        lost = jnp.mean(jax.nn.softplus(s[:, 1:] - s[:, :1]), 1)
    else:
        lost = (jax.nn.softplus(-s[:, 0]) + jnp.sum(jax.nn.softplus(s[:, 1:]), 1)) / (1 + negatives)
    penalty = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
    return data.sound * (pairs.mean(found.weight, lost) + l2 / 2 * penalty)


def embed(params: Params, x: Float[Array, "F I"], data: pairs.Data) -> Any:
    """The parameters, and two arrays without entries that carry the sizes."""
    users = data.lists.start.shape[0] - 1 + x.shape[0]
    return {
        "params": pairs.embed(params, x, data),
        "users": jnp.zeros((users, 0)),
        "items": jnp.zeros((x.shape[1], 0)),
    }


def score(embedding: Any, users: Int[Array, " B"], *, module: _Nnx | _Linen) -> Float[Array, "B I"]:
    """Scores of every item, one user at a time."""
    sizes = (embedding["users"].shape[0], embedding["items"].shape[0])
    every = jnp.arange(sizes[1], dtype=jnp.int32)[None]
    return lax.map(lambda user: module(sizes, embedding["params"], user[None], every, None)[0], users)
