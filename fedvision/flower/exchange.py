"""One exchange of messages: what went out, what came back, and what could not be used.

A reply that failed, is missing, or does not fit the model is set aside with client, stage and reason, and the
rest of the round goes on. Replies pass through one at a time and are not held, unless the caller wants them
in the order of the messages: then those that come early wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.errors import UpdateRefused
from fedvision.flower import codec
from fedvision.flower.roster import Roster
from fedvision.types import State


@dataclass(kw_only=True)
class Exchange:
    """The bookkeeping of one phase of one round."""

    roster: Roster
    """Which node hosts which client."""
    stage: str
    """What the clients are asked for: ``"data"``, ``"training"``, ``"evaluation"``."""
    expected: State | None = None
    """The state that replies must match; None where they carry no model."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Client, stage and reason of each reply that was not used; once all are in, in the messages' order."""
    answered: list[int] = field(default_factory=list)
    """Clients whose replies were used; once all are in, in the messages' order."""
    down: int = 0
    """Bytes of tensors sent."""
    up: int = 0
    """Bytes of tensors received."""

    def send(self, grid: Grid, messages: Sequence[Message], *, ordered: bool = False) -> Iterator[Message]:
        """Send messages and yield the replies that can be used.

        Args:
            grid: Carries the messages. One with a true attribute ``folds`` is a part of this program and may
                answer with sums that it took over its clients' updates.
            messages: One for each node asked.
            ordered: Yield in the order of the messages, not as replies come.
        """
        if not messages:
            return
        nodes = [message.metadata.dst_node_id for message in messages]
        self.down += codec.total_size(message.content for message in messages)
        replies = self._screen(grid, messages, set(nodes))
        # Nothing on the way may hold a reply while the next one is made, or two models are in memory.
        yield from _in_order(nodes, replies) if ordered else filter(None, map(itemgetter(1), replies))
        place = {self.roster.client(node): number for number, node in enumerate(nodes)}
        self.answered.sort(key=place.__getitem__)
        self.refused.sort(key=lambda item: place[item["client"]])

    def _screen(
        self, grid: Grid, messages: Sequence[Message], silent: set[int]
    ) -> Iterator[tuple[int, Message | None]]:
        """Yield each node that answered with its reply, or with None where that cannot be used."""
        folds = bool(getattr(grid, "folds", False))
        for reply in grid.send_and_receive(messages):
            node = reply.metadata.src_node_id
            silent.discard(node)
            client = self.roster.client(node)
            usable = self._usable(reply, client, folds)
            if usable:
                self.answered.append(client)
            yield node, reply if usable else None
            del reply
        for node in sorted(silent):
            self._refuse(self.roster.client(node), "it did not answer")

    def _usable(self, reply: Message, client: int, folds: bool) -> bool:
        if reply.has_error():
            self._refuse(client, _reason(reply.error.reason or "", client, self.stage))
            return False
        self.up += codec.size(reply.content)
        if self.expected is None or (folds and codec.is_folded(reply.content)):
            return True
        try:
            codec.check_update(reply.content, client, self.expected)
        except UpdateRefused as error:
            self._refuse(client, error.cause)
            return False
        return True

    def _refuse(self, client: int, reason: str) -> None:
        if client in self.answered:
            # A worker died with its sum, and the client's second run failed.
            self.answered.remove(client)
        self.refused.append({"client": client, "stage": self.stage, "reason": reason})


def _in_order(nodes: Sequence[int], replies: Iterator[tuple[int, Message | None]]) -> Iterator[Message]:
    early: dict[int, Message | None] = {}
    due = 0
    for node, reply in replies:
        early[node] = reply
        while due < len(nodes) and nodes[due] in early:
            if found := early.pop(nodes[due]):
                yield found
            due += 1
    for node in nodes[due:]:
        if found := early.get(node):
            yield found


def _reason(text: str, client: int, stage: str) -> str:
    """Return an error reply's reason without the words that the record holds anyway."""
    return text.removeprefix(f"client {client}, {stage}: ")
