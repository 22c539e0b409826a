"""What can be trained K clients at once, and in one line why not.

A stack must give what the serial loop gives. Known obstacles are named; whatever else a network or a loss
may do is found by a trial: two clients stacked against the same two one after the other, and an image
alone against the same image beside another (padding must not be seen).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedvision import registry, seeding
from fedvision.config import TrainingConfig
from fedvision.data.transforms import input_shape
from fedvision.errors import first_line
from fedvision.models.freezing import training_mode
from fedvision.tasks.base import Task
from fedvision.training.loop import LoopSettings
from fedvision.training.sgd import SGD
from fedvision.types import LossFn, State

ELEMENTWISE = (
    SGD,
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Rprop,
    torch.optim.ASGD,
)
"""Optimisers that move each number by its own gradients: K clients' tensors may lie on each other."""
_NOT_BY_THE_RATE = (torch.optim.Rprop, torch.optim.ASGD)
_CLIENTS, _IMAGES = 2, 2
# Reduced precision of matrix units is tolerated; a network that mixes images or clients is far beyond it.
_TOLERANCE = 0.02


def supports_vmap(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    loss: Callable[[torch.Tensor], LossFn],
    settings: LoopSettings,
) -> str | None:
    """Return in one line why clients of an experiment cannot be trained at once; None where they can.

    Args:
        model: The network, on ``settings.device``.
        image_shape: (H, W, channels) of the images before they are resized.
        num_classes: C.
        loss: Class counts [C] or [K, C] -> the experiment's loss.
        settings: Task, optimiser, transforms, device and seed of the run.
    """
    if not settings.task.stacks:
        return f"the task {settings.task.name!r} has no form for several clients"
    training_mode(model)
    return (
        _settings(settings)
        or _layers(model)
        or _trial_of_loss(loss, settings.task, num_classes, image_shape[:2])
        or _trial_of_model(model, image_shape, settings)
    )


def _settings(settings: LoopSettings) -> str | None:
    for key in ("accumulate", "checkpoint_activations", "compile"):
        if (value := getattr(settings.training, key)) > (key == "accumulate"):
            return f"training.{key} = {str(value).lower()} has no form for several clients"
    if settings.training.precision == "float16":
        return "float16 skips steps that overflow, and each client's own ones"
    if settings.transform.config.mixup:
        return "mixup blends the images of a batch, and batches in a stack are padded"
    use = settings.training.optimizer.use
    if registry.resolve("optimizer", use).call not in ELEMENTWISE:
        return f"the optimiser {use!r} is not known to move each number by itself"
    return None


def scalable(training: TrainingConfig) -> bool:
    """Return whether the optimiser's step is its learning rate times what does not depend on that."""
    return registry.resolve("optimizer", training.optimizer.use).call not in _NOT_BY_THE_RATE


def _layers(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if module.training and isinstance(module, _BatchNorm):
            return f"batch norm ({name}) would measure the padding of a stack"
        if module.training and _drops(module):
            return f"dropout ({name}) draws from a stream of each client"
        if isinstance(module, nn.RNNBase):
            return f"torch's recurrent layers ({name}) have no stacked form"
    return None


def _drops(module: nn.Module) -> bool:
    """Return whether a module drops something: torch's dropout layers keep their share in ``p``."""
    share = module.p if isinstance(module, _DropoutNd) else 0.0
    return (module.dropout if isinstance(module, nn.RNNBase) else share) > 0


def _trial_of_loss(
    loss: Callable[[torch.Tensor], LossFn], task: Task, num_classes: int, image_size: tuple[int, int]
) -> str | None:
    """Compare the loss of stacked counts with each client's own."""
    generator, examples = seeding.torch_stream(0, "trial"), task.example_targets(num_classes, image_size)
    counts = torch.randint(1, 9, (_CLIENTS, num_classes), generator=generator)
    labels = examples[torch.randint(num_classes, (_CLIENTS, _IMAGES), generator=generator)]
    logits = torch.randn(_CLIENTS, _IMAGES, task.outputs(num_classes), generator=generator)
    try:
        together = loss(counts)(logits, labels)
        apart = torch.stack([loss(n)(z, y) for n, z, y in zip(counts, logits, labels, strict=True)])
        alone = loss(counts)(logits[:, :1], labels[:, :1])
    except Exception as error:
        return f"the loss does not take several clients at once: {_first_sentence(error)}"
    if not _alike(together, apart):
        return "the loss gives several clients at once other values than one by one"
    return (
        None if _alike(together[:, :1], alone) else "the loss of an image depends on the others of its batch"
    )


def _trial_of_model(
    model: nn.Module, image_shape: tuple[int, int, int], settings: LoopSettings
) -> str | None:
    """Compare the logits of stacked weights with each client's own; the model's buffers stay as they are."""
    shape = input_shape(settings.transform.config, image_shape)
    generator = seeding.torch_stream(settings.seed, "trial")
    x = torch.randn(_CLIENTS, _IMAGES, *shape, generator=generator).to(settings.device)
    stacked = {name: _two(parameter.detach(), generator) for name, parameter in model.named_parameters()}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        reason = _compare(model, stacked, x)
        changed = [name for name, own in model.named_buffers() if not torch.equal(own, before[name])]
        return reason or (
            f"the network changes its buffer {changed[0]!r} while it trains" if changed else None
        )
    except Exception as error:
        return f"the network has no stacked form: {_first_sentence(error)}"
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


@torch.no_grad()
def _compare(model: nn.Module, stacked: State, x: torch.Tensor) -> str | None:
    def logits(tensors: State, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(model, tensors, (images,))
        return found

    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # An operation without a batching rule would be done client by client, with a warning.
        warnings.simplefilter("error")
        together = vmap(logits)(stacked, x)
    clients = [{name: tensor[k] for name, tensor in stacked.items()} for k in range(_CLIENTS)]
    apart = torch.stack([logits(tensors, images) for tensors, images in zip(clients, x, strict=True)])
    if not _alike(together, apart):
        return "the network gives several clients at once other logits than one by one"
    if not _alike(apart[0, :1], logits(clients[0], x[0, :1])):
        return "the network's logits of an image depend on the others of its batch"
    return None


def _two(one: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a tensor and one beside it, for two clients [2, ...]."""
    noise = torch.randn(one.shape, generator=generator).to(one)
    return torch.stack([one, one + 0.05 * noise])


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    scale = float(b.abs().max()) + 1e-6
    return a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE * scale


def _first_sentence(error: Exception) -> str:
    return first_line(error).split(". ")[0].rstrip(".")
