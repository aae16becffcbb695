"""What benchmarks/hypergradient.py measures of this project: each estimator and memory policy, as a compiled variant.

Paths: `generic` gives the engine the loss and nothing else (all cells, dense); `wrmf` is the recommender as shipped,
with its own Hessian product and the form of the loss that its rule picks; `wrmf-dense` is the same with the dense form,
where the rule picks the other one. Each path is compared with the forward run of its own loss.

    python benchmarks/wrmf_variants.py PROBLEM.npz VARIANT     # peak RSS of one variant, in a process of its own
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import wrmf_problem
from jaxtyping import Array, Float
from peers import resident

import bilevel
from bilevel.unroll import Memory
from models import wrmf
from models.data.interactions import Interactions

TAUS = (1, 5, 10, 20, 50)


class Variant(NamedTuple):
    """One thing to measure: `name`, what `kind` of run it is, the `path` of its loss, and the estimator over a loop."""

    name: str
    kind: str  # forward, exact, truncated, implicit, partial
    path: str
    estimate: Callable[[bilevel.Inner], bilevel.Solve]


class Sample(NamedTuple):
    """One timed run: wall seconds, and CPU seconds of all threads (less moved by what else the machine does)."""

    wall: float
    cpu: float


class Compiled(NamedTuple):
    """A compiled variant: how to time it, its gradient (None: forward), temporaries in MB, seconds to compile, code."""

    run: Callable[[], Sample]
    gradient: np.ndarray | None
    temp_mb: float
    compile_seconds: float
    code: str


def variants(problem: wrmf_problem.Problem, *, quick: bool = False) -> list[Variant]:
    """Every variant of a problem; `quick` keeps what the goals are about and one of each other kind."""
    if quick:
        return [
            Variant("generic forward", "forward", "generic", bilevel.unrolled),
            *(_exact("generic", memory) for memory in ("keep", "adjoint", "lean")),
            Variant("wrmf forward", "forward", "wrmf", bilevel.unrolled),
            *(_exact("wrmf", memory) for memory in ("adjoint", "lean")),
            _truncated(min(10, problem.steps // 2)),
            _implicit("implicit block-cg", bilevel.cg(max_steps=100, preconditioner="block_jacobi")),
        ]
    found = [Variant("generic forward", "forward", "generic", bilevel.unrolled)]
    found += [_exact("generic", memory) for memory in get_args(Memory)]
    for path in ("wrmf",) if picked(problem) == "dense" else ("wrmf", "wrmf-dense"):
        found += [Variant(f"{path} forward", "forward", path, bilevel.unrolled)]
        found += [_exact(path, memory) for memory in ("adjoint", "replay", "lean")]
    found += [_truncated(tau) for tau in TAUS if tau < problem.steps]
    return [
        *found,
        Variant("one_step", "truncated", "wrmf", bilevel.one_step),
        _implicit("implicit cg", bilevel.cg(max_steps=100)),
        _implicit("implicit block-cg", bilevel.cg(max_steps=100, preconditioner="block_jacobi")),
        Variant("detached", "partial", "wrmf", bilevel.detached),
    ]


def _exact(path: str, memory: Memory) -> Variant:
    return Variant(
        f"{path} exact {memory}", "exact", path, lambda inner: bilevel.unrolled(inner, memory=memory)
    )


def _truncated(tau: int) -> Variant:
    return Variant(
        f"truncated tau={tau}", "truncated", "wrmf", lambda inner: bilevel.truncated(inner, tau=tau)
    )


def _implicit(name: str, solver: bilevel.LinearSolver) -> Variant:
    return Variant(name, "implicit", "wrmf", lambda inner: bilevel.implicit(inner, solver))


def picked(problem: wrmf_problem.Problem) -> str:
    """The form of the loss ("dense" or "observed") that WRMF's own rule picks for this problem."""
    return "dense" if _data(problem, "auto").cells.observed is None else "observed"


def _data(problem: wrmf_problem.Problem, form: Any) -> Any:
    return wrmf.prepare(Interactions.from_dense(problem.X.astype(np.float32)), form=form)


def setup(problem: wrmf_problem.Problem, path: str) -> tuple[bilevel.Inner, tuple[Any, ...]]:
    """The inner loop of a path and its arguments `(x, params0, data, key)`."""
    users, items = problem.X.shape
    form = "auto" if path == "wrmf" else "dense"
    model = wrmf.wrmf(
        factors=problem.Q0.shape[1],
        learning_rate=problem.lr,
        weight=problem.weight,
        l2=0.0,
        epochs=problem.steps,
        batch=None,
        form=form,
    )
    inner = model.trainer(users, items, len(problem.fake))
    if path == "generic":
        inner = bilevel.gradient_descent(model.loss, optax.adam(problem.lr), problem.steps)
    params0 = {
        "user": jnp.asarray(problem.P0[:users]),
        "fake": jnp.asarray(problem.P0[users:]),
        "item": jnp.asarray(problem.Q0),
    }
    return inner, (jnp.asarray(problem.fake), params0, _data(problem, form), jax.random.key(0))


def program(problem: wrmf_problem.Problem, variant: Variant) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function to compile and its arguments: `(value, gradient, code)`, for a forward run the value alone."""
    inner, arguments = setup(problem, variant.path)
    solve = variant.estimate(inner)
    targets = jnp.asarray(problem.targets)

    def outer(params: Any, x: Float[Array, "F I"], data: Any) -> Float[Array, ""]:
        log_probability = jax.nn.log_softmax(params["user"] @ params["item"].T, axis=1)
        return -log_probability[:, targets].mean(1).sum()

    def value(x, params0, data, key):
        return outer(solve(x, params0, data, key), x, data)

    if variant.kind == "forward":
        return value, arguments
    if variant.kind == "implicit":  # with the diagnosis, without which its number is not to be used
        diagnosed = bilevel.value_and_hypergrad(outer, solve)

        def estimate(*arguments):
            found = diagnosed(*arguments)
            return found.value, found.grad, found.diagnosis.code

        return estimate, arguments

    def gradient(*arguments):
        return *jax.value_and_grad(value)(*arguments), jnp.int32(bilevel.Code.OK)

    return gradient, arguments


def compile_variant(problem: wrmf_problem.Problem, variant: Variant) -> Compiled:
    """Compile ahead of time and run once; the closure that is timed holds the arguments on the device."""
    function, arguments = program(problem, variant)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    result = jax.block_until_ready(compiled(*arguments))
    _, gradient, code = (result, None, bilevel.Code.OK) if variant.kind == "forward" else result

    def run() -> Sample:
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        return Sample(time.perf_counter() - start[0], time.process_time() - start[1])

    return Compiled(
        run,
        None if gradient is None else np.asarray(gradient),
        analysis.temp_size_in_bytes / 1e6 if analysis else float("nan"),
        seconds,
        bilevel.Code(int(code)).name,
    )


def main() -> None:
    """Worker: compile and run one variant once, print its peak RSS over start as JSON."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    problem = wrmf_problem.load(Path(sys.argv[1]))
    variant = next(found for found in variants(problem) if found.name == sys.argv[2])
    function, arguments = program(problem, variant)
    jax.block_until_ready(arguments)
    peak = resident.peak_mb(lambda: jax.block_until_ready(jax.jit(function)(*arguments)))
    print(json.dumps({"peak_rss_mb": peak}))


if __name__ == "__main__":
    main()
