"""Build the experiment's network and try it once, so that a misfit is one sentence before anything starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from fedvision import registry, seeding
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError, first_line
from fedvision.inputs import Batch, for_trial
from fedvision.models.base import feature_rows, halves
from fedvision.models.expansions import expanded_head, with_seed
from fedvision.models.factory import call_factory, forward, wants_colour
from fedvision.models.feature_layers import add_feature_layers
from fedvision.models.freezing import freeze
from fedvision.models.gray import shown_gray
from fedvision.models.init import glorot
from fedvision.models.lora import add_lora
from fedvision.models.mirrored import average_with_mirror_image
from fedvision.models.mkldnn_layout import avoid_narrow_strides
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.part_config import adapted, parts
from fedvision.models.parts import others
from fedvision.models.tensor_checks import changed, check_hidden, check_repeats, check_tensors, repeatable


class OutputForm(Protocol):
    """What a task asks of a network's outputs; see ``tasks.base.Task``."""

    name: ClassVar[str]
    """The task's."""

    def outputs(self, num_classes: int) -> int:
        """Return the outputs that a factory is asked for."""

    def head(self, network: nn.Module, num_classes: int) -> nn.Module:
        """Return a network with the head that the task needs."""

    def check_outputs(self, outputs: Any, images: torch.Tensor, num_classes: int) -> str | None:
        """Return what is wrong with the outputs of images; None where nothing is."""


def build_model(
    config: ModelConfig,
    *,
    task: OutputForm,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    seed: int,
) -> nn.Module:
    """Build the network, on the CPU and in training mode; equal arguments give equal bits.

    A factory gets ``num_classes`` (the outputs that the task asks for), ``in_channels``, ``image_size`` and
    ``inputs`` (what is read beside the pixels) where it names them, and ``num_classes`` also where it takes
    any keyword, as torchvision's do. A network that wants colour gets gray images, their channel repeated.

    Args:
        config: The experiment's ``[model]`` table.
        task: What its outputs must be.
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        seed: The experiment's root seed.

    Raises:
        PluginError: The factory is unknown, its keys do not fit, or it fails.
        ConfigError: The network does not turn two images into the outputs that the task needs, or it has
            tensors that no federation can average.
    """
    where = f"[model] use = {config.use!r}"
    runtime = {
        "num_classes": task.outputs(num_classes),
        "in_channels": in_channels,
        "image_size": image_size,
        "inputs": config.inputs,
    }
    drawn = torch.randn(2, in_channels, *image_size, generator=seeding.torch_stream(seed, "trial"))
    images = for_trial(drawn, config.inputs)
    with seeding.global_streams(seed, "model"):
        model = task.head(call_factory(config, runtime), num_classes)
        avoid_narrow_strides(model)
        if in_channels == 1 and wants_colour(model, images):
            model = shown_gray(model)
        if adapted(config):
            _add_lora(model, config, seed)
        if config.mirrored:
            average_with_mirror_image(halves(model, "model.mirrored = true").backbone)
        _change_features(model, config, images, seed)
        if config.head.use:
            _change_head(model, with_seed(config, seed), images, num_classes)
        groups = ParameterGroups.of(model, config)
        freeze(model, frozen := groups.frozen)
        _check_expansion(config, groups)
        answers = {training: _try(model, images, training, where) for training in (False, True)}
        for outputs in answers.values():
            if wrong := task.check_outputs(outputs, drawn, num_classes):
                raise ConfigError(f"{where}: {_other_task(config.use, task.name) or wrong}")
        _check(model, images, answers, where)
        _check_frozen(frozen, changed(model, images))
    return model


def _check(model: nn.Module, images: Batch, answers: Mapping[bool, Any], where: str) -> None:
    check_tensors(model, where)
    check_hidden(model, images, where)
    check_repeats(model, images, answers, where)


def _other_task(use: str, task: str) -> str:
    """Return for which task a network is that does not fit this one; "" where that is not why."""
    tasks = registry.tasks_of("model", use)
    if not tasks or not tasks.isdisjoint({task, "classification"}):
        return ""
    own = min(tasks)
    return f"it is a network for {own}; set task.use = {own!r}, or take another network"


def _add_lora(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Give the layers of the backbone adapters, or those of the parts that are trained so."""
    lora, drawn = config.lora, seeding.torch_stream(seed, "lora")
    if config.train == "lora":
        left = list(halves(model, 'model.train = "lora"').head.modules())
    else:
        chosen = {name for name, one in parts(config).items() if one.train == "lora"}
        left = others(model, chosen)
    add_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, generator=drawn, leave=left)


def _change_features(model: nn.Module, config: ModelConfig, images: Batch, seed: int) -> None:
    """Add to a network's features or expand them, and give it a new head that takes them.

    Raises:
        ConfigError: A layer cannot be taken, or the head is not linear.
    """
    keys = {"model.feature_layers": config.feature_layers, "model.expand": config.expand.use}
    if not (key := next((key for key, value in keys.items() if value), None)):
        return
    network = halves(model, key)
    head = network.head
    if type(head) is not nn.Linear:
        raise ConfigError(
            f"{key} needs a network whose head is one linear layer, and this one's is a "
            f"{type(head).__name__}; use another network"
        )
    if config.feature_layers:
        add_feature_layers(network.backbone, config.feature_layers, images)
        features = forward(network.backbone, images, training=False).shape[1]
        head = glorot(nn.Linear(features, head.out_features, bias=head.bias is not None))
    network.head = expanded_head(head, head.in_features, config, seed) if config.expand.use else head


def _change_head(model: nn.Module, config: ModelConfig, images: Batch, num_classes: int) -> None:
    """Give a network the head that ``model.head`` names.

    Raises:
        ConfigError: The network has no backbone and head, its features are no rows, or they are expanded.
    """
    network = halves(model, "model.head")
    if config.expand.use:
        raise ConfigError("model.expand needs the network's own linear head; leave model.head out")
    features = feature_rows(forward(network.backbone, images, training=False), "model.head")
    network.head = registry.build("head", config.head, in_features=features.shape[1], num_classes=num_classes)


def _check_frozen(frozen: Collection[str], moved: Collection[str]) -> None:
    if both := set(moved).intersection(frozen):
        raise ConfigError(
            f"model.frozen matches {min(both)!r}, which its layer changes in training; let the pattern "
            "match all tensors of that layer, so that it stays in evaluation"
        )


def _check_expansion(config: ModelConfig, groups: ParameterGroups) -> None:
    """Refuse to train a backbone behind which features become whole numbers.

    Raises:
        ConfigError: A tensor of it is not frozen.
    """
    if config.expand.use and any(n.startswith("backbone.") for n in groups.shared + groups.personal):
        raise ConfigError(
            f"model.expand = {config.expand.use!r} needs a backbone that nobody trains, as whole numbers "
            'have no gradient; set model.train = "head"'
        )


def _try(model: nn.Module, images: Batch, training: bool, where: str) -> Any:
    try:
        return repeatable(model, images, training)
    except (Exception, SystemExit) as error:
        channels, height, width = images.shape[1:]
        raise ConfigError(
            f"{where}: it cannot work on images of {height} x {width} with {channels} channel(s) "
            f"in {'training' if training else 'evaluation'}: {first_line(error)}"
        ) from error
