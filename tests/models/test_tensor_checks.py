"""Networks whose state cannot be averaged, kept or saved are refused; what stays on clients is found."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.models.tensor_checks import (
    check_hidden,
    check_repeats,
    check_tensors,
    repeatable,
    trained_names,
    trains_alone,
)

IMAGES = torch.ones(2, 1, 4, 4)


class Net(nn.Module):
    """A linear network to which a test adds what it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 4]."""
        logits: torch.Tensor = self.head(self.body(images.flatten(1)))
        return logits


class Extra(Net):
    """With a state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        """Return a dict."""
        return {"rounds": 3}

    def set_extra_state(self, state: Any) -> None:
        """Take it."""


class Hidden(Net):
    """Counts its batches outside its state."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=persistent)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Count, then return logits."""
        if self.training:
            self.seen += 1
        return super().forward(images)


def _with(**changes: Any) -> nn.Module:
    model = Net()
    for name, thing in changes.items():
        if isinstance(thing, nn.Parameter):
            setattr(model, name, thing)
        else:
            model.register_buffer(name, thing)
    return model


def _overlapping() -> nn.Module:
    model = Net()
    model.head.weight = nn.Parameter(model.body.weight.data[:, :4])
    return model


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (_with(phase=nn.Parameter(torch.ones(3, dtype=torch.complex64))), "'phase' in its state is complex"),
        (_with(depth=torch.ones(3, dtype=torch.uint16)), "'depth' in its state is uint16"),
        (_with(tiny=torch.ones(3).to(torch.float8_e4m3fn)), "'tiny' in its state is float8_e4m3fn"),
        (_with(table=torch.ones(3, 3).to_sparse()), "'table' in its state is sparse"),
        (_with(wide=torch.ones(1).expand(5)), "numbers of 'wide' share memory"),
        (Extra(), "'_extra_state' in its state is dict of get_extra_state"),
        (_overlapping(), "'head.weight' and 'body.weight' share memory but are two tensors"),
    ],
)
def test_a_state_that_cannot_be_averaged_or_saved_is_refused(model: nn.Module, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        check_tensors(model, "[model]")


def test_tied_parameters_and_whole_numbers_are_taken() -> None:
    model = _with(count=torch.zeros((), dtype=torch.int64), mask=torch.ones(2, dtype=torch.bool))
    model.tied = model.head
    check_tensors(model, "[model]")


def test_neighbours_in_one_memory_are_taken() -> None:
    model, flat = Net(), torch.ones(32)
    model.body.bias, model.head.bias = nn.Parameter(flat[:4]), nn.Parameter(flat[4:8])
    check_tensors(model, "[model]")


def test_a_counter_outside_the_state_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'seen'.*persistent=True"):
        check_hidden(Hidden(persistent=False), IMAGES, "[model]")
    check_hidden(Hidden(persistent=True), IMAGES, "[model]")


class Remembers(Net):
    """Keeps something outside its state that what it returns depends on, in training or in evaluation."""

    def __init__(self, memory: Any, step: Callable[[Any, torch.Tensor], Any], training: bool) -> None:
        super().__init__()
        self.memory, self.step, self.read_in = memory, step, training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Update the memory in training, and use it."""
        if self.training:
            self.memory = self.step(self.memory, images)
        last = self.memory[-1] if isinstance(self.memory, list) else self.memory
        return super().forward(images) + (last if self.training == self.read_in else 0)


def _check(model: nn.Module) -> None:
    answers = {training: repeatable(model, IMAGES, training) for training in (False, True)}
    check_repeats(model, IMAGES, answers, "[model]")


@pytest.mark.parametrize(
    ("memory", "step"),
    [
        (1.0, lambda scale, _: scale * 0.9),
        (torch.zeros(()), lambda mean, images: 0.9 * mean + 0.1 * images.mean()),
        ([0.0], lambda seen, images: [*seen, seen[-1] + float(images.sum())]),
    ],
    ids=["number", "tensor", "list"],
)
@pytest.mark.parametrize("training", [False, True])
def test_what_a_network_remembers_outside_its_state_is_refused(
    memory: Any, step: Callable[[Any, torch.Tensor], Any], training: bool
) -> None:
    """It went from client to client inside a process: one worker ended in another model than two."""
    with pytest.raises(ConfigError, match=f"otherwise in {'training' if training else 'evaluation'}, though"):
        _check(Remembers(memory, step, training))


def test_networks_that_answer_alike_are_taken() -> None:
    """Dropout, random numbers of Python's, running statistics and what is found once are no memory."""

    class Draws(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.side = images.shape[-1]
            return super().forward(images) * random.random()

    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=None), nn.Dropout(0.5), nn.Flatten()
    for model in (Draws(), nn.Sequential(*layers), Remembers(0.0, lambda seen, images: seen, True)):
        _check(model)


def test_running_statistics_after_training() -> None:
    """Training changes weights and running statistics and the latter are put back."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = model[1].running_mean.clone()
    names = ("0.bias", "1.running_mean", "1.running_var")
    assert trained_names(model, names, IMAGES) == names
    assert torch.equal(model[1].running_mean, before)
    assert trained_names(model, (), IMAGES) == ()


def test_training_leaves_parameters_without_gradient_and_constants() -> None:
    model = _with(scale=torch.ones(2))
    model.body.requires_grad_(False)
    assert trained_names(model, ("body.weight", "scale"), IMAGES) == ()


def test_batch_norm_of_vectors_cannot_train_alone() -> None:
    vectors = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16))
    assert not trains_alone(vectors, IMAGES[:1])
    assert trains_alone(nn.BatchNorm2d(1), IMAGES[:1])


def test_compiled_networks_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"compiled by torch\.jit"):
        check_tensors(nn.Sequential(compiled), "[model]")
