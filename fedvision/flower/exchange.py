"""One exchange of messages: what went out, what came back, and what could not be used.

A reply that failed, is missing, or does not fit the model is set aside with client, stage and reason, and the
rest of the round goes on. Replies pass through one at a time and are not held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.errors import UpdateRefused
from fedvision.flower import codec
from fedvision.types import State


@dataclass(kw_only=True)
class Exchange:
    """The bookkeeping of one phase of one round."""

    clients: Mapping[int, int]
    """Which node hosts which client: ``{node: client}``."""
    stage: str
    """What the clients are asked for: ``"data"``, ``"training"``, ``"evaluation"``."""
    expected: State | None = None
    """The state that replies must match; None where they carry no model."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Client, stage and reason of each reply that was not used."""
    answered: list[int] = field(default_factory=list)
    """Clients whose replies were used."""
    down: int = 0
    """Bytes of tensors sent."""
    up: int = 0
    """Bytes of tensors received."""

    def send(self, grid: Grid, messages: Sequence[Message]) -> Iterator[Message]:
        """Send messages and yield the replies that can be used, each as soon as it is there.

        Args:
            grid: Carries the messages.
            messages: One for each node asked.
        """
        silent = {message.metadata.dst_node_id for message in messages}
        self.down += sum(codec.size(message.content) for message in messages)
        for reply in _receive(grid, messages):
            node = reply.metadata.src_node_id
            silent.discard(node)
            if self._usable(reply, node):
                self.answered.append(self._client(node))
                yield reply
        for node in sorted(silent):
            self._refuse(self._client(node), "it did not answer")

    def _usable(self, reply: Message, node: int) -> bool:
        client = self._client(node)
        if reply.has_error():
            self._refuse(client, _reason(reply.error.reason or "", client, self.stage))
            return False
        self.up += codec.size(reply.content)
        if self.expected is None:
            return True
        try:
            codec.check_update(reply.content, client, self.expected)
        except UpdateRefused as error:
            self._refuse(client, error.cause)
            return False
        return True

    def _refuse(self, client: int, reason: str) -> None:
        self.refused.append({"client": client, "stage": self.stage, "reason": reason})

    def _client(self, node: int) -> int:
        return self.clients.get(node, node)


def _receive(grid: Grid, messages: Sequence[Message]) -> Iterable[Message]:
    return grid.send_and_receive(messages) if messages else ()


def _reason(text: str, client: int, stage: str) -> str:
    """Return an error reply's reason without the words that the record holds anyway."""
    return text.removeprefix(f"client {client}, {stage}: ")
