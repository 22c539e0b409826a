"""The register of a run across machines: who takes part, under which name and key, since when, with what.

One append-only file, ``members.jsonl``, is the only place that knows it; the server writes it, and the
record, the report and the terminal read it. A line is

::

    {"time": UTC, "round": r, "client": number, "name": "north", "key": "SHA256:...", "what": ..., "by": ...}

``what`` is one of the constants below. ``by`` is who caused it: the client's name, ``"server"``, or
``"operator"`` where somebody changed the folder of keys. Further keys of a line:

* ``joined``: ``node``, ``sharing`` (how the client reports its class counts);
* ``reported images``: ``counts`` [C] and ``images``; of a sum over masked clients also ``group`` and
  ``clients``, and no client of its own;
* ``refused``, ``failed``, ``declined``, ``left``: ``reason``; ``failed`` also ``stage``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedvision.data.image_counts import ImageCounts
from fedvision.files import append_line, json_line, read_lines, recording

JOINED, LEFT, REPORTED = "joined", "left", "reported images"
REFUSED, REVOKED, FAILED, DECLINED = "refused", "revoked", "failed", "declined"
SERVER, OPERATOR = "server", "operator"
FILE = "members.jsonl"
"""The register's name in a run folder."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One client, as the register knows it last."""

    client: int
    """Its number in this run."""
    name: str
    """The name under which its key is registered."""
    key: str = ""
    """Fingerprint of its public key, as ``ssh-keygen -lf`` prints it."""
    status: str = REFUSED
    """``joined``, ``left``, ``declined``, ``refused`` or ``revoked``."""
    reason: str = ""
    """Why it is not ``joined``."""
    node: int = 0
    """Flower's number of the machine that joined last."""
    sharing: str = ""
    """How it reports its class counts; empty before it joined."""
    image_counts: ImageCounts | None = None
    """Its training images; None where they are not reported, or in a sum alone."""

    @property
    def counts(self) -> tuple[int, ...] | None:
        """Training images of each class [C]; None where they are not reported."""
        return self.image_counts.counts if self.image_counts else None

    @property
    def images(self) -> int | None:
        """Training images in all; None where they are not reported."""
        return self.image_counts.images if self.image_counts else None


class MemberRegister:
    """The lines of ``members.jsonl``, and what follows from them.

    Args:
        file: The register; it need not be there yet.

    Raises:
        RunFolderError: A line is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.lines: list[dict[str, Any]] = []
        self.members: dict[int, Member] = {}
        """By number, in the order in which they were numbered."""
        self.sums: list[dict[str, Any]] = []
        """The lines with sums over masked clients."""
        self.round = 0
        """Stands in every line that is added."""
        self.on_added: Callable[[Mapping[str, Any]], None] = lambda line: None
        """Is called with every line that is added, for the audit log."""
        self._failures: set[tuple[int, int, str, str]] = set()
        for line in read_lines(file):
            self._take(line)

    @property
    def names(self) -> dict[int, str]:
        """Return the clients' names by number."""
        return {client: member.name for client, member in self.members.items()}

    def joined(self, client: int, name: str, key: str, *, node: int, sharing: str) -> None:
        """Note that a client takes part from now on, or again."""
        self._add(JOINED, name, client, name, key, node=node, sharing=sharing)

    def add_counts(self, client: int, image_counts: ImageCounts) -> None:
        """Note what a client reports of its images."""
        member = self.members[client]
        self._add(REPORTED, member.name, client, member.name, member.key, **image_counts.to_table())

    def add_sum(self, table: Mapping[str, Any]) -> None:
        """Note a sum over masked clients: ``group``, ``clients``, ``counts`` [C] and ``images``."""
        names = [self.members[client].name for client in table["clients"]]
        self._add(REPORTED, " + ".join(names), None, None, "", **table)

    def left(self, client: int, reason: str = "") -> None:
        """Note that a client is not there any more."""
        self._change(LEFT, SERVER, client, reason)

    def revoked(self, client: int) -> None:
        """Note that a client's key was removed from the folder of keys."""
        self._change(REVOKED, OPERATOR, client, "its key was removed from the folder of client keys")

    def refused(self, client: int, name: str, key: str, reason: str, *, by: str) -> None:
        """Note that a client cannot take part, and whose word that is."""
        known = self.members.get(client)
        if known is None or (known.status, known.reason, known.key) != (REFUSED, reason, key):
            self._add(REFUSED, by, client, name, key, reason=reason)

    def declined(self, client: int, name: str, key: str, reason: str) -> None:
        """Note that the policy of a client's owner does not allow a task; said again, it adds nothing."""
        known = self.members.get(client)
        if known is None or (known.status, known.reason) != (DECLINED, reason):
            self._add(DECLINED, name, client, name, key, reason=reason)

    def failed(self, client: int, stage: str, reason: str) -> None:
        """Note that a client gave no usable answer in this round; a round played again adds nothing."""
        if (member := self.members.get(client)) and (
            (self.round, client, stage, reason) not in self._failures
        ):
            self._add(FAILED, member.name, client, member.name, member.key, stage=stage, reason=reason)

    def _change(self, what: str, by: str, client: int, reason: str) -> None:
        member = self.members[client]
        self._add(what, by, client, member.name, member.key, reason=reason)

    def _add(self, what: str, by: str, client: int | None, name: str | None, key: str, **facts: Any) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "round": self.round,
            "client": client,
            "name": name,
            "key": key,
            "what": what,
            "by": by,
            **facts,
        }
        with recording("the register of members", self._file):
            append_line(self._file, json_line(line))
        self._take(line)
        self.on_added(line)

    def _take(self, line: dict[str, Any]) -> None:
        """Bring what follows from the lines up to one line more."""
        self.lines.append(line)
        client, what = line["client"], line["what"]
        if client is None:
            self.sums.append(line)
            return
        member = self.members.get(client) or Member(client=client, name=line["name"])
        member = replace(member, name=line["name"], key=line["key"] or member.key)
        if what == FAILED:
            self._failures.add((line["round"], client, line["stage"], line["reason"]))
        elif what == REPORTED:
            member = replace(member, image_counts=ImageCounts.from_table(line))
        elif what == JOINED:
            same = member.node == line["node"] and member.status != REFUSED
            facts = {"node": line["node"], "sharing": line["sharing"], "reason": ""}
            if not same:
                facts["image_counts"] = None
            member = replace(member, status=JOINED, **facts)
        else:
            # Who was refused and now declines must report its images anew when it joins.
            again = what == DECLINED and member.status == REFUSED
            sharing = "" if again else member.sharing
            member = replace(member, status=what, reason=line["reason"], sharing=sharing)
        self.members[client] = member
