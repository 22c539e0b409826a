"""The weights that this machine has itself: what a network begins with and the server never sends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from fedvision.config import ExperimentConfig, ModelConfig
from fedvision.data.dataset import Dataset
from fedvision.data.transforms import input_shape
from fedvision.deployment.client.check_report import Lines
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.local_data import known_classes
from fedvision.deployment.run_manifest import RunManifest
from fedvision.errors import ConfigError
from fedvision.models import preprocessing, weights_file
from fedvision.models.build import build_model
from fedvision.models.freezing import frozen_state
from fedvision.models.parameter_groups import own_weights_needed
from fedvision.models.part_config import with_weights
from fedvision.models.state import digest
from fedvision.models.weights import begin
from fedvision.models.weights_file import WeightsFile
from fedvision.tasks.base import build_task


def load_own_weights(client: ClientMachineConfig, model: nn.Module, facts: RunManifest) -> None:
    """Give a network the numbers of this machine's files, where the run needs them.

    Args:
        client: The machine's own file.
        model: The run's network; it is changed in place.
        facts: What the server sent of the run.

    Raises:
        ConfigError: There is no file, it cannot be read, is another one than the server's, or does not fit.
    """
    files = _read(client, facts.config, facts.weights)
    for name, sha256 in facts.weights.items():
        if files[name].sha256 != sha256:
            # No path is in this sentence, so that it may be sent to the server.
            raise ConfigError(
                f"{_own(name)} in [model] of the client's file has the SHA-256 {files[name].sha256[:12]}..., "
                f"and the server's has {sha256[:12]}...; copy the server's here"
            )
    begin(model, files, facts.classes)


def check_frozen(model: nn.Module, facts: RunManifest) -> None:
    """Refuse a network whose frozen tensors began otherwise than the server's: they are never sent."""
    if digest(frozen_state(model)) != facts.frozen:
        raise ConfigError(
            "the tensors that are frozen are others here than on the server; give both machines the same "
            "torch, and the same weights where the network loads some from a file"
        )


def check_weights(client: ClientMachineConfig, dataset: Dataset, experiment: ExperimentConfig) -> Lines:
    """Return whether this machine has the weights that an experiment needs here."""
    config = experiment.model
    if not (sources := weights_file.named(config)):
        return
    task, classes = build_task(experiment.task), known_classes(experiment) or dataset.classes
    image = dataset.train.images.shape[1:]
    here = [name for name in sources if client.model.file(name)]
    files = _read(client, experiment, here)
    known = _with_own(client, config, here)
    transforms = preprocessing.resolve(experiment.transforms, known, files, (image[0], image[1])).transforms
    channels, height, width = input_shape(transforms, image)
    model = build_model(
        config,
        task=task,
        num_classes=len(classes),
        in_channels=channels,
        image_size=(height, width),
        seed=experiment.seed,
    )
    needed = own_weights_needed(model, config)
    if not needed:
        yield "OK", "the server sends all that the network begins with"
    for name in needed:
        if name not in files:
            yield "FAIL", _missing(name)
            continue
        begin(model, {name: files[name]}, classes)
        of_part = f" of the {name}" if name else ""
        yield (
            "OK",
            f"weights of SHA-256 {files[name].sha256[:12]}... fit the network{of_part}; the server's must be "
            "the same",
        )


def _read(
    client: ClientMachineConfig, experiment: ExperimentConfig, names: Iterable[str]
) -> dict[str, WeightsFile]:
    """Read this machine's files, by the part's name; what the server's experiment names is nothing here.

    Raises:
        ConfigError: None is named, or one cannot be read.
    """
    for name in names:
        if not client.model.file(name):
            raise ConfigError(_missing(name))
    return weights_file.read_all(_with_own(client, experiment.model, names))


def _with_own(client: ClientMachineConfig, model: ModelConfig, names: Iterable[str]) -> ModelConfig:
    """Return ``[model]`` with this machine's files as the weights of what is named, and no others."""
    files = {name: client.model.file(name) for name in names}
    return replace(with_weights(model, files), weights=files.get("", ""))


def _own(name: str) -> str:
    return f"parts.{name}" if name else "weights"


def _missing(name: str) -> str:
    return (
        "the network begins with weights of which the server sends only what is trained; put a copy of the "
        f"server's file here and name it as {_own(name)} in [model] of the client's file"
    )
