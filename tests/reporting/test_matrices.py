"""The two matrices as pictures: every cell a pixel, rows in order, legible for few and many."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from fedvision.reporting import matrices
from fedvision.tasks.confusion import ConfusionCounts


def _pixels(svg: str) -> np.ndarray:  # type: ignore[type-arg]
    """Return the first embedded image, red, green, blue and opacity; the second one is the colour bar."""
    uris = re.findall(r"data:image/png;base64,\s*([^\"]+)\"", svg)
    return np.array(Image.open(io.BytesIO(base64.b64decode(uris[0]))).convert("RGBA"))


def test_clients_stand_side_by_side_and_classes_by_frequency() -> None:
    counts = np.array([[0, 5], [100, 1], [0, 0], [0, 1]])
    svg = matrices.clients_by_classes(counts, ["a", "b"], np.array([0, 1]), name="x")
    pixels = _pixels(svg)
    assert pixels.shape == (2, 4, 4)
    assert (pixels[..., 3] > 0).tolist() == [[False, True, False, False], [True, True, False, True]]
    lightness = pixels[..., :3].sum(-1)
    assert lightness[0, 1] < lightness[1, 0] < lightness[1, 1] == lightness[1, 3]
    assert "50% of the cells are empty" in svg
    swapped = matrices.clients_by_classes(counts, ["a", "b"], np.array([1, 0]), name="x")
    assert (_pixels(swapped) == pixels[::-1]).all()


def test_confusion_rows_are_shares() -> None:
    matrix = np.array([[30, 10], [0, 0]])
    svg = matrices.confusion(
        ConfusionCounts.from_matrix(matrix), ["cat", "<dog>"], np.array([0, 1]), name="x"
    )
    assert ">75<" in svg
    assert ">25<" in svg
    assert "&lt;dog&gt;" in svg
    assert "75.0% of 40 images" in svg
    assert (_pixels(svg)[..., 3] > 0).tolist() == [[True, True], [False, False]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clients", "classes", "named"), [(1, 1, 1), (3, 25, 25), (1000, 10, 10), (40, 130, 33)]
)
def test_any_size_is_drawn_with_a_pixel_for_each_cell(clients: int, classes: int, named: int) -> None:
    rng = np.random.default_rng(0)
    names, order = [f"class {c}" for c in range(classes)], rng.permutation(classes)
    counts = rng.integers(0, 9, (clients, classes))
    assert _pixels(matrices.clients_by_classes(counts, names, order, name="x")).shape[:2] == (
        classes,
        clients,
    )
    matrix = rng.integers(0, 9, (classes, classes))
    svg = matrices.confusion(ConfusionCounts.from_matrix(matrix), names, order, name="x")
    assert svg.count(">class ") == 2 * named
    assert len(svg) < 400_000


@pytest.mark.parametrize(("name", "turned"), [("a", 0), ("a long name", 12)])
def test_names_under_the_columns_are_turned_where_they_would_meet(name: str, turned: int) -> None:
    svg = matrices.confusion(
        ConfusionCounts.from_matrix(np.eye(12, dtype=np.int64)), [name] * 12, np.arange(12), name="x"
    )
    assert len(re.findall(rf"rotate\(-90[^>]*>{name}<", svg)) == turned
    assert svg.count(f">{name}<") == 24


def test_long_names_are_cut_and_dollars_are_no_formula() -> None:
    name = "$x_1$ " + "very " * 9 + "long"
    svg = matrices.confusion(
        ConfusionCounts.from_matrix(np.eye(2, dtype=np.int64)), [name, "b"], np.array([0, 1]), name="x"
    )
    assert ">$x_1$ very very very…<" in svg


def test_a_sample_of_clients_is_called_one() -> None:
    counts = np.ones((100, 2), np.int64)
    svg = matrices.clients_by_classes(
        counts, ["a", "b"], np.arange(2), name="x", sample="100 of 1,000,000 clients, drawn at random"
    )
    assert ">100 of 1,000,000 clients, drawn at random<" in svg
    assert "training images of 100 of 1,000,000 clients, drawn at random (columns)" in svg
    assert ">client<" not in svg
    assert ">50<" not in svg


def test_many_classes_share_rows_with_their_neighbours_by_frequency() -> None:
    """Of 1,000 classes three make a row; class 999 is the most frequent, and in the first one."""
    labels, predicted = np.array([999, 999, 999, 0]), np.array([998, 996, 999, 0])
    counted = ConfusionCounts.from_predictions(labels, predicted, 1000)
    names = [f"class {c}" for c in range(1000)]
    svg = matrices.confusion(counted, names, np.arange(999, -1, -1), name="x")
    pixels = _pixels(svg)
    assert pixels.shape[:2] == (334, 334)
    assert np.argwhere(pixels[..., 3]).tolist() == [[0, 0], [0, 1], [333, 333]]
    assert "confusion matrix of 1000 classes, 3 a row" in svg
    assert "named rightly are 50.0% of 4 images" in svg
    assert ">class 999<" in svg
    assert ">class 998<" not in svg
