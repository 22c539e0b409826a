"""What images must be like for a network that begins with weights: as in their training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from fedvision.config import ModelConfig, TransformConfig
from fedvision.errors import ConfigError
from fedvision.families import family_of
from fedvision.models.pretrained import Preprocessing, published_of
from fedvision.models.weights_file import WeightsFile

_OTHERS = TransformConfig(mean=(0.5,), std=(0.25,), interpolation="bilinear")
"""Where nobody says another."""


class Resolved(NamedTuple):
    """The transforms of an experiment with nothing left open."""

    transforms: TransformConfig
    """``mean``, ``std`` and ``interpolation`` are given."""
    notices: tuple[str, ...] = ()
    """What a person should know of them."""


def resolve(
    transforms: TransformConfig, model: ModelConfig, file: WeightsFile | None, image: tuple[int, int]
) -> Resolved:
    """Give ``[transforms]`` what the weights were trained with, where it says nothing.

    Resolved ones stay as they are.

    Args:
        transforms: Those of the experiment.
        model: Its ``[model]``.
        file: What ``model.weights`` names; None where it is empty.
        image: (H, W) of the data's images.

    Raises:
        ConfigError: It says something else than the weights, or what they were trained with is unknown and
            the network is a library's.
    """
    if file is None:
        return Resolved(_completed(transforms, _OTHERS))
    trained = _training_of(model, file)
    if trained is None:
        return _unknown(transforms, model, file)
    for key in ("mean", "std", "interpolation"):
        own, there = getattr(transforms, key), getattr(trained, key)
        if own and _every(own) != _every(there):
            raise ConfigError(
                f"transforms.{key} = {_shown(own)}: {file.where} was trained with {_shown(there)}; leave the "
                "key out"
            )
    found = TransformConfig(mean=trained.mean, std=trained.std, interpolation=trained.interpolation)  # type: ignore[arg-type]
    height, width = (transforms.size,) * 2 if transforms.size else image
    notices: tuple[str, ...] = ()
    if trained.size and (height, width) != (trained.size, trained.size):
        notices = (
            f"{file.where} was trained on images of {trained.size} x {trained.size}, and the network gets "
            f"{height} x {width}; transforms.size = {trained.size} resizes them",
        )
    return Resolved(_completed(transforms, found), notices)


def _completed(transforms: TransformConfig, others: TransformConfig) -> TransformConfig:
    return replace(
        transforms,
        mean=transforms.mean or others.mean,
        std=transforms.std or others.std,
        interpolation=transforms.interpolation or others.interpolation,
    )


def _training_of(model: ModelConfig, file: WeightsFile) -> Preprocessing | None:
    """Return what is known of the training of a file's weights."""
    if file.description:
        return _described(file)
    published = published_of(model.use)
    named = [published[name] for name in (model.weights, "") if name in published]
    same = [one for one in published.values() if one.digest and file.sha256.startswith(one.digest)]
    return next((one.preprocessing for one in (*named[:1], *same)), None)


def _described(file: WeightsFile) -> Preprocessing:
    """Return what a run folder's description says.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        found, image = file.description["transforms"], file.description["image"]
        square = image["height"] if image["height"] == image["width"] else 0
        return Preprocessing(
            mean=tuple(map(float, found["mean"])),
            std=tuple(map(float, found["std"])),
            size=int(found.get("size", 0)) or square,
            interpolation=str(found.get("interpolation", "bilinear")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file.where}: the model.json beside it does not describe its images; copy the file elsewhere"
        ) from error


def _unknown(transforms: TransformConfig, model: ModelConfig, file: WeightsFile) -> Resolved:
    """Take the usual constants for a file of which nothing is known, and say so.

    Raises:
        ConfigError: The network is a library's: its weights are seldom trained with these.
    """
    missing = [f"transforms.{key}" for key in ("mean", "std") if not getattr(transforms, key)]
    if missing and family_of("model", model.use):
        raise ConfigError(
            f"{file.where}: nothing tells how the images of its training were normalised; set "
            f"{' and '.join(missing)} (torchvision's own weights: mean = [0.485, 0.456, 0.406], "
            "std = [0.229, 0.224, 0.225])"
        )
    sentence = (
        f"{file.where}: nothing tells how the images of its training were normalised; here it is with "
        f"mean {_shown(transforms.mean or _OTHERS.mean)} and std {_shown(transforms.std or _OTHERS.std)}"
    )
    return Resolved(_completed(transforms, _OTHERS), (sentence,) if missing else ())


def _every(value: Any) -> Any:
    """Return constants for three channels where one serves all."""
    return tuple(value) * 3 if isinstance(value, tuple) and len(value) == 1 else value


def _shown(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
