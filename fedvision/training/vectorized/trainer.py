"""The clients of one worker that are trained together, and why some are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial

from fedvision import registry
from fedvision.models.state import load_state
from fedvision.training.client_algorithm import unstackable_reason
from fedvision.training.client_half import client_algorithm, client_half, memory_group
from fedvision.training.client_state import PERSONAL, RESIDUAL
from fedvision.training.client_trainer import ClientTrainer, build_loss
from fedvision.training.loop import TrainResult
from fedvision.training.vectorized.client_batch import ClientBatchResult, ClientJob
from fedvision.training.vectorized.cuda_graph import CudaGraphRunner, on_cuda, recordable
from fedvision.training.vectorized.device_cache import DeviceDatasetCache
from fedvision.training.vectorized.graph_buffers import GraphCapture
from fedvision.training.vectorized.local_steps import fit_many
from fedvision.training.vectorized.vmap_support import scalable, supports_vmap
from fedvision.types import TrainRequest


class VectorizedTrainer:
    """Trains a worker's clients several at a time; each ends as if it had been trained alone.

    Args:
        trainer: Model, settings, images and memories.
        record: Records a step, to be played back; None records nothing.
    """

    def __init__(self, trainer: ClientTrainer, record: GraphCapture | None = None) -> None:
        self._worker = trainer
        self.device_cache = DeviceDatasetCache(trainer.settings.device)
        """The image sets that live on the device."""
        self.recorded: CudaGraphRunner | None = None
        """What plays steps back, where that can be."""
        if record is not None and recordable(trainer.settings):
            by_round = "round" in registry.parameters("loss", trainer.config.loss.use)
            self.recorded = CudaGraphRunner(
                trainer.model, trainer.settings, record, lambda round: round if by_round else None
            )

    @classmethod
    def of(cls, trainer: ClientTrainer, *, record: bool = True) -> VectorizedTrainer:
        """Return a trainer that records CUDA graphs, where the worker's device has them and it is wanted."""
        return cls(trainer, on_cuda() if record and trainer.settings.device.type == "cuda" else None)

    def settle(self) -> None:
        """Send the images to the device, if it has room, so that clients' own memory can be measured."""
        self.device_cache.find(self._worker.shards.train(0))

    def unsupported_reason(self, request: TrainRequest) -> str | None:
        """Return in one line why a task is not trained together with others; None where it can be."""
        if not self.obstacle and (reason := unstackable_reason(client_half(request))):
            return reason
        if request.client_config.lr_factor != 1 and not scalable(self._worker.settings.training):
            use = self._worker.settings.training.optimizer.use
            return f"the optimiser {use!r} has no stacked form for clients with learning rates of their own"
        return self.obstacle

    @cached_property
    def obstacle(self) -> str | None:
        """Why clients are not trained together, whatever is asked of them; None where they can be."""
        trainer = self._worker
        if trainer.config.model.inputs:
            return "[model.inputs] have no form for several clients"
        return supports_vmap(
            trainer.model,
            trainer.shards.train(0).images.shape[1:],
            trainer.num_classes,
            loss=partial(build_loss, trainer.config),
            settings=trainer.settings,
        )

    def train(
        self, requests: Sequence[TrainRequest]
    ) -> Iterator[tuple[Sequence[int], ClientBatchResult | Sequence[TrainResult]]]:
        """Train clients on their tasks, as many at once as can be.

        Args:
            requests: One for each client.

        Yields:
            Places in ``requests``, and what became of these clients: a stack that is good until the next is
            requested, where their models, as they are, are all they send and keep; else their updates as they
            travel, and what they keep is kept. An error of one client is raised and loses its neighbours;
            training a client again starts from the same memory.
        """
        shared: dict[tuple[int, str | None], list[int]] = {}
        for place, request in enumerate(requests):
            shared.setdefault((request.round, request.algorithm), []).append(place)
        for places in shared.values():
            own = [requests[place] for place in places]
            if len(own) == 1 or any(map(self.unsupported_reason, own)):
                yield places, [self._worker.train(request) for request in own]
                continue
            some, stacked = self._train_stack(own)
            alone = stacked.alone and not self._worker.updates
            yield [places[place] for place in some], stacked if alone else self._finished(stacked)

    def _finished(self, stacked: ClientBatchResult) -> list[TrainResult]:
        both = zip(stacked.who.jobs, stacked.split(), strict=True)
        return [self._worker.finish(job.request, update, job.residual) for job, update in both]

    def _train_stack(self, requests: Sequence[TrainRequest]) -> tuple[list[int], ClientBatchResult]:
        trainer = self._worker
        load_state(trainer.model, trainer.counters)
        return fit_many(
            trainer.model,
            [self._job(request) for request in requests],
            loss=lambda counts: trainer.make_loss(counts, requests[0].round),
            settings=trainer.settings,
            device_cache=self.device_cache,
            recorded=self.recorded,
        )

    def _job(self, request: TrainRequest) -> ClientJob:
        trainer = self._worker
        shard = trainer.shards.train(request.client)
        measured = trainer.measure_first(request)
        memory = trainer.memory.load(request.client, request.round, request.silent_since)
        personal = memory.get(PERSONAL, trainer.initial)
        if client_half(request).needs_loss:
            load_state(trainer.model, personal)
        request = trainer.with_own(request, shard)
        return ClientJob(
            request=request,
            shard=shard,
            algorithm=client_algorithm(request),
            counts=trainer.loss_counts(request, shard),
            memory=memory.get(memory_group(request), {}),
            personal=personal,
            residual=memory.get(RESIDUAL, {}),
            measured=measured,
        )
