"""What a long run shows: a bar on a terminal or in a notebook, plain lines in a log, or whatever the caller
makes of it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

QUIET = 2.0  # seconds between two lines of a log


class Block(NamedTuple):
    """A block of steps, as `progress` and `on_block` of `bilevel.run` see it.

    Arguments:
        done: steps done, of `steps`.
        steps: steps in all.
        seconds: wall time so far, that of earlier processes included.
        state: the state after `done` steps.
        metrics: one array a name, (steps of this block,); empty at the beginning of a run.
        resumed: the step at which this process began.
    """

    done: int
    steps: int
    seconds: float
    state: PyTree
    metrics: dict[str, np.ndarray]
    resumed: int


Tell = Callable[[Block], Any]


@contextlib.contextmanager
def display(progress: bool | Tell, label: str, show: Sequence[str]) -> Iterator[Tell]:
    """A callable that shows a `Block`, for the length of a run.

    Arguments:
        progress: False: nothing; True: a bar (rich, where it is installed and there is a terminal or a
            notebook), otherwise lines on standard error; a callable is used as it is.
        label: what is going on.
        show: names of the metrics to show.
    """
    if callable(progress):
        yield progress
    elif progress is True:
        console = _console()
        if console is None:
            yield _Lines(label, show)
        else:
            with _bar(console, label, show) as tell:
                yield tell
    elif progress is False:
        yield lambda block: None
    else:
        raise TypeError(f"progress must be True, False or a callable, got {progress!r}")


class _Lines:
    """Plain lines: the first, the last, and one every few seconds."""

    def __init__(self, label: str, show: Sequence[str]) -> None:
        self.label, self.show = label, show
        self.told, self.pace = 0.0, None

    def __call__(self, block: Block) -> None:
        if not block.metrics:
            self.told = block.seconds
            self._write(f"{block.done}/{block.steps} steps, {_status(block)}")
        elif block.done == block.steps or block.seconds - self.told >= QUIET:
            self.told = block.seconds
            told = [f"{block.done}/{block.steps} steps", _clock(block.seconds), self._left(block)]
            self._write(", ".join(filter(None, [*told, _numbers(block, self.show)])))
        if block.metrics and self.pace is None:
            self.pace = block.done, block.seconds

    def _left(self, block: Block) -> str:
        """The time that is left at the pace since the first block, which compiles."""
        if self.pace is None or block.done == block.steps:
            return ""
        done, seconds = self.pace
        pace = (block.seconds - seconds) / (block.done - done)
        return f"{_clock(pace * (block.steps - block.done))} left"

    def _write(self, text: str) -> None:
        sys.stderr.write(f"{self.label}: {text}\n")
        sys.stderr.flush()


def _console() -> Any:
    """A rich console that can draw, or None."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    return console if console.is_terminal or console.is_jupyter else None


@contextlib.contextmanager
def _bar(console: Any, label: str, show: Sequence[str]) -> Iterator[Tell]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
    ]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, start=False, visible=False, numbers="")

        def tell(block: Block) -> None:
            numbers = _numbers(block, show) if block.metrics else _status(block)
            bar.update(task, total=block.steps, completed=block.done, numbers=numbers, visible=True)
            if not block.metrics:  # show it now, the first block may take minutes
                bar.start_task(task)
                bar.refresh()

        yield tell


def _status(block: Block) -> str:
    """What happens before the first block is back."""
    if block.steps == 0:
        return "none to take"
    if block.done == block.steps:
        return "already done"
    return f"resumed at step {block.resumed}, compiling" if block.resumed else "compiling"


def _numbers(block: Block, show: Sequence[str]) -> str:
    return " ".join(f"{name} {float(block.metrics[name][-1]):.4g}" for name in show if name in block.metrics)


def _clock(seconds: float) -> str:
    """A duration as one reads it: 8.3 s, 2 min 5 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
