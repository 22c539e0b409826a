"""The Ray engine: worker processes on this machine's cores and GPUs, or on those of a cluster.

Every worker hosts an inner engine over the same recipe, which lies once a machine in Ray's object store,
images included. The global model goes there once a round; what comes back is one partial sum a worker where
the strategy needs no more (``engines.partial_aggregation``), else every update.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from flwr.app import Message
from flwr.serverapp import Grid

from fedvision import cores, registry
from fedvision.engines.base import OnNotice
from fedvision.engines.client_host import ClientHostFactory
from fedvision.engines.local_grid import LocalGrid
from fedvision.engines.ray.exchange import RayExchange
from fedvision.engines.ray.internals import own_signals, without_daemons
from fedvision.engines.ray.placement import WorkerPlacement, plan
from fedvision.engines.ray.worker import TRAIN, RayWorker, Setup
from fedvision.engines.ray.worker_pool import Pool
from fedvision.errors import RunError
from fedvision.flower import codec, internals
from fedvision.flower.client_registry import FIRST_NODE
from fedvision.ranges import check_range
from fedvision.stages import stage
from fedvision.types import PluginSpec

BATCH_BYTES = 64 * 2**20
"""Tensors that one answer may carry: more updates than that come in several answers."""
_OWN_CLUSTER = {
    "RAY_num_workers_soft_limit": "1",  # or spare processes are kept beside the workers, 75 MB each
    "RAY_task_events_report_interval_ms": "0",  # or every call is reported to a dashboard that is not there
}
"""Settings of a Ray that is started for one run, unless the user has set them."""


class RayEngine:
    """Carries messages to clients in Ray workers.

    Args:
        workers: Number of worker processes; 0 takes one for each processor, or as many for each GPU as a
            measured client's memory allows.
        address: Of a running cluster (``"auto"``, ``"HOST:PORT"``, ``"ray://HOST:PORT"``); None starts Ray on
            this machine for the time of the run.
        gpus_per_worker: Share of a GPU for each worker; 0 leaves it to the measurement.
        inner: The engine inside each worker; ``"vectorized"`` has a GPU to itself unless set otherwise.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        workers: int = 0,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        inner: str = "serial",
    ) -> None:
        check_range(at_least=0, workers=workers, gpus_per_worker=gpus_per_worker)
        self._workers, self._address, self._inner = workers, address, inner
        # It fills a GPU's memory with clients by itself.
        self._gpus = gpus_per_worker or float(inner == "vectorized" and not workers)

    @contextmanager
    def open(
        self, host_factory: ClientHostFactory, *, run_id: int = 1, on_notice: OnNotice = print
    ) -> Iterator[Grid]:
        """Open a Grid over the recipe's clients.

        Raises:
            RunError: Ray or its workers cannot be started.
        """
        internals.identify(run_id)
        stage("starting Ray and its workers")
        with _connected(self._address, self._workers):
            setup = Setup(
                path=tuple(sys.path),
                plugins=registry.allowed_folder(),
                inner=PluginSpec(use=self._inner),
                run_id=run_id,
            )
            reference = ray.put(host_factory)
            seats = plan(
                host_factory, self._workers, self._gpus, lambda: _rehearse(setup, reference), on_notice
            )
            pool = Pool(
                lambda: _worker(setup, reference, seats), min(seats.workers, host_factory.clients), on_notice
            )
            try:
                pool.wait()
                yield RayGrid(host_factory, pool, run_id)
            finally:
                pool.close()


class RayGrid(LocalGrid):
    """A Grid over a pool of workers.

    Args:
        host_factory: What the workers have opened.
        pool: The workers.
        run_id: Flower's number of the run.
    """

    def __init__(self, host_factory: ClientHostFactory, pool: Pool, run_id: int) -> None:
        super().__init__(host_factory.clients, run_id)
        self._recipe, self._pool = host_factory, pool
        self._exchanges = 0
        self.pre_aggregates = host_factory.aggregator() is not None
        """Whether training messages are answered with sums."""

    def carry(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies as they come."""
        self._exchanges += 1
        trains = all(message.metadata.message_type == TRAIN for message in messages)
        pre_aggregates = self.pre_aggregates and trains
        exchange = RayExchange(
            self._pool,
            self._exchanges,
            messages,
            [self._cost(message) if trains else 1.0 for message in messages],
            most=len(messages) if pre_aggregates or not trains else _batch(messages),
            pre_aggregates=pre_aggregates,
        )
        return exchange.run()

    def peak_memory(self) -> list[dict[str, int]]:
        """Return what each worker that lives has held of memory at most."""
        return self._pool.peak_memory()

    def _cost(self, message: Message) -> float:
        return self._recipe.cost(message.metadata.dst_node_id - FIRST_NODE)


def _batch(messages: Sequence[Message]) -> int:
    """Return how many updates may come in one answer."""
    update = codec.size(messages[0].content) if messages else 0
    return max(1, BATCH_BYTES // max(1, update))


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[None]:
    """Join a cluster, or start Ray here and stop it at the end; a program's own connection is left alone."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # Without "local" Ray would join whatever cluster was started on this machine.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_cpus": workers or cores.available()}
    else:
        options["address"] = address
    if address is None:
        for name, value in _OWN_CLUSTER.items():
            os.environ.setdefault(name, value)
    try:
        with own_signals(), without_daemons() if address is None else nullcontext():
            ray.init(**options)
    except Exception as error:  # where a process of its own cannot start, Ray raises just that
        ray.shutdown()
        raise RunError(_no_start(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _no_start(address: str | None, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if address:
        return f"could not join the Ray cluster at {address!r}: {lines[0]}"
    places = [place for place in (tempfile.gettempdir(), "/dev/shm") if os.path.isdir(place)]
    free = ", ".join(f"{shutil.disk_usage(place).free / 1e9:.1f} GB in {place}" for place in places)
    return (
        f"could not start Ray on this machine: {lines[0].rstrip('.')}; it needs room for files and "
        f"shared memory (free: {free}); --engine serial does without"
    )


def _worker(setup: Setup, host_factory: Any, seats: WorkerPlacement) -> Any:
    actor = ray.remote(RayWorker).options(
        num_cpus=seats.cpus, num_gpus=seats.gpus, scheduling_strategy="SPREAD", max_restarts=0
    )
    return actor.remote(setup, [host_factory])


def _rehearse(setup: Setup, host_factory: Any) -> Any:
    """Train the costliest client once on a GPU of its own and return what it took."""
    actor: Any = ray.remote(RayWorker).options(num_cpus=1, num_gpus=1).remote(setup, [host_factory])
    try:
        return ray.get(actor.profile.remote([host_factory]))
    finally:
        ray.kill(actor)
