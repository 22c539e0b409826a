"""What runs in one Ray worker process: an inner engine over all clients, and the sums of their updates."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from flwr.app import Message

from fedvision import memory, registry
from fedvision.engines.base import Engine
from fedvision.engines.partial_aggregation import PartialAggregator
from fedvision.engines.ray.placement import MemoryProfile
from fedvision.engines.ray.remote_array import cut
from fedvision.engines.ray.serialization import (
    Content,
    Failure,
    Request,
    RequestDecoder,
    Response,
    keep_remote,
    pack,
    size,
)
from fedvision.types import PluginSpec

TRAIN = "train"
INLINE = 32 * 2**20
"""Bytes of sums up to which they are handed over in one piece."""
_OUT_OF_MEMORY = "MemoryError"
"""In the reason of a failure: Python's error, and the end of torch's ``OutOfMemoryError``."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker must know before it can read its recipe."""

    path: tuple[str, ...]
    """``sys.path`` of the driver."""
    plugins: Path | None
    """The experiment's folder, whose modules come before all others."""
    inner: PluginSpec
    """The engine inside the worker."""
    run_id: int
    """Flower's number of the run."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a worker reports when it is ready."""

    pid: int
    node: str
    notices: tuple[str, ...]


class RayWorker:
    """An actor: made once a process, it stays warm until the engine closes.

    Args:
        setup: What must be known first.
        host_factory: A reference to it in the object store, in a list so that Ray does not read it before
            ``setup`` has taken effect.
    """

    def __init__(self, setup: Setup, host_factory: Sequence[ray.ObjectRef]) -> None:  # type: ignore[type-arg]
        sys.path.extend(entry for entry in setup.path if entry not in sys.path)
        registry.allow_folder(setup.plugins)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._notices: list[str] = []
        opened = ray.get(host_factory[0])
        engine: Engine = registry.build("engine", setup.inner)
        self._open = contextlib.ExitStack()
        grid = engine.open(opened, run_id=setup.run_id, on_notice=self._notices.append)
        self._grid = self._open.enter_context(grid)
        self._folding = self._sums_of_grid() or opened.aggregator()
        self._inbox = RequestDecoder()
        self._phase = -1
        self._staying: list[Content] = []
        # What was imported and opened stays until the process ends: no collection need look at it again.
        gc.collect()
        gc.freeze()

    def _sums_of_grid(self) -> PartialAggregator | None:
        """Return what the inner engine sums with, where it does so itself; it then keeps the sums there."""
        grid: Any = self._grid
        aggregator: PartialAggregator | None = getattr(grid, "aggregator", None)
        if aggregator is not None:
            grid.keeps_sums = True
        return aggregator

    def ready(self) -> Facts:
        """Return who this is, once it can work."""
        node = ray.get_runtime_context().get_node_id()
        notices, self._notices[:] = tuple(self._notices), []
        return Facts(pid=os.getpid(), node=node, notices=notices)

    def peak_memory(self) -> dict[str, int]:
        """Return what this process has held of memory at most."""
        return memory.peak()

    def profile(self, host_factory: Sequence[ray.ObjectRef]) -> MemoryProfile:  # type: ignore[type-arg]
        """Train the costliest client once on this worker's GPU and return what it took."""
        import torch

        start = time.perf_counter()
        ray.get(host_factory[0]).profile()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        # What the allocator holds on to is the peak; the context is in it too.
        free, total = torch.cuda.mem_get_info()
        return MemoryProfile(peak=total - free, total=total, seconds=seconds)

    def work(
        self, phase: int, orders: list[Request], closes: bool = False
    ) -> tuple[list[Response], Content | None, list[str]]:
        """Answer orders, in their order, hand over sums where they are requested, and return new notices.

        Args:
            phase: Number of the exchange; sums of an earlier one that were not requested are dropped.
            orders: To clients of this worker.
            closes: Whether the sums of its updates since they were last handed over are to come with the
                answers; None comes where there are none.
        """
        if phase != self._phase and self._folding:
            self._folding.close()
            self._staying = []
        self._phase = phase
        messages = {message.metadata.dst_node_id: message for message in self._inbox.messages(orders)}
        answers: dict[int, Response] = {}
        for reply in self._grid.send_and_receive(messages.values()):
            node = reply.metadata.src_node_id
            answers[node] = self._answer(messages[node], reply)
            # Let go before the next one is made, or two models are in memory.
            del reply
        notices, self._notices[:] = list(self._notices), []
        return [answers[node] for node, _, _ in orders], self._close() if closes else None, notices

    def part(self, place: int, key: str, name: str, start: int, stop: int, piece: int) -> Any:
        """Return elements start to stop of an array of sums that stayed here, as ``cut`` has them."""
        pieces = cut(self._staying[place][1][key][name], start, stop, piece)
        return pieces if len(pieces) > 1 else pieces[0]

    def _close(self) -> Content | None:
        """Return the sums of this worker's updates since the last call; None where there are none.

        Large ones stay here until the next exchange, to be had in slices: nobody needs them whole.
        """
        content = self._folding.close() if self._folding else None
        if content is None:
            return None
        packed = pack(content)
        if size(packed) <= INLINE:
            return packed
        # Sums are requested again where another worker died after this one's sums were fetched.
        self._staying.append(packed)
        return keep_remote(packed, len(self._staying) - 1)

    def _answer(self, message: Message, reply: Message) -> Response:
        if self._folding and message.metadata.message_type == TRAIN:
            reply = self._folding.add_update(message, reply)
        if reply.has_error():
            reason = reply.error.reason or ""
            return Failure(reply.error.code, reason, out_of_memory=_OUT_OF_MEMORY in reason)
        return pack(reply.content)
