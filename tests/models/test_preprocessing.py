"""Transforms come from the weights, a library's or a run's, and a contradiction is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fedvision import simulate
from fedvision.config import ExperimentConfig, ModelConfig, TransformConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.part_config import part
from fedvision.models.parts import Part
from fedvision.models.preprocessing import Resolved, resolve
from fedvision.models.weights_file import WeightsFile
from tests.experiments import tiny

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESNET18 = "f37072fd"
"""With which the SHA-256 of torchvision's resnet18 begins."""


def file(sha256: str = "0" * 64, **description: Any) -> WeightsFile:
    return WeightsFile(where="model.weights = 'w'", state={}, sha256=sha256, description=description)


def resolved(use: str, given: WeightsFile | None = None, weights: str = "w", **transforms: Any) -> Any:
    model = ModelConfig(use=use, weights=weights if given else "")
    return resolve(TransformConfig(**transforms), model, {"": given} if given else {}, (224, 224))


def test_without_weights_what_is_left_out_is_usual() -> None:
    found = resolved("cnn", std=(0.3,))
    assert found.transforms == TransformConfig(mean=(0.5,), std=(0.3,), interpolation="bilinear")
    assert found.notices == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "given", "weights", "mean", "std", "interpolation"),
    [
        ("torchvision/resnet18", file(), "IMAGENET1K_V1", *IMAGENET, "bilinear"),
        ("torchvision/efficientnet_b0", file(), "IMAGENET1K_V1", *IMAGENET, "bicubic"),
        ("torchvision/resnet18", file(sha256=RESNET18.ljust(64, "0")), "copy.pth", *IMAGENET, "bilinear"),
        ("timm/vit_tiny_patch16_224", file(), "augreg_in21k", (0.5,) * 3, (0.5,) * 3, "bicubic"),
        ("efficientnet-lite0", file(), "any.pth", (127 / 255,), (128 / 255,), "bicubic"),
        (
            "torchvision/resnet18",
            file(
                transforms={"mean": [0.1], "std": [0.2], "size": 224, "interpolation": "nearest"},
                image={"height": 8, "width": 8},
            ),
            "runs/one",
            (0.1,),
            (0.2,),
            "nearest",
        ),
    ],
)
def test_weights_say_what_their_images_were_like(
    use: str, given: WeightsFile, weights: str, mean: Any, std: Any, interpolation: str
) -> None:
    found = resolved(use, given, weights)
    assert found.transforms == TransformConfig(mean=mean, std=std, interpolation=interpolation)
    assert found.notices == ()
    again = resolved(use, given, weights, mean=mean, std=std, interpolation=interpolation)
    assert again == found
    assert resolved(use, given, weights, mean=mean * (1 if len(mean) == 3 else 3)).transforms.std == std
    for key, value in {"mean": (0.3,), "std": (0.9,), "interpolation": "bilinear"}.items():
        if value != getattr(found.transforms, key):
            there = getattr(found.transforms, key)
            shown = f"{list(there)}" if isinstance(there, tuple) else f"{there!r}"
            with pytest.raises(ConfigError) as caught:
                resolved(use, given, weights, **{key: value})
            assert f"transforms.{key} = " in str(caught.value)
            assert f"model.weights = 'w' was trained with {shown}; leave the key out" in str(caught.value)


def test_another_size_than_that_of_the_training_is_told() -> None:
    model = ModelConfig(use="efficientnet-lite0", weights="w")
    small = resolve(TransformConfig(), model, {"": file()}, (32, 40))
    assert small.notices == (
        "model.weights = 'w' was trained on images of 224 x 224, and the network gets 32 x 40; "
        "transforms.size = 224 resizes them",
    )
    assert resolve(TransformConfig(size=224), model, {"": file()}, (32, 40)).notices == ()
    (sentence,) = resolve(TransformConfig(size=96), model, {"": file()}, (224, 224)).notices
    assert "the network gets 96 x 96" in sentence


def test_weights_of_unknown_training_are_refused_for_a_librarys_network_and_told_for_others() -> None:
    sentence = r"nothing tells how the images .*; set transforms\.mean and transforms\.std \(torchvision's"
    with pytest.raises(ConfigError, match=sentence):
        resolved("torchvision/resnet18", file())
    with pytest.raises(ConfigError, match=r"set transforms\.std \("):
        resolved("timm/resnet18", file(), mean=(0.5,))
    given = resolved("torchvision/resnet18", file(), mean=(0.4,), std=(0.2,))
    assert given.transforms == TransformConfig(mean=(0.4,), std=(0.2,), interpolation="bilinear")
    assert given.notices == ()
    own = resolved("cnn", file(), std=(0.2,))
    assert own.transforms == TransformConfig(mean=(0.5,), std=(0.2,), interpolation="bilinear")
    assert own.notices == (
        "model.weights = 'w': nothing tells how the images of its training were normalised; here it is with "
        "mean [0.5] and std [0.2]",
    )


def test_a_damaged_description_is_refused() -> None:
    for description in ({"transforms": {"mean": 3}, "image": {}}, {"classes": []}):
        with pytest.raises(ConfigError, match=r"model\.json beside it does not describe its images"):
            resolved("cnn", file(**description))


def cnn(**tables: Any) -> ExperimentConfig:
    return tiny(rounds=1, **{"transforms": {"mean": [0.4], "std": [0.3], "size": 10}, **tables})


