"""int8: which images calibrate, what is quantized, and that the file is used as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from fedvision.data.shards import Shard
from fedvision.errors import ConfigError, DataError
from fedvision.export import onnx_format
from fedvision.export.graph import PredictionGraph
from fedvision.export.quantization import chosen_of, draw, order_pools, quantize, to_quantize
from tests.export.models import noise, untrained


def shard(count: int, size: int = 8) -> Shard:
    return Shard(
        images=noise(count, (size, size, 1)),
        labels=np.arange(count) % 5,
        indices=np.arange(count, dtype=np.int64),
    )


def test_classes_take_turns_so_that_rare_ones_are_there() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    chosen = draw(labels, 12)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 2]
    assert np.array_equal(chosen, np.sort(chosen))
    assert np.array_equal(chosen, draw(labels, 12))
    assert not np.array_equal(chosen, draw(labels, 12, seed=1))
    assert draw(labels, 1000).tolist() == list(range(100))
    several = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.uint8)
    assert {2, 3} <= set(draw(several, 3).tolist())


def test_batches_have_one_size() -> None:
    counts = (1, 24, 25, 26, 27, 29, 30, 99)
    assert [len(chosen_of(shard(30), count)) for count in counts] == [
        1,
        24,
        25,
        26,
        26,
        28,
        30,
        30,
    ]


def graph_of(*nodes: tuple[str, str, str, str]) -> Any:
    """Return a model of nodes (kind, name, input, output); heavy ones have weights of their own."""
    made = []
    for kind, name, given, result in nodes:
        weights = [f"{name}.weight"] if kind in ("Conv", "Gemm") else []
        made.append(onnx.helper.make_node(kind, [given, *weights], [result], name=name))
    names = [one for node in made for one in node.input if one.endswith(".weight")]
    constants = [onnx.numpy_helper.from_array(np.zeros(1, np.float32), name) for name in names]
    output = onnx.helper.make_tensor_value_info(nodes[-1][3], onnx.TensorProto.FLOAT, None)
    return onnx.helper.make_model(onnx.helper.make_graph(made, "graph", [], [output], constants))


CHAIN = (
    ("Cast", "cast", "images", "x"),
    ("Conv", "first", "x", "a"),
    ("Relu", "relu1", "a", "b"),
    ("MaxPool", "pool1", "b", "c"),
    ("Conv", "second", "c", "d"),
    ("MaxPool", "pool2", "d", "e"),
    ("Relu", "relu2", "e", "f"),
    ("Gemm", "last", "f", "g"),
    ("Softmax", "softmax", "g", "h"),
)


def test_the_edges_and_what_leads_to_them_stay_in_float() -> None:
    assert to_quantize(graph_of(*CHAIN))[0] == {"second", "pool2", "relu2"}
    inner = {"relu1", "pool1", "second", "pool2", "relu2"}
    assert to_quantize(graph_of(*CHAIN), edges=True)[0] == {"first", "last", *inner}


def test_a_product_without_weights_such_as_attentions_stays_in_float() -> None:
    nodes = (*CHAIN[:2], ("Conv", "second", "a", "d"), ("MatMul", "product", "d", "f"), *CHAIN[7:])
    assert to_quantize(graph_of(*nodes))[0] == {"second"}


def test_a_pooling_goes_before_relu_in_float_and_after_it_in_int8() -> None:
    model = graph_of(*CHAIN)
    order_pools(model)
    assert [(node.op_type, node.input[0], node.output[0]) for node in model.graph.node[2:4]] == [
        ("MaxPool", "a", "b"),
        ("Relu", "b", "c"),
    ]
    assert [(node.op_type, node.input[0], node.output[0]) for node in model.graph.node[5:7]] == [
        ("Relu", "d", "e"),
        ("MaxPool", "e", "f"),
    ]
    again = model.SerializeToString()
    order_pools(model)
    assert model.SerializeToString() == again


@pytest.fixture(scope="module")
def plain() -> bytes:
    graph = PredictionGraph(untrained({"use": "cnn", "width": 8, "dense": 16}), "stretch").eval()
    return onnx_format.encode(graph, graph.example(), {})


def test_a_quantized_file_is_near_the_one_in_float_and_takes_images_of_any_size(plain: bytes) -> None:
    small = quantize(plain, shard(101), {"classes": "[]"}, count=60)
    model = onnx.load_from_string(small)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") >= 3
    weights = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert sorted(len(one.dims) for one in weights if len(one.dims) > 1) == [2, 4, 4]
    # 7 of 8 bits: no product of pairs overflows 16 bits.
    assert all(np.abs(onnx.numpy_helper.to_array(one)).max() <= 64 for one in weights)
    assert {one.key: one.value for one in model.metadata_props} == {"classes": "[]"}
    images = noise(40, (8, 8, 1), 3)
    float32, int8 = (onnx_format.OnnxPredictor(one)(images) for one in (plain, small))
    assert 0 < np.abs(float32 - int8).max() < 0.05
    assert onnx_format.OnnxPredictor(small)(noise(2, (30, 5, 1))).shape == (2, 5)


def test_the_first_and_the_last_layer_are_quantized_where_that_is_asked_for(plain: bytes) -> None:
    model = onnx.load_from_string(quantize(plain, shard(10), {}, count=10, edges=True))
    weights = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert sorted(len(one.dims) for one in weights if len(one.dims) > 1) == [2, 2, 4, 4, 4]


@pytest.mark.slow
def test_what_cannot_be_quantized_is_refused(plain: bytes) -> None:
    with pytest.raises(DataError, match="there are no images to calibrate with"):
        quantize(plain, shard(0), {})
    with pytest.raises(ConfigError, match="at least one image is needed for calibration, not 0"):
        quantize(plain, shard(5), {}, count=0)
    with pytest.raises(ConfigError, match="must be one of percentile, minmax, entropy, not 'mean'"):
        quantize(plain, shard(5), {}, method="mean")  # type: ignore[arg-type]
    graph = PredictionGraph(untrained({"use": "rnn", "hidden": 8}), "exact").eval()
    recurrent = onnx_format.encode(graph, graph.example(), {})
    with pytest.raises(
        ConfigError, match="has no convolution or linear layer between its first and its last"
    ):
        quantize(recurrent, shard(5), {})
