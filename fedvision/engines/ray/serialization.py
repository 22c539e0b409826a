"""Messages as plain parts that another process rebuilds: numbers by value, tensors as arrays or by reference.

Flower's records would be serialised tensor by tensor. Arrays instead go into the object store as they lie in
memory and are mapped, not copied, by whoever reads them; tensors that many messages share go there once.
What thousands of clients need is plain tuples: of every instance of a class Ray's pickler calls a function in
Python, which costs a hundred times as much as a tuple does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedvision.engines.ray.remote_array import ArrayLayout, RemoteArray, tensor
from fedvision.flower import codec, internals, internals_message
from fedvision.flower.internals import filled
from fedvision.types import State

Arrays: TypeAlias = "dict[str, NDArray[Any]]"
Numbers: TypeAlias = "dict[str, tuple[type, dict[str, Any]]]"
Fetch: TypeAlias = Callable[[int, str, str, int, int, int], list[Any]]


Content: TypeAlias = "tuple[Numbers, dict[str, Any]]"
"""The records of a message. Metric and configuration records by name: type and values. Array records by name:
the arrays by name, or a reference to them in the object store."""
Request: TypeAlias = "tuple[int, str, Content]"
"""A message to a client: node, type, content."""


@dataclass(frozen=True)
class Failure:
    """Why there is no reply to an order."""

    code: int
    reason: str
    out_of_memory: bool = False


Response: TypeAlias = "Content | Failure"
"""What became of an order."""


class RequestEncoder:
    """Turns messages into orders; each set of tensors is put into the object store once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[Any, list[torch.Tensor]]] = {}
        self._contents: dict[int, tuple[Content, RecordDict]] = {}

    def order(self, message: Message) -> Request:
        """Return a message as an order."""
        content, metadata = message.content, message.metadata
        if id(content) not in self._contents:
            self._contents[id(content)] = (self._content(content), content)
        packed, _ = self._contents[id(content)]
        return metadata.dst_node_id, metadata.message_type, packed

    def _content(self, content: RecordDict) -> Content:
        arrays = {key: self._reference(record) for key, record in codec.arrays_of(content).items()}
        return _numbers(content), arrays

    def _reference(self, record: ArrayRecord) -> Any:
        state = codec.decode_state(record)
        # Keys are addresses; the tensors are kept with them, so that no address is used again.
        key = tuple(map(id, state.values()))
        if key not in self._known:
            self._known[key] = (ray.put(_arrays(state)), list(state.values()))
        return self._known[key][0]


class RequestDecoder:
    """Turns orders into messages; references are read once as long as the same ones come."""

    def __init__(self) -> None:
        self._read: dict[Any, ArrayRecord] = {}

    def messages(self, orders: list[Request]) -> list[Message]:
        """Return orders as messages. Tensors are read-only views of the object store."""
        references = {value for _, _, (_, arrays) in orders for value in arrays.values()}
        self._read = {
            key: self._read[key] if key in self._read else record(ray.get(key)) for key in references
        }
        return [self._message(node, kind, *content) for node, kind, content in orders]

    def _message(self, node: int, kind: str, numbers: Numbers, arrays: Mapping[str, Any]) -> Message:
        content = _records(numbers)
        for key, reference in arrays.items():
            content[key] = self._read[reference]
        return Message(content, node, kind)


def pack(content: RecordDict) -> Content:
    """Return the content of a reply, its tensors as arrays that share their memory."""
    arrays = {key: _arrays(codec.decode_state(held)) for key, held in codec.arrays_of(content).items()}
    return _numbers(content), arrays


def unpack(content: Content, fetch: Fetch | None = None) -> RecordDict:
    """Return the records of a packed reply; tensors share memory with its arrays.

    Args:
        content: The reply.
        fetch: Requests a slice of an array that stayed where it is: place, record, name,
            start, stop, piece.
    """
    numbers, held = content
    records = _records(numbers)
    for key, arrays in held.items():
        keep_remote = {name: array for name, array in arrays.items() if isinstance(array, ArrayLayout)}
        if not keep_remote:
            records[key] = record(arrays)
            continue
        assert fetch is not None, "an array that stayed where it is must be fetched"
        far = {
            name: RemoteArray(layout, partial(fetch, layout.place, key, name))
            for name, layout in keep_remote.items()
        }
        records[key] = filled(
            ArrayRecord,
            {name: internals.DistantArray(s.layout.dtype, s.layout.shape, s.part) for name, s in far.items()},
        )
    return records


def keep_remote(content: Content, place: int) -> Content:
    """Return a packed reply with the layout of its arrays, which are kept in some place, instead of them."""
    numbers, held = content
    layouts = {
        key: {name: ArrayLayout(str(array.dtype), array.shape, place) for name, array in arrays.items()}
        for key, arrays in held.items()
    }
    return numbers, layouts


def size(content: Content) -> int:
    """Return the bytes of a packed reply's arrays."""
    _, held = content
    return sum(array.nbytes for arrays in held.values() for array in arrays.values())


def reply(answer: Response, message: Message) -> Message:
    """Return an answer as the reply to its message."""
    if isinstance(answer, Failure):
        return Message(Error(code=answer.code, reason=answer.reason), reply_to=message)
    return internals_message.answer(unpack(answer), message)


def record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return arrays as a record of tensors that share their memory."""
    return codec.encode_state({name: tensor(array) for name, array in arrays.items()})


def _arrays(state: State) -> Arrays:
    return {name: np.asarray(tensor.numpy(), order="C") for name, tensor in state.items()}


def _numbers(content: RecordDict) -> Numbers:
    return {
        key: (type(held), dict(held))
        for key, held in content.items()
        if isinstance(held, ConfigRecord | MetricRecord)
    }


def _records(numbers: Numbers) -> RecordDict:
    return filled(RecordDict, {key: filled(kind, values) for key, (kind, values) in numbers.items()})
