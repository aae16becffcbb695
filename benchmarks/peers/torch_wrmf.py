"""The RevAdv hypergradient of WRMF in PyTorch, through `higher` and through TorchOpt: the peers of the benchmark.

Tang, Wen, Wang, "Revisiting Adversarially Learned Injection Attacks Against Recommender Systems", RecSys 2020, eqs 3-8:
train P, Q by L full-batch Adam steps on the real rows X and the fake rows Xh, then differentiate the promotion loss
`-sum_u mean_t log softmax(P_u Q')_t` of the real users through all L steps with respect to Xh.

Runs in `.venv-peers` (see environment.py), knows nothing of this project, reads a problem file, prints one JSON line:

    python torch_wrmf.py once   PROBLEM.npz --method higher --out GRADIENT.npz   # one run: its gradient and peak RSS
    python torch_wrmf.py time   PROBLEM.npz --method torchopt --repeats 5        # forward and hypergradient seconds
    python torch_wrmf.py attack PROBLEM.npz --outer 50 --measured 3              # the whole attack, as the notebook
    python torch_wrmf.py serve  PROBLEM.npz                                      # one method name a line on stdin

`serve` answers each line `forward`, `higher` or `torchopt` with the seconds of one run, so that a driver can interleave
the peers with its own variants. Everything is float32 on the CPU.

Two things to know when numbers are compared. `higher` adds Adam's epsilon before the bias correction; PyTorch, TorchOpt
and optax add it after. Near a zero gradient entry that changes the hypergradient (1.7% on the tiny problem, in float64
too), so its error is not rounding. And PyTorch's threads wait for each other at every operation: on a busy machine they
lose far more than their share. Give them a quiet one.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import higher
import numpy as np
import resident
import torch
import torchopt


class Problem(NamedTuple):
    """What a problem file holds. `U` real users, `F` fake users, `I` items, `D` factors.

    real (U, I) and fake (F, I) rows in {0, 1}; P (U + F, D) and Q (I, D) initial factors; weight of a positive cell;
    lr and steps of the inner Adam; targets (T,); test (U,) held-out item of each user or -1; threshold, outer_lr and
    momentum of the outer loop.
    """

    real: torch.Tensor
    fake: torch.Tensor
    P: torch.Tensor
    Q: torch.Tensor
    weight: float
    lr: float
    steps: int
    targets: torch.Tensor
    test: np.ndarray
    threshold: float
    outer_lr: float
    momentum: float


class Factors(torch.nn.Module):
    """Matrix factorization: scores (U + F, I) = P Q'."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.P = torch.nn.Parameter(problem.P.clone())
        self.Q = torch.nn.Parameter(problem.Q.clone())

    def forward(self) -> torch.Tensor:
        return self.P @ self.Q.t()


def load(path: Path) -> Problem:
    """Read a problem file (`.npz` without pickles)."""
    with np.load(path, allow_pickle=False) as file:
        array = {name: file[name] for name in file.files}
    return Problem(
        real=torch.from_numpy(array["X"].astype(np.float32)),
        fake=torch.from_numpy(array["fake"].astype(np.float32)),
        P=torch.from_numpy(array["P0"].astype(np.float32)),
        Q=torch.from_numpy(array["Q0"].astype(np.float32)),
        weight=float(array["weight"]),
        lr=float(array["lr"]),
        steps=int(array["steps"]),
        targets=torch.from_numpy(array["targets"].astype(np.int64)),
        test=array["test"],
        threshold=float(array["threshold"]),
        outer_lr=float(array["outer_lr"]),
        momentum=float(array["momentum"]),
    )


