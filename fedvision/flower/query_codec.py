"""Messages about statistics: a request names one and carries the model, a reply has sums in fixed point.

Sums of real numbers and of whole ones are a record each, as their units differ. With fewer than 64 bits a
number is so many bytes, the last axis of its array.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedvision.aggregation import fixed_point
from fedvision.aggregation.fixed_point import BITS, FixedPoint
from fedvision.errors import MALFORMED
from fedvision.flower import codec, evaluation_codec
from fedvision.types import Query, State

STATISTIC = "query.statistic"
"""Message type."""
_USE, _ARGS, _QUERY, _BITS = "statistic", "arguments", "query", "bits"
_SUMS, _WHOLE, _GROUP, _CHECK = "sums", "whole-sums", "group", "masked-examples"
_OPTIONAL, _WITHHELD = "optional", "withheld"


@dataclass(frozen=True, kw_only=True)
class StatisticRequest:
    """The statistic."""

    query: Query
    """The statistic, and what clients need for it beside the model."""
    round: int
    """The round after which it is queried."""
    state: State
    """The travelling tensors of the model that it sees."""
    optional: bool = False
    """Whether a client whose owner does not allow it says so instead of failing."""


def encode_request(request: StatisticRequest) -> RecordDict:
    """Return the content of a request."""
    fields: dict[str, str | int] = {
        _USE: request.query.use,
        _ARGS: json.dumps(dict(request.query.args), sort_keys=True),
        _BITS: request.query.bits,
        codec.ROUND: request.round,
    }
    fields |= {_OPTIONAL: 1} if request.optional else {}
    content = RecordDict(
        {codec.ARRAYS: codec.encode_state(request.state), codec.CONFIG: ConfigRecord({**fields})}
    )
    if request.query.tensors:
        codec.add_groups(content, {_QUERY: request.query.tensors})
    return content


def decode_request(content: RecordDict) -> StatisticRequest:
    """Return the request in a content."""
    return StatisticRequest(
        query=decode_query(content),
        round=codec.round_of(content),
        state=codec.decode_state(codec.record(content, codec.ARRAYS, ArrayRecord)),
        optional=is_optional(content),
    )


def is_optional(content: RecordDict) -> bool:
    """Return whether a client that does not allow the requested statistic shall say so and not fail."""
    return bool(codec.record(content, codec.CONFIG, ConfigRecord).get(_OPTIONAL))


def encode_withheld() -> RecordDict:
    """Return the reply of a client whose owner does not allow an optional statistic."""
    return RecordDict({codec.CONFIG: ConfigRecord({_WITHHELD: 1})})


def decode_query(content: RecordDict) -> Query:
    """Return the statistic that a content requests.

    Raises:
        ValueError: Its number of bits is none of 8, 16, ..., 64.
    """
    config = codec.record(content, codec.CONFIG, ConfigRecord)
    return Query(
        use=str(config[_USE]),
        args=json.loads(str(config[_ARGS])),
        tensors=codec.groups(content).get(_QUERY, {}),
        bits=int(cast("int", config[_BITS])),
    )


def encode_sums(sums: FixedPoint, examples: int, bits: int = BITS) -> RecordDict:
    """Return the content of a reply: named sums in fixed point over so many images.

    Args:
        sums: The sums.
        examples: Training images behind them.
        bits: As the query has it.

    Raises:
        ValueError: A number does not fit the bits.
    """
    for name, array in sums.numbers.items():
        if bits < BITS and fixed_point.above(array, (1 << (bits - 1)) - 1):
            raise ValueError(f"the sum {name!r} is more than {bits} bits hold, which the query allows")
    return _encode(sums, examples, bits)


def _encode(sums: FixedPoint, examples: int, bits: int) -> RecordDict:
    records: dict[str, dict[str, Array]] = {_SUMS: {}, _WHOLE: {}}
    for name, array in sums.numbers.items():
        sent = np.array(array, order="C") if bits == BITS else fixed_point.pack(array, bits)
        records[_WHOLE if name in sums.whole else _SUMS][name] = Array(sent)
    content = RecordDict({key: ArrayRecord(arrays) for key, arrays in records.items() if arrays})
    content[codec.METRICS] = MetricRecord({codec.EXAMPLES: examples})
    return content


@dataclass(frozen=True, kw_only=True)
class StatisticReply:
    """A client's sums, decoded once, where they are received."""

    sums: FixedPoint
    """Named sums; masked where there is a group."""
    examples: int
    """Training images behind them."""
    group: str = ""
    """Name of the group in whose sum alone they can be read; empty where they are plain."""
    masked_examples: int = 0
    """``examples`` with the mask of the group: over all of it, the sum of both is the same."""
    withheld: bool = False
    """Whether there are none, as the client's owner does not allow them."""


