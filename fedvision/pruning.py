"""Structured pruning: a finished run's network with fewer channels, to be fine-tuned by its federation.

Whole channels of convolutions and units of dense layers are taken out, those whose weights are smallest: Li
et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710. Which belong together, because layers
add or follow each other, is what torch-pruning finds: Fang et al. 2023, "DepGraph: Towards Any Structural
Pruning", arXiv 2301.12900. Every layer keeps the same share, so what is left is a network of the same kind
with a smaller ``width``: it is described, trained, sent and exported as any other.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision import derived_model, registry
from fedvision.config import ExperimentConfig, ModelConfig
from fedvision.errors import ConfigError
from fedvision.formatting import listed
from fedvision.trained_model import TrainedModel

if TYPE_CHECKING:
    from torch import nn

    from fedvision.types import State

EXPERIMENT = "fine-tune.toml"
"""The experiment that trains a pruned network further."""
_WIDTH, _FURTHER = "width", ("dense",)
"""The argument of a network that says how many channels it has, and those that shrink with it."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned network in its folder."""

    folder: Path
    """Holds ``model.json`` and ``model.safetensors``, as a run folder does, and ``fine-tune.toml``."""
    model: ModelConfig
    """Its table ``[model]``."""
    parameters: tuple[int, int]
    """Numbers of the network before and after."""
    rounds: int
    """Of fine-tuning, in the experiment."""


def prune(run: Path, keep: float, out: Path, *, rounds: int | None = None) -> Pruned:
    """Write a run's network with a share of its channels, and the experiment that trains it further.

    Args:
        run: The run folder.
        keep: Share of the channels of each layer that stay, 0 < keep < 1.
        out: The new folder.
        rounds: Of fine-tuning; by default a third of the run's.

    Raises:
        ConfigError: The network has no ``width``, the share leaves nothing out, or a package is missing.
        RunFolderError: The run has no model of its own, or the folder is there.
    """
    if not 0 < keep < 1:
        raise ConfigError(f"--keep must be > 0 and < 1, not {keep:g}")
    if rounds is not None and rounds < 1:
        raise ConfigError(f"--rounds must be >= 1, not {rounds}")
    trained = derived_model.take(run, out)
    description = trained.description
    smaller = _smaller(description.model, keep)
    if importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(
            "pruning needs torch-pruning, which is not installed: pip install 'fedvision[prune]'"
        )
    state = _channels_kept(trained, smaller)
    experiment = _further(run, smaller, out, rounds)
    files = {EXPERIMENT: experiment.to_toml()}
    derived_model.write(run, out, replace(description, model=smaller), state, files)
    before = sum(p.numel() for p in trained.network.parameters())
    known = {name for name, _ in trained.network.named_parameters()}
    after = sum(tensor.numel() for name, tensor in state.items() if name in known)
    return Pruned(folder=out, model=smaller, parameters=(before, after), rounds=experiment.rounds)


def _smaller(model: ModelConfig, keep: float) -> ModelConfig:
    """Return the table of the network with a share of the channels.

    Raises:
        ConfigError: It has no key ``width``, or all would stay.
    """
    factory = registry.resolve("model", model.use)
    parameters = inspect.signature(factory.call).parameters
    width = model.args.get(_WIDTH, parameters[_WIDTH].default if _WIDTH in parameters else None)
    if not isinstance(width, int) or model.use == "fusion":
        raise ConfigError(
            f"[model] use = {model.use!r} cannot be pruned: only networks of convolutions with a key width "
            "can (cnn, resnet8, resnet18, ...); distil it into one with [strategy] use = 'distillation'"
        )
    fewer = max(1, round(keep * width))
    if fewer == width:
        raise ConfigError(f"--keep {keep:g} of a width of {width} leaves all channels; name a smaller share")
    args: dict[str, Any] = {**model.args, _WIDTH: fewer}
    for name in _FURTHER:
        if name in parameters:
            units = model.args.get(name, parameters[name].default)
            args[name] = max(1, units * fewer // width)
    return replace(model, args=args)


def _channels_kept(trained: TrainedModel, smaller: ModelConfig) -> State:
    """Return the tensors of the smaller network, taken out of the larger one.

    Raises:
        ConfigError: What is left is no such network.
    """
    import torch
    import torch_pruning

    from fedvision.data.transforms import input_shape
    from fedvision.models.build import build_model
    from fedvision.models.state import get_state

    description = trained.description
    channels, height, width = input_shape(description.transforms.config, description.image.shape)
    target = build_model(
        smaller,
        task=trained.task,
        num_classes=len(description.classes),
        in_channels=channels,
        image_size=(height, width),
        seed=0,
    )
    network = deepcopy(trained.network).to(memory_format=torch.contiguous_format).eval()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # on details of its own tracing
        pruner = torch_pruning.pruner.MagnitudePruner(
            network,
            torch.zeros(1, channels, height, width),
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio_dict=_ratios(network, target),
            ignored_layers=[network.head],
        )
        pruner.step()
    expected = {name: tuple(tensor.shape) for name, tensor in target.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if found != expected:
        others = [name for name in expected if found.get(name) != expected[name]]
        raise ConfigError(
            f"[model] use = {smaller.use!r} cannot be pruned to width {smaller.args[_WIDTH]}: "
            f"{listed(others)} would not fit; try another share, such as 0.5"
        )
    return get_state(network, tuple(expected))


def _ratios(network: nn.Module, target: nn.Module) -> Mapping[Any, float]:
    """Return the share that is taken out of each layer whose outputs are fewer in the target.

    A little less, so that rounding errors do not take one channel more.
    """
    smaller = dict(target.named_modules())
    found: dict[Any, float] = {}
    for name, layer in network.named_modules():
        weight, other = getattr(layer, "weight", None), getattr(smaller[name], "weight", None)
        if weight is not None and other is not None and other.dim() > 1 and len(other) < len(weight):
            found[layer] = 1 - len(other) / len(weight) - 1e-9
    return found


def _further(run: Path, smaller: ModelConfig, out: Path, rounds: int | None) -> ExperimentConfig:
    """Return the experiment of a run with the pruned network as its beginning.

    Raises:
        ConfigError: The run's own experiment cannot be read.
    """
    config = ExperimentConfig.load(run / "config.toml")
    model = replace(config.model, args=smaller.args, weights=str(out.absolute()))
    rounds = rounds or max(1, config.rounds // 3)
    return replace(config, name=f"{config.name}-pruned", rounds=rounds, model=model)
