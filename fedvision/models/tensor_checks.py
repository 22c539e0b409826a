"""What a federation cannot carry of a network, found before the first round.

Whatever a network's training changes must be averaged, kept by the client or set back for each client. What
is none of these would go from client to client inside a process, and serial runs, workers and resumed runs
would differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fedvision import seeding
from fedvision.errors import ConfigError
from fedvision.inputs import Batch
from fedvision.models.freezing import training_mode

AVERAGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that a strategy can average and a message can carry."""
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of numbers that stay as they are and that a model's file can hold."""


def check_tensors(model: nn.Module, where: str) -> None:
    """Refuse what cannot be averaged, saved or loaded as an independent tensor.

    Args:
        model: The network.
        where: Its place in the experiment, for the error.

    Raises:
        ConfigError: A part is compiled by torch.jit; the state holds something that is no tensor; a tensor is
            complex, sparse, quantised or of a type that no file holds; two share memory; a trained parameter
            is not in the state.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        # One process measured such a network with other weights than those it had loaded.
        raise ConfigError(
            f"{where}: it has parts compiled by torch.jit, into which weights cannot be loaded reliably; "
            "give the network as it is in Python"
        )
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if fault := _fault(name, value):
            raise ConfigError(f"{where}: {name!r} in its state is {fault}")
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, value in state.items():
        if id(value) not in own:
            raise ConfigError(
                f"{where}: {name!r} in its state is a copy, neither a parameter nor a buffer, so nothing can "
                "be loaded into it; leave state_dict as torch has it"
            )
    _check_memory(state, where)
    held = {id(tensor) for tensor in state.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise ConfigError(
                f"{where}: the parameter {name!r} is trained and not in its state_dict, so no client could "
                "send it"
            )


def _fault(name: str, value: object) -> str | None:
    if name.endswith("_extra_state") or not isinstance(value, torch.Tensor):
        return f"{type(value).__name__} of get_extra_state, neither averaged nor saved; make it a buffer"
    if value.layout != torch.strided or value.is_quantized:
        return "sparse or quantised and has no average; make it a dense tensor"
    if value.is_complex():
        return "complex, which is not averaged; hold it as two real tensors (torch.view_as_real)"
    if value.dtype not in AVERAGED + WHOLE:
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind}, which is neither averaged nor saved; make it float32 or int64"
    return None


def _check_memory(state: dict[str, torch.Tensor], where: str) -> None:
    """Refuse tensors that lie over each other; one tensor under two names is one."""
    spans: dict[int, tuple[int, int, int, str]] = {}
    for name, tensor in state.items():
        if not tensor.numel():
            continue
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        if reach < tensor.numel():
            raise ConfigError(
                f"{where}: numbers of {name!r} share memory (expand), so nothing can be loaded into it; "
                "clone it"
            )
        start = tensor.data_ptr()
        spans.setdefault(
            id(tensor),
            (tensor.untyped_storage().data_ptr(), start, start + reach * tensor.element_size(), name),
        )
    last = None
    for storage, start, end, name in sorted(spans.values()):
        if last and last[0] == storage and start < last[1]:
            raise ConfigError(
                f"{where}: {last[2]!r} and {name!r} share memory but are two tensors, which training would "
                "take apart; tie them by giving both modules the same Parameter, or clone one"
            )
        last = (storage, end, name)


@torch.no_grad()
def check_hidden(model: nn.Module, images: Batch, where: str) -> None:
    """Refuse a buffer outside the state that training changes: it would go from client to client.

    Raises:
        ConfigError: There is one.
    """
    held = {id(value) for value in model.state_dict(keep_vars=True).values()}
    hidden = {name for name, buffer in model.named_buffers() if id(buffer) not in held}
    if not hidden:
        return
    for name in sorted(hidden & changed(model, images)):
        raise ConfigError(
            f"{where}: training changes its buffer {name!r}, which is not in its state and would go from "
            "client to client; register it with persistent=True"
        )


def check_repeats(model: nn.Module, images: Batch, first: Mapping[bool, Any], where: str) -> None:
    """Refuse a network whose answer depends on what it was given before, by what is not in its state.

    A count, a mean or a cache in an attribute of Python's would go from client to client inside a process,
    and would be in no message and no file. Attributes may hold anything: answers are compared.

    Args:
        model: The network, its buffers as they were when ``first`` was computed.
        images: A batch [B, channels, H, W].
        first: What ``repeatable`` returned of it in evaluation (False) and in training (True), in this order.
        where: The network's place in the experiment, for the error.

    Raises:
        ConfigError: An answer is another one now.
    """
    for training, answer in first.items():
        if not _equal(repeatable(model, images, training), answer):
            mode = "training" if training else "evaluation"
            raise ConfigError(
                f"{where}: used once, it answers the same images otherwise in {mode}, though its state is "
                "the same: something outside of its state, such as a number or a list in an attribute, "
                "changes and would go from client to client; make it a buffer (register_buffer)"
            )


@torch.no_grad()
def repeatable(model: nn.Module, images: Batch, training: bool) -> Any:
    """Return the output for images on the same random numbers each time; buffers are put back."""
    training_mode(model, training)
    with seeding.global_streams(0, "trial"), put_back(model):
        return model(images)


def _equal(one: Any, other: Any) -> bool:
    """Return whether outputs are the same: tensors, also in sequences and mappings; else of no matter."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other)


@torch.no_grad()
def changed(model: nn.Module, images: Batch) -> set[str]:
    """Return the names of the buffers that a forward pass in training changes; they are put back."""
    training_mode(model)
    with put_back(model) as before:
        model(images)
        return {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


def trained_names(model: nn.Module, names: Iterable[str], images: Batch) -> tuple[str, ...]:
    """Return those of the named tensors that training changes.

    Args:
        model: The network.
        names: Of tensors in its state.
        images: A batch [B, channels, H, W] to find out with.
    """
    names = tuple(names)
    if not names:
        return ()
    tensors, moved = model.state_dict(keep_vars=True), changed(model, images)
    return tuple(name for name in names if tensors[name].requires_grad or name in moved)


@torch.no_grad()
def trains_alone(model: nn.Module, image: Batch) -> bool:
    """Return whether a network takes a batch of a single image [1, channels, H, W] in training."""
    training_mode(model)
    try:
        with put_back(model):
            model(image)
    except Exception:
        return False
    return True


@contextmanager
def put_back(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Put a model's buffers back afterwards; yields them as they were."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield before
    finally:
        for name, buffer in model.named_buffers():
            if name in before:
                buffer.copy_(before[name])
