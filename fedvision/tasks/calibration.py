"""Whether a model is right as often as its probabilities say, and how well they order the images of a class.

Both need each image's probabilities, which no count of predictions has. They are counted where these are (a
server's test images, those given to ``fedvision evaluate``, what a client holds out) as sums that add up over
machines to those of all the images on one, exactly: ``training.held_out_calibration``.

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
CONFIDENCE_UNIT = 2.0**-30
"""To which confidences are rounded, so that their sums are exact in any order; above 1/128 float32 has no
finer ones."""
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
    """The sum of the probabilities of the named classes [B], each in whole ``CONFIDENCE_UNIT``."""

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
        most_classes: Up to which C scores are counted by class, for areas under curves.
    """

    def __init__(self, num_classes: int, *, most_classes: int = MOST_CLASSES) -> None:
        self.reliability = Reliability(
            images=np.zeros(CONFIDENCE_BINS, np.int64),
            right=np.zeros(CONFIDENCE_BINS, np.int64),
            confidence=np.zeros(CONFIDENCE_BINS),
        )
        self._histograms = np.zeros((num_classes, 2, BINS), np.int64) if num_classes <= most_classes else None

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
        confidence = np.rint(confidence / CONFIDENCE_UNIT) * CONFIDENCE_UNIT
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

    def sums(self) -> dict[str, NDArray[Any]]:
        """Return all that was counted, which adds up over parts of the images.

        Returns:
            ``images`` int64 [B], ``right`` int64 [B] and ``confidence`` float64 [B] of ``Reliability``; up
            to ``most_classes`` also ``scores`` int64 [C, 2, bins]: images without and with each class by the
            logit of its probability.
        """
        counted = None if self._histograms is None else {"scores": self._histograms}
        return {**vars(self.reliability), **(counted or {})}

    @classmethod
    def of_sums(cls, sums: Mapping[str, NDArray[Any]], num_classes: int) -> Self:
        """Return what was counted in all parts together.

        Args:
            sums: The parts' ``sums``, added up.
            num_classes: C.

        Raises:
            ValueError: They are no such sums over C classes.
        """
        names = ("images", "right", "confidence")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (CONFIDENCE_BINS,))
        shapes |= {"scores": (num_classes, 2, BINS)} if "scores" in sums else {}
        if {name: array.shape for name, array in sums.items()} != shapes:
            raise ValueError(f"they are no sums of a calibration over {num_classes} classes")
        found = cls(num_classes, most_classes=0)
        found.reliability = Reliability(**{name: sums[name] for name in names})
        found._histograms = sums.get("scores")
        return found

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
