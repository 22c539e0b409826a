"""A SuperLink as an object, and a grid on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedvision.deployment.server.superlink_grid import SuperLinkGrid, expected_replies
from fedvision.deployment.transport import internals_message_objects, message_format
from fedvision.deployment.transport.internals_message_objects import (
    IncomingMessage,
    LinkDown,
    NotDeliveredYet,
    RunEnded,
)
from fedvision.flower import codec, internals
from fedvision.flower.internals import TensorArray
from fedvision.training.loop import TrainResult
from fedvision.types import State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.schema import UpdateSchema

STATE = {"w": torch.zeros(3, 2), "b": torch.zeros(2)}


class FakeLink:
    """A SuperLink whose clients answer at once with what the test gives them."""

    run_id = 1

    def __init__(self) -> None:
        self.replies: dict[int, list[RecordDict | Error]] = {}
        self.pushed: list[Message] = []
        self.fetched: list[str] = []
        self.late = 0
        self.down = 0
        self.waiting: list[Message] = []
        self.here = {30: "c", 10: "a", 20: "b"}
        self.held: set[int] = set()
        """Nodes that have not answered yet."""
        self.gone: set[int] = set()
        """Nodes for which no message is taken."""
        self.kinds: dict[int, str] = {}
        """Types that replies claim instead of their message's, by node."""

    def online(self) -> dict[int, str]:
        return self.here

    def push(
        self, messages: Sequence[Message], before_sending: Callable[[], None] = lambda: None
    ) -> list[str]:
        before_sending()
        ids = []
        for message in messages:
            if message.metadata.dst_node_id in self.gone:
                ids.append("")
                continue
            self.pushed.append(message)
            internals.set_message_id(message, f"m{len(self.pushed)}")
            content = self.replies[message.metadata.dst_node_id].pop(0)
            reply = Message(content, reply_to=message)
            if isinstance(content, Error) and content.code != internals.CLIENT_RAISED:
                reply.metadata.__dict__["_src_node_id"] = internals.SERVER_NODE
            if kind := self.kinds.get(message.metadata.dst_node_id):
                reply.metadata.message_type = kind
            self.waiting.append(reply)
            ids.append(f"m{len(self.pushed)}")
        return ids

    def pull(self, ids: Sequence[str]) -> list[IncomingMessage]:
        if self.down:
            self.down -= 1
            raise LinkDown("away")
        found = [
            reply
            for reply in self.waiting
            if reply.metadata.src_node_id not in self.held and reply.metadata.reply_to_message_id in ids
        ]
        self.waiting = [reply for reply in self.waiting if reply not in found]
        return [self._incoming(reply) for reply in found]

    def _incoming(self, reply: Message) -> IncomingMessage:
        tree, objects = internals_message_objects.objects_of(reply)

        def fetch(name: str) -> bytes:
            if self.late:
                self.late -= 1
                raise NotDeliveredYet(name)
            if "lost" in reply.content.config_records:
                del reply.content["lost"]
                raise RunEnded("gone")
            self.fetched.append(name)
            return objects[name].deflate()

        return IncomingMessage(reply, tree, fetch)

    def confirm(self, incoming: IncomingMessage) -> None:
        pass


def plain(state: State) -> UpdateChain:
    return UpdateChain(UpdateSchema.of(state))


def grid(link: FakeLink, **options: Any) -> SuperLinkGrid:
    def restore(error: LinkDown) -> None:
        assert str(error) == "away"

    return SuperLinkGrid(
        link, expected_replies(plain(STATE), (1, 2, 2)), {10: 2, 20: 0, 30: 1}, restore, **options
    )  # type: ignore[arg-type]


def packed(content: RecordDict) -> RecordDict:
    layout = message_format.describe(content)
    return internals_message_objects.pack_message(
        layout, internals_message_objects.pack_tensors(message_format.TensorSource(content, layout), layout)
    )


def update(value: float, shape: tuple[int, ...] = (3, 2)) -> RecordDict:
    state = {"w": torch.full(shape, value), "b": torch.zeros(2)}
    return packed(RecordDict({"arrays": codec.encode_state(state)}))


def trained(value: float) -> RecordDict:
    state = {"w": torch.full((3, 2), value), "b": torch.zeros(2)}
    return packed(codec.encode_update(TrainResult(state=state, examples=4, loss=0.5, steps=1)))


def messages_to(nodes: Sequence[int]) -> list[Message]:
    shared = ArrayRecord({name: TensorArray(tensor) for name, tensor in STATE.items()})
    return [
        Message(RecordDict({"arrays": shared, "config": ConfigRecord({"r": 1})}), node, "train")
        for node in nodes
    ]
