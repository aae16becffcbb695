"""What RAPU's pages say of its attacks: orders and controls, from target hit rates by attack and seed.

One rule for all of it (experiments/paired.py): differences paired by seed with Student's 95% interval, a verdict from
three seeds on, none corrected for how many are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.paired import Gap, conclusion, gap
from experiments.report import Table

Hits = Mapping[str, Mapping[int, float]]
"""By attack, by seed: target hit rate."""
LEARNED = ("revadv", "rapu-g", "rapu-r", "rapu-g-no-pgm", "pga", "pga-unrolled", "covis", "srwa")
PRINTED = ("random", "popular")
"""The paper's heuristics."""
CONTROLS = ("random", "top-popular")
VERDICTS = ("above", "undecided", "below", "too few seeds")
EXEMPT = {
    "pga": "on clicks its gradient has no entry for a filler, so they stay random, attacks/pga.py; pga-unrolled has "
    "the exact one through a sweep",
    "covis": "made for co-visitation recommenders",
    "srwa": "made for random walks on the graph",
}
"""Attacks that need not beat Random on these victims, and why."""
NOTES = (
    "minus random, minus top-popular, and orders: mean difference paired by seed, from three seeds on with its 95% "
    "t-interval and a verdict (above or below 0 for sure, undecided); an order holds where every difference is above, "
    "does not where one is below; none is corrected for how many are looked at",
    "seeds tell a difference from 0: it is the smallest mean that would be above for sure with these seeds' spread",
    "exempt from being above random here: " + "; ".join(f"{name} ({why})" for name, why in EXEMPT.items()),
)


def orders(columns: Mapping[str, Hits]) -> Table:
    """Whether RAPU-G > RevAdv > heuristics holds, for the paper's heuristics and with TopPopular, pair by pair.

    >>> level = {"rapu-g": 0.3, "revadv": 0.2, "random": 0.1, "popular": 0.1, "top-popular": 0.25}
    >>> found = orders({"WRMF": {name: dict.fromkeys(range(3), value) for name, value in level.items()}})
    >>> found.header[:3], found.rows[0][:3]
    (['where', 'random and popular', 'with top-popular'], ['WRMF', 'holds', 'does not hold'])
    >>> found.header[-1], found.rows[0][-1]
    ('revadv - top-popular', '-0.050 [-0.050, -0.050] below')
    """
    rows = []
    for where, by in columns.items():
        gaps = list(_pairs(by).values())
        if any(gaps):
            shown = (each.said() if each else "-" for each in gaps)
            rows.append([where, conclusion(gaps[:-1]), conclusion(gaps), *shown])
    header = ["where", " and ".join(PRINTED), "with top-popular", *_pairs({})]
    return Table("RAPU-G > RevAdv > heuristics (paired by seed)", header, rows)


def _pairs(by: Hits) -> dict[str, Gap | None]:
    """RAPU-G minus RevAdv, and RevAdv minus each heuristic, TopPopular last."""
    revadv = by.get("revadv", {})
    over = {f"revadv - {name}": gap(revadv, by.get(name, {})) for name in (*PRINTED, "top-popular")}
    return {"rapu-g - revadv": gap(by.get("rapu-g", {}), revadv), **over}


def against(columns: Mapping[str, Hits], control: str) -> Table:
    """Which attacks are above a control, against Random those that optimize; of the others the difference, and why.

    >>> level = {"random": 0.1, "revadv": 0.2, "rapu-g": 0.1}
    >>> found = against({"WRMF": {name: dict.fromkeys(range(3), value) for name, value in level.items()}}, "random")
    >>> found.rows
    [['WRMF', 'revadv', 'rapu-g +0.000 [+0.000, +0.000] (the same on every seed)', '-', '-']]
    """
    rows = []
    for where, by in columns.items():
        sort: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
        for name, each in _over(by, control).items():
            why = reason(name, [each]) if control == "random" else ""
            sort[each.verdict].append(name if each.verdict == "above" else f"{name} {each}{why}")
        if any(sort.values()):
            rows.append([where, *(", ".join(sort[verdict]) or "-" for verdict in VERDICTS)])
    return Table(f"Minus {control} (paired by seed)", ["where", *VERDICTS], rows)


def tables(columns: Mapping[str, Hits]) -> list[Table]:
    """The order and both controls, a row a column of the page's table."""
    return [orders(columns), *(against(columns, control) for control in CONTROLS)]


def _over(by: Hits, control: str) -> dict[str, Gap]:
    names = LEARNED if control == "random" else (*LEARNED, *PRINTED)
    gaps = {name: gap(by.get(name, {}), by.get(control, {})) for name in names}
    return {name: each for name, each in gaps.items() if each}


