"""A transform of whose updates only the sum can be read: fixed point, with masks that cancel."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from fedvision.types import State
from fedvision.updates.base import UpdateTransform
from fedvision.updates.schema import UpdateSchema

UNIT = 2.0**-24


class MaskedSum(UpdateTransform):
    """Whole numbers of 2^-24, each client's hidden by numbers that add up to 0 over ``clients`` of them.

    Args:
        clients: Clients of a round, all of which must work in one process, in any order.
    """

    sum_only = True
    decoded: ClassVar[list[State]] = []
    """What ``decode`` was given."""

    def __init__(self, *, clients: int) -> None:
        self.clients, self._open = clients, dict[tuple[str, int], list[torch.Tensor]]()
        self._turn = 0

    def schema(self, schema: UpdateSchema) -> UpdateSchema:
        return UpdateSchema(tuple(replace(spec, dtype="int64") for spec in schema.tensors))

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        round, place = divmod(self._turn, self.clients)
        self._turn += 1
        sent = {}
        for number, (name, tensor) in enumerate(tensors.items()):
            generator = np.random.default_rng([round, number])
            shape = (self.clients - 1, *tensor.shape)
            masks = torch.from_numpy(generator.integers(-(2**63), 2**63, shape, np.int64))
            mask = masks[place] if place + 1 < self.clients else -masks.sum(0)
            sent[name] = torch.round(tensor.double() / UNIT).long() + mask
        return sent, {}

    def decode(self, tensors: State, schema: UpdateSchema) -> State:
        self.decoded.append(tensors)
        return {name: (tensor.double() * UNIT).float() for name, tensor in tensors.items()}
