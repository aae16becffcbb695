"""Attack a recommender with fake users and measure what it does.

    # the paper's toy data, exact gradient
    python scripts/run_attack.py --data toy --preset toy --victim wrmf:revadv-toy --k 10

    # MovieLens-100K, five seeds, 3% fake users with 100 fillers and the five published targets
    python scripts/run_attack.py --data ml-100k --split rapu --targets ml-100k/rapu --seeds 5 \\
        --attack revadv --surrogate wrmf:rapu-ml-surrogate --estimator truncated --tau 20 \\
        --fakes 0.03 --budget 100 --projection topk --click-targets yes --victim wrmf:rapu-ml-victim

    # your own file: clicks are ratings of 4 and more, targets are five items of the most popular 5%
    python scripts/run_attack.py --data ratings.csv --positive-from 4 --targets head \\
        --user-column uid --item-column movie --rating-column stars \\
        --attack top-popular --fakes 20 --budget 30

    # every attack, what it serves and its arguments
    python scripts/run_attack.py --attacks

    # ratings, and a victim that learns from ratings
    python scripts/run_attack.py --data ml-100k --track explicit --split one --targets ml-100k/rapu \\
        --attack average --fakes 0.03 --budget 105 --victim mf:apt-ml-100k

Everything goes into --out: profiles (one .npz a seed, with the facts needed to judge them again), a JSON record of each
craft and of each victim, and of the latest command table.md, figure.png and run.json. The same command continues a run
that was killed; with another --victim or --k it judges the profiles that are there (an attack that optimizes for lists
of length --k, or against the --victim, is crafted again). Data sets known by name are read from BILEVEL_DATA or
downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.reading import Reading, choose_device, fakes_of, grid_of, plainly, teller


@dataclass
class Options(Reading):
    """Options of a run; an option that the attack has no use for is an error."""

    data: str = "toy"
    """toy, a name such as ml-100k, or a file (MovieLens u.data, RecBole .inter, CSV, TSV, also .gz)"""
    track: Literal["implicit", "explicit", "sequence"] = "implicit"
    """what is read from the data and written by the attack: clicks, ratings, or clicks in their order"""
    split: Literal["revadv", "rapu", "last", "one"] | None = None
    """revadv (default): 20% of each user's events are held out; rapu: 80/10/10 over all events;
    last: the last event of each user; one: a random one"""
    targets: str | None = None
    """item ids as in the file (12,40), a stratum (head, upper_torso, lower_torso, tail, ...), a published set such as
    ml-100k/rapu, or none (an attack on availability); default head"""
    target_count: int | None = None
    """targets drawn from a stratum, default 5"""

    attack: str = "revadv"
    """name[,argument=value...], such as revadv or random,target_mode=split, see --attacks. Black-box attacks (for
    --track sequence) try their luck against the first --victim and take arguments of attacks.environment too, such as
    poisonrec,candidates=20"""
    attacks: bool = False
    """print every attack with what it serves and its arguments, and stop"""
    goal: Literal["promote", "demote", "availability"] | None = None
    """what for, default promote; an attack that cannot serve it says so"""
    preset: str | None = None
    """settings of the RevAdv paper: toy, toy-itemae, wrmf-sgd, wrmf-als, itemae, itemae-pd; other options
    change them"""
    surrogate: list[str] = field(default_factory=list)
    """the attacker's model, name[:preset][,argument=value], such as wrmf, als, itemae, lightgcn (all of them:
    run_training.py --models); several make an ensemble. One with a defense inside: run_defense.py --knows"""
    estimator: Literal["exact", "truncated", "partial", "implicit", "one_step"] | None = None
    """how the surrogate's training is differentiated"""
    tau: int | None = None
    """epochs differentiated by the truncated estimator"""
    memory: Literal["keep", "recompute", "segments", "adjoint", "replay", "lean"] | None = None
    """what the backward pass keeps"""
    fakes: float | None = None
    """fake users: a number, or a fraction of the real users below 1"""
    budget: int | None = None
    """non-target items a fake user may click"""
    clicks: int | None = None
    """length of a click sequence, targets and repeats included; for --track sequence, in place of --budget"""
    projection: Literal["threshold", "topk"] | None = None
    """how relaxed rows become clicks"""
    threshold: float | None = None
    """rho of the threshold projection"""
    steps: int | None = None
    """outer steps"""
    learning_rate: float | None = None
    """outer learning rate eta"""
    momentum: float | None = None
    """outer momentum"""
    click_targets: Literal["yes", "no"] | None = None
    """every fake user clicks every target"""

    victim: list[str] = field(default_factory=lambda: ["wrmf"])
    """recommenders under attack, as --surrogate"""
    k: int | None = None
    """list length of every metric, at most the items; default 50, or the preset's own"""
    seed: int | None = None
    """the first seed, default 0"""
    seeds: int | None = None
    """how many repetitions, default 1; each has its own split, targets and initial parameters"""
    profiles: Path | None = None
    """judge these saved profiles against --victim instead of crafting: give the same data options again; split,
    targets and seed are those in the file"""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """where to run"""
    out: Path = Path("runs/attack")
    """folder for everything that is written; the same folder continues a run"""
    block: int | None = None
    """outer steps between two snapshots, default 1"""
    quiet: bool = False
    """no progress"""


