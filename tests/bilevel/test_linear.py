"""Krylov solvers and the door they go through: right numbers, or a code that says they are not."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel.linear import (
    Code,
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
from bilevel.linear.solver import zero_level

N = 10
slow = pytest.mark.slow


def matrix(eigenvalues, seed=0):
    """A symmetric matrix with the given eigenvalues and random eigenvectors."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray((q * np.asarray(eigenvalues)) @ q.T), jnp.asarray(q)


def vector(seed=1, n=N):
    return jnp.asarray(np.random.default_rng(seed).normal(size=n))


@functools.cache
def compiled(solver, symmetric):
    """One compilation a solver: the tests draw values, not shapes."""
    return jax.jit(lambda a, b, start: solver.solve(lambda v: a @ v, b, start=start, symmetric=symmetric))


def solve(solver, a, b, *, start=None, symmetric=True):
    return compiled(solver, symmetric)(a, b, start)


def code(result) -> Code:
    return Code(int(result.code))


def error(value, reference) -> float:
    return float(jnp.linalg.norm(value - reference) / jnp.linalg.norm(reference))


TIGHT = {
    "cg": cg(rtol=1e-10),
    "gmres": gmres(rtol=1e-10),
    "normal_cg": normal_cg(rtol=1e-10),
    "neumann": neumann(4000, rtol=1e-8),
    "lissa": lissa(4000, rtol=1e-8),
    "nystrom": nystrom(N, damping=1e-9, rtol=1e-8),
    "dense": dense(rtol=1e-10),
}
DEFINITE = [name for name in TIGHT if name not in ("gmres", "normal_cg")]


@pytest.mark.parametrize("name", TIGHT)
def test_spd_10_by_10(x64, name):
    a, _ = matrix(np.linspace(1.0, 20.0, N))
    b = vector()
    result = solve(TIGHT[name], a, b)
    assert code(result) is Code.OK
    assert error(result.value, jnp.linalg.solve(a, b)) < 1e-6
    true_residual = jnp.linalg.norm(a @ result.value - b) / jnp.linalg.norm(b)
    assert float(result.residual) == pytest.approx(
        float(true_residual), abs=1e-8
    )  # nystrom's has the damping
    assert int(result.iterations) >= 1


@pytest.mark.parametrize("name", [name for name in TIGHT if name != "nystrom"])  # whose damping has a unit
def test_scale_free(x64, name):
    """Neither the unit of the matrix nor that of the right-hand side changes what is said."""
    a, _ = matrix(np.linspace(1.0, 20.0, N))
    b = vector()
    for unit in (1e-9, 1e9):
        result = solve(TIGHT[name], unit * a, b / unit)
        assert code(result) is Code.OK
        assert error(result.value, jnp.linalg.solve(a, b) / unit**2) < 1e-6


@pytest.mark.parametrize("name", DEFINITE)
def test_indefinite_is_reported(x64, name):
    a, _ = matrix([*np.linspace(1.0, 20.0, N - 1), -0.5])
    result = solve(TIGHT[name], a, vector())
    assert code(result) is Code.INDEFINITE
    assert -0.5 - 1e-9 <= float(result.negative_curvature) < 0


@pytest.mark.parametrize("name", ["gmres", "normal_cg"])
def test_solvers_that_need_no_definiteness(x64, name):
    a, _ = matrix([*np.linspace(1.0, 20.0, N - 1), -0.5])
    b = vector()
    result = solve(TIGHT[name], a, b)
    assert code(result) is Code.OK
    assert error(result.value, jnp.linalg.solve(a, b)) < 1e-6


def test_small_negative_curvature_that_a_probe_misses(x64):
    """One eigenvalue of 30, at -1e-4 of the largest: 20 Lanczos steps do not see it, the search directions do."""
    a, _ = matrix([*np.logspace(0, -4, 29), -1e-4])
    b = vector(n=30)
    assert float(spectrum(lambda v: a @ v, b, steps=20, start=b).smallest) > 0
    result = solve(cg(rtol=1e-12, max_steps=400), a, b)
    assert float(result.residual) < 1e-12  # the number would pass
    assert code(result) is Code.INDEFINITE


def test_negative_curvature_the_right_side_does_not_excite(x64):
    a = jnp.diag(jnp.array([1.0, 2.0, -1.0]))
    b = jnp.array([1.0, 1.0, 0.0])
    assert code(solve(cg(), a, b)) is Code.INDEFINITE
    assert code(solve(cg(probe=0), a, b)) is Code.OK  # documented: without the probe it is not looked for


