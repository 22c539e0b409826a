"""Who takes part in a run across machines: numbered by name, asked once, remembered in the run folder.

A client keeps its number for the whole run, whoever else comes and goes: its random streams hang on it. A
machine that joins later gets the next number. A server that is started again knows what its members have: it
waits for nobody who is still at work, and reckons with those that are away. Where the loss rests on the
federation's class counts, a client that masks its own is a member once they are in a sum.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.x509 import Certificate
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision.deploy.link_grid import LinkGrid
from fedvision.deploy.masked_sums import MaskedSum, MaskedSums
from fedvision.deploy.masking import FEWEST
from fedvision.errors import ConfigError
from fedvision.flower import codec
from fedvision.flower.exchange import Exchange
from fedvision.flower.roster import Unasked
from fedvision.reporting.recorder import read_json, recording, replace_file

_TELLING = ("plain", "noisy")
_LOOK_S = 0.5
_SAY_EVERY_S = 15.0
_ASK_AGAIN_S = 60.0
"""Seconds after which a machine that said no is asked again."""


class Members:
    """The members of a run.

    Args:
        file: Where numbers and names are kept.
        classes: C.
        say: Is called with what a person may want to see now.
        note: Is called with what shall also stand in the report.
        last_seen: Returns for every registered name the seconds since it was last seen, None where never.
        needed: Whether the experiment's loss rests on the federation's class counts.
        authorities: Who vouches for clients that mask their counts; none leaves that to the clients.
    """

    def __init__(
        self,
        file: Path,
        classes: int,
        say: Callable[[str], None],
        note: Callable[[str], None],
        last_seen: Callable[[], Mapping[str, float | None]],
        *,
        needed: bool = False,
        authorities: Sequence[Certificate] = (),
    ) -> None:
        self._file, self._classes, self._say, self._note = file, classes, say, note
        self._last_seen, self._needed = last_seen, needed
        kept = read_json(file)
        self._by_name: dict[str, int] = kept.get("clients", {})
        sums = [MaskedSum.from_table(table) for table in kept.get("sums", ())]
        self._masked = MaskedSums(str(kept.get("run", "")), classes, sums, authorities)
        self.numbers: dict[int, int] = {}
        """Which client each node is."""
        self._nodes: dict[int, int] = {}
        self._entries: dict[int, codec.RosterEntry] = {}
        self._refused: dict[int, float] = {}
        self._here: set[int] = set()
        self._left: set[int] = set()
        for row in kept.get("told", ()):
            self._entries[row["client"]] = codec.RosterEntry(
                client=row["client"], counts=tuple(row["counts"]), sharing=row["sharing"]
            )
            self._nodes[row["client"]] = row["node"]
            self.numbers[row["node"]] = row["client"]
        self._unheard = set(self._entries)
        """Members that an earlier server knew, and that gave no sign of life since."""
        self._began = time.monotonic()
        self.least = 1
        """Members without whom no round begins."""

    def __len__(self) -> int:
        return len(self._joined())

    def _joined(self) -> set[int]:
        """Return the members: those that told what they have, or need not."""
        return {client for client in self._entries if self._is_member(client)}

    def _is_member(self, client: int) -> bool:
        return client in self._entries and not (self._needed and client in self._masked.waiting)

    def has(self, node: int) -> bool:
        """Tell whether a node is a member: it was asked and can take part."""
        return self._is_member(self.numbers.get(node, -1))

    @property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class [C] over all members, as far as they tell."""
        return tuple((self.table().sum(0) + self._masked.total).tolist())

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Members whose counts are known as a sum alone, by their group's name."""
        return {known.group: known.clients for known in self._masked.sums}

    @property
    def told(self) -> list[int]:
        """Members that tell their own class counts, as they are or with noise, rising."""
        return sorted(client for client, entry in self._entries.items() if entry.sharing in _TELLING)

    @property
    def exact(self) -> bool:
        """Whether ``counts`` holds every image of every member."""
        return all(
            entry.sharing == "plain" or client in self._masked for client, entry in self._entries.items()
        )

    def table(self) -> NDArray[np.int64]:
        """Return the images of each class of every client in ``told`` [K, C]."""
        rows = [self._entries[client].counts for client in self.told]
        return np.array(rows, np.int64).reshape(len(rows), self._classes)

    def client(self, node: int) -> int:
        """Return the client on a node."""
        return self.numbers.get(node, node)

    def node(self, client: int) -> int:
        """Return the node that hosts a client."""
        return self._nodes[client]

    def name(self, client: int) -> str:
        """Return the name under which a client is registered."""
        return next((name for name, number in self._by_name.items() if number == client), str(client))

    def present(self, grid: Grid) -> list[int]:
        """Return the members that are online, rising; waits while there are fewer than ``least``."""
        assert isinstance(grid, LinkGrid)
        said = float("-inf")
        while True:
            online = grid.names()
            if len(online) >= self.least or len(self) >= self.least:
                self._admit(grid, online)
            members = self._joined() - self._not_heard_yet(online)
            here = sorted(self.numbers[node] for node in online if self.numbers.get(node) in members)
            self._compare(here)
            if len(here) >= self.least:
                return here
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                self._say(self._waiting(online))
            time.sleep(_LOOK_S)

    def _not_heard_yet(self, online: Mapping[int, str]) -> set[int]:
        """Return the members that have not found this server: they count as online for a while."""
        if self._unheard & {self.numbers.get(node) for node in online}:
            seen, since = self._last_seen(), time.monotonic() - self._began
            ages = {client: seen.get(self.name(client)) for client in self._unheard}
            self._unheard = {client for client, age in ages.items() if age is None or age >= since}
        return self._unheard

    def _compare(self, here: Sequence[int]) -> None:
        """Note which members left since the last look, and which came back."""
        for client in sorted(self._here - set(here)):
            self._note(f"{self.name(client)} ({client}) is not there any more")
        for client in sorted(set(here) & self._left):
            self._note(f"{self.name(client)} ({client}) is there again")
        self._left = (self._left | self._here) - set(here)
        self._here = set(here)

    def _admit(self, grid: LinkGrid, online: Mapping[int, str]) -> None:
        """Number machines that are new and ask them what they have."""
        now = time.monotonic()
        for node in self._refused.keys() - online.keys():
            del self._refused[node]  # it left; perhaps it comes back mended
        new = {
            node: name
            for node, name in online.items()
            if self.numbers.get(node) not in self._entries
            and now - self._refused.get(node, float("-inf")) > _ASK_AGAIN_S
        }
        if new:
            self._ask(grid, new, now)
        gone = [client for client, (node, _) in self._masked.waiting.items() if node not in online]
        self._forget(gone)
        if self._masked.gather(grid, self._leave_out):
            self._write()

    def _ask(self, grid: LinkGrid, new: Mapping[int, str], now: float) -> None:
        self._number(new)
        exchange = Exchange(roster=Unasked(), stage="data")
        messages = [Message(RecordDict(), node, codec.ROSTER) for node in new]
        # Who asks to join a run that is going on must not hold it up.
        patience = None if len(self) < self.least else _ASK_AGAIN_S
        for reply in exchange.send(grid, messages, timeout=patience):
            node = reply.metadata.src_node_id
            client, entry = self.numbers[node], codec.decode_roster(reply.content)
            if len(entry.counts) != self._classes:
                continue
            self._refused.pop(node, None)
            self._entries[client] = entry
            if entry.sharing == "masked":
                try:
                    self._masked.expect(client, node, entry)
                except ConfigError as error:
                    self._leave_out(client, str(error))
        for item in exchange.refused:
            self._refused[item["client"]] = now
            self._note(f"{new[item['client']]} cannot take part: {item['reason']}")
        self._write()

    def _leave_out(self, client: int, reason: str) -> None:
        """Say that a client cannot take part, and ask it again after a while."""
        self._refused[self._nodes[client]] = time.monotonic()
        self._note(f"{self.name(client)} cannot take part: {reason}")
        self._forget([client])

    def _forget(self, clients: Sequence[int]) -> None:
        """Forget clients whose counts are in no sum: they are asked anew when they are back."""
        for client in clients:
            self._entries.pop(client, None)
        self._masked.leave(clients)

    def _number(self, new: Mapping[int, str]) -> None:
        before = dict(self._by_name)
        for name in sorted(new.values()):
            self._by_name.setdefault(name, len(self._by_name))
        for node, name in new.items():
            self.numbers[node] = self._by_name[name]
            self._nodes[self._by_name[name]] = node
        if self._by_name != before:
            self._write()

    def _write(self) -> None:
        with recording("the members", self._file):
            sums = [known.to_table() for known in self._masked.sums]
            # Whoever waits for a sum is asked again: what it said holds for that sum alone.
            told = [
                {
                    "client": client,
                    "node": self._nodes[client],
                    "counts": entry.counts,
                    "sharing": entry.sharing,
                }
                for client, entry in self._entries.items()
                if client not in self._masked.waiting
            ]
            page = {**read_json(self._file), "clients": self._by_name, "told": told, "sums": sums}
            replace_file(self._file, json.dumps(page, indent=2) + "\n")

    def _waiting(self, online: Mapping[int, str]) -> str:
        masked = [self.name(client) for client in sorted(self._masked.waiting)]
        unheard = {self.name(client) for client in self._unheard}
        there = {name for node, name in online.items() if node not in self._refused} - unheard - set(masked)
        others = [
            f"{name} {_ago(seconds)}"
            for name, seconds in sorted(self._last_seen().items())
            if name not in there and name not in masked
        ]
        few = f"{' and '.join(masked)} mask{'s' * (len(masked) == 1)} class counts, and a sum that hides them"
        hidden = [f"{few} needs {FEWEST} such clients"] if masked and self._needed else []
        return "; ".join([f"waiting: {len(there)} of {self.least} clients", *hidden, *others])


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "was never here"
    return "is being asked" if seconds <= 0 else f"last seen {seconds:.0f} s ago"
