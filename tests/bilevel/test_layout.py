"""The shadowing check: silent for the packages beside `bilevel`, and naming the file for any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bilevel
from bilevel.layout import check_layout

ROOT = Path(bilevel.__file__).resolve().parent.parent


def test_accepts_the_package_beside_bilevel():
    check_layout("bilevel", bilevel.__file__)
    check_layout("models", str(ROOT / "models" / "__init__.py"))


def test_accepts_a_link_to_the_package(tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    check_layout("models", str(tmp_path / "models" / "__init__.py"))


@pytest.mark.parametrize("stray", ["models.py", "models/__init__.py", "other/models/__init__.py"])
def test_names_the_shadowing_file(tmp_path, stray):
    with pytest.raises(ImportError, match="shadows this project's own package") as caught:
        check_layout("models", str(tmp_path / stray))
    assert str(tmp_path / stray) in str(caught.value)
    assert str(ROOT / "models" / "__init__.py") in str(caught.value)
    assert caught.value.name == "models"


def test_a_package_under_another_name_is_not_taken_for_it():
    with pytest.raises(ImportError, match="models"):
        check_layout("models", bilevel.__file__)


def test_a_folder_without_init_is_a_stray():
    with pytest.raises(ImportError, match=r"a folder without __init__\.py"):
        check_layout("models", None)


def test_a_stray_module_beside_a_script_is_named_when_attacks_is_imported(tmp_path):
    stray = tmp_path / "models.py"
    stray.write_text("the_users_own = 1\n")
    (tmp_path / "notebook.py").write_text(f"import sys; sys.path.append({str(ROOT)!r}); import attacks\n")
    command = [sys.executable, "notebook.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode != 0
    assert f"ImportError: `import models` found {stray}" in run.stderr
