"""The least that a device must do for W1: operations, bytes and kernels, and the rates it could do them at.

The roofline is the least time that the arithmetic could take on the device: operations at the rate of a large
matrix product, or bytes (inputs and outputs of every operation, without fusion) at the rate of a large copy,
whichever is longer. Both rates are measured on the spot, TF32 allowed, as it is in cuDNN's convolutions.

Kernels are counted as torch dispatches them, so a processor counts what a GPU would launch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from phases import run
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fedvision import ExperimentConfig
from fedvision.experiment import Experiment
from fedvision.models import mkldnn_layout
from fedvision.training.client_trainer import loop_settings
from fedvision.types import PluginSpec

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
"""Operations that are no views to torch and launch nothing: memory is taken, or seen in another shape."""


class Dispatched(TorchDispatchMode):
    """Counts the operations that launch a kernel, and the bytes of their inputs and outputs.

    Views, allocations and questions whose answer is no tensor launch none. An operation counts once, though
    some (a convolution's backward pass) take several kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        changes = func._schema.is_mutable or any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(out))
        if changes and not func.is_view and func.overloadpacket.__name__ not in NO_KERNEL:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            self.launches += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def launches(config: ExperimentConfig, engine: PluginSpec) -> float:
    """Return how many kernels one epoch of a round's clients launches: the mean over the rounds of a run.

    The run is taken with twice the epochs, and as it is, and the difference counts: what happens once a
    round, such as a client's copies of the weights and the server's mean, is no part of it. Layouts that only
    a processor gains by are left out.

    Args:
        config: The experiment, on the processor.
        engine: Trains it.
    """
    epochs = config.training.epochs
    twice = replace(config, training=replace(config.training, epochs=2 * epochs))
    counted = []
    for experiment in (config, twice):
        with patch.object(mkldnn_layout, "gains", lambda: False), Dispatched() as dispatched:
            run(experiment, engine)
        counted.append(dispatched.launches)
    return (counted[1] - counted[0]) / epochs / config.rounds


def work(config: ExperimentConfig, images: int, steps: int) -> tuple[float, float]:
    """Return the operations and bytes of so many images in so many steps, counted on steps of the network.

    Args:
        config: The experiment; its device is the one that counts.
        images: Images trained on, 28x28.
        steps: Steps of all clients.
    """
    settings = loop_settings(config, 1)
    model = settings.forward.place(Experiment.build(config).model).train()
    parameters = list(model.parameters())

    def step(size: int) -> None:
        pixels = torch.zeros(size, 28, 28, 1, dtype=torch.uint8, device=settings.device)
        labels = torch.zeros(size, dtype=torch.int64, device=settings.device)
        loss = F.cross_entropy(model(settings.transform.normalise(pixels)), labels)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=0.0)

    def counted(size: int) -> np.ndarray:
        with FlopCounterMode(display=False) as flops:
            step(size)
        with Dispatched() as dispatched:
            step(size)
        return np.array([flops.get_total_flops(), dispatched.bytes], dtype=float)

    step(2)
    # Both grow by a constant for each image.
    few, many = counted(1), counted(config.training.batch_size)
    slope = (many - few) / (config.training.batch_size - 1)
    flop, bytes_ = (few - slope) * steps + slope * images
    return float(flop), float(bytes_)


def images_and_steps(file: Path, rounds: int, batch: int) -> tuple[int, int]:
    """Return images and steps of all rounds but the first of a workload's file."""
    with np.load(file) as held:
        sizes = np.diff(held["ends"], prepend=0)[held["cohorts"][1:rounds]]
    return int(sizes.sum()), int(-(-sizes // batch).sum())


def plays(file: Path, rounds: int, batch: int) -> float:
    """Return how many launches are left of a round where a step is one, the mean over rounds from the first.

    A stack takes as many steps as its longest client.
    """
    with np.load(file) as held:
        sizes = np.diff(held["ends"], prepend=0)[held["cohorts"][:rounds]]
    return float((-(-sizes // batch)).max(1).mean())


def peaks(device: torch.device) -> tuple[float, float]:
    """Return operations a second of a matrix product and bytes a second, in and out, of a copy."""
    side, length = (8192, 2**28) if device.type == "cuda" else (1024, 2**26)
    a, b = torch.rand(2, side, side, device=device)
    source = torch.rand(length, device=device)
    target = torch.empty_like(source)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    product = _fastest(device, lambda: torch.mm(a, b))
    torch.set_float32_matmul_precision(precision)
    copy = _fastest(device, lambda: target.copy_(source))
    return 2 * side**3 / product, 2 * source.nbytes / copy


def _fastest(device: torch.device, call: Callable[[], object], repeats: int = 10) -> float:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)
