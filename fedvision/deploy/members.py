"""Who takes part in a run across machines: numbered by name, remembered in the run folder, asked once.

A client keeps its number for the whole run, whoever else comes and goes: its random streams hang on it. A
machine that joins later gets the next number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision.deploy.link_grid import LinkGrid
from fedvision.flower import codec
from fedvision.flower.exchange import Exchange
from fedvision.flower.roster import Unasked
from fedvision.reporting.recorder import read_json, recording, replace_file

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
    """

    def __init__(
        self,
        file: Path,
        classes: int,
        say: Callable[[str], None],
        note: Callable[[str], None],
        last_seen: Callable[[], Mapping[str, float | None]],
    ) -> None:
        self._file, self._classes, self._say, self._note, self._last_seen = (
            file,
            classes,
            say,
            note,
            last_seen,
        )
        self._by_name: dict[str, int] = read_json(file).get("clients", {})
        self.numbers: dict[int, int] = {}
        """Which client each node is."""
        self._nodes: dict[int, int] = {}
        self._counts: dict[int, tuple[int, ...]] = {}
        self._refused: dict[int, float] = {}
        self.least = 1
        """Members without whom no round begins."""

    def __len__(self) -> int:
        return len(self._counts)

    def has(self, node: int) -> bool:
        """Tell whether a node is a member: it was asked and can take part."""
        return self.numbers.get(node) in self._counts

    @property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class [C] over all members, as far as they tell."""
        return tuple(self.table().sum(0).tolist())

    def table(self) -> NDArray[np.int64]:
        """Return the images of each class of every member [K, C], rising by number."""
        rows = [self._counts[client] for client in sorted(self._counts)]
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
            if len(online) >= self.least or len(self._counts) >= self.least:
                self._admit(grid, online)
            here = sorted(self.numbers[node] for node in online if self.numbers.get(node) in self._counts)
            if len(here) >= self.least:
                return here
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                self._say(self._waiting(here))
            time.sleep(_LOOK_S)

    def _admit(self, grid: LinkGrid, online: Mapping[int, str]) -> None:
        """Number machines that are new and ask them what they have."""
        now = time.monotonic()
        for node in self._refused.keys() - online.keys():
            del self._refused[node]  # it left; perhaps it comes back mended
        new = {
            node: name
            for node, name in online.items()
            if self.numbers.get(node) not in self._counts
            and now - self._refused.get(node, float("-inf")) > _ASK_AGAIN_S
        }
        if not new:
            return
        self._number(new)
        exchange = Exchange(roster=Unasked(), stage="data")
        messages = [Message(RecordDict(), node, codec.ROSTER) for node in new]
        for reply in exchange.send(grid, messages):
            node = reply.metadata.src_node_id
            entry = codec.decode_roster(reply.content)
            if len(entry.counts) == self._classes:
                self._counts[self.numbers[node]] = entry.counts
                self._refused.pop(node, None)
        for item in exchange.refused:
            self._refused[item["client"]] = now
            self._note(f"{new[item['client']]} cannot take part: {item['reason']}")

    def _number(self, new: Mapping[int, str]) -> None:
        before = dict(self._by_name)
        for name in sorted(new.values()):
            self._by_name.setdefault(name, len(self._by_name))
        for node, name in new.items():
            self.numbers[node] = self._by_name[name]
            self._nodes[self._by_name[name]] = node
        if self._by_name != before:
            with recording("the members", self._file):
                page = {**read_json(self._file), "clients": self._by_name}
                replace_file(self._file, json.dumps(page, indent=2) + "\n")

    def _waiting(self, here: list[int]) -> str:
        there = {self.name(client) for client in here}
        others = [
            f"{name} {_ago(seconds)}"
            for name, seconds in sorted(self._last_seen().items())
            if name not in there
        ]
        return "; ".join([f"waiting: {len(here)} of {self.least} clients", *others])


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "was never here"
    return "is being asked" if seconds <= 0 else f"last seen {seconds:.0f} s ago"
