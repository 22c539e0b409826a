"""Curves and dots: their descriptions, and that names at lines' ends do not meet."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.reporting import plots
from fedvision.reporting.series import Band, Series


def _label(svg: str) -> str:
    found = re.search(r'aria-label="([^"]*)"', svg)
    assert found
    return found[1]


def test_curves_name_every_line_that_has_values() -> None:
    lines = {"server": Series([1, 5], [0.1, 0.8]), "clients": Series([], []), "training": Series([1], [0.5])}
    svg = plots.curves(lines, name="x", what="accuracy")
    assert _label(svg) == (
        "accuracy over rounds: server 10.0% in round 1, 80.0% in round 5; "
        "training 50.0% in round 1, 50.0% in round 1"
    )
    assert ">server<" in svg
    assert ">training<" in svg
    assert ">clients<" not in svg
    assert "var(--blue)" in svg
    assert "var(--orange)" not in svg


def test_a_loss_is_no_share() -> None:
    svg = plots.curves({"training": Series([1, 2], [2.5, 1.25])}, name="x", what="loss", share=False)
    assert _label(svg) == "loss over rounds: training 2.500 in round 1, 1.250 in round 2"
    assert "%" not in re.sub(r'aria-label="[^"]*"', "", svg)


@pytest.mark.filterwarnings("error")
def test_a_loss_below_zero_has_its_place() -> None:
    """Terms such as FedVLS's suppression of logits can be negative; the axis then does not begin at 0."""
    svg = plots.curves({"training": Series([1, 2], [-40.0, -90.0])}, name="x", what="loss", share=False)
    assert ">−80<" in svg
    assert ">0<" not in svg


def test_the_axis_spans_the_whole_run() -> None:
    line = {"server": Series([50], [0.5])}
    assert ">100<" in plots.curves(line, name="x", what="accuracy", span=(0, 100))
    assert ">100<" not in plots.curves(line, name="x", what="accuracy")


def test_the_band_shows_worst_median_and_best() -> None:
    svg = plots.client_band(Band([1, 2], [0.1, 0.2], [0.4, 0.5], [0.8, 0.9]), name="x")
    assert "in round 2 the worst has 20.0%, the median 50.0%, the best 90.0%" in _label(svg)


def test_dots_show_means() -> None:
    svg = plots.dots([("a", [0.5, 0.6]), ("b", [0.7])], name="x", what="accuracy")
    assert _label(svg) == "mean accuracy: a: 55.0%; b: 70.0%"
    assert ">55.0%<" in svg


def test_one_colour_for_each_group_of_runs() -> None:
    bands = {f"group {i}": Band([1, 2], [0.1, 0.2], [0.2, 0.3 + i / 10], [0.3, 0.5]) for i in range(3)}
    svg = plots.group_curves(bands, name="x", what="accuracy")
    assert _label(svg).startswith("accuracy over rounds: group 0: 30.0% in round 2; group 1: 40.0%")
    assert all(f"var(--{colour})" in svg for colour in ("blue", "orange", "green"))


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([], []),
        ([3.0], [3.0]),
        ([5.0, 1.0], [5.0, 1.0]),
        ([1.0, 1.0], [0.5, 1.5]),
        ([0.0, 0.5, 10.0], [-0.25, 0.75, 10.0]),
        ([2.0, 1.0, 0.0], [2.0, 1.0, 0.0]),
    ],
)
def test_names_are_moved_apart(places: list[float], moved: list[float]) -> None:
    assert plots.apart(places, 1.0) == pytest.approx(moved)


@given(st.lists(st.floats(-10, 10), max_size=8), st.floats(0.01, 5))
def test_names_never_meet_keep_their_order_and_their_middle(places: list[float], gap: float) -> None:
    moved = plots.apart(places, gap)
    order = np.argsort(places, kind="stable")
    assert (np.diff(np.array(moved)[order]) >= gap * (1 - 1e-9) - 1e-9).all()
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)


def test_names_stay_above_the_label_of_the_axis() -> None:
    """Lines that end at 0, at once or pushed there by others, are named half a line above it or higher."""
    assert plots.named_at([0.0, 0.02, 0.5], 0.1, 0.0) == pytest.approx([0.05, 0.15, 0.5])
    assert plots.named_at([0.02, 0.0], 0.1, 0.0) == pytest.approx([0.15, 0.05])
    assert plots.named_at([0.5, 0.9], 0.1, 0.0) == pytest.approx([0.5, 0.9])
