"""Seconds, peak memory and agreement of influence: a dense Hessian and the published LiSSA beside what we do.

    python benchmarks/influence.py --quick                # ML-100K size, 4 factors
    python benchmarks/influence.py                        # everything; goes on where it was stopped
    python benchmarks/influence.py --asked vector --sizes ml-1m --factors 64 --methods cg --again

The recommender is APT's matrix factorization of ratings, 15 epochs old (there APT asks for the first time). Two
questions:

    user     by how much a score of a user (its best unseen item) drops without each of its interactions
             (`models.explain.influences`; the user with the median number of ratings)
    vector   APT's influence vector, eq. 5, summed over ten users (`defenses.influence.influence_vector`)

Every answer is held against the exact one: the same quantity, of the same Hessian with the same damping, in float64 by
code that shares nothing with the engine (a Hessian product written out for factorization, solved by MINRES until the
residual is 1e-8). Where the Hessian fits it is formed, factorized and solved as well; that row says what it costs and
how far the exact answer is from it.

Every measurement runs in a process of its own, on one core and one thread (see apart.py), in CPU seconds where the
system lets a process choose its core, without compilation. Training and exact answers are made by another process
before and lie in a temporary folder. Rows are written as they come and are not measured again without `--again`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apart
import influence_report
import numpy as np
import tyro

HERE = Path(__file__).resolve().parent
FOLDER = "BILEVEL_INFLUENCE_FOLDER"
"""The environment variable that tells workers where trained models and exact answers lie."""
USER = ("fast", "user", "full", "lissa-published", "dense")
VECTOR = ("cg", "gauss-newton", "identity", "lissa-published", "lissa-block", "dense")
LAST = ("lissa-block", "dense")
SMALL_ONLY = ("lissa-block",)  # 2,000 products over all ratings: not within minutes at MovieLens-1M size
DAMPING = 1e-3
"""Of the Hessian of all parameters: APT's, 1/J of the published schedule. With 1e-4
it is not definite at this age (measured at 4 factors, MovieLens-100K: smallest eigenvalue -1.5e-4).
"""
BLOCK_DAMPING = {"fast": 1e-6, "user": 1e-2}
TERMS = {"ml-100k": 1000, "ml-1m": 200}
BATCH = 16_384
"""The schedule of APT's released code: steps J by data set, ratings a step; scale 1, no damping, one repeat."""
EPOCHS, REFERENCES, HIGHEST, L2 = 15, 10, 5.0, 1e-12
TOLERANCE = 1e-8


@dataclass
class Options(apart.Options):
    """Options of the benchmark."""

    asked: list[Literal["user", "vector"]] = field(default_factory=lambda: ["user", "vector"])
    """which of the two questions"""
    sizes: list[Literal["ml-100k", "ml-1m"]] = field(default_factory=lambda: ["ml-100k", "ml-1m"])
    """which data sizes"""
    factors: list[int] = field(default_factory=lambda: [4, 64])
    """factors of a user and of an item; 64 are APT's"""
    methods: list[str] = field(default_factory=lambda: list(dict.fromkeys((*USER, *VECTOR))))
    """which methods"""
    gigabytes: float = 4.0
    """a Hessian larger than this is said to be too large"""
    quick: bool = False
    """ML-100K size, 4 factors"""


