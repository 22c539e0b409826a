"""One exchange of messages: what went out, what came back, and what could not be used.

A reply is decoded once, where it is received, by the phase's ``ReplyDecoder``. One that failed, is missing,
or does not fit the model is set aside with client, stage, kind and reason, and the rest of the round goes on.
Replies pass through one at a time and are not held, unless the caller wants them in the order of the
messages: then those that come early wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.errors import InvalidUpdate
from fedvision.flower import codec, internals
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.train_reply import TrainReply
from fedvision.formatting import one_line
from fedvision.types import Rejection

SILENT = "it did not answer"
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ReplyDecoder(Protocol[T_co]):
    """Makes a typed value of a reply that is no error."""

    @property
    def bytes_saved(self) -> int:
        """Bytes by which ``[[update]]`` tables make a reply smaller."""

    def decode(self, message: Message, client: int) -> T_co:
        """Return what a reply says.

        Args:
            message: The reply; its content may be taken out of it.
            client: Who sent it.

        Raises:
            InvalidUpdate: It cannot be used.
        """


class Undecoded:
    """Leaves a reply as it is, for whoever decodes it later."""

    bytes_saved = 0

    def decode(self, message: Message, client: int) -> Message:
        """Return the reply."""
        return message


class UnusableReply(Exception):
    """A reply that is an error or cannot be decoded.

    Args:
        reason: One sentence; it may hold words of the sender.
        kind: Which of both.
    """

    def __init__(self, reason: str, kind: Rejection) -> None:
        super().__init__(reason)
        self.reason, self.kind = one_line(reason), kind


@dataclass(kw_only=True)
class PhaseResult(Generic[T]):
    """The bookkeeping of one phase of one round."""

    client_registry: ClientRegistry
    """Which node hosts which client."""
    stage: str
    """The phase: ``"data"``, ``"training"``, ``"evaluation"``."""
    decoder: ReplyDecoder[T]
    """Decodes replies and refuses those that cannot be used."""
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
    ) -> Iterator[T]:
        """Send messages, wait for everybody, and yield the replies that can be used, decoded.

        Args:
            grid: Carries the messages.
            messages: One for each selected node.
            ordered: Yield in the order of the messages, not as replies come.
            timeout: Seconds after which who is missing is not waited for.
        """
        if not messages:
            return
        nodes = [message.metadata.dst_node_id for message in messages]
        self.down += codec.total_size(message.content for message in messages)
        replies = self._receive(grid.send_and_receive(messages, timeout=timeout), set(nodes))
        # Nothing on the way may hold a reply while the next one is made, or two models are in memory.
        yield from in_order(nodes, replies) if ordered else present(map(itemgetter(1), replies))
        self.sort([self.client_registry.client(node) for node in nodes])

    def _receive(self, replies: Iterable[Message], silent: set[int]) -> Iterator[tuple[int, T | None]]:
        """Yield each node that answered with its reply, or with None where that cannot be used."""
        for reply in replies:
            node = reply.metadata.src_node_id
            silent.discard(node)
            yield node, self.take(reply, self.client_registry.client(node))
            del reply
        for node in sorted(silent):
            self.refuse(self.client_registry.client(node), SILENT, "failed")

    def take(self, reply: Message, client: int) -> T | None:
        """Note a reply and return what it says if it can be used."""
        try:
            found = self.decode(reply, client, self.decoder)
        except UnusableReply as error:
            self.refuse(client, error.reason, error.kind)
            return None
        self.answered.append(client)
        return found

    def decode(self, reply: Message, client: int, decoder: ReplyDecoder[T]) -> T:
        """Return what a reply says; note its size, and the norm of its change.

        Raises:
            UnusableReply: It cannot be used.
        """
        if reply.has_error():
            refused = reply.error.code == internals.REPLY_REFUSED
            if refused:
                self.unusable.append(client)
            reason = _reason(reply.error.reason or "", client, self.stage)
            kind: Rejection = "declined" if reply.error.code == internals.DECLINED else "failed"
            raise UnusableReply(reason, "refused" if refused else kind)
        self.count(codec.size(reply.content), decoder.bytes_saved)
        try:
            found = decoder.decode(reply, client)
        except InvalidUpdate as error:
            self.unusable.append(client)
            raise UnusableReply(error.cause, "refused") from error
        if isinstance(found, TrainReply) and found.norm is not None:
            self.norms[client] = found.norm
        return found

    def count(self, nbytes: int, bytes_saved: int = 0) -> None:
        """Count the bytes of a reply that came.

        Args:
            nbytes: Bytes of its tensors.
            bytes_saved: How many more they would be had the update not been transformed.
        """
        self.up += nbytes
        self.up_whole += nbytes + bytes_saved

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
        """Put who replied and who was refused into the order of the messages."""
        place = {client: number for number, client in enumerate(clients)}
        self.answered.sort(key=place.__getitem__)
        self.refused.sort(key=lambda item: place[item["client"]])


def present(replies: Iterable[T | None]) -> Iterator[T]:
    """Yield the replies that are there, holding none of them."""
    for reply in replies:
        if reply is not None:
            yield reply
        del reply


def in_order(nodes: Sequence[int], replies: Iterator[tuple[int, T | None]]) -> Iterator[T]:
    """Yield the replies of nodes in the nodes' order; None stands for one that cannot be used."""
    early: dict[int, T | None] = {}
    due = 0
    for node, reply in replies:
        early[node] = reply
        del reply
        while due < len(nodes) and nodes[due] in early:
            if (found := early.pop(nodes[due])) is not None:
                yield found
            del found
            due += 1
    for node in nodes[due:]:
        if (found := early.get(node)) is not None:
            yield found


def _reason(text: str, client: int, stage: str) -> str:
    """Return an error reply's reason without the words that the record holds anyway."""
    return text.removeprefix(f"client {client}, {stage}: ")
