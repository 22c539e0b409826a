"""Who learns of a run's rounds as they go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fedvision.flower.client_registry import ClientRegistry
from fedvision.types import State


class RoundObserver(Protocol):
    """Observers of a run: the run folder, the progress bar, a notebook."""

    def begin(self, client_registry: ClientRegistry) -> None:
        """The federation is there."""

    def client_done(self, round: int, done: int, total: int) -> None:
        """One more client of the round has answered."""

    def enough(self, record: dict[str, Any]) -> bool:
        """Return whether the run ends early with this round, and note so in its record."""

    def given_up(self, record: Mapping[str, Any]) -> None:
        """The run ends with this round, which failed like those before it and is not counted."""

    def round_done(
        self,
        record: Mapping[str, Any],
        seconds: Mapping[str, float],
        state: State,
        reliability: Mapping[str, Any] | None = None,
    ) -> None:
        """A round is over: its facts, its times and the global state after it.

        ``reliability`` is what clients tell of the last one's (``StatisticsPhase.reliability``).
        """
