"""The goals of benchmarks/hypergradient.py: what each compares, its limit, and whether a run met it.

Times are the fastest of the interleaved rounds. A goal whose parts were not measured says so; it is not passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

FALL_SHORT = "falls short"
MISSING = "not measured"


class Goal(NamedTuple):
    """One goal: `text`, measured `value` (NaN: not measured), the `limit` and its `sense`, verdict, evidence."""

    text: str
    value: float
    sense: str  # "<=" or ">="
    limit: float
    verdict: str  # pass, falls short, not measured
    evidence: str


def judge(results: Mapping[str, Any]) -> list[Goal]:
    """Every goal, judged on the results of one run (the structure of the JSON file)."""
    large = results["problems"].get("movielens", {})
    toy = results["problems"].get("toy", {})
    return [
        _goal("generic exact path, multiples of its forward", "<=", 4.0, lambda: _ratio(large, "generic")),
        _goal("WRMF exact path, multiples of the generic forward", "<=", 3.2, lambda: _wrmf_ratio(large)),
        _goal("the same, multiples of its own forward", "<=", 3.2, lambda: _ratio(large, "wrmf")),
        _goal(
            "leanest exact policy: share of keep-everything's temporaries", "<=", 1 / 12, lambda: _lean(large)
        ),
        _goal("the same policy's time, multiples of keep-everything's", "<=", 1.5, lambda: _lean_time(large)),
        _goal("leanest exact policy: share of higher's peak memory", "<=", 1 / 8, lambda: _lean_peak(large)),
        _goal("exact against higher, like for like, MovieLens size", ">=", 1.4, lambda: _faster(large)),
        _goal("exact against higher, like for like, toy", ">=", 2.0, lambda: _faster(toy)),
        _goal(
            "whole toy attack against higher with an evaluation per inner step",
            ">=",
            20.0,
            lambda: _whole(results),
        ),
    ]


def _goal(text: str, sense: str, limit: float, measure: Callable[[], tuple[float, str]]) -> Goal:
    try:
        value, evidence = measure()
    except KeyError as missing:
        return Goal(text, float("nan"), sense, limit, MISSING, f"no {missing.args[0]}")
    met = value <= limit if sense == "<=" else value >= limit
    return Goal(text, value, sense, limit, "pass" if met else FALL_SHORT, evidence)


def _variants(problem: Mapping[str, Any]) -> Mapping[str, Any]:
    if "variants" not in problem:
        raise KeyError("run of this problem")
    return problem["variants"]


def _exact(problem: Mapping[str, Any], path: str | None = None) -> dict[str, Any]:
    rows = _variants(problem)
    return {name: row for name, row in rows.items() if row["kind"] == "exact" and path in (None, row["path"])}


def _fastest(rows: Mapping[str, Any]) -> str:
    return min(rows, key=lambda name: rows[name]["seconds"])


def _ratio(problem: Mapping[str, Any], path: str) -> tuple[float, str]:
    rows = _exact(problem, path)
    if not rows:
        raise KeyError(f"exact run of the path {path}")
    forward = _variants(problem)[f"{path} forward"]
    name = _fastest(rows)
    cpu = rows[name]["cpu_seconds"] / forward["cpu_seconds"]
    text = f"{name} {rows[name]['seconds']:.3f} s, forward {forward['seconds']:.3f} s ({cpu:.2f}x in CPU seconds)"
    return rows[name]["seconds"] / forward["seconds"], text


def _wrmf_ratio(problem: Mapping[str, Any]) -> tuple[float, str]:
    """WRMF has a cheaper forward run too, so its gradient is held against both: this is the one all paths share."""
    rows = _exact(problem, "wrmf")
    if not rows:
        raise KeyError("exact run of the path wrmf")
    row, forward = rows[_fastest(rows)], _variants(problem)["generic forward"]
    cpu = row["cpu_seconds"] / forward["cpu_seconds"]
    text = f"{_fastest(rows)} {row['seconds']:.3f} s, generic forward {forward['seconds']:.3f} s"
    return row["seconds"] / forward["seconds"], f"{text} ({cpu:.2f}x in CPU seconds)"


def _leanest(problem: Mapping[str, Any], measure: str) -> tuple[str, dict[str, Any]]:
    rows = {name: row for name, row in _exact(problem).items() if row.get(measure) is not None}
    if not rows:
        raise KeyError(measure)
    name = min(rows, key=lambda name: rows[name][measure])
    return name, rows[name]


def _lean(problem: Mapping[str, Any]) -> tuple[float, str]:
    name, row = _leanest(problem, "temp_mb")
    keep = _variants(problem)["generic exact keep"]["temp_mb"]
    return row[
        "temp_mb"
    ] / keep, f"{name} {row['temp_mb']:.0f} MB, keep {keep:.0f} MB: 1/{keep / row['temp_mb']:.1f}"


def _lean_time(problem: Mapping[str, Any]) -> tuple[float, str]:
    name, row = _leanest(problem, "temp_mb")
    keep = _variants(problem)["generic exact keep"]["seconds"]
    return row["seconds"] / keep, f"{name} {row['seconds']:.3f} s, keep {keep:.3f} s"


def _lean_peak(problem: Mapping[str, Any]) -> tuple[float, str]:
    name, row = _leanest(problem, "peak_rss_mb")
    peer = _peer(problem)["peak_rss_mb"]
    text = f"{name} {row['peak_rss_mb']:.0f} MB, compilation included, higher {peer:.0f} MB"
    return row["peak_rss_mb"] / peer, text


def _peer(problem: Mapping[str, Any], name: str = "higher") -> Mapping[str, Any]:
    peers = problem.get("peers", {})
    if name not in peers:
        raise KeyError(f"run of {name} (make it possible with --peers)")
    return peers[name]


def _faster(problem: Mapping[str, Any]) -> tuple[float, str]:
    rows = _exact(problem)
    name, peer = _fastest(rows), _peer(problem)
    cpu = peer["cpu_seconds"] / rows[name]["cpu_seconds"]
    text = f"{name} {rows[name]['seconds']:.3f} s, higher {peer['seconds']:.3f} s ({cpu:.2f}x in CPU seconds)"
    return peer["seconds"] / rows[name]["seconds"], text


def _whole(results: Mapping[str, Any]) -> tuple[float, str]:
    attack = results.get("attack", {})
    if "higher" not in attack or "ours" not in attack:
        raise KeyError("whole attack on both sides (peers and the toy problem)")
    ours, peer, bare = attack["ours"], attack["higher"], attack["higher_without_evaluation"]
    spent = ours["seconds"] + ours["compile_seconds"]
    note = f", extrapolated from {peer['measured_steps']} outer steps" if peer["extrapolated"] else ""
    text = (
        f"{spent:.1f} s with compilation, {ours['seconds']:.1f} s without; higher {peer['seconds']:.0f} s{note}, "
        f"{bare['seconds']:.0f} s without the inner evaluations ({bare['seconds'] / spent:.1f}x); "
        f"{peer['cpu_seconds'] / ours['cpu_seconds']:.1f}x in CPU seconds"
    )
    return peer["seconds"] / spent, text
