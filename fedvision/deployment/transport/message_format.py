"""A message's content as one short text and one run of bytes: how it travels between machines.

Flower stores and ships every tensor as an object of its own: two requests, each with a signature and a row in
a database, so that a round of a ResNet-18 costs its 62 tensors rather than its bytes. Here all tensors of a
message are one blob, one behind the other, each at a multiple of ``ALIGN`` bytes, and a ``MessageHeader`` in
JSON says what lies where and carries the records of numbers and words.

The layout is read and compared with what the model expects before memory for the blob is taken. Nothing is
unpickled. This module needs no torch until ``unpack``: the client's connection lives in a process without it.
"""

from __future__ import annotations

import base64
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedvision.errors import MALFORMED, ProtocolError
from fedvision.formatting import one_line
from fedvision.updates.schema import CONSTANT, ITEM_BYTES, TensorSpec, UpdateSchema

FORMAT = 1
ALIGN = 64
PIECE = 15 << 20
"""Bytes that are joined at a time, and that travel in one request; proxies need to let 16 MiB pass."""
_SPARE = 4
"""Models' worth of tensors that a strategy may send beside the model."""
_ZEROS = memoryview(bytes(ALIGN))
MAX_NOTES, MAX_NOTE = 8, 200
MAX_TEXT, MAX_TENSORS, MAX_DIMENSIONS = 16 << 20, 100_000, 16
_KINDS: Mapping[str, type[ConfigRecord] | type[MetricRecord]] = {
    "config": ConfigRecord,
    "metrics": MetricRecord,
}


