"""Whether a model is right as often as its probabilities say, and how well they order the images of a class.

Both need each image's probabilities, which no count of predictions has, so they are of the images that one
machine measures: a run's test images, or those given to ``fedvision evaluate``.

Shape letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedvision.tasks.metrics import ratio
from fedvision.tasks.score_bins import BINS, Floats, area_under_roc, average_precision, bin_of

CONFIDENCE_BINS = 15
"""Bins of equal width between 0 and 1, as Guo et al. 2017 have."""
MOST_CLASSES = 1000
"""Of so many classes there are areas under curves: their histograms take 16 kB a class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Images by how sure the model is of the class that it names, B bins of equal width between 0 and 1."""

    images: NDArray[np.int64]
    """Images [B]."""
    right: NDArray[np.int64]
    """Those of them that are named rightly [B]."""
    confidence: Floats
    """The sum of the probabilities of the named classes [B]."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy, NaN without images.

        ``sum_b n_b / N |right_b / n_b - confidence_b / n_b|`` (Naeini, Cooper, Hauskrecht 2015, AAAI; Guo et
        al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599).
        """
        return float(ratio(np.abs(self.right - self.confidence).sum(), self.images.sum()))

    @property
    def excess(self) -> float:
        """Mean confidence less accuracy: above 0 where the model is too sure; NaN without images."""
        return float(ratio(self.confidence.sum() - self.right.sum(), self.images.sum()))

    def to_record(self) -> dict[str, Any]:
        """Return JSON values."""
        columns = {name: values.tolist() for name, values in vars(self).items()}
        return {"error": self.error, "excess": self.excess, **columns}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what ``to_record`` wrote."""
        return cls(
            images=np.array(record["images"], np.int64),
            right=np.array(record["right"], np.int64),
            confidence=np.array(record["confidence"], np.float64),
        )


class Calibration:
    """Adds up what probabilities tell, batch by batch.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.reliability = Reliability(
            images=np.zeros(CONFIDENCE_BINS, np.int64),
            right=np.zeros(CONFIDENCE_BINS, np.int64),
            confidence=np.zeros(CONFIDENCE_BINS),
        )
        self._histograms = np.zeros((num_classes, 2, BINS), np.int64) if num_classes <= MOST_CLASSES else None

    def add(
        self, probabilities: NDArray[np.float32], predicted: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> None:
        """Count a batch.

        Args:
            probabilities: [B, C].
            predicted: The named class of each image [B].
            labels: Its true class [B].
        """
        confidence = np.take_along_axis(probabilities, predicted[:, None], 1)[:, 0].astype(np.float64)
        place = np.clip((confidence * CONFIDENCE_BINS).astype(np.int64), 0, CONFIDENCE_BINS - 1)
        np.add.at(self.reliability.images, place, 1)
        np.add.at(self.reliability.right, place, predicted == labels)
        np.add.at(self.reliability.confidence, place, confidence)
        if self._histograms is None or not len(labels):
            return
        own = np.arange(probabilities.shape[1])[None] == labels[:, None]
        # The logit orders images as the probability does.
        import torch  # what reads a record of these counts does without

        bins = bin_of(torch.from_numpy(probabilities).logit()).numpy()
        cells = (np.arange(own.shape[1]) * 2 + own) * BINS + bins
        self._histograms += np.bincount(cells.ravel(), minlength=self._histograms.size).reshape(
            self._histograms.shape
        )

    def by_class(self) -> dict[str, Floats]:
        """Return AP and AUROC of each class [C] against all others; NaN where undefined, nothing of many."""
        if self._histograms is None:
            return {}
        return {"ap": average_precision(self._histograms), "auroc": area_under_roc(self._histograms)}

    def to_record(self) -> dict[str, Any]:
        """Return JSON values: the reliability, and a column of each class's AP and AUROC."""
        return {
            "reliability": self.reliability.to_record(),
            **{name: values.tolist() for name, values in self.by_class().items()},
        }
