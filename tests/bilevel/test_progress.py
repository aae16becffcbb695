"""What a run shows: nothing, lines in a log, a bar on a terminal, or what the caller makes of it."""

import io
import re
import sys

import jax.numpy as jnp
import pytest

from bilevel import progress
from bilevel.loop import run
from bilevel.progress import Block, display


def step(x):
    return x + 1, {"b": x, "a": 2 * x, "c": x, "d": x, "e": 1e6 * x}


def test_off_shows_nothing(capfd):
    run(step, 0.0, 4, progress=False)
    assert capfd.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(capfd, monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 1e9)
    run(step, 0.0, 4, block=2, progress=True, label="poisoning")
    out, err = capfd.readouterr()
    first, last = err.splitlines()
    assert out == ""
    assert first == "poisoning: 0/4 steps, compiling"
    assert re.fullmatch(r"poisoning: 4/4 steps, [\d.]+ s, a 6 b 3 c 3 d 3", last)


def test_the_metrics_to_show_can_be_named(capfd):
    run(step, 0.0, 2, progress=True, show=["e", "b"])
    assert capfd.readouterr().err.endswith(" s, e 1e+06 b 1\n")
    run(step, 0.0, 2, progress=True, show=[])
    assert re.search(r"2/2 steps, [\d.]+ s\n$", capfd.readouterr().err)


def test_a_line_says_how_long_it_takes(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_console", lambda: None)
    with display(True, "x", ["hr"]) as tell:
        tell(Block(10, 40, 100.0, None, {}, 10))  # resumed: 100 s are of an earlier process
        for done, seconds in [(11, 103.0), (12, 104.0), (20, 110.5), (21, 111.0)]:
            tell(Block(done, 40, seconds, None, {"hr": jnp.array([0.1, 0.25])}, 10))
    assert capfd.readouterr().err.splitlines() == [
        "x: 10/40 steps, resumed at step 10, compiling",
        "x: 11/40 steps, 1 min 43 s, hr 0.25",  # one block, which compiled, tells no pace
        "x: 20/40 steps, 1 min 50 s, 16.7 s left, hr 0.25",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(8.26, "8.3 s"), (125, "2 min 5 s"), (11520, "3 h 12 min")])
def test_durations_read_well(seconds, text):
    assert progress._clock(seconds) == text


def test_a_finished_run_says_so(capfd, tmp_path):
    for _ in range(2):
        run(step, 0.0, 2, progress=True, store=tmp_path, spec={})
    assert capfd.readouterr().err.splitlines()[-1] == "running: 2/2 steps, already done"


def test_a_callable_gets_every_block():
    seen = []
    run(step, 0.0, 5, block=2, progress=seen.append)
    assert [here.done for here in seen] == [0, 2, 4, 5]
    assert [len(here.metrics.get("a", ())) for here in seen] == [0, 2, 2, 1]
    assert all(here.steps == 5 and here.resumed == 0 for here in seen)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    run(step, 0.0, 4, block=2, progress=True, label="poisoning", show=["a"])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "poisoning" in text
    assert "compiling" in text
    assert re.search(r"━+ 4/4 a 6 0:00:0\d", text)


def test_without_rich_there_are_lines(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    run(step, 0.0, 2, progress=True)
    assert "running: 2/2 steps" in capfd.readouterr().err
