"""Every defense against every attack on MovieLens-100K, and against an attacker who knows of it.

RAPU's setting (see rapu.py): the attacker crafts on a view, the victims are WRMF and NCF trained on the true clicks and
3% fake users. Defenses: adversarial training (AT), adversarial poisoning training (APT, APT-rand), and leaving out the
5% of users that a detector finds most suspicious. The rows "adaptive" are RevAdv and RAPU-G whose surrogate has the
defense inside: a defense is only believed against those. "Longer" are their controls: as many steps from the same
start, with no defense inside. What a defense costs is seen in the row "none".

APT and APT-rand invert no Hessian here: APT follows the plain gradient. "apt-cg" is APT as it comes, by conjugate
gradients. The ablation over inverses (apt_figs.py) is of ratings; this one is of clicks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key

import attacks
from attacks.attack import Attack
from defenses.adversarial import adversarial
from defenses.apt import Defense, apt
from defenses.detectors import DETECTORS
from defenses.filtering import filtered
from experiments.crafts import crafted
from experiments.guarded import Guard
from experiments.papers import rapu
from experiments.pipeline import Case, measured, poisoned
from experiments.study import Spec
from models import registry
from models.data import Profiles, inject
from models.evaluation import evaluate
from models.evaluation.detection import detection
from models.recommender import Recommender
from models.train import Fitted, fit

VICTIMS = ("WRMF", "NCF")
ATTACKS = (
    "none",
    "random",
    "popular",
    "top-popular",
    "pga",
    "covis",
    "srwa",
    "revadv",
    "rapu-r",
    "rapu-g-no-pgm",
    "adaptive",
    "adaptive-rapu-g",
    "bandwagon",
    "segment",
    "power-item",
    "aush",
    "dl-attack",
    "rapu-g",
    "adaptive-held",
    "longer",
    "longer-rapu-g",
)
BLIND = {"adaptive": "revadv", "adaptive-held": "revadv", "adaptive-rapu-g": "rapu-g-no-pgm"}
"""Each attack that knows of the defense, and the same attack without that knowledge."""
LONGER = {"adaptive": "longer", "adaptive-held": "longer", "adaptive-rapu-g": "longer-rapu-g"}
"""Its control: as many steps from where it begins, with no defense inside."""
ADAPTIVE, CONTROLS = tuple(BLIND), tuple(dict.fromkeys(LONGER.values()))
STARTS = BLIND | {LONGER[name]: blind for name, blind in BLIND.items()}
"""Whose fake users each of them begins with, unless fewer of those pass the filter than of Random's."""
HELD = ("apt", "apt-rand")
FILTERS = ("knn", "pca", "popularity", "duplicate")
DEFENSES = ("none", "at", "apt", "apt-rand", "apt-cg", *(f"filter:{name}" for name in FILTERS))
FRACTION, LEVEL, K = 0.03, 0.05, 50


@functools.lru_cache
def _model(name: str, preset: str) -> Recommender:
    return registry.make(name, preset)


