"""Put a recommender behind defenses, attack it, and measure what each of them saves and costs.

    # ratings: APT's victim on MovieLens-100K, the Average attack, five targets
    python scripts/run_defense.py --data ml-100k --track explicit --split one --targets ml-100k/apt \\
        --model mf:apt-ml-100k --attack average --fakes 0.03 --budget 105 \\
        --defense none at apt:ml-100k apt-rand:ml-100k pcmf

    # clicks, and detectors that leave out the 5% of users they find most suspicious
    python scripts/run_defense.py --data ml-100k --split rapu --model wrmf:rapu-ml-victim --seeds 3 \\
        --attack top-popular --fakes 0.03 --budget 100 --defense none filter:duplicate,level=0.05

    # an attacker who knows the defense: the fake users are learned through a surrogate with the defense inside
    python scripts/run_defense.py --data ml-100k --split rapu --model wrmf:rapu-ml-victim --fakes 0.03 --budget 100 \\
        --attack revadv,projection=topk,click_targets=True,estimator=truncated,tau=20 \\
        --surrogate wrmf:rapu-ml-surrogate --defense none at filter:duplicate,level=0.05 --knows

    # fake users that were saved before, by run_attack.py, judged by the targets they were made for
    python scripts/run_defense.py --data ml-100k --split rapu --model wrmf:rapu-ml-victim \\
        --profiles runs/movielens/profiles/FILE.npz --defense none at,epsilon=0.1

Defenses: none; at (adversarial training); apt and apt-rand (adversarial poisoning training, with the settings of a data
set after the colon); pcmf (another recommender, of ratings as they are; pcmf,center=True takes mean and biases off
first); filter:DETECTOR. filter:knn and filter:lof look at the first directions of the data, with ,space=victim at the
users' vectors in the model, which is trained on all of the data first. Arguments follow after commas.

A defense is only believed against an attacker who knows it: --knows crafts for each defense once more, with the defense
inside the surrogate, and adds the column "known". AT and APT take the arguments they are given for the model, so a
pretrain of APT's is in the surrogate's epochs too; a filter cuts where it would among the users of the attacker's data.

Everything goes into --out: profiles, a JSON record of each craft and of each defense, and of the latest command
table.md, figure.png and run.json. The same command continues a run that was killed; with another --defense or --k it
judges the profiles that are there.
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
    knows: bool = False
    """the attacker knows each defense and crafts against it as well: for --attack revadv and rapu-g,pgm=False, and
    for at, apt, apt-rand and filter:DETECTOR of duplicate, knn, pca and popularity"""
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
    given = {name: getattr(options, name) for name in ("attack", "surrogate", "fakes", "budget")}
    unused = [name for name, value in (given | {"knows": options.knows or None}).items() if value is not None]
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
    surrogate = None if options.surrogate is None else names.recommender(options.surrogate, data)
    pair = None if grid is None else grid[1:]
    defenses = {text: names.defense(text, model, pair, data.interactions) for text in options.defense}
    plan = Campaign(
        data=data,
        attack=None if options.profiles else attack_of(options, grid, surrogate),  # pyright: ignore[reportArgumentType]
        victims={options.model: model},
        targets="head" if targets is None else targets,
        count=options.target_count,
        split=split,
        k=options.k,
        seeds=tuple(range(first, first + options.seeds)),
    )
    check(plan)
    knowing = knowing_of(options, grid, surrogate) if options.knows else {}
    defended.check(plan, knowing)
    options.out.mkdir(parents=True, exist_ok=True)
    records = defended.run(
        plan,
        defenses,
        options.out,
        profiles=options.profiles,
        knowing=knowing,
        progress=not options.quiet,
        say=teller(options.quiet),
    )
    defended.present(records, plan, options.out, profiles=options.profiles)


def attack_of(options: Options, grid: tuple[float, float, float] | None, surrogate: Any) -> Any:
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
    return names.attack(attack, surrogate=surrogate, **given)


def knowing_of(options: Options, grid: tuple[float, float, float] | None, surrogate: Any) -> dict[str, Any]:
    """For each defense but none: the attack of one who knows it, from a view of the real users."""
    from experiments import names

    guards = {
        text: names.knowing(options.attack or "random", text, surrogate, None if grid is None else grid[1:])
        for text in options.defense
        if text != "none"
    }
    if not guards:
        raise ValueError("--knows: there is nothing to know of --defense none; name a defense beside it")
    against = lambda guard: lambda view: attack_of(options, grid, guard.known(view))
    return {text: against(guard) for text, guard in guards.items()}


if __name__ == "__main__":
    with plainly("run_defense"):
        main(tyro.cli(Options, description=__doc__))
