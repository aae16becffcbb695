"""What tests of scripts share: a script as a module of this process, and a table of clicks that can be learned."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def script():
    """A name to the script as a module, which compiles nothing that was compiled before."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_in_process", ROOT / "scripts" / f"{name}.py")
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def inside(script, request):
    """The script that a file of tests is named after, run in this process with the arguments of a command line."""
    module = script(request.path.stem.removeprefix("test_"))
    return lambda *arguments: module.main(tyro.cli(module.Options, args=list(map(str, arguments))))


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """40 users and 25 items with a taste of rank 3, as a file."""
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 25))
    user, item = np.nonzero(taste > 0.7)
    path = tmp_path_factory.mktemp("data") / "clicks.tsv"
    lines = [f"u{u}\ti{i}" for u, i in zip(user, item, strict=True)]
    path.write_text("\n".join(["user\titem", *lines]) + "\n")
    return path
