"""What clients report beside their models in one training phase."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.app import RecordDict

from fedvision.flower.train_reply import TrainReply


@dataclass(frozen=True, kw_only=True)
class TrainingReports:
    """Losses, images and measurements by client."""

    facts: dict[int, tuple[float, int]] = field(default_factory=dict)
    """By client: training loss and images of its reply to this round; those of late ones are in ``late``."""
    measured: dict[int, RecordDict] = field(default_factory=dict)
    """By client: its measurement of the model that it was sent."""

    def note(self, reply: TrainReply) -> None:
        """Note a reply; its measurement is kept here alone."""
        if not reply.late:
            self.facts[reply.client] = reply.loss, reply.examples
        if reply.measured is not None:
            self.measured[reply.client] = reply.measured
            reply.measured = None
