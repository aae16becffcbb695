"""Shared ground of the tests: devices, precision, drawn values, keys, data.

XLA reads its flags when the first array is made, so they are set here, before any test module imports JAX. Eight
simulated host devices are cheap (measured: compile and run times of one device, to the noise of the machine), so
every test sees them and the sharding tests need no process of their own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

DEVICES = 8


def _set_environment() -> None:
    """Flags that must be set before JAX starts; what the caller has set already wins."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        # Tests compile far more than they compute: without the backend's optimizations they take a quarter less, and
        # without the CPU's fusion emitters another third (a flag that newer versions do not know, and abort on).
        flags += f" --xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
        if metadata.version("jaxlib").startswith("0.10."):
            flags += " --xla_cpu_use_fusion_emitters=false"
        # On a busy machine one of eight threads may reach a collective late; XLA would abort the process after 40 s.
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_collective_timeout_seconds=600"
        os.environ["XLA_FLAGS"] = flags.strip()
    # The oracles are float64 and some compare bytes: the same device on every machine, unless the caller names one.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("MPLBACKEND", "Agg")
    # No test reads where in Python an operation came from; to remember it takes a tenth of the time.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # Pools of threads take every core, but pytest-xdist workers share them: NPROC is the count that XLA believes in,
    # OMP_NUM_THREADS that of BLAS and scikit-learn, whose threads wait for each other by spinning.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for pool in ("NPROC", "OMP_NUM_THREADS"):
        os.environ.setdefault(pool, str(max(1, (os.cpu_count() or 1) // workers)))


_set_environment()
# Tracing makes many objects that live: with Python's own thresholds the collector looks at all of them again and again.
gc.set_threshold(100_000, 20, 50)

import hypothesis
import jax
import numpy as np
import pytest

# Fixed examples: a red test is red for everybody. A first call compiles, so there is no deadline. The fixtures here
# hold no state that an example could spoil, so they may be used with @given.
hypothesis.settings.register_profile(
    "default",
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.register_profile(
    "slow", parent=hypothesis.settings.get_profile("default"), max_examples=1000
)
hypothesis.settings.load_profile("default")  # `--hypothesis-profile=slow` (make test-all) replaces it


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test: `jax.enable_x64(True)`, as numeric oracles need it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key() -> jax.Array:
    """A fresh typed key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture
def make_key() -> Callable[[int], jax.Array]:
    """`make_key(seed)`: the typed key of a drawn seed."""
    return jax.random.key


@pytest.fixture
def make_keys() -> Callable[..., jax.Array]:
    """`make_keys(n, seed=0)`: n independent typed keys, to vmap over."""

    def keys(n: int, seed: int = 0) -> jax.Array:
        return jax.random.split(jax.random.key(seed), n)

    return keys


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator, for values drawn on the host."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def devices8() -> list[jax.Device]:
    """The eight simulated devices of the sharding tests."""
    devices = jax.devices()
    if len(devices) < DEVICES:
        pytest.skip(f"needs {DEVICES} devices, JAX has {len(devices)} (XLA_FLAGS was set by the caller)")
    return devices[:DEVICES]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets named by BILEVEL_DATA (each in a folder: ml-100k, filmtrust, ...)."""
    given = os.environ.get("BILEVEL_DATA")
    if not given:
        pytest.skip("real data: set BILEVEL_DATA to the folder that holds ml-100k/, filmtrust/, ...")
    folder = Path(given)
    if not folder.is_dir():
        pytest.fail(f"BILEVEL_DATA={given} is not a folder")
    return folder


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _room_for_code() -> Iterator[None]:
    """Forget compiled functions before the kernel's limit on memory maps (65,530) ends the process in a compilation."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()
