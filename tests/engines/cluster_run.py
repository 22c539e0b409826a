"""A two-node Ray cluster on one machine that loses a node in the middle of a round; run as a program.

Prints digests of the final weights, the engine's notices, and how many clients were refused, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from fedvision.api import simulate
from fedvision.libraries import prepare_process
from fedvision.runs.progress import Silent
from fedvision.types import PluginSpec, State
from tests.experiments import tiny


def digest(state: State) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()


class Loss(Silent):
    """Removes a node shortly after a round has begun."""

    def __init__(self, cluster: Any, node: Any) -> None:
        super().__init__()
        self.cluster, self.node = cluster, node
        self.notices: list[str] = []

    def note(self, text: str, fields: Any = None) -> None:
        self.notices.append(text)

    def round_done(self, round: int, record: Any, seconds: Any) -> None:
        if round == 2:
            threading.Timer(0.05, self.cluster.remove_node, [self.node, False]).start()


def main(folder: Path) -> None:
    prepare_process()
    config = tiny(rounds=8, training={"batch_size": 8, "lr": 0.05, "epochs": 3}, strategy={"use": "scaffold"})
    serial = simulate(config, out=folder / "serial")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    loss = Loss(cluster, node)
    spec = PluginSpec(use="ray", args={"workers": 2, "address": cluster.address})
    there = simulate(config, engine=spec, out=folder / "ray", progress=loss)
    refused = sum(len(record["refused"]) for record in there.rounds)
    digests = {"serial": digest(serial.state), "ray": digest(there.state)}
    print(json.dumps(digests | {"notices": loss.notices, "refused": refused}))
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
