"""Who looks fake in a data set, as `scripts/run_detect.py` asks: every detector scores every user, nobody is told more.

A detector flags its share of users whether anybody attacked or not, so a flag by itself says little; which users are
flagged by several, and how far the scores of the few lie from those of the many, is what there is to look at. With fake
users at hand (`--profiles`) it is known who is what, and the detectors are judged.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevel.atomic import atomic_write, plain
from bilevel.devices import environment
from defenses.detectors import DETECTORS, OF_RATINGS
from defenses.filtering import flagged
from experiments import report
from experiments.campaign import facts_of
from experiments.defended import made_with
from models.data import Dataset, Profiles, inject
from models.evaluation.detection import detection
from models.recommender import one_of


class Looking(NamedTuple):
    """What is looked at.

    Attributes:
        data: the users, as they are on the platform.
        detectors: names of `defenses.detectors`; empty: all that can read the data.
        level: share of users that each flags, in (0, 1).
        profiles: file of fake users made on the same data, to put among them so that the detectors can be judged; None:
            nobody knows who is fake.
    """

    data: Dataset
    detectors: tuple[str, ...]
    level: float
    profiles: Path | None


class Seen(NamedTuple):
    """What was found: `U` users, `N` detectors.

    Attributes:
        names: of the detectors, the columns.
        users: names of the users, the rows; injected ones are `fake 1`, `fake 2`, ....
        events: of each user.
        scores: raw, higher is more suspicious.
        flags: who is among the highest `level` of a detector.
        fake: who was injected.
    """

    names: list[str]
    users: list[str]
    events: np.ndarray
    scores: Float[np.ndarray, "U N"]
    flags: Bool[np.ndarray, "U N"]
    fake: Bool[np.ndarray, " U"]

    def order(self) -> np.ndarray:
        """Users by how many detectors flag them, then by their mean place among all, the most suspicious first."""
        from scipy.stats import rankdata

        places = rankdata(self.scores, axis=0)  # of equal ones the mean, whatever their ids
        return np.lexsort((-places.mean(axis=1), -self.flags.sum(axis=1)))


def look(looking: Looking, *, say: Callable[[str], None]) -> Seen:
    """Score every user by every detector.

    Args:
        looking: what is looked at.
        say: told one line a detector.

    Raises:
        ValueError: an unknown detector, one of ratings for clicks, a level out of its range, fake users of other items
            or another track.
    """
    train = looking.data.interactions
    known = {**DETECTORS, **(OF_RATINGS if train.track == "explicit" else {})}
    for name in looking.detectors:
        if name in OF_RATINGS and name not in known:
            raise ValueError(f"--detectors {name}: it reads ratings; give --track explicit, or leave it out")
        one_of("run_detect", "detectors", name, known)
        if looking.detectors.count(name) > 1:
            raise ValueError(f"--detectors {name}: it is given twice")
    if not 0 < looking.level < 1:
        raise ValueError(f"--level {looking.level}: expected a share of the users between 0 and 1")
    if not round(looking.level * train.users):
        raise ValueError(
            f"--level {looking.level}: of {train.users} users that is nobody; give a larger share"
        )
    users = list(map(str, looking.data.user_ids))
    real = len(users)
    if looking.profiles is not None:
        made_with(looking.profiles, looking.data)  # refuses those of other data
        profiles, _ = Profiles.load(looking.profiles)
        train = inject(train, profiles).trim()
        users += [f"fake {n + 1}" for n in range(profiles.fakes)]
    names, columns = list(looking.detectors or known), []
    for name in names:
        began = time.perf_counter()
        columns.append(np.asarray(known[name](train), float))
        say(f"{name}: {train.users} users in {time.perf_counter() - began:.1f} s")
    scores = np.stack(columns, axis=1)
    flags = np.stack([flagged(column, looking.level) for column in columns], axis=1)
    events = np.bincount(np.asarray(train.user)[train.real()], minlength=train.users)
    return Seen(names, users, events, scores, flags, np.arange(train.users) >= real)


def run(looking: Looking, out: Path, *, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Look, write `users.csv`, `detect.json` and `detect.png`, print tables; gives back what is in the JSON file.

    Args:
        looking: what is looked at.
        out: folder for everything that is written.
        count: users in the table; the file has all of them.
        say: told one line a detector.
    """
    seen = look(looking, say=say)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "users.csv") as file:
        file.write(_csv(seen).encode())
    given = looking.profiles
    found: dict[str, Any] = {
        "spec": {
            "data": facts_of(looking.data),
            "detectors": seen.names,
            "level": looking.level,
            "profiles": given and hashlib.sha256(given.read_bytes()).hexdigest(),
        },
        "users": int((~seen.fake).sum()),
        "fakes": int(seen.fake.sum()),
        "environment": environment(),
    }
    if seen.fake.any():
        found["detection"] = {
            name: detection(seen.scores[:, n], seen.fake)._asdict() for n, name in enumerate(seen.names)
        }
    with atomic_write(out / "detect.json") as file:
        file.write(json.dumps(plain(found), indent=1, sort_keys=True).encode())
    _draw(looking, seen, out)
    _show(looking, seen, count, found.get("detection"))
    files = ", ".join(str(out / name) for name in ("users.csv", "detect.json", "detect.png"))
    sys.stdout.write(f"written: {files}\n")
    return found


