"""What images must be like for a network that begins with weights: as in their training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fedvision.config import ModelConfig, TransformConfig
from fedvision.errors import ConfigError
from fedvision.families import family_of
from fedvision.models.pretrained import Preprocessing, published_of
from fedvision.models.weights_file import Named, WeightsFile, named

_KEYS = ("mean", "std", "interpolation")
_OTHERS = TransformConfig(mean=(0.5,), std=(0.25,), interpolation="bilinear")
"""Where nobody says another."""


class Resolved(NamedTuple):
    """The transforms of an experiment with nothing left open."""

    transforms: TransformConfig
    """``mean``, ``std`` and ``interpolation`` are given."""
    notices: tuple[str, ...] = ()
    """What a person should know of them."""


def resolve(
    transforms: TransformConfig,
    model: ModelConfig,
    files: Mapping[str, WeightsFile],
    image: tuple[int, int],
) -> Resolved:
    """Give ``[transforms]`` what the weights were trained with, where it says nothing.

    Resolved ones stay as they are. All parts of a network see the same images.

    Args:
        transforms: Those of the experiment.
        model: Its ``[model]``.
        files: What ``model.weights`` and its parts name, by the name of the part.
        image: (H, W) of the data's images.

    Raises:
        ConfigError: It says something else than the weights, two parts were trained with different images, or
            what a library's network was trained with is unknown.
    """
    sources = named(model)
    trained = {name: _training_of(sources[name], file) for name, file in files.items()}
    notices = list[str]()
    settled = transforms
    for name, known in trained.items():
        if known is not None:
            settled, told = _settled(transforms, known, files[name], image)
            notices += told
    _check_agreement([(files[name].where, known) for name, known in trained.items() if known])
    settled = _completed(settled, _OTHERS)
    for name, known in trained.items():
        if known is None:
            notices += _unknown(transforms, settled, sources[name], files[name])
    return Resolved(settled, tuple(notices))


def _check_agreement(known: Sequence[tuple[str, Preprocessing]]) -> None:
    """Refuse parts whose weights were trained with different images.

    Raises:
        ConfigError: Two were.
    """
    for key, (first, one), (second, other) in itertools.product(_KEYS, known, known):
        here, there = getattr(one, key), getattr(other, key)
        if _every(here) != _every(there):
            raise ConfigError(
                f"{first} was trained with {key} = {_shown(here)} and {second} with {_shown(there)}, and "
                "both see the same images; begin one of them with other weights"
            )


def _settled(
    transforms: TransformConfig, trained: Preprocessing, file: WeightsFile, image: tuple[int, int]
) -> tuple[TransformConfig, tuple[str, ...]]:
    """Return transforms as a file's weights need them, and notices.

    Raises:
        ConfigError: They say something else.
    """
    for key in _KEYS:
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
    return _completed(transforms, found), notices


def _completed(transforms: TransformConfig, others: TransformConfig) -> TransformConfig:
    return replace(
        transforms,
        mean=transforms.mean or others.mean,
        std=transforms.std or others.std,
        interpolation=transforms.interpolation or others.interpolation,
    )


def _training_of(model: Named, file: WeightsFile) -> Preprocessing | None:
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


def _unknown(
    transforms: TransformConfig, settled: TransformConfig, model: Named, file: WeightsFile
) -> tuple[str, ...]:
    """Say that the constants for a file of which nothing is known are not its own.

    Args:
        transforms: Those of the experiment.
        settled: The constants that it gets.
        model: What names the file.
        file: The file.

    Raises:
        ConfigError: The network is a library's: its weights are seldom trained with others' constants.
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
        f"mean {_shown(settled.mean)} and std {_shown(settled.std)}"
    )
    return (sentence,) if missing else ()


def _every(value: Any) -> Any:
    """Return constants for three channels where one serves all."""
    return tuple(value) * 3 if isinstance(value, tuple) and len(value) == 1 else value


def _shown(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
