"""ACCENT (Tran, Ghazimatin, Saha Roy, SIGIR 2021): are counterfactual explanations found, short, and true?

On the paper's MovieLens-100K, for NCF (of ratings) and RCF (of likes): why does a user see its best item, that is,
without which of its clicks would another item of its list of k be the best? A set is confirmed if that item is ahead on
average over trainings without the set. Training again swaps items by itself, so the same trainings with nothing removed
stand beside it. A cell is a few users, with all methods and lists: sets that several of them share are trained once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import report
from experiments.names import RELATIONS
from experiments.paired import ENOUGH, Gap, gap
from experiments.record import Record
from experiments.study import Report, Spec, Study
from models import registry
from models.data import Interactions, relations, sources
from models.data.filters import binarize
from models.data.protocols import Prepared, prepared
from models.explain import Explanations, counterfactual, influences, verify
from models.explain.counterfactual import Method, search
from models.explain.explanation import made
from models.recommender import Recommender
from models.train import Fitted, fit

LISTS = (5, 10, 20)
QUESTION = ("found", "size", "confirmed", "control")
"""What every record has of a question."""
PARTS = 8


class World(NamedTuple):
    """One recommender.

    The trainings without a set begin at the trained parameters, as the released code does for NCF.

    Attributes:
        methods: that it has.
        users: of a cell.
        epochs: of its training.
        trainings: how many of them, each asked for users drawn anew.
        again, seeds, together: epochs of the trainings without a set, how many of them, and how many at once.
    """

    methods: tuple[Method, ...]
    users: int
    epochs: int
    trainings: int
    again: int
    seeds: int
    together: int


WORLDS: Mapping[str, World] = {
    "NCF": World(("accent", "pure-fia", "fia"), 5, 2449, 3, 60, 3, 4),
    "RCF": World(("accent", "pure-fia", "fia", "attention", "pure-attention"), 2, 10, 2, 1, 2, 1),
}
RCF: Mapping[str, Any] = {"factors": 32, "attention": 8, "hidden": (32,), "max_history": 30}
"""Half of ACCENT's widths or less and the latest 30 clicks, for speed: its own settings read every click of a user."""


# ------------------------------------------------------------------------------------------------------- one cell


@functools.lru_cache
def _data() -> Prepared:
    return prepared("accent-ml-100k")


@functools.lru_cache
def _train(model: str) -> Interactions:
    """NCF learns ratings, RCF those of 3 and more as clicks."""
    ratings = _data().split.train
    return ratings if model == "NCF" else binarize(ratings, "accent")


@functools.lru_cache
def model_of(model: str, epochs: int) -> Recommender:
    """With so many epochs: NCF with ACCENT's settings, RCF smaller, its losses averaged over a batch."""
    if model == "NCF":
        return registry.make("neumf", "accent", epochs=epochs)
    path = sources.beside(*RELATIONS["ml-100k"])
    if path is None:
        raise FileNotFoundError(f"RCF reads the attributes of films from {'/'.join(RELATIONS['ml-100k'])}")
    known = relations.load(path, _data().data.item_ids).relations
    return registry.make("rcf", relations=known, epochs=epochs, **RCF)


@functools.lru_cache(maxsize=2)
def _fitted(model: str, seed: int, epochs: int) -> Fitted:
    """One training for all cells of a seed."""
    return jax.block_until_ready(fit(model_of(model, epochs), _train(model), jax.random.key(seed)))


def users_of(spec: Spec, count: int) -> np.ndarray:
    """The users of a cell: a part of one random order, so that parts are disjoint.

    >>> base = {"seed": 0, "users": 2}
    >>> len({*users_of({**base, "part": 0}, 9).tolist(), *users_of({**base, "part": 1}, 9).tolist()})
    4
    """
    order = np.random.default_rng(spec["seed"]).permutation(count)
    first = spec["part"] * spec["users"]
    return np.sort(order[first : first + spec["users"]])


