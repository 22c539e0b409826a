"""The clients of one worker that are trained together, and why some are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial

import torch

from fedvision import registry
from fedvision.models.state import load_state
from fedvision.training.batched import fit_many
from fedvision.training.gallery import Gallery
from fedvision.training.loop import LocalUpdate
from fedvision.training.memory import OBJECTIVE, PERSONAL
from fedvision.training.recorded import Recorded, on_cuda, recordable
from fedvision.training.reel import Recorder
from fedvision.training.stack import Stacked
from fedvision.training.stackable import scalable, stackable, stacks_objective
from fedvision.training.worker import Worker, build_loss, objective_of
from fedvision.types import Task


class Crew:
    """Trains a worker's clients several at a time; each ends as if it had been trained alone.

    Args:
        worker: Model, settings, images and memories.
        record: Records a step, to be played back; None records nothing.
    """

    def __init__(self, worker: Worker, record: Recorder | None = None) -> None:
        self._worker = worker
        self.gallery = Gallery(worker.settings.device)
        """The image sets that live on the device."""
        self.recorded: Recorded | None = None
        """What plays steps back, where that can be."""
        if record is not None and recordable(worker.settings):
            by_round = "round" in registry.parameters("loss", worker.config.loss.use)
            self.recorded = Recorded(
                worker.model, worker.settings, record, lambda round: round if by_round else None
            )

    @classmethod
    def of(cls, worker: Worker, *, record: bool = True) -> Crew:
        """Return a crew that records CUDA graphs, where the worker's device has them and it is wanted."""
        return cls(worker, on_cuda() if record and worker.settings.device.type == "cuda" else None)

    def settle(self) -> None:
        """Send the images to the device, if it has room, so that clients' own memory can be measured."""
        self.gallery.find(self._worker.shards.train(0))

    def obstacle(self, task: Task) -> str | None:
        """Return in one line why a task is not trained together with others; None where it can be."""
        if not self._obstacle and not stacks_objective(type(objective_of(task))):
            return f"the objective {task.instruction.objective!r} has no formula that serves several clients"
        if task.instruction.lr_factor != 1 and not scalable(self._worker.settings.training):
            use = self._worker.settings.training.optimizer.use
            return f"the optimiser {use!r} has no stacked form for clients with learning rates of their own"
        return self._obstacle

    @cached_property
    def _obstacle(self) -> str | None:
        worker = self._worker
        return stackable(
            worker.model,
            worker.shards.train(0).images.shape[1:],
            worker.num_classes,
            loss=partial(build_loss, worker.config),
            settings=worker.settings,
        )

    def train(
        self, tasks: Sequence[Task], chunk: int = 0
    ) -> Iterator[tuple[Sequence[int], Stacked | Sequence[LocalUpdate]]]:
        """Train clients on their tasks, as many at once as can be.

        Args:
            tasks: One for each client.
            chunk: Clients that are trained at once; 0 trains all that can be.

        Yields:
            Places in ``tasks``, and what became of these clients: a stack that is good until the next one is
            asked for, where their models are all they tell and keep; else their updates, and what they keep
            is kept. An error of one client is raised and loses its neighbours; training a client again
            starts from the same memory.
        """
        alike: dict[tuple[int, str | None], list[int]] = {}
        for place, task in enumerate(tasks):
            alike.setdefault((task.round, task.instruction.objective), []).append(place)
        for places in alike.values():
            own = [tasks[place] for place in places]
            if len(own) == 1 or self.obstacle(own[0]):
                yield places, [self._worker.train(task) for task in own]
                continue
            for some, stacked in self._train_stacks(own, chunk):
                yield [places[place] for place in some], stacked if stacked.alone else self._kept(stacked)

    def _kept(self, stacked: Stacked) -> list[LocalUpdate]:
        updates = stacked.split()
        for task, update in zip(stacked.tasks, updates, strict=True):
            self._worker.keep(task, update)
        return updates

    def _train_stacks(self, tasks: Sequence[Task], chunk: int) -> Iterator[tuple[list[int], Stacked]]:
        worker = self._worker
        load_state(worker.model, worker.counters)
        measured = [worker.measure_first(task) for task in tasks]
        shards = [worker.shards.train(task.client) for task in tasks]
        memories = [worker.memory.load(task.client, task.round, task.unheard_since) for task in tasks]
        both = zip(tasks, shards, strict=True)
        counts = torch.stack([worker.loss_counts(task, shard) for task, shard in both])
        return fit_many(
            worker.model,
            shards,
            tasks,
            loss=lambda counts: worker.make_loss(counts, tasks[0].round),
            counts=counts.to(worker.settings.device),
            objectives=[objective_of(task) for task in tasks],
            settings=worker.settings,
            memories=[memory.get(OBJECTIVE, {}) for memory in memories],
            personals=[memory.get(PERSONAL, worker.initial) for memory in memories],
            measured=measured,
            chunk=chunk,
            gallery=self.gallery,
            recorded=self.recorded,
        )
