"""A run's final network, built from its description and filled with its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import registry
from fedvision.errors import RunFolderError
from fedvision.files import read_json
from fedvision.formatting import listed
from fedvision.runs.model_description import ModelDescription

if TYPE_CHECKING:
    from torch import nn

    from fedvision.tasks.base import Task
    from fedvision.types import State


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
    from fedvision.models.state import load_state, misfits

    channels, height, width = input_shape(description.transforms.config, description.image.shape)
    network = build_model(
        description.model,
        task=task,
        num_classes=len(description.classes),
        in_channels=channels,
        image_size=(height, width),
        seed=0,
    )
    if others := misfits(network, state):
        raise RunFolderError(
            f"{file}: {listed(others)} in it do not fit the network {description.model.use!r}; its "
            "code was changed since the run, or comes from elsewhere: restore it"
        )
    load_state(network, state)
    return network


@contextmanager
def code_folder(run: Path, use: str) -> Iterator[None]:
    """Let the module of ``module:attr`` be found where the run found it, or else in the run folder."""
    module, colon, _ = use.partition(":")
    top, before = module.partition(".")[0], registry.allowed_folder()
    places = [*map(Path, read_json(run / "invocation.json").get("modules", ())), run] if colon else []
    for place in places:
        if (place / f"{top}.py").is_file() or (place / top / "__init__.py").is_file():
            registry.allow_folder(place)
            break
    try:
        yield
    finally:
        registry.allow_folder(before)
