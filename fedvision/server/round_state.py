"""What a run remembers from round to round beside model and strategy: who owes an answer, who was refused.

A round selects clients that are free when it begins; one that is busy with an earlier round is left out, and
one refused too often is set aside. ``reply_collector`` decides when the round is over. A client gets at
most one message a round and each message one reply, so exactly one training counts for each (round, client).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedvision import seeding
from fedvision.config import RoundConfig
from fedvision.flower.available_clients import Excluding
from fedvision.flower.client_registry import ClientRegistry
from fedvision.server.pending_messages import NEVER, PendingMessages
from fedvision.server.phase_result import PhaseResult
from fedvision.server.update_validator import norm_bound, remember
from fedvision.types import State


class RoundState:
    """What a run remembers from round to round beside model and strategy; a checkpoint holds it.

    Args:
        config: The experiment's ``[round]``.
        seed: The experiment's root seed.
    """

    def __init__(self, config: RoundConfig, seed: int = 0) -> None:
        self.config, self._seed = config, seed
        self.refusals: dict[int, int] = {}
        """By client, how many of its answers were refused."""
        self.usual: list[float] = []
        """Median norms of the accepted changes of past rounds."""
        self.silent_since: dict[int, int] = {}
        """By client the first round since which none of its replies was used; clients with none are left out.

        What a client keeps and the server has the other half of, such as SCAFFOLD's c_i, holds only as of a
        reply that was used: the server reports it to clients that kept more than that.
        """
        self.equipped: set[int] = set()
        """Clients to which the tensors that stay the same in the run were sent."""
        self.lost: list[dict[str, Any]] = []
        """Late answers that can no longer come; they go into the next record."""
        self.post: PendingMessages | None = None
        self._saved: tuple[State, Mapping[str, Any]] = ({}, {})

    def open(self, grid: Grid, client_registry: ClientRegistry) -> PendingMessages:
        """Begin to send over a grid; pending replies of a stopped server are requested again."""
        self.post = PendingMessages(grid, client_registry)
        for client, round in self.post.restore(*self._saved):
            reason = "the server was started again and the client was not there"
            self.lost.append({"client": client, "requested": round, "used": False, "reason": reason})
        return self.post

    @property
    def quarantined(self) -> frozenset[int]:
        """Clients that are not selected any more, because their replies were refused too often."""
        most = self.config.set_aside_after
        return frozenset(client for client, times in self.refusals.items() if most and times >= most)

    def begin(
        self, round: int, grid: Grid, client_registry: ClientRegistry, least: int, *, in_step: bool = False
    ) -> frozenset[int]:
        """Return who is not available, once as many others as wanted are free or the deadline is over.

        Args:
            round: Number of the round.
            grid: The carrier.
            client_registry: The members.
            least: Clients without whom it makes no sense to begin.
            in_step: Whether what a client keeps must be in step with the answers that were used: then a
                client whose late reply waits to be used is not selected before that.
        """
        assert self.post
        lasting, busy = self.post.lasting, self.post.busy()
        end = self.post.now() + (self.config.deadline or NEVER)
        while lasting and busy and self.post.now() < end:
            if len(Excluding(client_registry.present(grid), self.quarantined | busy)) >= least:
                break
            lasting.wait(end)
            busy = self.post.busy()
        given_up = round - self.config.max_staleness - 1
        rounds = f"{self.config.max_staleness} round{'s' * (self.config.max_staleness > 1)}"
        reason = f"no answer in {rounds}; it is of no use any more"
        self.lost += [
            {"client": entry.client, "requested": entry.round, "used": False, "reason": reason}
            for entry in self.post.outstanding()
            if entry.stage == "training" and entry.round == given_up and self.config.uses_late
        ]
        if in_step and self.config.uses_late:
            busy |= {entry.client for entry in self.post.outstanding() if entry.stage == "training"}
        return self.quarantined | busy

    def bound(self, state: State) -> float:
        """Return the norm above which a change of this model is refused."""
        return norm_bound(self.config.norm_limit, state, self.usual)

    def note(self, exchange: PhaseResult[Any]) -> list[dict[str, Any]]:
        """Remember a phase's norms and refusals; return who is set aside from now on, and why."""
        before = self.quarantined
        self.usual = remember(self.usual, exchange.norms.values())
        for client in exchange.unusable:
            self.refusals[client] = self.refusals.get(client, 0) + 1
        reason = f"{self.config.set_aside_after} of its answers were refused"
        return [{"client": client, "reason": reason} for client in sorted(self.quarantined - before)]

    def record_replies(self, round: int, requested: Sequence[int], used: Sequence[int]) -> None:
        """Record whose replies a round used, late ones too, and of whom it used none."""
        replied = set(used)
        for client in replied & self.silent_since.keys():
            del self.silent_since[client]
        for client in requested:
            if client not in replied:
                self.silent_since.setdefault(client, round)

    def first_deliveries(self, sizes: Mapping[int, int]) -> int:
        """Return the bytes of constants that travel in a round, as a client's machine keeps what it got.

        Args:
            sizes: Bytes of the constants in the message to each client.
        """
        first = {client: size for client, size in sizes.items() if size and client not in self.equipped}
        self.equipped |= first.keys()
        return sum(first.values())

    def limit_concurrency(self, messages: Sequence[Message], round: int) -> list[Message]:
        """Return as many of a round's messages as keep ``concurrency`` clients at work, drawn at random."""
        assert self.post
        room = len(messages)
        if self.config.concurrency:
            room = max(0, self.config.concurrency - len(self.post.busy()))
        if room >= len(messages):
            return list(messages)
        drawn = seeding.numpy_stream(self._seed, "concurrency", round).permutation(len(messages))[:room]
        return [messages[place] for place in sorted(drawn.tolist())]

    def snapshot(self, round: int) -> tuple[State, dict[str, Any]]:
        """Return what a checkpoint after a round holds: tensors and JSON."""
        tensors: State = {}
        values: dict[str, Any] = {
            "refusals": [[client, times] for client, times in sorted(self.refusals.items())],
            "usual": list(self.usual),
            "silent_since": [[client, since] for client, since in sorted(self.silent_since.items())],
        }
        if self.equipped:
            values["equipped"] = sorted(self.equipped)
        lasting = self.post.lasting if self.post else None
        if self.post and lasting and (lasting.simulated or self.config.uses_late):
            oldest = 0 if lasting.simulated else round + 1 - self.config.max_staleness
            tensors, entries = self.post.snapshot(oldest)
            values |= entries
        return tensors, values

    def restore(self, tensors: State, values: Mapping[str, Any]) -> None:
        """Take up what ``snapshot`` returned."""
        self.refusals = {int(client): int(times) for client, times in values.get("refusals", [])}
        self.usual = [float(norm) for norm in values.get("usual", [])]
        self.silent_since = {int(client): int(since) for client, since in values.get("silent_since", [])}
        self.equipped = set(map(int, values.get("equipped", ())))
        self._saved = (tensors, values)
