"""Seconds and peak memory of every attack, how they grow with fake users and items, beside RAPU's Table 1, and
PoisonRec's tree.

    python benchmarks/attacks.py --quick                  # ML-100K size, growth and the tree's smaller catalog
    python benchmarks/attacks.py                          # everything; goes on where it was stopped
    python benchmarks/attacks.py --attacks revadv rapu-r --sizes gowalla --no-growth --no-tree --again

Every measurement runs in a process of its own, on one core and one thread (see apart.py), in CPU seconds where the
system lets a process choose its core. Compilation is timed apart; of a learned attack some steps are timed and scaled
to all of them, and what is reported is a whole craft. Attacks that make their fake users one after another make one in
a step. Growth is that of a craft
on drawn clicks: with the fake users at one catalog, and with the catalog at as many fake users. The tree is
PoisonRec's step (32 sets of 20 attackers with 20 clicks: asked, told, three steps of PPO) without any victim, with the
biased tree and with one softmax over the catalog. Rows are written as they come and are not measured again without
`--again`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import apart
import attacks_report
import tyro

HERE = Path(__file__).resolve().parent
RATINGS = ("average", "tna", "s-tna")
SEQUENCES = ("middle", "poisonrec", "appgrad")
ATTACKS = (
    "random",
    "average",
    "popular",
    "bandwagon",
    "hcars-bandwagon",
    "top-popular",
    "middle",
    "power-item",
    "segment",
    "covis",
    "pga",
    "tna",
    "s-tna",
    "rapu-r",
    "revadv",
    "revadv-exact",
    "rapu-g",
    "rapu-g-no-pgm",
    "aush",
    "srwa",
    "dl-attack",
    "hcars",
    "poisonrec",
    "appgrad",
)
FAKES = {"ml-100k": 28, "gowalla": 131}
"""3% and 1% of the users."""
GROWTH = ("rapu-r", "revadv", "rapu-g", "pga", "covis")
GROWN, CATALOGS = (8, 32, 128), (1000, 4000, 16_000)
CLICKS = 20  # of a fake user whose clicks have an order, PoisonRec's
TREES = ("bcbt-popular", "plain")
ITERATIONS = (1, 3)  # of every EM of RAPU-G, where all of them take too long
ENOUGH = 3.0  # seconds of steps that are timed


@dataclass
class Options(apart.Options):
    """Options of the benchmark."""

    attacks: list[str] = field(default_factory=lambda: list(ATTACKS))
    """which attacks"""
    sizes: list[Literal["ml-100k", "gowalla"]] = field(default_factory=lambda: ["ml-100k", "gowalla"])
    """which data sizes"""
    growth: bool = True
    """cost by fake users and by items"""
    tree: bool = True
    """PoisonRec's biased tree against one softmax, at 3,000 and 30,000 items"""
    quick: bool = False
    """ML-100K size, the smaller catalogs"""


