"""A client's reply to a training message, decoded once, where it is received."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedvision.flower import codec
from fedvision.flower.internals import filled
from fedvision.flower.internals_message import values
from fedvision.types import ClientUpdate, State


@dataclass(kw_only=True)
class TrainReply:
    """What one reply says; everything behind the decoder works with this and not with records."""

    client: int
    """Partition number of the client."""
    examples: int
    """Training images behind the update."""
    loss: float
    """Mean training loss."""
    state: State | None
    """The shared tensors after training; the encoded update where only the sum over clients can be read; None
    where they were added to a sum where the client works."""
    tensors: Mapping[str, State] = field(default_factory=dict)
    """Groups of tensors beside the model."""
    norm: float | None = None
    """L2 norm of the change that the update makes, as a validator or a worker computed it."""
    content: RecordDict | None = None
    """Where the update is in a sum, the records that may hold it (``partial_sum_codec.decode_sums``)."""
    measured: RecordDict | None = None
    """The client's measurement of the model that it received, not decoded; None where it made none."""
    late: bool = False
    """Whether it answers an earlier round's message."""
    message: Message | None = None
    """The message without its content: stock strategies get it with a new one (``as_message``)."""

    def update(self, position: int) -> ClientUpdate:
        """Return the update as strategies get it.

        Args:
            position: Place of the client in the round's cohort, from 0.
        """
        assert self.state is not None, "an update that is in a sum is nobody's alone"
        return ClientUpdate(
            client=self.client,
            position=position,
            examples=self.examples,
            state=self.state,
            loss=self.loss,
            tensors=self.tensors,
        )


def decode_train_reply(message: Message, client: int, *, in_sum: bool = False) -> TrainReply:
    """Return what a reply to a training message says, and take its content out of the message.

    Args:
        message: A reply that is no error; its tensors may be encoded by ``[[update]]`` tables.
        client: Who sent it.
        in_sum: Its update is in a sum; only a carrier that is a part of this program may say so.

    Raises:
        KeyError: A record is missing.
    """
    content = message.content
    measured = codec.unload(content)
    metrics = values(codec.record(content, codec.METRICS, MetricRecord))
    arrays = None if in_sum else values(codec.record(content, codec.ARRAYS, ArrayRecord))
    message.content = filled(RecordDict, {})
    return TrainReply(
        client=client,
        examples=int(metrics[codec.EXAMPLES]),
        loss=float(metrics[codec.TRAIN_LOSS]),
        state=None if arrays is None else codec.decode_state(arrays),
        tensors=codec.groups(content),
        norm=codec.folded_norm(content) if in_sum else None,
        content=content if in_sum else None,
        measured=measured,
        message=message,
    )


def mean_loss(reported: Collection[tuple[float, int]]) -> float:
    """Return the mean over all images of (mean loss, images) of clients, whatever their order; 0 of nobody.

    Clients may tell any numbers: it is NaN where theirs have no sum.
    """
    images = sum(examples for _, examples in reported)
    try:
        return math.fsum(loss * examples for loss, examples in reported) / max(1, images)  # rounds once
    except (OverflowError, ValueError):
        return math.nan


def as_message(reply: TrainReply) -> Message:
    """Return a decoded reply as a message for stock strategies: one record of arrays and one of metrics."""
    assert reply.message is not None
    assert reply.state is not None
    metrics = filled(MetricRecord, {codec.EXAMPLES: reply.examples, codec.TRAIN_LOSS: reply.loss})
    content = filled(RecordDict, {codec.ARRAYS: codec.encode_state(reply.state), codec.METRICS: metrics})
    codec.add_groups(content, reply.tensors)
    reply.message.content = content
    return reply.message
