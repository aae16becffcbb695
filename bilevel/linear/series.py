"""Series for the inverse: Neumann's, and LiSSA's stochastic form of it.

Lorraine, Vicol, Duvenaud, AISTATS 2020 (Neumann series for hypergradients); Agarwal, Bullins, Hazan, JMLR
2017 (LiSSA); Koh, Liang, ICML 2017 (its use for influence functions). With a step `s`, `A^-1 = s sum_k (I - s
A)^k` converges if and only if every eigenvalue of `A` lies in `(0, 2/s)`. So the step is taken from an
estimate of the largest eigenvalue, and a step that is too long is reported even where too few terms were
summed for it to show. A truncated series acts like damping of about `1 / (s terms)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bilevel import trees
from bilevel.linear.solver import Code, LinearSolver, Proposal, System, check_count, check_number, verified
from bilevel.linear.spectrum import Spectrum, spectrum
from bilevel.linear.spectrum import scale as times


def neumann(
    terms: int, *, step: float | None = None, damping: float = 0.0, rtol: float = 1e-2, probe: int = 20
) -> LinearSolver:
    """The truncated Neumann series `w = s sum_{k < terms} (I - s A)^k b`, run as `w <- w + s (b - A w)`.

    On a fixed-point loop with `s = 1` it is what unrolling the last `terms` steps at the fixed point would
    give.

    Args:
      terms: products.
      step: `s`; None: one over the largest eigenvalue as estimated (symmetric `A`), or 1 (unsymmetric `A = I
        - T'`).
      damping: added to the diagonal, >= 0.
      rtol: relative residual up to which the truncated series is called solved.
      probe: Lanczos products for the estimate, which also finds negative curvature; 0 needs a given `step`.

    Returns:
      A `LinearSolver`; `iterations` are terms. Code `DIVERGED` where the residual grew or the step is
      provably too long.

    Raises:
      ValueError: a setting out of range.

    Reference: Lorraine, Vicol, Duvenaud, AISTATS 2020, alg. 3. **Differs from the paper:** the step is
    estimated, not guessed.

    >>> neumann(50, rtol=1e-3)(lambda v: jnp.array([1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value.round(3)
    Array([2. , 0.5], dtype=float32)
    """
    _check("neumann", terms, "step", step, damping, rtol, probe)

    def method(system: System) -> Proposal:
        ends = _ends(system, probe)
        size = jnp.asarray(step if step is not None else _one_over(ends) if system.symmetric else 1.0)

        def add_term(_, w):
            rest = jax.tree.map(jnp.subtract, system.b, system.matvec(w))
            return jax.tree.map(lambda a, r: a + jnp.asarray(size, a.dtype) * r, w, rest)

        start = trees.zeros(system.b) if system.start is None else system.start
        value = lax.fori_loop(0, terms, add_term, start)
        return _proposal(system, start, value, terms, ends, size)

    config = {"terms": terms, "step": step, "damping": damping, "rtol": rtol, "probe": probe}
    return LinearSolver(
        "neumann", config, verified(method, damping=damping, rtol=rtol, definite=True), any_matrix=True
    )


def lissa(
    terms: int,
    *,
    scale: float | None = None,
    damping: float = 0.0,
    repeats: int = 1,
    minibatch: bool = False,
    rtol: float = 1e-2,
    probe: int = 20,
) -> LinearSolver:
    """LiSSA: `v_0 = b`, `v <- b + v - (A_j + damping I) v / scale` for `terms` steps, then `w = v / scale`.

    `A_j` is the product over a fresh minibatch where `minibatch`, else the whole `A`. Per eigenvalue `h` of
    `A / scale` the result is `(1 - (1 - h)^(terms+1)) / (h scale)`.

    Args:
      terms: recursion steps J, one product each.
      scale: must exceed half the largest eigenvalue; None: the largest eigenvalue as estimated. The paper's
        scale is 1.
      damping: added to the diagonal of `A`, before scaling, >= 0.
      repeats: independent runs that are averaged; more than one only makes sense with `minibatch`.
      minibatch: use the solve's `sampled` products (in `implicit`: the inner loop's batches, a fresh one at
        each step).
      rtol: relative residual up to which the truncated series is called solved.
      probe: Lanczos products for the spectral norm, which also finds negative curvature; 0 needs a given
        `scale`.

    Returns:
      A `LinearSolver`; `iterations` are terms. Code `DIVERGED` where the residual grew or `scale` is provably
      too small.

    Raises:
      ValueError: a setting out of range.

    Reference: Agarwal, Bullins, Hazan, JMLR 2017, alg. 1; Koh, Liang, ICML 2017, section 3. **Differs from
    the paper:** damping is added to `A` before scaling, so that it means the same in all solvers (Koh and
    Liang's is ours divided by `scale`); the largest eigenvalue is estimated by Lanczos, never worse than as
    many power iterations, and the result is verified.

    >>> lissa(50, rtol=1e-3)(lambda v: jnp.array([1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value.round(3)
    Array([2. , 0.5], dtype=float32)
    """
    _check("lissa", terms, "scale", scale, damping, rtol, probe)
    check_count("lissa", "repeats", repeats)
    if repeats > 1 and not minibatch:
        raise ValueError(
            f"lissa: repeats={repeats} equal runs; use repeats=1, or minibatch=True for runs that differ"
        )

    def method(system: System) -> Proposal:
        ends = _ends(system, probe)
        size = jnp.asarray(_one_over(ends) if scale is None else 1 / scale)
        start = times(system.b, size) if system.start is None else system.start
        key = jax.random.key(0) if system.key is None else system.key

        def once(key):
            def recur(j, w):  # w = v / scale
                fresh = jax.random.fold_in(key, j)
                image = _sampled(system, w, fresh, damping) if minibatch else system.matvec(w)
                return jax.tree.map(
                    lambda a, b, i: a + jnp.asarray(size, a.dtype) * (b - i), w, system.b, image
                )

            return lax.fori_loop(0, terms, recur, start)

        runs = jax.vmap(once)(jax.random.split(key, repeats))
        value = jax.tree.map(lambda leaf: leaf.mean(0), runs)
        return _proposal(system, start, value, terms, ends, size)

    config = {
        "terms": terms,
        "scale": scale,
        "damping": damping,
        "repeats": repeats,
        "minibatch": minibatch,
        "rtol": rtol,
        "probe": probe,
    }
    needs = frozenset({"sampled"}) if minibatch else frozenset()
    return LinearSolver("lissa", config, verified(method, damping=damping, rtol=rtol, definite=True), needs)


def _ends(system: System, probe: int) -> Spectrum | None:
    if probe == 0 or not system.symmetric:
        return None
    return spectrum(system.matvec, system.b, steps=probe, key=system.key, start=system.b)


def _one_over(ends: Spectrum | None) -> Any:
    # The factories refuse probe=0 without a given step, and lissa refuses unsymmetric systems.
    assert ends is not None
    return 1 / jnp.where(ends.norm > 0, ends.norm, 1)


def _proposal(
    system: System, start: Any, value: Any, terms: int, ends: Spectrum | None, size: Any
) -> Proposal:
    """Whether the series grew, and the curvature of what is left: it points where `I - s A` is largest."""
    rest = jax.tree.map(jnp.subtract, system.b, system.matvec(value))
    before = jax.tree.map(jnp.subtract, system.b, system.matvec(start))
    grew = ~(trees.norm(rest) <= 1.0001 * jnp.maximum(trees.norm(before), 1))
    if ends is not None:
        grew = grew | (size * ends.largest >= 2)
    doubt = jnp.where(grew, Code.DIVERGED, Code.NOT_CONVERGED)
    smallest = trees.dot(rest, system.matvec(rest)) / trees.dot(rest, rest)
    if ends is not None:
        smallest = jnp.fmin(smallest, ends.smallest)
    return Proposal(value, terms, smallest, ends.largest if ends is not None else jnp.nan, doubt, rest)


def _sampled(system: System, w: Any, key: Any, damping: float) -> Any:
    assert system.sampled is not None  # checked by LinearSolver: needs "sampled"
    return jax.tree.map(lambda image, leaf: image + damping * leaf, system.sampled(w, key), w)


def _check(name: str, terms: Any, what: str, value: Any, damping: Any, rtol: Any, probe: Any) -> None:
    check_count(name, "terms", terms)
    check_number(name, "damping", damping, low=0)
    check_number(name, "rtol", rtol, low=0, strict=True)
    check_count(name, "probe", probe, low=0)
    if value is not None:
        check_number(name, what, value, low=0, strict=True)
    elif probe == 0:
        raise ValueError(f"{name}: with probe=0 the largest eigenvalue is not estimated; give {what}=")