@pytest.mark.parametrize("name", ["cg", "gmres", "normal_cg", "neumann", "lissa", "dense"])
def test_singular(x64, name):
    a, q = matrix([*np.linspace(1.0, 20.0, N - 2), 0.0, 0.0])
    inside = a @ vector()
    consistent = solve(TIGHT[name], a, inside)
    assert code(consistent) is Code.OK
    assert error(a @ consistent.value, inside) < 1e-8
    inconsistent = solve(TIGHT[name], a, inside + q[:, -1])
    assert code(inconsistent) in (Code.SINGULAR, Code.NOT_CONVERGED)
    if name in ("cg", "dense", "neumann", "lissa"):
        assert code(inconsistent) is Code.SINGULAR
    assert float(inconsistent.residual) > 1e-3


@pytest.mark.parametrize("name", ["cg", "normal_cg", "dense"])
def test_least_norm_solution_of_a_singular_system(x64, name):
    a, _ = matrix([*np.linspace(1.0, 20.0, N - 2), 0.0, 0.0])
    inside = a @ vector()
    assert error(solve(TIGHT[name], a, inside).value, jnp.linalg.pinv(a) @ inside) < 1e-8


def test_diverging_cg_returns_its_best_iterate(x64):
    a, q = matrix([*np.linspace(1.0, 20.0, N - 2), 0.0, 0.0])
    result = solve(cg(max_steps=200), a, a @ vector() + q[:, -1])
    assert float(result.residual) <= 1
    assert bool(jnp.isfinite(result.value).all())


@pytest.mark.parametrize("name", TIGHT)
def test_non_finite(x64, name):
    a, _ = matrix(np.linspace(1.0, 20.0, N))
    b = vector()
    assert code(solve(TIGHT[name], a.at[2, 3].set(jnp.nan), b)) is Code.NON_FINITE
    assert code(solve(TIGHT[name], a, b.at[0].set(jnp.inf))) is Code.NON_FINITE


@pytest.mark.parametrize("name", TIGHT)
def test_zero_right_side_and_zero_matrix(x64, name):
    a, _ = matrix(np.linspace(1.0, 20.0, N))
    nothing = solve(TIGHT[name], a, jnp.zeros(N))
    assert code(nothing) is Code.OK
    assert float(jnp.abs(nothing.value).max()) == 0
    if name != "nystrom":  # its damping makes the zero matrix a regular one
        assert code(solve(TIGHT[name], 0 * a, vector())) in (Code.SINGULAR, Code.NOT_CONVERGED)


@pytest.mark.parametrize(
    "name", ["cg", "lissa", "dense", *(pytest.param(n, marks=slow) for n in ("gmres", "normal_cg"))]
)
def test_damping_is_added_to_the_diagonal(x64, name):
    factory = {"cg": cg, "gmres": gmres, "normal_cg": normal_cg, "dense": dense}.get(name)
    options = {"damping": 2.0, "rtol": 1e-9}
    solver = factory(**options) if factory else lissa(2000, **options)
    a, _ = matrix([*np.linspace(1.0, 20.0, N - 1), -0.5])
    b = vector()
    result = solve(solver, a, b)
    assert code(result) is Code.OK  # damping made it definite
    assert error(result.value, jnp.linalg.solve(a + 2 * jnp.eye(N), b)) < 1e-8


