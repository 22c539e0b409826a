"""Features of an image and of its mirror image: their mean, by every path that computes features."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.api import simulate
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.models.meta import model_with
from fedvision.models.mirrored import average_with_mirror_image
from fedvision.trained_model import load
from tests.experiments import tiny


def test_the_mean_by_hand() -> None:
    backbone = nn.Flatten()
    average_with_mirror_image(backbone)
    image = torch.tensor([[[[1.0, 2.0, 6.0], [0.0, 4.0, 8.0]]]])
    assert backbone(image).tolist() == [[3.5, 2.0, 3.5, 4.0, 4.0, 4.0]]


def mirrored(**tables: Any) -> Any:
    base: dict[str, Any] = {
        "rounds": 1,
        "model": {"use": "cnn", "width": 4, "dense": 16, "frozen": ["backbone.*"], "mirrored": True},
        "strategy": {"use": "closed-form"},
        "training": {"device": "cpu"},
    }
    return tiny(**base | tables)


def test_copies_keep_it_and_the_tensors_keep_their_names() -> None:
    plain = Experiment.build(mirrored(model={"use": "cnn", "width": 4, "dense": 16})).model
    model = Experiment.build(mirrored()).model
    assert isinstance(plain, ImageModel)
    assert isinstance(model, ImageModel)
    assert list(model.state_dict()) == list(plain.state_dict())
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain.eval(), model.eval()
    with torch.no_grad():
        wanted = (plain.backbone(images) + plain.backbone(images.flip(-1))) / 2
        assert not torch.equal(wanted, plain.backbone(images))
        for one in (model, model_with(model, {}), pickle.loads(pickle.dumps(model))):
            assert torch.equal(one.eval().backbone(images), wanted)
            assert torch.equal(one.backbone(images.flip(-1)), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_a_run_and_its_final_model_have_the_same_features(cached: bool, tmp_path: Path) -> None:
    training = {"device": "cpu", "cache_features": cached}
    found = simulate(mirrored(training=training), out=tmp_path / "run")
    plain = mirrored(
        training=training, model={**mirrored().model.args, "use": "cnn", "frozen": ["backbone.*"]}
    )
    other = simulate(plain, out=tmp_path / "plain")
    assert not torch.equal(found.state["head.weight"], other.state["head.weight"])
    images = Experiment.build(mirrored()).dataset.test
    assert images is not None
    model = load(tmp_path / "run")
    right = np.mean(model.predict(images.images).labels == images.labels)
    assert right == pytest.approx(found.scores["accuracy"])
    flipped = model.predict(np.ascontiguousarray(images.images[:, :, ::-1]))
    assert np.mean(flipped.labels == model.predict(images.images).labels) > 0.99


def one_piece(*, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], num_classes))


def test_a_network_without_halves_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.mirrored = true needs a network of backbone and head"):
        Experiment.build(tiny(model={"use": f"{__name__}:one_piece", "mirrored": True}))
