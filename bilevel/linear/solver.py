"""A linear solver as a value, and the one door every solve goes through.

A method (conjugate gradients, a series, ...) proposes a solution of `(A + damping I) w = b` and reports the
curvature it saw. The door normalizes `b`, checks the *true* residual with one more product, decides the
result code, and gives the solution its derivative by the implicit function theorem
(`lax.custom_linear_solve`), so that gradients of gradients work with every method. Solvers and result codes
as values follow lineax and optimistix (Rader, Lyons, Kidger, 2023, 2024).
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bilevel import trees
from bilevel.linear.spectrum import scale


class Code(enum.IntEnum):
    """What became of a solve; everything but `OK` says that the number is not to be believed as it is."""

    OK = 0
    NOT_CONVERGED = 1
    INDEFINITE = 2
    SINGULAR = 3
    DIVERGED = 4
    NOT_STATIONARY = 5
    NON_FINITE = 6

    @property
    def advice(self) -> str:
        """What to do about it, one sentence."""
        return _ADVICE[self]


_ADVICE = {
    Code.OK: "Nothing: the residual was verified.",
    Code.NOT_CONVERGED: "Raise max_steps or terms, loosen rtol, precondition (block_jacobi) or add damping.",
    Code.INDEFINITE: "Negative curvature: train longer, add damping above it, or use a Gauss-Newton product.",
    Code.SINGULAR: "The matrix cannot reach all of the right-hand side: add damping or regularize the loss.",
    Code.DIVERGED: "The series grows: lower step, or raise scale above half the top eigenvalue.",
    Code.NOT_STATIONARY: "The inner loop has not converged: train longer, or use unrolled or truncated.",
    Code.NON_FINITE: "NaN or Inf in the matrix or the right-hand side: look into the inner and the outer loss.",
}


class LinearResult(NamedTuple):
    """A verified solution of `A w = b` (damping included in `A`).

    Attributes:
      value: `w`, a pytree like `b`.
      residual: `|A w - b| / |b|`, recomputed from `w`.
      iterations: what the method counts: steps, terms, columns.
      negative_curvature: the smallest Rayleigh quotient of `A` seen, an upper bound of its smallest
        eigenvalue (symmetric `A` only, else NaN); negative: `A` is indefinite for sure
        (`nystrom`: `A` before damping, which its sketch needs to be semidefinite).
      code: a `Code` as int32.
    """

    value: Any
    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    negative_curvature: Float[Array, ""]
    code: Int[Array, ""]


class System(NamedTuple):
    """What a method is given: `|b| = 1` or 0, `start` in the same units or None, and `image = A b`."""

    matvec: Callable[[Any], Any]
    b: Any
    image: Any
    start: Any
    blocks: Any
    key: Any
    sampled: Callable[[Any, Any], Any] | None
    symmetric: bool
    flat: Any = 0.0


class Proposal(NamedTuple):
    """What a method hands back: Rayleigh quotients it saw, and the code to give if the residual is not met.

    `rest` is `b - A value`, if the method has computed it with a product of its own.
    """

    value: Any
    iterations: Any
    smallest: Any = jnp.nan
    largest: Any = jnp.nan
    doubt: Any = Code.NOT_CONVERGED
    rest: Any = None


Method = Callable[[System], Proposal]


@dataclass(frozen=True, eq=False, repr=False)
class LinearSolver:
    """A way to solve `A w = b` for pytrees; made by `cg`, `gmres`, `neumann` and the other factories.

    Attributes:
      name: the factory's name.
      config: its arguments, for records and `repr`.
      run: `System` without `image` to `LinearResult`.
      needs: what beside `matvec` and `b` it wants: a subset of {"blocks", "sampled"}.
      any_matrix: whether `A` may be unsymmetric.
    """

    name: str
    config: Mapping[str, Any]
    run: Callable[[System], LinearResult]
    needs: frozenset[str] = frozenset()
    any_matrix: bool = False

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config.items() if v is not None)})"

    def __call__(self, matvec: Callable[[Any], Any], b: Any, **options: Any) -> LinearResult:
        """The same as `solve`."""
        return self.solve(matvec, b, **options)

    def solve(
        self,
        matvec: Callable[[Any], Any],
        b: Any,
        *,
        start: Any = None,
        blocks: Any = None,
        key: Array | None = None,
        sampled: Callable[[Any, Array], Any] | None = None,
        symmetric: bool = True,
        flat: Float[Array, ""] | float = 0.0,
    ) -> LinearResult:
        """Solve `(A + damping I) w = b`. Works under `jit`, `vmap` and `grad` (in `b` and what `matvec` closes over).

        Args:
          matvec: `v -> A v`, linear, on pytrees like `b`.
          b: right-hand side, a pytree of float leaves.
          start: initial guess like `b` (warm start); None: zeros. A constant: no derivative depends on it.
          blocks: diagonal blocks of `A` without damping, a leaf `(..., D)` of `b` giving `(..., D, D)`; for
            solvers that need them.
          key: for what is random in the solver; None: the same draw every time.
          sampled: `(v, key) -> A_batch v`, an unbiased estimate of `A v`; for solvers that need it.
          symmetric: whether `A = A'`; if False, solvers that rely on symmetry refuse.
          flat: curvature up to this size counts as zero, where `A` itself is known no better: negative curvature
            within it is not `INDEFINITE`, and a solution that lies where it is flat is `SINGULAR`.

        Returns:
          `LinearResult`.

        Raises:
          TypeError: integer leaves in `b`. ValueError: shapes that do not match, missing `blocks` or
            `sampled`, an unsymmetric `A` given
          to a solver that needs symmetry.
        """
        b = jax.tree.map(jnp.asarray, b)
        self._check(matvec, b, start, blocks, sampled, symmetric)
        return self.run(System(matvec, b, None, start, blocks, key, sampled, symmetric, flat))

    def _check(self, matvec, b, start, blocks, sampled, symmetric) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(b):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"{self.name}: b{jax.tree_util.keystr(path)} has dtype {leaf.dtype}; expected floats"
                )
        if not symmetric and not self.any_matrix:
            raise ValueError(
                f"{self.name}: needs a symmetric matrix, got symmetric=False (fixed_point loops are not symmetric); "
                "use gmres, normal_cg, neumann or dense"
            )
        if "blocks" in self.needs and blocks is None:
            raise ValueError(
                f"{self!r}: needs the diagonal blocks; pass blocks=, or give the inner loop a Structure with blocks"
            )
        if "sampled" in self.needs and sampled is None:
            raise ValueError(
                f"{self!r}: needs minibatch products; pass sampled=, or give the inner loop batches=minibatches(...)"
            )
        want = _shapes(b)
        for what, given in (("matvec returns", jax.eval_shape(matvec, b)), ("start has", start)):
            if given is not None and _shapes(given) != want:
                raise ValueError(
                    f"{self.name}: {what} {_shapes(given)}, but b has {want}; they must be the same"
                )


def verified(
    method: Method, *, damping: float, rtol: float, definite: bool
) -> Callable[[System], LinearResult]:
    """Make the `run` of a `LinearSolver` from a method: normalize, solve, verify, judge, differentiate.

    Args:
      method: proposes a solution of a system with `|b| = 1`.
      damping: added to the diagonal.
      rtol: relative residual up to which a solution is accepted.
      definite: whether negative curvature makes the result `INDEFINITE`.
    """

    def run(system: System) -> LinearResult:
        def damped(v):
            return jax.tree.map(lambda image, leaf: image + damping * leaf, system.matvec(v), v)

        product = damped if damping else system.matvec

        def both(pair):
            image = product(pair[0])
            return image, _beside(image, pair[1])

        def answer(matvec, pair, *, warm: bool = True):
            b, start = pair
            product = lambda v: matvec((v, start))[0]
            given = system._replace(matvec=product, b=b, start=start if warm else None)
            value, report = propose_and_judge(method, given, rtol=rtol, definite=definite)
            return (value, start), report

        # The start goes along as an unknown that solves itself. Its tangent is 0, so that the solve for a tangent,
        # another right-hand side of which the start knows nothing, begins at 0, as the one for a cotangent does.
        (value, _), report = lax.custom_linear_solve(
            both,
            (system.b, _beside(system.b, lax.stop_gradient(system.start))),
            answer,
            partial(answer, warm=False),
            symmetric=system.symmetric,
            has_aux=True,
        )
        return LinearResult(value, *report)

    return run


def _beside(tree: Any, start: Any) -> Any:
    """`start`, linear in what moves `tree`: JAX's transposed solve takes no constant among its right-hand sides."""
    if start is None:
        return None
    return jax.tree.map(lambda leaf, old: jnp.where(False, leaf.astype(old.dtype), old), tree, start)


