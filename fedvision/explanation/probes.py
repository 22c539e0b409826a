"""What a pass over a network leaves at its layers, and the maps that are made of it and of its gradients.

A probe is attached for one pass over one image. Where a backbone averages its features with those of the
mirror image, the pass visits its layers a second time, and the second map is mirrored back.

Shape letters: F features, T tokens; a map is [F, h, w].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Arrange = Callable[[torch.Tensor], torch.Tensor]


class Probe(ABC):
    """Notes tensors of a pass and makes a map of them."""

    name: str
    """The method's."""

    def __init__(self) -> None:
        self.noted: list[torch.Tensor] = []
        """In the order of the pass."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Note what passes inside the block."""
        self.noted.clear()
        with ExitStack() as stack:
            for handle in self._hooks(stack):
                stack.callback(handle.remove)
            yield

    @abstractmethod
    def _hooks(self, stack: ExitStack) -> Iterator[RemovableHandle]:
        """Yield the hooks that note; what else is changed for the pass is put back by the stack."""

    @abstractmethod
    def relevance(self, noted: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the map float32 [h, w], >= 0, of one visit's tensors and of a score's gradients by them."""

    def map(self, gradients: Sequence[torch.Tensor], visits: int) -> torch.Tensor:
        """Return the map [h, w] of a pass.

        Args:
            gradients: Of the score, by each noted tensor.
            visits: How often the pass went through the layers: the second time over the mirror image.
        """
        each = len(self.noted) // visits
        found = []
        for visit in range(visits):
            part = slice(visit * each, (visit + 1) * each)
            one = self.relevance(self.noted[part], gradients[part])
            found.append(one.flip(-1) if visit else one)
        return torch.stack(found).sum(0)


def cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Return Grad-CAM's map [h, w]: ``relu(sum_f a_f A_f)``, a_f the mean of the gradient over places.

    Selvaraju et al. 2017, "Grad-CAM", arXiv 1610.02391, equations 1 and 2.

    Args:
        activations: A [F, h, w].
        gradients: Of the class's logit by A, [F, h, w].
    """
    weights = gradients.mean((1, 2))
    return torch.relu((weights[:, None, None] * activations).sum(0))


def hires_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Return HiResCAM's map [h, w]: ``relu(sum_f G_f A_f)``, place by place.

    Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM", arXiv 2011.08891. Behind a mean over places G is
    the same everywhere and this is Grad-CAM; where a layer weighs each place on its own, Grad-CAM lights
    places that the network did not use.

    Args:
        activations: A [F, h, w].
        gradients: G, of the class's logit by A, [F, h, w].
    """
    return torch.relu((gradients * activations).sum(0))


class CamProbe(Probe):
    """HiResCAM, or Grad-CAM, at a layer's output.

    Args:
        layer: The layer.
        arrange: Makes a map [1, F, h, w] of what it returns or, with ``argument``, of what it gets.
        argument: Whether its first argument is meant instead of its output.
        mean: Whether gradients are averaged over places, as Grad-CAM does.
    """

    def __init__(
        self, layer: nn.Module, arrange: Arrange, *, argument: bool = False, mean: bool = False
    ) -> None:
        super().__init__()
        self.name, self._map = ("grad-cam", cam) if mean else ("hires-cam", hires_cam)
        self._layer, self._arrange, self._argument = layer, arrange, argument

    def _hooks(self, stack: ExitStack) -> Iterator[RemovableHandle]:
        def note(layer: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
            found = args[0] if self._argument else output
            self.noted.append(found[0] if isinstance(found, tuple) else found)

        if self._argument:
            yield self._layer.register_forward_pre_hook(note)
        else:
            # Before a hook that ends the pass there (models.taps).
            yield self._layer.register_forward_hook(note, prepend=True)

    def relevance(self, noted: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the map [h, w]."""
        return self._map(self._arrange(noted[0])[0].float(), self._arrange(gradients[0])[0].float())
