"""``model.json``: what must be known of a trained model to use it, beside its tensors.

::

    {"format": 1, "task": {"use": "classification"}, "rounds": 30,
     "classes": ["cat", "dog"], "class_counts": [900, 30],
     "image": {"height": 64, "width": 64, "channels": 3},
     "decoding": {"size": 64, "fit": "crop", "range": 0.0},
     "transforms": {"mean": [0.5], "std": [0.25], "size": 0, "interpolation": "bilinear"},
     "probability_scale": 1.0,
     "inference": {"batch_size": 100, "precision": "float32", "channels_last": true}, "metrics": ["kappa"],
     "model": {"use": "cnn", "width": 16}, "code": {}, "dtypes": ["float32"],
     "personal": [], "sha256": "of model.safetensors"}

``merged`` has the ``[model.lora]`` of adapters whose products are in the weights: the network is a plain one.
``class_counts`` is missing where unreported, ``decoding`` where the images came as arrays. ``code`` has
a digest of the source of each module that ``model``, with its ``expand`` and ``head``, or ``task`` names as
``module:attr``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedvision import plugin_folder, registry
from fedvision.config import LoraConfig, ModelConfig, TransformConfig
from fedvision.data.decoding.pixels import FITS
from fedvision.errors import ConfigError, RunFolderError
from fedvision.files import read_json
from fedvision.models.part_config import adapted, parts, without
from fedvision.tables import Settings, at_least, require
from fedvision.types import PluginSpec

if TYPE_CHECKING:
    from fedvision.experiment import Experiment

FILE = "model.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """The images that the network takes."""

    height: int
    """H."""
    width: int
    """W."""
    channels: int
    """Channels."""

    def __post_init__(self) -> None:
        at_least(1, self, "image.", "height", "width", "channels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, channels)."""
        return self.height, self.width, self.channels

    def __str__(self) -> str:
        return f"{self.height} x {self.width} x {self.channels}"


@dataclass(frozen=True, kw_only=True)
class FileDecoding:
    """How the run's source made square images of files."""

    size: int
    """Side in pixels."""
    fit: Literal["crop", "stretch", "pad", "exact"]
    """As in ``data.decoding.pixels``."""
    range: float = 0.0
    """The value that is white; 0 goes by the file."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What is done to pixels from 0 to 1: (pixel - mean) / std, then the size."""

    mean: tuple[float, ...]
    """Per channel, or one for all."""
    std: tuple[float, ...]
    """Per channel, or one for all."""
    size: int = 0
    """Pixels a side to which images are resized; 0 leaves them."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """How."""

    @property
    def config(self) -> TransformConfig:
        """The same as ``[transforms]``."""
        return TransformConfig(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Inference:
    """With what the run measured its model: with the same, the same images give the same bits."""

    batch_size: int
    """Images a forward pass."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Arithmetic of the forward pass."""
    channels_last: bool
    """Whether images and weights are laid out as [B, H, W, channels] in memory."""

    def __post_init__(self) -> None:
        at_least(1, self, "inference.", "batch_size")


@dataclass(frozen=True, kw_only=True)
class ModelDescription(Settings):
    """The contents of ``model.json``."""

    WHAT = "a run's model.json"

    format: int = FORMAT
    """Version of this file."""
    task: PluginSpec = field(default_factory=lambda: PluginSpec(use="classification"))
    """The experiment's ``task``: what the network's outputs mean."""
    rounds: int
    """Rounds after which the model is the federation's."""
    classes: tuple[str, ...]
    """Class names [C]; logit c is of ``classes[c]``."""
    class_counts: tuple[int, ...] | None = None
    """Training images of each class [C] over the federation; None where unknown."""
    image: ImageShape
    """The images that the network takes."""
    decoding: FileDecoding | None = None
    """How files became images; None where the images came as arrays."""
    transforms: Normalisation
    """Normalisation of the pixels."""
    probability_scale: float
    """s: the predicted probabilities are softmax(s z) of logits z."""
    inference: Inference
    """With what the run measured it."""
    metrics: tuple[str, ...] = ()
    """The run's further scores, as ``evaluation.metrics`` names them."""
    model: ModelConfig
    """The experiment's ``[model]``, from which the network is built."""
    weights_sha256: str = ""
    """Of the file of ``model.weights`` with which training began, hexadecimal; empty where there was none."""
    part_weights_sha256: Mapping[str, str] = field(default_factory=dict)
    """The same of parts that began with files of their own, by the part's name."""
    code: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the source of each module that ``model`` or ``task`` names as ``module:attr``."""
    dtypes: tuple[str, ...]
    """Types of the network's floating-point tensors."""
    merged: LoraConfig | None = None
    """The adapters that were trained and whose products the weights contain; None where there were none."""
    personal: tuple[str, ...] = ()
    """Tensors that training changes and that stay on the clients: the file has their first values."""
    sha256: str
    """Of ``model.safetensors``, hexadecimal."""

    def __post_init__(self) -> None:
        require(len(self.classes) > 0, "classes", "must name at least one class")
        counts, classes = self.class_counts, len(self.classes)
        require(counts is None or len(counts) == classes, "class_counts", f"must hold {classes} numbers")
        require(0 < self.probability_scale < np.inf, "probability_scale", "must be > 0 and finite")

    @classmethod
    def read(cls, folder: Path) -> ModelDescription:
        """Read a run folder's ``model.json``.

        Raises:
            RunFolderError: It is missing, damaged, or of another format.
        """
        path = folder / FILE
        if not path.is_file():
            raise RunFolderError(
                f"{path}: there is no such file, so this run has no model to load; let the run reach its end "
                "with --resume"
            )
        table = read_json(path)
        written = table.get("format")
        if type(written) is int and written != FORMAT:
            raise RunFolderError(
                f"{path}: its format is {written}, and this fedvision reads {FORMAT}; use the version that "
                "wrote it"
            )
        try:
            require("format" in table, "format", "is missing")
            return cls.from_dict(table)
        except (ConfigError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{path}: it is damaged: {error}; write it again with --resume of the run"
            ) from error


