"""What a client stores of its runs, and for how long: ``STATE/runs/RUN/``, one directory a run.

A run can be resumed long after it was stopped, or with more rounds after it was finished. The client then
needs what it stored: without its control variates, its personal tensors or the residual of its last update
the model would differ, and without its masks or its noise it would reveal the same counts a second time. So
nothing is removed when a run ends, but only when the run was not used for ``retention_days``. A marker stays:
a run that is resumed later is refused instead of trained from nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from fedvision.errors import ConfigError

log = logging.getLogger("fedvision.deployment")
_REQUIRED = ("clients", "masks.json", "counts.json")
"""Entries without which a run cannot go on: state of the rounds, masks, noise."""
_DAY_S = 86_400.0


class RunDirectories:
    """The directories of a client's runs.

    Args:
        folder: ``STATE/runs``; it may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, run: str) -> Path:
        """Return a run's directory; it may be missing."""
        return self._folder / run

    def mark_used(self, run: str) -> None:
        """Record that a run is in use now.

        Raises:
            ConfigError: Its directory was removed.
        """
        if self._marker(run).exists():
            raise ConfigError(
                "this client's state of the run was removed after retention_days without use, and the run "
                "cannot go on without it; begin a new run"
            )
        with suppress(OSError):  # nothing is stored yet; or another user owns the directory
            os.utime(self.path(run))

    def remove_unused(self, days: float, *, keep: str) -> None:
        """Remove the directories of runs that were not used for some days.

        Args:
            days: 0 removes none.
            keep: A run that stays.
        """
        if not days or not self._folder.is_dir():
            return
        limit = time.time() - days * _DAY_S
        for path in self._folder.iterdir():
            if path.name == keep or not path.is_dir() or path.stat().st_mtime >= limit:
                continue
            try:
                if any((path / name).exists() for name in _REQUIRED):
                    self._marker(path.name).touch()  # first: nobody may train from half of a directory
                shutil.rmtree(path)
            except OSError as error:
                log.warning("%s could not be removed: %s", path, error.strerror)
            else:
                log.info("the state of run %s is removed: not used for %g days", path.name, days)

    def _marker(self, run: str) -> Path:
        return self._folder / f"{run}.removed"
