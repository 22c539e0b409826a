"""The best model so far by what clients measure on images of their own, and when it is enough.

Test images have no say: they would no longer tell how the model does on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedvision.config import EvaluationConfig
from fedvision.formatting import percent, plural, score_name
from fedvision.types import State


class BestModel:
    """Remembers the round whose model scored best, the first of equal ones, and how often none was better.

    Args:
        config: The experiment's ``[evaluation]``.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self._config = config
        self.round, self.score = 0, -math.inf
        self.since = 0
        """Measurements after that round's, none of them better."""
        self.state: State = {}
        """The travelling tensors of that round's model, where it is kept."""

    def measured(self, record: Mapping[str, Any]) -> bool:
        """Take note of a round's record; return whether the run's patience is over.

        A round without a measurement, or in which nobody measured anything, counts for nothing.
        """
        scores = (record.get("local") or {}).get("scores") or {}
        score = scores.get(self._config.score)
        if score is None or math.isnan(score):
            return False
        if score > self.score:
            self.round, self.score, self.since = int(record["round"]), float(score), 0
        else:
            self.since += 1
        return 0 < self._config.patience <= self.since

    def keep(self, round: int, state: State) -> None:
        """Keep a copy of a round's model, if it is the best one and the experiment asks for it."""
        if self._config.keep == "best" and round == self.round:
            self.state = {name: tensor.clone() for name, tensor in state.items()}

    def facts(self) -> dict[str, Any]:
        """Return what the summary says of it; nothing where nothing was measured or it is of no interest."""
        if not self.round or (self._config.keep == "last" and not self._config.patience):
            return {}
        return {"best": {"round": self.round, "by": self._config.score, "score": self.score}}

    def reason(self) -> str:
        """Return why a run has ended early."""
        return (
            f"stopped early: {score_name(self._config.score)} on clients' held-out images was best after "
            f"round {self.round} ({percent(self.score)}), and "
            f"{plural(self.since, 'measurement')} since {'was' if self.since == 1 else 'were'} not better"
        )

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Return what a checkpoint holds: the kept tensors and JSON."""
        score = None if self.score == -math.inf else self.score
        return self.state, {"round": self.round, "score": score, "since": self.since}

    def restore(self, tensors: State, values: Mapping[str, Any]) -> None:
        """Take up what ``snapshot`` returned."""
        self.state, self.round, self.since = dict(tensors), int(values["round"]), int(values["since"])
        self.score = -math.inf if values["score"] is None else float(values["score"])
