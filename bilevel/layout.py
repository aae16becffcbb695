"""Guard against shadowed packages: `models` must be the folder beside `bilevel`, not a stray `models.py`.

The project's packages have plain names (`models`, `attacks`), and Python takes the first match on its path. A
`models.py` next to a notebook would be imported in place of ours and fail later, far from the cause. `attacks` and
`scripts/doctor.py` therefore ask here.
"""

from __future__ import annotations

import os


def check_layout(package_name: str, file: str | None) -> None:
    """Raise unless the package `package_name` that was imported from `file` lies beside `bilevel`.

    Holds when `dirname(file) == dirname(dirname(bilevel.__file__)) / package_name`, with links resolved: true of an
    editable install, of a wheel, and of a checkout on the path.

    Args:
      package_name: top-level name of one of the project's packages, such as `"models"`.
      file: its `__file__`; None, as Python gives a folder without `__init__.py`, is a stray folder too.

    Raises:
      ImportError: another file was imported; the text names it, the expected one, and what to do.

    Example:
      >>> import bilevel
      >>> check_layout("bilevel", bilevel.__file__)
      >>> check_layout("models", "/home/me/notebooks/models.py")
      Traceback (most recent call last):
        ...
      ImportError: `import models` found /home/me/notebooks/models.py, which shadows ...
    """
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    expected = os.path.join(root, package_name, "__init__.py")
    if file is not None and os.path.realpath(file) == os.path.realpath(expected):
        return
    found = "a folder without __init__.py" if file is None else file
    raise ImportError(
        f"`import {package_name}` found {found}, which shadows this project's own package, expected at {expected}. "
        f"Rename or move the file or folder called {package_name!r}, or start Python elsewhere: the folder of the "
        "script or notebook comes first on Python's path.",
        name=package_name,
        path=file,
    )
