"""Linear solvers as values: the one you pass decides what a solve costs and when its result is trusted.

| solver | matrix | cost | when |
|---|---|---|---|
| `cg` | symmetric, positive semidefinite | a product a step | the default; block Jacobi for factor models |
| `gmres`, `normal_cg` | any | one or two products a step | fixed-point loops, indefinite Hessians |
| `neumann`, `lissa` | positive definite | a product a term | parity with papers; minibatch products |
| `nystrom` | positive semidefinite | `rank` products, parallel | with damping above the spectrum's tail |
| `dense` | any | `n` products, `n^3` | the oracle, and one user's block |
| `block` | symmetric | the block's | influence on one user; block diagonal |
"""

from bilevel.linear.blocks import block
from bilevel.linear.direct import dense, nystrom
from bilevel.linear.krylov import cg, gmres, normal_cg
from bilevel.linear.series import lissa, neumann
from bilevel.linear.solver import Code, LinearResult, LinearSolver
from bilevel.linear.spectrum import Spectrum, spectrum

__all__ = [
    "Code",
    "LinearResult",
    "LinearSolver",
    "cg",
    "gmres",
    "normal_cg",
    "neumann",
    "lissa",
    "nystrom",
    "dense",
    "block",
    "Spectrum",
    "spectrum",
]