def main(options: Options) -> None:
    """Measure what has no row yet, print, write."""
    from rich.console import Console

    console = Console(width=130)
    path = options.out / ("influence-quick.json" if options.quick else "influence.json")

    def note(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        console.print(influence_report.line(row))
        influence_report.write(path, rows, apart.machine())

    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        rows = apart.measured(
            "influence.py",
            path,
            [] if options.report_only else tasks(options),
            options,
            note=note,
        )
    console.print()
    influence_report.show(console, rows)
    if rows:
        influence_report.figure(rows, path.with_suffix(".png"))
        console.print(f"rows: {path.name}, picture: {path.with_suffix('.png').name}, in {options.out}")


def tasks(options: Options) -> list[dict[str, Any]]:
    """What is to be measured, the smaller size first, what takes minutes last."""
    sizes, factors = (["ml-100k"], [4]) if options.quick else (options.sizes, options.factors)
    found = [
        {"asked": asked, "method": method, "size": size, "factors": count}
        | ({"gigabytes": options.gigabytes} if method == "dense" else {})
        for size in sizes
        for count in factors
        for asked in options.asked
        for method in (USER if asked == "user" else VECTOR)
        if method in options.methods and (size == "ml-100k" or method not in SMALL_ONLY)
    ]
    return sorted(found, key=lambda task: LAST.index(task["method"]) if task["method"] in LAST else -1)


# ------------------------------------------------------------------------------------------------ exact answers


class Factors(NamedTuple):
    """Matrix factorization in float64: vectors of users and items, and the ratings in [0, 1]."""

    P: np.ndarray
    Q: np.ndarray
    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """(E,) rating minus prediction."""
        return self.rating - pairs(self.P, self.Q, self.user, self.item)


def pairs(P: np.ndarray, Q: np.ndarray, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """`p_u . q_i` of each rating, a block of ratings at a time."""
    found = np.empty(len(user))
    for first in range(0, len(user), 65_536):
        some = slice(first, first + 65_536)
        found[some] = np.einsum("ed,ed->e", P[user[some]], Q[item[some]])
    return found


def cells(of: Factors, values: np.ndarray) -> Any:
    """Values of the ratings as a sparse matrix."""
    from scipy.sparse import csr_matrix

    return csr_matrix((values, (of.user, of.item)), shape=(len(of.P), len(of.Q)))


def product(of: Factors) -> Callable[[np.ndarray], np.ndarray]:
    """`v -> H v` of `L = mean (r - p.q)^2 + l2 (mean p^2 + mean q^2)` over ratings, `v` users then items, flat.

    The derivative of `dL/dp_u = -(2/E) sum_i e_ui q_i` along v is `(2/E) sum_i (d_ui q_i - e_ui v_i)`, with
    `d_ui = v_u . q_i + p_u . v_i`.
    """
    E, D = len(of.user), of.P.shape[1]
    errors = cells(of, 2 / E * of.error)
    decay = [
        2 * L2 / (D * E) * np.bincount(ids, minlength=len(table))[:, None]
        for ids, table in ((of.user, of.P), (of.item, of.Q))
    ]

    def times(v: np.ndarray) -> np.ndarray:
        U, V = split(of, v)
        d = pairs(U, of.Q, of.user, of.item) + pairs(of.P, V, of.user, of.item)
        S = cells(of, 2 / E * d)
        users, items = S @ of.Q - errors @ V + decay[0] * U, S.T @ of.P - errors.T @ U + decay[1] * V
        return np.concatenate([users.ravel(), items.ravel()])

    return times


def split(of: Factors, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A flat vector as tables of users and items."""
    return v[: of.P.size].reshape(of.P.shape), v[of.P.size :].reshape(of.Q.shape)


def slope(of: Factors) -> np.ndarray:
    """The gradient of the loss, flat."""
    E, D = len(of.user), of.P.shape[1]
    errors = cells(of, -2 / E * of.error)
    count = lambda ids, table: 2 * L2 / (D * E) * np.bincount(ids, minlength=len(table))[:, None]
    users = errors @ of.Q + count(of.user, of.P) * of.P
    items = errors.T @ of.P + count(of.item, of.Q) * of.Q
    return np.concatenate([users.ravel(), items.ravel()])


def minres(of: Factors, b: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    """`(H + damping I)^-1 b` and the relative residual, which is computed anew."""
    from scipy.sparse import linalg

    linear: Any = linalg.LinearOperator
    times = product(of)
    damped = lambda v: times(v.ravel()) + damping * v.ravel()
    operator = linear((b.size, b.size), matvec=damped, dtype=float)
    found, rest = np.zeros_like(b), b
    for _ in range(10):  # MINRES stops by another measure; what is left over is solved for again
        found = found + linalg.minres(operator, rest, rtol=1e-6, maxiter=200)[0]
        rest = b - damped(found)
        if np.linalg.norm(rest) < TOLERANCE * np.linalg.norm(b):
            break
    return found, float(np.linalg.norm(rest) / np.linalg.norm(b))


def right_side(of: Factors, asked: str, user: int, item: int) -> np.ndarray:
    """What the inverse Hessian is applied to: a score's gradient, or that of L, the direction of APT's `sigmoid(L)`."""
    if asked == "user":
        b = np.zeros(of.P.size + of.Q.size)
        users, items = split(of, b)  # views
        users[user], items[item] = of.Q[item], of.P[user]
        return b
    return slope(of)


def drops(of: Factors, v: np.ndarray, user: int) -> np.ndarray:
    """`-v . grad l_z`, `l_z = L(D) - L(D without z)` for each rating z of a user, by ascending item; L is a mean."""
    E, D = len(of.user), of.P.shape[1]
    U, V = split(of, v)
    mine = np.flatnonzero(of.user == user)
    mine = mine[np.argsort(of.item[mine], kind="stable")]
    p, q, e = of.P[user], of.Q[of.item[mine]], of.error[mine, None]
    own = (-2 * e * q + 2 * L2 / D * p) @ U[user] + np.sum(
        (-2 * e * p + 2 * L2 / D * q) * V[of.item[mine]], 1
    )
    # L without z is a mean over one rating fewer: the other ratings weigh more.
    return -(own / E - (E * (v @ slope(of)) - own) / (E * (E - 1)))


def block_drops(of: Factors, user: int, item: int, variant: str) -> np.ndarray:
    """The same when only the user's vector moves: "user" by its mean, "fast" by ACCENT's, over the item's rows too."""
    mine = np.flatnonzero(of.user == user)
    mine = mine[np.argsort(of.item[mine], kind="stable")]
    q, n = of.Q[of.item[mine]], len(mine)
    rows = n if variant == "user" else n + np.sum(of.item == item)
    H = 2 * q.T @ q + rows * BLOCK_DAMPING[variant] * np.eye(q.shape[1])
    return 2 * of.error[mine] * (q @ np.linalg.solve(H, of.Q[item]))


def vector(of: Factors, v: np.ndarray, users: np.ndarray) -> np.ndarray:
    """APT's eq. 5: `I_j = 2 / (n I) sum_z (v_z . q_j + p_z . v_j)`."""
    U, V = split(of, v)
    return 2 / (len(of.P) * len(of.Q)) * (U[users] @ of.Q.T + of.P[users] @ V.T).sum(0)


def agreement(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Relative error in the norm, and Spearman's rank correlation."""
    from scipy.stats import rankdata

    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    return {"rel_error": float(error), "spearman": float(np.corrcoef(rankdata(found), rankdata(exact))[0, 1])}


# ------------------------------------------------------------------------------------------------ beforehand


def prepare(task: dict[str, Any], path: Path) -> None:
    """Train the model of a task and solve for its exact answers; nothing of it is measured."""
    import jax
    import jax.numpy as jnp

    from defenses.influence import smallest
    from models.train import fit, seen

    train, _ = apart.events_of(task, "explicit")
    fitted = fit(model_of(task), train, jax.random.key(0))
    degrees = np.asarray(train.degrees())
    user = int(np.argsort(degrees, kind="stable")[len(degrees) // 2])
    one = jnp.array([user])
    item = int(jnp.argmax(jnp.where(seen(train, one), -jnp.inf, fitted.scores(one))[0]))
    params: Any = fitted.params
    references = np.asarray(smallest(train, REFERENCES))
    made = {"user": params["user"], "item": params["item"], "asked": [user, item], "references": references}
    of = factors_of(train, made)
    answers = {}
    for asked in ("user", "vector"):
        v, residual = minres(of, right_side(of, asked, user, item), DAMPING)
        answers[asked] = drops(of, v, user) if asked == "user" else vector(of, v, references)
        answers[f"{asked}_residual"] = residual
    part = path.with_suffix(".part.npz")
    np.savez(part, **made, **{f"exact_{name}": value for name, value in answers.items()})
    part.replace(path)


def prepared(task: dict[str, Any]) -> dict[str, Any]:
    """What `prepare` made for the size and factors of a task, by a process of its own where it is not there yet."""
    key = {name: task[name] for name in ("size", "events", "factors") if name in task}
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(os.environ.get(FOLDER, spare))
        path = folder / f"{'-'.join(str(value) for value in key.values())}.npz"
        if not path.exists():
            command = [sys.executable, "-P", __file__, "--prepare", json.dumps(key), str(path)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with np.load(path) as stored:
            return dict(stored)


def model_of(task: dict[str, Any]) -> Any:
    """APT's matrix factorization, as old as it is when APT asks first."""
    from models import registry

    return registry.make("mf", "apt-ml-100k", factors=task["factors"], epochs=EPOCHS)


def factors_of(train: Any, made: dict[str, Any]) -> Factors:
    """The model in float64."""
    real = np.asarray(train.real())
    user, item, rating = (np.asarray(part)[real] for part in (train.user, train.item, train.weight))
    P, Q = (np.asarray(made[name], float) for name in ("user", "item"))
    return Factors(P, Q, user, item, rating.astype(float) / HIGHEST)


# ------------------------------------------------------------------------------------------------ in the worker


class World(NamedTuple):
    """What a measurement works on: the data, the trained model and where its training stood, the question."""

    train: Any
    fitted: Any
    start: Any
    of: Factors
    made: dict[str, Any]
    user: int
    item: int


def measure(task: dict[str, Any], core: int) -> dict[str, Any]:
    """One measurement, on one core where the system lets a process choose."""
    from bilevel.devices import peak_rss

    clock, name = apart.pin(core)
    train, source = apart.events_of(task, "explicit")
    size = (train.users + train.items) * task["factors"]
    said = {
        "clock": name,
        "source": source,
        "ratings": int(train.count),
        "parameters": size,
        "gigabytes": 8 * size**2 / 1e9,
    }
    if task["method"] == "dense" and said["gigabytes"] > task["gigabytes"]:
        return {**said, "too_large": True}
    at = world(task, train)
    said |= {
        "history": int(np.sum(at.of.user == at.user)),
        "exact_residual": float(at.made[f"exact_{task['asked']}_residual"]),
    }
    before = peak_rss()
    methods = {"dense": dense, "user": explain, "vector": vector_by}
    found, cost = methods["dense" if task["method"] == "dense" else task["asked"]](task, at, clock)
    said |= {**cost, "data_mb": before / 1e6, "peak_mb": peak_rss() / 1e6}
    said |= agreement(found, at.made[f"exact_{task['asked']}"])
    if task["method"] in BLOCK_DAMPING:
        own = agreement(found, block_drops(at.of, at.user, at.item, task["method"]))
        said |= {f"own_{name}": value for name, value in own.items()}
    if task["method"] == "dense" and task["asked"] == "vector":
        said |= {f"undamped_{name}": value for name, value in undamped(task, at).items()}
    return said


def world(task: dict[str, Any], train: Any) -> World:
    """The data and the trained model of a task."""
    import jax
    import jax.numpy as jnp

    from models.train import Fitted, begin

    made = prepared(task)
    model = model_of(task)
    start = begin(model, train, jax.random.key(0))
    params = {**start.params, **{name: jnp.asarray(made[name]) for name in ("user", "item")}}
    fitted = Fitted(model, params, start.data, start.x, model.embed(params, start.x, start.data))
    user, item = (int(value) for value in made["asked"])
    return World(train, fitted, start, factors_of(train, made), made, user, item)


Clock = Callable[[], float]
Answer = tuple[np.ndarray, dict[str, Any]]


def explain(task: dict[str, Any], at: World, clock: Clock) -> Answer:
    """Every interaction of the user on its best unseen item: the library's variants, or LiSSA in place of its CG."""
    import jax
    import jax.numpy as jnp

    from models.explain import blocks, influences, whole

    method = task["method"]
    if method == "lissa-published":
        width = int(np.sum(at.of.user == at.user))

        def asked(fitted, train):
            own = blocks.own(train, jnp.asarray(at.user), width)
            solver = published(task, fitted)
            item = jnp.array([at.item])
            return whole.drops(
                fitted, train, jnp.asarray(at.user), item, own, solver, jax.random.key(0), direct=False
            )

        (drop, code), cost = once(clock, asked, at.fitted, at.train)
        return np.asarray(drop)[0], {**cost, "code": int(np.max(code))}

    damping = DAMPING if method == "full" else None

    def ask(users):
        began = clock()
        found = influences(at.fitted, at.train, users, 1, variant=method, damping=damping)
        return found, clock() - began

    _, first = ask([at.user])
    found, seconds = ask([at.user])
    assert found.item[0, 0] == at.item, "the library and the benchmark ask about another item"
    cost = {"seconds": seconds, "compile_seconds": first - seconds, "code": int(found.code[0])}
    if method != "full":  # the user's own block is small, so what a call costs is shared
        many = np.linspace(0, at.train.users - 1, 64).astype(int)
        ask(many)
        cost["many_seconds"] = ask(many)[1] / len(many)
    return found.drop[0, 0], cost


def vector_by(task: dict[str, Any], at: World, clock: Clock) -> Answer:
    """APT's influence vector with a solver of the library, or by the published schedule."""
    from defenses.influence import Point, influence_vector

    names: dict[str, Any] = {
        "cg": "cg",
        "gauss-newton": "gauss_newton",
        "identity": "identity",
        "lissa-block": "lissa_block",
    }

    def asked(fitted, train):
        chosen = names.get(task["method"]) or published(task, fitted)
        start = at.start._replace(data=fitted.data)
        point = Point(start, fitted.params, fitted.x, train)
        return influence_vector(
            fitted.model, point, solver=chosen, risk="code", references=REFERENCES, highest=HIGHEST
        )

    (found, code), cost = once(clock, asked, at.fitted, at.train)
    return np.asarray(found), {**cost, "code": int(code)}


def once(clock: Clock, function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, float]]:
    """What a function returns, compiled before it is run; seconds of both."""
    import jax

    began = clock()
    compiled = jax.jit(function).lower(*args).compile()
    ready = clock()
    found = jax.block_until_ready(compiled(*args))
    return found, {"seconds": clock() - ready, "compile_seconds": ready - began}


def published(task: dict[str, Any], fitted: Any) -> Any:
    """LiSSA as in APT's released code: `v <- g + v - H_b v`, H_b of 16,384 ratings, its users' and items' blocks only.

    Ratings of a step are drawn with replacement. The code is 0 whatever comes out: the schedule has no test.
    """
    import jax
    import jax.numpy as jnp
    from jax import lax

    import bilevel

    model, params, x, data = fitted.model, fitted.params, fitted.x, fitted.data
    slots, terms = data.user.shape[0], TERMS[task.get("size", "ml-100k")]
    count = min(BATCH, slots)

    def run(system: Any) -> bilevel.LinearResult:
        def step(j, v):
            index = jax.random.randint(jax.random.fold_in(jax.random.key(1), j), (count,), 0, slots)
            batch = bilevel.Batch(index, jnp.ones(count, bool))
            ctx = bilevel.Ctx(jax.random.key(0), jnp.asarray(0), batch)

            def along(name):
                gradient = jax.grad(lambda leaf: model.loss({**params, name: leaf}, x, data, ctx))
                return jax.jvp(gradient, (params[name],), (v[name],))[1]

            return {name: system.b[name] + v[name] - (along(name) if v[name].size else 0) for name in v}

        value, unknown = lax.fori_loop(0, terms, step, system.b), jnp.asarray(jnp.nan)
        return bilevel.LinearResult(value, unknown, jnp.asarray(terms), unknown, jnp.asarray(0, jnp.int32))

    return bilevel.LinearSolver("published", {}, run)


# ------------------------------------------------------------------------------------------------ dense


def dense(task: dict[str, Any], at: World, clock: Clock) -> Answer:
    """Form the Hessian in float64 by the engine's products, factorize it with damping, solve."""
    from scipy import linalg

    b = right_side(at.of, task["asked"], at.user, at.item)
    began = clock()
    H = formed(at)
    there = clock()
    H[np.diag_indices(len(H))] += DAMPING
    diagonal = np.diag(H).copy()
    try:
        factor = linalg.cho_factor(H, lower=True, overwrite_a=True, check_finite=False)
        kind, solve = "Cholesky", linalg.cho_solve
    except linalg.LinAlgError:  # not positive definite; the upper half is as it was
        H = np.triu(H, 1)
        H += H.T
        H[np.diag_indices(len(H))] = diagonal
        factor = linalg.lu_factor(H, overwrite_a=True, check_finite=False)
        kind, solve = "LU", linalg.lu_solve
    factorized = clock()
    found = answer(task, at, solve(factor, b, check_finite=False))
    done = clock()
    cost = {"seconds": done - began, "form_seconds": there - began, "factor_seconds": factorized - there}
    return found, {**cost, "solve_seconds": done - factorized, "factorization": kind, "compile_seconds": 0.0}


def answer(task: dict[str, Any], at: World, v: np.ndarray) -> np.ndarray:
    """The question's answer from `v = H^-1 b`."""
    return drops(at.of, v, at.user) if task["asked"] == "user" else vector(at.of, v, at.made["references"])


def formed(at: World, rows: int = 32) -> np.ndarray:
    """The Hessian in float64, some rows at a time; users, then items."""
    import jax
    import jax.numpy as jnp

    model = at.fitted.model
    with jax.enable_x64(True):
        data = at.fitted.data._replace(
            rating=jnp.asarray(np.asarray(at.train.weight, float) / HIGHEST), sound=jnp.asarray(1.0)
        )
        params = {
            "user": jnp.asarray(at.of.P),
            "item": jnp.asarray(at.of.Q),
            "fake": jnp.zeros((0, at.of.P.shape[1])),
        }
        ctx = at.start.inner.final_context(at.start.key)
        x, users, size = jnp.zeros((0, len(at.of.Q))), at.of.P.size, at.of.P.size + at.of.Q.size

        @jax.jit
        def some(data, params, first):
            def one(k):
                v = jnp.zeros(size).at[k].set(1.0, mode="drop")
                way = {
                    "user": v[:users].reshape(at.of.P.shape),
                    "item": v[users:].reshape(at.of.Q.shape),
                    "fake": params["fake"],
                }
                image = jax.jvp(jax.grad(lambda p: model.loss(p, x, data, ctx)), (params,), (way,))[1]
                return jnp.concatenate([image["user"].ravel(), image["item"].ravel()])

            return jax.vmap(one)(first + jnp.arange(rows))

        H = np.empty((size, size))
        for first in range(0, size, rows):
            H[first : first + rows] = np.asarray(some(data, params, first))[: size - first]
    return H


def undamped(task: dict[str, Any], at: World) -> dict[str, float]:
    """How far eq. 5 as printed, `H^-1` without damping, is from the damped answer; rows without a rating left out."""
    from scipy import linalg

    H = formed(at)
    there = np.flatnonzero(np.diag(H) > 0)
    if len(there) < len(H):
        H = H[np.ix_(there, there)]
    b = right_side(at.of, task["asked"], at.user, at.item)
    v = np.zeros_like(b)
    v[there] = linalg.lu_solve(linalg.lu_factor(H, overwrite_a=True, check_finite=False), b[there])
    return agreement(answer(task, at, v), at.made[f"exact_{task['asked']}"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(json.loads(sys.argv[2]), int(sys.argv[3]))))
    elif sys.argv[1:2] == ["--prepare"]:
        prepare(json.loads(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(tyro.cli(Options, description=__doc__))