def weighted_square(scores: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """WRMF's loss over all cells (RevAdv eq. 5 without L2)."""
    return (w * (x - scores) ** 2).sum()


def weights(x: torch.Tensor, positive: float) -> torch.Tensor:
    """`positive` where a cell is clicked, 1 elsewhere; constant for the gradient, as in the official code."""
    return torch.where(x.detach() > 0, positive, 1.0)


def promotion(scores: torch.Tensor, problem: Problem) -> torch.Tensor:
    """`-sum_u mean_t log softmax(scores_u)_t` over the real users (RevAdv eq. 3)."""
    log_probability = torch.log_softmax(scores[: len(problem.real)], dim=1)
    return -log_probability[:, problem.targets].mean(dim=1).sum()


def forward(problem: Problem) -> torch.Tensor:
    """Plain training, nothing tracked: what a hypergradient is compared with. Returns the promotion loss."""
    x = torch.cat([problem.real, problem.fake])
    w = weights(x, problem.weight)
    model = Factors(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.lr)
    for _ in range(problem.steps):
        optimizer.zero_grad()
        weighted_square(model(), x, w).backward()
        optimizer.step()
    with torch.no_grad():
        return promotion(model(), problem)


def by_higher(problem: Problem) -> torch.Tensor:
    """Hypergradient (F, I) through `higher`: every step's functional copy of the parameters stays in the graph."""
    fake = problem.fake.clone().requires_grad_()
    x = torch.cat([problem.real, fake])
    w = weights(x, problem.weight)
    model = Factors(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.lr)
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, track_higher_grads=True) as (
        fast,
        step,
    ):
        for _ in range(problem.steps):
            step.step(weighted_square(fast(), x, w))
        return torch.autograd.grad(promotion(fast(), problem), fake)[0]


def by_torchopt(problem: Problem) -> torch.Tensor:
    """Hypergradient (F, I) through TorchOpt's differentiable Adam."""
    fake = problem.fake.clone().requires_grad_()
    x = torch.cat([problem.real, fake])
    w = weights(x, problem.weight)
    model = Factors(problem)
    optimizer = torchopt.MetaAdam(model, lr=problem.lr)
    for _ in range(problem.steps):
        optimizer.step(weighted_square(model(), x, w))
    return torch.autograd.grad(promotion(model(), problem), fake)[0]


METHODS: dict[str, Callable[[Problem], torch.Tensor]] = {
    "forward": forward,
    "higher": by_higher,
    "torchopt": by_torchopt,
}


class Sample(NamedTuple):
    """One timed run: wall seconds, and CPU seconds of all threads (less moved by what else the machine does)."""

    wall: float
    cpu: float


def sample(method: str, problem: Problem) -> Sample:
    """Time one run; garbage of the run before is collected first, outside the clock."""
    gc.collect()
    start = time.perf_counter(), time.process_time()
    METHODS[method](problem)
    return Sample(time.perf_counter() - start[0], time.process_time() - start[1])


def evaluate(x: torch.Tensor, scores: torch.Tensor, test: np.ndarray, target: int | None) -> dict[str, float]:
    """Hit ratio at 10 of the held-out items, and of the target if asked, the way the official notebook does it.

    All rows are masked and sorted, the order becomes Python lists, and each user's item is looked up in its list.
    """
    masked = scores.clone()
    masked[torch.where(x.detach() > 0)] = -np.inf
    order = masked.argsort(dim=1, descending=True).tolist()
    result = {"hr_test": float(np.mean([order[u].index(item) < 10 for u, item in enumerate(test)]))}
    if target is not None:
        result["hr_target"] = float(np.mean([row.index(target) < 10 for row in order[: len(test)]]))
    return result


def outer_step(
    data: torch.Tensor, problem: Problem, inner_evaluation: bool
) -> tuple[torch.Tensor, dict[str, float]]:
    """One outer step of the notebook: train through `higher`, return the gradient of all rows and the hit ratios.

    As there, the whole matrix is a leaf, the weights are made anew in every step, and every step is evaluated.
    """
    target = int(problem.targets[0])
    model = Factors(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.lr)
    with higher.innerloop_ctx(model, optimizer) as (fast, step):
        for _ in range(problem.steps):
            scores = fast()
            step.step(weighted_square(scores, data, weights(data, problem.weight)))
            if inner_evaluation:
                evaluate(data, scores.detach(), problem.test, None)
        scores = fast()
        gradient = torch.autograd.grad(promotion(scores, problem), data)[0]
        return gradient, evaluate(data, scores.detach(), problem.test, target)


