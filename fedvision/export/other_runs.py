"""Models of other runs as smaller versions of a run's: distilled from it, pruned, or trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import ConfigError
from fedvision.export.checks import Predictor, reference
from fedvision.export.measurement import Labelled, measured, original_of
from fedvision.formatting import listed
from fedvision.pruning import EXPERIMENT
from fedvision.runs.folder import RunFolder
from fedvision.runs.model_versions import Kind, ModelVersion, append_version
from fedvision.trained_model import TENSORS, TrainedModel

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig


def compare(model: TrainedModel, others: Sequence[TrainedModel], data: Labelled) -> list[ModelVersion]:
    """Measure other runs' models beside a run's, and note them in its ``exports.jsonl``.

    Args:
        model: The run's, on the CPU.
        others: The other ones, on the CPU.
        data: Labelled images as the run's model takes them.

    Returns:
        The run's own model, then the others in their order.

    Raises:
        ConfigError: One has other classes, or takes other images or columns.
        RunError: The run folder cannot be written.
    """
    versions = [(original_of(model), reference(model))]
    versions += [(_version(model, other), _in_order(model, other)) for other in others]
    names = [version.name for version, _ in versions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{listed(twice)} is named twice; name each run once")
    found = measured(model, versions, data)
    for one in found:
        append_version(model.path, one)
    return found


def _version(model: TrainedModel, other: TrainedModel) -> ModelVersion:
    use, path = other.description.model.use, other.path
    kind = _kind(model, other)
    numbers = sum(parameter.numel() for parameter in other.network.parameters())
    return ModelVersion(
        name=f"{use}, {'trained' if kind == 'run' else kind} ({path.name})",
        kind=kind,
        file=TENSORS,
        run=str(path.absolute()),
        bytes=(path / TENSORS).stat().st_size,
        about={"numbers": numbers, "sha256": other.description.sha256},
    )


def _kind(model: TrainedModel, other: TrainedModel) -> Kind:
    """Return how a run's model was made: of this one, as far as its folder says, or on its own."""
    config = _config(other.path)
    if config is None:
        return "pruned" if (other.path / EXPERIMENT).exists() else "run"
    if config.strategy.use == "distillation":
        return "distilled"
    there, here = other.description.model, model.description.model
    narrower = there.args.get("width", 0) < here.args.get("width", 1 << 30)
    begun = other.description.weights_sha256
    return "pruned" if begun and there.use == here.use and narrower else "run"


def _config(path: Path) -> ExperimentConfig | None:
    """Return the experiment of a run; a folder with nothing but its model has none."""
    return RunFolder.read(path).config() if (path / "config.toml").exists() else None


def _in_order(model: TrainedModel, other: TrainedModel) -> Predictor:
    """Return a model's probabilities in the order of the run's classes.

    Raises:
        ConfigError: It has other classes, or takes other images or columns.
    """
    here, there = model.description, other.description
    if {*here.classes} != {*there.classes}:
        strange = sorted({*here.classes} ^ {*there.classes})
        raise ConfigError(
            f"{other.path}: its classes are not those of {model.path}: {listed(strange)}; measure models of "
            "the same classes"
        )
    if here.image != there.image or here.model.inputs != there.model.inputs:
        raise ConfigError(
            f"{other.path}: it takes images of {there.image}{_columns(there.model.inputs)}, and {model.path} "
            f"of {here.image}{_columns(here.model.inputs)}; measure it alone with `fedvision export --data`"
        )
    predict = reference(other)
    order = np.array([there.classes.index(name) for name in here.classes])

    def reordered(images: NDArray[np.uint8], further: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return predict(images, further)[:, order]

    return reordered


def _columns(inputs: object) -> str:
    return " and columns" if inputs else ""
