"""A finished run's network as the teacher of another experiment's network, which sees the same batches.

The teacher may have been trained with another normalisation, another size or gray images as colour, and may
know its classes in another order or further ones: what lies between is part of its description, so that it
gives logits for the batches of the network that is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedvision import plugin_folder
from fedvision.config import ExperimentConfig, ModelConfig, TransformConfig
from fedvision.data.transforms import MEAN, STD, input_shape, resize
from fedvision.errors import MALFORMED, ConfigError
from fedvision.formatting import listed
from fedvision.models import weights_file
from fedvision.models.build import build_model
from fedvision.models.part_config import parts
from fedvision.models.state import load_state, misfits
from fedvision.tables import Settings, build
from fedvision.tasks.base import build_task
from fedvision.types import PluginSpec, State

_TASK = "classification"


@dataclass(frozen=True, kw_only=True)
class TeacherDescription(Settings):
    """What must be known of a teacher beside its tensors; it travels to the clients as JSON."""

    WHAT = "a teacher's description"

    model: ModelConfig
    """The network."""
    channels: int
    """Of the images that it takes."""
    height: int
    """H of these."""
    width: int
    """W of these."""
    num_classes: int
    """Its own number of classes."""
    order: tuple[int, ...]
    """By class of the network that is trained, the teacher's number of it, [C]."""
    scale: tuple[float, ...]
    """From the experiment's normalisation to the teacher's, by channel: x * scale + shift."""
    shift: tuple[float, ...]
    """The same."""
    interpolation: str
    """How images are brought to its size."""
    probability_scale: float
    """s: it predicts softmax(s z) of its logits z."""
    images: tuple[int, int, int]
    """Channels, H and W of the experiment's batches."""
    sha256: str
    """Of its tensors' file, hexadecimal."""

    def to_text(self) -> str:
        """Return this as JSON, the same text for the same description."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> TeacherDescription:
        """Read what ``to_text`` wrote.

        Raises:
            ConfigError: It is damaged.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError("the teacher's description is damaged") from error

    @property
    def code(self) -> tuple[str, ...]:
        """Names of the networks that it is built of, as ``[model] use``."""
        return (self.model.use, *(part.use for part in parts(self.model).values()))