def main(options: Options) -> None:
    """Measure what has no row yet, print, write."""
    from rich.console import Console

    console = Console(width=110)
    path = options.out / ("attacks-quick.json" if options.quick else "attacks.json")

    def note(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        console.print(attacks_report.line(row))
        attacks_report.write(path, rows, apart.machine())

    rows = apart.measured(
        "attacks.py",
        path,
        [] if options.report_only else tasks(options),
        options,
        note=note,
    )
    console.print()
    attacks_report.show(console, rows)
    if rows:
        attacks_report.figure(rows, path.with_suffix(".png"))
        console.print(f"rows: {path.name}, picture: {path.with_suffix('.png').name}, in {options.out}")


def tasks(options: Options) -> list[dict[str, Any]]:
    """What is to be measured: attacks at the smaller size, the tree, growth, attacks at the larger size."""
    sizes = ["ml-100k"] if options.quick else options.sizes
    crafts = {size: [{"attack": name, "size": size} for name in options.attacks] for size in sizes}
    catalogs = (3000,) if options.quick else (3000, 30_000)
    tree = [{"tree": design, "items": items} for items in catalogs for design in TREES]
    grown = [name for name in GROWTH if name in options.attacks]
    fakes, items = (GROWN[:2], CATALOGS[:2]) if options.quick else (GROWN, CATALOGS)
    growth = [{"attack": name, "fakes": count, "items": CATALOGS[0]} for name in grown for count in fakes]
    growth += [{"attack": name, "fakes": GROWN[1], "items": count} for name in grown for count in items[1:]]
    found = [*crafts.get("ml-100k", [])]
    found += tree if options.tree else []
    found += growth if options.growth else []
    found += crafts.get("gowalla", [])
    if "gowalla" in crafts and "rapu-g" in options.attacks:
        found += [{"attack": "rapu-g", "size": "gowalla", "em": count} for count in ITERATIONS]
    return found


# ------------------------------------------------------------------------------------------------ in the worker


def measure(task: dict[str, Any], core: int) -> dict[str, Any]:
    """One measurement, on one core where the system lets a process choose."""
    clock, name = apart.pin(core)
    return {"clock": name, **(measure_tree(task, clock) if "tree" in task else measure_craft(task, clock))}


def measure_craft(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    """Compile, then time `init`, a step and `finish`; a craft is init + steps x step + finish."""
    import jax

    from bilevel.devices import peak_rss

    train, source = events(task)
    attack, before = attack_of(task), peak_rss()
    targets = targets_of(train)
    key, spent, compiling = jax.random.key(0), [], 0.0
    begin = lambda key, train: attack.init(key, train, targets, None)
    go_on = lambda state, train: attack.step(state, train, targets, None)[0]
    end = lambda state, train: marked(attack.finish(state, train, targets))
    init, compile_init = compiled(clock, begin, key, train)
    state, first = timed(clock, init, key, train)
    if attack.steps:
        step, compiling = compiled(clock, go_on, state, train)
        while len(spent) < min(attack.steps, 20) and sum(spent) < ENOUGH:
            state, seconds = timed(clock, step, state, train)
            spent.append(seconds)
    finish, compile_finish = compiled(clock, end, state, train)
    clicks, last = timed(clock, finish, state, train)
    each = statistics.median(spent or [0.0])
    return {
        "source": source,
        "events": int(train.count),
        "fakes": int(clicks.shape[0]),
        "clicks": float(clicks.sum() / clicks.shape[0]),
        "seconds": first + attack.steps * each + last,
        "step_seconds": each,
        "steps": attack.steps,
        "timed_steps": len(spent),
        "compile_seconds": compile_init + compiling + compile_finish,
        "data_mb": before / 1e6,
        "peak_mb": peak_rss() / 1e6,
    }


def marked(profiles: Any) -> Any:
    """True where a fake user clicks: items in columns, or places of a sequence."""
    return profiles.mask if profiles.rows is None else profiles.rows > 0


def timed(clock: Callable[[], float], function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a call returns, and the seconds until it is there."""
    import jax

    began = clock()
    found = jax.block_until_ready(function(*args))
    return found, clock() - began


def compiled(clock: Callable[[], float], function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """A function compiled for arguments like these, and the seconds that took."""
    import jax

    return timed(clock, lambda: jax.jit(function).lower(*args).compile())


def events(task: dict[str, Any]) -> tuple[Any, str]:
    """Events of a size on the attack's track, or drawn ones: 100 of each user, on as many items as the task says."""
    track = "implicit"
    if task["attack"] in (*RATINGS, *SEQUENCES):
        track = "explicit" if task["attack"] in RATINGS else "sequence"
    if "size" in task:
        return apart.events_of(task, track)
    users = attacks_report.USERS
    return apart.of_track(apart.drawn(users, task["items"], 100 * users), track), "drawn"


def targets_of(train: Any) -> Any:
    """Five items: every fifth of the catalog by popularity."""
    import jax.numpy as jnp

    order = jnp.argsort(-train.popularity())
    return order[jnp.arange(1, 6) * train.items // 6].astype(jnp.int32)


def attack_of(task: dict[str, Any]) -> Any:
    """The attack of a task: RAPU's settings on MovieLens, RevAdv's on Gowalla; 100 or 33 clicks a user, 20 in order.

    PoisonRec and AppGrad attack ItemPop, by 3,200 trials as in their comparison. H-CARS has 64 users in its objective,
    and its surrogate learns for one epoch, not ten as in its studies: training.py says what each of the others adds.
    """
    import attacks
    from models import registry

    gowalla, fakes = task.get("size") == "gowalla", task["fakes"] if "fakes" in task else FAKES[task["size"]]
    surrogate = registry.make("wrmf", "revadv-gowalla" if gowalla else "rapu-ml-surrogate")
    spent: dict[str, Any] = {"fakes": fakes, "budget": 33 if gowalla else 100}
    one_by_one = {**spent, "stages": fakes}
    learned = {"surrogate": surrogate, **spent, "projection": "topk", "click_targets": True}
    rated = {**spent, "ratings": attacks.Ratings(1, 5, 1)}
    ordered = {"fakes": fakes, "clicks": CLICKS}
    box = attacks.environment(registry.make("itempop"))
    makers: dict[str, Callable[[], Any]] = {
        "revadv": lambda: attacks.revadv(**learned, estimator="truncated", tau=20),
        "revadv-exact": lambda: attacks.revadv(**learned, estimator="exact"),
        "rapu-g": lambda: attacks.rapu_g(surrogate=surrogate, **spent, em_iterations=task.get("em")),
        "rapu-g-no-pgm": lambda: attacks.rapu_g(surrogate=surrogate, **spent, pgm=False),
        "rapu-r": lambda: attacks.rapu_r(surrogate, **spent),
        "covis": lambda: attacks.covisitation(**spent),
        "pga": lambda: attacks.pga(**spent, track="implicit"),
        "srwa": lambda: attacks.srwa(**one_by_one, track="implicit"),
        "average": lambda: attacks.average(**rated),
        "middle": lambda: attacks.middle(**ordered),
        "tna": lambda: attacks.tna(**rated, stages=fakes),
        "s-tna": lambda: attacks.tna(**rated, stages=fakes, subset="influence"),
        "hcars": lambda: attacks.hcars(registry.make("ncr", "hcars-ml", epochs=1), **one_by_one, users=64),
        "poisonrec": lambda: attacks.poisonrec(box, **ordered),
        "appgrad": lambda: attacks.appgrad(box, **ordered),
        "aush": lambda: attacks.aush(**spent),
        "dl-attack": lambda: attacks.dl_attack(**one_by_one),
    }
    name = task["attack"]
    return makers[name]() if name in makers else getattr(attacks, name.replace("-", "_"))(**spent)


def measure_tree(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    """A step of PoisonRec with a design of its action space: ask and tell, with rewards that cost nothing."""
    import jax
    import jax.numpy as jnp

    import attacks
    from bilevel.devices import peak_rss

    before, items = peak_rss(), task["items"]
    learner = attacks.poisonrec_learner(fakes=20, clicks=20, design=task["tree"])
    popularity = 1000 / (1.0 + jnp.arange(items))
    targets = jnp.arange(items - 8, items)

    @jax.jit
    def step(state):
        proposal = learner.propose(state)
        rewards = jnp.sum(proposal.clicks >= items - 8, (1, 2)).astype(jnp.float32)
        return learner.learn(state, proposal, rewards)[0]

    state = learner.init(jax.random.key(0), popularity, targets, 20)
    spent: list[float] = []
    while len(spent) < 3 or (sum(spent[1:]) < 2 * ENOUGH and len(spent) < 30):
        state, seconds = timed(clock, step, state)
        spent.append(seconds)
    each = statistics.median(spent[1:])
    return {
        "step_seconds": each,
        "timed_steps": len(spent) - 1,
        "compile_seconds": spent[0] - each,
        "data_mb": before / 1e6,
        "peak_mb": peak_rss() / 1e6,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(json.loads(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(tyro.cli(Options, description=__doc__))
