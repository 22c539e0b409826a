"""Messages without a reply yet, over all rounds: to whom, what and when.

Most carriers answer everything that they are given before they return. Machines far away, and simulated ones
that take their time, may answer after their round is over; such a carrier is ``AsyncGrid``, and what it owes
stays on this list until it comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedvision.flower import codec
from fedvision.flower.client_registry import ClientRegistry
from fedvision.types import State

NEVER = math.inf
"""A limit that no clock reaches."""


@runtime_checkable
class AsyncGrid(Protocol):
    """A Grid that may owe answers when a round is over. It keeps the time, real or simulated."""

    simulated: bool
    """Whether its time is simulated: clients can then measure while they train, and a run that was stopped
    goes on to the same bits."""

    def now(self) -> float:
        """Return the seconds of its clock."""

    def post(self, messages: Sequence[Message]) -> None:
        """Send messages; their content may be replaced by what travels."""

    def resume(self, messages: Sequence[Message], since: Sequence[float], now: float) -> None:
        """Send messages again that a server had sent at ``since`` when it was stopped at ``now``."""

    def watch(self, limit: Callable[[], float], kind: str = "") -> Iterator[tuple[Message, Message]]:
        """Yield messages with their replies as they come, until none is owed or the clock is at ``limit()``.

        What was not taken when the caller stops is yielded by a later call.

        Args:
            limit: May move while replies are taken.
            kind: Type of the messages whose replies are wanted; all where it is empty.
        """

    def ready(self) -> Sequence[Message]:
        """Return the messages whose replies are there and were not yielded yet."""

    def wait(self, until: float) -> None:
        """Return when one more reply is there, or when the clock is at ``until``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PendingMessage:
    """A message to a client that is waited for."""

    client: int
    """Whom it went to."""
    round: int
    """In which round."""
    stage: str
    """``"training"`` or ``"evaluation"``."""
    message: Message
    """The message; its content may be packed."""
    content: RecordDict
    """What it said."""
    since: float
    """When it was sent, by the carrier's clock."""

    @property
    def state(self) -> State:
        """The model that the client was sent."""
        return codec.decode_state(codec.record(self.content, codec.ARRAYS, ArrayRecord))


class PendingMessages:
    """Sends messages over a grid and knows what is owed.

    Args:
        grid: The carrier.
        client_registry: Who is where.
    """

    def __init__(self, grid: Grid, client_registry: ClientRegistry) -> None:
        self.grid, self._roster = grid, client_registry
        self.lasting: AsyncGrid | None = grid if isinstance(grid, AsyncGrid) else None
        self._out: dict[int, PendingMessage] = {}

    def now(self) -> float:
        """Return the carrier's time; 0 where it has none."""
        return self.lasting.now() if self.lasting else 0.0

    def entries(self, messages: Sequence[Message], round: int, stage: str) -> list[PendingMessage]:
        """Return a round's messages as pending ones."""
        now = self.now()
        return [
            PendingMessage(
                client=self._roster.client(message.metadata.dst_node_id),
                round=round,
                stage=stage,
                message=message,
                content=message.content,
                since=now,
            )
            for message in messages
        ]

    def deliver(
        self, entries: Sequence[PendingMessage], limit: Callable[[], float], kind: str = ""
    ) -> Iterator[tuple[PendingMessage, Message]]:
        """Send messages and yield replies, to these and to older ones, until the clock is at ``limit()``.

        A carrier that is not lasting yields all its replies, whatever the time. A second reply to a message,
        which only such a carrier may send, says what has become of the first.
        """
        if self.lasting is None:
            sent = {entry.message.metadata.dst_node_id: entry for entry in entries}
            for reply in self.grid.send_and_receive([entry.message for entry in entries]):
                yield sent[reply.metadata.src_node_id], reply
                # Let go before the next one is made, or two models are in memory.
                del reply
            return
        self._out |= {id(entry.message): entry for entry in entries}
        self.lasting.post([entry.message for entry in entries])
        for message, reply in self.lasting.watch(limit, kind):
            if entry := self._out.pop(id(message), None):
                yield entry, reply
            del reply

    def outstanding(self) -> list[PendingMessage]:
        """Return the messages that have no answer yet, whether or not it is there."""
        return list(self._out.values())

    def busy(self) -> set[int]:
        """Return the clients that are still at work on a message."""
        if self.lasting is None or not self._out:
            return set()
        ready = {id(message) for message in self.lasting.ready()}
        return {entry.client for key, entry in self._out.items() if key not in ready}

    def snapshot(self, oldest: int) -> tuple[State, dict[str, Any]]:
        """Return the training messages that are owed, as tensors and JSON.

        Args:
            oldest: Those of earlier rounds are left out.
        """
        tensors: State = {}
        contents: dict[int, int] = {}
        layouts: list[dict[str, Any]] = []
        entries = [one for one in self.outstanding() if one.stage == "training" and one.round >= oldest]
        for entry in entries:
            if id(entry.content) in contents:
                continue
            place = contents[id(entry.content)] = len(contents)
            for group, record in codec.arrays_of(entry.content).items():
                tensors |= {f"{place}/{group}/{k}": t for k, t in codec.decode_state(record).items()}
            # The order of records and names is kept: a client knows a task that it has done by its bytes.
            layouts.append(
                {
                    key: dict(held) if isinstance(held, ConfigRecord) else list(held)
                    for key, held in entry.content.items()
                }
            )
        listed = [[one.client, one.round, one.since, contents[id(one.content)]] for one in entries]
        return tensors, {"letters": listed, "contents": layouts, "now": self.now()}

    def restore(self, tensors: State, values: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Send the messages of a snapshot again.

        Returns:
            Client and round of those whose client is not there.
        """
        if self.lasting is None or "now" not in values:
            return []
        contents = [_content(place, layout, tensors) for place, layout in enumerate(values["contents"])]
        present = set(self._roster.present(self.grid)) if values["letters"] else set()
        entries, lost = [], []
        for client, round, since, place in values["letters"]:
            if client not in present:
                lost.append((client, round))
                continue
            message = Message(contents[place], self._roster.node(client), MessageType.TRAIN)
            entries.append(
                PendingMessage(
                    client=client,
                    round=round,
                    stage="training",
                    message=message,
                    content=message.content,
                    since=since,
                )
            )
        self._out |= {id(entry.message): entry for entry in entries}
        since = [entry.since for entry in entries]
        self.lasting.resume([entry.message for entry in entries], since, float(values["now"]))
        return lost


def _content(place: int, layout: Mapping[str, Any], tensors: State) -> RecordDict:
    """Return a message's content as ``snapshot`` wrote it."""
    content = RecordDict()
    for key, held in layout.items():
        if isinstance(held, Mapping):
            content[key] = ConfigRecord(dict(held))
        else:
            content[key] = codec.encode_state({name: tensors[f"{place}/{key}/{name}"] for name in held})
    return content
