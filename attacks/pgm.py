"""Which interactions to believe: RAPU's probabilistic generative model of removed and perturbed data, fitted by EM.

Zhang, Tian, Li, Su, Yang, Zhao, Gao, "Data Poisoning Attack against Recommender System Using Incomplete and Perturbed
Data", KDD 2021 (RAPU), Alg. 1, eqs 3-4. Every cell (u, i) of the attacker's matrix is

    kept     with probability K = (kappa_u + kappa_i) / 2, else r = 0 for sure
    decent   if kept, with probability G = (gamma_u + gamma_i) / 2: r ~ N(predicted, sigma^2), else N(r_bar, sigma^2)

The E-step cannot be reduced to the observed cells as the squared loss can: at each of the many zeros it is a nonlinear
function of that cell's own prediction. It costs U x I, a block of users at a time, so memory is `block` x I.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from attacks.objective import CELLS

MStep = Literal["paper", "exact", "hard"]
TINY = 1e-30
"""The least density of a cell, as a share of its largest: an underflow would be 0/0."""


class Ratios(NamedTuple):
    """What EM estimates, each in [0, 1]: how much of a user's and of an item's data is kept, and is decent if kept."""

    kappa_user: Float[Array, " U"]
    kappa_item: Float[Array, " I"]
    gamma_user: Float[Array, " U"]
    gamma_item: Float[Array, " I"]


class Matrix(NamedTuple):
    """The cells EM reads, a block of users at a time.

    Attributes:
        clicked: user ids `(B,)` to what they clicked, `(B, I)` bool.
        predicted: user ids `(B,)` to the recommender's predictions, `(B, I)`.
        r_bar: mean of the perturbed cells, a scalar.
    """

    clicked: Callable[[Int[Array, " B"]], Bool[Array, "B I"]]
    predicted: Callable[[Int[Array, " B"]], Float[Array, "B I"]]
    r_bar: Float[Array, ""] | float


class Fit(NamedTuple):
    """The end of EM: ratios, iterations made, and how far the last one moved any ratio."""

    ratios: Ratios
    iterations: Int[Array, ""]
    moved: Float[Array, ""]


class Densities(NamedTuple):
    """How likely each cell `(B, I)` of a block is, whatever the ratios: all over the larger of its two densities.

    Attributes:
        clicked: whether it is a click.
        decent, noise: `N(r; predicted)` and `N(r; r_bar)`; the larger is 1.
        one: 1, that is the mass of a zero that was removed.
        log_decent, log_noise: logarithms of the two densities, for the likelihood.
    """

    clicked: Bool[Array, "B I"]
    decent: Float[Array, "B I"]
    noise: Float[Array, "B I"]
    one: Float[Array, "B I"]
    log_decent: Float[Array, "B I"]
    log_noise: Float[Array, "B I"]


class Cells(NamedTuple):
    """E-step of a block: `kept = E[delta_1]`, `decent = E[delta_2 | delta_1 = 1]`, log-likelihood; each `(B, I)`."""

    kept: Float[Array, "B I"]
    decent: Float[Array, "B I"]
    log_likelihood: Float[Array, "B I"]


@dataclass(frozen=True)
class Pgm:
    """The settings of the model and of its EM, checked.

    Args:
        sigma: standard deviation of an interaction, > 0.
        r_bar: mean of a perturbed cell: `"mean"` of the attacker's matrix (the paper), or a number (0.5 in the code).
        m_step: `"paper"`: eq. 4 with soft responsibilities; `"exact"`: the maximizer of the expected log-likelihood;
            `"hard"`: eq. 4 with `delta_1` cut at 1/2 in every E-step, and `delta_2` at the end, as in the code.
        start: initial value of every ratio, in (0, 1).
        iterations: most iterations of EM, >= 1.
        tolerance: EM ends when no ratio moves as much, >= 0.
        block: users at a time, >= 1; None: as many as fit in `attacks.objective.CELLS` cells.

    Raises:
        ValueError: an argument out of its range.

    Reference: Zhang et al. (RAPU), KDD 2021, Alg. 1, eqs 3-4; section 5.1.5 for sigma and start.

    **Differs from the paper:** eq. 4 is not the maximizer, because `K` and `G` are averages; `m_step="exact"` has the
    missing indicator of whether the user or the item decided. Eq. 3 prints `delta_1 = 0` where the second expectation
    is given `delta_1 = 1`. The number of iterations is bounded, and rows of 0/0 keep their value (the code loops on).
    With `r_bar="mean"` the model is inert on sparse data: a zero's density `N(0; 0, sigma^2)` is above 1, removal has
    a probability mass below it, so `kappa` goes to 1 and nothing counts as removed.

    >>> Pgm(r_bar=0.5).m_step
    'paper'
    """

    sigma: float = 0.3
    r_bar: Literal["mean"] | float = "mean"
    m_step: MStep = "paper"
    start: float = 0.8
    iterations: int = 50
    tolerance: float = 1e-5
    block: int | None = None

    def __post_init__(self) -> None:
        if self.m_step not in get_args(MStep):
            raise ValueError(f"m_step is {self.m_step!r}; expected {', '.join(map(repr, get_args(MStep)))}")
        if self.r_bar != "mean":
            _number("r_bar", self.r_bar, -math.inf, math.inf, "'mean' or a finite number, such as 0.5")
        _number("sigma", self.sigma, 0, math.inf, "a finite number > 0")
        _number("start", self.start, 0, 1, "a number in (0, 1)")
        if self.tolerance != 0:
            _number("tolerance", self.tolerance, 0, math.inf, "a finite number >= 0")
        _count("iterations", self.iterations)
        if self.block is not None:
            _count("block", self.block)

    def begin(self, users: int, items: int) -> Ratios:
        """Every ratio at `start`."""
        sizes = (users, items, users, items)
        return Ratios(*(jnp.full(size, self.start, jnp.result_type(float)) for size in sizes))


def em(pgm: Pgm, matrix: Matrix, ratios: Ratios) -> Fit:
    """EM from `ratios` until nothing moves or `pgm.iterations` are made.

    Args:
        pgm: the settings.
        matrix: the cells; its arrays are not differentiated here, stop their gradients first.
        ratios: where to start: `pgm.begin`, or the end of an earlier EM.

    Returns:
        `Fit`.

    Reference: Zhang et al. (RAPU), KDD 2021, Alg. 2, line 5.

    **Differs from the paper:** see `Pgm`.

    >>> x = jnp.eye(4, 6) > 0
    >>> matrix = Matrix(lambda u: x[u], lambda u: 0.9 * x[u], r_bar=0.5)
    >>> fit = em(Pgm(m_step="exact"), matrix, Pgm().begin(4, 6))
    >>> bool((fit.ratios.gamma_user > 0.9).all())
    True
    """

    users = ratios.kappa_user.shape[0]
    whole = _block(pgm, ratios) >= users
    known = densities(pgm, matrix, jnp.arange(users, dtype=jnp.int32)) if whole else None

    def go_on(fit: Fit):
        return (fit.moved >= pgm.tolerance) & (fit.iterations < pgm.iterations)

    def iterate(fit: Fit) -> Fit:
        new = _m_step(pgm, matrix, fit.ratios, known)
        moved = [jnp.max(jnp.abs(a - b), initial=0) for a, b in zip(new, fit.ratios)]
        return Fit(new, fit.iterations + 1, jnp.max(jnp.stack(moved)))

    first = Fit(ratios, jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, ratios.kappa_user.dtype))
    return lax.while_loop(go_on, iterate, first)


def densities(pgm: Pgm, matrix: Matrix, users: Int[Array, " B"]) -> Densities:
    """What EM needs of the cells of a block of users; all of EM's exponentials are here.

    No density is below 1e-30 of the other, which decides what the ratios 0 and 1 leave undecided.
    """
    clicked, predicted = matrix.clicked(users), matrix.predicted(users)
    r = clicked.astype(predicted.dtype)
    decent, noise = _log_normal(r, predicted, pgm.sigma), _log_normal(r, matrix.r_bar, pgm.sigma)
    larger = jnp.maximum(decent, noise)
    share = lambda log: jnp.clip(jnp.exp(log - larger), TINY, 1 / TINY)
    return Densities(clicked, share(decent), share(noise), share(jnp.zeros_like(larger)), decent, noise)


def e_step(
    pgm: Pgm, matrix: Matrix, ratios: Ratios, users: Int[Array, " B"], known: Densities | None = None
) -> Cells:
    """What each cell of a block of users is, given the ratios.

    `M = G N(r; predicted) + (1 - G) N(r; r_bar)`; `kept = 1` at a click, else `K M / (K M + 1 - K)`;
    `decent = G N(r; predicted) / M`.

    Args:
        pgm, matrix, ratios: as in `em`.
        users: ids, `(B,)`.
        known: the densities of the block, where they are known; None: they are computed.

    Returns:
        `Cells`; its likelihood is `K M` at a click, else `K M + 1 - K`.

    Reference: Zhang et al. (RAPU), KDD 2021, eq. 3.

    **Differs from the paper:** the misprint of eq. 3, see `Pgm`.
    """
    K, G = _averages(ratios, users)
    cell = densities(pgm, matrix, users) if known is None else known
    decent = G * cell.decent
    either = decent + (1 - G) * cell.noise
    kept, removed = K * either, (1 - K) * cell.one
    log_kept = jnp.log(K) + jnp.logaddexp(jnp.log(G) + cell.log_decent, jnp.log1p(-G) + cell.log_noise)
    return Cells(
        jnp.where(cell.clicked, 1, kept / (kept + removed)),
        decent / either,
        jnp.where(cell.clicked, log_kept, jnp.logaddexp(log_kept, jnp.log1p(-K))),
    )


def responsibilities(
    pgm: Pgm, matrix: Matrix, ratios: Ratios, users: Int[Array, " B"]
) -> Float[Array, "B I"]:
    """How far each cell of a block is real data, `E[delta_1 delta_2]`, in [0, 1]; 0 or 1 under `m_step="hard"`.

    >>> x = jnp.eye(2, 3) > 0
    >>> matrix = Matrix(lambda u: x[u], lambda u: 0.8 * x[u], r_bar=0.5)
    >>> responsibilities(Pgm(m_step="hard"), matrix, Pgm().begin(2, 3), jnp.array([1])).tolist()
    [[1.0, 1.0, 1.0]]
    """
    cells = e_step(pgm, matrix, ratios, users)
    if pgm.m_step == "hard":
        return ((cells.kept > 0.5) & (cells.decent > 0.5)).astype(cells.kept.dtype)
    return cells.kept * cells.decent


def log_likelihood(pgm: Pgm, matrix: Matrix, ratios: Ratios) -> Float[Array, ""]:
    """Observed log-likelihood: `sum log(K M)` over the clicks plus `sum log(K M + 1 - K)` over the zeros."""

    def add(total, users, real):
        return total + jnp.sum(real[:, None] * e_step(pgm, matrix, ratios, users).log_likelihood), ()

    return _over_users(pgm, ratios, add, jnp.zeros((), ratios.kappa_user.dtype))[0]


# ------------------------------------------------------------------------------------------------ inside


class _Sums(NamedTuple):
    """Numerators and denominators of the two ratios, per user or per item."""

    kappa: Array
    kappa_of: Array
    gamma: Array
    gamma_of: Array


def _m_step(pgm: Pgm, matrix: Matrix, ratios: Ratios, known: Densities | None = None) -> Ratios:
    count = _exact_counts if pgm.m_step == "exact" else _paper_counts

    def add(total: _Sums, users, real):
        cells = e_step(pgm, matrix, ratios, users, known)
        if pgm.m_step == "hard":
            cells = cells._replace(kept=(cells.kept > 0.5).astype(cells.kept.dtype))
        of_users, of_items = count(cells, ratios, users)
        total = _Sums(*(t + jnp.sum(real[:, None] * s, 0) for t, s in zip(total, of_items)))
        return total, _Sums(*(jnp.sum(s, 1) for s in of_users))

    zero = jnp.zeros_like(ratios.kappa_item)
    items, users = _over_users(pgm, ratios, add, _Sums(zero, zero, zero, zero))
    return Ratios(
        _divide(users.kappa, users.kappa_of, ratios.kappa_user),
        _divide(items.kappa, items.kappa_of, ratios.kappa_item),
        _divide(users.gamma, users.gamma_of, ratios.gamma_user),
        _divide(items.gamma, items.gamma_of, ratios.gamma_item),
    )


def _paper_counts(cells: Cells, ratios: Ratios, users: Int[Array, " B"]) -> tuple[_Sums, _Sums]:
    """Eq. 4: `kappa = mean kept`, `gamma = sum kept decent / sum kept`, alike for users and items."""
    both = _Sums(cells.kept, jnp.ones_like(cells.kept), cells.kept * cells.decent, cells.kept)
    return both, both


def _exact_counts(cells: Cells, ratios: Ratios, users: Int[Array, " B"]) -> tuple[_Sums, _Sums]:
    """Expected counts where the user, and where the item, decided whether a cell is kept, and whether it is decent.

    Given the outcome, the user decided with probability `kappa_u / 2K` or `(1 - kappa_u) / 2(1 - K)`.
    """
    K, G = _averages(ratios, users)
    kept, removed = _split(cells.kept, ratios.kappa_user[users], K)
    decent, noise = _split(cells.decent, ratios.gamma_user[users], G)
    weight = cells.kept
    of_users = _Sums(kept, kept + removed, weight * decent, weight * (decent + noise))
    kept, removed = cells.kept - kept, 1 - cells.kept - removed
    decent, noise = cells.decent - decent, 1 - cells.decent - noise
    return of_users, _Sums(kept, kept + removed, weight * decent, weight * (decent + noise))


def _split(yes: Float[Array, "B I"], own: Float[Array, " B"], mean: Float[Array, "B I"]):
    """The parts of `yes` and of `1 - yes` that the user decided; an outcome that cannot happen is halved."""
    own = own[:, None]
    of_yes = jnp.where(mean > 0, own / (2 * jnp.where(mean > 0, mean, 1)), 0.5)
    of_no = jnp.where(mean < 1, (1 - own) / (2 * jnp.where(mean < 1, 1 - mean, 1)), 0.5)
    return yes * of_yes, (1 - yes) * of_no


def _divide(part: Array, whole: Array, old: Array) -> Array:
    fine = whole > 0
    return jnp.where(fine, jnp.clip(part / jnp.where(fine, whole, 1), 0, 1), old)


def _averages(ratios: Ratios, users: Int[Array, " B"]) -> tuple[Float[Array, "B I"], Float[Array, "B I"]]:
    K = (ratios.kappa_user[users][:, None] + ratios.kappa_item) / 2
    return K, (ratios.gamma_user[users][:, None] + ratios.gamma_item) / 2


def _log_normal(r: Any, mean: Any, sigma: float) -> Array:
    return -0.5 * ((r - mean) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))


def _over_users(pgm: Pgm, ratios: Ratios, add: Callable[..., Any], total: Any) -> tuple[Any, Any]:
    """`total, rows = add(total, users, real)` over blocks of users; `rows` come back as `(U, ...)`.

    The last block is filled up with the last user, where `real` is 0.
    """
    users = ratios.kappa_user.shape[0]
    block = _block(pgm, ratios)
    dtype = ratios.kappa_user.dtype
    if block >= users:
        return add(total, jnp.arange(users, dtype=jnp.int32), jnp.ones(users, dtype))

    def body(total, start):
        ids = start + jnp.arange(block, dtype=jnp.int32)
        return add(total, jnp.minimum(ids, users - 1), (ids < users).astype(dtype))

    total, rows = lax.scan(body, total, jnp.arange(0, users, block, dtype=jnp.int32))
    return total, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:users], rows)


def _block(pgm: Pgm, ratios: Ratios) -> int:
    return max(1, CELLS // ratios.kappa_item.shape[0]) if pgm.block is None else pgm.block


def _count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected an integer >= 1")


def _number(name: str, value: Any, low: float, high: float, expected: str) -> None:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not low < float(value) < high:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
