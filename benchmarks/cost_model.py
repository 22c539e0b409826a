"""What a round costs beyond one machine: measured parts, a model of their sum, and its test on two nodes.

    python benchmarks/cost_model.py [--again]

Five constants are measured on this machine: training seconds an image in one process, seconds of the driver a
message (clients that do nothing), seconds a call of a worker, bytes a second through the object store, and
seconds a parameter in a sum. The model (docs/scale.md explains it) adds them up for W workers on M machines.
It then estimates the time of a round on two Ray nodes of one worker each, and that round is measured.
Results go to benchmarks/results/cost_model.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import environments
import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from fedvision import ExperimentConfig
from fedvision.aggregation.summation import WeightedSum
from fedvision.algorithms.fedavg import FedAvg
from fedvision.engines.client_host import ClientHostFactory, SimulatedClientHosts
from fedvision.engines.ray.engine import RayEngine
from fedvision.engines.ray.task_queue import SHARES
from fedvision.engines.serial import SerialEngine
from fedvision.experiment import Experiment
from fedvision.flower import codec
from fedvision.flower.strategy import FlowerStrategy
from fedvision.libraries import prepare_process
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state
from fedvision.runs.environment import environment
from fedvision.server.phase_result import PhaseResult
from fedvision.server.update_validator import UpdateValidator

RESULT = Path(__file__).parent / "results" / "cost_model.json"
ROUNDS = 12
COHORT = 40


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The measured constants of a machine."""

    image: float
    """Seconds to train on an image in one process, its share of the client's fixed costs included."""
    message: float
    """Seconds of the driver for a client that does nothing."""
    batch: float
    """Seconds from one call of a worker to its answer, when there is nothing to do."""
    store: float
    """Bytes a second into the object store, and from there into a sum."""
    add: float
    """Seconds a worker takes to add one parameter of an update to its sum."""


@dataclass(frozen=True, kw_only=True)
class BatchSchedule:
    """A federation's round and the machines that work on it."""

    clients: int
    """Cohort."""
    images: float
    """Images of an average client, epochs included."""
    largest: float
    """Images of the largest client of a round."""
    parameters: int
    workers: int
    machines: int
    network: float
    """Bytes a second between two machines."""


def round_seconds(costs: Costs, plan: BatchSchedule) -> dict[str, float]:
    """Return the parts of a round's time, in seconds.

    Workers train in parallel, and the last one ends at most a share of the largest client after the mean. The
    model goes to the store once and over the driver's network link once for every other machine; a float64
    sum comes back from every worker.
    """
    model, sums = 4 * plan.parameters, 8 * plan.parameters * plan.workers
    each = plan.clients * plan.images * costs.image / plan.workers
    batches = SHARES * math.log(max(2.0, plan.clients / plan.workers))
    remote = plan.machines - 1
    parts = {
        "train": each + costs.add * plan.parameters * plan.clients / plan.workers,
        "wait for the last": plan.largest * costs.image / SHARES if plan.workers > 1 else 0.0,
        "calls": batches * costs.batch,
        "driver": costs.message * plan.clients,
        "model out": model / costs.store + remote * model / plan.network,
        "sums back": sums / costs.store + sums * remote / plan.machines / plan.network,
    }
    # The driver's work on messages goes on while workers train, unless it is the longer of the two.
    parts["driver"] = max(0.0, parts["driver"] - parts["train"]) + 0.1 * parts["driver"]
    return parts | {"round": sum(parts.values())}


def experiment() -> ExperimentConfig:
    return ExperimentConfig.from_dict(
        {
            "name": "cost-model",
            "seed": 0,
            "rounds": 1,
            "data": {"use": "fashion-mnist"},
            "partition": {"use": "dirichlet", "clients": 200, "alpha": 0.1},
            "model": {"use": "cnn"},
            "training": {"lr": 0.05, "batch_size": 32},
            "strategy": {"use": "fedavg", "fraction": 0.2},
        }
    )


def measure(host_factory: SimulatedClientHosts, idle: ClientHostFactory) -> Costs:
    """Measure the constants of this machine."""
    torch.set_num_threads(1)
    groups = ParameterGroups.of(host_factory.model, host_factory.config.model)
    state = get_state(host_factory.model, groups.shared)
    with SerialEngine().open(host_factory) as grid:
        one_process = rounds(grid, host_factory, COHORT, repeat=ROUNDS, state=state)
    images = statistics.mean(host_factory.cost(client) for client in range(host_factory.clients))
    image = one_process / (COHORT * images)
    with RayEngine(workers=1).open(idle) as grid:
        first = rounds(grid, idle, 20, repeat=4)
        many = rounds(grid, idle, idle.clients, repeat=4)
    message = (many - first) / (idle.clients - 20)
    sums = WeightedSum()
    state = {"w": torch.randn(2_000_000)}
    sums.add(state, 1.0)
    start = time.perf_counter()
    for _ in range(5):
        sums.add(state, 3.0)
    add = (time.perf_counter() - start) / 5 / 2_000_000
    return Costs(image=image, message=message, batch=max(1e-4, first / 6), store=_store(), add=add)


