"""Replies to training messages as clients send them, and decoded."""

from __future__ import annotations

from flwr.app import Message, RecordDict

from fedvision.flower import internals
from fedvision.flower.train_reply import TrainReply, decode_train_reply


def reply_with(content: RecordDict) -> Message:
    """Return a reply to a training message."""
    internals.identify(1)
    return Message(content, reply_to=Message(RecordDict(), 100, "train"))


def decoded(content: RecordDict, client: int = 0) -> TrainReply:
    """Return what a reply with this content says."""
    return decode_train_reply(reply_with(content), client)
