"""The inner loop as a value: parameters after `L` steps on data that contain `x`, one pure step at a time.

An `Inner` says how to start, how to make one step, and how to pull a cotangent back through one step. How the
*whole* loop is differentiated (exactly, truncated, implicitly, not at all) is another value, made from it:
see `unroll.py` and `implicit.py`.

Everything the loss reads comes in as an argument: `loss(params, x, data, ctx)`, where `x` is the upper
variable and `ctx` holds the step's key, its number, its batch and the auxiliary state. A step depends on the
key and its number only, so every estimator sees the same batches whatever part of the loop it replays.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from bilevel import trees
from bilevel.products import hessian_and_cross
from bilevel.safe import differentiable
from bilevel.shuffle import shuffled


class Batch(NamedTuple):
    """The rows of one minibatch: `index` (B,) and `mask` (B,), False where the last batch of an epoch is padded."""

    index: Int[Array, "B"]
    mask: Bool[Array, "B"]


class Ctx(NamedTuple):
    """What a loss is told of its step: a fresh `key`, its number `step`, the `batch` (None: all), the `aux` state."""

    key: Any
    step: Any
    batch: Any = None
    aux: Any = ()


class InnerState(NamedTuple):
    """The carry of the inner loop: parameters, optimizer state, auxiliary state (never differentiated)."""

    params: Any
    opt: Any = ()
    aux: Any = ()


class Structure(NamedTuple):
    """What a problem with structure may hand in; each entry is tested against the generic path by whoever
    gives it.

    * `product(params, x, data, ctx, v) -> (Hv, Mv)`: derivatives of `<grad_params loss, v>` in `params` and
      in `x`;
    * `blocks(params, x, data, ctx)`: diagonal blocks of the Hessian, a leaf `(n, D)` of the parameters giving
      `(n, D, D)`;
    * `solve(params, x, data, ctx, b)`: its own product with the inverse Hessian;
    * `gradient`: False where the loss has a derivative rule of its own that is not its true derivative: it holds
      a part of itself constant, or clips. A step then follows a field that is no gradient; the field's adjoint is
      `product`, or else its `vjp`, and `implicit` refuses the loop.
    """

    product: Callable[..., Any] | None = None
    blocks: Callable[..., Any] | None = None
    solve: Callable[..., Any] | None = None
    gradient: bool = True


class Aux(NamedTuple):
    """Auxiliary state carried along and held constant by every derivative (EM responsibilities, annealing).

    `init(params0, x, data, key) -> aux`; `update(aux, params, x, data, ctx) -> aux`, called before the step
    that reads it.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Minibatches:
    """Epoch-wise shuffled batches of `size` out of `count` rows; the last batch of an epoch is padded and masked."""

    count: int
    size: int

    @property
    def per_epoch(self) -> int:
        """Steps an epoch takes, `ceil(count / size)`."""
        return -(-self.count // self.size)

    def all_rows(self) -> Batch:
        """Every row once, in order."""
        return Batch(jnp.arange(self.count, dtype=jnp.int32), jnp.ones(self.count, bool))

    def draw(self, key: Array, step: Int[Array, ""] | int) -> Batch:
        """The batch of one step: a function of the loop's key and the step number only."""
        epoch, position = jnp.divmod(jnp.asarray(step), self.per_epoch)
        slots = position * self.size + jnp.arange(self.size)
        mask = slots < self.count
        return Batch(shuffled(jax.random.fold_in(key, epoch), self.count, jnp.where(mask, slots, 0)), mask)


def minibatches(count: int, size: int) -> Minibatches:
    """Batches of `size` rows out of `count`, reshuffled every epoch from the loop's key.

    Args:
      count: number of rows, at least 1.
      size: rows per batch, between 1 and `count`.

    >>> minibatches(10, 4).per_epoch
    3
    """
    _positive("count", count)
    _positive("size", size)
    if size > count:
        raise ValueError(
            f"minibatches: size={size} is larger than count={count}; use size <= count, or no batches at all"
        )
    return Minibatches(count, size)


@dataclass(frozen=True, eq=False, repr=False)
class Inner:
    """An inner loop. Made by `gradient_descent` or `fixed_point`; `jax.jit`-able and differentiated by an
    estimator.

    Attributes:
      steps: `L`, how many steps the loop makes.
      name: what it is, for reprs and error messages.
      init: `(params0, x, data, key) -> InnerState`.
      step: `(state, x, data, ctx) -> (state, saved)`; `saved` is what `replay` and `pull` want to keep of the
        step.
      replay: `(state, saved, x, data, ctx) -> state`, the step again, cheaper where `saved` allows it.
      pull: `(state, saved, x, data, ctx, bar, wants) -> (bar, x_bar, data_bar)`: the adjoint of one step.
      stationarity: `(params, x, data, ctx)`, zero at the loop's fixed point: the gradient, or `params -
        update(params)`.
      loss, update: whichever the loop is made of (the other is None).
      epoch: steps of a pass over the data where there are no `batches`, see `steps_per_epoch`.
      optimizer: what moves the parameters, None for a fixed-point loop; `with_loss` keeps it.
    """

    steps: int
    name: str
    init: Callable[..., InnerState]
    step: Callable[..., tuple[InnerState, Any]]
    replay: Callable[..., InnerState]
    pull: Callable[..., tuple[Any, Any, Any]]
    stationarity: Callable[..., Any]
    loss: Callable[..., Any] | None = None
    update: Callable[..., Any] | None = None
    structure: Structure = field(default_factory=Structure)
    batches: Minibatches | None = None
    aux: Aux | None = None
    epoch: int = 1
    optimizer: optax.GradientTransformation | None = None

    def __repr__(self) -> str:
        return f"{self.name}(steps={self.steps})"

    @property
    def steps_per_epoch(self) -> int:
        """Steps that visit every row once (1 for full-batch loops)."""
        return self.batches.per_epoch if self.batches else self.epoch

    def context(self, key: Array, step: Any, aux: Any = ()) -> Ctx:
        """The context of step number `step`: key and batch follow from the loop's key and the number alone."""
        _, for_steps, for_batches = jax.random.split(key, 3)
        batch = self.batches.draw(for_batches, step) if self.batches else None
        return Ctx(jax.random.fold_in(for_steps, step), step, batch, aux)

    def final_context(self, key: Array, aux: Any = ()) -> Ctx:
        """The context after the last step, in which stationarity is judged: all rows in one batch."""
        everything = self.batches.all_rows() if self.batches else None
        return self.context(key, jnp.asarray(self.steps), aux)._replace(batch=everything)


def gradient_descent(
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    batches: Minibatches | None = None,
    aux: Aux | None = None,
    structure: Structure | None = None,
    epoch: int = 1,
) -> Inner:
    """An inner loop of `steps` optimizer steps: `g_l = grad loss(theta_l; x)`, `theta_{l+1} = theta_l +
    optimizer(g_l)`.

    The adjoint of a step takes the `vjp` of the optimizer's update and one product that gives `H v` and the
    mixed derivative `d/dx <grad loss, v>` together, so its cost is that of one `jvp` of the gradient,
    whatever the optimizer.

    Args:
      loss: `loss(params, x, data, ctx) -> scalar`, twice differentiable in `params` and `x`. It must not
        close over a traced value. Where it has a rule (`jax.custom_vjp`, `jax.custom_jvp`) that is not its
        true derivative, say so by `structure=Structure(gradient=False)`: nothing else can tell.
      optimizer: any optax transformation, as it is; square roots of exact zeros are made safe (`bilevel.safe`).
      steps: `L >= 1`.
      batches: `minibatches(count, size)`, or None for the full batch; the loss then reads `ctx.batch.index`
        and `ctx.batch.mask`.
      aux: state updated before each step and held constant by all derivatives.
      structure: the problem's own Hessian product, block diagonal or solve.
      epoch: steps of a pass over the data for a loss that finds what to look at from `ctx.step` itself; not with
        `batches`, which know.

    Raises:
      ValueError: `steps` or `epoch` is not a positive integer, or `epoch` beside `batches`.
      TypeError: `optimizer` is not an optax transformation, `loss` not callable.

    Reference: Maclaurin, Duvenaud, Adams, ICML 2015 (reverse mode through training); Tang, Wen, Wang, RecSys
      2020, eqs 6-8.

    **Differs from the paper:** nothing for SGD; for stateful optimizers the optimizer's state is part of what
    is differentiated.

    >>> inner = gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.1), steps=5)
    >>> inner
    gradient_descent(steps=5)
    """
    _positive("steps", steps)
    _positive("epoch", epoch)
    if batches is not None and epoch != 1:
        raise ValueError(
            f"gradient_descent: epoch={epoch} beside batches, whose pass is {batches.per_epoch} steps"
        )
    if not callable(loss):
        raise TypeError(
            f"gradient_descent: loss must be a function (params, x, data, ctx) -> scalar, got {type(loss).__name__}"
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "gradient_descent: optimizer must be an optax transformation such as optax.adam(1e-2), "
            f"got {type(optimizer).__name__}"
        )
    structure = structure or Structure()
    gradient = jax.grad(loss)

    def advance(grads, opt, params):
        updates, opt = differentiable(optimizer.update)(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    def step(state, x, data, ctx):
        grads = gradient(state.params, x, data, ctx)
        return replay(state, grads, x, data, ctx), grads

    def replay(state, grads, x, data, ctx):
        params, opt = advance(grads, state.opt, state.params)
        return InnerState(_like(params, state.params), _like(opt, state.opt), ctx.aux)

    def pull(state, grads, x, data, ctx, bar, wants):
        opt = trees.split(state.opt)

        def moved(grads, opt_inexact, params):
            new, new_opt = advance(grads, trees.join(opt_inexact, opt.rest), params)
            return _like(new, params), trees.split(_like(new_opt, state.opt)).inexact

        _, back = jax.vjp(moved, grads, opt.inexact, state.params)
        grads_bar, opt_bar, params_bar = back((bar.params, bar.opt))
        through, x_bar, data_bar = _product(loss, structure, state.params, x, data, ctx, grads_bar, wants)
        return InnerState(trees.add(params_bar, through), opt_bar, None), x_bar, data_bar

    def init(params0, x, data, key):
        _check_params(params0)
        start = aux.init(params0, x, data, jax.random.split(key, 3)[0]) if aux else ()
        return InnerState(params0, _opt_init(optimizer, params0), jax.lax.stop_gradient(start))

    return Inner(
        steps,
        "gradient_descent",
        init,
        step,
        replay,
        pull,
        gradient,
        loss=loss,
        structure=structure,
        batches=batches,
        aux=aux,
        epoch=epoch,
        optimizer=optimizer,
    )


def fixed_point(update: Callable[..., Any], steps: int, *, batches: Minibatches | None = None) -> Inner:
    """An inner loop of `steps` applications of `update(params, x, data, ctx) -> params`: ALS half sweeps,
    power iteration.

    Args:
      update: a differentiable map that returns parameters of the structure, shapes and dtypes it was given.
      steps: `L >= 1`.
      batches: as in `gradient_descent`.

    Raises:
      ValueError: `steps` is not a positive integer. TypeError: `update` is not callable.

    **Differs from the paper:** not an algorithm of a paper; the adjoint is the `vjp` of the map, step by step.

    >>> fixed_point(lambda p, x, data, ctx: 0.5 * (p + x / p), steps=20)
    fixed_point(steps=20)
    """
    _positive("steps", steps)
    if not callable(update):
        raise TypeError(
            f"fixed_point: update must be a function (params, x, data, ctx) -> params, got {type(update).__name__}"
        )

    def init(params0, x, data, key):
        _check_params(params0)
        return InnerState(params0)

    def replay(state, saved, x, data, ctx):
        return InnerState(_like(update(state.params, x, data, ctx), state.params))

    def step(state, x, data, ctx):
        return replay(state, (), x, data, ctx), ()

    def pull(state, saved, x, data, ctx, bar, wants):
        x_halves, data_halves = trees.split(x), trees.split(data)

        def moved(params, x_inexact, data_inexact):
            held = (trees.join(x_inexact, x_halves.rest), trees.join(data_inexact, data_halves.rest))
            return _like(update(params, *held, ctx), params)

        _, back = jax.vjp(moved, state.params, x_halves.inexact, data_halves.inexact)
        params_bar, x_bar, data_bar = back(bar.params)
        return InnerState(params_bar, bar.opt, None), x_bar, data_bar if wants.data else None

    def stationarity(params, x, data, ctx):
        return jax.tree.map(jnp.subtract, params, _like(update(params, x, data, ctx), params))

    return Inner(steps, "fixed_point", init, step, replay, pull, stationarity, update=update, batches=batches)


def _product(loss, structure, params, x, data, ctx, v, wants):
    """`(H v, d/dx <g, v>, d/ddata <g, v>)`: one `jvp` of the gradient in `(params, x, data)` along `v` in `params`.

    The `vjp` of `g` where `g` is no gradient: only a symmetric derivative is its own adjoint.
    """
    if structure.product is not None and not wants.data:
        through, x_bar = structure.product(params, x, data, ctx, v)
        return through, trees.split(x_bar).inexact, None
    pair = (x, data if wants.data else None)
    whole = lambda params, pair: loss(params, pair[0], pair[1] if wants.data else data, ctx)
    if structure.gradient:
        through, (x_bar, data_bar) = hessian_and_cross(whole, params, pair, v)
    else:
        halves = trees.split(pair)
        field = lambda params, inexact: jax.grad(whole)(params, trees.join(inexact, halves.rest))
        through, (x_bar, data_bar) = jax.vjp(field, params, halves.inexact)[1](v)
    return through, x_bar, data_bar


def _like(new, old):
    """Keep the carry's dtypes: a Python float inside an optimizer must not promote it."""
    return jax.tree.map(lambda n, o: jnp.asarray(n, jnp.result_type(o)) if not _is_key(o) else n, new, old)


def _is_key(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _check_params(params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not trees.is_inexact(leaf):
            raise TypeError(
                f"params0{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}, which cannot be trained: "
                "split integer leaves off first (Flax NNX: graphdef, params, rest = nnx.split(model, nnx.Param, ...))"
            )


def _opt_init(optimizer, params0):
    """The optimizer's first state; an optimizer that wants more than the engine gives is refused by name."""
    state = optimizer.init(params0)
    try:
        jax.eval_shape(optimizer.update, params0, state, params0)
    except TypeError as error:
        raise TypeError(
            "gradient_descent: this optimizer's update does not take (gradient, state, parameters) alone: "
            f"{error}. A line search or a step size from the loss needs more; use a first-order optimizer, or write "
            "the step as a fixed_point"
        ) from error
    return state


def _positive(name: str, value) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a positive integer")
