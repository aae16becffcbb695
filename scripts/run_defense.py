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

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.reading import Reading, choose_device, fakes_of, grid_of, plainly, teller


@dataclass
class Options(Reading):
    """Options of a run."""

    track: Literal["implicit", "explicit"] = "implicit"
    """what is read from the data and written by the attack: clicks or ratings"""
    split: Literal["revadv", "rapu", "one"] | None = None
    """revadv (default): 20% of each user's events are held out; rapu: 80/10/10 over all events; one: a random event of
    each user; of --profiles: theirs"""
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
    seed: int | None = None
    """the first seed; decides split, targets, fake users and training; default 0, or that of --profiles"""
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
    choose_device(options.device)
    from experiments import defended, names
    from experiments.campaign import Campaign, check

    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds}: expected at least 1")
    unused = [
        name for name in ("attack", "surrogate", "fakes", "budget") if getattr(options, name) is not None
    ]
    if options.profiles is not None and unused:
        asked = ", ".join(f"--{name}" for name in unused)
        raise ValueError(f"{asked}: no attack is run beside --profiles; leave out the one or the other")
    data = options.read()
    made = None if options.profiles is None else defended.made_with(options.profiles, data)
    split, first, targets = options.split, options.seed, options.targets
    if made is not None:
        if split is not None and made.seed is not None and split != (made.split or "revadv"):
            raise ValueError(
                f"--split {split}: the fake users were made from the training part of {made.split or 'revadv'}, and "
                "would have seen test events of this one; leave it out"
            )
        split = made.split if split is None else split
        first = made.seed if first is None else first
        targets = made.targets if targets is None else targets
    first = first or 0
    grid = grid_of(data) if options.track == "explicit" else None
    model = names.recommender(options.model, data)
    pair = None if grid is None else grid[1:]
    defenses = {text: names.defense(text, model, pair, data.interactions) for text in options.defense}
    plan = Campaign(
        data=data,
        attack=None if options.profiles else attack_of(options, data, grid),  # pyright: ignore[reportArgumentType]
        victims={options.model: model},
        targets="head" if targets is None else targets,
        count=options.target_count,
        split=split,
        k=options.k,
        seeds=tuple(range(first, first + options.seeds)),
    )
    check(plan)
    options.out.mkdir(parents=True, exist_ok=True)
    records = defended.run(
        plan,
        defenses,
        options.out,
        profiles=options.profiles,
        progress=not options.quiet,
        say=teller(options.quiet),
    )
    defended.present(records, plan, options.out, profiles=options.profiles)


def attack_of(options: Options, data: Any, grid: tuple[float, float, float] | None) -> Any:
    """The attack with the options it has a use for; an option that nothing has a use for is an error."""
    from experiments import names

    attack = "random" if options.attack is None else options.attack
    fakes = fakes_of(0.03 if options.fakes is None else options.fakes)
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
    with plainly("run_defense"):
        main(tyro.cli(Options, description=__doc__))
