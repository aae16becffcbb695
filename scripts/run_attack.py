"""Attack a recommender with fake users and measure what it does.

    # the paper's toy data, exact gradient
    python scripts/run_attack.py --data toy --preset toy --victim wrmf:revadv-toy --k 10

    # MovieLens-100K, five seeds, 3% fake users with 100 fillers and the five published targets
    python scripts/run_attack.py --data ml-100k --split rapu --targets ml-100k/rapu --seeds 5 \\
        --attack revadv --surrogate wrmf:rapu-ml-surrogate --estimator truncated --tau 20 \\
        --fakes 0.03 --budget 100 --projection topk --click-targets --victim wrmf:rapu-ml-victim

    # your own file: clicks are ratings of 4 and more, targets are five items of the most popular 5%
    python scripts/run_attack.py --data ratings.csv --positive-from 4 --targets head \\
        --user-column uid --item-column movie --rating-column stars \\
        --attack top-popular --fakes 20 --budget 30

Everything goes into --out: profiles (one .npz a seed, with the facts needed to judge them again), a JSON
record a seed, table.md and figure.png. The same command continues a run that was killed. Data sets known by
name are read from BILEVEL_DATA or downloaded.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass
class Options:
    """Options of a run; an option that the attack has no use for is an error."""

    data: str = "toy"
    """toy, a name such as ml-100k, or a file (MovieLens u.data, RecBole .inter, CSV, TSV, also .gz)"""
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
    split: Literal["revadv", "rapu"] = "revadv"
    """revadv: 20%% of each user's events are held out; rapu: 80/10/10 over all events"""
    targets: str | None = None
    """item ids as in the file (12,40), a stratum (head, upper_torso, lower_torso, tail, ...), or a published
    set such as ml-100k/rapu; default head"""
    target_count: int = 5
    """targets drawn from a stratum"""

    attack: str = "revadv"
    """revadv, random or top-popular"""
    preset: str | None = None
    """settings of the RevAdv paper: toy, toy-itemae, wrmf-sgd, wrmf-als, itemae, itemae-pd; other options
    change them"""
    surrogate: list[str] = field(default_factory=list)
    """the attacker's model, name[:preset][,argument=value]: wrmf, als, itemae; several make an ensemble"""
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
    click_targets: bool | None = None
    """every fake user clicks every target"""

    victim: list[str] = field(default_factory=lambda: ["wrmf"])
    """recommenders under attack, as --surrogate"""
    k: int = 50
    """list length of every metric"""
    seed: int = 0
    """the first seed"""
    seeds: int = 1
    """how many repetitions, paired: every one has its split, targets and initial parameters"""
    profiles: Path | None = None
    """judge these saved profiles against --victim instead of crafting; data, split, targets and seed are those
    in the file"""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """where to run"""
    out: Path = Path("runs/attack")
    """folder for everything that is written; the same folder continues a run"""
    block: int = 1
    """outer steps between two snapshots"""
    quiet: bool = False
    """no progress"""


def main(options: Annotated[Options, tyro.conf.OmitArgPrefixes]) -> None:
    """Craft, judge, report."""
    if options.device != "auto":
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.device, options.device)
    from experiments import campaign as campaigns

    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    if options.profiles is not None:
        again(options, say)
        return
    plan = campaign_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    records = campaigns.run(plan, options.out, block=options.block, progress=not options.quiet, say=say)
    present(records, plan, options.out)


def campaign_of(options: Options) -> Any:
    """Every option checked and turned into values, before anything is computed."""
    import attacks
    from experiments import names
    from experiments.campaign import Campaign

    data = read(options)
    fakes = (
        None if options.fakes is None else options.fakes if 0 < options.fakes < 1 else _whole(options.fakes)
    )
    arguments = {
        name: getattr(options, name)
        for name in (
            "estimator",
            "tau",
            "memory",
            "budget",
            "projection",
            "threshold",
            "steps",
            "momentum",
            "learning_rate",
            "click_targets",
        )
    }
    models = [names.recommender(text) for text in options.surrogate] or None
    surrogate = models[0] if models and len(models) == 1 else models
    if options.preset is not None:
        if options.attack != "revadv":
            raise ValueError(
                f"--preset {options.preset} is RevAdv's; --attack {options.attack} has no presets"
            )
        changes = {name: value for name, value in {**arguments, "fakes": fakes}.items() if value is not None}
        attack = attacks.revadv_preset(options.preset, surrogate=surrogate, k=options.k, **changes)
    else:
        scored = (
            {"k": options.k, "surrogate": surrogate}
            if options.attack == "revadv"
            else {"surrogate": surrogate}
        )
        attack = names.attack(options.attack, fakes=fakes, **scored, **arguments)
    victims = {text: names.recommender(text) for text in options.victim}
    targets = options.targets or ("toy" if data is None else "head")
    seeds = tuple(range(options.seed, options.seed + options.seeds))
    if not seeds:
        raise ValueError(f"--seeds {options.seeds}: expected at least 1")
    return Campaign(data, attack, victims, targets, options.target_count, options.split, options.k, seeds)


