"""Peak resident memory of a piece of work, for workers that live for one measurement. Needs psutil, nothing else."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def peak_mb(run: Callable[[], Any]) -> float:
    """Peak resident memory of `run` over the memory held when it starts, in MB (1e6 bytes).

    Linux resets the high-water mark when 5 is written to clear_refs. Where there is none (macOS, Windows) the mark of
    the whole process is used, which imports may have set: the number can then be too small by what they freed.
    """
    gc.collect()
    process = psutil.Process()
    start = process.memory_info().rss
    status = Path("/proc/self/status")
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")
        run()
        mark = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return (int(mark.split()[1]) * 1024 - start) / 1e6
    run()
    return (_high_water_mark(process) - start) / 1e6


def _high_water_mark(process: psutil.Process) -> int:
    """Largest resident size of the process so far, in bytes."""
    on_windows = getattr(process.memory_info(), "peak_wset", None)
    if on_windows is not None:
        return on_windows
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
