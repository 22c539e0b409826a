"""Flower on Ray: ServerApp, ClientApp and its FedAvg with ``run_simulation``, one core a client.

The client is tuned as a careful user would: tensors, network and optimiser are made once an actor, batches
are cut by hand. With ``--idle`` clients send back the model they got and the network is one linear layer.
"""

from __future__ import annotations

import os
import random
import time

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
BEGUN = time.perf_counter()

from collections.abc import Iterable  # noqa: E402
from typing import Any  # noqa: E402

from common import EVALUATION_BATCH, Clock, Workload, arguments, one_layer, workload  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402


def client_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        import actor

        config = message.content["config"]
        if config["idle"]:
            arrays, examples, steps = message.content["arrays"], 1, 0
        else:
            arrays, examples, steps = actor.train(message.content["arrays"], dict(config))
        metrics = MetricRecord({"num-examples": examples, "steps": steps})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


class Scheduled(FedAvg):
    """FedAvg that selects the workload's cohorts: any free node trains the client in its message."""

    cohorts: list[list[int]]
    task_config: dict[str, Any]
    workload: Workload
    clock: Clock
    images = steps = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        cohort = self.cohorts[server_round - 1]
        for node, client in zip(random.sample(list(grid.get_node_ids()), len(cohort)), cohort, strict=True):
            content = RecordDict(
                {"arrays": arrays, "config": ConfigRecord({**self.task_config, "client": client})}
            )
            yield Message(content, node, "train")

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        for reply in replies:
            metrics = reply.content["metrics"]
            self.images += metrics["num-examples"]
            self.steps += metrics["steps"]
        combined = super().aggregate_train(server_round, replies)
        if not self.workload.measured(server_round):
            self.clock.round()
        return combined


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--idle", action="store_true")
    options = parser.parse_args()
    w = workload(options)
    model = one_layer() if options.idle else w.network()
    test, truth, clients = w.images("test_"), w.labels("test_"), len(w.clients())
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        cohort = len(w.cohorts()[0])
        strategy = Scheduled(
            fraction_train=cohort / clients, fraction_evaluate=0.0, min_available_nodes=clients
        )
        strategy.cohorts, strategy.workload = w.cohorts(), w
        strategy.task_config = {"file": str(w.path), "batch": w.batch, "idle": options.idle}
        while len(list(grid.get_node_ids())) < clients:
            time.sleep(0.02)

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number == 0 or not w.measured(number):
                return None
            model.load_state_dict(arrays.to_torch_state_dict())
            strategy.clock.evaluate(model, test, truth, EVALUATION_BATCH)
            strategy.clock.round()
            return MetricRecord({"accuracy": strategy.clock.accuracies[-1]})

        strategy.clock = Clock(BEGUN)
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=w.rounds, evaluate_fn=evaluate)
        strategy.clock.report(steps=strategy.steps, examples=strategy.images)

    cores = os.cpu_count() or 1
    run_simulation(
        server,
        client_app(),
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": cores, "log_to_driver": False, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main()
