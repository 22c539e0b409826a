"""Measurements in a record: counts are summed over clients, and only then divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import RecordDict

from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.masked_codec import EvaluationReply, decode_evaluation, split_readable
from fedvision.tasks.base import Task
from fedvision.tasks.stats import MetricStats
from fedvision.training.evaluate import Evaluation
from fedvision.types import MetricFn


class Scores:
    """Makes the facts of a record from what was counted.

    Args:
        task: What the counts mean.
        client_registry: The federation's members.
        extra: Further numbers by name, from the counts.
    """

    def __init__(self, task: Task, client_registry: ClientRegistry, extra: Mapping[str, MetricFn]) -> None:
        self._task, self._roster, self._extra = task, client_registry, extra

    def usable(
        self, replies: Mapping[int, RecordDict | None]
    ) -> tuple[dict[int, EvaluationReply], list[dict[str, Any]]]:
        """Return the measurements that can be used, decoded, and the refusals of the others.

        Args:
            replies: By client, as ``codec.encode_evaluation`` makes them; None where there is none.
        """
        form = self._task.stats_form(len(self._roster.counts))
        good: dict[int, EvaluationReply] = {}
        refused: list[dict[str, Any]] = []
        for client, content in replies.items():
            try:
                if content is None:
                    raise ValueError("its answer brought no measurement")
                good[client] = decode_evaluation(content, form)
            except ValueError as error:
                item = {"client": client, "stage": "evaluation", "kind": "refused", "reason": str(error)}
                refused.append(item)
        return good, refused

    def local(self, replies: Mapping[int, EvaluationReply]) -> dict[str, Any] | None:
        """Return what clients measured on images of their own; None where nothing can be read of it.

        Args:
            replies: By client; those that ``usable`` let through.
        """
        found = split_readable(dict(sorted(replies.items())), self._roster.groups)
        if not found.readable:
            return None
        plain = {client: evaluation.stats for client, evaluation in found.plain.items()}
        return {
            **self.total(found.readable),
            "measured_by": found.clients,
            **({"withheld": found.withheld} if found.withheld else {}),
            "spread": self._task.client_spread(plain),
            self._task.client_metric: {
                str(client): self._task.client_score(stats)
                for client, stats in plain.items()
                if stats.examples
            },
        }

    def total(self, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
        """Return loss, counts and scores over all images of some evaluations, at least one."""
        stats = MetricStats.total([evaluation.stats for evaluation in evaluations])
        loss = sum(evaluation.loss_sum for evaluation in evaluations)
        counts = self._roster.counts
        return {
            "loss": loss / max(1, self._task.examples(stats)),
            **self._task.to_record(stats),
            # Without counts it is unknown which classes are rare.
            "scores": self._task.scores(stats, counts if any(counts) else None, self._extra),
        }
