"""What probabilities tell: by hand, beside scikit-learn, and the same in any batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from fedvision.files import json_page
from fedvision.tasks.calibration import CONFIDENCE_BINS, MOST_CLASSES, Calibration, Reliability
from fedvision.tasks.score_bins import bin_of


def drawn(
    seed: int, images: int = 300, classes: int = 5
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Draw probabilities [N, C], the most probable class of each image, and its true one."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (images, classes)).astype(np.float32))
    labels = np.where(rng.random(images) < 0.5, logits.argmax(1).numpy(), rng.integers(0, classes, images))
    return logits.softmax(1).numpy(), logits.argmax(1).numpy(), labels


def added(*batches: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]) -> Calibration:
    calibration = Calibration(batches[0][0].shape[1])
    for batch in batches:
        calibration.add(*batch)
    return calibration


def test_reliability_by_hand() -> None:
    """Four images: 0.9 and 0.95 sure, one of them right; 0.6 sure and right; 0.5 sure and wrong."""
    rows = np.array([[0.9, 0.1], [0.05, 0.95], [0.6, 0.4], [0.5, 0.5]], np.float32)
    found = added((rows, np.array([0, 1, 0, 0]), np.array([0, 0, 0, 1]))).reliability
    assert np.flatnonzero(found.images).tolist() == [7, 9, 13, 14]
    assert found.images[[7, 9, 13, 14]].tolist() == [1, 1, 1, 1]
    assert found.right[[7, 9, 13, 14]].tolist() == [0, 1, 1, 0]
    assert found.error == pytest.approx((0.5 + 0.4 + 0.1 + 0.95) / 4)
    assert found.excess == pytest.approx((0.9 + 0.95 + 0.6 + 0.5) / 4 - 0.5)


def test_a_certain_image_is_in_the_last_bin() -> None:
    rows = np.array([[1.0, 0.0]], np.float32)
    found = added((rows, np.array([0]), np.array([0])))
    assert found.reliability.images[-1] == 1
    assert found.reliability.error == 0
    assert found.by_class()["ap"][0] == 1


@given(st.integers(0, 1000))
def test_batches_add_up(seed: int) -> None:
    """Counts are the same to the last; confidences but for the order in which they are added."""
    rows, named, labels = drawn(seed, images=90)
    whole = added((rows, named, labels))
    parts = added(*((rows[part], named[part], labels[part]) for part in (slice(0, 13), slice(13, None))))
    assert np.array_equal(whole.reliability.images, parts.reliability.images)
    assert np.array_equal(whole.reliability.right, parts.reliability.right)
    assert whole.reliability.confidence == pytest.approx(parts.reliability.confidence, rel=1e-12)
    for name, values in whole.by_class().items():
        np.testing.assert_array_equal(values, parts.by_class()[name])


@pytest.mark.slow
@given(st.integers(0, 1000))
def test_areas_are_scikit_learns_of_the_binned_scores(seed: int) -> None:
    rows, named, labels = drawn(seed)
    found = added((rows, named, labels)).by_class()
    bins = bin_of(torch.from_numpy(rows).logit()).numpy()
    for c in range(rows.shape[1]):
        own = labels == c
        assert found["ap"][c] == pytest.approx(reference.average_precision_score(own, bins[:, c]), abs=1e-12)
        assert found["auroc"][c] == pytest.approx(reference.roc_auc_score(own, bins[:, c]), abs=1e-12)
        # And within what 1/32 of a logit can change of those of the probabilities themselves.
        assert found["auroc"][c] == pytest.approx(reference.roc_auc_score(own, rows[:, c]), abs=5e-3)


def test_what_is_not_known_is_no_number() -> None:
    rows, named, _ = drawn(0, images=4, classes=3)
    found = added((rows, named, np.zeros(4, np.int64))).by_class()
    assert found["ap"][0] == 1
    assert np.isnan([found["auroc"][0], found["ap"][1], found["auroc"][1]]).all()
    nothing = Calibration(3).reliability
    assert np.isnan([nothing.error, nothing.excess]).all()
    assert Calibration(MOST_CLASSES + 1).by_class() == {}


def test_a_record_is_read_as_it_was_written() -> None:
    calibration = added(drawn(1))
    record = json.loads(json_page(calibration.to_record()))
    back = Reliability.from_record(record["reliability"])
    assert back.error == calibration.reliability.error == record["reliability"]["error"]
    assert len(record["reliability"]["images"]) == CONFIDENCE_BINS
    assert set(record) == {"reliability", "ap", "auroc"}
