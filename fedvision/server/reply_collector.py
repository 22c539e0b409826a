"""The answers of one phase of one round, as they come: when it is over, and what becomes of late ones.

A phase ends when all replies are there; or at its deadline; or some seconds after its quorum is
there; or, with a buffer of K, with K usable replies, of whichever round (Nguyen et al. 2022, "Federated
Learning with Buffered Asynchronous Aggregation", arXiv 2106.06639). Who has not answered by then is named. An
answer that comes later is used with less weight (see ``staleness_weighting``) or discarded; either way it
stands in the record of the round in which it came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Generic

from flwr.app import Message, MessageType

from fedvision.flower import codec
from fedvision.flower.train_reply import TrainReply
from fedvision.server.pending_messages import NEVER, PendingMessage
from fedvision.server.phase_result import SILENT, PhaseResult, T, UnusableReply, in_order, present
from fedvision.server.round_state import RoundState
from fedvision.server.staleness_weighting import rebase_update, weight
from fedvision.server.update_validator import UpdateValidator
from fedvision.types import State


class QuorumMissed(Exception):
    """Fewer usable answers than the quorum; raised into a strategy before it draws a conclusion."""


class ReplyCollector(Generic[T]):
    """The answers of one phase of one round, as far as they come in time.

    Args:
        rounds: The run's memory.
        exchange: Where answers are noted.
        round: Number of the round.
        state: The present model.
    """

    def __init__(self, rounds: RoundState, exchange: PhaseResult[T], round: int, state: State) -> None:
        assert rounds.post
        self.post, self.config, self._exchange = rounds.post, rounds.config, exchange
        self._round, self._state = round, state
        self._first_deliveries = rounds.first_deliveries
        self._trains = exchange.stage == "training"
        self._began = self.post.now()
        self._quorum_at = NEVER
        self.late: list[dict[str, Any]] = []
        """Late replies that came: client, round of the request, and what became of it."""
        self._validators: dict[int, UpdateValidator] = {}

    @property
    def used(self) -> int:
        """Answers used so far, new and late."""
        return len(self._exchange.answered) + len([item for item in self.late if item["used"]])

    @property
    def done(self) -> int:
        """Answers that came so far, usable or not."""
        return len(self._exchange.answered) + len(self._exchange.refused) + len(self.late)

    def receive(self, messages: Sequence[Message], *, ordered: bool) -> Iterator[T]:
        """Send messages and yield the replies that can be used, those of earlier rounds brought up to date.

        Args:
            messages: One for each selected client.
            ordered: Yield in the order of the messages, then late ones by round and client.

        Raises:
            QuorumMissed: There were some, and fewer than ``round.min_clients``.
        """
        entries = self.post.entries(messages, self._round, self._exchange.stage)
        self._exchange.down += codec.total_size(entry.content for entry in entries)
        self._exchange.down += self._first_deliveries(
            {entry.client: codec.constants_size(entry.content) for entry in entries}
        )
        replies = self._screened(entries)
        if ordered:
            yield from self._sorted(entries, replies)
        else:
            # Nothing on the way may hold a reply while the next one is made, or two models are in memory.
            yield from present(map(itemgetter(1), replies))
        self._exchange.sort([entry.client for entry in entries])
        self.late.sort(key=lambda item: (item["requested"], item["client"]))
        if self._trains and 0 < self.used < self.config.min_clients:
            self.annul(f"the round had {self.used} of the {self.config.min_clients} answers that it needs")
            raise QuorumMissed

    def annul(self, reason: str) -> None:
        """Note that good answers are not used, as there are too few of them."""
        for client in list(self._exchange.answered):
            self._exchange.refuse(client, reason, "unused")
        for item in self.late:
            if item["used"]:
                item |= {"used": False, "reason": reason}

    def _sorted(
        self, entries: Sequence[PendingMessage], replies: Iterator[tuple[PendingMessage, T | None]]
    ) -> Iterator[T]:
        late: list[tuple[int, int, T]] = []

        def new() -> Iterator[tuple[int, T | None]]:
            for entry, reply in replies:
                if entry.round == self._round and entry.stage == self._exchange.stage:
                    yield id(entry), reply
                elif reply is not None:
                    late.append((entry.round, entry.client, reply))
                del reply

        yield from in_order([id(entry) for entry in entries], new())
        yield from (reply for _, _, reply in sorted(late, key=lambda item: item[:2]))

    def _screened(self, entries: Sequence[PendingMessage]) -> Iterator[tuple[PendingMessage, T | None]]:
        """Yield messages with their replies, None where these are not used, until the phase is over."""
        missing = dict.fromkeys(entries)
        lasting = self.post.lasting is not None
        if not (lasting and self._complete(missing)):
            kind = "" if self._trains else MessageType.EVALUATE
            for entry, reply in self.post.deliver(entries, self._limit, kind):
                missing.pop(entry, None)
                yield entry, self._take(entry, reply)
                del reply
                if lasting and self._complete(missing):
                    break
        if lasting and self.config.buffer and self._trains:
            return  # they are at work, as they should be
        for entry in missing:
            self._exchange.refuse(entry.client, self._excuse() if lasting else SILENT, "failed")

    def _complete(self, missing: Mapping[PendingMessage, None]) -> bool:
        """Return whether nothing more is to be waited for."""
        if not self._trains:
            return not missing
        if self.config.buffer:
            return self.used >= self.config.buffer
        if missing:
            return False
        return (
            self.used >= self.config.min_clients or not self.config.uses_late or not self.post.outstanding()
        )

    def _take(self, entry: PendingMessage, reply: Message) -> T | None:
        if entry.round == self._round and entry.stage == self._exchange.stage:
            taken = self._exchange.take(reply, entry.client)
        else:
            taken = self._take_late(entry, reply)
        if self._quorum_at == NEVER and self.used >= self.config.min_clients:
            self._quorum_at = self.post.now()
        return taken

    def _take_late(self, entry: PendingMessage, reply: Message) -> T | None:
        """Note a late reply and return it, brought up to date, if it is used."""
        age = self._round - entry.round
        noted: dict[str, Any] = {"client": entry.client, "requested": entry.round, "used": False}
        self.late.append(noted)
        wanted = self._trains and entry.stage == "training" and self.config.uses_late
        if not wanted or age > self.config.max_staleness:
            what = "its answer" if entry.stage == "training" else "its measurement"
            noted["reason"] = (
                self._failure(entry, reply) or f"{what} came {_late(age)} late and was discarded"
            )
            return None
        try:
            found = self._exchange.decode(reply, entry.client, self._validator(entry))  # type: ignore[arg-type]
        except UnusableReply as error:
            noted["reason"] = error.reason
            return None
        assert isinstance(found, TrainReply)
        share = weight(age, self.config.staleness)
        noted |= {"used": True, "weight": share, "loss": found.loss, "examples": found.examples}
        found.measured = None  # of an older model than the round's
        rebase_update(found, entry.state, self._state, share)
        return found

    def _failure(self, entry: PendingMessage, reply: Message) -> str | None:
        if not reply.has_error():
            saved = self._exchange.decoder.bytes_saved if entry.stage == "training" else 0
            self._exchange.count(codec.size(reply.content), saved)
            return None
        return (reply.error.reason or "").removeprefix(f"client {entry.client}, {entry.stage}: ")

    def _validator(self, entry: PendingMessage) -> UpdateValidator:
        """Return the validator for those who were sent an older model; replies of a round share one."""
        current = self._exchange.decoder
        assert isinstance(current, UpdateValidator)
        if entry.round not in self._validators:
            self._validators = {
                entry.round: UpdateValidator(
                    entry.state, current.bound, current.updates, groups=current.groups
                )
            }
        return self._validators[entry.round]

    def _limit(self) -> float:
        """Return when the phase ends, whoever is missing."""
        ends = [NEVER]
        if self.config.deadline:
            ends.append(self._began + self.config.deadline)
        if self._trains and self.config.wait_after_quorum:
            ends.append(self._quorum_at + self.config.wait_after_quorum)
        return min(ends)

    def _excuse(self) -> str:
        """Return why a client that is still missing was not waited for."""
        deadline, wait = self.config.deadline, self.config.wait_after_quorum
        if deadline and self._limit() >= self._began + deadline:
            return f"no answer by the deadline of {deadline:g} s"
        if math.isfinite(self._limit()):
            return f"no answer within {wait:g} s after the quorum of {self.config.min_clients}"
        return SILENT


def _late(age: int) -> str:
    return f"{age} round{'s' * (age != 1)}"