@dataclass(frozen=True, kw_only=True)
class MessageHeader:
    """What a blob holds, and all that travels beside it."""

    tensors: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)
    """By group (the ArrayRecord's name), in the order of the blob."""
    records: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """By name: kind (a key of ``config``, ``metrics``) and values."""
    client: int = -1
    """The number of the client that gets the message; -1 in replies."""
    members: int = 0
    """Clients that take part in the run, as the server says; 0 in replies."""
    notes: tuple[str, ...] = ()
    """What befell the sender, in replies: at most ``MAX_NOTES`` sentences for the report."""

    @property
    def size(self) -> int:
        """Bytes of the blob, padding included."""
        return sum(_padded(entry.size) for entry in self.entries())

    def entries(self) -> Iterator[TensorSpec]:
        """Yield every tensor in the order of the blob."""
        for group in self.tensors.values():
            yield from group

    def cuts(self) -> list[int]:
        """Return where the blob's pieces end: at most ``PIECE`` bytes each.

        A group of constants has pieces of its own, so that they are the same pieces in every message.
        """
        edges, end = [0], 0
        for group, entries in self.tensors.items():
            if group.startswith(CONSTANT):
                edges.append(end)
            end += sum(_padded(entry.size) for entry in entries)
            if group.startswith(CONSTANT):
                edges.append(end)
        return [
            stop
            for low, high in pairwise([*edges, end])
            for stop in [*range(low + PIECE, high, PIECE), high]
            if high > low
        ]

    def constant_pieces(self) -> set[int]:
        """Return the numbers of the pieces that are the same in every message of a run."""
        found, start, ends = set[int](), 0, {stop: number for number, stop in enumerate(self.cuts())}
        for group, entries in self.tensors.items():
            stop = start + sum(_padded(entry.size) for entry in entries)
            if group.startswith(CONSTANT):
                found |= {number for end, number in ends.items() if start < end <= stop}
            start = stop
        return found

    def to_text(self) -> str:
        """Return the layout as JSON; whole numbers stay whole and floats keep their bits."""
        return json.dumps(
            {
                "format": FORMAT,
                "client": self.client,
                "members": self.members,
                "notes": self.notes,
                "tensors": {group: _rows(entries) for group, entries in self.tensors.items()},
                "records": {
                    name: [kind, {key: _plain(value) for key, value in values.items()}]
                    for name, (kind, values) in self.records.items()
                },
            }
        )

    @classmethod
    def from_text(cls, text: str) -> MessageHeader:
        """Read a layout that somebody else wrote.

        Raises:
            ProtocolError: It is no layout, of another format, or of absurd size.
        """
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise ProtocolError(f"the message's layout is no text of at most {MAX_TEXT} characters")
        try:
            page = json.loads(text)
        except MALFORMED as error:
            raise ProtocolError("the message's layout is no JSON") from error
        _require(isinstance(page, dict), "is no table")
        _require(page.get("format") == FORMAT, f"has another format than {FORMAT}")
        client, members = page.get("client", -1), page.get("members", 0)
        _require(_whole(client, low=-1), "has no whole client number")
        _require(_whole(members, low=0), "has no whole number of members")
        layout = cls(
            tensors=_read_tensors(page),
            records=_read_records(page),
            client=client,
            members=members,
            notes=_read_notes(page),
        )
        _require(sum(map(len, layout.tensors.values())) <= MAX_TENSORS, "names too many tensors")
        return layout


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a message may carry, known before it is fetched."""

    groups: Mapping[str, UpdateSchema] = field(default_factory=dict)
    """Groups that must be there, tensor by tensor, in any order."""
    spare_bytes: int = 1 << 20
    """Bytes that all other groups together may take."""

    def check(self, layout: MessageHeader) -> None:
        """Compare a layout with this.

        Raises:
            ProtocolError: A tensor is missing, extra, misshapen or of another type, or too much would come.
        """
        for group, entries in self.groups.items():
            if wrong := entries.mismatch(layout.tensors.get(group, ())):
                raise ProtocolError(wrong)
        others = [layout.tensors[group] for group in layout.tensors.keys() - self.groups.keys()]
        spare = sum(_padded(entry.size) for entries in others for entry in entries)
        if spare > self.spare_bytes:
            raise ProtocolError(
                f"beside {sorted(self.groups) or 'numbers'} it would bring {spare:,} bytes of tensors; at "
                f"most {self.spare_bytes:,} are taken"
            )

    def to_text(self) -> str:
        """Return this as JSON, for the process that holds the connection."""
        groups = {name: _rows(schema.tensors) for name, schema in self.groups.items()}
        return json.dumps({"tensors": groups, "spare_bytes": self.spare_bytes})

    @classmethod
    def from_text(cls, text: str) -> Expected:
        """Read what ``to_text`` wrote."""
        page = json.loads(text)
        groups = {name: UpdateSchema(specs) for name, specs in _read_tensors(page).items()}
        return cls(groups=groups, spare_bytes=int(page["spare_bytes"]))

    @classmethod
    def of_model(cls, group: str, sent: UpdateSchema, model: UpdateSchema, more: int = 0) -> Expected:
        """Return what a message with a model, or with an update of one, may carry.

        Beside the tensors ``sent`` in their group a strategy may send ``_SPARE`` times the whole model, and
        ``more`` bytes may come.
        """
        size = sum(spec.size + ALIGN for spec in model.tensors)
        return cls(groups={group: sent}, spare_bytes=_SPARE * size + more)


class Source(Protocol):
    """Bytes that can be read piece by piece."""

    size: int
    """Bytes in all."""

    def views(self, start: int, stop: int) -> list[memoryview]:
        """Return the bytes from ``start`` up to ``stop`` where they lie, not copied."""


class TensorSource:
    """The blob of a content's tensors, as they lie: no copy is made. ``layout`` is ``describe(content)``."""

    def __init__(self, content: RecordDict, layout: MessageHeader) -> None:
        self._arrays = [
            content.array_records[group][entry.name]
            for group, entries in layout.tensors.items()
            for entry in entries
        ]
        sizes = [_padded(entry.size) for entry in layout.entries()]
        self._starts = [0, *accumulate(sizes)]
        self.size = self._starts[-1]
        self._open: tuple[int, memoryview] = (-1, memoryview(b""))

    def _held(self, number: int) -> memoryview:
        """Return an array's bytes; the last one stays open, since a large one is read piece by piece."""
        if self._open[0] != number:
            self._open = (number, _bytes_of(self._arrays[number]))
        return self._open[1]

    def views(self, start: int, stop: int) -> list[memoryview]:
        """Return the bytes from ``start`` up to ``stop`` where they lie, with zeros between tensors."""
        found: list[memoryview] = []
        first = bisect_right(self._starts, start) - 1
        for number in range(first, len(self._arrays)):
            begin, end = self._starts[number : number + 2]
            if begin >= stop:
                break
            held = self._held(number)
            low, high = max(start - begin, 0), min(stop, end) - begin
            parts = held[low:high], _ZEROS[max(low, len(held)) - len(held) : max(high, len(held)) - len(held)]
            found += [part for part in parts if len(part)]
        return found


def describe(content: RecordDict, client: int = -1) -> MessageHeader:
    """Return the layout of a content.

    Raises:
        ProtocolError: A tensor is of a type that does not travel.
    """
    tensors = {
        group: tuple(TensorSpec(name, array.dtype, tuple(array.shape)) for name, array in record.items())
        for group, record in content.array_records.items()
    }
    for entries in tensors.values():
        for entry in entries:
            if entry.dtype not in ITEM_BYTES:
                raise ProtocolError(f"the tensor {entry.name!r} is {entry.dtype}, which does not travel")
    kinds: dict[str, Any] = {"config": content.config_records, "metrics": content.metric_records}
    records = {name: (kind, dict(record)) for kind, held in kinds.items() for name, record in held.items()}
    return MessageHeader(tensors=tensors, records=records, client=client)


