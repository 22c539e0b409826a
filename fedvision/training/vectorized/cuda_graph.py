"""The step of a stack recorded once and played back: what a GPU does without waiting for the host.

A step over K small clients is a hundred kernels of some microseconds, and the host needs longer to launch
them than the GPU to run them. A CUDA graph holds them all and is launched in one call. It repeats the same
operations at the same addresses, so all that a step touches stays where it is from round to round (see
``graph_buffers``). Each recording is compared with the step that it recorded before it is believed; where
recording fails, or gives something else, operations are launched one by one as ever, and ``failure_reason``
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

from fedvision import registry
from fedvision.errors import first_line
from fedvision.training.loop import LoopSettings, rate
from fedvision.training.sgd import SGD
from fedvision.training.vectorized.batch_schedule import BatchSchedule
from fedvision.training.vectorized.client_batch import ClientBatch, ClientBatchResult
from fedvision.training.vectorized.graph_buffers import GraphBuffers, GraphCapture, Replay
from fedvision.types import LossFn


def on_cuda() -> GraphCapture:
    """Return what records CUDA graphs; they share the memory of what lives only within a step."""
    pool = torch.cuda.graph_pool_handle()

    def record(step: Replay) -> Replay:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool):
                step()
        finally:
            torch.cuda.set_stream(here)  # a recording that fails leaves its own behind
        play: Replay = graph.replay
        return play

    return record


def recordable(settings: LoopSettings) -> bool:
    """Return whether an experiment's optimiser keeps all its state in tensors that stay where they are."""
    use, args = settings.training.optimizer.use, settings.training.optimizer.args
    return registry.resolve("optimizer", use).call is SGD and not args.get("dampening")


class CudaGraphRunner:
    """The stacks of one model, in tensors that stay where they are.

    Args:
        model: The network, on ``settings.device``, one that ``supports_vmap`` passes.
        settings: Those of a run for which ``recordable`` is true.
        record: Records a step.
        key: Round -> what the loss depends on beside the class counts.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: LoopSettings,
        record: GraphCapture,
        key: Callable[[int], Hashable] = lambda round: None,
    ) -> None:
        self.model, self.settings = model, settings
        self.failure_reason: str | None = None
        """Why nothing is recorded any more."""
        self._record, self._key = record, key
        self._reel: GraphBuffers | None = None

    def train(
        self, plan: BatchSchedule, who: ClientBatch, loss: Callable[[torch.Tensor], LossFn]
    ) -> ClientBatchResult | None:
        """Train a stack of clients; None where that must be done otherwise.

        Args:
            plan: What the clients do.
            who: The clients.
            loss: Class counts [K, C] -> per-example loss, as ``fit_many`` has it.
        """
        if self.failure_reason or who.per_client:
            return None
        lr = self.settings.lr(who.jobs[0].request.round)
        lrs = [lr * rate(job.request) for job in who.jobs]
        try:
            reel = self._loaded(plan, who, lrs)
            for active in plan.active:
                reel.advance(active, loss, self._record)
        except torch.OutOfMemoryError:
            self._reel = None
            raise
        except RuntimeError as error:
            self.failure_reason, self._reel = first_line(error), None
            return None
        return reel.ended(plan, who, lrs)

    def _loaded(self, plan: BatchSchedule, who: ClientBatch, lrs: Sequence[float]) -> GraphBuffers:
        """Return the tensors and recordings that serve these clients, holding what they begin with."""
        first = who.jobs[0]
        key = (self._key(first.request.round), type(first.algorithm), *first.request.state)
        if self._reel is None or not self._reel.holds(plan, key):
            self._reel = None  # or two are in memory
            self._reel = GraphBuffers(self.model, self.settings, plan, who, key)
        self._reel.load(plan, who, lrs)
        return self._reel
