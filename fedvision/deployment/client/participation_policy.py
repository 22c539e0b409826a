"""The owner's policy: in which experiments, and when, this machine takes part.

It is checked when a task begins, so training that is under way when the hours end is finished. Who declines
says so in one sentence, in the log, in ``declined.jsonl`` of the client's state and to the server, which goes
on without this client and asks again later. What an experiment is called, and how many clients take part, is
the server's word; an experiment's digest is its text's.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedvision.deployment.client.approvals import Approvals
from fedvision.deployment.client.participation_config import DIGEST, Hours, PolicyConfig
from fedvision.deployment.declining import Declined
from fedvision.deployment.run_manifest import RunManifest, digest
from fedvision.files import append_line, json_line, read_json, replace_file
from fedvision.formatting import duration, plural

DECLINED_FILE = "declined.jsonl"
"""The client's record of what it declined: a line for each reason of a run, once a day."""
_TRAINED_FILE = "trained.json"
_TRAIN = "train"
_RUNS = 1000
"""Runs whose rounds are counted; beyond them the one that was begun first is forgotten."""


class Policy:
    """What is allowed here, and what was declined.

    Args:
        config: The owner's ``[policy]``.
        state: The client's ``state``.
        now: Returns the time, with its zone.
        ask: Asks the owner a question and returns the answer; None where there is no terminal.
    """

    def __init__(
        self,
        config: PolicyConfig,
        state: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        ask: Callable[[str], str] | None = None,
    ) -> None:
        self.config, self._state, self._now = config, state, now
        self._hours = Hours.of(config)
        self._approvals = Approvals(state, ask)
        self._recorded: set[tuple[str, str, str]] = set()

    def check(self, manifest: RunManifest, kind: str, members: int) -> None:
        """Check that a task may begin now.

        Args:
            manifest: What the server sent of the run.
            kind: The message's type.
            members: Clients that take part, as the server says.

        Raises:
            Declined: It may not.
        """
        try:
            self.check_experiment(manifest.config.name, manifest.experiment)
            if self.config.ask:
                self._check_approval(manifest)
            self._check_hours()
            if kind == _TRAIN:
                self._check_training(manifest.run, members)
        except Declined as error:
            self._record(manifest, kind, error)
            raise

    def check_experiment(self, name: str, text: str) -> None:
        """Check that the owner's list allows an experiment.

        Args:
            name: As the server calls it.
            text: Its canonical TOML.

        Raises:
            Declined: It does not.
        """
        sha = f"sha256:{digest(text)}"
        for allowed in self.config.experiments:
            if sha.startswith(allowed) if DIGEST.fullmatch(allowed) else fnmatch.fnmatchcase(name, allowed):
                return
        if self.config.experiments:
            raise Declined(
                f"its policy allows the experiments {', '.join(self.config.experiments)}, and not {name!r} "
                f"({sha[:19]})"
            )

    def trained(self, run: str) -> None:
        """Count a round of a run in which this machine has trained."""
        if self.config.max_rounds:
            counts = self._counts()
            counts[run] = counts.get(run, 0) + 1
            replace_file(self._state / _TRAINED_FILE, json.dumps(dict([*counts.items()][-_RUNS:])))

    def closed_for(self) -> float:
        """Return the seconds until the owner's hours begin, 0 within them."""
        return self._hours.opens_in(self._now()) if self._hours else 0.0

    def summary(self) -> list[str]:
        """Return what holds, as sentences for the doctor."""
        config, found = self.config, []
        if config.experiments:
            found.append(f"experiments allowed: {', '.join(config.experiments)}")
        if self._hours:
            left = self.closed_for()
            when = f"closed now, open in {duration(left)}" if left else "open now"
            found.append(f"tasks begin within {self._hours_text()}: {when}")
        if config.max_rounds:
            found.append(f"at most {plural(config.max_rounds, 'round')} of a run")
        if config.min_clients:
            found.append(f"trains where the server says that {config.min_clients} or more clients take part")
        if config.ask:
            waiting = len(self._approvals.pending())
            found.append(
                f"the owner approves each experiment; {plural(waiting, 'request')} waiting for "
                "`fedvision approve`"
            )
        return found or ["always, in every experiment: the file has no [policy]"]

    def _hours_text(self) -> str:
        return f"{self.config.hours} ({self.config.zone or 'local time'})"

    def _check_approval(self, manifest: RunManifest) -> None:
        status = self._approvals.request(manifest.config.name, manifest.experiment)
        name = f"{manifest.config.name!r} (sha256:{digest(manifest.experiment)[:12]})"
        if status == "pending":
            raise Declined(f"its owner has not approved the experiment {name} yet")
        if status == "refused":
            raise Declined(f"its owner has refused the experiment {name}", math.inf)

    def _check_hours(self) -> None:
        if left := self.closed_for():
            raise Declined(f"its hours are {self._hours_text()}", left)

    def _check_training(self, run: str, members: int) -> None:
        if members < self.config.min_clients:
            raise Declined(
                f"the server says that {plural(members, 'client')} take part, and its policy asks for "
                f"{self.config.min_clients}"
            )
        most = self.config.max_rounds
        if most and self._counts().get(run, 0) >= most:
            raise Declined(f"it has trained in {plural(most, 'round')}, all that its policy allows", math.inf)

    def _counts(self) -> dict[str, int]:
        return {run: int(count) for run, count in read_json(self._state / _TRAINED_FILE).items()}

    def _record(self, manifest: RunManifest, kind: str, error: Declined) -> None:
        """Write down what was declined; a server that asks again is written down once a day."""
        time = self._now().astimezone(UTC).isoformat(timespec="seconds")
        key = (time[:10], manifest.run, str(error))
        if key in self._recorded:
            return
        self._recorded = {one for one in self._recorded if one[0] == time[:10]} | {key}
        line: dict[str, Any] = {"time": time}
        line |= {"run": manifest.run, "experiment": manifest.config.name, "task": kind, "reason": str(error)}
        with suppress(OSError):  # of a full disk the log tells
            append_line(self._state / DECLINED_FILE, json_line(line))
