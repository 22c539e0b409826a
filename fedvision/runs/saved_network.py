"""A run's final network, built from its description and filled with its tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import RunFolderError
from fedvision.formatting import listed
from fedvision.runs.model_description import FILE, ModelDescription

if TYPE_CHECKING:
    from torch import nn

    from fedvision.tasks.base import Task
    from fedvision.types import State


def load_tensors(file: Path, sha256: str) -> State:
    """Return the tensors of a file with this digest.

    Raises:
        RunFolderError: It is missing, cannot be read, or has another digest.
    """
    import safetensors
    from safetensors.torch import load_file

    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != sha256:
            raise RunFolderError(
                f"{file}: its SHA-256 is {found[:12]}..., and {FILE} beside it has {sha256[:12]}...: "
                "the file was changed or copied in part; restore it, or write both again with --resume"
            )
        return load_file(file)
    except OSError as error:
        raise RunFolderError(f"{file}: it cannot be read: {error.strerror or error}; restore it") from error
    except safetensors.SafetensorError as error:
        raise RunFolderError(f"{file}: it holds no tensors: {error}; restore it") from error


def build_network(description: ModelDescription, task: Task, state: State, file: Path) -> nn.Module:
    """Build the network of a run with its tensors.

    Args:
        description: The run's.
        task: The run's.
        state: The tensors.
        file: Where they come from, for errors.

    Raises:
        ConfigError: It cannot be built.
        RunFolderError: Its tensors are others.
    """
    from fedvision.data.transforms import input_shape
    from fedvision.models.build import build_model
    from fedvision.models.state import load_state

    channels, height, width = input_shape(description.transforms.config, description.image.shape)
    network = build_model(
        description.model,
        task=task,
        num_classes=len(description.classes),
        in_channels=channels,
        image_size=(height, width),
        seed=0,
    )
    own = {name: (tuple(t.shape), t.dtype) for name, t in network.state_dict().items()}
    given = {name: (tuple(t.shape), t.dtype) for name, t in state.items()}
    if others := [name for name in [*own, *(given.keys() - own)] if own.get(name) != given.get(name)]:
        raise RunFolderError(
            f"{file}: {listed(others)} in it do not fit the network {description.model.use!r}; its "
            "code was changed since the run, or comes from elsewhere: restore it"
        )
    load_state(network, state)
    return network
