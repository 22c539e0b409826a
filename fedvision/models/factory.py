"""Call the factory of a network, and the network once."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedvision import registry
from fedvision.errors import ConfigError, PluginError, first_line
from fedvision.inputs import Batch
from fedvision.models.freezing import training_mode
from fedvision.models.tensor_checks import put_back
from fedvision.types import PluginSpec


def call_factory(config: PluginSpec, runtime: dict[str, Any]) -> nn.Module:
    """Return what the factory of a network builds.

    It gets of ``runtime`` what it names, and ``num_classes`` also where it takes any keyword.

    Args:
        config: ``[model]``, or a part.
        runtime: ``num_classes``, ``in_channels``, ``image_size`` and ``inputs``.

    Raises:
        PluginError: It is unknown, its keys do not fit, it fails, or returns no network.
        ConfigError: There are inputs beside pixels, and it reads none.
    """
    where = f"[model] use = {config.use!r}"
    registry.check("model", config, frozenset(runtime))
    parameters = inspect.signature(registry.resolve("model", config.use).call).parameters
    if runtime.get("inputs") and "inputs" not in parameters:
        raise ConfigError(
            f"{where}: it reads pixels alone and not [model.inputs]; take a network that does, such as "
            "'fusion', or leave them out"
        )
    spec = PluginSpec(use=config.use, args=config.args)
    if "num_classes" not in parameters and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        classes = runtime.pop("num_classes")
        spec = replace(spec, args={**spec.args, "num_classes": classes})
    try:
        model = registry.build("model", spec, **runtime)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where}: building it failed: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise PluginError(f"{where}: it returns {type(model).__name__}, not a torch.nn.Module")
    return model


def wants_colour(model: nn.Module, images: Batch) -> bool:
    """Return whether a network fails on gray images and its first convolution takes three channels."""
    try:
        forward(model, images, training=False)
    except Exception:
        convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
        return any(first.in_channels == 3 for first in itertools.islice(convolutions, 1))
    return False


@torch.no_grad()
def forward(model: nn.Module, images: Batch, training: bool) -> Any:
    """Return the output; batch norm's statistics are put back, as it counts what it sees in training."""
    training_mode(model, training)
    with put_back(model):
        return model(images)