def propose_and_judge(method: Method, system: System, *, rtol: float, definite: bool):
    """Solve for `b / |b|`, then measure what was returned: `(value, (residual, iterations, curvature, code))`."""
    size = trees.norm(system.b)
    safe = jnp.where(size > 0, size, 1)
    b = scale(system.b, 1 / safe)
    start = None if system.start is None else scale(system.start, 1 / safe)
    image = system.matvec(b)
    found = method(system._replace(b=b, start=start, image=image))
    rest = found.rest
    if rest is None:
        rest = jax.tree.map(jnp.subtract, b, system.matvec(found.value))
    residual = trees.norm(rest)
    smallest, largest, own = _rayleigh(system.symmetric, found, b, image, rest)
    tiny = zero_level(largest.dtype) * largest
    doubt = jnp.asarray(found.doubt, jnp.int32)
    code = jnp.where((jnp.abs(smallest) <= tiny) & (doubt == Code.NOT_CONVERGED), Code.SINGULAR, doubt)
    code = jnp.where(jnp.isfinite(residual) | (code == Code.DIVERGED), code, Code.SINGULAR)
    # The worst news wins, and unknown curvature (NaN) accuses nobody.
    code = jnp.where(
        residual <= rtol, jnp.where(_lost(found.value, b, own, system.flat), Code.SINGULAR, Code.OK), code
    )
    code = jnp.where(definite & (smallest < -jnp.maximum(tiny, system.flat)), Code.INDEFINITE, code)
    finite = trees.all_finite(b) & trees.all_finite(image)
    code = jnp.where(finite, code, Code.NON_FINITE).astype(jnp.int32)
    return scale(found.value, safe), (residual, jnp.asarray(found.iterations, jnp.int32), smallest, code)


