"""The server's Grid over a SuperLink: messages packed once, replies checked before they are fetched.

Flower's own Grid polls every 3 s, fetches whatever a client sent, and holds all replies of a round. Here
replies are polled several times a second and fetched one at a time, when the strategy wants the next, so
that the server's memory holds one reply whatever the cohort; what does not fit the model is never fetched.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from flwr.app import Error, Message, RecordDict

from fedvision.deployment.declining import Declined
from fedvision.deployment.transport import message_format
from fedvision.deployment.transport.internals_message_objects import (
    NODE_UNAVAILABLE,
    IncomingMessage,
    LinkDown,
    LinkRefused,
    NotDeliveredYet,
    PackedTensors,
    RunEnded,
    from_node,
    pack_message,
    pack_tensors,
    with_content,
)
from fedvision.deployment.transport.internals_run import RunLink
from fedvision.engines.local_grid import LocalGrid
from fedvision.errors import FedVisionError, ProtocolError, RunError
from fedvision.flower import codec, internals
from fedvision.flower.query_codec import STATISTIC
from fedvision.formatting import one_line
from fedvision.tasks.stats import Shape
from fedvision.updates.chain import UpdateChain

_PAUSE_S = 0.02
"""Pause between two questions for replies, which ``long_polling`` holds while there is none."""
_UPLOAD_S = 6 * 3600.0
"""How long a client may take to deliver a reply; a SuperLink gives up on one that rests for 180 s."""
_TTL_S = 30 * 86_400.0
"""How long a SuperLink takes a reply to a message; after Flower's 12 hours a slow client's would be lost."""
_STATISTIC_BYTES = 1 << 29
"""Bytes of a statistic's sums at most."""
_T = TypeVar("_T")


@dataclass
class _Sent:
    """A message that waits for its reply."""

    message: Message
    node: int
    again: bool = False


@dataclass
class _Arrived:
    """A reply that is announced."""

    incoming: IncomingMessage
    sent: _Sent
    since: float
    notes: tuple[str, ...] = ()


