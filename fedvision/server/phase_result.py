"""One exchange of messages: what went out, what came back, and what could not be used.

A reply that failed, is missing, or does not fit the model is set aside with client, stage, kind and reason,
and the rest of the round goes on. Replies pass through one at a time and are not held, unless the caller
wants them in the order of the messages: then those that come early wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.errors import InvalidUpdate
from fedvision.flower import codec, internals
from fedvision.flower.client_registry import ClientRegistry
from fedvision.server.update_validator import UpdateValidator
from fedvision.types import Rejection

SILENT = "it did not answer"


@dataclass(kw_only=True)
class PhaseResult:
    """The bookkeeping of one phase of one round."""

    client_registry: ClientRegistry
    """Which node hosts which client."""
    stage: str
    """What the clients are asked for: ``"data"``, ``"training"``, ``"evaluation"``."""
    validator: UpdateValidator | None = None
    """What replies must pass; None where they carry no model."""
    pre_aggregates: bool = False
    """Whether the carrier is a part of this program and may answer with sums over its clients' updates."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Client, stage, kind (``types.Rejection``) and reason of each reply that was not used; once all are
    in, in the messages' order."""
    answered: list[int] = field(default_factory=list)
    """Clients whose replies were used; once all are in, in the messages' order."""
    unusable: list[int] = field(default_factory=list)
    """Clients who sent a reply that was refused for what is in it."""
    norms: dict[int, float] = field(default_factory=dict)
    """By client, the norm of the change that its reply makes."""
    down: int = 0
    """Bytes of tensors sent."""
    up: int = 0
    """Bytes of tensors received, as they travelled."""
    up_whole: int = 0
    """The same, had no update been transformed."""

    def send(
        self,
        grid: Grid,
        messages: Sequence[Message],
        *,
        ordered: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Message]:
        """Send messages, wait for everybody, and yield the replies that can be used.

        Args:
            grid: Carries the messages.
            messages: One for each node asked.
            ordered: Yield in the order of the messages, not as replies come.
            timeout: Seconds after which who is missing is not waited for.
        """
        if not messages:
            return
        nodes = [message.metadata.dst_node_id for message in messages]
        self.down += codec.total_size(message.content for message in messages)
        replies = self._receive(grid.send_and_receive(messages, timeout=timeout), set(nodes))
        # Nothing on the way may hold a reply while the next one is made, or two models are in memory.
        yield from in_order(nodes, replies) if ordered else filter(None, map(itemgetter(1), replies))
        self.sort([self.client_registry.client(node) for node in nodes])

    def _receive(self, replies: Iterable[Message], silent: set[int]) -> Iterator[tuple[int, Message | None]]:
        """Yield each node that answered with its reply, or with None where that cannot be used."""
        for reply in replies:
            node = reply.metadata.src_node_id
            silent.discard(node)
            yield node, self.take(reply, self.client_registry.client(node))
            del reply
        for node in sorted(silent):
            self.refuse(self.client_registry.client(node), SILENT, "failed")

    def take(self, reply: Message, client: int) -> Message | None:
        """Note a reply and return it if it can be used."""
        if found := self.examine(reply, client, self.validator):
            self.refuse(client, *found)
            return None
        self.answered.append(client)
        return reply

    def examine(
        self, reply: Message, client: int, validator: UpdateValidator | None
    ) -> tuple[str, Rejection] | None:
        """Return why a reply cannot be used, and of which kind that is; note its size and its norm.

        Returns:
            None where the reply can be used.
        """
        if reply.has_error():
            refused = reply.error.code == internals.REPLY_REFUSED
            if refused:
                self.unusable.append(client)
            reason = _reason(reply.error.reason or "", client, self.stage)
            return reason, "refused" if refused else "failed"
        content = reply.content
        self.count(codec.size(content), validator)
        if validator is None:
            return None
        if self.pre_aggregates and codec.is_folded(content):
            self.norms[client] = codec.folded_norm(content)
            return None
        try:
            self.norms[client] = validator.check(content, client)
        except InvalidUpdate as error:
            self.unusable.append(client)
            return error.cause, "refused"
        return None

    def count(self, nbytes: int, validator: UpdateValidator | None) -> None:
        """Count the bytes of a reply that came, to be checked by a validator."""
        self.up += nbytes
        self.up_whole += nbytes
        if validator is not None:
            self.up_whole += validator.updates.bytes_saved

    def bytes(self) -> dict[str, int]:
        """Return the bytes sent and received, for the round's record."""
        traffic = {"down": self.down, "up": self.up}
        return traffic | {"up_whole": self.up_whole} if self.up_whole != self.up else traffic

    def refuse(self, client: int, reason: str, kind: Rejection) -> None:
        """Note that a client's reply is not used, or that there is none."""
        if client in self.answered:
            # A worker died with its sum, and the client's second run failed.
            self.answered.remove(client)
            self.norms.pop(client, None)
        self.refused.append({"client": client, "stage": self.stage, "kind": kind, "reason": reason})

    def sort(self, clients: Sequence[int]) -> None:
        """Put who answered and who was refused into the order in which clients were asked."""
        place = {client: number for number, client in enumerate(clients)}
        self.answered.sort(key=place.__getitem__)
        self.refused.sort(key=lambda item: place[item["client"]])


def in_order(nodes: Sequence[int], replies: Iterator[tuple[int, Message | None]]) -> Iterator[Message]:
    """Yield the replies of nodes in the nodes' order; None stands for one that cannot be used."""
    early: dict[int, Message | None] = {}
    due = 0
    for node, reply in replies:
        early[node] = reply
        del reply
        while due < len(nodes) and nodes[due] in early:
            if found := early.pop(nodes[due]):
                yield found
            del found
            due += 1
    for node in nodes[due:]:
        if found := early.get(node):
            yield found


def _reason(text: str, client: int, stage: str) -> str:
    """Return an error reply's reason without the words that the record holds anyway."""
    return text.removeprefix(f"client {client}, {stage}: ")
