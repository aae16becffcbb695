"""The one driver of long runs: compiled blocks of steps, progress, history, snapshots and resume.

    spec = {"attack": "revadv", "seed": 0}
    result = run(attack.step, state, 50, args=(train, targets), store="runs/7", spec=spec)

`step(state, *args) -> (state, metrics)` is pure. The driver runs `block` of them in one compiled loop, takes
the metrics to the host, saves a snapshot and goes on. How many steps a block has is a traced argument of that
loop: the last, shorter block and a resumed run execute the same program as any other block, so that a run
that was killed at any moment and started again returns the same bytes as one that was not (same program, JAX
version and device).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PyTree

from bilevel.atomic import plain
from bilevel.devices import environment
from bilevel.progress import Block, Tell, display
from bilevel.store import Store, digest

log = logging.getLogger(__name__)

Step = Callable[..., tuple[Any, Any]]
Forms = tuple[tuple[str, str], ...]  # name and dtype of each metric


class Result(NamedTuple):
    """The end of a run.

    Arguments:
        state: after `done` steps.
        history: one array a metric, (done,), in the metric's dtype.
        done: steps done; fewer than asked for only where `on_block` ended the run.
        seconds: wall time, that of earlier processes included.
        resumed: the step at which this process began, 0 for a fresh run.
    """

    state: PyTree
    history: dict[str, np.ndarray]
    done: int
    seconds: float
    resumed: int


def run(
    step: Step,
    state: PyTree,
    steps: int,
    *,
    args: tuple[Any, ...] = (),
    block: int = 10,
    progress: bool | Tell = False,
    label: str = "running",
    show: Sequence[str] | None = None,
    on_block: Callable[[Block], bool | None] | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Result:
    """Run `state, metrics = step(state, *args)` for `steps` steps.

    Arguments:
        step: pure and traceable. The state keeps its structure, shapes and dtypes; metrics is a dict of
            scalars, the same names and dtypes every time. The same callable object is compiled once, and kept with
            its program and all that it closes over until `jax.clear_caches()`: pass what is large in `args`.
        state: any pytree of arrays, typed JAX keys among them; the one to begin with, also when resuming.
        steps: how many, counted from the very beginning.
        args: pytrees, traced arguments of every step. What `step` closes over becomes a constant of the
            program.
        block: steps in one compiled call, at least 1: how often there is progress, and the most that a kill
            can cost.
        progress: True: a bar on a terminal or in a notebook, plain lines elsewhere, on standard error. False:
            nothing. A callable gets a `Block` at the beginning and after every block.
        label: what the bar says is going on.
        show: names of the metrics in the bar, in order; None: the first four by name.
        on_block: called after every block, before its snapshot; a true value ends the run, for good. It is
            called again for the same block where the process was killed in between.
        store: a folder, or a `Store` that is not open. State, history and seconds are saved there after every
            block; where it holds a snapshot, the run continues from it.
        spec: what makes this run the one it is (settings, seed, data): what JSON can say, arrays too; needed
            with a store. Leave out `steps` and `block`: a run may be prolonged, and reported more often.

    Raises `ValueError` where `step` changes the form of the state, where a metric is no scalar, and where the
    store holds another run (it names what differs); `FolderLocked` where another process uses the store.

    **Differs from the paper:** no paper; nothing.

    >>> def double(x):
    ...     return 2 * x, {"x": x}
    >>> result = run(double, jnp.float32(1), 5, block=2)
    >>> float(result.state), result.history["x"].tolist()
    (32.0, [1.0, 2.0, 4.0, 8.0, 16.0])
    """
    _check(step, steps, args, block, store, spec)
    state = jax.tree.map(_strong, state)
    forms = _forms(step, state, args)
    facts = {"spec": _describe(spec or {}), "environment": environment()}
    with contextlib.ExitStack() as stack:
        opened = None
        if store is not None:
            opened = stack.enter_context(store if isinstance(store, Store) else Store(store))
        now, stop = _begin(opened, state, steps, forms, facts)
        tell = stack.enter_context(display(progress, label, _shown(show, forms)))
        tell(Block(now.done, now.done if stop else steps, now.seconds, now.state, {}, now.resumed))
        began = perf_counter() - now.seconds
        while now.done < steps and not stop:
            count = min(block, steps - now.done)
            state, series = _advance(step, block, forms, now.state, jnp.int32(count), args)
            metrics = {name: np.asarray(values)[:count] for name, values in series.items()}
            jax.block_until_ready(state)
            history = {name: np.concatenate([now.history[name], metrics[name]]) for name in metrics}
            now = Result(state, history, now.done + count, perf_counter() - began, now.resumed)
            here = Block(now.done, steps, now.seconds, state, metrics, now.resumed)
            stop = on_block is not None and bool(on_block(here))
            if opened is not None:
                opened.save(now.done, state, history, facts | {"seconds": now.seconds, "stopped": stop})
            tell(here)
    return now


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    step: Step, block: int, forms: Forms, state: PyTree, count: Int[Array, ""], args: tuple[Any, ...]
) -> tuple[PyTree, dict[str, Array]]:
    """`count <= block` steps; the metrics of step n stand at place n of arrays of length `block`."""

    def body(n: Array, carry: tuple[PyTree, dict[str, Array]]) -> tuple[PyTree, dict[str, Array]]:
        state, series = carry
        state, metrics = step(state, *args)
        # Strong types: a weak one would make the computed state another type than the restored one.
        return jax.tree.map(_strong, state), {name: series[name].at[n].set(metrics[name]) for name in series}

    series = {name: jnp.zeros(block, dtype) for name, dtype in forms}
    return lax.fori_loop(0, count, body, (state, series))


def _begin(
    store: Store | None, state: PyTree, steps: int, forms: Forms, facts: dict[str, Any]
) -> tuple[Result, bool]:
    """Where to begin (at the store's snapshot, else at the state given), and whether the run was ended there."""
    snapshot = store.latest() if store is not None else None
    if snapshot is None:
        empty = {name: np.zeros(0, jnp.dtype(dtype)) for name, dtype in forms}
        return Result(state, empty, 0, 0.0, 0), False
    assert store is not None
    differences = _differences(snapshot.facts["spec"], facts["spec"])
    if differences:
        raise ValueError(
            f"{store.folder} holds another run, which differs in {'; '.join(differences[:6])}. "
            "Choose another folder, restore these settings, or delete the folder to start over."
        )
    if snapshot.step > steps:
        raise ValueError(
            f"{store.folder} holds {snapshot.step} steps of this run, more than the {steps} asked for; "
            "ask for at least as many, or choose another folder"
        )
    found = {name: values.dtype.name for name, values in snapshot.history.items()}
    if found != dict(forms):
        raise ValueError(
            f"{store.folder}: the metrics were {found}, now {dict(forms)}; the code of the step has changed"
        )
    changed = _differences(snapshot.facts["environment"], facts["environment"])
    if changed:
        log.warning(
            "%s: resuming elsewhere, the last digits may differ (%s)", store.folder, "; ".join(changed)
        )
    restored = snapshot.restore(state)
    seconds = snapshot.facts["seconds"]
    return Result(restored, snapshot.history, snapshot.step, seconds, snapshot.step), snapshot.facts[
        "stopped"
    ]


def _forms(step: Step, state: PyTree, args: tuple[Any, ...]) -> Forms:
    """Names and dtypes of the metrics; an error where the step is none."""
    after, metrics = jax.eval_shape(step, state, *args)
    if jax.tree.structure(after) != jax.tree.structure(state):
        raise ValueError(
            f"step changes the structure of the state: {jax.tree.structure(state)} becomes {jax.tree.structure(after)}"
        )
    for (path, old), new in zip(jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(after)):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            name = jax.tree_util.keystr(path) or "the state"
            raise ValueError(
                f"step changes {name} from {old.dtype}{list(old.shape)} to {new.dtype}{list(new.shape)}"
            )
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"step must return (state, metrics), metrics a dict of scalars, got {type(metrics).__name__}"
        )
    for name, form in metrics.items():
        if getattr(form, "shape", None) != ():
            raise ValueError(f"step: the metric {name!r} must be a scalar array, got {form}")
    return tuple((name, form.dtype.name) for name, form in sorted(metrics.items()))


