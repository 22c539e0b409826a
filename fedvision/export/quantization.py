"""int8 by static quantization: weights and activations in 8 bits, with ranges that images settle.

ONNX Runtime's QDQ form: each quantized value stands between QuantizeLinear and DequantizeLinear, which
runtimes compute with its neighbours in whole numbers (Jacob et al. 2018, arXiv 1712.05877). Weights have a
scale for each output channel. Quantized are convolutions and matrix products with weights, and what stands
between them; not the pixels' way into the network, norms, attention's products and softmax, nor the first and
the last layer, which are a few weights that every image's decision rests on.

Weights use 7 of their 8 bits (``reduce_range``): processors with AVX2 or AVX-512 but without VNNI add pairs
of 8-bit products in 16 bits, which would overflow in silence.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fedvision import seeding
from fedvision.data.targets import Targets, strata
from fedvision.errors import ConfigError, DataError
from fedvision.export.onnx_format import FURTHER, IMAGES, check_packages, encoded, quiet

if TYPE_CHECKING:
    from fedvision.data.shards import Shard

Method: TypeAlias = Literal["percentile", "minmax", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
IMAGES_DEFAULT = 500
"""Calibration images, at most."""
_BATCH = 25
_HEAVY = ("Conv", "Gemm", "MatMul")
_FLOAT = ("Softmax", "Sigmoid", "LayerNormalization", "If", "GRU", "LSTM")
_CONSTANTS = ("scale", "shift", "resized.rows", "resized.columns")
"""Constants of ``PredictionGraph`` before the network."""


def draw(targets: Targets, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return images to calibrate with, rising numbers [n]: the classes take turns, so rare ones are there.

    Args:
        targets: Of N images; of several labels an image counts for its rarest.
        count: How many, at most.
        seed: Of the stream from which the images of a class are drawn.
    """
    stream = seeding.numpy_stream(seed, "calibration images")
    order = stream.permutation(len(targets))
    number = strata(targets)[order]
    turn = np.zeros(len(order), np.int64)  # the how manieth of its class an image is
    for one in np.unique(number):
        turn[number == one] = np.arange((number == one).sum())
    chosen: NDArray[np.int64] = np.sort(order[np.argsort(turn, kind="stable")[:count]])
    return chosen


def chosen_of(shard: Shard, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return which images of a shard calibrate: batches of one size, as ONNX Runtime 1.32 needs them.

    Args:
        shard: The images.
        count: How many, at most.
        seed: As for ``draw``.

    Returns:
        int64 [n], rising if the shard's are; n is below ``count`` by less than the number of batches.
    """
    most = min(count, len(shard))
    whole = most - most % max(1, -(-most // _BATCH))
    return shard.indices[draw(shard.labels[shard.indices], whole, seed)]


def quantize(
    content: bytes,
    shard: Shard,
    facts: Mapping[str, str],
    *,
    count: int = IMAGES_DEFAULT,
    method: Method = "percentile",
    edges: bool = False,
    seed: int = 0,
) -> bytes:
    """Return an ONNX file in int8.

    Args:
        content: The file in float32, as ``onnx_format.encode`` makes it.
        shard: Images of the network's size from which those for calibration are drawn, with what it reads
            beside them.
        facts: Texts for ``metadata_props``.
        count: Calibration images, at most.
        method: How a range follows from the values seen: ``"percentile"`` (99.999 % of them), ``"minmax"``
            (all) or ``"entropy"`` (the least Kullback-Leibler divergence).
        edges: Whether the first and the last layer are quantized too.
        seed: Of the images that are drawn.

    Raises:
        ConfigError: A package is missing, an argument is wrong, or nothing in the network can be quantized.
        DataError: There are no images.
    """
    check_packages()
    if method not in METHODS:
        raise ConfigError(f"the calibration method must be one of {', '.join(METHODS)}, not {method!r}")
    if count < 1:
        raise ConfigError(f"at least one image is needed for calibration, not {count}")
    if not len(shard):
        raise DataError("there are no images to calibrate with")
    own = chosen_of(shard, count, seed)
    with tempfile.TemporaryDirectory(prefix="fedvision-") as folder, _silent():
        found = _static(content, Path(folder), _batches(shard, own), method, edges)
    return encoded(found, facts)


def _static(
    content: bytes, folder: Path, batches: Iterator[dict[str, NDArray[Any]]], method: Method, edges: bool
) -> Any:
    """Return the quantized ``ModelProto``; ONNX Runtime's tools work on files."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(batches, None)

    plain, ready, result = (folder / name for name in ("float.onnx", "ready.onnx", "int8.onnx"))
    plain.write_bytes(content)
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    model = onnx.load(str(ready))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"unnamed_{number}"
    order_pools(model, edges)
    chosen, _ = to_quantize(model, edges)
    if not any(node.op_type in _HEAVY for node in model.graph.node if node.name in chosen):
        raise ConfigError(
            "--quantize int8: the network has no convolution or linear layer between its first and its last "
            "one, so nothing would be quantized; leave --quantize out"
        )
    onnx.save(model, str(ready))
    method_name = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[method]
    quantization.quantize_static(
        str(ready),
        str(result),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        calibrate_method=quantization.CalibrationMethod[method_name],
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in chosen],
    )
    return onnx.load(str(result))


