"""Measurements in a record, and which of them cannot be used."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedvision.flower import masked_codec
from fedvision.flower.client_registry import SimulatedClientRegistry
from fedvision.server.scores import Scores
from fedvision.tasks.classification import Classification

GOOD = [[3, 1], [0, 2]]


def reply_of(confusion: Any = GOOD, images: int | None = None, loss: float = 1.5) -> RecordDict:
    """Return a client's answer with a matrix of whatever numbers."""
    matrix = np.array(confusion)[None]
    return masked_codec.encode_hidden(matrix, int(matrix.sum()) if images is None else images, loss)


def reply_of_pairs(
    pairs: Any = ((0, 1, 3), (3, 1, 2)), images: Any = 6, classes: Any = 2, kind: Any = np.int64
) -> RecordDict:
    """Return a client's answer with pairs of classes of whatever numbers."""
    shape = [1, classes, classes] if isinstance(classes, int) else classes
    metrics = MetricRecord({"loss": 1.5, "num-examples": images, "counts-shape": shape})
    return RecordDict({"metrics": metrics, "counts-cells": ArrayRecord([np.array(pairs, kind)])})


def scores(classes: int = 2) -> Scores:
    return Scores(Classification(), SimulatedClientRegistry(clients=9, counts=(5,) * classes), {})


def test_pooled_scores_and_the_worst_client() -> None:
    """Counts are summed before they are divided and the worst client is kept apart."""
    replies = {
        0: reply_of(),
        4: reply_of([[0, 2], [0, 0]], loss=0.5),
        7: masked_codec.drop_counts(reply_of()),
    }
    good, refused = scores().usable(replies)
    assert (list(good), refused) == ([0, 4, 7], [])
    local = scores().local(good)
    assert local is not None
    assert (local["confusion"], local["loss"]) == ([[3, 3], [0, 2]], 2.0 / 8)
    assert local["scores"]["accuracy"] == 5 / 8
    assert local["accuracy"] == {"0": 5 / 6, "4": 0.0}
    assert (local["withheld"], local["spread"]["worst_client"]) == ([7], 4)
    assert local["measured_by"] == 2


def test_what_nobody_can_read_is_nothing() -> None:
    good, _ = scores().usable({7: masked_codec.drop_counts(reply_of())})
    assert scores().local(good) is None
    assert scores().local({}) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "its answer brought no measurement"),
        (RecordDict(), "lacks counts, loss or number of images"),
        (RecordDict({"metrics": MetricRecord({"loss": 1.0, "num-examples": 6})}), "lacks counts"),
        (RecordDict({**reply_of(), "config": MetricRecord({})}), "lacks counts"),
        (RecordDict({**reply_of(), "counts": ArrayRecord([np.eye(2), np.eye(2)])}), "lacks counts"),
        (reply_of(np.eye(2)), "counts are float64 [1, 2, 2], not int64 [1, 2, 2]"),
        (reply_of([[6]]), "counts are int64 [1, 1, 1], not int64 [1, 2, 2]"),
        (reply_of(6), "counts are int64 [1], not int64 [1, 2, 2]"),
        (
            reply_of_pairs([[0, 1, 3], [3, 1, 2]], classes=3),
            "counts are of the shape [1, 3, 3], not [1, 2, 2]",
        ),
        (
            reply_of_pairs([[0], [6]], classes=2**40),
            "counts are of the shape [1, 1099511627776, 1099511627776], not [1, 2",
        ),
        (reply_of_pairs([[0], [6]], classes=-2), "counts are of the shape [1, -2, -2], not [1, 2, 2]"),
        (reply_of_pairs([[0], [6]], classes=[1.0, math.inf, 2.0]), "lacks counts, loss or number of images"),
        (reply_of_pairs([[0], [6]], classes=2.0), "lacks counts, loss or number of images"),
        (reply_of_pairs([[0], [6]], classes=[2, 2]), "lacks counts, loss or number of images"),
        (reply_of_pairs([[0], [6]], images=math.inf), "lacks counts, loss or number of images"),
        (reply_of_pairs([[0], [6]], kind=np.float64), "cells are float64 [2, 1], not int64 [2, P]"),
        (reply_of_pairs([[0], [6], [0]]), "cells are int64 [3, 1], not int64 [2, P]"),
        (reply_of_pairs(6), "cells are int64 [], not int64 [2, P]"),
        (reply_of_pairs([[0, 4], [3, 3]]), "not rising numbers >= 0 and < 4"),
        (reply_of_pairs([[-1, 3], [3, 3]]), "not rising numbers >= 0 and < 4"),
        (reply_of_pairs([[3, 0], [3, 3]]), "not rising numbers >= 0 and < 4"),
        (reply_of_pairs([[3, 3], [3, 3]]), "not rising numbers >= 0 and < 4"),
        (reply_of_pairs([[0, 3], [6, 0]]), "cells in which there are no images"),
        (reply_of_pairs([[0, 3], [7, -1]]), "cells in which there are no images"),
        (reply_of_pairs(images=7), "are not those of 7 images"),
        (reply_of_pairs([[0, 1, 3], [2**63 - 1, 2**63 - 1, 8]]), "are not those of 6 images"),
        (
            RecordDict({**reply_of_pairs(), "config": ConfigRecord({"group": "g"})}),
            "masked counts are no",
        ),
        (reply_of([[7, -1], [0, 0]]), "are not those of 6 images"),
        (reply_of(GOOD, images=7), "are not those of 7 images"),
        (RecordDict({**reply_of(images=7), "config": ConfigRecord({})}), "are not those of 7 images"),
    ],
)
def test_a_measurement_that_is_none_is_refused_by_name(content: RecordDict | None, reason: str) -> None:
    good, refused = scores().usable({3: content, 1: reply_of()})
    assert list(good) == [1]
    (only,) = refused
    assert (only["client"], only["stage"]) == (3, "evaluation")
    assert reason in only["reason"]


def test_no_counts_from_a_client_that_withholds_them() -> None:
    withheld = {"config": ConfigRecord({"group": "none"})}
    replies = {
        0: RecordDict({**reply_of_pairs(np.empty((2, 0))), **withheld}),
        1: RecordDict({**reply_of_pairs(), **withheld}),
    }
    good, refused = scores().usable(replies)
    assert (list(good), [item["client"] for item in refused]) == ([0], [1])


def test_pairs_and_matrices_add_up() -> None:
    good, _ = scores().usable({0: reply_of(), 1: reply_of_pairs(), 2: reply_of_pairs([[2], [5]], images=5)})
    local = scores().local(good)
    assert local is not None
    assert local["confusion"] == [[6, 2], [5, 4]]
    assert (local["loss"], local["scores"]["accuracy"]) == (4.5 / 17, 10 / 17)


def test_of_unknown_classes_pairs_may_be_of_any_sensible_number() -> None:
    """What is made has an entry for each class: its size must not be a stranger's choice."""
    few, many = (reply_of_pairs([[0], [6]], classes=classes) for classes in (1 << 20, 1 << 21))
    good, refused = scores(classes=0).usable({0: few, 1: many})
    assert (list(good), [item["client"] for item in refused]) == ([0], [1])
    assert "of the shape [1, 2097152, 2097152], not of up to 1048576 classes" in refused[0]["reason"]


def test_of_unknown_classes_counts_need_only_be_square() -> None:
    good, refused = scores(classes=0).usable({0: reply_of(), 1: reply_of([[1, 2]])})
    assert (list(good), [item["client"] for item in refused]) == ([0], [1])
