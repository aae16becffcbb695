"""Ask who looks fake: every detector scores every user, and is not told whether anybody attacked.

    # the users of MovieLens-100K whom most detectors flag
    python scripts/run_detect.py --data ml-100k

    # your own clicks, three detectors, the 1% with the highest scores of each
    python scripts/run_detect.py --data clicks.csv --detectors duplicate knn popularity --level 0.01

    # would they have found these? fake users that run_attack.py saved, put among the real ones
    python scripts/run_detect.py --data ml-100k --profiles runs/movielens/profiles/FILE.npz

Detectors of clicks and of ratings: rdma, wdma, wda, length-var, deg-sim, pca, popularity, lof, knn, duplicate, fap; of
ratings alone (--track explicit): mean-var, fmtd. What each looks at, and which attack passes it, is in
defenses/profiles.py, defenses/neighbors.py and docs/results/detectors.md.

A flag is no proof: each detector flags its --level of the users of any data. Look at who is flagged by several, at how
far the few lie from the many in detect.png, and at when those users came. Leaving them out before training is
run_defense.py --defense filter:DETECTOR.

Written to --out: users.csv (every user, the most suspicious first, raw scores), detect.json, detect.png.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.reading import Reading, plainly, teller


@dataclass
class Options(Reading):
    """Options of a look."""

    track: Literal["implicit", "explicit"] = "implicit"
    """implicit: ratings become clicks; explicit: detectors read the ratings"""
    detectors: list[str] = field(default_factory=list)
    """which detectors; default: all that can read the data"""
    level: float = 0.05
    """share of the users that each flags"""
    profiles: Path | None = None
    """these saved fake users among the real ones: how well is each found?"""
    top: int = 20
    """how many users the table shows; the file has all of them"""
    out: Path = Path("runs/detect")
    """folder for everything that is written"""
    quiet: bool = False
    """no progress"""


def main(options: Annotated[Options, tyro.conf.OmitArgPrefixes]) -> None:
    """Read, score, show."""
    if options.top < 1:
        raise ValueError(f"--top {options.top}: expected at least 1")
    from experiments.detecting import Looking, run

    looking = Looking(options.read(), tuple(options.detectors), options.level, options.profiles)
    run(looking, options.out, count=options.top, say=teller(options.quiet))


if __name__ == "__main__":
    with plainly("run_detect"):
        main(tyro.cli(Options, description=__doc__))
