"""RevAdv with the settings of its paper, by name: Tang, Wen, Wang, RecSys 2020, released code.

| preset      | surrogate    | gradient                     | eta, momentum | rho  | clicks targets |
|-------------|--------------|------------------------------|---------------|------|----------------|
| toy         | WRMF by SGD  | exact                        | 1, 0.99       | 0.2  | no             |
| toy-itemae  | ItemAE       | exact                        | 1, 0.99       | 0.2  | no             |
| wrmf-sgd    | WRMF by SGD  | last 10 of 50 epochs         | 1, 0.95       | 0.05 | no             |
| wrmf-als    | WRMF by ALS  | partial                      | 1, 0.95       | 0.1  | yes            |
| itemae      | ItemAE       | last 5 of 50 epochs          | 1, 0.95       | 0.1  | no             |
| itemae-pd   | ItemAE       | partial                      | 1, 0.95       | 0.05 | yes            |

The toy presets run 50 outer steps with 100 fake users that start from rows given at the call, do not normalize the
gradient and score at 10; the others (the paper's Gowalla) run 30 with 1% fake users that start from real ones and
score at 50.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from attacks.attack import Attack
from attacks.revadv import revadv
from models import als, itemae, wrmf
from models.recommender import Recommender

_TOY = {
    "fakes": 100,
    "threshold": 0.2,
    "steps": 50,
    "momentum": 0.99,
    "normalize_rows": False,
    "initial": "given",
    "k": 10,
}
_GOWALLA = {"fakes": 0.01, "steps": 30, "momentum": 0.95, "initial": "random_users", "k": 50}

PRESETS: Mapping[str, tuple[Any, str, dict[str, Any]]] = {
    "toy": (wrmf, "revadv-toy", {**_TOY, "estimator": "exact"}),
    "toy-itemae": (itemae, "revadv-toy", {**_TOY, "estimator": "exact"}),
    "wrmf-sgd": (
        wrmf,
        "revadv-gowalla",
        {**_GOWALLA, "threshold": 0.05, "estimator": "truncated", "tau": 10},
    ),
    "wrmf-als": (
        als,
        "revadv-gowalla",
        {**_GOWALLA, "threshold": 0.1, "estimator": "partial", "click_targets": True},
    ),
    "itemae": (itemae, "revadv-gowalla", {**_GOWALLA, "threshold": 0.1, "estimator": "truncated", "tau": 5}),
    "itemae-pd": (
        itemae,
        "revadv-gowalla",
        {**_GOWALLA, "threshold": 0.05, "estimator": "partial", "click_targets": True},
    ),
}
"""Module of the surrogate, its preset and the attack's arguments."""


def revadv_preset(
    name: str, *, surrogate: Recommender | Mapping[str, Any] | None = None, **changes: Any
) -> Attack:
    """`revadv` with the settings of the paper, some of them replaced.

    Args:
        name: `"toy"`, `"toy-itemae"`, `"wrmf-sgd"`, `"wrmf-als"`, `"itemae"` or `"itemae-pd"`.
        surrogate: another surrogate, or changes to the preset's own (`{"factors": 8}`).
        changes: arguments of `revadv`. Another `estimator` drops the preset's `tau`, and `projection="topk"` its
            `threshold`.

    Returns:
        The attack.

    Raises:
        ValueError: unknown preset or argument (the nearest one is named), and whatever `revadv` raises.

    Reference: Tang, Wen, Wang, RecSys 2020, sections 3 and 4.1, and released code.

    **Differs from the paper:** WRMF+SGD unrolls 10 of 50 epochs as the code does, the text says 10%. On the toy the
    paper does not say what its ItemAE attack uses besides the model: the WRMF settings.

    **How it is detected and what mitigates it:** see `attacks.revadv`. No preset bounds the clicks: where profiles are
    longer than real ones, their length alone finds them.

    >>> attack = revadv_preset("toy", estimator="truncated", tau=5)
    >>> attack.steps, attack.config["threshold"], attack.config["surrogate"].name
    (50, 0.2, 'wrmf')
    """
    if name not in PRESETS:
        raise ValueError(f"revadv has no preset {name!r}; {_hint(name, PRESETS)}it has: {', '.join(PRESETS)}")
    known = [argument for argument in inspect.signature(revadv).parameters if argument != "surrogate"]
    for argument in changes:
        if argument not in known:
            raise ValueError(
                f"revadv has no argument {argument!r}; {_hint(argument, known)}it has: {', '.join(known)}"
            )
    module, settings, arguments = PRESETS[name]
    arguments = dict(arguments)
    if "estimator" in changes:
        arguments.pop("tau", None)
    if changes.get("projection") == "topk":
        arguments.pop("threshold", None)
    own = not isinstance(surrogate, Recommender)
    if own and not isinstance(surrogate, Mapping | None):
        raise TypeError(
            f"surrogate is {surrogate!r}; expected a Recommender, or arguments of the preset's own as a dictionary"
        )
    model = module.preset(settings, **(surrogate or {})) if own else surrogate
    return revadv(model, **{**arguments, **changes})


def _hint(given: str, known: Any) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""
