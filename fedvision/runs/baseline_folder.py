"""What a baseline leaves in its folder inside a run folder, ``baselines/<name>``.

::

    baseline.json       what it is of (experiment, split, rounds in which it trains), "status", and once it is
                        there what was measured of a model for all clients ("server")
    clients.jsonl       one line a client: {"client", "images", "loss", "server", "local"} or
                        {"client", "failed"}; see ``baselines.views``
    checkpoint/         where a stopped or killed baseline goes on
    model.safetensors   of ``central`` the model, and model.json beside it

A baseline of something else, such as of the same run before it got more rounds, is made anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedvision.files import append_line, json_line, json_page, read_json, read_lines, recording, replace_file
from fedvision.runs.checkpoint import Checkpoints

FOLDER = "baselines"
"""Name of the folder in a run folder that holds all of them."""
_FACTS, _CLIENTS = "baseline.json", "clients.jsonl"


class BaselineFolder:
    """One baseline's folder.

    Args:
        run: The run folder.
        name: The baseline's name.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / FOLDER / name
        self.checkpoints = Checkpoints(self.path / "checkpoint", [self.path / _CLIENTS])

    def begin(self, facts: Mapping[str, Any]) -> bool:
        """Go on with what is there, or begin.

        Args:
            facts: What the baseline is of, as JSON holds it.

        Returns:
            Whether something was there of another experiment, which is gone now.

        Raises:
            RecordError: The folder cannot be written.
        """
        known = self.facts()
        if known.get("of") == facts:
            return False
        with recording("a baseline", self.path):
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            replace_file(self.path / _FACTS, json_page({"status": "begun", "of": facts}))
        return bool(known)

    def facts(self) -> dict[str, Any]:
        """Return what ``baseline.json`` holds; empty where nothing was begun.

        Raises:
            RunFolderError: The file is damaged.
        """
        return read_json(self.path / _FACTS)

    @property
    def finished(self) -> bool:
        """Whether all of it is there."""
        return self.facts().get("status") == "finished"

    def finish(self, **further: Any) -> None:
        """Note that all of it is there, and what was found beside the clients' lines."""
        self.note("finished", **further)

    def note(self, status: str, **further: Any) -> None:
        """Note how far it is, and facts beside what is known.

        Raises:
            RecordError: The file cannot be written.
        """
        with recording("a baseline", self.path):
            replace_file(self.path / _FACTS, json_page({**self.facts(), **further, "status": status}))

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a client's line.

        Raises:
            RecordError: The file cannot be written.
        """
        with recording("a client's baseline", self.path):
            append_line(self.path / _CLIENTS, json_line(line))

    def write_clients(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the lines of all clients at one instant.

        Raises:
            RecordError: The file cannot be written.
        """
        with recording("the clients' measurements", self.path):
            replace_file(self.path / _CLIENTS, "".join(map(json_line, lines)))

    def clients(self) -> dict[int, dict[str, Any]]:
        """Return the clients' lines by client.

        Raises:
            RunFolderError: A line is damaged.
        """
        return {int(line["client"]): line for line in read_lines(self.path / _CLIENTS)}
