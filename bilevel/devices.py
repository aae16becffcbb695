"""Where a computation runs and what it costs: a mesh over users, precision, and the memory it takes.

Rows (users) are the axis along which recommenders' data is split. The mesh has Auto axes: with
`jax.make_mesh`'s default, Explicit axes, Hessian products over sharded rows raise a sharding error; with Auto
axes the compiler places the collectives, and the numbers are those of one device to float64 rounding.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

Precision = Literal["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"]


def mesh(axis: str = "users", devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over devices, with an Auto axis.

    Arguments:
        axis: the axis' name.
        devices: None: all that JAX has.

    >>> mesh(devices=jax.devices()[:1]).axis_types
    (Auto,)
    """
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise ValueError("mesh: needs at least one device, got an empty sequence")
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def shard_rows(tree: PyTree, over: Mesh, *, rows: int | None = None) -> PyTree:
    """Split the leaves' first axis over a mesh, row blocks of equal size; the rest is copied to every device.

    Arguments:
        tree: a pytree of arrays.
        over: a mesh with one axis.
        rows: split the leaves that have this many rows, copy the others (item factors, scalars, keys); None:
            split every leaf that has an axis.

    Raises `ValueError` where the rows are no multiple of the number of devices (pad them first), or no leaf
    has `rows` rows.

    >>> over = mesh(devices=jax.devices()[:1])
    >>> shard_rows({"P": jax.numpy.ones((4, 2)), "t": 0.0}, over)["P"].sharding.spec
    P('users',)
    """
    if len(over.axis_names) != 1:
        raise ValueError(f"shard_rows: expected a mesh with one axis, got {over.axis_names}")
    split = NamedSharding(over, PartitionSpec(over.axis_names[0]))
    whole = NamedSharding(over, PartitionSpec())

    def place(path: Any, leaf: Any) -> jax.Array:
        shape = jax.numpy.shape(leaf)
        if not shape or (rows is not None and shape[0] != rows):
            return jax.device_put(leaf, whole)
        if shape[0] % over.size:
            name, padded = jax.tree_util.keystr(path) or "the array", shape[0] + -shape[0] % over.size
            raise ValueError(
                f"shard_rows: {name} has {shape[0]} rows, no multiple of {over.size} devices; pad it to {padded}"
            )
        return jax.device_put(leaf, split)

    if rows is not None and not any(jax.numpy.shape(leaf)[:1] == (rows,) for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"shard_rows: no leaf has {rows} rows")
    return jax.tree_util.tree_map_with_path(place, tree)


@contextlib.contextmanager
def precision(matmul: Precision | None = None, *, x64: bool | None = None) -> Iterator[None]:
    """Precision for a block of code: `with precision("highest", x64=True): ...`; arrays made outside keep
    their dtype.

    Arguments:
        matmul: of float32 matrix products. On NVIDIA "default" rounds the inputs to TensorFloat-32 (10 bits),
            on TPU to bfloat16; "highest" is float32. CPUs always use float32. None: as it is.
        x64: whether 64-bit types exist; None: as it is.

    >>> with precision(x64=True):
    ...     print(jax.numpy.ones(1).dtype)
    float64
    """
    with contextlib.ExitStack() as stack:
        if matmul is not None:
            stack.enter_context(jax.default_matmul_precision(matmul))
        if x64 is not None:
            stack.enter_context(jax.enable_x64(x64))
        yield


class DeviceReport(NamedTuple):
    """What JAX runs on.

    Arguments:
        platform: "cpu", "gpu" or "tpu".
        kind: the device's name.
        count: number of devices.
        memory: bytes of one device, None where the backend does not say (CPU).
        cores: CPU cores this process may use.
        jax: JAX's version.
        x64: whether 64-bit types are on.
    """

    platform: str
    kind: str
    count: int
    memory: int | None
    cores: int
    jax: str
    x64: bool


def device_report(devices: Sequence[Any] | None = None) -> DeviceReport:
    """What JAX runs on; `devices`: None, all that it has.

    >>> device_report().count >= 1
    True
    """
    devices = jax.devices() if devices is None else devices
    first = devices[0]
    stats = first.memory_stats() or {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    kind = first.device_kind
    return DeviceReport(
        first.platform, kind, len(devices), stats.get("bytes_limit"), cores, jax.__version__, x64
    )


def environment() -> dict[str, Any]:
    """What may change the last digits of a run: JAX's version, the devices, the precision; in terms of
    JSON.
    """
    here = device_report()
    matmul = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "jax": here.jax,
        "platform": here.platform,
        "kind": here.kind,
        "devices": here.count,
        "x64": here.x64,
        "matmul": matmul,
    }


class MemoryReport(NamedTuple):
    """Bytes of a compiled program on one device: its arguments, results, temporaries, and code."""

    argument: int
    output: int
    temp: int
    code: int


def compiled_memory(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> MemoryReport:
    """Bytes that `fn(*args, **kwargs)` takes once compiled, without running it.

    Arguments:
        fn: a traceable or an already jitted function.
        args, kwargs: arrays, or `jax.ShapeDtypeStruct` in their place.

    Raises `RuntimeError` where the backend gives no such analysis.

    >>> compiled_memory(lambda x: x @ x, jax.ShapeDtypeStruct((8, 8), "float32")).output
    256
    """
    lower = fn.lower if hasattr(fn, "lower") else jax.jit(fn).lower
    analysis = lower(*args, **kwargs).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError(f"compiled_memory: the backend {jax.default_backend()} gives no memory analysis")
    return MemoryReport(
        argument=analysis.argument_size_in_bytes,
        output=analysis.output_size_in_bytes,
        temp=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def peak_rss() -> int:
    """The most main memory this process has held so far, in bytes.

    On Linux it is VmHWM: `getrusage` would count the parent's memory too, which a child keeps on its account
    after `exec`.

    >>> peak_rss() > 10_000_000
    True
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        raise OSError("peak_rss: this system has neither /proc nor getrusage (Windows)") from None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