def attack(problem: Problem, outer: int, measured: int, inner_evaluation: bool) -> dict[str, Any]:
    """The whole attack: `outer` steps of SGD with momentum on the fake rows, thresholded after each.

    Runs `measured` of them and extrapolates linearly: every outer step does the same work (the same number of inner
    steps from the same start on a matrix of the same shape), so the extrapolation is exact up to noise.
    """
    if (problem.test < 0).any():
        raise ValueError(
            "attack needs one held-out test item for every real user; this problem has users without one"
        )
    data = torch.cat([problem.real, problem.fake]).requires_grad_()
    users = len(problem.real)
    optimizer = torch.optim.SGD([data], lr=problem.outer_lr, momentum=problem.momentum)
    spent, history = [], []
    cpu = time.process_time()
    for number in range(measured):
        start = time.perf_counter()
        gradient, scores = outer_step(data, problem, inner_evaluation)
        gradient[:users] = 0.0
        data.grad = gradient
        optimizer.step()
        data.data = (data.data > problem.threshold).float()
        spent.append(time.perf_counter() - start)
        history.append(scores)
        print(
            f"outer step {number + 1} of {measured}: {spent[-1]:.2f} s, {scores}", file=sys.stderr, flush=True
        )
    return {
        "outer_steps": outer,
        "measured_steps": measured,
        "extrapolated": measured < outer,
        "inner_evaluation": inner_evaluation,
        "seconds_per_outer_step": spent,
        "seconds": float(np.mean(spent)) * outer,
        "cpu_seconds": (time.process_time() - cpu) / measured * outer,
        "history": history,
    }


def timings(method: str, problem: Problem, repeats: int) -> dict[str, Any]:
    """Forward and hypergradient seconds, interleaved, after one warm-up of each."""
    for name in ("forward", method):
        sample(name, problem)
    pairs = [(sample("forward", problem), sample(method, problem)) for _ in range(repeats)]
    result: dict[str, Any] = {}
    for name, column in (("forward", 0), ("hypergradient", 1)):
        values = [pair[column].wall for pair in pairs]
        result[f"{name}_seconds_min"] = min(values)
        result[f"{name}_seconds_median"] = float(np.median(values))
        result[f"{name}_cpu_seconds_min"] = min(pair[column].cpu for pair in pairs)
    return result


def once(method: str, problem: Problem, out: Path | None) -> dict[str, Any]:
    """One run in a process of its own: peak memory over start, NaN entries; the gradient goes to a file."""
    kept: list[np.ndarray] = []
    peak = resident.peak_mb(lambda: kept.append(METHODS[method](problem).numpy()))
    if out is not None:
        np.savez(out, gradient=kept[0])
    return {"peak_rss_mb": peak, "nan": int(np.isnan(kept[0]).sum())}


def serve(problem: Problem) -> None:
    """Answer one JSON line for each method name read from standard input, until it closes."""
    for line in sys.stdin:
        print(json.dumps({"method": line.strip(), **sample(line.strip(), problem)._asdict()}), flush=True)


def main() -> None:
    """Command line; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["once", "time", "attack", "serve"])
    parser.add_argument("problem", type=Path, help="problem file written by the driver")
    parser.add_argument("--method", choices=list(METHODS), default="higher")
    parser.add_argument("--threads", type=int, default=2, help="threads PyTorch may use")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (action time)")
    parser.add_argument("--out", type=Path, help="where the gradient goes (action once)")
    parser.add_argument("--outer", type=int, default=50, help="outer steps of the whole attack")
    parser.add_argument(
        "--measured", type=int, default=3, help="outer steps really run; --outer for the full attack"
    )
    parser.add_argument(
        "--no-inner-evaluation", action="store_true", help="skip the evaluation at every inner step"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problem = load(options.problem)
    result: dict[str, Any] = {"action": options.action, "method": options.method, "threads": options.threads}
    if options.action == "serve":
        serve(problem)
        return
    if options.action == "once":
        result |= once(options.method, problem, options.out)
    elif options.action == "time":
        result |= timings(options.method, problem, options.repeats)
    else:
        measured = min(options.measured, options.outer)
        result |= attack(problem, options.outer, measured, not options.no_inner_evaluation)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "higher", "torchopt")}
    print(json.dumps(result | {"versions": versions}))


if __name__ == "__main__":
    main()