def decode_reply(content: RecordDict, bits: int = BITS) -> StatisticReply:
    """Return what a reply says.

    Args:
        content: As it was received.
        bits: As the query has it.

    Raises:
        ValueError: The content is none of a statistic's.
    """
    if codec.CONFIG in content and codec.record(content, codec.CONFIG, ConfigRecord).get(_WITHHELD):
        return StatisticReply(sums=FixedPoint(), examples=0, withheld=True)
    try:
        held = codec.arrays_of(content)
        found = {key: held.get(key, ArrayRecord()) for key in (_SUMS, _WHOLE)}
        numbers = {
            name: np.asarray(array.numpy()) for record in found.values() for name, array in record.items()
        }
        examples, group, check = codec.reported_examples(content), "", 0
        if codec.CONFIG in content:
            config = codec.record(content, codec.CONFIG, ConfigRecord)
            group, check = str(config[_GROUP]), int(cast("int", config[_CHECK]))
    except MALFORMED as error:
        raise ValueError("its reply lacks sums or the number of images") from error
    if not numbers:
        raise ValueError("its reply lacks sums or the number of images")
    if len(numbers) < sum(map(len, found.values())):
        raise ValueError("its reply has two sums of one name")
    wide = bits == BITS
    if (
        any(array.dtype != (np.int64 if wide else np.uint8) for array in numbers.values())
        or not (wide or all(array.shape[-1:] == (bits // 8,) for array in numbers.values()))
        or examples < 0
        or not evaluation_codec.is_int64(check)
    ):
        raise ValueError(f"its sums are no whole numbers of {bits} bits")
    sums = FixedPoint(
        numbers=numbers if wide else {name: fixed_point.unpack(raw) for name, raw in numbers.items()},
        whole=frozenset(found[_WHOLE]),
    )
    return StatisticReply(sums=sums, examples=examples, group=group, masked_examples=check)


def numbers_to_mask(content: RecordDict, bits: int = BITS) -> NDArray[np.int64]:
    """Return all numbers of a reply in a row [M + 1]; the last one, the images, shows that masks are gone."""
    bare = decode_reply(content, bits)
    rows = [bare.sums.numbers[name].ravel() for name in sorted(bare.sums.numbers)]
    return np.concatenate([*rows, np.array([bare.examples], np.int64)])


def with_masked(content: RecordDict, masked: NDArray[np.int64], group: str, bits: int = BITS) -> RecordDict:
    """Return a reply whose numbers are masked for a group.

    Args:
        content: The bare reply.
        masked: Its ``numbers_to_mask`` with the masks of the group, which hold modulo 2^bits as well.
        group: The group's name: all of it is needed for a sum.
        bits: As the query has it.
    """
    bare, parts, start = decode_reply(content, bits), {}, 0
    for name in sorted(bare.sums.numbers):
        shape = bare.sums.numbers[name].shape
        size = bare.sums.numbers[name].size
        parts[name] = masked[start : start + size].reshape(shape)
        start += size
    reply = _encode(FixedPoint(numbers=parts, whole=bare.sums.whole), bare.examples, bits)
    reply[codec.CONFIG] = ConfigRecord({_GROUP: group, _CHECK: int(masked[-1])})
    return reply
