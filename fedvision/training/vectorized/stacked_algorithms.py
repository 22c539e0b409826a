"""The client halves of clients that are trained together, their tensors stacked, [K, ...]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import State, TrainRequest


class StackedClientAlgorithm:
    """K clients' algorithms of one class, begun.

    Args:
        model: The network; its values are nobody's.
        algorithms: One for each client.
        tensors: The clients' trained tensors [K, ...], holding what they begin with.
        requests: The clients' tasks.
        memories: What each algorithm returned before.

    Raises:
        ClientError: An algorithm lacks something.
    """

    def __init__(
        self,
        model: nn.Module,
        algorithms: Sequence[ClientAlgorithm],
        tensors: State,
        requests: Sequence[TrainRequest],
        memories: Sequence[State],
    ) -> None:
        self.algorithms = algorithms
        self.kind = type(algorithms[0])
        self.names: tuple[str, ...] = ()
        """The parameters that take part."""
        self.groups: dict[str, State] = {}
        """The algorithms' groups, each tensor [K, ...]."""
        self.numbers: State = {}
        """The algorithms' numbers, each [K]."""
        if self.plain:
            return
        for k, (algorithm, request, memory) in enumerate(zip(algorithms, requests, memories, strict=True)):
            own = {name: nn.Parameter(tensor[k]) for name, tensor in tensors.items()}
            algorithm.begin(model, own, request, memory)
        first = algorithms[0]
        self.names = tuple(first.parameters)
        self.groups = {
            group: {name: torch.stack([o.groups[group][name] for o in algorithms]) for name in state}
            for group, state in first.groups.items()
        }
        device = next(iter(tensors.values())).device
        self.numbers = {
            name: torch.tensor([float(o.numbers[name]) for o in algorithms]).to(device)
            for name in first.numbers
        }
        for k, algorithm in enumerate(algorithms):
            algorithm.groups = {
                group: {name: tensor[k] for name, tensor in state.items()}
                for group, state in self.groups.items()
            }

    @property
    def plain(self) -> bool:
        """Whether nothing is added to the loss."""
        return self.kind is ClientAlgorithm

    def after_backward(
        self, parameters: Mapping[str, nn.Parameter], groups: Mapping[str, State], numbers: State
    ) -> None:
        """Change the gradients of the first clients.

        Args:
            parameters: Theirs, [k, ...].
            groups: Their rows of ``groups``, here or kept elsewhere.
            numbers: Their rows of ``numbers``.
        """
        if not self.plain:
            self.kind.correct_gradients({name: parameters[name] for name in self.names}, groups, numbers)

    def finish(self, steps: Sequence[int], lrs: Sequence[float]) -> list[tuple[dict[str, State], State]]:
        """Return what each algorithm returns at the end of the round."""
        return [
            algorithm.finish(count, lr)
            for algorithm, count, lr in zip(self.algorithms, steps, lrs, strict=True)
        ]


def first(groups: Mapping[str, State], count: int) -> dict[str, State]:
    """Return the rows of the first clients, as views."""
    return {
        group: {name: tensor[:count] for name, tensor in state.items()} for group, state in groups.items()
    }