def _lost(value, b, own, flat):
    """Whether the solution lies where `A` is flat and was asked to: where `b` has no part there, none of it matters."""
    cosine = trees.dot(value, b) / jnp.maximum(trees.norm(value) * trees.norm(b), jnp.finfo(own.dtype).tiny)
    return (jnp.abs(own) <= flat) & (jnp.abs(cosine) > 0.01)


def _rayleigh(symmetric, found, b, image, rest):
    """The smallest Rayleigh quotient seen, a lower bound of the norm of `A`, and the solution's own quotient."""
    dtype = trees.norm(b).dtype
    if not symmetric:
        unknown = jnp.full((), jnp.nan, dtype)
        return unknown, trees.norm(image), unknown
    square, size = trees.dot(found.value, found.value), trees.dot(b, b)
    own = (trees.dot(found.value, b) - trees.dot(found.value, rest)) / jnp.where(square > 0, square, jnp.nan)
    first = trees.dot(b, image) / jnp.where(size > 0, size, jnp.nan)
    seen = jnp.stack([jnp.asarray(q, dtype) for q in (found.smallest, found.largest, first, own)])
    seen = jnp.where(jnp.isfinite(seen), seen, jnp.nan)
    return jnp.nanmin(seen), jnp.maximum(jnp.nanmax(jnp.abs(seen)), trees.norm(image)), own


def zero_level(dtype: Any) -> float:
    """Eigenvalues below this share of the largest cannot be told from zero by products in `dtype`: `eps^(2/3)`."""
    return float(jnp.finfo(dtype).eps) ** (2 / 3)


def check_number(where: str, name: str, value: Any, *, low: float, strict: bool = False) -> None:
    """Refuse a setting that is not a number above `low`.

    Raises:
      ValueError: naming what was given and what was expected.
    """
    fine = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (value > low if strict else value >= low)
    )
    if not fine or value == float("inf"):
        raise ValueError(
            f"{where}: {name}={value!r}: expected a finite number {'>' if strict else '>='} {low}"
        )


def check_count(where: str, name: str, value: Any, *, low: int = 1) -> None:
    """Refuse a count that is not an integer of at least `low`.

    Raises:
      ValueError: naming what was given and what was expected.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{where}: {name}={value!r}: expected an integer >= {low}")


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree)
