"""The data as each paper used them, by name: `prepared("rapu-ml-100k")` filters, makes clicks and splits.

What could be had of a data set is not always what the paper had. So every preset counts what it found beside what the
paper prints, and says in its notes which edition it read and which check could not be made ("not run: ...").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from models.data import checks
from models.data.load import Dataset
from models.data.papers import PROTOCOLS, Counts, Seed, count_events
from models.data.split import Split


class Prepared(NamedTuple):
    """The data of one paper.

    Args:
        name: of the preset.
        data: filtered interactions with the names they came from.
        split: train, validation (or None) and test.
        found: our counts, in the unit of the paper's.
        paper: the paper's.
        levels: rating levels, for ratings scaled to `1/levels, 2/levels, ..., 1`; None for clicks and unscaled ratings.
        notes: which edition, what differs, and what was "not run".
    """

    name: str
    data: Dataset
    split: Split
    found: Counts
    paper: Counts
    levels: int | None
    notes: tuple[str, ...]


def prepared(name: str, key: Seed = 0) -> Prepared:
    """The data of a paper, split as the paper does.

    Args:
        name: a key of `PROTOCOLS`, such as "revadv-gowalla".
        key: seed or typed JAX key for what is drawn at random; a published split draws nothing.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: the data are not at hand; says what to put where.

    >>> sorted(PROTOCOLS)[:3]
    ['accent-ml-100k', 'apt-filmtrust', 'apt-ml-100k']
    """
    checks.option("name", name, tuple(PROTOCOLS))
    preset = PROTOCOLS[name]
    data, split, found, notes = preset.make(key)
    origin = data.provenance.get("note")
    said: list[str] = [*([str(origin)] if origin else []), *notes]
    if found != preset.paper._replace(events=preset.paper.events or found.events):
        said.append("the counts are not the paper's")
    whole = data._replace(split=split)
    return Prepared(name, whole, split, found, preset.paper, preset.levels, tuple(dict.fromkeys(said)))


def describe(made: Prepared) -> str:
    """Our counts beside the paper's, the sizes of the split and the notes, as text.

    >>> from models.data import load
    >>> x = load(([0, 0, 1], [0, 1, 0]))
    >>> parts = Split(x.interactions, None, x.interactions)
    >>> counts = Counts(2, 2, 3)
    >>> print(describe(Prepared("rapu-ml-100k", x, parts, counts, Counts(943, 1682, None), None, ("a toy",))))
    rapu-ml-100k: Zhang et al. (RAPU), KDD 2021
                   users      items       events
    found              2          2            3
    paper            943      1,682            -
    train 3, test 3
    - a toy
    """
    rows = [("found", made.found), ("paper", made.paper)]
    sizes = zip(("train", "validation", "test"), made.split)
    lines = [
        f"{made.name}: {PROTOCOLS[made.name].reference}",
        f"{'':8}{'users':>12}{'items':>11}{'events':>13}",
        *[f"{label:8}{_show(n.users):>12}{_show(n.items):>11}{_show(n.events):>13}" for label, n in rows],
        ", ".join(f"{label} {count_events(part):,}" for label, part in sizes if part is not None),
        *[f"- {note}" for note in made.notes],
    ]
    return "\n".join(lines)


def table(names: Iterable[str] | None = None, key: Seed = 0) -> str:
    """A Markdown table of our counts beside the papers', one preset a row; data that are not at hand say so.

    Args:
        names: presets; default all, which reads every data set.
        key: as in `prepared`.

    >>> print(table([]))
    | preset | users | paper | items | paper | events | paper | notes |
    | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |
    """
    head = ("preset", *(word for what in ("users", "items", "events") for word in (what, "paper")), "notes")
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 6 + " --- |"]
    for name in PROTOCOLS if names is None else names:
        checks.option("name", name, tuple(PROTOCOLS))
        found, notes = Counts(None, None, None), ("not at hand",)  # type: ignore[arg-type]
        try:
            made = prepared(name, key)
            found, notes = made.found, made.notes
        except FileNotFoundError:
            pass
        pairs = [_show(n) for both in zip(found, PROTOCOLS[name].paper) for n in both]
        lines.append("| " + " | ".join([name, *pairs, "; ".join(notes)]) + " |")
    return "\n".join(lines)


def _show(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
