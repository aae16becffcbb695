"""The main job on data made on the spot: fake users learned by gradient through a recommender's training.

    make demo        (or: python scripts/demo.py --seed 3)

RevAdv on the toy data of its paper (Tang, Wen, Wang, RecSys 2020, section 3): 900 users, 300 items, 100 fake
users, one target. The exact hypergradient, the last five steps of it, and the partial derivative (which is
zero for this surrogate, so the first rows are returned), beside fake users with random clicks. Everything is
written to --out: table.md, demo.png, demo.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import tyro

METHODS = ("random", "partial derivative", "tau = 5", "exact")
MOVIELENS = (
    "python scripts/run_attack.py --data ml-100k --split rapu --targets ml-100k/rapu --attack revadv "
    "--surrogate wrmf:rapu-ml-surrogate --estimator truncated --tau 20 --fakes 0.03 --budget 100 "
    "--projection topk --click-targets yes --victim wrmf:rapu-ml-victim"
)


def main(*, seed: int = 0, out: Path = Path("runs/demo")) -> None:
    """Run the four attacks and show what they did.

    Args:
        seed: of the data and of the attacks.
        out: folder for the table, the picture and the record.
    """
    os.environ.setdefault("JAX_PLATFORMS", "")
    import numpy as np

    from experiments import report
    from experiments.pipeline import judge, toy_case
    from experiments.published import published
    from experiments.record import about

    out.mkdir(parents=True, exist_ok=True)
    case = toy_case(seed)
    sizes = f"{case.train.users} users, {case.train.items} items, {int(case.train.count)} clicks"
    say(f"toy data of seed {seed}: {sizes}; target: item 0")
    made = {name: attack_of(name, case) for name in METHODS}
    victim = made["exact"].config["surrogate"]
    clean = judge(victim, case, k=10)
    found = {name: craft(name, attack, case, victim) for name, attack in made.items()}
    header = ["fake users by", "target HR@10: before", "after", "white box", "test HR@10: before", "after"]
    header += ["seconds", "peak memory"]
    rows = []
    for name, r in found.items():
        best = [f"{max(r['history']['target_hr']):.3f}" if r["history"] else "-"]
        before, after = (
            [f"{at[metric]:.3f}" for metric in ("hr_any", "hr_test")] for at in (clean, r["after"])
        )
        rates = [before[0], after[0], *best, before[1], after[1]]
        rows.append([name, *rates, f"{r['seconds']:.1f}", f"{r['memory'] / 1e6:.0f} MB"])
    toy = published("revadv", "in_text", "toy")
    notes = [
        "before: a WRMF victim trained on the real users; after: from the same start, on real and fake users",
        "white box: the attacker's own surrogate, best outer step; the paper reports "
        f"{toy['hr10_target_exact_tau100']} exact, {toy['hr10_target_tau5']} tau = 5 (means of 5)",
        "the victim is the same model from another random start: less of the attack carries over",
        "peak memory: temporary memory of the compiled outer step, of which the surrogate's training keeps the most",
    ]
    report.show("RevAdv on the toy data of its paper", header, rows, notes)
    (out / "table.md").write_text(report.markdown(header, rows) + "\n")
    picture = draw(found, clean, out)
    plain = {
        name: {**r, "history": {k: np.asarray(v).tolist() for k, v in r["history"].items()}}
        for name, r in found.items()
    }
    (out / "demo.json").write_text(
        json.dumps({"seed": seed, "clean": clean, "attacks": plain, "about": about()}, indent=1)
    )
    print(f"written: {out / 'table.md'}, {picture}, {out / 'demo.json'}")
    print(f"\nThe same on MovieLens-100K (downloads it, or reads the folder BILEVEL_DATA):\n  {MOVIELENS}")


def attack_of(name: str, case):
    """The attack of a row."""
    import attacks

    if name == "random":
        return attacks.random(fakes=len(case.initial), budget=round(float(case.initial.sum(1).mean())) - 1)
    how = {
        "exact": {"estimator": "exact"},
        "tau = 5": {"estimator": "truncated", "tau": 5},
        "partial derivative": {"estimator": "partial"},
    }
    return attacks.revadv_preset("toy", **how[name])


def craft(name: str, attack, case, victim):
    """Run one attack with a progress bar; judge the victim on what it made."""
    import jax

    import attacks
    import bilevel
    from experiments.pipeline import judge

    say(f"{name}: {attack.steps or 'no'} outer steps")
    initial = case.initial if attack.starts else None
    key = case.keys["attack"]
    began = time.perf_counter()
    test = case.test if attack.tests else None
    done = attacks.run(attack, key, case.train, case.targets, test=test, initial=initial, progress=True)
    seconds = time.perf_counter() - began
    memory = 0
    if attack.steps:
        state = jax.eval_shape(attack.init, key, case.train, case.targets, initial)
        memory = bilevel.compiled_memory(attack.step, state, case.train, case.targets, None).temp
    return {
        "after": judge(victim, case, done.profiles, k=10),
        "seconds": seconds,
        "memory": memory,
        "history": done.history,
    }


def draw(found, clean, out: Path) -> Path:
    """The hit ratio over the outer steps, and before and after."""
    from experiments import report

    made, axes = report.figure(1, 2)
    for name, r in found.items():
        if r["history"]:
            axes[0, 0].plot(r["history"]["target_hr"], label=name)
    axes[0, 0].set(
        xlabel="outer step", ylabel="target HR@10 of the surrogate", title="what the gradient buys"
    )
    axes[0, 0].legend(frameon=False)
    report.bars(
        axes[0, 1],
        list(found),
        [[r["after"]["hr_any"]] for r in found.values()],
        reference=clean["hr_any"],
        like=axes[0, 0],
    )
    axes[0, 1].set(ylabel="target HR@10 of the victim", title="dashed: before the attack")
    return report.save(made, out / "demo.png")


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
