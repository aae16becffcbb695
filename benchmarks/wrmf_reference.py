"""The float64 reference of benchmarks/hypergradient.py, written without the engine.

Plain `jax.grad` through a `lax.scan` of hand-written Adam steps (Kingma and Ba, ICLR 2015, algorithm 1) on WRMF's
all-cell loss, each step recomputed in the reverse pass. It shares no line with `bilevel` or `models`, nor optax, so a
wrong sign or a wrong weight there shows as an error here. Own process, because float64 is a switch of the whole of JAX:

    python benchmarks/wrmf_reference.py PROBLEM.npz GRADIENT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import wrmf_problem
from jaxtyping import Array, Float


def gradient(problem: wrmf_problem.Problem) -> Float[Array, "F I"]:
    """Exact hypergradient of the promotion loss in the fake rows, in the precision JAX is set to.

    `d/dXh -sum_u mean_t log softmax(P_u Q')_t` with P, Q after L Adam steps on `sum w (x - PQ')^2`.
    """
    real, fake = jnp.asarray(problem.X, float), jnp.asarray(problem.fake, float)
    w = jnp.where(
        jnp.concatenate([real, fake]) > 0, problem.weight, 1.0
    )  # frozen: no derivative through the weight
    factors = (jnp.asarray(problem.P0, float), jnp.asarray(problem.Q0, float))

    def step(x, carry, t):
        factors, first, second = carry
        gradients = jax.grad(lambda f: jnp.sum(w * (x - f[0] @ f[1].T) ** 2))(factors)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        scale = problem.lr / -jnp.expm1(t * jnp.log(0.9))
        correction = -jnp.expm1(t * jnp.log(0.999))
        factors = jax.tree.map(
            lambda f, m, v: f - scale * m / (jnp.sqrt(v / correction) + 1e-8), factors, first, second
        )
        return (factors, first, second), None

    def promotion(fake):
        x = jnp.concatenate([real, fake])
        zero = jax.tree.map(jnp.zeros_like, factors)
        body = jax.checkpoint(lambda carry, t: step(x, carry, t), prevent_cse=False)
        ((p, q), _, _), _ = jax.lax.scan(body, (factors, zero, zero), jnp.arange(1.0, problem.steps + 1))
        log_probability = jax.nn.log_softmax(p[: len(real)] @ q.T, axis=1)
        return -log_probability[:, problem.targets].mean(1).sum()

    return jax.jit(jax.grad(promotion))(fake)


def main() -> None:
    """Write the float64 gradient of a problem file to a file."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    jax.config.update("jax_enable_x64", True)
    np.savez(sys.argv[2], gradient=np.asarray(gradient(wrmf_problem.load(Path(sys.argv[1])))))


if __name__ == "__main__":
    main()
