"""The resize of an ONNX graph put behind a condition: images of the network's size skip it.

The matrix products of ``resampling`` leave such images as they are, but take up to a third of a small
network's time. ``torch.cond`` does not trace sizes, so the finished graph is changed.
"""

from __future__ import annotations

from typing import Any

_SCALE = "scale"
"""Name of the constant of ``PredictionGraph`` with which the first operation after the resize multiplies."""


def skip_equal_size(model: Any, images: str, size: tuple[int, int]) -> None:
    """Put the resize into an ``If``, in place; a graph without one stays as it is.

    Args:
        model: A ``ModelProto`` made of a ``PredictionGraph``.
        images: Name of its input [N, H, W, channels].
        size: (H, W) of images that are not resized.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    after = [node for node in graph.node if _SCALE in node.input]
    if len(after) != 1 or after[0].op_type != "Mul":
        return
    resized = next(name for name in after[0].input if name != _SCALE)
    plain = _converted(graph, images)
    if plain is None or resized == plain:
        return
    inside = _ancestors(resized, maker) - _ancestors(plain, maker)
    moved = [node for node in graph.node if node.output[0] in inside]
    kept = [node for node in graph.node if node.output[0] not in inside]
    if any(name in inside and name != resized for node in kept for name in node.input):
        return  # somebody else reads a part of it
    for node in moved:
        node.output[:] = [f"{name}_else" if name == resized else name for name in node.output]
    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("Identity", [plain], [f"{resized}_then"])],
            "same_size",
            [],
            [helper.make_tensor_value_info(f"{resized}_then", TensorProto.FLOAT, None)],
        ),
        "else_branch": helper.make_graph(
            moved,
            "other_size",
            [],
            [helper.make_tensor_value_info(f"{resized}_else", TensorProto.FLOAT, None)],
        ),
    }
    graph.initializer.append(helper.make_tensor("own_size", TensorProto.INT64, [2], size))
    tests = [
        helper.make_node("Shape", [images], ["given_size"], start=1, end=3),
        helper.make_node("Equal", ["given_size", "own_size"], ["equal_sides"]),
        helper.make_node("Cast", ["equal_sides"], ["equal_numbers"], to=TensorProto.INT32),
        helper.make_node("ReduceMin", ["equal_numbers"], ["equal_size_number"], keepdims=0),
        helper.make_node("Cast", ["equal_size_number"], ["equal_size"], to=TensorProto.BOOL),
        helper.make_node("If", ["equal_size"], [resized], **branches),
    ]
    place = next(number for number, node in enumerate(kept) if resized in node.input)
    del graph.node[:]
    graph.node.extend([*kept[:place], *tests, *kept[place:]])
    graph.ClearField("value_info")  # what was moved is no value of the graph any more


def _converted(graph: Any, images: str) -> str | None:
    """Return the name of the images as float32 [N, channels, H, W]."""
    name = images
    for kind in ("Transpose", "Cast"):
        found = [node for node in graph.node if node.op_type == kind and node.input[0] == name]
        if len(found) != 1:
            return None
        name = found[0].output[0]
    return name


def _ancestors(name: str, maker: dict[str, Any]) -> set[str]:
    """Return the names of all values from which one follows, and its own."""
    found, waiting = set[str](), [name]
    while waiting:
        one = waiting.pop()
        if one not in found and one in maker:
            found.add(one)
            waiting += maker[one].input
    return found
