"""The ends of a symmetric matrix's spectrum from a few products, by the Lanczos process.

Lanczos, J. Res. Nat. Bur. Standards 1950. The eigenvalues of the small tridiagonal matrix (Ritz values) are
Rayleigh quotients, so they lie inside the spectrum up to rounding, with or without reorthogonalization
(Paige, 1971): the largest is a lower bound of the largest eigenvalue, and a negative one *proves* negative
curvature. The converse needs luck in the start: with a random start and k products, the missed share of the
spectrum's width is at most about `(ln(n k^4) / k)^2 / 10` on average (Kuczynski, Wozniakowski, SIMAX 1992)
and far less for isolated ends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bilevel import trees


class Spectrum(NamedTuple):
    """Estimated ends of a spectrum, inside the true ones."""

    smallest: Float[Array, ""]
    largest: Float[Array, ""]

    @property
    def norm(self) -> Float[Array, ""]:
        """The spectral norm, a lower bound."""
        return jnp.maximum(jnp.abs(self.smallest), jnp.abs(self.largest))

    def damping(self, share: float) -> Float[Array, ""]:
        """`share * max(0, largest) + 2 max(0, -smallest)`: added to the matrix, it fits a loss of any size.

        The first part is the least eigenvalue that is let through, in units of the largest; the second lifts
        negative curvature, twice as much as was seen, because Ritz values lie inside the spectrum.

        >>> float(Spectrum(jnp.array(-1.0), jnp.array(5.0)).damping(0.1))
        2.5
        """
        return share * jnp.maximum(self.largest, 0) + 2 * jnp.maximum(-self.smallest, 0)


def spectrum(
    matvec: Callable[[Any], Any], like: Any, *, steps: int = 20, key: Array | None = None, start: Any = None
) -> Spectrum:
    """Smallest and largest Ritz value after `steps` Lanczos steps.

    Args:
      matvec: `v -> A v`, symmetric, on pytrees like `like`.
      like: pytree of float leaves, for its structure.
      steps: products to spend, k >= 1; at most the dimension is used.
      key: random part of the start vector; None: the same vector every time.
      start: a direction that the start vector must contain (its Krylov space is the one CG works in); None:
        random part only.

    Returns:
      `Spectrum(smallest, largest)`; NaN if a product is not finite.

    Reference: Lanczos 1950; Golub, Van Loan, Matrix Computations, section 10.1. **Differs from the paper:**
    no reorthogonalization, as only the ends are wanted; after an invariant subspace is found the remaining
    steps are void.

    >>> ends = spectrum(lambda v: jnp.array([-1.0, 2.0, 5.0]) * v, jnp.zeros(3))
    >>> [round(float(e), 3) for e in ends]
    [-1.0, 5.0]
    """
    steps = min(steps, sum(leaf.size for leaf in jax.tree.leaves(like)))
    first = unit(random_like(like, key))
    if start is not None:
        first = unit(trees.add(first, unit(start)))
    dtype = trees.norm(first).dtype
    breakdown = 8 * jnp.finfo(dtype).eps

    def step(j, carry):
        previous, current, beta, size, alive, alphas, betas = carry
        image = matvec(current)
        alpha = trees.dot(current, image)
        image = _orthogonal(image, alpha, current, beta, previous)
        beta = trees.norm(image)
        size = jnp.maximum(size, jnp.abs(alpha) + beta)
        # A void step repeats the first diagonal entry, uncoupled: a Rayleigh quotient that is there already.
        alphas = alphas.at[j].set(jnp.where(alive, alpha, alphas[0]))
        alive = alive & ~(beta <= breakdown * size)
        betas = betas.at[j].set(jnp.where(alive, beta, 0))
        return (
            current,
            scale(image, jnp.where(alive, 1 / beta, 0)),
            jnp.where(alive, beta, 0),
            size,
            alive,
            alphas,
            betas,
        )

    zero = jnp.zeros((), dtype)
    carry = (
        trees.zeros(first),
        first,
        zero,
        zero,
        jnp.array(True),
        jnp.zeros(steps, dtype),
        jnp.zeros(steps, dtype),
    )
    alphas, betas = lax.fori_loop(0, steps, step, carry)[-2:]
    ritz = jnp.linalg.eigvalsh(jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1))
    return Spectrum(ritz[0], ritz[-1])


def _orthogonal(image: Any, alpha: Any, current: Any, beta: Any, previous: Any) -> Any:
    """`A q_j - alpha_j q_j - beta_{j-1} q_{j-1}`, each leaf in its own dtype."""
    return jax.tree.map(
        lambda w, q, p: w - alpha.astype(w.dtype) * q - beta.astype(w.dtype) * p, image, current, previous
    )


def random_like(like: Any, key: Array | None) -> Any:
    """A standard normal pytree shaped as `like`; the same one every time where `key` is None."""
    leaves, shape = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(leaves))
    return jax.tree.unflatten(
        shape, [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves)]
    )


def scale(tree: Any, factor: Any) -> Any:
    """`factor * tree`, each leaf in its own dtype."""
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), tree)


def unit(tree: Any) -> Any:
    """`tree` at norm 1; zeros stay zeros."""
    size = trees.norm(tree)
    return scale(tree, jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0))
