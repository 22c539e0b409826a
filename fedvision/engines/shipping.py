"""Messages as plain parts that another process rebuilds: numbers by value, tensors as arrays or by reference.

Flower's records would be serialised tensor by tensor. Arrays instead go into the object store as they lie in
memory and are mapped, not copied, by whoever reads them; tensors that many messages share go there once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedvision.engines.slices import Layout, Slices, tensor
from fedvision.flower import codec, internals, internals_message
from fedvision.flower.internals import filled
from fedvision.types import State

Arrays: TypeAlias = "dict[str, NDArray[Any]]"
Fetch: TypeAlias = Callable[[int, str, str, int, int, int], list[Any]]


@dataclass(frozen=True)
class Content:
    """The records of a message."""

    numbers: dict[str, tuple[type, dict[str, Any]]] = field(default_factory=dict)
    """Metric and configuration records: type and values."""
    arrays: dict[str, Any] = field(default_factory=dict)
    """Array records: the arrays by name, or a reference to them in the object store."""


@dataclass(frozen=True)
class Order:
    """A message to a client."""

    node: int
    kind: str
    content: Content


@dataclass(frozen=True)
class Answer:
    """A reply to an order: its content, or why there is none."""

    content: Content | None
    error: tuple[int, str] | None = None
    out_of_memory: bool = False


class Outbox:
    """Turns messages into orders; each set of tensors is put into the object store once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[Any, list[torch.Tensor]]] = {}
        self._contents: dict[int, tuple[Content, RecordDict]] = {}

    def order(self, message: Message) -> Order:
        """Return a message as an order."""
        content, metadata = message.content, message.metadata
        if id(content) not in self._contents:
            self._contents[id(content)] = (self._content(content), content)
        packed, _ = self._contents[id(content)]
        return Order(node=metadata.dst_node_id, kind=metadata.message_type, content=packed)

    def _content(self, content: RecordDict) -> Content:
        arrays = {key: self._reference(record) for key, record in codec.arrays_of(content).items()}
        return Content(numbers=_numbers(content), arrays=arrays)

    def _reference(self, record: ArrayRecord) -> Any:
        state = codec.decode_state(record)
        # Keys are addresses; the tensors are kept with them, so that no address is used again.
        key = tuple(map(id, state.values()))
        if key not in self._known:
            self._known[key] = (ray.put(_arrays(state)), list(state.values()))
        return self._known[key][0]


class Inbox:
    """Turns orders into messages; references are read once as long as the same ones come."""

    def __init__(self) -> None:
        self._read: dict[Any, ArrayRecord] = {}

    def messages(self, orders: list[Order]) -> list[tuple[Order, Message]]:
        """Return orders with their messages. Tensors are read-only views of the object store."""
        references = {value for order in orders for value in order.content.arrays.values()}
        self._read = {
            key: self._read[key] if key in self._read else record(ray.get(key)) for key in references
        }
        return [(order, self._message(order)) for order in orders]

    def _message(self, order: Order) -> Message:
        content = _records(order.content.numbers)
        for key, reference in order.content.arrays.items():
            content[key] = self._read[reference]
        return Message(content, order.node, order.kind)


def pack(content: RecordDict) -> Content:
    """Return the content of a reply, its tensors as arrays that share their memory."""
    arrays = {key: _arrays(codec.decode_state(held)) for key, held in codec.arrays_of(content).items()}
    return Content(numbers=_numbers(content), arrays=arrays)


def unpack(content: Content, fetch: Fetch | None = None) -> RecordDict:
    """Return the records of a packed reply; tensors share memory with its arrays.

    Args:
        content: The reply.
        fetch: Asks for a slice of an array that stayed where it is: place, record, name,
            start, stop, piece.
    """
    records = _records(content.numbers)
    for key, arrays in content.arrays.items():
        staying = {name: array for name, array in arrays.items() if isinstance(array, Layout)}
        if not staying:
            records[key] = record(arrays)
            continue
        assert fetch is not None, "an array that stayed where it is must be fetched"
        far = {
            name: Slices(layout, partial(fetch, layout.place, key, name)) for name, layout in staying.items()
        }
        records[key] = filled(
            ArrayRecord,
            {name: internals.DistantArray(s.layout.dtype, s.layout.shape, s.part) for name, s in far.items()},
        )
    return records


def staying(content: Content, place: int) -> Content:
    """Return a packed reply with the layout of its arrays, which are kept in some place, instead of them."""
    layouts = {
        key: {name: Layout(str(array.dtype), array.shape, place) for name, array in arrays.items()}
        for key, arrays in content.arrays.items()
    }
    return Content(numbers=content.numbers, arrays=layouts)


def size(content: Content) -> int:
    """Return the bytes of a packed reply's arrays."""
    return sum(array.nbytes for arrays in content.arrays.values() for array in arrays.values())


def reply(answer: Answer, message: Message) -> Message:
    """Return an answer as the reply to its message."""
    if answer.content is not None:
        return internals_message.answer(unpack(answer.content), message)
    code, reason = answer.error or (internals.CLIENT_RAISED, "no reason was given")
    return Message(Error(code=code, reason=reason), reply_to=message)


def record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return arrays as a record of tensors that share their memory."""
    return codec.encode_state({name: tensor(array) for name, array in arrays.items()})


def _arrays(state: State) -> Arrays:
    return {name: np.asarray(tensor.numpy(), order="C") for name, tensor in state.items()}


def _numbers(content: RecordDict) -> dict[str, tuple[type, dict[str, Any]]]:
    return {
        key: (type(held), dict(held))
        for key, held in content.items()
        if isinstance(held, ConfigRecord | MetricRecord)
    }


def _records(numbers: Mapping[str, tuple[type, dict[str, Any]]]) -> RecordDict:
    return filled(RecordDict, {key: filled(kind, values) for key, (kind, values) in numbers.items()})
