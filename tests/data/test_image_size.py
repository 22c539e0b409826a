"""``transforms.size``: images of another size for the network, whatever their batch, engine or layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedvision import load, simulate
from fedvision.config import ExperimentConfig, TransformConfig
from fedvision.data.transforms import input_shape, prepare, resize
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from tests.experiments import tiny

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
LARGER: dict[str, Any] = {"size": 12, "interpolation": "bicubic", "crop": 2, "flip": True}


def pixels(channels: int = 3, batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 9, 14, channels), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("side", [5, 20])
@pytest.mark.parametrize("interpolation", list(RESAMPLING))
def test_images_are_resized_as_pillow_does(interpolation: str, side: int) -> None:
    images = pixels(channels=1)
    found = resize(images.permute(0, 3, 1, 2).float(), side, interpolation)
    for image, own in zip(images.numpy(), found, strict=True):
        # Pillow computes gray images of floating point without rounding to whole numbers.
        drawn = Image.fromarray(image[..., 0].astype(np.float32), mode="F")
        wanted = np.asarray(drawn.resize((side, side), RESAMPLING[interpolation]))
        np.testing.assert_allclose(own[0].numpy(), wanted, atol=1e-3)


def test_nearest_takes_the_pixel_in_which_the_centre_lies() -> None:
    row = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize(row, 2, "nearest")[0, 0, 0].tolist() == [1, 3]
    assert resize(row, 8, "nearest")[0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_an_image_has_the_same_bits_in_any_batch_and_layout(
    interpolation: Any, channels: int, channels_last: bool
) -> None:
    images = pixels(channels)
    transform = prepare(TransformConfig(size=12, interpolation=interpolation, mean=(0.4,)), channels)
    found = transform.inputs(images, channels_last=channels_last)
    assert found.shape == (4, *input_shape(transform.config, images.shape[1:])) == (4, channels, 12, 12)
    row, area = 12 * channels, 144
    assert found.stride() == (
        (area * channels, 1, row, channels) if channels_last else (area * channels, area, 12, 1)
    )
    assert torch.equal(found, transform.inputs(images, channels_last=not channels_last))
    for number in range(len(images)):
        assert torch.equal(found[number : number + 1], transform.inputs(images[number : number + 1]))


def test_size_is_that_of_the_normalised_images() -> None:
    images = pixels()
    plain = prepare(TransformConfig(mean=(0.4,), std=(0.2,)), 3)
    sized = prepare(TransformConfig(mean=(0.4,), std=(0.2,), size=5), 3)
    assert torch.equal(sized.inputs(images), resize(plain.inputs(images), 5, "bilinear"))
    square = pixels()[:, :, :9]
    assert torch.equal(
        prepare(TransformConfig(size=9), 3).inputs(square), prepare(TransformConfig(), 3).inputs(square)
    )


def run(folder: Path, engine: str, **tables: Any) -> Any:
    return simulate(sized(**tables), engine=engine, out=folder)


def sized(**tables: Any) -> ExperimentConfig:
    return tiny(**{"rounds": 2, "transforms": LARGER, **tables})


@pytest.mark.slow
def test_every_engine_and_a_loaded_model_see_images_of_the_same_size(tmp_path: Path) -> None:
    serial, together = run(tmp_path / "serial", "serial"), run(tmp_path / "together", "vectorized")
    for name, tensor in serial.state.items():
        torch.testing.assert_close(tensor, together.state[name], atol=1e-6, rtol=1e-5)
    plain = simulate(tiny(rounds=2), engine="serial", out=tmp_path / "plain")
    assert serial.state["head.weight"].shape == plain.state["head.weight"].shape
    assert serial.rounds[-1]["server"]["loss"] != plain.rounds[-1]["server"]["loss"]
    model = load(tmp_path / "serial")
    assert (model.description.transforms.size, model.description.transforms.interpolation) == (12, "bicubic")
    scores = model.evaluate(Experiment.build(sized()).dataset)
    assert scores.loss == serial.rounds[-1]["server"]["loss"]


def test_the_network_is_built_for_the_size_and_inspect_shows_it() -> None:
    vit = {"use": "vit", "dim": 8, "depth": 1, "heads": 2}
    experiment = Experiment.build(sized(model=vit))
    places = [t.shape[-2] for name, t in experiment.model.state_dict().items() if "position" in name]
    assert places == [(12 // 4) ** 2]
    assert "the network gets 1 x 12 x 12 of images of 8 x 8 x 1, bicubic" in inspect_experiment(experiment)
    with pytest.raises(ConfigError, match=r"transforms\.crop is 12 pixels of images of 12 x 12"):
        Experiment.build(sized(transforms={**LARGER, "crop": 12}))
    Experiment.build(sized(transforms={**LARGER, "crop": 11}))
