"""Put a recommender behind defenses, attack it, and measure what each of them saves and costs.

    # ratings: APT's victim on MovieLens-100K, the Average attack, five targets
    python scripts/run_defense.py --data ml-100k --track explicit --split one --targets ml-100k/apt \\
        --model mf:apt-ml-100k --attack average --fakes 0.03 --budget 105 \\
        --defense none at apt:ml-100k apt-rand:ml-100k pcmf

    # clicks, and detectors that leave out the 5% of users they find most suspicious
    python scripts/run_defense.py --data ml-100k --split rapu --model wrmf:rapu-ml-victim --seeds 3 \\
        --attack top-popular --fakes 0.03 --budget 100 --defense none filter:duplicate,level=0.05

    # fake users that were saved before, by run_attack.py, judged by the targets they were made for
    python scripts/run_defense.py --data ml-100k --split rapu --model wrmf:rapu-ml-victim \\
        --profiles runs/movielens/profiles/FILE.npz --defense none at,epsilon=0.1

Defenses: none; at (adversarial training); apt and apt-rand (adversarial poisoning training, with the settings of a data
set after the colon); pcmf (another recommender, of ratings); filter:DETECTOR. Arguments follow after commas. Everything
goes into --out: a JSON record a seed, table.md, figure.png. The same command continues a run that was killed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass
class Options:
    """Options of a run."""

    data: str = "ml-100k"
    """a name such as ml-100k, or a file (MovieLens u.data, RecBole .inter, CSV, TSV, also .gz)"""
    user_column: str | None = None
    """name of the file's user column, if it is not found by its usual names"""
    item_column: str | None = None
    """name of the item column"""
    rating_column: str | None = None
    """name of the rating column"""
    separator: str | None = None
    """column separator, if it is not to be detected"""
    positive_from: float | None = None
    """ratings of at least this are clicks; default: every rating is one"""
    track: Literal["implicit", "explicit"] = "implicit"
    """what is read from the data and written by the attack: clicks or ratings"""
    split: Literal["revadv", "rapu", "one"] | None = None
    """revadv (default): 20%% of each user's events are held out; rapu: 80/10/10 over all events; one: a random event
    of each user"""
    targets: str | None = None
    """item ids as in the file (12,40), a stratum (head, tail, ...), or a published set such as ml-100k/apt; default:
    head, or those of --profiles"""
    target_count: int | None = None
    """targets drawn from a stratum, default 5"""

    model: str = "wrmf"
    """the recommender that is defended, name[:preset][,argument=value], see run_training.py --models"""
    attack: str | None = None
    """name[,argument=value...], such as average or revadv, default random; an unknown name prints them all"""
    surrogate: str | None = None
    """the attacker's model, for attacks that have one; as --model"""
    fakes: float | None = None
    """fake users: a number, or a fraction of the real users below 1, default 0.03"""
    budget: int | None = None
    """non-target items a fake user may click or rate, default 50"""
    profiles: Path | None = None
    """these saved fake users in place of --attack and its options"""
    defense: list[str] = field(default_factory=lambda: ["none", "at"])
    """none, at, apt[:preset], apt-rand[:preset], pcmf, filter:DETECTOR; each with [,argument=value...]"""

    k: int = 50
    """list length of every metric"""
    seed: int = 0
    """the first seed; decides split, targets, fake users and training"""
    seeds: int = 1
    """how many repetitions"""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """where to run"""
    out: Path = Path("runs/defense")
    """folder for everything that is written; the same folder continues a run"""
    quiet: bool = False
    """no progress"""


def main(options: Annotated[Options, tyro.conf.OmitArgPrefixes]) -> None:
    """Attack, defend, judge, report."""
    if options.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.device, options.device)
    from experiments import defended, names
    from experiments.campaign import Campaign, check

    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds}: expected at least 1")
    unused = [
        name for name in ("attack", "surrogate", "fakes", "budget") if getattr(options, name) is not None
    ]
    if options.profiles is not None and unused:
        asked = ", ".join(f"--{name}" for name in unused)
        raise ValueError(f"{asked}: no attack is run beside --profiles; leave out the one or the other")
    data = read(options)
    targets = options.targets
    if targets is None:
        targets = "head" if options.profiles is None else defended.targets_of(options.profiles, data)
    grid = ratings_of(data) if options.track == "explicit" else None
    model = names.recommender(options.model, data)
    pair = None if grid is None else grid[1:]
    defenses = {text: names.defense(text, model, pair) for text in options.defense}
    plan = Campaign(
        data=data,
        attack=attack_of(options, data, grid) if options.profiles is None else None,  # type: ignore[arg-type]
        victims={options.model: model},
        targets=targets,
        count=options.target_count,
        split=options.split,
        k=options.k,
        seeds=tuple(range(options.seed, options.seed + options.seeds)),
    )
    check(plan)
    options.out.mkdir(parents=True, exist_ok=True)
    records = defended.run(
        plan, defenses, options.out, profiles=options.profiles, progress=not options.quiet, say=say
    )
    defended.present(records, plan, options.out, profiles=options.profiles)


def read(options: Options) -> Any:
    """The data set, on the track that was asked for."""
    from models.data import load

    columns: dict[str, Any] = {
        "user": options.user_column,
        "item": options.item_column,
        "rating": options.rating_column,
        "sep": options.separator,
        "threshold": options.positive_from,
    }
    found = load(options.data, **{name: value for name, value in columns.items() if value is not None})
    if options.track == "implicit" and found.interactions.track == "explicit":
        return found.binarize("all")
    if found.interactions.track != options.track:
        raise ValueError(
            f"--track {options.track}: {options.data} has {found.interactions.track} data only; "
            "give a file with ratings"
        )
    return found


def ratings_of(data: Any) -> tuple[float, float, float]:
    """The grid of the ratings in the data: lowest, highest, and the smallest step between two."""
    import numpy as np

    events = data.interactions
    levels = np.unique(np.asarray(events.weight)[events.real()])
    step = float(np.diff(levels).min()) if len(levels) > 1 else float(levels[0])
    return float(levels[0]), float(levels[-1]), step


def attack_of(options: Options, data: Any, grid: tuple[float, float, float] | None) -> Any:
    """The attack with the options it has a use for; an option that nothing has a use for is an error."""
    from experiments import names

    attack = "random" if options.attack is None else options.attack
    asked = 0.03 if options.fakes is None else options.fakes
    fakes = asked if 0 < asked < 1 else int(asked)
    if fakes != asked or fakes <= 0:
        raise ValueError(f"--fakes {asked}: expected a whole number, or a fraction between 0 and 1")
    given: dict[str, Any] = {"fakes": fakes, "budget": 50 if options.budget is None else options.budget}
    if names.has(attack, "track"):
        given["track"] = options.track
    if grid is not None and names.has(attack, "ratings"):
        given["ratings"] = grid
    if names.has(attack, "k"):
        given["k"] = options.k
    if options.surrogate is not None:
        given["surrogate"] = names.recommender(options.surrogate, data)
    return names.attack(attack, **given)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, TypeError, FileNotFoundError, ImportError) as problem:
        sys.exit(f"run_defense: {problem}")
