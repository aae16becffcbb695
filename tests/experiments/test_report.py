"""Tables and pictures."""

import numpy as np
from matplotlib.colors import to_rgb

from experiments import report


def test_interval():
    assert report.interval([]) == report.interval([float("nan")]) == "-"
    assert report.interval([0.25]) == "0.250"
    assert report.interval([0.25, float("nan"), 0.5], 2) == "0.25, 0.50"
    text = report.interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert text.startswith("0.300 [0.1")


def test_pictures_are_written(tmp_path):
    made, axes = report.figure(1, 2)
    report.curves(axes[0, 0], {"a": np.ones((3, 4))})
    report.bars(axes[0, 1], ["x", "y"], [[0.1, 0.2], [0.3]], reference=0.15)
    path = report.save(made, tmp_path / "deep" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_bars_have_the_colors_of_the_curves_of_their_names(tmp_path):
    made, axes = report.figure(1, 2)
    report.curves(axes[0, 0], {"b": np.ones((1, 2)), "a": np.ones((1, 2))})
    report.bars(axes[0, 1], ["a", "other", "b"], [[1.0], [1.0], [1.0]], like=axes[0, 0])
    line = {line.get_label(): to_rgb(line.get_color()) for line in axes[0, 0].lines}
    drawn = [patch.get_facecolor()[:3] for patch in axes[0, 1].patches]
    assert drawn == [line["a"], to_rgb("0.6"), line["b"]]
    report.save(made, tmp_path / "figure.png")


def test_show_prints_a_table(capsys):
    report.show("title", ["name", "value"], [["a", "1"]], ["a note"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("title", "name", "a note"))
