"""Which mistakes are shown, and that they come back from the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.config import ExperimentConfig
from fedvision.errors import RunFolderError
from fedvision.runs.folder import RunFolder
from fedvision.runs.misclassified import Misclassified, choose


def test_rarest_class_first_and_most_confident_first() -> None:
    labels = np.array([0, 1, 1, 1, 2, 2, 0])
    predicted = np.array([1, 0, 1, 2, 0, 1, 0])
    confidence = np.array([0.9, 0.4, 0.99, 0.8, 0.5, 0.6, 0.7])
    counts = np.array([100, 5, 10])
    assert choose(labels, predicted, confidence, counts).tolist() == [3, 1, 5, 4, 0]
    assert choose(labels, predicted, confidence, counts, classes=1).tolist() == [3, 1]
    assert choose(labels, predicted, confidence, counts, limit=3).tolist() == [3, 5, 0]


def test_places_that_a_class_leaves_free_are_filled_by_others() -> None:
    labels = np.array([0] * 10 + [1])
    predicted = np.array([1] * 10 + [0])
    chosen = choose(labels, predicted, np.linspace(0, 1, 11), np.array([9, 1]), limit=6)
    assert labels[chosen].tolist() == [1, 0, 0, 0, 0, 0]
    assert chosen[1:].tolist() == [9, 8, 7, 6, 5]


def test_no_mistakes_is_an_empty_choice() -> None:
    chosen = choose(np.array([0, 1]), np.array([0, 1]), np.ones(2), np.array([3, 3]))
    assert chosen.dtype == np.int64
    assert chosen.shape == (0,)


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 5))
def test_only_mistakes_are_chosen_and_as_many_as_fit(seed: int, limit: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 5, (2, 40))
    counts = rng.integers(0, 4, 5)
    chosen = choose(labels, predicted, rng.random(40), counts, limit=limit, classes=classes)
    wrong = labels != predicted
    failing = sorted({int(c) for c in labels[wrong]}, key=lambda c: (counts[c], c))[:classes]
    assert len(set(chosen.tolist())) == len(chosen) == min(limit, int(np.isin(labels[wrong], failing).sum()))
    assert wrong[chosen].all()
    assert set(labels[chosen].tolist()) <= set(failing)


def test_mistakes_come_back_from_the_folder(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", ExperimentConfig.from_dict({"data": {"use": "digits"}}))
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)
    folder.write_mistakes(images[:, ::-1], np.array([1, 2]), np.array([2, 0]), np.array([0.5, 0.25]))
    stored = folder.mistakes()
    assert stored is not None
    assert np.array_equal(stored.images, images[:, ::-1])
    assert (stored.labels.tolist(), stored.predicted.tolist()) == ([1, 2], [2, 0])
    assert stored.confidence.tolist() == [0.5, 0.25]
    (folder.path / "mistakes.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(RunFolderError, match=r"mistakes\.safetensors: the file is damaged"):
        folder.mistakes()


def test_arrays_must_fit_each_other() -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="uint8"):
        Misclassified(images=np.zeros((1, 2, 2, 1)), labels=one, predicted=one, confidence=one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many"):
        Misclassified(images=np.zeros((2, 2, 2, 1), np.uint8), labels=one, predicted=one, confidence=one)
