"""Every defense against every attack on MovieLens-100K, and against an attacker who knows of it.

RAPU's setting (see rapu.py): the attacker crafts on a view, the victims are WRMF and NCF trained on the true clicks and
3% fake users. Defenses: adversarial training (AT), adversarial poisoning training (APT, APT-rand), and leaving out the
5% of users that a detector finds most suspicious. The rows "adaptive" are RevAdv and RAPU-G whose surrogate has the
defense inside: a defense is only believed against those. What a defense costs is seen in the row "none".

APT and APT-rand invert no Hessian here: APT follows the plain gradient. "apt-cg" is APT as it comes, by conjugate
gradients. The ablation over inverses (apt_figs.py) is of ratings; this one is of clicks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

import attacks
from attacks.attack import Attack
from bilevel import Code
from defenses.adversarial import adversarial
from defenses.apt import Defense, apt
from defenses.detectors import DETECTORS
from defenses.filtering import filtered
from experiments import report
from experiments.crafts import crafted
from experiments.guarded import Guard
from experiments.paired import gap
from experiments.papers import rapu
from experiments.pipeline import Case, measured, poisoned
from experiments.record import Record
from experiments.study import Report, Spec, Study
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
)
ADAPTIVE = ("adaptive", "adaptive-rapu-g", "adaptive-held")
HELD = ("apt", "apt-rand")
FILTERS = ("knn", "pca", "popularity", "duplicate")
TRAINED = ("at", "apt", "apt-rand", "apt-cg")
DEFENSES = ("none", *TRAINED, *(f"filter:{name}" for name in FILTERS))
FRACTION, LEVEL, K = 0.03, 0.05, 50
REASONS = (
    'apt follows the plain gradient (`solver="identity"`); apt-cg is APT as it comes (`solver="cg"`), its damping '
    "relative to the spectrum",
    "no row for hcars, poisonrec and appgrad: they are made of a victim's answers (explanations of its lists; the "
    "exposure after every trial), which this setting's attackers do not get, and behind each defense a victim answers "
    "otherwise, so that each would be crafted anew for each of them; undefended they belong to hcars-table1 and "
    "poisonrec-table3",
    "lof and knn, as detectors and in the filter, look at the first singular directions of the clicks at hand, not at "
    "the victim's vectors of the users",
    "left out: average and tna, which need ratings, and so PCMF among the defenses; middle and H-CARS's bandwagon, "
    "heuristics between random and bandwagon; the supervised detectors as filters: they learn from labeled fake users, "
    "which a filter here is not given (see detectors)",
)
"""Why the grid is as it is."""


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


def _known(defense: str, spec: Spec) -> Recommender:
    """The attacker's surrogate with the defense inside; APT's helpful users are renewed in it, or held."""
    own = rapu.WORLDS["ml"].surrogate
    view = rapu._view("ml", spec["seed"], 0.9, 0.1)
    detector = defense.removeprefix("filter:") if defense.startswith("filter:") else None
    held = jax.random.fold_in(jax.random.key(spec["seed"]), 7) if spec["attack"] == "adaptive-held" else None
    return Guard(_hardened(defense, *own), detector, LEVEL).known(view, held)


def _adaptive(defense: str, spec: Spec) -> Attack:
    """RevAdv or RAPU-G against the surrogate with the defense inside; RAPU-G without its model, which a defense leaves
    no room for.
    """
    spent: dict[str, Any] = {
        "surrogate": _known(defense, spec),
        "fakes": FRACTION,
        "budget": rapu.WORLDS["ml"].budget,
        "k": K,
    }
    if spec["attack"] == "adaptive-rapu-g":
        return attacks.rapu_g(**spent, pgm=False)
    return attacks.revadv(**spent, projection="topk", click_targets=True, estimator="truncated", tau=20)


def setting(spec: Spec) -> tuple[Case, Profiles | None]:
    """The repetition and its fake users; those of Table 2 are shared with it."""
    if spec["attack"] not in ADAPTIVE:
        wanted = {"data": "ml", "attack": spec["attack"], "seed": spec["seed"], "fraction": FRACTION}
        return rapu.setting(wanted)[:2]
    case, _, _ = rapu.setting({"data": "ml", "attack": "none", "seed": spec["seed"]})
    view = rapu._view("ml", spec["seed"], 0.9, 0.1)
    where = {"data": "ml", "seed": spec["seed"], "against": spec["defense"], "attack": spec["attack"]}
    profiles, _ = crafted(where, _adaptive(spec["defense"], spec), case.keys["attack"], view, case.targets)
    return case, profiles


def run(spec: Spec) -> dict[str, Any]:
    """Train the victim behind the defense and judge it; cells of detectors only score users."""
    case, profiles = setting(spec)
    if spec["defense"] == "detectors":
        assert profiles is not None
        return {"detectors": scored(case, profiles)}
    fitted, facts, kept = defended(spec["defense"], spec.get("victim", VICTIMS[0]), case, profiles)
    if kept is not None:
        facts["kept_hr"] = exposed(fitted, case, kept)
    return {"victim": measured(fitted, case, k=K), **facts}


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


# ------------------------------------------------------------------------------------------------ the study


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
            if attack not in ("none", *ADAPTIVE)
        ]
    return found


def table(records: list[Record], folder: Path) -> Report:
    """A row an attack, a column a defense: target HR, and the recall that is left."""
    grid = _grid(records, lambda victim: victim["hr_any"])
    recall = _grid(records, lambda victim: victim["recall"])
    header = ["victim", "attack", "seeds", *DEFENSES]
    rows = []
    for victim in VICTIMS:
        for attack in ATTACKS:
            mine = [grid.get((victim, attack, defense), []) for defense in DEFENSES]
            if any(mine):
                shown = (report.interval(v, 3, "mean") for v in mine)
                rows.append([victim, attack, str(max(map(len, mine))), *shown])
        clean = [recall.get((victim, "none", defense), []) for defense in DEFENSES]
        if any(clean):
            shown = (report.interval(v, 3, "mean") for v in clean)
            rows.append([victim, "recall@50, no attack", str(max(map(len, clean))), *shown])
    notes = [
        f"target HR@50 (hr_any) on MovieLens-100K, 3% fake users; {report.SEEDS}",
        f"a filter leaves out the {LEVEL:.0%} of users with the highest scores, attacked or not; it is not told how "
        "many fakes there are",
        "adaptive: RevAdv, or RAPU-G without its model, with the defense inside its surrogate (WRMF, whatever the "
        "victim): AT's change and its answers, APT's helpful users renewed in the surrogate's training (held: those of "
        "one training), the soft side of the filter's detector with the cut of the attacker's view",
        *REASONS,
        *_paired(records),
        *_broken(recall),
        *_helped(records),
        *_kept(records),
        *_seen(records),
    ]
    return Report(
        "Defenses against attacks, MovieLens-100K",
        header,
        rows,
        notes,
        [_picture(grid, next(iter(_areas(records)), ""), folder)],
    )


def _paired(records: list[Record]) -> list[str]:
    """What each defense of the training changes, attack by attack, on the seeds that both have."""
    hits: dict[tuple[str, str, str], dict[int, float]] = {}
    for record in records:
        if "victim" in record.result:
            place = record.spec.get("victim", VICTIMS[0]), record.spec["attack"], record.spec["defense"]
            hits.setdefault(place, {})[record.spec["seed"]] = record.result["victim"]["hr_any"]
    said = []
    for victim in VICTIMS:
        for defense in TRAINED:
            gaps = {
                attack: gap(hits.get((victim, attack, defense), {}), hits.get((victim, attack, "none"), {}))
                for attack in ATTACKS
                if attack not in ADAPTIVE
            }
            shown = [f"{attack} {each.said(3)}" for attack, each in gaps.items() if each]
            said += (
                [f"{victim}, {defense} minus no defense, paired by seed: {', '.join(shown)}"] if shown else []
            )
    return said


def _broken(recall: dict[tuple[str, str, str], list[float]]) -> list[str]:
    """Defenses that cost more than half of the recall: there is no recommender left to attack."""
    said = []
    for (victim, attack, defense), values in recall.items():
        whole = np.mean(recall.get((victim, "none", "none"), [np.nan]))
        if attack == "none" and np.mean(values) < whole / 2:
            said.append(
                f"{victim} behind {defense} recommends nothing any more (recall {np.mean(values):.3f} of {whole:.3f}): "
                "its hit rates say nothing about attacks"
            )
    return said


def _grid(
    records: list[Record], read: Callable[[dict[str, Any]], float]
) -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        if "victim" in record.result:
            victim = record.spec.get("victim", VICTIMS[0])
            place = victim, record.spec["attack"], record.spec["defense"]
            found.setdefault(place, []).append(read(record.result["victim"]))
    return found


def _kept(records: list[Record]) -> list[str]:
    """Filters among the users they left in: those without clicks are shown the popular, attacked or not."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if "kept_hr" in record.result:
            of = found.setdefault(f"{record.spec.get('victim', VICTIMS[0])}, {record.spec['defense']}", {})
            of.setdefault(record.spec["attack"], []).append(record.result["kept_hr"])
    return [
        f"{defense}, of the users it left in: "
        + ", ".join(f"{attack} {np.mean(of[attack]):.3f}" for attack in ATTACKS if attack in of)
        for defense, of in found.items()
    ]


