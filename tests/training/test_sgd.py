"""SGD: torch's own to the bit, and no compiler imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from fedvision import registry
from fedvision.training.sgd import SGD


def _walk(optimizer: Any, parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(7):
        optimizer.zero_grad(set_to_none=True)
        for place, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            # The last parameter has no gradient at first, and then again.
            if place < 2 or step in (2, 3, 5):
                parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.01},
        {"momentum": 0.8, "weight_decay": 0.1, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    ],
)
def test_it_is_torchs_sgd_to_the_bit(args: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), ())]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in "ab")
    _walk(SGD(ours, lr=0.1, **args), ours)
    _walk(torch.optim.SGD(theirs, lr=0.1, **args), theirs)
    for own, their in zip(ours, theirs, strict=True):
        assert torch.equal(own, their)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"lr": -1.0}, "lr must be >= 0"),
        ({"momentum": -0.1}, "momentum must be >= 0"),
        ({"weight_decay": float("nan")}, "weight_decay must be >= 0"),
        ({"nesterov": True}, "nesterov needs momentum"),
    ],
)
def test_wrong_arguments_are_refused(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SGD([nn.Parameter(torch.zeros(1))], **args)


def test_its_name_is_sgd_and_torchs_can_still_be_named() -> None:
    assert registry.resolve("optimizer", "sgd").call is SGD
    assert registry.resolve("optimizer", "SGD").call is SGD
    assert registry.names("optimizer")["sgd"] == "fedvision.training.sgd:SGD"
    assert registry.resolve("optimizer", "torch.optim:SGD").call is torch.optim.SGD


@pytest.mark.long
def test_a_step_imports_no_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from fedvision.training.sgd import SGD\n"
        "p = torch.nn.Parameter(torch.ones(2)); o = SGD([p], lr=0.1)\n"
        "o.zero_grad(); p.sum().backward(); o.step()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