def _shown(show: Sequence[str] | None, forms: Forms) -> list[str]:
    names = [name for name, _ in forms]
    unknown = [name for name in show or () if name not in names]
    if unknown:
        raise ValueError(f"run: show names {unknown}, but the metrics are {names}")
    return list(show) if show is not None else names[:4]


def _check(step: Any, steps: int, args: Any, block: int, store: Any, spec: Any) -> None:
    if not isinstance(step, Hashable):
        raise TypeError(
            f"run: step must be hashable, as a function or a dataclass with eq=False is; got {step!r}"
        )
    if not isinstance(args, tuple):
        raise TypeError(
            f"run: args must be a tuple of what step takes after the state, got {type(args).__name__}"
        )
    if steps < 0:
        raise ValueError(f"run: steps must be >= 0, got {steps}")
    if block < 1:
        raise ValueError(f"run: block must be at least 1 step, got {block}")
    if store is not None and spec is None:
        raise ValueError("run: a store needs spec, a dict that says which run this is (settings, seed, data)")


def _describe(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as JSON gives it back, each array as its dtype, shape and fingerprint."""
    described = plain(spec, array=lambda a: f"{a.dtype}{list(a.shape)} {digest(a)[:16]}", where="spec")
    return json.loads(json.dumps(described))


def _differences(then: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two trees of JSON, one text a place."""
    if isinstance(then, dict) and isinstance(now, dict):
        absent = "absent"
        return [
            text
            for key in sorted({*then, *now})
            for text in _differences(
                then.get(key, absent), now.get(key, absent), f"{where}.{key}" if where else key
            )
        ]
    same = json.dumps(then) == json.dumps(now)  # as texts: NaN equals NaN, 1 and True and 1.0 differ
    return [] if same else [f"{where}: {then!r} there, {now!r} here"]


def _strong(leaf: Any) -> Array:
    """The leaf as an array without weak type."""
    leaf = jnp.asarray(leaf)
    weak = getattr(leaf, "weak_type", False)  # a typed key does not know the word
    return lax.convert_element_type(leaf, leaf.dtype) if weak else leaf
