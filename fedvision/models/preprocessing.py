"""What images must be like for a network that begins with weights: as in their training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fedvision.config import ModelConfig, TransformConfig
from fedvision.errors import MALFORMED, ConfigError
from fedvision.families import family_of
from fedvision.models.part_config import PartConfig, parts, with_constants
from fedvision.models.pretrained import Preprocessing, published_of
from fedvision.models.weights_file import Named, WeightsFile, named
from fedvision.tables import build

_KEYS = ("mean", "std", "interpolation")
_OTHERS = TransformConfig(mean=(0.5,), std=(0.25,), interpolation="bilinear")
"""Where nobody says another."""


class Resolved(NamedTuple):
    """The transforms of an experiment with nothing left open."""

    transforms: TransformConfig
    """``mean``, ``std`` and ``interpolation`` are given."""
    model: ModelConfig
    """The network's table; parts have ``scale`` and ``shift`` where their weights need other constants."""
    notices: tuple[str, ...] = ()
    """What a person should know of them."""


def resolve(
    transforms: TransformConfig,
    model: ModelConfig,
    files: Mapping[str, WeightsFile],
    image: tuple[int, int],
) -> Resolved:
    """Give ``[transforms]`` what the weights were trained with, where it says nothing.

    All parts of a network see the same images. A part whose weights were trained with another mean and
    deviation than the first one's gets ``scale`` and ``shift``. Resolved ones stay as they are.

    Args:
        transforms: Those of the experiment.
        model: Its ``[model]``.
        files: What ``model.weights`` and its parts name, by the name of the part.
        image: (H, W) of the data's images.

    Raises:
        ConfigError: It says something else than the weights, two parts were trained with images that were
            resized in other ways, or what a library's network was trained with is unknown.
    """
    sources = named(model)
    trained = {name: _training_of(sources[name], file) for name, file in files.items()}
    known = {name: one for name, one in trained.items() if one is not None}
    _check_interpolation([(files[name].where, one) for name, one in known.items()])
    constants: dict[str, dict[str, Any]] = _of_run(model, files.get(""))
    notices, settled = list[str](), transforms
    for name, one in known.items():
        if not _rescaled(sources[name]):
            _check(transforms, one, files[name])
            settled = _completed(settled, _constants(one))
            if _constants_of(settled) != _constants_of(one):
                constants[name] = _change(settled, one)
        notices += _of_another_size(transforms, one, files[name], image)
    settled = _completed(settled, _OTHERS)
    for name, file in files.items():
        if name not in known:
            notices += _unknown(transforms, settled, sources[name], file)
    return Resolved(settled, with_constants(model, constants), tuple(notices))


def _check_interpolation(known: Sequence[tuple[str, Preprocessing]]) -> None:
    """Refuse parts with whose images something else was done than a change of numbers.

    Raises:
        ConfigError: Two differ.
    """
    for (first, one), (second, other) in itertools.combinations(known, 2):
        if one.interpolation != other.interpolation:
            raise ConfigError(
                f"{first} was trained with interpolation = {one.interpolation!r} and {second} with "
                f"{other.interpolation!r}, and both see the same images; begin one of them with other weights"
            )


def _of_run(model: ModelConfig, file: WeightsFile | None) -> dict[str, dict[str, Any]]:
    """Return the constants that parts had in the run whose model a network begins with."""
    table = file.description.get("model") if file else None
    if not isinstance(table, Mapping):
        return {}
    here, there = parts(model), parts(build(ModelConfig, dict(table), "model"))
    return {
        name: {"scale": list(one.scale), "shift": list(one.shift)}
        for name, one in there.items()
        if name in here and _rescaled(one) and not _rescaled(here[name])
    }


def _rescaled(model: Named) -> bool:
    return isinstance(model, PartConfig) and bool(model.scale)


def _check(transforms: TransformConfig, trained: Preprocessing, file: WeightsFile) -> None:
    """Refuse transforms that are not as a file's weights need them.

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


def _of_another_size(
    transforms: TransformConfig, trained: Preprocessing, file: WeightsFile, image: tuple[int, int]
) -> tuple[str, ...]:
    """Return a notice where images have another size than in a file's training."""
    height, width = (transforms.size,) * 2 if transforms.size else image
    if not trained.size or (height, width) == (trained.size, trained.size):
        return ()
    return (
        f"{file.where} was trained on images of {trained.size} x {trained.size}, and the network gets "
        f"{height} x {width}; transforms.size = {trained.size} resizes them",
    )


def _constants(trained: Preprocessing) -> TransformConfig:
    return TransformConfig(mean=trained.mean, std=trained.std, interpolation=trained.interpolation)  # type: ignore[arg-type]


def _constants_of(one: TransformConfig | Preprocessing) -> tuple[Any, Any]:
    return _every(one.mean), _every(one.std)


def _change(here: TransformConfig, there: Preprocessing) -> dict[str, Any]:
    """Return what brings images from one mean and deviation to another: x s / s' + (m - m') / s'."""
    (mean, std), (other_mean, other_std) = _constants_of(here), _constants_of(there)
    scale = [own / other for own, other in zip(std, other_std, strict=True)]
    shift = [(m - n) / s for m, n, s in zip(mean, other_mean, other_std, strict=True)]
    if len({*zip(scale, shift, strict=True)}) == 1:  # it may be a part of one channel
        scale, shift = scale[:1], shift[:1]
    return {"scale": scale, "shift": shift}


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
    except MALFORMED as error:
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
