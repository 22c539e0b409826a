"""Polygons and run lengths as masks, by hand and against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedvision.data.sources.annotations.regions import polygon_mask, region_mask, text_runs
from fedvision.errors import DataError


def drawn(*corners: tuple[float, float], width: int = 5, height: int = 4) -> list[str]:
    mask = polygon_mask(np.array(corners, float), width, height)
    return ["".join(".#"[int(value)] for value in row) for row in mask]


def test_a_pixel_belongs_to_a_polygon_if_its_centre_does() -> None:
    assert drawn((1, 1), (4, 1), (4, 3), (1, 3)) == [".....", ".###.", ".###.", "....."]
    # Edges through the centres: the left and upper ones belong to it, the right and lower ones do not.
    assert drawn((0.5, 0.5), (2.5, 0.5), (2.5, 2.5), (0.5, 2.5))[:3] == ["##...", "##...", "....."]
    assert drawn((0, 0), (4, 0), (0, 4)) == ["###..", "##...", "#....", "....."]
    assert drawn((-3, -3), (9, -3), (9, 9), (-3, 9)) == ["#####"] * 4
    assert drawn((7, 1), (9, 1), (9, 3)) == ["....."] * 4


def test_run_lengths_by_hand() -> None:
    """Columns first: two zeros, three ones, one zero."""
    region = {"size": [2, 3], "counts": [2, 3, 1]}
    assert region_mask(region, 3, 2, "").astype(int).tolist() == [[0, 1, 1], [0, 1, 0]]
    # 2 is one group, "2"; 42 is 10 and 1, of which the first is marked: "Z1".
    assert text_runs("231") == [2, 3, 1]
    assert text_runs("Z1") == [42]
    # The fourth run is told by its difference to the second one: 3 - 1, -1 being 31 of five bits: "O".
    assert text_runs("231O") == [2, 3, 1, 2]


@settings(max_examples=40)
@given(arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24))))
def test_compressed_run_lengths_are_those_of_pycocotools(mask: np.ndarray[Any, Any]) -> None:
    from pycocotools import mask as oracle

    height, width = mask.shape
    counts = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    found = region_mask({"size": [height, width], "counts": counts}, width, height, "")
    assert np.array_equal(found, mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_differ_from_pycocotools_at_edges_alone() -> None:
    """Of random stars with 3 to 11 corners less than 1 % of the pixels differ, all within 1 of an edge."""
    from pycocotools import mask as oracle

    rng, differing, inside = np.random.default_rng(0), 0, 0
    for _ in range(60):
        corners = int(rng.integers(3, 12))
        angle, radius = np.sort(rng.random(corners)) * 2 * np.pi, rng.uniform(20, 60, corners)
        points = np.stack([100 + radius * np.cos(angle), 75 + radius * np.sin(angle)], 1)
        ours = polygon_mask(points, 200, 150)
        theirs = oracle.decode(oracle.frPyObjects([points.ravel().tolist()], 150, 200))[..., 0].astype(bool)
        for row, column in np.argwhere(ours != theirs):
            assert _distance(points, np.array([column + 0.5, row + 0.5])) < 1
        differing, inside = differing + int((ours != theirs).sum()), inside + int(theirs.sum())
    assert 0 < differing < 0.01 * inside


def _distance(points: np.ndarray[Any, Any], at: np.ndarray[Any, Any]) -> float:
    """Return how far a point is from the nearest edge."""
    along = np.roll(points, -1, 0) - points
    share = (((at - points) * along).sum(1) / (along**2).sum(1)).clip(0, 1)
    return float(np.linalg.norm(points + share[:, None] * along - at, axis=1).min())


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        (None, "must be a list of polygons or run lengths"),
        ([], "must be a list of polygons or run lengths"),
        ([[1, 1, 2, 2, 3]], "has 5 values, and x and y come in pairs"),
        ([[1, 1, 2, 2]], "has 2 points, and an area needs 3"),
        ([[1, 1, 2, 2, 3, float("nan")]], "is no list of finite numbers"),
        ([[1, 1, 2, 2, 3, "4"]], "is no list of finite numbers"),
        ({"size": [4, 3], "counts": [12]}, r"are of size \[4, 3\] .* its image has \[3, 4\]"),
        ({"size": [3, 4], "counts": [11]}, "run lengths are damaged"),
        ({"size": [3, 4], "counts": [13, -1]}, "run lengths are damaged"),
        ({"size": [3, 4], "counts": "Z"}, "run lengths are damaged"),
        ({"size": [3, 4], "counts": "\x07"}, "run lengths are damaged"),
        ({"size": [3, 4]}, "run lengths are damaged"),
    ],
)
def test_what_is_damaged_is_refused(segmentation: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"^here: .*{problem}"):
        region_mask(segmentation, 4, 3, "here")
