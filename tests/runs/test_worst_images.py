"""Which images are shown of a task that draws, and that they come back from the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.errors import RecordError, RunFolderError
from fedvision.runs import worst_images
from fedvision.runs.worst_images import FILE, WorstImages, choose_worst
from fedvision.tasks.drawings import Drawings


def test_rarest_class_first_and_worst_first() -> None:
    wrong = np.array([[0, 0.5, 0.2], [0.9, 0.4, 0], [0, 0.8, 0], [0.3, 0, 0]])
    counts = np.array([100, 5, 10])
    chosen, of = choose_worst(wrong, counts)
    # Image 0 is class 1's second choice, but class 2 takes it when it has its turn, and class 0 the image 1.
    assert (chosen.tolist(), of.tolist()) == ([2, 0, 1, 3], [1, 2, 0, 0])
    chosen, of = choose_worst(wrong, counts, limit=2)
    assert (chosen.tolist(), of.tolist()) == ([2, 0], [1, 2])
    chosen, of = choose_worst(wrong, counts, classes=1)
    assert (chosen.tolist(), of.tolist()) == ([2, 0, 1], [1, 1, 1])


def test_of_equal_images_the_one_where_more_went_wrong_comes_first() -> None:
    wrong = np.array([[1, 0], [1, 2], [1, 2], [0, 0]])
    chosen, of = choose_worst(wrong, np.array([1, 9]), classes=1)
    assert (chosen.tolist(), of.tolist()) == ([1, 2, 0], [0, 0, 0])


def test_nothing_wrong_is_an_empty_choice() -> None:
    for wrong in (np.zeros((3, 2)), np.zeros((0, 2))):
        chosen, of = choose_worst(wrong, np.array([1, 2]))
        assert (chosen.dtype, of.dtype, len(chosen), len(of)) == (np.int64, np.int64, 0, 0)


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 4))
def test_each_image_is_shown_once_for_a_class_that_went_wrong_in_it(
    seed: int, limit: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    wrong = rng.integers(0, 3, (20, 4)) * (rng.random((20, 4)) < 0.3)
    counts = rng.integers(0, 4, 4)
    chosen, of = choose_worst(wrong.astype(np.float64), counts, limit=limit, classes=classes)
    assert len(set(chosen.tolist())) == len(chosen) <= limit
    assert (wrong[chosen, of] > 0).all()
    ranks = [(counts[c], c) for c in of.tolist()]
    assert ranks == sorted(ranks)
    failing = sorted({int(c) for c in np.nonzero(wrong)[1]}, key=lambda c: (counts[c], c))[:classes]
    assert len(chosen) == min(limit, int((wrong[:, failing] > 0).any(axis=1).sum()))
    for c in failing:
        own = wrong[chosen[of == c], c]
        assert (np.diff(own) <= 0).all()


def kept() -> WorstImages:
    panels = np.arange(2 * 1 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 1, 2, 3, 3)
    boxes = np.array([[1, 0, np.nan, 0, 0, 0, 1.5, 2], [0, 1, 0.5, 1, 0, 0, 1, 1]])
    texts = {
        "titles": ("image",),
        "captions": ("<b>&", "猫"),
        "about": "é",
        "key": {"#ff0000": "b", "#000000": "a"},
    }
    return WorstImages(classes=np.array([1, 0]), drawings=Drawings(panels=panels, boxes=boxes, **texts))  # type: ignore[arg-type]


def test_they_come_back_from_the_folder(tmp_path: Path) -> None:
    assert worst_images.read(tmp_path) is None
    before = kept()
    worst_images.write(tmp_path, before)
    after = worst_images.read(tmp_path)
    assert after is not None
    assert after.classes.tolist() == [1, 0]
    assert np.array_equal(after.drawings.panels, before.drawings.panels)
    assert np.array_equal(after.drawings.boxes, before.drawings.boxes, equal_nan=True)
    for name in ("titles", "captions", "about"):
        assert getattr(after.drawings, name) == getattr(before.drawings, name)
    assert list(after.drawings.key.items()) == [("#ff0000", "b"), ("#000000", "a")]


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    from safetensors.numpy import save

    arrays = {"panels": kept().drawings.panels, "boxes": kept().drawings.boxes, "classes": np.array([1, 0])}
    texts = '{"titles": ["a"], "captions": ["b", "c"], "about": "d", "key": {}}'
    damaged = [
        b"x" * 20,
        save(arrays),
        save(arrays, {"fedvision": "{"}),
        save(arrays, {"fedvision": "[]"}),
        save(arrays, {"fedvision": texts.replace("{}", "[]")}),
        save(arrays | {"classes": np.array([1])}, {"fedvision": texts}),
        save(arrays | {"boxes": np.zeros((1, 3))}, {"fedvision": texts}),
        save({"panels": arrays["panels"]}, {"fedvision": texts}),
    ]
    for content in damaged:
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(RunFolderError, match=r"misses\.safetensors: the file is damaged.*run again"):
            worst_images.read(tmp_path)
    (tmp_path / FILE).write_bytes(save(arrays, {"fedvision": texts}))
    assert worst_images.read(tmp_path) is not None
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(RunFolderError, match=r"misses\.safetensors"):
        worst_images.read(tmp_path)


def test_a_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"misses\.safetensors"):
        worst_images.write(tmp_path / "gone", kept())
