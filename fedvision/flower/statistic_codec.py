"""Messages about statistics: a request names one and carries the model, a reply has sums in fixed point."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedvision.aggregation.fixed_point import FixedPoint
from fedvision.flower import codec, stats_codec
from fedvision.types import PluginSpec, Query, State

STATISTIC = "query.statistic"
"""Message type."""
_USE, _ARGS, _SUMS, _GROUP, _CHECK, _QUERY = (
    "statistic",
    "arguments",
    "sums",
    "group",
    "masked-examples",
    "query",
)


@dataclass(frozen=True, kw_only=True)
class StatisticRequest:
    """The statistic."""

    query: Query
    """The statistic, and what clients need for it beside the model."""
    round: int
    """The round after which it is queried."""
    state: State
    """The travelling tensors of the model that it sees."""


def encode_request(request: StatisticRequest) -> RecordDict:
    """Return the content of a request."""
    fields: dict[str, str | int] = {
        _USE: request.query.use,
        _ARGS: json.dumps(dict(request.query.args), sort_keys=True),
        codec.ROUND: request.round,
    }
    content = RecordDict(
        {codec.ARRAYS: codec.encode_state(request.state), codec.CONFIG: ConfigRecord({**fields})}
    )
    if request.query.tensors:
        codec.add_groups(content, {_QUERY: request.query.tensors})
    return content


def decode_request(content: RecordDict) -> StatisticRequest:
    """Return the request in a content."""
    config = codec.record(content, codec.CONFIG, ConfigRecord)
    spec = decode_spec(content)
    return StatisticRequest(
        query=Query(use=spec.use, args=spec.args, tensors=codec.groups(content).get(_QUERY, {})),
        round=int(config[codec.ROUND]),  # type: ignore[arg-type]
        state=codec.decode_state(codec.record(content, codec.ARRAYS, ArrayRecord)),
    )


def decode_spec(content: RecordDict) -> PluginSpec:
    """Return the statistic that a content requests."""
    config = codec.record(content, codec.CONFIG, ConfigRecord)
    return PluginSpec(use=str(config[_USE]), args=json.loads(str(config[_ARGS])))


def encode_sums(sums: FixedPoint, examples: int) -> RecordDict:
    """Return the content of a reply: named sums in fixed point over so many images."""
    arrays = ArrayRecord({name: Array(np.array(array, order="C")) for name, array in sums.items()})
    return RecordDict({_SUMS: arrays, codec.METRICS: MetricRecord({codec.EXAMPLES: examples})})


@dataclass(frozen=True, kw_only=True)
class StatisticReply:
    """A client's sums, decoded once, where they are received."""

    sums: dict[str, NDArray[np.int64]]
    """Named sums in units of fixed point; masked where there is a group."""
    examples: int
    """Training images behind them."""
    group: str = ""
    """Name of the group in whose sum alone they can be read; empty where they are plain."""
    masked_examples: int = 0
    """``examples`` with the mask of the group: over all of it, the sum of both is the same."""


def decode_reply(content: RecordDict) -> StatisticReply:
    """Return what a reply says.

    Raises:
        ValueError: The content is none of a statistic's.
    """
    try:
        arrays = codec.record(content, _SUMS, ArrayRecord)
        sums = {name: np.asarray(array.numpy()) for name, array in arrays.items()}
        examples, group, check = codec.reported_examples(content), "", 0
        if codec.CONFIG in content:
            config = codec.record(content, codec.CONFIG, ConfigRecord)
            group, check = str(config[_GROUP]), int(cast("int", config[_CHECK]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("its reply lacks sums or the number of images") from error
    if (
        any(array.dtype != np.int64 for array in sums.values())
        or examples < 0
        or not stats_codec.is_int64(check)
    ):
        raise ValueError("its sums are no whole numbers of 64 bits")
    return StatisticReply(sums=sums, examples=examples, group=group, masked_examples=check)


def numbers_to_mask(content: RecordDict) -> NDArray[np.int64]:
    """Return all numbers of a reply in a row [M + 1]; the last one, the images, shows that masks are gone."""
    bare = decode_reply(content)
    rows = [bare.sums[name].ravel() for name in sorted(bare.sums)]
    return np.concatenate([*rows, np.array([bare.examples], np.int64)])


def with_masked(content: RecordDict, masked: NDArray[np.int64], group: str) -> RecordDict:
    """Return a reply whose numbers are masked for a group.

    Args:
        content: The bare reply.
        masked: Its ``numbers_to_mask`` with the masks of the group.
        group: The group's name: all of it is needed for a sum.
    """
    bare, parts, start = decode_reply(content), {}, 0
    for name in sorted(bare.sums):
        parts[name] = masked[start : start + bare.sums[name].size].reshape(bare.sums[name].shape)
        start += bare.sums[name].size
    reply = encode_sums({name: parts[name] for name in bare.sums}, bare.examples)
    reply[codec.CONFIG] = ConfigRecord({_GROUP: group, _CHECK: int(masked[-1])})
    return reply
