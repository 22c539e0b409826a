"""Rows of detections: bits there and back, and every way in which those of a client can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedvision.tasks import detection_rows as form
from fedvision.tasks.average_precision import accumulate
from fedvision.tasks.detection_matching import match
from fedvision.tasks.stats import MetricStats
from tests.tasks.coco_reference import scene

CLASSES, IMAGES = 3, 12


def right() -> tuple[np.ndarray, np.ndarray]:
    """Return rows and tables of a measurement."""
    images = scene(11, images=IMAGES, classes=CLASSES, detections=30)
    rows, cells = match(images.detections(0, IMAGES), images.targets(0, IMAGES), CLASSES)
    return rows, MetricStats.from_cells(cells, (4, CLASSES + 1, 2)).tables()


@given(arrays.arrays(np.bool_, (3, len(form.AREAS), len(form.THRESHOLDS))))
def test_flags_come_back(flags: np.ndarray) -> None:
    numbers = form.packed_bits(flags)
    assert ((numbers >= 0) & (numbers < 1 << form.BITS)).all()
    assert np.array_equal(form.unpacked_bits(numbers), flags)


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_scores_come_back(scores: list[float]) -> None:
    values = np.array(scores, np.float32)
    assert form.unpacked_scores(form.packed_scores(values)).tobytes() == values.tobytes()


def test_a_bit_is_an_area_and_a_threshold() -> None:
    flags = np.zeros((1, 4, 10), bool)
    flags[0, 2, 3] = True
    assert form.packed_bits(flags).tolist() == [1 << 23]


@pytest.mark.parametrize("seed", range(5))
def test_what_was_measured_is_right(seed: int) -> None:
    images = scene(seed, images=IMAGES, classes=CLASSES, ties=True, whole=True)
    rows, cells = match(images.detections(0, IMAGES), images.targets(0, IMAGES), CLASSES)
    assert form.rows_problem(rows, MetricStats.from_cells(cells, (4, CLASSES + 1, 2)).tables()) is None
    no_rows, no_tables = np.empty((0, form.WIDTH), np.int64), np.zeros((4, CLASSES + 1, 2), np.int64)
    assert form.rows_problem(no_rows, no_tables) is None


def bits_of(score: float) -> int:
    return int(form.packed_scores(np.array([score], np.float32))[0])


def column(name: int, value: int, row: int = -1) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return what writes a value into one row."""

    def change(rows: np.ndarray, tables: np.ndarray) -> None:
        rows[row, name] = value

    return change


def cell(table: int, row: int, place: int, more: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return what adds to one cell of the tables."""

    def change(rows: np.ndarray, tables: np.ndarray) -> None:
        tables[table, row, place] += more

    return change


def moved(table: int, row: int, source: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return what moves all of a cell to the other column."""

    def change(rows: np.ndarray, tables: np.ndarray) -> None:
        tables[table, row, 1 - source] += tables[table, row, source]
        tables[table, row, source] = 0

    return change


def matched_all(rows: np.ndarray, tables: np.ndarray) -> None:
    rows[:, form.MATCHED], rows[:, form.IGNORED] = (1 << form.BITS) - 1, 0


def ignored_at_one(rows: np.ndarray, tables: np.ndarray) -> None:
    rows[-1, form.MATCHED], rows[-1, form.IGNORED] = 0, 1 << 12


def swapped(rows: np.ndarray, tables: np.ndarray) -> None:
    rows[[0, -1]] = rows[[-1, 0]]


def rising(rows: np.ndarray, tables: np.ndarray) -> None:
    """Swap two scores of one image and class."""
    second = int(np.flatnonzero(rows[:, form.RANK] == 1)[0])
    rows[[second - 1, second], form.SCORE] = rows[[second, second - 1], form.SCORE]


def no_crowds(rows: np.ndarray, tables: np.ndarray) -> None:
    tables[0, :-1, form.COUNTS] += tables[0, :-1, form.LEFT_OUT]
    tables[0, :-1, form.LEFT_OUT] = 0


WRONG = {
    "another image": (column(form.IMAGE, IMAGES), r"name images beyond the 12 that there are"),
    "image -1": (column(form.IMAGE, -1, 0), r"name images beyond the 12"),
    "another class": (column(form.CLASS, CLASSES), r"name classes beyond the 3"),
    "class -1": (column(form.CLASS, -1), r"name classes beyond the 3"),
    "rank 100": (column(form.RANK, 100), r"name ranks beyond the 100"),
    "rank -1": (column(form.RANK, -1), r"name ranks beyond the 100"),
    "a rank too high": (column(form.RANK, 50), r"not in order of image, class and rank"),
    "order": (swapped, r"not in order of image, class and rank"),
    "rising": (rising, r"scores that rise with the rank"),
    "nan": (column(form.SCORE, bits_of(float("nan"))), r"scores that are no finite numbers"),
    "inf": (column(form.SCORE, bits_of(float("inf"))), r"scores that are no finite numbers"),
    "33 bits": (column(form.SCORE, 1 << 32), r"scores that are no finite numbers"),
    "41 flags": (column(form.MATCHED, 1 << form.BITS), r"more than 40 flags"),
    "a negative number of flags": (column(form.IGNORED, -1), r"more than 40 flags"),
    "found too many": (matched_all, r"find more boxes of a class than there are"),
    "ignored at a threshold": (ignored_at_one, r"ignore one without a match at some thresholds only"),
    "matched a crowd": (no_crowds, r"match boxes that do not count, and there are none"),
    "a box in one table": (cell(1, 0, form.COUNTS, 1), r"same boxes and images in each range of areas"),
    "an image left out": (moved(0, CLASSES, form.COUNTS), r"leave images out, and only boxes can be"),
    "a part above the whole": (moved(0, 0, form.COUNTS), r"more boxes of one range of areas than of all"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    change, sentence = WRONG[name]
    rows, tables = right()
    assert form.rows_problem(rows, tables) is None
    change(rows, tables)
    problem = form.rows_problem(rows, tables)
    assert problem is not None
    assert re.search(sentence, problem), problem


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 5), np.int64), np.zeros(6, np.int64), np.zeros((2, 6), np.int32), np.zeros((2, 6))]
)
def test_other_forms_are_refused(rows: np.ndarray) -> None:
    problem = form.rows_problem(rows, right()[1])
    assert problem is not None
    assert "must be int64 [M, 6]" in problem


@pytest.mark.slow
@given(st.data())
def test_what_passes_gives_shares_of_one(data: st.DataObject) -> None:
    """Whatever a client sends that is not refused, no number leaves 0 to 1."""
    rows, tables = right()
    for _ in range(data.draw(st.integers(1, 4))):
        row = data.draw(st.integers(0, len(rows) - 1))
        name = data.draw(st.sampled_from([form.SCORE, form.MATCHED, form.IGNORED]))
        rows[row, name] ^= 1 << data.draw(st.integers(0, 40))
    if form.rows_problem(rows, tables) is None:
        numbers = np.array(list(accumulate(tables, rows).summary().values()))
        assert ((numbers >= 0) & (numbers <= 1) | np.isnan(numbers)).all()