@given(low=st.floats(0, 9), seed=st.integers(0, 2**31))
def test_any_condition_number_right_or_not_ok(x64, low, seed):
    """Over 32 drawn matrices an example: accurate to 1e-10 up to a condition number of 1e3, and never wrong and OK."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(32, N, N)))[0]
    condition = 10.0 ** rng.uniform(low, low + 3, size=(32, 1))
    values = condition ** (
        -np.sort(np.concatenate([np.zeros((32, 1)), np.ones((32, 1)), rng.uniform(size=(32, N - 2))], 1))
    )
    a = jnp.asarray(np.einsum("bij,bj,bkj->bik", q, values, q))
    b = jnp.asarray(rng.normal(size=(32, N)))
    value, codes = _many(a, b)
    exact = np.einsum("bij,bj->bi", q, np.einsum("bij,bi->bj", q, np.asarray(b)) / values)
    errors = np.linalg.norm(value - exact, axis=1) / np.linalg.norm(exact, axis=1)
    fine = np.asarray(codes) == Code.OK
    assert fine[condition[:, 0] <= 1e3].all()
    assert (errors[condition[:, 0] <= 1e3] <= 1e-10).all()
    bound = condition[:, 0] * (1e-12 + 1e-14)  # what the residual promises, and rounding of the matrix itself
    assert (errors[fine] <= bound[fine]).all()


@jax.jit
def _many(a, b):
    solver = cg(rtol=1e-12, max_steps=200)
    result = jax.vmap(lambda a, b: solver.solve(lambda v: a @ v, b))(a, b)
    return result.value, result.code


@pytest.mark.parametrize("name", ["cg", "gmres", pytest.param("nystrom", marks=slow)])
def test_vmap_equals_loop(x64, name):
    a = jnp.stack([matrix(np.linspace(1.0, 20.0 + i, N), i)[0] for i in range(3)])
    b = jnp.stack([vector(i) for i in range(3)])
    together = jax.jit(jax.vmap(lambda a, b: TIGHT[name].solve(lambda v: a @ v, b)))(a, b)
    for i in range(3):
        alone = solve(TIGHT[name], a[i], b[i])
        assert error(together.value[i], alone.value) < 1e-8
        assert int(together.code[i]) == int(alone.code)


@pytest.mark.slow
def test_warm_start(x64):
    a, _ = matrix(np.linspace(1.0, 20.0, N))
    b = vector()
    exact = jnp.linalg.solve(a, b)
    near = exact * (1 + 1e-6)
    for solver in (cg(rtol=1e-5), gmres(rtol=1e-5, restart=5)):
        cold, warm = solve(solver, a, b), solve(solver, a, b, start=near)
        assert code(cold) is Code.OK
        assert code(warm) is Code.OK
        assert int(warm.iterations) < int(cold.iterations)
    for solver in (neumann(3, rtol=1e-5), dense()):
        assert code(solve(solver, a, b, start=near)) is Code.OK


@pytest.mark.parametrize("name", ["cg", pytest.param("neumann", marks=slow)])
@pytest.mark.slow
def test_derivatives_of_a_solve(x64, name):
    """Gradient, forward mode and Hessian of a function of the solution, in the matrix and in the right-hand side."""
    a, _ = matrix(np.linspace(1.0, 5.0, 4))
    b = vector(n=4)
    solver = {**TIGHT, "nystrom": nystrom(4, damping=1e-12, rtol=1e-8)}[name]

    def ours(a, b):
        return jnp.sum(jnp.sin(solver.solve(lambda v: a @ v, b).value))

    def reference(a, b):
        return jnp.sum(jnp.sin(jnp.linalg.solve((a + a.T) / 2, b)))

    def symmetric(f):  # the solvers may assume symmetry, so only symmetric directions mean anything
        return lambda l, b: f(l @ l.T + a, b)

    low = jnp.tril(jnp.ones((4, 4))) * 0.1
    for got, want in zip(*(jax.jit(jax.grad(symmetric(f), (0, 1)))(low, b) for f in (ours, reference))):
        assert error(got, want) < 1e-6
    got = jax.jit(jax.jacfwd(symmetric(ours), 1))(low, b)
    assert error(got, jax.grad(symmetric(reference), 1)(low, b)) < 1e-6
    got = jax.jit(jax.hessian(symmetric(ours), 1))(low, b)
    assert error(got, jax.hessian(symmetric(reference), 1)(low, b)) < 1e-5


@pytest.mark.parametrize(
    "solver", [gmres(rtol=1e-10), normal_cg(rtol=1e-10), dense(), neumann(200, rtol=1e-9)], ids=repr
)
def test_unsymmetric(x64, solver):
    a = jnp.eye(N) - 0.5 * matrix(np.ones(N))[1]  # I - T' with T of norm 1/2
    b = vector()
    result = solve(solver, a, b, symmetric=False)
    assert code(result) is Code.OK
    assert error(result.value, jnp.linalg.solve(a, b)) < 1e-8
    gradient = jax.grad(lambda a: jnp.sum(solver.solve(lambda v: a @ v, b, symmetric=False).value))(a)
    assert error(gradient, jax.grad(lambda a: jnp.sum(jnp.linalg.solve(a, b)))(a)) < 1e-6


def test_float32_many_unknowns():
    """n = 1e5 in float32: where an absolute guard of `200 eps n > 1` would give up on a matrix as tame as this."""
    diagonal = jnp.linspace(0.5, 1.0, 100_000)
    result = solve_diagonal(cg(rtol=1e-5), diagonal, jnp.ones(100_000))
    assert code(result) is Code.OK
    np.testing.assert_allclose(result.value, 1 / diagonal, rtol=1e-4)


def solve_diagonal(solver, diagonal, b):
    return jax.jit(lambda d, b: solver.solve(lambda v: d * v, b))(diagonal, b)


@pytest.mark.slow
def test_pytrees_of_mixed_shapes_and_dtypes(x64):
    b = {"a": jnp.ones((2, 3), jnp.float32), "b": [jnp.ones((), jnp.float64)]}
    for solver in (cg(rtol=1e-6), gmres(rtol=1e-6), dense()):
        result = solver.solve(lambda v: jax.tree.map(lambda leaf: 4 * leaf, v), b)
        assert code(result) is Code.OK
        assert result.value["a"].dtype == jnp.float32
        assert float(result.value["b"][0]) == pytest.approx(0.25)


def test_a_solver_is_a_value():
    solver = cg(rtol=1e-3, preconditioner="block_jacobi")
    assert (
        repr(solver) == "cg(rtol=0.001, max_steps=200, damping=0.0, preconditioner='block_jacobi', probe=20)"
    )
    assert hash(solver) != hash(cg())
    assert (
        jax.eval_shape(lambda b: solver(lambda v: 2 * v, b, blocks=jnp.eye(3)), jnp.ones(3)).code.dtype
        == jnp.int32
    )
    assert all(item.advice for item in Code)


def test_spectrum(x64):
    a, _ = matrix([-3.0, *np.linspace(1.0, 20.0, 28), 50.0])
    ends = spectrum(lambda v: a @ v, vector(n=30), steps=30)
    assert float(ends.smallest) == pytest.approx(-3, abs=1e-8)
    assert float(ends.largest) == pytest.approx(50, abs=1e-8)
    assert float(ends.norm) == pytest.approx(50, abs=1e-8)
    short = spectrum(lambda v: a @ v, vector(n=30), steps=5)  # inside the true ends, whatever the steps
    assert -3 <= float(short.smallest) <= float(short.largest) <= 50
    identity = spectrum(lambda v: v, vector(n=30))  # an invariant subspace after one step
    assert (float(identity.smallest), float(identity.largest)) == pytest.approx((1, 1))
    assert zero_level(jnp.float64) < 1e-10


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: cg(rtol=0), "rtol=0: expected a finite number > 0"),
        (lambda: cg(damping=-1.0), "damping=-1.0: expected a finite number >= 0"),
        (lambda: cg(max_steps=0), "max_steps=0: expected an integer >= 1"),
        (lambda: cg(max_steps=2.5), "max_steps=2.5: expected an integer"),
        (lambda: cg(probe=-1), "probe=-1: expected an integer >= 0"),
        (lambda: cg(preconditioner="jacobi"), "expected None or 'block_jacobi'"),
        (lambda: gmres(restart=0), "restart=0"),
        (lambda: neumann(0), "terms=0"),
        (lambda: neumann(5, probe=0), "give step="),
        (lambda: lissa(5, scale=-1.0), "scale=-1.0"),
        (lambda: lissa(5, repeats=3), "minibatch=True"),
        (lambda: nystrom(0, damping=1.0), "rank=0"),
        (lambda: nystrom(3, damping=0.0), "damping=0.0: expected a finite number > 0"),
        (lambda: dense(max_size=0), "max_size=0"),
        (lambda: block(solver=cg()), "needs where="),
        (lambda: block(lambda v: v, solver=cg(), damping=1.0), "carries its own damping"),
    ],
)
def test_bad_settings(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("make", [cg, gmres, normal_cg, neumann, lissa, dense, nystrom, block])
def test_a_record_has_every_setting(make):
    given = {"neumann": {"terms": 3}, "lissa": {"terms": 3}, "nystrom": {"rank": 2, "damping": 1.0}}
    solver = make(**given.get(make.__name__, {}))
    assert solver.name == make.__name__
    assert list(solver.config) == list(inspect.signature(make).parameters)


@pytest.mark.parametrize(
    ("solver", "options", "error_type", "text"),
    [
        (cg(), {"start": jnp.ones(4)}, ValueError, "start has"),
        (cg(), {"symmetric": False}, ValueError, "needs a symmetric matrix"),
        (cg(preconditioner="block_jacobi"), {}, ValueError, "needs the diagonal blocks"),
        (
            cg(preconditioner="block_jacobi"),
            {"blocks": jnp.ones((3, 2))},
            ValueError,
            r"needs blocks \(3, 3\)",
        ),
        (lissa(3, minibatch=True), {}, ValueError, "minibatch products"),
        (dense(max_size=2), {}, ValueError, "at most max_size=2"),
    ],
)
def test_bad_systems(solver: LinearSolver, options, error_type, text):
    with pytest.raises(error_type, match=text):
        solver.solve(lambda v: v, jnp.ones(3), **options)


def test_integer_and_misshapen_systems():
    with pytest.raises(TypeError, match=r"b\['n'\] has dtype int32"):
        cg().solve(lambda v: v, {"n": jnp.arange(3)})
    with pytest.raises(ValueError, match="matvec returns"):
        cg().solve(lambda v: v[:2], jnp.ones(3))
