"""What a record says of measurements, and which of them cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedvision.flower import codec, sharing
from fedvision.flower.client_registry import SimulatedClientRegistry
from fedvision.server.scores import Scores
from fedvision.training.evaluate import Evaluation

GOOD = [[3, 1], [0, 2]]


def told(confusion: Any = GOOD, images: int | None = None, loss: float = 1.5) -> RecordDict:
    return codec.encode_evaluation(Evaluation(confusion=np.array(confusion), loss_sum=loss), images)


def scores(classes: int = 2) -> Scores:
    return Scores(SimulatedClientRegistry(clients=9, counts=(5,) * classes), {})


def test_counts_are_summed_before_they_are_divided_and_the_worst_client_is_kept_apart() -> None:
    replies = {0: told(), 4: told([[0, 2], [0, 0]], loss=0.5), 7: sharing.drop_counts(told())}
    good, refused = scores().usable(replies)
    assert (list(good), refused) == ([0, 4, 7], [])
    local = scores().local(good)
    assert local is not None
    assert (local["confusion"], local["loss"]) == ([[3, 3], [0, 2]], 2.0 / 8)
    assert local["scores"]["accuracy"] == 5 / 8
    assert local["accuracy"] == {"0": 5 / 6, "4": 0.0}
    assert (local["withheld"], local["spread"]["worst_client"]) == ([7], 4)


def test_what_nobody_can_read_is_nothing() -> None:
    assert scores().local({7: sharing.drop_counts(told())}) is None
    assert scores().local({}) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "its answer brought no measurement"),
        (RecordDict(), "lacks counts, loss or number of images"),
        (RecordDict({"metrics": MetricRecord({"loss": 1.0, "num-examples": 6})}), "lacks counts"),
        (RecordDict({**told(), "config": MetricRecord({})}), "lacks counts"),
        (RecordDict({**told(), "confusion": ArrayRecord([np.eye(2), np.eye(2)])}), "lacks counts"),
        (told(np.eye(2)), "counts are float64 [2, 2], not int64 [2, 2]"),
        (told([[6]]), "counts are int64 [1, 1], not int64 [2, 2]"),
        (told(6), "counts are int64 [], not int64 [2, 2]"),
        (told([[7, -1], [0, 0]]), "are not those of 6 images"),
        (told(GOOD, images=7), "are not those of 7 images"),
        (RecordDict({**told(images=7), "config": ConfigRecord({})}), "are not those of 7 images"),
    ],
)
def test_a_measurement_that_is_none_is_refused_by_name(content: RecordDict | None, reason: str) -> None:
    good, refused = scores().usable({3: content, 1: told()})
    assert list(good) == [1]
    (only,) = refused
    assert (only["client"], only["stage"]) == (3, "evaluation")
    assert reason in only["reason"]


def test_of_unknown_classes_counts_need_only_be_square() -> None:
    good, refused = scores(classes=0).usable({0: told(), 1: told([[1, 2]])})
    assert (list(good), [item["client"] for item in refused]) == ([0], [1])