class TeacherNetwork(nn.Module):
    """The teacher in evaluation, on batches of the network that is trained."""

    scale: torch.Tensor
    shift: torch.Tensor
    order: torch.Tensor

    def __init__(self, network: nn.Module, description: TeacherDescription) -> None:
        super().__init__()
        self.network, self.description = network, description
        shape = (1, description.channels, 1, 1)
        self.register_buffer("scale", torch.tensor(description.scale).view(shape))
        self.register_buffer("shift", torch.tensor(description.shift).view(shape))
        self.register_buffer("order", torch.tensor(description.order))
        same = set(description.scale) == {1.0} and set(description.shift) == {0.0}
        self._rescales = not same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return s z [B, C], the logits of the network's classes whose softmax the teacher predicts.

        Args:
            x: float [B, channels, H, W], normalised as the experiment says.

        Raises:
            ValueError: They have another shape than the experiment's images.
        """
        if tuple(x.shape[1:]) != self.description.images:
            raise ValueError(
                f"the teacher gets batches {list(x.shape)} in the place of images "
                f"{list(self.description.images)}"
            )
        x = x.expand(-1, self.description.channels, -1, -1)
        if self._rescales:
            x = torch.addcmul(self.shift, x, self.scale)
        if x.shape[2:] != (self.description.height, self.description.width):
            x = resize(x, self.description.height, self.description.interpolation)
        logits: torch.Tensor = self.network(x)
        return self.description.probability_scale * logits[:, self.order]


def read(
    run: str, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int], *, key: str
) -> tuple[TeacherDescription, State]:
    """Read a finished run's model as the teacher in an experiment.

    Args:
        run: The run folder.
        config: The experiment, its transforms settled.
        classes: Class names [C] of the experiment.
        image: (H, W, channels) of the experiment's images.
        key: The key that names the run, for errors.

    Raises:
        ConfigError: There is no such run, or its model does not fit the experiment.
    """
    named = ModelConfig(use="cnn", weights=run)
    file = weights_file.read(named, key=key)
    if not (table := file.description):
        raise ConfigError(
            f"{file.where}: there is no model.json beside it; name the folder of a finished run"
        )
    try:
        found = _describe(table, file, config, classes, image)
    except MALFORMED as error:
        raise ConfigError(
            f"{file.where}: its model.json is damaged; write it again with --resume of the run"
        ) from error
    try:
        _network(found, file.state)
        changed = [
            m
            for m, sha in plugin_folder.sources({"use": list(found.code)}).items()
            if table["code"].get(m) != sha
        ]
    except ConfigError as error:
        raise ConfigError(f"{file.where}: {error}") from error
    if changed:
        raise ConfigError(
            f"{file.where}: the source of {listed(changed)} is not that of the run, so its network would "
            "compute something else; restore it"
        )
    return found, file.state


def _describe(
    table: Mapping[str, Any],
    file: weights_file.WeightsFile,
    config: ExperimentConfig,
    classes: Sequence[str],
    image: tuple[int, int, int],
) -> TeacherDescription:
    """Return the description of a run's model as a teacher.

    Raises:
        ConfigError: It does not fit.
    """
    _check_task(table, file.where, config)
    model = build(ModelConfig, dict(table["model"]), "model")
    if model.inputs:
        raise ConfigError(
            f"{file.where}: it reads columns beside the pixels, which a teacher does not get; take one that "
            "reads images alone"
        )
    known = list(table["classes"])
    if missing := [name for name in classes if name not in known]:
        raise ConfigError(
            f"{file.where}: it does not know {listed(missing)}; its classes are {listed(known)}"
        )
    there = build(TransformConfig, dict(table["transforms"]), "transforms")
    side = table["image"]
    channels, height, width = input_shape(there, (side["height"], side["width"], side["channels"]))
    own = input_shape(config.transforms, image)
    if own[0] > channels:
        raise ConfigError(
            f"{file.where}: it takes images of {channels} channel, and the experiment's have {own[0]}"
        )
    if own[1:] != (height, width) and height != width:
        raise ConfigError(
            f"{file.where}: it takes images of {height} x {width}, and the experiment's are {own[1]} x "
            f"{own[2]}; images are only resized to squares"
        )
    scale, shift = _change(config.transforms, there, channels)
    return TeacherDescription(
        model=model,
        channels=channels,
        height=height,
        width=width,
        num_classes=len(known),
        order=tuple(known.index(name) for name in classes),
        scale=scale,
        shift=shift,
        interpolation=there.interpolation or "bilinear",
        probability_scale=float(table["probability_scale"]),
        images=own,
        sha256=file.sha256,
    )


def _check_task(table: Mapping[str, Any], where: str, config: ExperimentConfig) -> None:
    """Refuse a teacher without a whole model, or one whose outputs are no logits of classes.

    Raises:
        ConfigError: It is such a one.
    """
    for task, whose in ((table["task"]["use"], where), (config.task.use, "the experiment")):
        if task != _TASK:
            raise ConfigError(
                f"{whose}: a teacher gives probabilities of classes, and its task is {task!r}; distillation "
                f"is for {_TASK}"
            )
    if personal := table.get("personal"):
        raise ConfigError(
            f"{where}: {listed(personal)} stayed on its clients, so the run has no whole model to teach"
        )


def _change(
    here: TransformConfig, there: TransformConfig, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and shift [channels] from one normalisation to another: x s / s' + (m - m') / s'."""

    def constants(one: TransformConfig) -> list[tuple[float, float]]:
        mean, std = (v * channels if len(v) == 1 else v for v in (one.mean or MEAN, one.std or STD))
        return list(zip(mean, std, strict=True))

    pairs = list(zip(constants(here), constants(there), strict=True))
    return (
        tuple(s / other for (_, s), (_, other) in pairs),
        tuple((m - other_m) / other for (m, _), (other_m, other) in pairs),
    )


def _network(description: TeacherDescription, state: State) -> nn.Module:
    """Build the teacher's network with its tensors, in evaluation and without gradients.

    Raises:
        ConfigError: It cannot be built, or its tensors are others.
    """
    network = build_model(
        description.model,
        task=build_task(PluginSpec(use=_TASK)),
        num_classes=description.num_classes,
        in_channels=description.channels,
        image_size=(description.height, description.width),
        seed=0,
    )
    if others := misfits(network, state):
        raise ConfigError(f"{listed(others)} do not fit the teacher's network {description.model.use!r}")
    load_state(network, state)
    return network.eval().requires_grad_(False)


_LAST: dict[tuple[str, torch.device], TeacherNetwork] = {}
"""The teacher of this process: it serves all clients that the process hosts, round after round."""


def network(text: str, state: State, device: torch.device) -> TeacherNetwork:
    """Return the teacher of a description as ``to_text`` wrote it, built once a process.

    Raises:
        ConfigError: It is damaged, or does not fit its tensors.
    """
    if (text, device) not in _LAST:
        description = TeacherDescription.from_text(text)
        found = TeacherNetwork(_network(description, state), description).eval()
        _LAST.clear()
        _LAST[text, device] = found.to(device).to(memory_format=torch.channels_last)
    return _LAST[text, device]
