"""ONNX: written through ``torch.export``, run by ONNX Runtime on the CPU.

What PyTorch's exporter notes of each node, source lines with the paths of this machine among it, is not
written.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import ConfigError, first_line
from fedvision.export.onnx_branch import skip_equal_size

if TYPE_CHECKING:
    import torch

    from fedvision.export.graph import PredictionGraph

IMAGES, FURTHER, OUTPUT = "images", "further", "probabilities"
"""Names of the inputs and of the output."""
OPSET = 18
_LARGEST = 2**31 - 1
"""Bytes of a protobuf message."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Refuse to go on where a package is missing.

    Raises:
        ConfigError: One is not installed.
    """
    from importlib.util import find_spec

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"ONNX files need {' and '.join(missing)}, not installed here; pip install 'fedvision[export]'"
        )


def encode(graph: PredictionGraph, example: tuple[torch.Tensor, ...], facts: Mapping[str, str]) -> bytes:
    """Return the file.

    Args:
        graph: What it computes.
        example: One batch of inputs.
        facts: Its ``metadata_props``.

    Raises:
        ConfigError: PyTorch cannot export the network, or the file would be larger than ONNX allows.
    """
    import torch

    names = [IMAGES, FURTHER][: len(example)]
    with quiet(), refusal("ONNX"):
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            dynamic_shapes=graph.dynamic_shapes(),
            input_names=names,
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        found = program.model_proto
        skip_equal_size(found, IMAGES, graph.size)
    return encoded(found, facts)


def encoded(found: Any, facts: Mapping[str, str]) -> bytes:
    """Return a ``ModelProto`` as bytes: with these facts, without what its nodes say of the source code.

    Raises:
        ConfigError: It is larger than ONNX allows.
    """
    from onnx import helper

    _forget(found.graph)
    found.ClearField("metadata_props")
    helper.set_model_props(found, dict(facts))
    if (size := found.ByteSize()) > _LARGEST:
        raise ConfigError(
            f"the model has {size:,} bytes, and an ONNX file holds at most {_LARGEST:,}; export it with "
            "--format torch-export or safetensors"
        )
    content: bytes = found.SerializeToString()
    return content


def _forget(graph: Any) -> None:
    """Drop what a graph and the graphs inside it say of the source code, in place."""
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for one in (graph, *graph.node, *values):
        one.ClearField("metadata_props")
        one.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget(attribute.g)


class OnnxPredictor:
    """An ONNX file at work on the CPU.

    Args:
        content: The file.
        threads: Threads of the arithmetic.
    """

    def __init__(self, content: bytes, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3  # errors alone
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(
        self, images: NDArray[np.uint8], further: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities float32 [N, C] of images uint8 [N, H, W, channels] and rows float32 [N, W]."""
        given: dict[str, NDArray[Any]] = {IMAGES: images}
        if further is not None:
            given[FURTHER] = further
        found: NDArray[np.float32] = self._session.run([OUTPUT], given)[0]
        return found


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what exporters warn of and log: it is about their own code, and nobody can act on it."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


@contextmanager
def refusal(what: str) -> Iterator[None]:
    """Turn a failed export into one sentence.

    Raises:
        ConfigError: Something inside the block raised.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"the network cannot be written as {what}: PyTorch's exporter says: {type(cause).__name__}: "
            f"{first_line(cause)}"
        ) from error
