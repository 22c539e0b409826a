"""A run folder written by hand, as large as one likes, with the lines that a run would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedvision.config import ExperimentConfig
from fedvision.data.image_counts import ImageCounts
from fedvision.runs.events import BEGAN
from fedvision.runs.folder import RunFolder
from fedvision.runs.member_register import MemberRegister
from fedvision.tasks import metrics


class WrittenRun:
    """A run that goes on when it is told to.

    Args:
        path: Its folder.
        clients: How many take part.
        classes: How many classes their images have.
        rounds: Rounds of the experiment.
        machines: Whether clients are machines, with names; else they are simulated.
    """

    def __init__(
        self, path: Path, *, clients: int = 4, classes: int = 5, rounds: int = 10, machines: bool = False
    ) -> None:
        self.rng = np.random.default_rng(0)
        table = {"name": "night shift", "rounds": rounds, "data": {"use": "digits"}}
        self.folder = RunFolder.create(path, ExperimentConfig.from_dict(table))
        self.clients, self.classes, self.machines, self.done = clients, classes, machines, 0
        frequency = np.geomspace(200, 2, classes)
        share = self.rng.dirichlet(np.full(clients, 0.4), classes).T
        self.counts = np.floor(share * frequency * max(1, clients / 10)).astype(np.int64)
        self.names = [f"class {number}" for number in range(classes)]
        self.register: MemberRegister | None = None
        if machines:
            self.folder.note_invocation({"server": ["server", "--private", "127.0.0.1:0"]})
            self.register = self.folder.members()

    def begin(self) -> None:
        """Write what is known when the first round begins."""
        for client in range(self.clients if self.register else 0):
            assert self.register
            self.register.joined(
                client, f"site-{client:04}", f"SHA256:{client}", node=client, sharing="counts"
            )
            row = self.counts[client]
            counts = ImageCounts(images=int(row.sum()), counts=tuple(row.tolist()))
            self.register.add_counts(client, counts)
        facts = {"digest": "abc", "classes": self.names, "counts": self.counts, "left_out": 0}
        self.folder.write_split({**facts, "clients": self.clients, "totals": self.counts.sum(0)})
        self.folder.append_event(1, BEGAN)

    def _join(self) -> None:
        for client in range(self.clients if self.register else 0):
            assert self.register
            self.register.joined(
                client, f"site-{client:04}", f"SHA256:{client}", node=client, sharing="counts"
            )
            row = self.counts[client]
            counts = ImageCounts(images=int(row.sum()), counts=tuple(row.tolist()))
            self.register.add_counts(client, counts)

    def record(self, number: int, **changes: Any) -> dict[str, Any]:
        """Return a round's record."""
        rng = np.random.default_rng(number)
        right = np.clip(30 + 10 * np.log1p(number) - 20 * np.linspace(0, 1, self.classes), 5, 60).astype(int)
        confusion = rng.integers(0, 2, (self.classes, self.classes))
        np.fill_diagonal(confusion, right)
        scores = metrics.scores(confusion, self.counts.sum(0))
        chosen = sorted(rng.choice(self.clients, max(1, self.clients // 2), replace=False).tolist())
        failed = [chosen.pop()] if len(chosen) > 1 else []
        measured = {str(client): float(rng.uniform(0.3, 0.9)) for client in chosen}
        return {
            "round": number,
            "clients": chosen,
            "client_loss": {str(client): 1.5 for client in chosen},
            "examples": 10 * len(chosen),
            "busy": failed,
            "late": [],
            "lr": 0.05,
            "train_loss": 2.0 / number,
            "changed": True,
            "set_aside": [],
            "bytes": {"down": 1000 * len(chosen), "up": 900 * len(chosen)},
            "refused": [
                {"client": one, "stage": "training", "kind": "failed", "reason": "it did not answer in time"}
                for one in failed
            ],
            "server": {"loss": 2.5 / number, "confusion": confusion, "scores": scores},
            "local": {
                "loss": 2.2 / number,
                "confusion": confusion,
                "scores": scores,
                "accuracy": measured,
                "spread": {"worst": min(measured.values()), "worst_client": min(measured, key=measured.get)},
            },
            **changes,
        }  # fmt: skip

    def round(self, **changes: Any) -> None:
        """Write one more round."""
        self.done += 1
        seconds = {"train": 1.4, "server": 0.4, "local": 0.2, "total": 2.0}
        self.folder.append_round(self.record(self.done, **changes), seconds)