@functools.lru_cache
def _hardened(defense: str, name: str, preset: str) -> Recommender | Defense:
    """The model of a preset behind a defense of its training; a filter leaves it as it is."""
    model = _model(name, preset)
    epochs = model.config["epochs"]
    if defense == "at":
        # GMF begins at 0 and never leaves it under changes of this length; trained as long as before APT, it does
        return adversarial(model, epsilon=0.03, start=3 * epochs // 5 if name == "gmf" else 0)
    if defense in ("apt", "apt-rand", "apt-cg"):
        return apt(
            model,
            items=rapu.WORLDS["ml"].budget,
            pretrain=3 * epochs // 5,
            every=max(1, 2 * epochs // 25),
            grid=None,
            selection="random" if defense == "apt-rand" else "influence",
            solver="cg" if defense == "apt-cg" else "identity",
        )
    return model


def _guard(defense: str, spec: Spec) -> tuple[Guard, Key[Array, ""] | None]:
    """The attacker's own model behind the defense; APT's helpful users are renewed in it, or held from this key."""
    detector = defense.removeprefix("filter:") if defense.startswith("filter:") else None
    held = jax.random.fold_in(jax.random.key(spec["seed"]), 7) if spec["attack"] == "adaptive-held" else None
    return Guard(_hardened(defense, *rapu.WORLDS["ml"].surrogate), detector, LEVEL), held


def _rows(spec: Spec, attack: str) -> Float[Array, "F I"]:
    """The fake users of an attack that knows of no defense."""
    wanted = {"data": "ml", "attack": attack, "seed": spec["seed"], "fraction": FRACTION}
    profiles = rapu.setting(wanted)[1]
    assert profiles is not None
    return profiles.to_rows()


def _crafting(defense: str, spec: Spec) -> Attack:
    """RevAdv or RAPU-G against the surrogate with the defense inside, or of a control, without; RAPU-G without its
    model, which a defense leaves no room for. They begin with the fake users of the same attack without that knowledge,
    or where fewer of those pass the filter, with Random's.
    """
    attack = spec["attack"]
    guard, held = _guard(defense, spec)
    view = rapu._view("ml", spec["seed"], 0.9, 0.1)
    inside = _model(*rapu.WORLDS["ml"].surrogate) if attack in CONTROLS else guard.known(view, held)
    spent: dict[str, Any] = {
        "surrogate": inside,
        "fakes": FRACTION,
        "budget": rapu.WORLDS["ml"].budget,
        "k": K,
    }
    if defense != "none" or attack in CONTROLS:
        spent["initial"] = guard.beginning(view, *(_rows(spec, a) for a in (STARTS[attack], "random")))
    if STARTS[attack] == "rapu-g-no-pgm":
        return attacks.rapu_g(**spent, pgm=False)
    return attacks.revadv(**spent, projection="topk", click_targets=True, estimator="truncated", tau=20)


def setting(spec: Spec) -> tuple[Case, Profiles | None, dict[str, Any]]:
    """The repetition, its fake users, and what one who knows the defense saw: the target HR of the surrogate behind it
    with the fake users it began with, and at best. Those of Table 2 are shared with it.
    """
    if spec["attack"] not in (*ADAPTIVE, *CONTROLS):
        wanted = {"data": "ml", "attack": spec["attack"], "seed": spec["seed"], "fraction": FRACTION}
        return *rapu.setting(wanted)[:2], {}
    case, _, _ = rapu.setting({"data": "ml", "attack": "none", "seed": spec["seed"]})
    view = rapu._view("ml", spec["seed"], 0.9, 0.1)
    where = {"data": "ml", "seed": spec["seed"], "attack": spec["attack"]}
    if spec["attack"] in ADAPTIVE:
        where["against"] = spec["defense"]
    attack = _crafting(spec["defense"], spec)
    profiles, told = crafted(where, attack, case.keys["attack"], view, case.targets)
    own = [value for value in told["history"].get("target_hr", ()) if value is not None]
    known = spec["attack"] in ADAPTIVE and spec["defense"] != "none"
    return case, profiles, {"own_hr": [own[0], max(own)]} if known and own else {}


def run(spec: Spec) -> dict[str, Any]:
    """Train the victim behind the defense and judge it; cells of detectors only score users."""
    case, profiles, told = setting(spec)
    if spec["defense"] == "detectors":
        assert profiles is not None
        return {"detectors": scored(case, profiles)}
    fitted, facts, kept = defended(spec["defense"], spec.get("victim", VICTIMS[0]), case, profiles)
    if kept is not None:
        facts["kept_hr"] = exposed(fitted, case, kept)
    return {"victim": measured(fitted, case, k=K), **told, **facts}


def exposed(fitted: Fitted, case: Case, kept: Bool[np.ndarray, " U"]) -> float:
    """Target hr_any of the real users that a filter left in: one without its clicks is shown what is popular."""
    scores = jax.tree_util.Partial(Fitted.scores, fitted)
    found = evaluate(scores, case.train, targets=case.targets, k=K, per_user=True).per_user
    assert found is not None
    rank = np.asarray(found.target_rank)[kept]
    return float(np.mean(np.any((rank > 0) & (rank <= K), axis=1)))


def scored(case: Case, profiles: Profiles) -> dict[str, dict[str, float]]:
    """How well each detector tells the fake users apart, which it is not told."""
    train = inject(case.train, profiles).trim()
    fake = np.arange(train.users) >= case.train.users
    return {name: detection(detector(train), fake)._asdict() for name, detector in DETECTORS.items()}


def defended(
    defense: str, victim: str, case: Case, profiles: Profiles | None
) -> tuple[Fitted, dict[str, Any], Bool[np.ndarray, " U"] | None]:
    """The victim behind a defense, and for a filter how many it flagged and which real users it kept."""
    hardened = _hardened(defense, *rapu.WORLDS["ml"].victims[victim])
    data = (
        case.train if profiles is None else poisoned(case.train, profiles)
    )  # no defense is told who is fake
    if isinstance(hardened, Defense):
        fitted, told = hardened.trace(data, case.keys["victim"])
        return fitted, {name: np.asarray(told[name]).tolist() for name in ("negative", "items", "code")}, None
    if not defense.startswith("filter:"):
        return fit(hardened, data, case.keys["victim"]), {}, None
    left, users = filtered(data, DETECTORS[defense.removeprefix("filter:")], LEVEL)
    real = case.train.users
    facts = {"flagged_real": float(users[:real].mean())}
    if profiles is not None:
        facts["flagged_fake"] = float(users[real:].mean())
    return fit(hardened, left, case.keys["victim"]), facts, ~users[:real]


def cells(quick: bool) -> list[Spec]:
    """All defenses of an attack together; what detectors see after the victims of a seed."""
    names, seeds = (("none", "random", "top-popular"), 1) if quick else (ATTACKS, 3)
    found: list[Spec] = []
    for seed in range(seeds):
        for victim in VICTIMS[:1] if quick else VICTIMS:
            found += [
                {"study": "defense-grid", "attack": attack, "defense": defense, "seed": seed}
                | ({} if victim == VICTIMS[0] else {"victim": victim})
                for attack in names
                for defense in (DEFENSES[:3] if quick else HELD if attack == "adaptive-held" else DEFENSES)
            ]
        found += [
            {"study": "defense-grid", "attack": attack, "defense": "detectors", "seed": seed}
            for attack in names
            if attack not in ("none", *ADAPTIVE, *CONTROLS)
        ]
    return found
