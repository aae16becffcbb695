"""What is installed, what JAX sees, where the data is, and whether a gradient comes out right.

    python scripts/doctor.py                    # look around, print one line a finding
    python scripts/doctor.py --beside notebooks # also: does a file there shadow one of our packages?

Ends with exit code 1 when something is wrong and says what to do. Needs nothing but the core packages, so that it can
report on a half-made environment; it changes nothing and writes only a probe file in the cache folder.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CORE = ("jax", "jaxlib", "optax", "flax", "numpy", "chex", "lineax", "jaxtyping")
EXTRAS = {
    "cli": ("tyro", "rich"),
    "data": ("pooch", "pandas", "scipy"),
    "parquet": ("pyarrow",),
    "plots": ("matplotlib", "scikit-learn"),
    "defense": ("scipy", "scikit-learn"),
    "external": ("implicit",),
}
OURS = ("bilevel", "models", "attacks")
CANNOT_START = (
    ImportError,
    RuntimeError,
    AssertionError,
)  # the last two: JAX, asked for a device that is not there
LATER = ("defenses", "experiments")  # checked where the checkout has them


class Finding(NamedTuple):
    """One line of the report."""

    level: str  # "ok", "note" (works, but know it) or "problem"
    what: str
    detail: str


def python() -> Iterator[Finding]:
    """The interpreter: 3.11 or newer, and which one."""
    level = "ok" if sys.version_info >= (3, 11) else "problem"
    text = f"{platform.python_version()} at {sys.executable} (3.11 or newer is needed)"
    yield Finding(level, "python", text)


def versions() -> Iterator[Finding]:
    """Installed versions of the core packages and of the extras."""
    found = {name: _version(name) for name in CORE}
    missing = [name for name, version in found.items() if version is None]
    present = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield Finding("ok" if present else "problem", "versions", present or "no core package is installed")
    if missing:
        yield Finding("problem", "missing", f"{', '.join(missing)}: run `make env` or `pip install -e .`")
    for extra, names in EXTRAS.items():
        absent = [name for name in names if _version(name) is None]
        if absent:
            fix = f"pip install -e '.[{extra}]'"
            yield Finding("note", f"extra {extra}", f"{', '.join(absent)} not installed; `{fix}` adds them")


def devices() -> Iterator[Finding]:
    """The devices JAX computes on, and its default precision."""
    try:
        import jax
        import jax.numpy as jnp

        seen = jax.devices()
    except CANNOT_START as error:
        asked = os.environ.get("JAX_PLATFORMS") or "not set"
        yield Finding("problem", "jax", f"no device: {error!r} (JAX_PLATFORMS is {asked})")
        return
    kinds = ", ".join(sorted({device.device_kind for device in seen}))
    text = f"{len(seen)} x {seen[0].platform} ({kinds}), numbers are {jnp.result_type(float)} by default"
    yield Finding("ok", "devices", text)


def layout(folder: Path) -> Iterator[Finding]:
    """Our packages import from one folder, and no file in `folder` would be imported in their place."""
    try:
        from bilevel.layout import check_layout
    except ImportError as error:
        yield Finding("problem", "bilevel", f"cannot be imported: {error}")
        return
    for name in (*OURS, *(name for name in LATER if (ROOT / name / "__init__.py").is_file())):
        try:
            module = importlib.import_module(name)
            check_layout(name, module.__file__)
            yield Finding("ok", name, os.path.dirname(module.__file__ or ""))
        except ImportError as error:
            yield Finding("problem", name, str(error))
        stray = PathFinder.find_spec(name, [str(folder)])
        if (
            stray is not None and stray.origin is not None
        ):  # None: a folder without __init__.py, which comes last
            try:
                check_layout(name, stray.origin)
            except ImportError as error:
                yield Finding("problem", f"{name} beside you", str(error))


def data() -> Iterator[Finding]:
    """Data folders under BILEVEL_DATA."""
    given = os.environ.get("BILEVEL_DATA")
    if not given:
        text = "BILEVEL_DATA is not set; the toy data needs none, your own files are given by path"
        yield Finding("note", "data", text)
    elif not Path(given).is_dir():
        text = f"BILEVEL_DATA={given} is not a folder: set it to the one with ml-100k/"
        yield Finding("problem", "data", text)
    else:
        names = sorted(path.name for path in Path(given).iterdir() if path.is_dir())
        level = "ok" if names else "problem"
        yield Finding(level, "data", f"{given}: {', '.join(names) or 'no folder of data in it'}")


def cache() -> Iterator[Finding]:
    """Downloaded data sets are kept in a cache folder, which must be writable."""
    try:
        import pooch
    except ImportError:
        yield Finding("note", "cache", "not needed: without pooch nothing is downloaded")
        return
    folder = Path(pooch.os_cache("bilevel"))  # as in models/data/sources.py
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} cannot be written ({error}); set XDG_CACHE_HOME to another folder"
        yield Finding("problem", "cache", text)
    else:
        yield Finding("ok", "cache", f"{folder} is writable")


def gradient() -> Iterator[Finding]:
    """A hypergradient with a known answer: L steps of p <- p - (p - x)/10 give dp/dx = 1 - 0.9^L."""
    start = time.perf_counter()
    try:
        value = _slope(steps=10)
    except CANNOT_START as error:
        yield Finding("problem", "gradient", f"not computed: {error!r}")
        return
    error, seconds = abs(value - (1 - 0.9**10)), time.perf_counter() - start
    text = f"d params / dx after 10 steps = {value:.6f}, off by {error:.1e}; {seconds:.1f} s with compilation"
    yield Finding("ok" if error < 1e-5 else "problem", "gradient", text)


def _slope(steps: int) -> float:
    import jax
    import jax.numpy as jnp
    import optax

    import bilevel

    solve = bilevel.unrolled(bilevel.gradient_descent(_bowl, optax.sgd(0.1), steps=steps))
    return float(jax.grad(lambda x: solve(x, jnp.zeros(()), (), jax.random.key(0)))(jnp.ones(())))


def _bowl(params, x, data, ctx):
    del data, ctx
    return 0.5 * (params - x) ** 2


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def report(folder: Path) -> int:
    """Print every finding; the number of problems."""
    problems = 0
    for check in (python(), versions(), devices(), layout(folder), data(), cache(), gradient()):
        for finding in check:
            problems += finding.level == "problem"
            print(f"{finding.level:8} {finding.what:14} {finding.detail}", flush=True)
    count = f"{problems} problem{'s' * (problems > 1)}"
    print(f"{count}: see the lines that say so" if problems else "all well")
    return problems


def main() -> int:
    """Read the command line, report, give the exit code."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    text = "folder of your script or notebook: does a models.py (attacks.py, ...) there shadow ours? (default: here)"
    parser.add_argument("--beside", type=Path, default=Path.cwd(), metavar="FOLDER", help=text)
    folder = parser.parse_args().beside
    if not folder.is_dir():
        parser.error(f"--beside {folder}: not a folder")
    sys.path.append(str(ROOT))  # a checkout that is not installed is reported on too
    return min(report(folder.resolve()), 1)


if __name__ == "__main__":
    sys.exit(main())
