"""APT: training beside helpful users, who are made anew during training to lower the empirical risk.

Wu, Lian, Ge, Zhu, Chen, Yuan, *Fight fire with fire: Towards robust recommender systems via adversarial poisoning
training*, SIGIR 2021, eqs 3-5 and Algorithm 1; settings of the released code (Daftstone/APT).

    train T_pre epochs on D                                              D may be poisoned
    every T_inter epochs:
        I_j = -(1/n) grad L_ER' H^-1 d/dz_j grad L(z)                    influence of item j in a user's row z (eq. 5)
        each of n* users: m* items of {I_j < 0} without replacement, p ~ exp(-t I_j), I scaled to [-1, 0]
                          ratings N(mu_j, sigma_j), on the grid, plus a bonus
        train on D and these users

With `L(z) = (1/I) sum_j (z_j - s_zj)^2` over the scores of an existing user, `I_j = 2 / (n I) (J v)_zj`, `v = H^-1 grad
L_ER`: the scores' derivative along `v`, one forward-mode product for all items, whatever the recommender is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

import bilevel
from bilevel.unroll import run_some
from defenses.influence import Point, Risk, Solver, influence_vector
from models.data import Interactions
from models.recommender import Params, Recommender, counts, numbers, one_of
from models.train import Fitted, Start, begin

Selection = Literal["influence", "random"]


@dataclass(frozen=True, eq=False, repr=False)
class Defense:
    """A way to train a recommender on data that may be poisoned. Made by `apt`.

    Attributes:
        name, config: what it is, for records.
        model: the recommender that is trained.
        trace: `(train, key, fakes_rows=None) -> (Fitted, history)`.
    """

    name: str
    config: Mapping[str, Any]
    model: Recommender
    trace: Callable[..., tuple[Fitted, dict[str, Array]]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", MappingProxyType(dict(self.config)))

    def fit(
        self, train: Interactions, key: Key[Array, ""], *, fakes_rows: Float[Array, "F I"] | None = None
    ) -> Fitted:
        """The hardened model; arguments and errors as of `models.train.fit`, `vmap` over keys included.

        The helpful users are the last rows of the result's `x`.
        """
        return self.trace(train, key, fakes_rows)[0]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"


def apt(
    model: Recommender,
    *,
    users: int | float = 0.05,
    items: int = 400,
    temperature: float = 20.0,
    pretrain: int = 15,
    every: int = 2,
    bonus: float = 1.0,
    grid: tuple[float, float] | None = (5.0, 1.0),
    selection: Selection = "influence",
    solver: Solver | bilevel.LinearSolver = "cg",
    risk: Risk = "code",
    references: int = 10,
) -> Defense:
    """Adversarial poisoning training of any recommender that takes fake rows and learns by gradient descent.

    Args:
        model: the recommender; its `epochs` is the length T of the whole training.
        users: helpful users n*, or a fraction of the real users in (0, 1); 0: plain training.
        items: m* >= 1, items that each of them rates; fewer where fewer have a negative influence.
        temperature: t >= 0; the most negative item is drawn with weight `e^t`.
        pretrain: T_pre >= 0, epochs before the first helpful users.
        every: T_inter >= 1, epochs between two renewals.
        bonus: r_+ >= 0, in units of a rating, added after rounding; not with `selection="random"`.
        grid: largest rating and step of the grid, for ratings; None: clicks, which helpful users simply make.
        selection: "influence", or "random": APT-rand, uniform over all items and without the bonus.
        solver: how `H^-1` is applied: "cg" (damping 1e-3, 100 steps), "gauss_newton" (CG on the positive part of H, for
            factor models), "lissa" (1000 steps, scale 1), "lissa_block" (the same with the products between different
            parameters left out, as in the code), "identity" (the plain gradient); or any solver of `bilevel`.
        risk: "code": `sigmoid(L)`, parallel to the training loss; "paper": `sum sigmoid(e^2)` over the observed cells.
        references: users z of smallest norm whose influences are summed, >= 1.

    Returns:
        A `Defense`.

    Raises:
        ValueError: a number outside its range, more references than users, a training without epochs left.

    Reference: Wu et al., SIGIR 2021, Algorithm 1; its released code for ten references, min-max scaling and rounding.

    **Differs from the paper:** helpful users are fake rows, whose cells are spread over the batches of an epoch instead
    of shuffled among the real ratings, and which hold nothing before the first renewal. Full Hessian with damping
    instead of the undamped block series by default: in our ablation the choice changes nothing measurable. A rating of
    0, which the code can draw with "random", becomes the lowest of the grid. On clicks (the paper's future work) `L(z)`
    is over scores against clicks, and a model with a loss over all cells (WRMF) sees empty users before the first
    renewal.

    **What it does not stop:** it weakens attacks whose fillers are ordinary; popular fillers and an attacker who adds
    what the helpful users take away (see `apt_surrogate`) have to be measured.

    >>> from models.mf import mf
    >>> train = Interactions.from_arrays([0, 1, 1], [0, 0, 1], [5.0, 3.0, 1.0], track="explicit")
    >>> fitted = apt(mf(factors=2, epochs=3), users=2, items=1, pretrain=1, references=1).fit(train, jax.random.key(0))
    >>> fitted.x.shape
    (2, 2)
    """
    config = {name: value for name, value in locals().items() if name != "model"}
    counts("apt", items=items, every=every, references=references)
    numbers("apt", 0, temperature=temperature, bonus=bonus, users=users, pretrain=pretrain)
    one_of("apt", "selection", selection, get_args(Selection))
    one_of("apt", "risk", risk, get_args(Risk))
    if not isinstance(solver, bilevel.LinearSolver):
        one_of("apt", "solver", solver, get_args(Solver))
    drawn = functools.partial(
        _erm_rows,
        items=items,
        temperature=temperature,
        bonus=0.0 if selection == "random" else bonus,
        grid=grid,
    )

    def trace(train: Interactions, key: Array, fakes_rows: Array | None = None):
        known = jnp.zeros((0, train.items)) if fakes_rows is None else jnp.asarray(fakes_rows)
        number = _number(users, train.users)
        if number and (references > train.users or items > train.items):
            raise ValueError(
                f"apt: references={references}, items={items}; the data have {train.users} users and "
                f"{train.items} items"
            )
        return _train(model, train, known, key, number)

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _train(model: Recommender, train: Interactions, known: Array, key: Array, number: int):
        for_start, for_draws = jax.random.split(key) if number else (key, key)
        empty = jnp.zeros((number, train.items), known.dtype)
        start = begin(model, train, for_start, jnp.concatenate([known, empty]))
        level = _levels(train, known, grid)

        def renew(params, draw_key):
            if selection == "random":
                influence, code = -jnp.ones(train.items), jnp.zeros((), jnp.int32)
                return drawn(draw_key, influence, level, number), influence, code
            at = Point(start, params, jnp.concatenate([known, empty]), train)
            influence, code = influence_vector(
                model,
                at,
                solver=solver,
                risk=risk,
                references=references,
                highest=1.0 if grid is None else grid[0],
            )
            return drawn(draw_key, influence, level, number), influence, code

        return _loop(model, start, known, renew, for_draws, pretrain, every, number)

    return Defense(
        "apt" if selection == "influence" else "apt-rand", {**config, "model": repr(model)}, model, trace
    )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "filmtrust": {
        "temperature": 40.0,
        "pretrain": 5,
        "every": 3,
        "items": 100,
        "bonus": 2.0,
        "grid": (8.0, 1.0),
    },
    "ml-100k": {"temperature": 20.0, "pretrain": 15, "every": 2, "items": 400, "bonus": 1.0},
    "ml-1m": {"temperature": 20.0, "pretrain": 15, "every": 2, "items": 700, "bonus": 1.0},
    "yelp": {"temperature": 10.0, "pretrain": 10, "every": 2, "items": 2500, "bonus": 1.0},
}
"""The paper's settings, by data set."""


def _number(users: int | float, real: int) -> int:
    return round(users * real) if isinstance(users, float) and users < 1 else int(users)


def _loop(model, start: Start, known, renew, key, pretrain: int, every: int, number: int):
    """`pretrain` epochs, then blocks of `every` with new helpful users each, the last one as long as is left."""
    each, total = start.inner.steps_per_epoch, start.inner.steps
    state = start.inner.init(start.params, start.x, start.data, start.key)
    if number == 0:
        state = run_some(start.inner, state, start.x, start.data, start.key, 0, total)
        return _fitted(model, state.params, start.data, known), {}
    first = pretrain * each
    if first >= total:
        raise ValueError(
            f"apt: pretrain={pretrain} epochs, but the model trains for {total // each}; raise its epochs"
        )
    state = run_some(start.inner, state, start.x, start.data, start.key, 0, first)
    blocks, rest = divmod(total - first, every * each)

    def block(state, at, length):
        rows, influence, code = renew(state.params, jax.random.fold_in(key, at))
        x = jnp.concatenate([known, rows])
        state = run_some(start.inner, state, x, start.data, start.key, first + at * every * each, length)
        return state, (
            x,
            {"negative": jnp.mean(influence < 0), "code": code, "items": jnp.mean(jnp.sum(rows > 0, 1))},
        )

    x, history = start.x, []
    if blocks:

        def step(carry, at):
            state, (x, said) = block(carry[0], at, every * each)
            return (state, x), said

        (state, x), said = lax.scan(step, (state, x), jnp.arange(blocks))
        history.append(said)
    if rest:
        state, (x, said) = block(state, blocks, rest)
        history.append(jax.tree.map(lambda value: value[None], said))
    told = jax.tree.map(lambda *parts: jnp.concatenate(parts), *history)
    return _fitted(model, state.params, start.data, x), told


def _fitted(model: Recommender, params: Params, data: Any, x: Array) -> Fitted:
    return Fitted(model, params, data, x, model.embed(params, x, data))


# ------------------------------------------------------------------------------------------------ the helpful users


def _levels(
    train: Interactions, known: Array, grid: tuple[float, float] | None
) -> tuple[Array, Array] | None:
    """Mean and deviation of every item's ratings, scaled to [0, 1], real and injected; 1 and 0 if it has none."""
    if grid is None:
        return None
    scaled = train.weight / grid[0]
    total = lambda values, rows: (
        jnp.zeros(train.items, known.dtype).at[train.item].add(jnp.where(train.mask, values, 0))
        + jnp.sum(rows, 0)
    )
    rated = (known > 0).astype(known.dtype)
    count = total(jnp.ones_like(scaled), rated)
    mean = total(scaled, known) / jnp.maximum(count, 1)
    away = total((scaled - mean[train.item]) ** 2, rated * (known - mean) ** 2)
    none = count == 0
    return jnp.where(none, 1.0, mean), jnp.where(none, 0.0, jnp.sqrt(away / jnp.maximum(count, 1)))


def choose(
    key: Key[Array, ""], influence: Float[Array, " I"], temperature: float, items: int, number: int
) -> Array:
    """`(number, I)` truth values: `items` of those with negative influence, without replacement, by their weights.

    The weights are `exp(-t Inorm)`, `Inorm` the negative influences scaled to [-1, 0]. The items of the highest
    `log weight + Gumbel noise` are such a draw. Where fewer are negative, all of them are taken.

    >>> chosen = choose(jax.random.key(0), jnp.array([-1.0, 2.0, -0.5, 1.0]), 20.0, 3, 2)
    >>> chosen.tolist()
    [[True, False, True, False], [True, False, True, False]]
    """
    negative = influence < 0
    low = jnp.min(jnp.where(negative, influence, jnp.inf))
    high = jnp.max(jnp.where(negative, influence, -jnp.inf))
    scaled = (influence - high) / jnp.maximum(high - low, jnp.finfo(influence.dtype).tiny)
    log_weight = jnp.where(negative, -temperature * scaled, -jnp.inf)

    def one(key):
        height = log_weight + jax.random.gumbel(key, influence.shape, influence.dtype)
        best, item = lax.top_k(height, items)
        return jnp.zeros(influence.shape, bool).at[item].set(best > -jnp.inf)

    return jax.vmap(one)(jax.random.split(key, number))


def _erm_rows(
    key: Array,
    influence: Array,
    level: tuple[Array, Array] | None,
    number: int,
    *,
    items: int,
    temperature: float,
    bonus: float,
    grid: tuple[float, float] | None,
) -> Float[Array, "n I"]:
    """The rows of the helpful users, scaled ratings or clicks."""
    for_items, for_ratings = jax.random.split(key)
    chosen = choose(for_items, influence, temperature, items, number)
    if level is None or grid is None:
        return chosen.astype(influence.dtype)
    return jnp.where(chosen, ratings(for_ratings, level, number, bonus=bonus, grid=grid), 0)


def ratings(
    key: Key[Array, ""],
    level: tuple[Float[Array, " I"], Float[Array, " I"]],
    number: int,
    *,
    bonus: float,
    grid: tuple[float, float],
) -> Float[Array, "n I"]:
    """`min(round(clip(N(mu, sigma), 0, 1)) + bonus, 1)` on the grid, scaled by the largest rating, never 0.

    >>> ratings(jax.random.key(0), (jnp.array([0.5, 1.0]), jnp.zeros(2)), 1, bonus=1.0, grid=(4.0, 1.0)).tolist()
    [[0.75, 1.0]]
    """
    highest, step = grid
    mean, deviation = level
    drawn = jnp.clip(mean + deviation * jax.random.normal(key, (number, mean.shape[0]), mean.dtype), 0, 1)
    rounded = jnp.round(drawn * highest / step) * step
    return jnp.clip(rounded + bonus, step, highest) / highest


# ------------------------------------------------------------------------------------------------ against the defense


def apt_surrogate(model: Recommender, rows: Float[Array, "n I"]) -> Recommender:
    """`model` trained beside helpful users, held constant: what an attacker who knows of APT optimizes against.

    Args:
        model: the recommender that is defended.
        rows: the helpful users, such as the last rows of a defended model's `x`.

    **Differs from the paper:** not in it. The helpful users answer to the attack; here they are those of one training,
    so renew them between attacks to come closer.

    >>> from models.wrmf import wrmf
    >>> apt_surrogate(wrmf(), jnp.zeros((2, 5))).name
    'apt-wrmf'
    """
    rows = jnp.asarray(rows)
    beside = lambda x, data: jnp.concatenate([x, rows.astype(x.dtype)])
    more = rows.shape[0]
    return dataclasses.replace(
        model,
        name=f"apt-{model.name}",
        config={**model.config, "helpers": more},
        init=lambda key, users, items, fakes: model.init(key, users, items, fakes + more),
        loss=lambda params, x, data, ctx: model.loss(params, beside(x, data), data, ctx),
        embed=lambda params, x, data: model.embed(params, beside(x, data), data),
        trainer=lambda users, items, fakes, events=0: bilevel.precompose(
            model.trainer(users, items, fakes + more, events), beside
        ),
    )