def _areas(records: list[Record]) -> dict[str, dict[str, list[float]]]:
    """ROC areas by detector and attack, the best detector on average first."""
    areas: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for name, values in record.result.get("detectors", {}).items():
            areas.setdefault(name, {}).setdefault(record.spec["attack"], []).append(values["auc"])
    return dict(sorted(areas.items(), key=lambda one: -_average(one[1])))


def _average(by: dict[str, list[float]]) -> float:
    return float(np.mean([np.mean(values) for values in by.values()]))


def _seen(records: list[Record]) -> list[str]:
    """The area of every detector, by attack, and which is best on average."""
    areas = _areas(records)
    lines = [
        f"detector {name}: ROC area " + ", ".join(f"{attack} {np.mean(v):.2f}" for attack, v in by.items())
        for name, by in areas.items()
    ]
    best = [
        f"best detector on average over these attacks (known only afterwards): {name}, area {_average(by):.2f}"
        for name, by in list(areas.items())[:1]
    ]
    return [*lines, *best]


def _helped(records: list[Record]) -> list[str]:
    """How many items helpful users clicked behind APT, and how often it had to do without the inverse."""
    said = []
    for defense in ("apt", "apt-cg"):
        mine = [r for r in records if r.spec["defense"] == defense and "negative" in r.result]
        if not mine:
            continue
        clicked = np.mean(np.concatenate([r.result["items"] for r in mine]))
        said.append(f"{defense}: a helpful user clicked {clicked:.0f} items on average")
        for victim in VICTIMS if defense == "apt-cg" else ():
            codes = [r.result["code"] for r in mine if r.spec.get("victim", VICTIMS[0]) == victim]
            if codes:
                refused = np.concatenate(codes) == Code.INDEFINITE
                said.append(
                    f"apt-cg, {victim}: {refused.sum()} of {refused.size} renewals met negative curvature and took the "
                    "plain gradient"
                )
    return said