def _csv(seen: Seen) -> str:
    """All users, the most suspicious first, with the raw score of every detector."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["user", "events", "flagged_by", *seen.names, *(["fake"] if seen.fake.any() else [])])
    for u in seen.order():
        fake = [int(seen.fake[u])] if seen.fake.any() else []
        scores = (f"{score:.6g}" for score in seen.scores[u])
        write([seen.users[u], seen.events[u], int(seen.flags[u].sum()), *scores, *fake])
    return text.getvalue()


def _show(looking: Looking, seen: Seen, count: int, judged: dict[str, dict[str, float]] | None) -> None:
    """The users that most detectors flag; where it is known who is fake, how well each detector tells."""
    rows = []
    for u in seen.order()[:count]:
        by = [name for name, flag in zip(seen.names, seen.flags[u], strict=True) if flag]
        flagged_by = f"{len(by)} of {len(seen.names)}"
        rows.append([seen.users[u], str(seen.events[u]), flagged_by, ", ".join(by) or "-"])
    notes = [
        f"each detector flags {looking.level:.2g} of the users, whether anybody attacked or not; none is told how many "
        "fake users there are",
        "detectors see different attacks, and none sees all: docs/results/detectors.md says which sees what",
    ]
    title = f"the most suspicious users of {looking.data.name}"
    report.show(title, ["user", "events", "flagged by", "which"], rows, notes)
    if judged is None:
        return
    shown = {"ROC area": "auc", "average precision": "average_precision"}
    shown |= {"recall at 1%": "recall_at_1", "at 5%": "recall_at_5"}
    found = [
        [
            name,
            *(f"{judged[name][what]:.3f}" for what in shown.values()),
            f"{seen.flags[seen.fake, n].mean():.3f}",
            f"{seen.flags[~seen.fake, n].mean():.3f}",
        ]
        for n, name in enumerate(seen.names)
    ]
    report.show(
        f"{int(seen.fake.sum())} fake users among {int((~seen.fake).sum())} real ones",
        ["detector", *shown, "fakes flagged", "real flagged"],
        found,
        [
            "ROC area: chance is .5, below it the fake users look more ordinary than the real ones",
            "recall: of fake users, where so many of the real ones are false alarms; flagged: shares of each",
        ],
    )


def _draw(looking: Looking, seen: Seen, out: Path) -> None:
    """A histogram a detector, its cut, and the fake users in another color where they are known."""
    columns = min(4, len(seen.names))
    made, axes = report.figure(-(-len(seen.names) // columns), columns, width=3.2, height=2.4)
    for axis in axes.flat[len(seen.names) :]:
        axis.set_visible(False)
    for n, (axis, name) in enumerate(zip(axes.flat, seen.names)):
        score, fake = seen.scores[:, n], seen.fake
        parts = [score[~fake], score[fake]] if fake.any() else [score]
        axis.hist(parts, 40, stacked=True, label=["real", "fake"][: len(parts)])
        axis.axvline(score[seen.flags[:, n]].min(initial=score.max()), color="k", linewidth=1, linestyle="--")
        axis.set(title=name, yscale="log")
    axes[0, 0].set(xlabel="score", ylabel="users")
    if seen.fake.any():
        axes[0, 0].legend(frameon=False)
    made.suptitle(
        f"{looking.data.name}: dashed, the lowest score of the {looking.level:.2g} that are flagged"
    )
    report.save(made, out / "detect.png")
