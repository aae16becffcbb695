"""A differentiable bilevel-optimization engine: pytrees in, pytrees out; it knows no recommender and no Flax."""

from bilevel.inner import Aux, Batch, Ctx, Inner, InnerState, Minibatches, Structure, fixed_point, gradient_descent, minibatches
from bilevel.solve import Cotangents, Solve, Wants
from bilevel.unroll import detached, one_step, truncated, unrolled

__all__ = [
    "Aux",
    "Batch",
    "Cotangents",
    "Ctx",
    "Inner",
    "InnerState",
    "Minibatches",
    "Solve",
    "Structure",
    "Wants",
    "detached",
    "fixed_point",
    "gradient_descent",
    "minibatches",
    "one_step",
    "truncated",
    "unrolled",
]
