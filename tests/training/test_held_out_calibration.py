"""What clients tell of a model's probabilities adds up to one pass over all their images, exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedvision.aggregation.fixed_point import FixedPointSum, to_fixed_point
from fedvision.data.shards import Shard
from fedvision.errors import ConfigError
from fedvision.tasks.calibration import Calibration
from fedvision.tasks.score_bins import bin_of
from fedvision.training.client_trainer import loop_settings
from fedvision.training.evaluate import predict
from fedvision.training.held_out_calibration import MOST_CLASSES, calibration, pooled, query
from fedvision.training.statistics import LocalData, compute_statistic
from tests.experiments import tiny

NETWORK = nn.Flatten()
"""An image of one row of C pixels is its own logits, to the bit in any batch."""


def held_out(seed: int, images: int, classes: int, batch_size: int = 7) -> LocalData:
    """Return a client that keeps all of its images from training."""
    rng = np.random.default_rng(seed)
    shard = Shard(
        images=rng.integers(0, 256, (images, 1, classes, 1), np.uint8),
        labels=rng.integers(0, classes, images),
        indices=np.arange(images),
    )
    return LocalData(
        shard=shard.take(np.arange(0)),
        settings=loop_settings(tiny(), 1).forward,
        num_classes=classes,
        batch_size=batch_size,
        held_out=shard,
    )


def parts(data: LocalData, cuts: list[int]) -> list[LocalData]:
    assert data.held_out is not None
    pieces = np.split(np.arange(len(data.held_out)), sorted(cuts))
    return [
        replace(data, held_out=data.held_out.take(piece), batch_size=1 + number)
        for number, piece in enumerate(pieces)
    ]


@pytest.mark.slow
@given(st.integers(0, 1000), st.sampled_from([2, 5, 400]), st.lists(st.integers(0, 60), max_size=4))
def test_sums_over_clients_are_those_of_one_pass(seed: int, classes: int, cuts: list[int]) -> None:
    """Of 400 classes most confidences are below 1/128, where float32 has steps finer than the unit."""
    data, adding = held_out(seed, 60, classes), FixedPointSum()
    asked = query(0.3)
    for part in parts(data, cuts):
        adding.add(to_fixed_point(compute_statistic(asked, NETWORK, part)))
    clients, found = pooled(adding.total.values(), classes)
    assert data.held_out is not None
    whole = predict(
        NETWORK, data.held_out, data.settings, batch_size=60, num_classes=classes, sharpness=0.3
    ).calibration
    assert clients == sum(len(part.held_out or ()) > 0 for part in parts(data, cuts))
    sums, expected = found.sums(), whole.sums()
    if classes > MOST_CLASSES:
        assert expected.pop("scores").any()
        assert found.by_class() == {}
    assert sums.keys() == expected.keys()
    for name, array in expected.items():
        assert sums[name].dtype == array.dtype
        assert np.array_equal(sums[name], array), name
    assert found.reliability.error == whole.reliability.error
    assert found.reliability.images.sum() == 60


def test_an_image_by_hand() -> None:
    """Two classes, logits 2 and -2 (a white and a black pixel): class 0 has 1 / (1 + exp(-4)) = 0.982."""
    data = held_out(0, 1, 2)
    assert data.held_out is not None
    data.held_out.images[0, 0, :, 0] = (255, 0)
    data.held_out.labels[0] = 1
    sums = calibration(model=NETWORK, data=data, tensors={})
    assert sums["images"].tolist() == [0] * 14 + [1]
    assert sums["right"].sum() == 0
    assert float(sums["confidence"].sum()) == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)
    place = int(bin_of(torch.tensor(4.0 - 1e-3)))
    assert sums["scores"][0, 0, place] == sums["scores"][1, 1, 1023 - place] == 1
    assert sums["scores"].sum() == 2
    scaled = calibration(model=NETWORK, data=data, tensors=dict(query(0.1).tensors))
    assert float(scaled["confidence"].sum()) == pytest.approx(1 / (1 + np.exp(-0.4)), abs=1e-6)
    sharp = calibration(model=NETWORK, data=replace(data, sharpness=0.1), tensors={})
    assert torch.equal(sharp["confidence"], scaled["confidence"])


def test_a_client_without_held_out_images_has_zeros_of_the_same_names() -> None:
    data = held_out(0, 5, 3)
    assert data.held_out is not None
    nobody = calibration(model=NETWORK, data=replace(data, held_out=data.shard), tensors={})
    somebody = calibration(model=NETWORK, data=data, tensors={})
    assert {name: t.shape for name, t in nobody.items()} == {name: t.shape for name, t in somebody.items()}
    assert not any(tensor.any() for tensor in nobody.values())


def test_what_cannot_be_computed_is_refused() -> None:
    data = held_out(0, 5, 3)
    with pytest.raises(ConfigError, match=r"kept out of training; set evaluation\.holdout > 0"):
        calibration(model=NETWORK, data=replace(data, held_out=None), tensors={})
    several = loop_settings(tiny(task={"use": "multi-label"}, loss="class-balanced"), 1).forward
    with pytest.raises(ConfigError, match="one class each, which the task 'multi-label' has not"):
        calibration(model=NETWORK, data=replace(data, settings=several), tensors={})


@pytest.mark.parametrize(
    ("name", "value"),
    [("right", 6), ("images", -1), ("confidence", 5.5), ("confidence", -0.1), ("scores", -1), ("scores", 9)],
)
def test_sums_that_count_no_images_are_refused(name: str, value: float) -> None:
    sums = {
        key: t.numpy().copy()
        for key, t in calibration(model=NETWORK, data=held_out(0, 5, 3), tensors={}).items()
    }
    assert pooled(sums, 3)[0] == 1
    sums[name].flat[-1] = value
    with pytest.raises(ValueError, match="count no images"):
        pooled(sums, 3)


def test_sums_of_another_form_are_refused() -> None:
    sums = Calibration(3).sums()
    with pytest.raises(ValueError, match="no sums of a calibration over 4 classes"):
        pooled({"clients": np.zeros(1, np.int64), **sums}, 4)
    with pytest.raises(ValueError, match="no sums of a calibration over 3 classes"):
        Calibration.of_sums({"images": sums["images"]}, 3)
    assert pooled({}, 3)[0] == 0
