"""What of a run across machines goes into its audit log: members, refused calls, the run itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedvision import __version__
from fedvision.deployment.server.access_log import CONNECTED, AccessReader
from fedvision.deployment.server.access_log import FILE as ACCESS
from fedvision.errors import RecordError
from fedvision.runs.audit_log import FILE, AuditLog
from fedvision.runs.member_register import OPERATOR, REPORTED, SERVER

CALLER = "caller"
"""Who made a refused call: the key that it bears proves nobody."""
_MOST = 1000
"""Refused calls that a run writes down; the SuperLink's own log has them all."""


class AuditTrail:
    """Writes a run's audit log.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._log = AuditLog(folder / FILE)
        self._accesses: AccessReader | None = None
        self._refusals = 0
        self.round = 0
        """Stands in every line that is added."""

    def watch(self, state: Path) -> None:
        """Begin to write down who reaches the port of a SuperLink.

        Args:
            state: The SuperLink's folder.
        """
        self._accesses = AccessReader(state / ACCESS)

    def run(self, what: str, *, by: str = SERVER, reason: str = "") -> None:
        """Write down what becomes of the run itself; a full disk is met, and said, by its own record."""
        with suppress(RecordError):
            self.look()
            self._log.add(what, round=self.round, by=by, reason=reason, version=__version__)

    def member(self, line: Mapping[str, Any]) -> None:
        """Write down a line of the register of members; how many images somebody has stays there."""
        self.look()
        facts = {key: line.get(key, "") for key in ("key", "reason", "stage", "sharing")}
        if line["what"] == REPORTED:
            facts = {"key": line["key"]}
        address = self._accesses.addresses.get(str(line["name"]), "") if self._accesses else ""
        self._log.add(
            line["what"], round=line["round"], by=line["by"], client=line["name"], address=address, **facts
        )

    def look(self) -> None:
        """Write down who connected or was refused since the last look."""
        for line in self._accesses.added() if self._accesses else ():
            connected = line["what"] == CONNECTED
            self._refusals += not connected
            if not connected and self._refusals > _MOST:
                if self._refusals == _MOST + 1:
                    self._log.add(
                        "further refused calls are in superlink.log alone", round=self.round, by=SERVER
                    )
                continue
            client, facts = line["client"], {key: line[key] for key in ("address", "reason", "key")}
            what = CONNECTED if connected else "call refused"
            by = client if connected else CALLER
            self._log.add(what, round=self.round, by=by, client=client or None, **facts)

    def stopped(self, error: BaseException, *, asked: bool) -> None:
        """Write down that and why the run ended early.

        Args:
            error: What ended it.
            asked: Whether an operator asked for it with ``fedvision stop``.
        """
        if isinstance(error, KeyboardInterrupt):
            self.run("run stopped", by=OPERATOR, reason="fedvision stop" if asked else "a signal or Ctrl-C")
        else:
            self.run("run failed", reason=str(error))

    def close(self) -> None:
        """Close the files."""
        if self._accesses:
            self._accesses.close()
