"""A differentiable bilevel-optimization engine: pytrees in, pytrees out; it knows no recommender and no Flax.

An inner loop is a value (`gradient_descent`, `fixed_point`), and how it is differentiated is another
(`unrolled`, `truncated`, `implicit`, `one_step`, `detached`): drop-in replacements for each other, with the
same forward numbers.

>>> import bilevel, jax, jax.numpy as jnp, optax
>>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x * data) ** 2), optax.sgd(0.1), steps=50)
>>> solve = bilevel.unrolled(inner)
>>> outer = lambda x: jnp.sum(solve(x, jnp.zeros(3), jnp.arange(3.0), jax.random.key(0)) ** 2)
>>> round(float(jax.grad(outer)(1.0)), 2)
10.0
"""

from bilevel import trees
from bilevel.agreement import Agreement, agreement
from bilevel.choose import Cost, choose, costs
from bilevel.descend import Descend, DescendState, descend, normalize_rows
from bilevel.devices import compiled_memory, device_report, mesh, peak_rss, precision, shard_rows
from bilevel.hypergrad import Diagnosis, Hypergrad, ValueAndHypergrad, Warm, value_and_hypergrad
from bilevel.implicit import Influence, implicit, influence
from bilevel.inner import (
    Aux,
    Batch,
    Ctx,
    Inner,
    InnerState,
    Minibatches,
    Structure,
    fixed_point,
    gradient_descent,
    minibatches,
)
from bilevel.linear import (
    Code,
    LinearResult,
    LinearSolver,
    block,
    cg,
    dense,
    gmres,
    lissa,
    neumann,
    normal_cg,
    nystrom,
    spectrum,
)
from bilevel.loop import run
from bilevel.products import cross_product, diagonal_blocks, gauss_newton_product, hessian_and_cross, hvp
from bilevel.project import Projection, box, chain, l1_ball, set_columns, simplex, threshold, topk
from bilevel.rewire import precompose, with_loss
from bilevel.safe import differentiable
from bilevel.solve import Cotangents, Solve, Wants
from bilevel.stationary import distance_to_stationarity
from bilevel.store import Store
from bilevel.unroll import detached, one_step, truncated, unrolled

__all__ = [
    "Agreement",
    "Aux",
    "Batch",
    "Code",
    "Cost",
    "Cotangents",
    "Ctx",
    "Descend",
    "DescendState",
    "Diagnosis",
    "Hypergrad",
    "Influence",
    "Inner",
    "InnerState",
    "LinearResult",
    "LinearSolver",
    "Minibatches",
    "Projection",
    "Solve",
    "Store",
    "Structure",
    "ValueAndHypergrad",
    "Wants",
    "Warm",
    "agreement",
    "block",
    "box",
    "cg",
    "chain",
    "choose",
    "compiled_memory",
    "costs",
    "cross_product",
    "dense",
    "descend",
    "detached",
    "device_report",
    "diagonal_blocks",
    "differentiable",
    "distance_to_stationarity",
    "fixed_point",
    "gauss_newton_product",
    "gmres",
    "gradient_descent",
    "hessian_and_cross",
    "hvp",
    "implicit",
    "influence",
    "l1_ball",
    "lissa",
    "mesh",
    "minibatches",
    "neumann",
    "normal_cg",
    "normalize_rows",
    "nystrom",
    "one_step",
    "peak_rss",
    "precision",
    "precompose",
    "run",
    "set_columns",
    "shard_rows",
    "simplex",
    "spectrum",
    "threshold",
    "topk",
    "trees",
    "truncated",
    "unrolled",
    "value_and_hypergrad",
    "with_loss",
]