class SuperLinkGrid(LocalGrid):
    """A Flower Grid whose nodes are machines far away.

    Args:
        link: The SuperLink.
        expected: What replies may bring, by message type; others bring numbers.
        numbers: Which client each node is; read whenever a message is sent.
        restore: Brings a SuperLink back that does not answer; raises when it gives up.
        on_client_notice: Is called with a client and a sentence of its own on what befell it.
        belongs: Returns whether a node is a member: one that came in the middle of a round, or reported that
            it cannot take part, gets no message.
        members: Returns how many clients take part, which every message says.
        on_declined: Is called with a node and why its owner's policy does not allow a task.
        before_sending: Is called when messages are made, before anybody can see them, and returns when all is
            done that must be done by then.
    """

    def __init__(
        self,
        link: RunLink,
        expected: Mapping[str, message_format.Expected],
        numbers: Mapping[int, int],
        restore: Callable[[LinkDown], None],
        on_client_notice: Callable[[int, str], None] = lambda client, sentence: None,
        belongs: Callable[[int], bool] = lambda node: True,
        before_sending: Callable[[], None] = lambda: None,
        *,
        members: Callable[[], int] = lambda: 0,
        on_declined: Callable[[int, Declined], None] = lambda node, declined: None,
    ) -> None:
        super().__init__(0, link.run_id)
        self._link, self._expected, self._numbers, self._restore = link, expected, numbers, restore
        self._on_client_notice, self._belongs = on_client_notice, belongs
        self._before_sending, self._members, self._on_declined = before_sending, members, on_declined
        self._outstanding: dict[str, _Sent] = {}
        self._announced: deque[_Arrived] = deque()
        self._unsent: list[Message] = []
        self._later = ThreadPoolExecutor(1, "confirm")

    def get_node_ids(self) -> Iterable[int]:
        """Return the members that are online, in the order of their clients."""
        online = [node for node in self._retrying(self._link.online) if self._belongs(node)]
        return sorted(online, key=lambda node: (self._numbers.get(node, 1 << 62), node))

    def names(self) -> dict[int, str]:
        """Return the nodes that are online with the names under which they are registered."""
        return self._retrying(self._link.online)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield one reply for each message, as they come.

        Args:
            messages: Are packed in place.
            timeout: Seconds after which the rest is not waited for.
        """
        waiting, began = self._push(list(messages)), time.monotonic()
        limit = began + timeout if timeout is not None else math.inf
        for _, reply in self._receive(waiting, deque(), lambda: limit, ""):
            yield reply
            del reply

    def carry(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies to messages."""
        return self.send_and_receive(messages)

    # What may be owed when a round is over (``server.pending_messages.AsyncGrid``).

    simulated = False

    def now(self) -> float:
        """Return the seconds of this machine's clock."""
        return time.monotonic()

    def post(self, messages: Sequence[Message]) -> None:
        """Send messages, packed in place."""
        sent = self._push(list(messages))
        taken = {id(one.message) for one in sent.values()}
        self._unsent += [message for message in messages if id(message) not in taken]
        self._outstanding |= sent

    def resume(self, messages: Sequence[Message], since: Sequence[float], now: float) -> None:
        """Send messages again; a client that has done the task already answers without doing it again."""
        self.post(messages)

    def watch(self, limit: Callable[[], float], kind: str = "") -> Iterator[tuple[Message, Message]]:
        """Yield messages with their replies as they come; as ``AsyncGrid.watch``."""
        while self._unsent:
            message = self._unsent.pop()
            error = Error(code=NODE_UNAVAILABLE, reason="it went offline before its message was sent")
            yield message, Message(error, reply_to=message)
        yield from self._receive(self._outstanding, self._announced, limit, kind)

    def ready(self) -> list[Message]:
        """Return the messages whose replies are announced."""
        self._look(self._outstanding, self._announced)
        return [*self._unsent, *(found.sent.message for found in self._announced)]

    def wait(self, until: float) -> None:
        """Return when one more reply is announced, or at ``until``."""
        before = len(self._announced)
        while self._outstanding and len(self._announced) == before and self.now() < until:
            time.sleep(_PAUSE_S)
            self._look(self._outstanding, self._announced)

    def _push(self, messages: list[Message]) -> dict[str, _Sent]:
        self._pack(messages)
        ids = self._retrying(lambda: self._link.push(messages, self._before_sending)) if messages else []
        return {
            name: _Sent(message, message.metadata.dst_node_id)
            for name, message in zip(ids, messages, strict=True)
            if name
        }

    def _receive(
        self, waiting: dict[str, _Sent], arrived: deque[_Arrived], limit: Callable[[], float], kind: str
    ) -> Iterator[tuple[Message, Message]]:
        """Yield messages with their replies; replies that were announced by the limit are still taken."""
        while waiting or arrived:
            over = time.monotonic() > limit()
            if not over:
                self._look(waiting, arrived)
            moved = False
            for _ in range(len(arrived)):
                found = arrived.popleft()
                if kind and found.sent.message.metadata.message_type != kind:
                    arrived.append(found)
                elif reply := self._take(found, waiting, arrived):
                    moved = True
                    yield found.sent.message, reply
                reply = None  # a model, which must be gone when the next one is fetched
            if over:
                return
            if not moved:
                time.sleep(max(0.0, min(_PAUSE_S, limit() - time.monotonic())))

    def _look(self, waiting: dict[str, _Sent], arrived: deque[_Arrived]) -> None:
        """Request which replies are there."""
        for incoming in self._retrying(lambda: self._link.pull(list(waiting))) if waiting else ():
            sent = waiting.pop(incoming.head.metadata.reply_to_message_id)
            arrived.append(_Arrived(incoming, sent, time.monotonic()))

    def _take(self, found: _Arrived, waiting: dict[str, _Sent], arrived: deque[_Arrived]) -> Message | None:
        """Return a reply, or None where it is not delivered yet or was lost and is requested again."""
        head = found.incoming.head
        if head.has_error():
            generated = head.metadata.src_node_id == internals.SERVER_NODE
            if generated and head.error.code != NODE_UNAVAILABLE and not found.sent.again:
                self._send_again(found.sent, waiting)
                return None
            if head.error.code == internals.DECLINED:
                declined = Declined.from_text(head.error.reason or "")
                self._on_declined(found.sent.node, declined)
                return self._failed(found, str(declined), internals.DECLINED)
            reason = "it went offline before it answered" if generated else head.error.reason
            return self._failed(found, reason, head.error.code)
        try:
            content = self._retrying(lambda: self._fetch(found, found.sent.message.metadata.message_type))
        except NotDeliveredYet:
            if time.monotonic() - found.since > _UPLOAD_S:
                return self._failed(found, "its reply was announced and never delivered")
            arrived.append(found)
            return None
        except ProtocolError as error:
            self._later.submit(self._confirm, found.incoming)
            return self._failed(found, str(error), internals.REPLY_REFUSED)
        except RunEnded:
            if found.sent.again:
                return self._failed(found, "its reply was lost")
            self._send_again(found.sent, waiting)
            return None
        self._later.submit(self._confirm, found.incoming)
        for note in found.notes:
            self._on_client_notice(self._numbers.get(found.sent.node, found.sent.node), note)
        return with_content(head, content)

    def _fetch(self, found: _Arrived, kind: str) -> RecordDict:
        incoming = found.incoming
        layout = incoming.open()
        self._expected.get(kind, message_format.Expected()).check(layout)
        # NumPy takes large memory in large pages, which makes it three times as fast as a bytearray.
        blob, start = np.empty(layout.size, np.uint8).data, 0
        for piece in incoming.read(layout):
            blob[start : start + len(piece)] = piece
            start += len(piece)
        found.notes, content = layout.notes, message_format.unpack(layout, blob)
        if codec.is_folded(content):
            raise ProtocolError("it says that its update is in a sum, as only workers of a simulation may")
        return content

    def _confirm(self, incoming: IncomingMessage) -> None:
        """Let the SuperLink forget a reply; the others are deleted when the run ends."""
        with suppress(FedVisionError):
            self._link.confirm(incoming)

    def _send_again(self, sent: _Sent, waiting: dict[str, _Sent]) -> None:
        """Send a message again whose reply was lost with a SuperLink; the client has kept its reply."""
        (name,) = self._retrying(lambda: self._link.push([sent.message]))
        waiting[name] = _Sent(sent.message, sent.node, again=True)

    @staticmethod
    def _failed(found: _Arrived, reason: str | None, code: int = internals.CLIENT_RAISED) -> Message:
        error = Error(code=code, reason=one_line(reason or ""))
        return from_node(found.incoming.head, found.sent.node, error)

    def _pack(self, messages: Sequence[Message]) -> None:
        """Put the packed content into every message; tensors that several share are cut up once."""
        cut: dict[tuple[tuple[str, int], ...], PackedTensors] = {}
        for message in messages:
            content = message.content
            layout = replace(
                message_format.describe(content, self._numbers.get(message.metadata.dst_node_id, -1)),
                members=self._members(),
            )
            key = tuple((name, id(record)) for name, record in content.array_records.items())
            if key not in cut:
                cut[key] = pack_tensors(message_format.TensorSource(content, layout), layout)
            message.content = pack_message(layout, cut[key])
            message.metadata.ttl = _TTL_S

    def _retrying(self, call: Callable[[], _T]) -> _T:
        """Call until the SuperLink answers.

        Raises:
            RunError: It no longer knows the run.
        """
        while True:
            try:
                return call()
            except LinkDown as error:
                self._restore(error)
            except LinkRefused as error:
                raise RunError(
                    f"the SuperLink no longer takes this run's messages ({error}): it was stopped there, or "
                    "this machine was asleep for a minute; the same command goes on from the last round"
                ) from error


def expected_replies(
    updates: UpdateChain, counts: Shape, *, measured: bool = False
) -> dict[str, message_format.Expected]:
    """Return what clients may send back: an update exactly, and numbers.

    Args:
        updates: Has the schema of an update.
        counts: Shape (T, R, S) of what an evaluation counts, and brings whole where it is masked. Cells that
            occur travel only where they take less, so that the bound holds for both.
        measured: Whether replies to training messages bring them, too.
    """
    evaluation_bytes = 8 * math.prod(counts) + (1 << 16)
    more = evaluation_bytes if measured else 0
    return {
        "train": message_format.Expected.of_model(codec.ARRAYS, updates.sent, updates.received, more),
        "evaluate": message_format.Expected(spare_bytes=evaluation_bytes),
        STATISTIC: message_format.Expected(spare_bytes=_STATISTIC_BYTES),
    }