def run(spec: Spec) -> dict[str, Any]:
    """Explain by every method and for every list, train again without each set, count."""
    name, seed = spec["model"], spec["seed"]
    world, train = WORLDS[name], _train(name)
    fitted = _fitted(name, seed, spec["epochs"])
    users = users_of(spec, train.users)
    known = influences(fitted, train, users, max(LISTS))
    asked = {}
    for k in LISTS:
        for method in world.methods:
            if "attention" in method:
                asked[f"{method}@{k}"] = counterfactual(fitted, train, users, k=k, method=method)
            else:
                asked[f"{method}@{k}"] = search(known, k=k, method=method)
    seen = verify(
        model_of(name, world.again),
        train,
        together_of(list(asked.values())),
        jax.random.fold_in(jax.random.key(seed), 2),
        seeds=world.seeds,
        params0=fitted.params,
        together=world.together,
    )
    found, first = {}, 0
    for label, answer in asked.items():
        rows = slice(first, first := first + answer.queries)
        found[label] = {
            "found": answer.found.tolist(),
            "size": answer.sizes.tolist(),
            "confirmed": seen.confirmed[rows].tolist(),
            "control": seen.control[rows].tolist(),
            "code": answer.code.tolist(),
        }
    clicks = np.asarray(train.degrees())[users]
    return {"users": users.tolist(), "clicks": clicks.tolist(), "asked": found, "notes": list(_data().notes)}


def together_of(answers: list[Explanations]) -> Explanations:
    """Several answers as one, in order.

    >>> one = made(np.array([0]), np.array([1]), [[4, 7]], np.array([2]))
    >>> none = made(np.array([3]), np.array([1]), [None], np.array([2]), np.array([1]))
    >>> both = together_of([one, none])
    >>> both.removed.tolist(), both.found.tolist(), both.queries, both.code.tolist()
    ([[4, 7], [-1, -1]], [True, False], 2, [0, 1])
    """
    rows = [
        row[row >= 0] if there else None
        for answer in answers
        for row, there in zip(answer.removed, answer.found, strict=True)
    ]
    joined = lambda field: np.concatenate([getattr(answer, field) for answer in answers])
    return made(joined("user"), joined("item"), rows, joined("replacement"), joined("code"))


# ------------------------------------------------------------------------------------------------------- the table


def cells(quick: bool) -> list[Spec]:
    """Part by part, both recommenders; the first cell of a recommender and seed trains it."""
    if quick:
        return [_cell("NCF", 200, 0, 0, 3), _cell("RCF", 3, 0, 0, 1)]
    return [
        _cell(model, world.epochs, seed, part, world.users)
        for seed in range(max(world.trainings for world in WORLDS.values()))
        for model, world in WORLDS.items()
        if seed < world.trainings
        for part in range(PARTS)
    ]