def describe(
    experiment: Experiment, *, rounds: int, class_counts: tuple[int, ...] | None, probability_scale: float
) -> ModelDescription:
    """Return the ``model.json`` of an experiment's model, the digest still empty.

    Args:
        experiment: The experiment, built.
        rounds: Rounds done.
        class_counts: Training images of each class [C] over the federation; all 0 or None where unknown.
        probability_scale: s, with which it predicts softmax(s z).
    """
    config, dataset = experiment.config, experiment.dataset
    _, height, width, channels = dataset.train.images.shape
    tensors = experiment.model.state_dict().values()
    files = experiment.weights.files if experiment.weights else {}
    return ModelDescription(
        task=config.task,
        rounds=rounds,
        classes=dataset.classes,
        class_counts=class_counts if class_counts and any(class_counts) else None,
        image=ImageShape(height=height, width=width, channels=channels),
        decoding=_decoding(config.data, (height, width)),
        transforms=Normalisation(
            mean=config.transforms.mean,
            std=config.transforms.std,
            size=config.transforms.size,
            interpolation=config.transforms.interpolation or "bilinear",
        ),
        probability_scale=probability_scale,
        inference=Inference(
            batch_size=config.evaluation.batch_size,
            precision=config.training.precision,
            channels_last=config.training.channels_last,
        ),
        metrics=config.evaluation.metrics,
        model=_plain(config.model),
        weights_sha256=files.get("", ""),
        part_weights_sha256={name: sha256 for name, sha256 in files.items() if name},
        code=plugin_folder.sources(
            {"model": [spec.use for spec in code_of(config.model)], "task": config.task.use}
        ),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()})),
        merged=config.model.lora if adapted(config.model) else None,
        personal=experiment.personal,
        sha256="",
    )


def code_of(model: ModelConfig) -> tuple[PluginSpec, ...]:
    """Return the plug-ins that a network is built of."""
    return model.expand, model.head, *parts(model).values(), model


def _plain(config: ModelConfig) -> ModelConfig:
    """Return the ``[model]`` that builds the network of a finished run: with adapters merged, a plain one."""
    config = replace(without(config, "weights"), weights="")
    if not adapted(config):
        return config
    # Patterns may name adapters' tensors, which it no longer has.
    config = without(config, "train")
    return replace(config, train="all", lora=LoraConfig(), personal=(), frozen=())


def counts_of(split: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the training images of each class [C] that a split's facts tell, each image counted once."""
    if "distinct" in split or "totals" in split:
        found = np.asarray(split.get("distinct", split.get("totals")))
    else:
        found = np.asarray(split.get("counts", ()))
        found = found.sum(axis=0) if found.ndim == 2 else np.zeros(0, np.int64)
    return tuple(int(count) for count in found) or None


def with_digest(description: ModelDescription, sha256: str) -> dict[str, Any]:
    """Return the file's table with the digest of ``model.safetensors``."""
    return replace(description, sha256=sha256).to_dict()


def _decoding(source: PluginSpec, size: tuple[int, int]) -> FileDecoding | None:
    """Return how a source decodes files; None where it has not the keys ``size`` and ``fit``."""
    factory = registry.resolve("data", source.use)
    parameters = inspect.signature(factory.call).parameters

    def value(name: str, default: Any) -> Any:
        known = parameters[name].default if name in parameters else default
        return source.args.get(name, factory.preset.get(name, known))

    side, fit = value("size", 0), value("fit", None)
    if (side, side) != size or fit not in FITS:
        return None
    return FileDecoding(size=side, fit=fit, range=float(value("range", 0.0)))
