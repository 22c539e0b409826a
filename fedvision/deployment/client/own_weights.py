"""The weights that this machine has itself: what a network begins with and the server never sends."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fedvision.config import ExperimentConfig
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
from fedvision.models.parameter_groups import needs_own_weights
from fedvision.models.state import digest
from fedvision.models.weights import load_weights
from fedvision.models.weights_file import WeightsFile
from fedvision.tasks.base import build_task

_MISSING = (
    "the network begins with weights of which the server sends only what is trained; put a copy of the "
    "server's file here and name it as weights in [model] of the client's file"
)


def load_own_weights(client: ClientMachineConfig, model: nn.Module, facts: RunManifest) -> None:
    """Give a network the numbers of this machine's file, where the run needs them.

    Args:
        client: The machine's own file.
        model: The run's network; it is changed in place.
        facts: What the server sent of the run.

    Raises:
        ConfigError: There is no file, it cannot be read, is another one than the server's, or does not fit.
    """
    if not facts.weights:
        return
    file = _read(client, facts.config)
    if file.sha256 != facts.weights:
        # No path is in this sentence, so that it may be sent to the server.
        raise ConfigError(
            f"weights in [model] of the client's file has the SHA-256 {file.sha256[:12]}..., and the "
            f"server's has {facts.weights[:12]}...; copy the server's here"
        )
    load_weights(model, file, facts.classes)


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
    if not config.weights:
        return
    task, classes = build_task(experiment.task), known_classes(experiment) or dataset.classes
    image = dataset.train.images.shape[1:]
    file = _read(client, experiment) if client.model.weights else None
    transforms = experiment.transforms
    if file is not None:
        known = replace(config, weights=client.model.weights)
        transforms = preprocessing.resolve(transforms, known, file, (image[0], image[1])).transforms
    channels, height, width = input_shape(transforms, image)
    model = build_model(
        config,
        task=task,
        num_classes=len(classes),
        in_channels=channels,
        image_size=(height, width),
        seed=experiment.seed,
    )
    if not needs_own_weights(model, config):
        yield "OK", "the server sends all that the network begins with"
    elif file is None:
        yield "FAIL", _MISSING
    else:
        load_weights(model, file, classes)
        yield "OK", f"weights of SHA-256 {file.sha256[:12]}... fit the network; the server's must be the same"


def _read(client: ClientMachineConfig, experiment: ExperimentConfig) -> WeightsFile:
    """Read this machine's file; the server's ``model.weights`` names nothing here.

    Raises:
        ConfigError: None is named, or it cannot be read.
    """
    if not client.model.weights:
        raise ConfigError(_MISSING)
    return weights_file.read(replace(experiment.model, weights=client.model.weights))
