"""Make `.venv-peers`, the environment of the PyTorch peers, on demand.

The peers (higher, TorchOpt) need PyTorch, which the project does not. They get an environment of their own beside the
project's, are driven as child processes, and exchange arrays as `.npz` files and numbers as JSON lines.

    python benchmarks/peers/environment.py            # make it, or leave it as it is when it is up to date
    python benchmarks/peers/environment.py --path     # only print where its Python is (nothing when it is not there)
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = ROOT / ".venv-peers"


def _python(folder: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _stamp() -> str:
    """What the environment is made of: the hash of the requirements and the Python version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}".encode()
    return hashlib.sha256(REQUIREMENTS.read_bytes() + version).hexdigest()


def find(folder: Path = FOLDER) -> Path | None:
    """Return the peers' Python if the environment is complete, else None.

    An environment made from other requirements counts as absent, so that two runs never compare different versions.
    """
    stamp = folder / ".requirements"
    if not stamp.exists() or stamp.read_text() != _stamp():
        return None
    python = _python(folder)
    return python if python.exists() else None


def create(folder: Path = FOLDER, pip_arguments: Sequence[str] = ()) -> Path:
    """Make the environment if it is missing or out of date, and return its Python.

    Args:
        folder: where it goes; the default is ignored by git (the folder carries its own ignore file).
        pip_arguments: passed on to `pip install`, for example an index that holds CPU builds of PyTorch.

    Returns:
        The path of the environment's interpreter.

    Raises:
        RuntimeError: `pip` failed; its last lines are in the message. The benchmark runs without peers.
    """
    found = find(folder)
    if found is not None:
        return found
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    (folder / ".gitignore").write_text("*\n")
    python = _python(folder)
    command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS), *pip_arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(
            f"could not install the peers into {folder.name} (pip exited {done.returncode}):\n{tail}"
        )
    (folder / ".requirements").write_text(_stamp())
    return python


def main() -> None:
    """Command line: make the environment and print its Python."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--path", action="store_true", help="print the interpreter if it is there, make nothing"
    )
    parser.add_argument("pip_arguments", nargs="*", help="passed on to pip install (write them after --)")
    arguments = parser.parse_args()
    python = find() if arguments.path else create(pip_arguments=arguments.pip_arguments)
    if python is not None:
        print(python)


if __name__ == "__main__":
    main()
