"""Measurement: counts and sums that do not depend on the batch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.data.shards import Shard
from fedvision.losses.logits import sharpness
from fedvision.losses.margins import ldam
from fedvision.training.evaluate import evaluate, predict
from tests.training.test_loop import CLASSES, make_model, make_shard, settings


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_counts_and_loss_are_those_of_all_images_at_once(batch_size: int) -> None:
    model, shard = make_model(nn.Dropout(0.5)), make_shard()
    x = (torch.from_numpy(shard.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = model.eval()(x)
    model.train()
    found = evaluate(model, shard, settings().forward, batch_size=batch_size, num_classes=CLASSES)
    assert found.loss_sum == pytest.approx(
        float(F.cross_entropy(logits, torch.from_numpy(shard.labels), reduction="sum")), rel=1e-5
    )
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for label, predicted in zip(shard.labels, logits.argmax(1).tolist(), strict=True):
        expected[label, predicted] += 1
    assert np.array_equal(found.stats.tables()[0], expected)
    assert found.examples == len(shard)


def test_an_empty_shard_counts_nothing() -> None:
    shard = make_shard().take(np.empty(0, np.int64))
    found = evaluate(make_model(), shard, settings().forward, batch_size=8, num_classes=CLASSES)
    assert (found.examples, found.loss_sum, found.stats.shape) == (0, 0.0, (1, CLASSES, CLASSES))


def test_predictions_come_in_the_shards_order_with_their_probability() -> None:
    model, shard = make_model(), make_shard()
    order = np.array([4, 0, 9])
    classes, confidence, _ = predict(model, shard, settings().forward, batch_size=4, num_classes=CLASSES)
    some, sure, _ = predict(
        model,
        Shard(images=shard.images, labels=shard.labels, indices=order),
        settings().forward,
        batch_size=2,
        num_classes=CLASSES,
    )
    assert np.array_equal(some, classes[order])
    assert np.allclose(sure, confidence[order])
    assert np.all((confidence >= 1 / CLASSES) & (confidence <= 1))


def test_a_loss_with_a_scale_is_measured_with_it() -> None:
    """LDAM trains softmax(s z): loss and confidence are of these probabilities, the classes are the same."""
    model, shard = make_model(), make_shard()
    x = (torch.from_numpy(shard.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = model.eval()(x)
    scale = sharpness(ldam(torch.ones(CLASSES, dtype=torch.int64), scale=30.0))
    found = evaluate(
        model,
        shard,
        settings().forward,
        batch_size=8,
        num_classes=CLASSES,
        sharpness=scale,
    )
    expected = F.cross_entropy(30 * logits, torch.from_numpy(shard.labels), reduction="sum")
    assert found.loss_sum == pytest.approx(float(expected), rel=1e-5)
    _, confidence, _ = predict(
        model, shard, settings().forward, batch_size=8, num_classes=CLASSES, sharpness=scale
    )
    assert confidence == pytest.approx((30 * logits).softmax(1).amax(1).numpy(), rel=1e-4)


def test_cross_entropy_is_measured_as_it_is() -> None:
    assert sharpness(F.cross_entropy) == 1.0