def unpack(layout: MessageHeader, blob: Any) -> RecordDict:
    """Return the content that a layout and its blob are.

    Args:
        layout: A checked layout.
        blob: A writable buffer of ``layout.size`` bytes, which the tensors go on sharing.

    Raises:
        ProtocolError: The blob has another size, or a record holds what Flower's records do not take.
    """
    import torch

    from fedvision.flower.internals import TensorArray

    if memoryview(blob).nbytes != layout.size:
        raise ProtocolError(f"the message has {memoryview(blob).nbytes:,} bytes, not {layout.size:,}")
    content, start = RecordDict(), 0
    for group, entries in layout.tensors.items():
        record = ArrayRecord()
        for entry in entries:
            dtype, count = getattr(torch, entry.dtype), entry.elements
            if count:
                flat = torch.frombuffer(blob, dtype=dtype, count=count, offset=start)
            else:  # it has no bytes to begin at
                flat = torch.empty(0, dtype=dtype)
            record[entry.name] = TensorArray(flat.reshape(entry.shape))
            start += _padded(entry.size)
        content[group] = record
    try:
        for name, (kind, values) in layout.records.items():
            content[name] = _KINDS[kind](dict(values))
    except MALFORMED as error:
        raise ProtocolError(f"the message's records do not fit: {error}") from error
    return content


def _rows(entries: Iterable[TensorSpec]) -> list[Any]:
    return [[entry.name, entry.dtype, entry.shape] for entry in entries]


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _bytes_of(array: Array) -> memoryview:
    import numpy as np

    return np.ascontiguousarray(array.numpy()).reshape(-1).view(np.uint8).data


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _value(value: Any) -> Any:
    """Return a value of a record: a number, text or bytes, or a list of these."""
    return [_scalar(item) for item in value] if isinstance(value, list) else _scalar(value)


def _scalar(value: Any) -> Any:
    match value:
        case {"base64": str(text)}:
            try:
                return base64.b64decode(text, validate=True)
            except ValueError as error:
                raise ProtocolError("the message's layout holds bytes that are none") from error
        case int():
            # Flower's records and NumPy's arrays hold no others, and a float would overflow.
            _require(-(2**63) <= value < 2**63, "holds a whole number of more than 64 bits")
            return value
        case str() | float():
            return value
    raise ProtocolError("the message's layout holds a value that is none")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ProtocolError(f"the message's layout {problem}")


def _whole(value: Any, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**48


def _read_notes(page: Mapping[str, Any]) -> tuple[str, ...]:
    notes = page.get("notes", [])
    good = isinstance(notes, list) and len(notes) <= MAX_NOTES
    good = good and all(isinstance(note, str) and len(note) <= MAX_NOTE for note in notes)
    _require(good, f"has notes other than {MAX_NOTES} texts of {MAX_NOTE} characters at most")
    return tuple(map(one_line, notes))


def _table(page: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = page.get(key)
    if not isinstance(table, dict):
        raise ProtocolError(f"the message's layout has no {key}")
    return table


def _read_tensors(page: Mapping[str, Any]) -> dict[str, tuple[TensorSpec, ...]]:
    found: dict[str, tuple[TensorSpec, ...]] = {}
    for group, rows in _table(page, "tensors").items():
        _require(isinstance(rows, list) and len(rows) <= MAX_TENSORS, "has a group that is no list")
        found[group] = tuple(map(_read_entry, rows))
        _require(len({entry.name for entry in found[group]}) == len(rows), "names a tensor twice")
    return found


def _read_entry(row: Any) -> TensorSpec:
    match row:
        case [str(name), str(dtype), list(shape)] if (
            dtype in ITEM_BYTES
            and len(shape) <= MAX_DIMENSIONS
            and all(map(_whole, shape))
            and _whole(math.prod(size or 1 for size in shape))
        ):
            return TensorSpec(name, dtype, tuple(shape))
    raise ProtocolError("the message's layout has a tensor without a name, a type that travels and a shape")


def _read_records(page: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name, row in _table(page, "records").items():
        match row:
            case [str(kind), dict(values)] if kind in _KINDS:
                found[name] = (kind, {key: _value(value) for key, value in values.items()})
            case _:
                raise ProtocolError("the message's layout has a record that is none")
    return found