def main(options: Annotated[Options, tyro.conf.OmitArgPrefixes]) -> None:
    """Craft, judge, report."""
    choose_device(options.device)
    if options.attacks:
        list_attacks()
        return
    from experiments import campaign as campaigns
    from experiments.outcome import present

    say = teller(options.quiet)
    if options.profiles is not None:
        again(options.profiles, options, say)
        return
    plan = campaign_of(options)
    block = 1 if options.block is None else options.block
    if block < 1:
        raise ValueError(f"--block {block}: expected at least 1 step")
    options.out.mkdir(parents=True, exist_ok=True)
    records = campaigns.run(plan, options.out, block=block, progress=not options.quiet, say=say)
    present(records, plan, options.out)


def list_attacks() -> None:
    """Every attack with its first line, what it serves and its arguments."""
    from experiments.names import list_of_attacks
    from experiments.report import show

    show("attacks", ["name", "what", "serves", "arguments"], list_of_attacks())


ATTACK = (
    "estimator",
    "tau",
    "memory",
    "budget",
    "clicks",
    "goal",
    "projection",
    "threshold",
    "steps",
    "momentum",
    "learning_rate",
)
REST = ("click_targets", "preset", "fakes", "split", "targets", "target_count", "seed", "seeds", "block")


def campaign_of(options: Options) -> Any:
    """Every option checked and turned into values, before anything is computed."""
    from experiments import names
    from experiments.campaign import Campaign, check

    data = None if options.data == "toy" else options.read()
    if data is None:
        _check_toy(options)
    attack = attack_of(options, data)
    seeds = 1 if options.seeds is None else options.seeds
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: expected at least 1")
    first = options.seed or 0
    plan = Campaign(
        data=data,
        attack=attack,
        victims={text: names.recommender(text, data) for text in options.victim},
        targets=options.targets or ("toy" if data is None else "head"),
        count=options.target_count,
        split=options.split,
        k=attack.config.get("k", 50) if options.k is None else options.k,
        seeds=tuple(range(first, first + seeds)),
    )
    check(plan)
    return plan


def attack_of(options: Options, data: Any) -> Any:
    """The attack, with the options it was given and no other."""
    from attacks import revadv_preset
    from experiments import names

    given = {name: getattr(options, name) for name in ATTACK}
    given |= {"fakes": fakes_of(options.fakes)}
    given["click_targets"] = {"yes": True, "no": False, None: None}[options.click_targets]
    if names.has(options.attack, "track"):
        given["track"] = options.track
    if data is not None and options.track == "explicit" and names.has(options.attack, "ratings"):
        given["ratings"] = grid_of(data)
    if names.has(options.attack, "environment"):
        given |= {"environment": names.recommender(options.victim[0], data), "box": {"k": options.k}}
    elif names.has(options.attack, "k"):
        given["k"] = options.k
    models = [names.recommender(text, data) for text in options.surrogate]
    surrogate: Any = models[0] if len(models) == 1 else models or None
    if options.preset is None:
        ready = "" if options.attack != "revadv" else "on the toy data: --preset toy"
        return names.attack(options.attack, surrogate=surrogate, hint=ready, **given)
    if options.attack != "revadv":
        raise ValueError(f"--preset {options.preset} is RevAdv's; --attack {options.attack} has no presets")
    if len(models) > 1:
        raise ValueError(f"--preset {options.preset} has one surrogate; leave the preset out for an ensemble")
    changes = {name: value for name, value in given.items() if value is not None}
    return revadv_preset(options.preset, surrogate=surrogate, **changes)


def _check_toy(options: Options) -> None:
    """Refuse what the toy data have no use for."""
    if options.given():
        raise ValueError(f"--data toy is drawn from the seed and has no use for {', '.join(options.given())}")
    if options.track != "implicit":
        raise ValueError(f"--data toy has clicks only, not --track {options.track}")


def again(path: Path, options: Options, say) -> None:
    """Judge saved profiles against other victims, on the data, split and targets they were made for."""
    from experiments import names
    from experiments.campaign import judge_again
    from experiments.outcome import present_again

    extra = [name for name in (*ATTACK, *REST) if getattr(options, name) is not None]
    if extra or options.surrogate or options.attack != "revadv":
        named = ", ".join(extra or ["attack or surrogate"])
        raise ValueError(f"--profiles judges what was crafted before and has no use for {named}")
    data = None if options.data == "toy" else options.read()
    victims = {text: names.recommender(text, data) for text in options.victim}
    found, k = judge_again(path, data, victims, options.k, say)
    options.out.mkdir(parents=True, exist_ok=True)
    present_again(path, found, k, options.out)


if __name__ == "__main__":
    with plainly("run_attack"):
        main(tyro.cli(Options, description=__doc__))