def _picture(grid: dict[tuple[str, str, str], list[float]], best: str, folder: Path) -> Path:
    columns = [f"{name}\n(best detector)" if name == f"filter:{best}" else name for name in DEFENSES]
    victims = [victim for victim in VICTIMS if any(place[0] == victim for place in grid)]
    made, axes = report.figure(1, max(1, len(victims)), width=7.5, height=7)
    for axis, victim in zip(axes[0], victims):
        values = np.array([[np.mean(grid.get((victim, a, d), [np.nan])) for d in DEFENSES] for a in ATTACKS])
        axis.grid(visible=False)
        shown = axis.imshow(values, cmap="magma_r", vmin=0, aspect="auto")
        for (line, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "w" if value > 0.6 * np.nanmax(values) else "k"
                axis.text(column, line, f"{value:.3f}", ha="center", va="center", color=color, fontsize=7)
        axis.set_xticks(range(len(DEFENSES)), columns, rotation=40, ha="right", fontsize=8)
        axis.set_yticks(range(len(ATTACKS)), ATTACKS, fontsize=8)
        axis.set_title(victim)
        made.colorbar(shown, label="target HR@50")
    return report.save(made, folder / "defense-grid.png")


STUDIES = (
    Study(
        "defense-grid", "every defense against every attack, and an adaptive one", cells, run, table, (60, 4)
    ),
)
