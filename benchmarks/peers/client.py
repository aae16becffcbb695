"""Drive the PyTorch peers from the project's side: processes of `.venv-peers`, JSON lines, `.npz` files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("torch_wrmf.py")
METHODS = ("forward", "higher", "torchopt")


def threads() -> int:
    """Cores this process may use: what JAX takes, so what the peers get."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _command(python: Path, action: str, problem: Path, *more: str) -> list[str]:
    return [str(python), str(WORKER), action, str(problem), "--threads", str(threads()), *more]


def call(python: Path, action: str, problem: Path, *more: str, timeout: float = 900) -> dict[str, Any]:
    """One action of the worker in a process of its own; returns what it printed.

    Raises:
        RuntimeError: the worker failed; its last lines are in the message.
    """
    command = _command(python, action, problem, *more)
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"the peers' worker failed ({action}, exit {done.returncode}):\n{tail}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Server:
    """A worker that stays: `run(method)` times one run, so that peers and variants can be interleaved.

    A context manager; the process ends with the block.
    """

    def __init__(self, python: Path, problem: Path) -> None:
        self._process = subprocess.Popen(
            _command(python, "serve", problem), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.close()
        self._process.wait(timeout=600)
        stdout.close()

    def run(self, method: str) -> tuple[float, float]:
        """Wall and CPU seconds of one run of `forward`, `higher` or `torchopt`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(method + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' worker died while running {method!r}; see its messages above")
        answer = json.loads(line)
        return answer["wall"], answer["cpu"]