def _store() -> float:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    array = torch.randn(10_000_000).numpy()
    ray.get(ray.put(array))
    start = time.perf_counter()
    for _ in range(5):
        ray.get(ray.put(array)).sum()
    seconds = (time.perf_counter() - start) / 5
    ray.shutdown()
    return float(array.nbytes / seconds)


def rounds(
    grid: Grid, host_factory: ClientHostFactory, cohort: int, *, repeat: int, state: Any = None
) -> float:
    """Return the median seconds of training rounds, after one that warms up."""
    state = state or {"w": torch.zeros(10)}
    from fedvision.flower.client_registry import SimulatedClientRegistry

    client_registry = SimulatedClientRegistry(clients=host_factory.clients, counts=(1,) * 10)
    strategy = FlowerStrategy(FedAvg(fraction=cohort / host_factory.clients), seed=0)
    strategy.introduce(client_registry)
    taken = []
    for number in range(1, repeat + 2):
        start = time.perf_counter()
        arrays = codec.encode_state(state)
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        pre_aggregates = bool(getattr(grid, "pre_aggregates", False))
        exchange = PhaseResult(
            client_registry=client_registry,
            stage="training",
            decoder=UpdateValidator(state, accepts_sums=pre_aggregates),
        )
        strategy.aggregate(number, exchange.send(grid, messages))
        if exchange.refused:
            raise SystemExit(f"a client failed: {exchange.refused[0]}")
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def two_nodes(host_factory: SimulatedClientHosts) -> float:
    """Return the median seconds of a round on two Ray nodes with one worker each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    groups = ParameterGroups.of(host_factory.model, host_factory.config.model)
    state = get_state(host_factory.model, groups.shared)
    try:
        with RayEngine(workers=2, address=cluster.address).open(host_factory) as grid:
            return rounds(grid, host_factory, COHORT, repeat=ROUNDS, state=state)
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    if RESULT.exists() and not parser.parse_args().again:
        print(RESULT.read_text())
        return
    prepare_process()
    os.environ["FEDVISION_DATA"] = str(environments.images())
    config = experiment()
    federation = Experiment.build(config)
    with tempfile.TemporaryDirectory() as folder:
        host_factory = SimulatedClientHosts(
            config=config,
            dataset=federation.dataset,
            split=federation.split,
            model=federation.model,
            memory=Path(folder),
        )
        costs = measure(host_factory, Idle(clients=3000))
        sizes = sorted(host_factory.cost(client) for client in range(host_factory.clients))
        plan = BatchSchedule(
            clients=COHORT,
            images=statistics.mean(sizes),
            # Of forty clients drawn, the largest is about this quantile.
            largest=sizes[int(len(sizes) * COHORT / (COHORT + 1))],
            parameters=sum(p.numel() for p in federation.model.parameters()),
            workers=2,
            machines=2,
            network=costs.store,
        )
        predicted, measured = round_seconds(costs, plan), two_nodes(host_factory)
    found = {
        "environment": environment(),
        "costs": asdict(costs),
        "plan": asdict(plan),
        "predicted": predicted,
        "measured": measured,
        "measured / predicted": measured / predicted["round"],
        "beyond": beyond(costs),
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def beyond(costs: Costs) -> list[dict[str, Any]]:
    """Return the model's word on GPU clusters: ResNet-18, 500 images a client, 25 Gbit/s, 16 GPUs a machine.

    A GPU is taken to train this machine's step 100 times as fast; nothing of this was measured.
    """
    table = []
    for gpus in (1, 16, 128, 1000):
        plan = BatchSchedule(
            clients=20_000,
            images=500.0,
            largest=2000.0,
            parameters=11_200_000,
            workers=gpus,
            machines=max(1, gpus // 16),
            network=25e9 / 8,
        )
        # ResNet-18 on 32x32 images takes about 107 times the cnn's 10.4 MFLOP a forward and backward pass.
        there = Costs(**(asdict(costs) | {"image": costs.image * 107 / 100}))
        table.append({"gpus": gpus} | {key: round(s, 2) for key, s in round_seconds(there, plan).items()})
    return table


@dataclass(frozen=True, kw_only=True)
class Idle:
    """A recipe of clients that send back what they got."""

    clients: int
    device: str = "cpu"

    def open(self) -> Any:
        from flwr.app import Context, Message
        from flwr.clientapp import ClientApp

        from fedvision.engines.client_host import ClientHost
        from fedvision.training.loop import TrainResult

        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            state = codec.decode_state(message.content["arrays"])
            update = TrainResult(state=state, examples=1, loss=0.0, steps=0)
            return Message(codec.encode_update(update), reply_to=message)

        return ClientHost(app=app)

    def aggregator(self) -> Any:
        from fedvision.engines.partial_aggregation import PartialAggregator

        return PartialAggregator(FedAvg())

    def profile(self) -> None: ...

    def estimate_cost(self) -> Any: ...

    def cost(self, client: int) -> float:
        return 1.0


if __name__ == "__main__":
    main()
