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
L_ER`: the scores' derivative along `v`, one forward-mode product for all items, whatever the recommender is. On clicks
the row's mean is taken off I: a shift of all scores of a user changes no list, and a click brings with it cells of the
same user without one (all of them, or a sample).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Key

import bilevel
from bilevel.unroll import run_some
from defenses import helpful
from defenses.influence import Point, Risk, Solver, influence_vector
from models.data import Interactions, Profiles, inject
from models.recommender import Recommender, counts, numbers, one_of
from models.train import Fitted, Start, begin, fit

Selection = Literal["influence", "random"]


@dataclass(frozen=True)
class Helpers:
    """The settings of `apt`: how many helpful users, from when on, how often, and how they are made."""

    users: int | float
    items: int
    temperature: float
    pretrain: int
    every: int
    bonus: float
    grid: tuple[float, float] | None
    selection: Selection
    solver: Solver | bilevel.LinearSolver
    risk: Risk
    references: int

    def check(self, model: Recommender, train: Interactions) -> None:
        """Whether they can be made of these data: users and items enough, the grid of the ratings."""
        grid, highest = self.grid, model.config.get("highest")  # None: the model takes ratings as they are
        if self.references > train.users or self.items > train.items:
            raise ValueError(
                f"apt: references={self.references}, items={self.items}; the data have {train.users} users and "
                f"{train.items} items"
            )
        if train.track == "sequence" or (train.track == "explicit") != (grid is not None):
            raise ValueError(
                f"apt: grid={grid!r} and {train.track} data; give the grid of the ratings, or None for clicks; "
                "sequences are not served, because a row has no order"
            )
        if grid is not None and highest is not None and grid[0] != highest:
            raise ValueError(
                f"apt: the largest rating of grid={grid!r} is not that of {model.name}, highest={highest!r}; give both "
                "the largest rating of the data"
            )
        self.in_grid(train)

    def in_grid(self, data: Interactions) -> None:
        """Whether the ratings are of the grid, where they can be seen; those that helpful users imitate as well."""
        if self.grid is None or isinstance(data.weight, Tracer) or data.weight.max() <= self.grid[0]:
            return
        raise ValueError(
            f"apt: a rating is {float(data.weight.max()):g}, more than the largest of grid={self.grid!r}; give the "
            "grid of the data"
        )

    def renewed(self, model: Recommender, at: Point, key: Array, level: Any, number: int):
        """New helpful users (n, I) in the unit of the data, the influences behind them, and the solver's code."""
        if self.selection == "random":
            influence, code = -jnp.ones(at.train.items), jnp.zeros((), jnp.int32)
        else:
            influence, code = influence_vector(
                model,
                at,
                solver=self.solver,
                risk=self.risk,
                references=self.references,
                highest=model.config.get("highest", 1.0),
            )
            influence = influence if self.grid is not None else influence - jnp.mean(influence)
        rows = helpful.rows(
            key,
            influence,
            level,
            number,
            items=self.items,
            temperature=self.temperature,
            bonus=0.0 if self.selection == "random" else self.bonus,
            grid=self.grid,
        )
        return rows, influence, code


@dataclass(frozen=True, eq=False, repr=False)
class Defense:
    """A way to train a recommender on data that may be poisoned. Made by `apt`.

    Attributes:
        name, config: what it is, for records.
        model: the recommender that is trained.
        trace: `(train, key, clean=None) -> (Fitted, told)`: the last helpful users as (n*, I) `rows` in the unit of the
            data, and of each renewal the share of items with `negative` influence, the solver's `code`, and `items`
            that a helpful user rates.
        helpers: who they are and when they are renewed.
    """

    name: str
    config: Mapping[str, Any]
    model: Recommender
    trace: Callable[..., tuple[Fitted, dict[str, Array]]]
    helpers: Helpers

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", MappingProxyType(dict(self.config)))

    def fit(self, train: Interactions, key: Key[Array, ""], *, clean: Interactions | None = None) -> Fitted:
        """The hardened model; as `models.train.fit`, `vmap` over keys included.

        Args:
            train: the data at hand. Fake users are among them (`models.data.inject`): rows beside the data, as an
                attacker has them, would tell the defense who they are.
            key: of the training.
            clean: data whose ratings the helpful users imitate. None: `train`, which is what a defender has. The
                released code, and with it the paper's tables, imitates the data before the attack.
        """
        return self.trace(train, key, clean)[0]

    def check(self, train: Interactions) -> None:
        """Refuse, before anything is computed, data that the helpful users cannot be made of.

        Raises:
            ValueError: fewer users or items than asked for, another grid of ratings, sequences.
        """
        _number(self.helpers, self.model, train)

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
        users: helpful users n*, or a fraction in (0, 1) of the users in the data, fake ones among them since nobody
            knows who they are; 0: plain training.
        items: m* >= 1, items that each of them rates; fewer where fewer have a negative influence.
        temperature: t >= 0; the most negative item is drawn with weight `e^t`; of no effect on "random".
        pretrain: T_pre, epochs before the first helpful users, an integer >= 0.
        every: T_inter >= 1, epochs between two renewals.
        bonus: r_+ >= 0, in units of a rating, added after rounding; of no effect on "random" and on clicks.
        grid: largest rating and step of the grid, for ratings; None: clicks, which helpful users simply make.
        selection: "influence", or "random": APT-rand, uniform over all items and without the bonus.
        solver: how `H^-1` is applied: "cg" (damping 1e-3, 100 steps; at negative curvature the plain gradient is taken
            instead), "gauss_newton" (CG on the positive part of H, for `mf`, `pmf`, `gmf` and `neumf` on ratings),
            "lissa" (1000 steps, scale 1), "lissa_block" (the same with the products between different parameters left
            out), "identity" (the plain gradient); or any solver of `bilevel`. Numbers are those of `mf`, see below.
        risk: "code": `sigmoid(L)`, which is to say the direction of the training loss; "paper": `sum sigmoid(e^2)` over
            the observed cells.
        references: users z of smallest norm whose influences are summed, >= 1. Solver, risk and references are of no
            effect on "random".

    Returns:
        A `Defense`. A training in which no item has a negative influence, so that nobody helps, warns.

    Raises:
        ValueError: a number outside its range, more references than users, a training without epochs left, a
            recommender that follows no gradient.

    Reference: Wu et al., SIGIR 2021, Algorithm 1; its released code for ten references, min-max scaling and rounding.

    **Differs from the paper:** full Hessian with damping instead of the undamped block series by default; in our
    ablation the choice changes nothing measurable on MovieLens-100K, while for random targets on FilmTrust "cg" lets
    less through than the plain gradient. The series has all ratings in every term and always 1000 terms; the released
    code takes 16,384 ratings a term, and 200 terms on the two larger data sets. Losses other than that of `mf`, sums
    like those of clicks above all, have eigenvalues of any size, negative ones among them: there damping and scale are
    measured at each renewal (a tenth of the largest eigenvalue, and twice the most negative one). Earlier helpful
    users count without their ratings in a renewal. A rating of 0, which the code can draw with "random", becomes the
    lowest of the grid. On clicks (the paper's future work) `L(z)` is over scores against clicks, an influence counts
    as negative if it is below the row's mean, and a model with a loss over all cells (WRMF) sees users without a click
    before the first renewal.

    **Where the published effect comes from:** the released code draws ratings from the data before the attack (`clean`
    in `Defense.fit`). Helpful users who imitate the poisoned data rate the targets as the attacker wants, and most of
    the effect is gone: see the study `apt-table2`, which has both.

    **What it does not stop:** attackers with the shortest profiles become the reference users z, whose interest the
    helpful users then serve. It weakens attacks whose fillers are ordinary; popular fillers and an attacker who adds
    what the helpful users take away (see `defenses.helped`) have to be measured.

    >>> from models.mf import mf
    >>> train = Interactions.from_arrays([0, 1, 1], [0, 0, 1], [5.0, 3.0, 1.0], track="explicit")
    >>> defense = apt(mf(factors=2, epochs=3), users=3, items=1, pretrain=1, references=1)
    >>> fitted, told = defense.trace(train, jax.random.key(0))
    >>> fitted.scores(jnp.array([0, 1])).shape, told["rows"].shape
    ((2, 2), (3, 2))
    """
    config = {name: value for name, value in locals().items() if name != "model"}
    counts("apt", items=items, every=every, references=references)
    numbers("apt", 0, temperature=temperature, bonus=bonus, users=users)
    if isinstance(pretrain, bool) or not isinstance(pretrain, int) or pretrain < 0:
        raise ValueError(f"apt: pretrain={pretrain!r}; expected a number of epochs, an integer >= 0")
    one_of("apt", "selection", selection, get_args(Selection))
    one_of("apt", "risk", risk, get_args(Risk))
    if not isinstance(solver, bilevel.LinearSolver):
        one_of("apt", "solver", solver, get_args(Solver))
    helpers = Helpers(**config)

    def trace(train: Interactions, key: Array, clean: Interactions | None = None):
        number = _number(helpers, model, train)
        if number and clean is not None:
            helpers.in_grid(clean)
        fitted, told = _train(train, key, train if clean is None else clean, number)
        _warn(model, told)
        return fitted, told

    @functools.partial(jax.jit, static_argnums=3)
    def _train(train: Interactions, key: Array, clean: Interactions, number: int):
        if number == 0:
            return fit(model, train, key), {}
        for_start, for_draws = jax.random.split(key)
        nobody = jnp.zeros((0, train.items))
        start = begin(model, _beside(train, jnp.zeros((number, train.items)), 0), for_start, nobody)
        level = None if grid is None else helpful.levels(clean, grid[0])

        def renew(params, at):
            rows, influence, code = helpers.renewed(
                model, Point(start, params, nobody, train), jax.random.fold_in(for_draws, at), level, number
            )
            said = {
                "negative": jnp.mean(influence < 0),
                "code": code,
                "items": jnp.mean(jnp.sum(rows > 0, 1)),
            }
            return _beside(train, rows, items), rows, said

        return _loop(model, start, train, renew, pretrain, every, number, items)

    return Defense(
        "apt" if selection == "influence" else "apt-rand",
        {**config, "model": repr(model)},
        model,
        trace,
        helpers,
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


def _warn(model: Recommender, told: Mapping[str, Array]) -> None:
    """Say it where nobody helped; under `vmap` and `jit` the numbers are in what `trace` tells."""
    negative = told.get("negative", jnp.ones(1))
    if not isinstance(negative, Tracer) and bool(jnp.any(negative == 0)):
        warnings.warn(
            f"apt: at {int(jnp.sum(negative == 0))} of {negative.size} renewals no item had a negative influence on "
            f"{model.name}, so nobody helped then; train longer before (pretrain), or try another risk or solver",
            stacklevel=3,
        )


def number_of(users: int | float, known: int) -> int:
    """Helpful users; a fraction of the known ones that rounds to nobody, or a number that is not whole, is an error."""
    number = round(users * known) if users < 1 else int(users)
    if (users > 0 and number == 0) or (users >= 1 and number != users):
        raise ValueError(
            f"apt: users={users!r} of {known} users; expected a whole number, or a fraction in (0, 1) that is somebody"
        )
    return number


def _number(helpers: Helpers, model: Recommender, train: Interactions) -> int:
    """How many helpful users there are, who can be made of these data."""
    number = number_of(helpers.users, train.users)
    if number:
        helpers.check(model, train)
    return number


def _beside(train: Interactions, rows: Float[Array, "n I"], width: int) -> Interactions:
    """The data with helpful users of at most `width` items each among the real ones, so that batches mix them."""
    return inject(train, Profiles.from_rows(rows, jnp.zeros(0, jnp.int32), track=_form(train), width=width))


def _form(train: Interactions) -> Literal["implicit", "explicit"]:
    return "explicit" if train.track == "explicit" else "implicit"


def _loop(
    model: Recommender,
    start: Start,
    train: Interactions,
    renew,
    pretrain: int,
    every: int,
    number: int,
    items: int,
):
    """`pretrain` epochs, then blocks of `every` with new helpful users each, the last one as long as is left.

    With them an epoch is longer.
    """
    before = start.inner
    epochs = before.steps // before.steps_per_epoch
    if pretrain >= epochs:
        raise ValueError(
            f"apt: pretrain={pretrain} epochs, but the model trains for {epochs}; raise its epochs"
        )
    state = before.init(start.params, start.x, start.data, start.key)
    state = run_some(before, state, start.x, start.data, start.key, 0, pretrain * before.steps_per_epoch)
    inner = model.trainer(
        train.users + number, train.items, start.x.shape[0], train.capacity + number * items
    )
    each = inner.steps_per_epoch
    blocks, rest = divmod(epochs - pretrain, every)

    def block(state, at, length):
        data, rows, said = renew(state.params, at)
        first = (pretrain + at * every) * each
        state = run_some(inner, state, start.x, model.prepare(data), start.key, first, length * each)
        return state, rows, said

    def step(carry, at):
        state, rows, said = block(carry[0], at, every)
        return (state, rows), said

    empty = jnp.zeros((number, train.items), train.weight.dtype)
    (state, rows), told = lax.scan(step, (state, empty), jnp.arange(blocks))
    if rest:
        state, rows, said = block(state, blocks, rest)
        told = jax.tree.map(lambda all_, last: jnp.append(all_, last[None], 0), told, said)
    data = model.prepare(_beside(train, rows, items))
    fitted = Fitted(model, state.params, data, start.x, model.embed(state.params, start.x, data))
    return fitted, {**told, "rows": rows}