def order_pools(model: Any, edges: bool = False) -> None:
    """Exchange a max-pooling and the ReLU next to it where that is faster, in place; the result is the same.

    Both are monotone. Between quantized layers the ReLU goes first: computed with its layer, it leaves the 8
    bits no negative values. After a layer in float32 the pooling goes first: a conversion to 8 bits that
    follows it would be moved before it, and ONNX Runtime 1.32 takes 50 times as long for a pooling in 8 bits
    there.

    Args:
        model: A ``ModelProto`` whose nodes have names.
        edges: As for ``to_quantize``.
    """
    _, reached = to_quantize(model, edges)
    results = {one.name for one in model.graph.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        after = readers.get(node.output[0], [])
        pair = {node.op_type, *(one.op_type for one in after)}
        if len(after) != 1 or pair != {"MaxPool", "Relu"} or node.output[0] in results:
            continue
        if (node.op_type == "Relu") != (node.input[0] in reached):
            ends = node.input[0], node.output[0], after[0].output[0]
            former = type(node).FromString(node.SerializeToString())
            node.CopyFrom(after[0])
            after[0].CopyFrom(former)
            (node.input[0], node.output[0]), (after[0].input[0], after[0].output[0]) = ends[:2], ends[1:]
    model.graph.ClearField("value_info")  # of values that are others now


def to_quantize(model: Any, edges: bool = False) -> tuple[set[str], set[str]]:
    """Return the names of the nodes that are quantized, and of the values that they make.

    Args:
        model: A ``ModelProto`` whose nodes have names.
        edges: Whether the first and the last layer are among them.
    """
    graph = model.graph
    weights = {one.name for one in graph.initializer} - set(_CONSTANTS)
    heavy = [node for node in graph.node if node.op_type in _HEAVY and _weighted(node, weights)]
    between = heavy if edges else heavy[1:-1]
    inside = {node.name for node in between}
    # What stands after a quantized layer is quantized as well: else a pooling would cost two conversions.
    reached = {name for node in between for name in node.output}
    for node in graph.node:
        light = node.op_type not in (*_HEAVY, *_FLOAT)
        if light and any(name in reached for name in node.input):
            inside.add(node.name)
            reached |= set(node.output)
    return inside, reached


def _weighted(node: Any, weights: set[str]) -> bool:
    """Return whether a node multiplies with weights of the network, on whichever side they stand."""
    ours = [name in weights for name in node.input[:2]]
    return any(ours) and not any(name.startswith("resized.") for name in node.input)


def _batches(shard: Shard, own: NDArray[np.int64]) -> Iterator[dict[str, NDArray[Any]]]:
    size = len(own) // -(-len(own) // _BATCH)
    for start in range(0, len(own), size):
        part = own[start : start + size]
        found: dict[str, NDArray[Any]] = {IMAGES: np.ascontiguousarray(shard.images[part])}
        if shard.further is not None:
            found[FURTHER] = shard.further[part]
        yield found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep back what ONNX Runtime's tools print and log."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
