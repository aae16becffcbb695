"""Adversarial training: the recommender is trained at the worst small change of its embeddings as well.

He, He, Du, Chua, *Adversarial personalized ranking for recommendation*, SIGIR 2018 (APR), eqs 6-9; the baseline AT
of Wu et al. (APT), SIGIR 2021, eq. 2:

    Delta = epsilon g / |g|,  g = the gradient of L in an embedding, row by row
    minimize  L(theta) + weight L(theta + Delta),  Delta held constant

A step follows the field `F = grad L(theta) + weight grad L(theta + Delta)`, which is the gradient of no function:
whoever differentiates through the training needs its own adjoint. With `u = H(theta + Delta) v` and `D` the (symmetric)
derivative of Delta in g,

    d<F, v> = (H(theta), M(theta)) (v + weight D u) + weight (H, M)(theta + Delta) v

for the parameters (H, second derivatives) and for fake rows (M, mixed derivatives): two products, and no new kind.
`D = epsilon (1 - g g' / |g|^2) / |g|` grows without bound where the loss is nearly at rest: there the derivative is
right and no use to an attack, and Delta is held by default, `D = 0`.

What an embedding is, where no parameter is called one: an autoencoder's first kernel has a row for each item (ItemAE
and AutoRec by items: for each user), which is what that one click adds to the code, and its last kernel a column for
each, which is what the code is multiplied with. These are its vectors; the layers between them are the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

import bilevel
from models.recommender import Params, Recommender, numbers, one_of

Derivative = Literal["held", "exact"]
EMBEDDINGS = ("user", "item", "fake")
TABLES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("wrmf", "gmf", "cml", "lightgcn", "ngcf", "pmf", "bpr", "mf"), EMBEDDINGS),
    "neumf": (*EMBEDDINGS, "tower_user", "tower_item", "tower_fake"),
    "ncr": ("user", "item"),
    "rcf": ("user", "item", "type", "value"),
    "multvae": ("inward/kernel", "outward/kernel.T"),
    "autorec": ("layers/0/kernel", "layers/1/kernel.T"),
}
"""The tables of vectors of a recommender; of ItemAE and GRU4Rec they depend on its settings, see `tables_of`."""


def adversarial(
    model: Recommender,
    *,
    epsilon: float = 0.03,
    weight: float = 1.0,
    start: int = 0,
    tables: Sequence[str] | None = None,
    derivative: Derivative = "held",
) -> Recommender:
    """A recommender hardened by adversarial training, to be fitted, attacked and judged like any other.

    Args:
        model: any recommender trained by gradient descent with embeddings among its parameters.
        epsilon: length of the change of a vector, >= 0. APT's 0.03 is about 5% of its parameters' size; APR has 0.5.
        weight: of the loss at the changed embeddings, >= 0.
        start: epochs of plain training before, >= 0. Vectors that begin near 0 (GMF's are 0.08 long) may never leave it
            under changes of their own length: on MovieLens-100K GMF learns nothing at 0.03 from the first epoch.
        tables: the parameters that are changed, each by its own name, that of a parameter above it, or its whole path
            (`"layers/0/kernel"`). Its rows are the vectors, or its columns, where `.T` follows. None: all tables of
            vectors that the recommender has, see `tables_of`; of a recommender that is not ours those called `user`,
            `item` and `fake`.
        derivative: what an attack sees that differentiates through the training: "held": Delta as a constant, as each
            step takes it; "exact": its answer to the rows and the parameters too, by the adjoint in this file's head.

    Returns:
        `model` with another loss; initialization, optimizer, batches and scores are its own.

    Raises:
        ValueError: a number outside its range; when trained, a table that is no parameter, or a model without a
            gradient-descent loop (ALS).

    Reference: He et al., SIGIR 2018; Wu et al., SIGIR 2021, eq. 2.

    **Differs from the paper:** APR takes `g` without the L2 term and begins after BPR has converged (give `start`);
    APT's table names neither a weight nor a start: 1, and from the first epoch. Both have matrix factorization; which
    parameters of another recommender are its embeddings is our reading. `bilevel.implicit` refuses the loop: the
    field has no symmetric derivative, and no root where Delta does not vanish. "held" is the derivative of no training:
    on MovieLens-100K (WRMF, 28 fake users, truncated at 20 steps, one seed) RevAdv climbs by it, and with "exact" its
    gradient's norm goes from 12 to 149 and the fake users stay where they were.

    **What it does not stop:** small changes of parameters are not what injected users make; in APT's tables it lowers
    the target hit rate little. An attacker who knows of it uses `adversarial(surrogate)` as surrogate.

    >>> from models.wrmf import wrmf
    >>> adversarial(wrmf(factors=4), epsilon=0.1).name
    'adversarial-wrmf'
    """
    numbers("adversarial", 0, epsilon=epsilon, weight=weight)
    one_of("adversarial", "derivative", derivative, get_args(Derivative))
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise ValueError(f"adversarial: start={start!r}; expected a number of epochs, an integer >= 0")
    found = tables_of(model) if tables is None else tuple(tables)
    hard = _Hard(model, epsilon, weight, start, found, derivative == "exact")
    return dataclasses.replace(
        model,
        name=f"adversarial-{model.name}",
        config={
            **model.config,
            "epsilon": epsilon,
            "adversarial_weight": weight,
            "start": start,
            "tables": found,
            "derivative": derivative,
        },
        loss=hard.loss_from(model.loss, 0),
        trainer=hard.trainer,
    )


def tables_of(model: Recommender) -> tuple[str, ...] | None:
    """The tables of vectors of one of our recommenders, itself or behind another defense; None: not one of ours.

    >>> from models.itemae import itemae
    >>> tables_of(itemae(hidden=(8, 4, 8)))
    ('layers/0/kernel', 'layers/3/kernel.T')
    """
    name = model.name.rpartition("-")[2]
    if name == "itemae":
        return "layers/0/kernel", f"layers/{len(model.config['hidden'])}/kernel.T"
    if name == "gru4rec":
        return ("out",) if model.config["tied"] else ("input", "out")
    return TABLES.get(name)


@dataclasses.dataclass(frozen=True, eq=False)
class _Hard:
    """The hardened loss of a recommender and the loop that follows it."""

    model: Recommender
    epsilon: float
    weight: float
    start: int
    tables: tuple[str, ...] | None
    exact: bool

    def change(self, slope: Params) -> Params:
        """Delta of a gradient."""
        return worst(slope, self.epsilon, self.tables)

    def much(self, ctx, first: int):
        """The weight of the second part at a step."""
        return self.weight if first == 0 else jnp.where(ctx.step < first, 0.0, self.weight)

    def loss_from(self, plain, first: int):
        """The loss whose second part begins at step `first`; its gradient holds Delta, an exact derivative does not."""

        def parts(params, x, data, ctx, delta):
            moved = jax.tree.map(jnp.add, params, delta)
            return plain(params, x, data, ctx) + self.much(ctx, first) * plain(moved, x, data, ctx)

        def delta(params, x, data, ctx):
            found = self.change(jax.grad(plain)(params, x, data, ctx))
            return found if self.exact else lax.stop_gradient(found)

        @jax.custom_jvp
        def loss(params, x, data, ctx):
            return parts(params, x, data, ctx, delta(params, x, data, ctx))

        @loss.defjvp
        def _(at, along):
            held = delta(*at)
            return jax.jvp(lambda params, x, data: parts(params, x, data, at[3], held), at[:3], along[:3])

        return loss

    def product(self, inner: bilevel.Inner, first: int):
        """The adjoint of the field in the head of this file, for parameters and fake rows."""
        loss = inner.loss
        assert loss is not None  # checked by the trainer
        twice = inner.structure.product or (
            lambda params, x, data, ctx, v: bilevel.hessian_and_cross(loss, params, x, v, data, ctx)
        )

        def product(params, x, data, ctx, v):
            slope = jax.grad(loss)(params, x, data, ctx)
            there = twice(jax.tree.map(jnp.add, params, self.change(slope)), x, data, ctx, v)
            plus = lambda a, b: jax.tree.map(lambda one, more: one + self.much(ctx, first) * more, a, b)
            if self.exact:
                v = plus(v, jax.jvp(self.change, (slope,), (there[0],))[1])
            return plus(twice(params, x, data, ctx, v), there)

        return product

    def trainer(self, users: int, items: int, fakes: int, events: int = 0) -> bilevel.Inner:
        """The model's loop on the hardened loss."""
        inner = self.model.trainer(users, items, fakes, events)
        first = self.start * inner.steps_per_epoch
        if inner.loss is None:
            raise ValueError(f"adversarial: {self.model.name} is not trained by gradient descent")
        structure = bilevel.Structure(product=self.product(inner, first), gradient=False)
        return bilevel.with_loss(inner, self.loss_from(inner.loss, first), structure)


def worst(slope: Params, epsilon: float, tables: Sequence[str] | None) -> Params:
    """The change of the vectors in some tables that raises the loss most, to first order: length `epsilon` each, or 0.

    Args:
        slope: the gradient of the loss.
        epsilon, tables: as in `adversarial`; None: those of `EMBEDDINGS` that there are.

    Raises:
        ValueError: a table that is no parameter; no table at all.

    >>> worst({"user": jnp.array([[3.0, 4.0], [0.0, 0.0]])}, 0.5, ["user"])["user"].tolist()
    [[0.30..., 0.40...], [0.0, 0.0]]
    """
    found = []

    def one(path, g):
        keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        for table in EMBEDDINGS if tables is None else tables:
            name = table.removesuffix(".T")
            if name in keys or name == "/".join(keys):
                found.append(table)
                return epsilon * _unit(g, -1 if name == table else 0)
        return jnp.zeros_like(g)

    change = jax.tree_util.tree_map_with_path(one, slope)
    missing = [] if tables is None else [table for table in tables if table not in found]
    if missing or not found:
        known = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(slope)]
        said = f"no parameter is called {', '.join(map(repr, missing or EMBEDDINGS))}"
        raise ValueError(f"adversarial: {said}; give tables among {', '.join(known)}")
    return change


def _unit(g: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    square = jnp.sum(g**2, axis, keepdims=True)
    return jnp.where(square > 0, g * lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
