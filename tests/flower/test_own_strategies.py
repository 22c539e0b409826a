"""What a strategy's own code may do wrong is said in one sentence that names the method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flwr.app import Message

from fedvision.errors import RunError
from fedvision.flower.strategy import FlowerStrategy
from fedvision.strategies.base import RoundStrategy
from fedvision.types import State, Update


class _Own(RoundStrategy):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def combine(self, state: State, updates: Iterator[Update]) -> State:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (None, "round 2: combine of the strategy _Own returned a NoneType; it must return"),
        (KeyError("w"), "round 2: combine of the strategy _Own raised KeyError: 'w'; mend it"),
        (ZeroDivisionError("by zero"), "raised ZeroDivisionError: by zero"),
    ],
)
def test_a_combine_that_fails(result: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = FlowerStrategy(_Own(result), seed=0)
    update = Update(client=0, position=0, examples=1, state={"w": torch.zeros(1)})
    monkeypatch.setattr(strategy, "_update", lambda reply: update)
    replies: Iterator[Message] = iter([object()])  # type: ignore[list-item]
    with pytest.raises(RunError, match=sentence):
        strategy._combine(replies, 2)