@pytest.mark.slow
def test_a_run_that_begins_with_another_sees_its_images_alike(tmp_path: Path) -> None:
    simulate(cnn(), out=tmp_path / "first")
    follows = tiny(
        rounds=1,
        transforms={"size": 10},
        model={"use": "cnn", "width": 4, "dense": 8, "weights": str(tmp_path / "first")},
    )
    experiment = Experiment.build(follows)
    wanted = TransformConfig(mean=(0.4,), std=(0.3,), size=10, interpolation="bilinear")
    assert experiment.config.transforms == wanted
    assert experiment.notices() == Experiment.build(cnn()).notices()
    simulate(follows, out=tmp_path / "second")
    assert ExperimentConfig.load(tmp_path / "second/config.toml").transforms == wanted
    facts = json.loads((tmp_path / "second/model.json").read_text())
    assert facts["transforms"] == {"mean": [0.4], "std": [0.3], "size": 10, "interpolation": "bilinear"}
    # A run goes on with the file as it is written, open keys and all.
    simulate(dataclasses.replace(follows, rounds=2), out=tmp_path / "second", resume=True)


def test_gray_images_are_shown_as_colour_with_the_weights_own_constants(tmp_path: Path) -> None:
    import torchvision

    original = torchvision.models.squeezenet1_1(weights=None, num_classes=10).eval()
    save_file(original.state_dict(), tmp_path / "file.safetensors")
    config = tiny(
        transforms={"mean": list(IMAGENET[0]), "std": list(IMAGENET[1]), "size": 32},
        model={"use": "torchvision/squeezenet1_1", "weights": str(tmp_path / "file.safetensors")},
    )
    experiment = Experiment.build(config)
    names = experiment.model.state_dict()
    assert "backbone.features.0.weight" in names  # no layer that shows gray as colour in between
    from fedvision.training.client_trainer import loop_settings

    pixels = torch.from_numpy(experiment.dataset.train.images[:2])
    x = loop_settings(experiment.config, 1).forward.inputs(pixels)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    plain = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    plain = torch.nn.functional.interpolate(plain, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(x, plain)
    with torch.no_grad():
        torch.testing.assert_close(experiment.model.eval()(x), original(plain))


def parts_of(extractor: tuple[str, str], transformer: tuple[str, str], **transforms: Any) -> Resolved:
    pairs = {"extractor": extractor, "transformer": transformer}
    tables = {name: {"use": f"timm/{use}", "weights": tag} for name, (use, tag) in pairs.items()}
    files = {
        name: dataclasses.replace(file(), where=f"model.{name}.weights = {table['weights']!r}")
        for name, table in tables.items()
    }
    model = ModelConfig(use="fusion", args=tables)
    return resolve(TransformConfig(**transforms), model, files, (224, 224))


def test_parts_of_a_library_that_agree_on_their_images() -> None:
    found = parts_of(("resnet18", "a1_in1k"), ("deit_tiny_patch16_224", "fb_in1k"))
    assert (found.transforms.mean, found.transforms.std) == IMAGENET
    assert found.transforms.interpolation == "bicubic"
    assert not any("scale" in table for table in found.model.args.values())


def test_a_part_that_was_trained_with_other_constants_gets_them() -> None:
    """What it sees are the pixels less its own mean, divided by its own deviation."""
    found = parts_of(("resnet18", "a1_in1k"), ("vit_tiny_patch16_224", "augreg_in21k"))
    assert (found.transforms.mean, found.transforms.std) == IMAGENET
    assert "scale" not in found.model.args["extractor"]
    table = found.model.args["transformer"]
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(one)[:, None, None] for one in IMAGENET)
    other = Part(part("transformer", table), torch.nn.Identity(), False)
    torch.testing.assert_close(other.shown((pixels - mean) / std), (pixels - 0.5) / 0.5)
    assert not other.state_dict()
    again = resolve(found.transforms, found.model, dict.fromkeys(found.model.args, file()), (224, 224))
    assert again[:2] == found[:2]


def test_a_run_that_another_begins_with_hands_on_the_constants_of_its_parts() -> None:
    first = parts_of(("resnet18", "a1_in1k"), ("vit_tiny_patch16_224", "augreg_in21k"))
    constants = {key: list(getattr(first.transforms, key)) for key in ("mean", "std")}
    description = {
        "model": {"use": "fusion", **first.model.args},
        "transforms": constants | {"interpolation": "bicubic"},
        "image": {"height": 224, "width": 224},
    }
    plain = {name: table["use"] for name, table in first.model.args.items()}
    begun = ModelConfig(use="fusion", args=plain, weights="runs/first")
    found = resolve(TransformConfig(), begun, {"": file(**description)}, (224, 224))
    assert (found.transforms.mean, found.transforms.std) == IMAGENET
    assert part("transformer", found.model.args["transformer"]).scale == tuple(
        first.model.args["transformer"]["scale"]
    )


def test_parts_whose_images_were_resized_in_other_ways_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parts_of(("resnet18", "a1_in1k"), ("resnet18", "tv_in1k"))
    assert str(caught.value) == (
        "model.extractor.weights = 'a1_in1k' was trained with interpolation = 'bicubic' and "
        "model.transformer.weights = 'tv_in1k' with 'bilinear', and both see the same images; begin one of "
        "them with other weights"
    )
    with pytest.raises(
        ConfigError, match=r"transforms.mean = \[0.5\]: model.extractor.weights = 'a1_in1k' was"
    ):
        parts_of(("resnet18", "a1_in1k"), ("vit_tiny_patch16_224", "augreg_in21k"), mean=(0.5,))