def summary(columns: Mapping[str, Hits]) -> list[str]:
    """Where the paper's order holds, and what is above TopPopular for sure, over the columns of a table.

    >>> level = {"rapu-g": 0.3, "revadv": 0.2, "random": 0.1, "popular": 0.1, "top-popular": 0.25}
    >>> found = {name: dict.fromkeys(range(3), value) for name, value in level.items()}
    >>> summary({"WRMF, 3%": found, "NCF, 3%": {}})
    ['RAPU-G > RevAdv > random and popular: holds at WRMF, 3%', 'above top-popular for sure: rapu-g (WRMF, 3%)']
    """
    holds: dict[str, list[str]] = {}
    ahead: dict[str, list[str]] = {}
    for where, by in columns.items():
        gaps = list(_pairs(by).values())
        if any(gaps):
            holds.setdefault(conclusion(gaps[:-1]), []).append(where)
        for name, each in _over(by, "top-popular").items():
            if each.verdict == "above":
                ahead.setdefault(name, []).append(where)
    if not holds:
        return []
    said = "; ".join(f"{what} at {' | '.join(places)}" for what, places in holds.items())
    above = ", ".join(f"{name} ({' | '.join(places)})" for name, places in ahead.items())
    return [
        f"RAPU-G > RevAdv > {' and '.join(PRINTED)}: {said}",
        f"above top-popular for sure: {above or 'nothing'}",
    ]


def model(points: Mapping[str, Hits]) -> str | None:
    """What RAPU-G's probabilistic model adds, at each share of fake users."""
    gaps = {point: gap(by.get("rapu-g", {}), by.get("rapu-g-no-pgm", {})) for point, by in points.items()}
    shown = [f"{each.said()} at {point}" for point, each in gaps.items() if each]
    return f"rapu-g - rapu-g-no-pgm: {', '.join(shown)}" if shown else None


def reason(name: str, gaps: Sequence[Gap]) -> str:
    """Why an attack is not above Random for sure, as far as it is known, of differences with one verdict.

    Where nothing is decided that is how small a mean these seeds could have told from 0; where it is below, the cause
    is not known unless the attack is exempt.

    >>> reason("revadv", [Gap(0.01, -0.02, 0.04, 3), Gap(0.0, -0.04, 0.04, 4)])
    ' (3 to 4 seeds tell 0.030 to 0.040 from 0)'
    >>> reason("revadv", [Gap(-0.2, -0.3, -0.1, 3)]), reason("revadv", [Gap(0.0, 0.0, 0.0, 3)])
    (' (cause not known)', ' (the same on every seed)')
    """
    verdict = gaps[0].verdict
    if verdict == "too few seeds":
        return ""
    if name in EXEMPT:
        return " (exempt)"
    if verdict == "below":
        return " (cause not known)"
    if all(each.half == each.mean == 0 for each in gaps):
        return " (the same on every seed)"
    seeds = span([f"{each.seeds}" for each in sorted(gaps, key=lambda each: each.seeds)])
    widths = span([f"{each.half:.3f}" for each in sorted(gaps, key=lambda each: each.half)])
    return f" ({seeds} seeds tell {widths} from 0)"


def span(values: Sequence[str]) -> str:
    """The first and the last of sorted values, one where they are the same."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def along(points: Mapping[str, Hits]) -> str | None:
    """Minus Random along a sweep: by verdict, each attack with its points and the range of its mean differences.

    >>> base = dict.fromkeys(range(3), 0.1)
    >>> low, high = ({"random": base, "revadv": {k: 0.1 + step for k in range(3)}} for step in (0.1, 0.2))
    >>> along({"10": low, "20": high, "30": {"random": base, "revadv": {0: 0.15}}})
    'minus random: above: revadv at 10, 20 (+0.100 to +0.200); too few seeds: revadv at 30 (+0.050)'
    """
    sort: dict[str, dict[str, dict[str, Gap]]] = {verdict: {} for verdict in VERDICTS}
    for point, by in points.items():
        for name, each in _over(by, "random").items():
            sort[each.verdict].setdefault(name, {})[point] = each
    said = []
    for verdict, attacks in sort.items():
        shown = []
        for name, gaps in attacks.items():
            means = span([f"{each.mean:+.3f}" for each in sorted(gaps.values())])
            why = reason(name, list(gaps.values())) if verdict != "above" else ""
            where = "all" if len(gaps) == len(points) > 1 else ", ".join(gaps)
            shown.append(f"{name} at {where} ({means}){why}")
        said += [f"{verdict}: {', '.join(shown)}"] if shown else []
    return f"minus random: {'; '.join(said)}" if said else None
