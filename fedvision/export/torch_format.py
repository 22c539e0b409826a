"""``torch.export``'s archive (.pt2): a program that PyTorch runs without this package."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvision.export.onnx_format import quiet, refusal

if TYPE_CHECKING:
    import torch

    from fedvision.export.graph import PredictionGraph


def encode(graph: PredictionGraph, example: tuple[torch.Tensor, ...], facts: Mapping[str, str]) -> bytes:
    """Return the file; the facts are its ``extra_files``, one each.

    Args:
        graph: What it computes.
        example: One batch of inputs.
        facts: Texts by name.

    Raises:
        ConfigError: PyTorch cannot export the network.
    """
    import torch

    with quiet(), refusal("a torch.export program"):
        program = torch.export.export(graph, example, dynamic_shapes=graph.dynamic_shapes())
        for node in program.graph.nodes:  # paths of this machine
            node.meta.pop("stack_trace", None)
        # They would be pickled into the archive, and nothing needs them.
        program.example_inputs = None
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(facts))
    return buffer.getvalue()


class ProgramPredictor:
    """A .pt2 file at work.

    Args:
        content: The file, of one's own: loading another's may run its code, as parts of such an archive may
            be pickled.
    """

    def __init__(self, content: bytes) -> None:
        import torch

        with quiet():
            self._module = torch.export.load(io.BytesIO(content)).module()

    def __call__(
        self, images: NDArray[np.uint8], further: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities float32 [N, C] of images uint8 [N, H, W, channels] and rows float32 [N, W]."""
        import torch

        rows = () if further is None else (torch.from_numpy(further),)
        with torch.no_grad():
            found: NDArray[np.float32] = self._module(torch.from_numpy(images), *rows).numpy()
        return found