def read(options: Options) -> Any:
    """The data set; None for the toy."""
    from models.data import load

    columns = {
        "user": options.user_column,
        "item": options.item_column,
        "rating": options.rating_column,
        "sep": options.separator,
    }
    given = {name: value for name, value in columns.items() if value is not None}
    if options.data == "toy":
        if given or options.positive_from is not None:
            raise ValueError(
                f"--data toy is drawn from the seed and has no use for {', '.join(given) or '--positive-from'}"
            )
        return None
    found = load(options.data, threshold=options.positive_from, **given)
    return found.binarize("all") if found.interactions.track == "explicit" else found


def again(options: Options, say) -> None:
    """Judge saved profiles against other victims."""
    from experiments import names
    from experiments.campaign import Campaign, case_of, judged
    from experiments.report import show
    from models.data import Profiles

    profiles, meta = Profiles.load(options.profiles)  # type: ignore[arg-type]
    spec = meta["spec"]
    options.data = spec["data"]["name"] if options.data == "toy" else options.data
    data = read(options)
    if data is not None and data.provenance.get("sha256") != spec["data"].get("sha256"):
        raise ValueError(
            f"{options.profiles} was made on other data than {options.data}: the checksums differ"
        )
    victims = {text: names.recommender(text) for text in options.victim}
    plan = Campaign(
        data, None, victims, spec["targets"], spec["count"], spec["split"], options.k, (spec["seed"],)
    )  # type: ignore[arg-type]
    found = judged(plan, case_of(plan, spec["seed"]), profiles, say)
    rows = [
        [name, *(f"{found[name][at][m]:.4f}" for m in ("hr_any", "recall") for at in ("clean", "attacked"))]
        for name in victims
    ]
    show(
        f"{options.profiles}",
        ["victim", f"target HR@{options.k} clean", "attacked", f"test Recall@{options.k} clean", "attacked"],
        rows,
    )


def present(records, plan, out: Path) -> None:
    """Table, figure, markdown."""
    from experiments import report
    from models.evaluation import paired_bootstrap

    header = [
        "victim",
        "seeds",
        f"target HR@{plan.k} clean",
        "attacked",
        "gain (mean, paired)",
        f"test Recall@{plan.k} clean",
        "attacked",
    ]
    rows = []
    values = lambda victim, at, name: [record.result["victims"][victim][at][name] for record in records]
    for victim in plan.victims:
        clean, attacked = (values(victim, at, "hr_any") for at in ("clean", "attacked"))
        gain = f"{attacked[0] - clean[0]:+.3f}"
        if len(records) > 1:
            found = paired_bootstrap(attacked, clean)
            gain = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        recall = [report.interval(values(victim, at, "recall")) for at in ("clean", "attacked")]
        rows.append(
            [victim, str(len(records)), report.interval(clean), report.interval(attacked), gain, *recall]
        )
    facts = {
        name: float(sum(r.result[name] for r in records) / len(records))
        for name in ("clicks", "popularity", "similarity", "craft_seconds")
    }
    notes = [
        "median [95% bootstrap interval] over seeds; HR: share of real users with a target in their list, "
        "seen items excluded",
        f"profiles: {facts['clicks']:.0f} clicks each, mean popularity {facts['popularity']:.0f}, "
        f"mean cosine {facts['similarity']:.2f}; {facts['craft_seconds']:.0f} s to craft, "
        f"peak memory {max(r.about['peak_rss'] for r in records) / 1e9:.1f} GB",
    ]
    report.show(
        f"{plan.attack.name} on {'toy' if plan.data is None else plan.data.name}", header, rows, notes
    )
    picture = draw(records, plan, out)
    (out / "table.md").write_text(
        report.markdown(header, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    )
    (out / "run.json").write_text(json.dumps({"records": [record._asdict() for record in records]}, indent=1))
    print(f"written: {out / 'table.md'}, {picture}, {out / 'run.json'}, {out / 'profiles'}/")


def draw(records, plan, out: Path) -> Path:
    """The attack's history where it has one, and every victim before and after."""
    from experiments import report

    learned = bool(records[0].result["history"])
    made, axes = report.figure(1, 2 if learned else 1)
    if learned:
        report.curves(
            axes[0, 0],
            {
                "target": [r.result["history"]["target_hr"] for r in records],
                "test": [r.result["history"]["test_hr"] for r in records],
            },
        )
        axes[0, 0].set(xlabel="outer step", ylabel=f"HR@{plan.attack.config['k']} of the surrogate")
        axes[0, 0].legend(frameon=False)
    names = [f"{victim}\n{at}" for victim in plan.victims for at in ("clean", "attacked")]
    heights = [
        [r.result["victims"][v][at]["hr_any"] for r in records]
        for v in plan.victims
        for at in ("clean", "attacked")
    ]
    report.bars(axes[0, -1], names, heights)
    axes[0, -1].set(ylabel=f"target HR@{plan.k} of the victim")
    return report.save(made, out / "figure.png")


def _whole(value: float) -> int:
    if value != int(value) or value < 1:
        raise ValueError(
            f"--fakes {value}: expected a whole number of fake users, or a fraction between 0 and 1"
        )
    return int(value)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, TypeError, FileNotFoundError, ImportError) as problem:
        sys.exit(f"run_attack: {problem}")