def _cell(model: str, epochs: int, seed: int, part: int, users: int) -> Spec:
    return {"study": "accent", "model": model, "epochs": epochs, "seed": seed, "part": part, "users": users}


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share, which is honest at 0 and 1.

    >>> [round(end, 3) for end in wilson(0, 10)], [round(end, 3) for end in wilson(5, 10)]
    ([0.0, 0.278], [0.237, 0.763])
    """
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / n + spread / (4 * n)) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def pooled(records: list[Record], model: str, label: str) -> dict[str, np.ndarray]:
    """What became of every question of a row, and of whom it was asked, in the order of the records.

    `true` where the set is confirmed and the swap does not come with nothing removed.
    """
    mine = [r.result for r in records if r.spec["model"] == model and label in r.result["asked"]]
    joined = lambda parts: np.concatenate([np.asarray(part) for part in parts] or [np.zeros(0)])
    of = {name: joined(one["asked"][label][name] for one in mine) for name in QUESTION}
    of["user"] = joined(one["users"] for one in mine)
    return of | {"true": of["confirmed"].astype(bool) & ~of["control"].astype(bool)}


def by_user(of: Mapping[str, np.ndarray], name: str) -> dict[int, float]:
    """The share of a user's questions of which something holds; several where several seeds asked it.

    >>> by_user({"user": np.array([4, 7, 4]), "confirmed": np.array([True, True, False])}, "confirmed")
    {4: 0.5, 7: 1.0}
    """
    return {int(user): float(np.mean(of[name][of["user"] == user])) for user in np.unique(of["user"])}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Gap | None:
    """`one - other` over the users of both; None of too few, whose text would count seeds.

    >>> shares = {4: 0.5, 7: 1.0, 9: 0.0}
    >>> print(paired(shares, {4: 0.0, 7: 0.5, 9: 0.0}), paired(shares, {4: 0.0}))
    +0.333 [-0.384, +1.050] None
    """
    found = gap(one, other)
    return found if found and found.seeds >= ENOUGH else None


def study_report(records: list[Record], folder: Path) -> Report:
    """Shares with Wilson intervals, sizes with bootstrap intervals, a row a method and list."""
    header = ["model", "k", "method", "questions", "found", "confirmed", "swaps with nothing removed"]
    header += ["confirmed - swaps", "size"]
    rows, notes = [], []
    for model, world in WORLDS.items():
        needed: dict[str, Gap | None] = {}
        for k in LISTS:
            for method in world.methods:
                of = pooled(records, model, f"{method}@{k}")
                n = len(of["found"])
                if n == 0:
                    continue
                shares = [_share(int(of[name].sum()), n) for name in ("found", "confirmed", "control")]
                sizes = of["size"][of["found"].astype(bool)]
                more = needed[f"{method}@{k}"] = paired(by_user(of, "confirmed"), by_user(of, "control"))
                size = report.interval(sizes.tolist(), 2, "mean")
                rows.append([model, str(k), method, str(n), *shares, more.text(2) if more else "-", size])
            notes += _paired(records, model, k)
        notes += _apart(records, model, max(LISTS)) + _needed(model, needed)
    notes = [
        _sample(records),
        "found, confirmed: shares of the questions with Wilson's 95% interval; size: items of a set where one was "
        "found, mean with a 95% bootstrap interval over questions; a user of several seeds counts for each; what the "
        "questions of a training have in common is in no interval over questions or users: see the differences paired "
        "by training",
        "confirmed: without the set the replacement is ahead of the item on average over trainings, "
        + ", ".join(f"{w.seeds} of {w.again} epochs ({m})" for m, w in WORLDS.items())
        + " from the trained parameters. The paper has five, and trains RCF from fresh ones",
        "swaps with nothing removed: the same trainings on all of the data; what is confirmed there needs no set",
        "differences of shares are paired by user (the mean of its questions where several seeds asked it), with a 95% "
        "t-interval; true: confirmed, and no swap with nothing removed; none is corrected for how many are looked at",
        "differs from the paper: a sample of its 452 users; RCF is half as wide and reads the latest 30 clicks, of "
        "which the influence of one does not count the older click that takes its place; its negatives are drawn, not "
        "one disliked item; systems are solved directly. The paper's figures are not at hand",
        _unsound(records),
        *notes,
    ]
    notes += [note for r in records for note in r.result["notes"]]
    title = "ACCENT on MovieLens-100K: explanations found and confirmed"
    return Report(title, header, rows, list(dict.fromkeys(notes)), [_picture(records, folder)])


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{hits / n:.2f} [{low:.2f}, {high:.2f}]"


def _sample(records: list[Record]) -> str:
    said = []
    for model in WORLDS:
        mine = [r for r in records if r.spec["model"] == model]
        if mine:
            users = sum(len(r.result["users"]) for r in mine)
            seeds = len({r.spec["seed"] for r in mine})
            clicks = np.concatenate([r.result["clicks"] for r in mine])
            epochs = ", ".join(str(n) for n in sorted({r.spec["epochs"] for r in mine}))
            said.append(
                f"{model}: {users} random users of {seeds} training{'s' * (seeds > 1)} of {epochs} epochs, median "
                f"{np.median(clicks):.0f} clicks"
            )
    return "the sample: " + "; ".join(said)


def _unsound(records: list[Record]) -> str:
    """The share of answers by influence whose linear solve did not hold, and for how many records it is known."""
    said = []
    for model in WORLDS:
        mine = [r.result["asked"] for r in records if r.spec["model"] == model]
        solved = [[one for label, one in asked.items() if "attention" not in label] for asked in mine]
        known = [asked for asked in solved if all("code" in one for one in asked)]
        codes = np.array([code for asked in known for one in asked for code in one["code"]])
        share = _share(int(np.sum(codes != 0)), codes.size) if codes.size else "unknown"
        said += [f"{model}: {share} ({len(known)} of {len(mine)} records tell)"] if mine else []
    return f"answers by influence whose linear solve did not hold: {'; '.join(said)}"


def _paired(records: list[Record], model: str, k: int) -> list[str]:
    """ACCENT against each other method: sizes where both found a set, shares confirmed and true by user."""
    ours, said = pooled(records, model, f"accent@{k}"), []
    shares: dict[str, list[str]] = {"confirmed": [], "true": []}
    for method in WORLDS[model].methods[1:]:
        other = pooled(records, model, f"{method}@{k}")
        both = ours["found"].astype(bool) & other["found"].astype(bool)
        if both.any():
            less = report.interval((ours["size"] - other["size"])[both].tolist(), 2, "mean")
            said.append(f"{model}, k={k}: size of accent - {method} = {less} ({int(both.sum())} questions)")
        for name, texts in shares.items():
            more = paired(by_user(ours, name), by_user(other, name))
            texts += [f"accent - {method} {more.said(2)}"] if more else []
    return said + [
        f"{model}, k={k}: share {name}: {'; '.join(texts)}" for name, texts in shares.items() if texts
    ]


def _apart(records: list[Record], model: str, k: int) -> list[str]:
    """The share confirmed of each training by itself, and ACCENT's minus another method's paired by training."""
    seeds = sorted({r.spec["seed"] for r in records if r.spec["model"] == model})
    if len(seeds) < 2:
        return []
    mine = {seed: [r for r in records if r.spec["seed"] == seed] for seed in seeds}
    shares = {
        method: {s: float(np.mean(pooled(of, model, f"{method}@{k}")["confirmed"])) for s, of in mine.items()}
        for method in WORLDS[model].methods
    }
    said = [f"{method} {', '.join(f'{v:.2f}' for v in of.values())}" for method, of in shares.items()]
    first, *rest = shares
    gaps = {f"{first} - {method}": gap(shares[first], shares[method]) for method in rest}
    together = ", ".join(f"{name} {each.said(2)}" for name, each in gaps.items() if each)
    which = ", ".join(map(str, seeds))
    return [
        f"{model}, k={k}: share confirmed, training by training (seeds {which}): {'; '.join(said)}; paired by "
        f"training: {together}"
    ]


def _needed(model: str, gaps: Mapping[str, Gap | None]) -> list[str]:
    """Whether sets are needed: in which rows more is confirmed without them than swaps with nothing removed."""
    which: dict[str, list[str]] = {}
    for label, more in gaps.items():
        if more:
            which.setdefault(more.verdict, []).append(label)
    if not which:
        return []
    above, rest = which.pop("above", []), sum(map(len, which.values()))
    named = f" ({', '.join(above)})" if above and rest else ""
    rows = f"{len(above)} of {len(above) + rest} rows"
    text = f"{model}: confirmed more often than it swaps with nothing removed in {rows}"
    other = [f"{verdict} in {', '.join(labels)}" for verdict, labels in which.items()]
    return ["; ".join([text + named, *other])]


def _picture(records: list[Record], folder: Path) -> Path:
    """Shares found and confirmed by length of the list."""
    made_, axes = report.figure(1, len(WORLDS), width=4.4)
    for axis, (model, world) in zip(axes[0], WORLDS.items(), strict=True):
        for number, method in enumerate(world.methods):
            of = {k: pooled(records, model, f"{method}@{k}") for k in LISTS}
            of = {k: values for k, values in of.items() if len(values["found"])}
            for name, style in (("confirmed", "o-"), ("control", "x:")):
                points = [float(values[name].mean()) for values in of.values()]
                label = method if name == "confirmed" else None
                axis.plot(list(of), points, style, color=f"C{number}", label=label, markersize=4)
        axis.set(
            title=f"{model}: confirmed (line), without removal (dots)",
            xlabel="k",
            ylabel="share",
            ylim=(0, 1),
        )
        axis.set_xticks(LISTS)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=7)
    return report.save(made_, folder / "accent.png")


STUDIES = (
    Study(
        "accent",
        "ACCENT, MovieLens-100K: explanations of NCF and RCF found, and confirmed by training again",
        cells,
        run,
        study_report,
        (120, 8),
    ),
)
