"""Recipes of tests: a ClientApp made by a function, with nothing of fedvision behind it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import MeanStrategy
from fedvision.engines.client_host import ClientHost, CostEstimate
from fedvision.engines.partial_aggregation import PartialAggregator
from fedvision.flower import codec
from fedvision.training.loop import TrainResult


@dataclass(frozen=True, kw_only=True)
class AppRecipe:
    """Opens a host of the app that a function makes."""

    app: Callable[[], ClientApp]
    clients: int
    strategy: Callable[[], MeanStrategy] | None = None
    device: str = "cpu"
    seconds: float = 0.0

    def open(self) -> ClientHost:
        return ClientHost(app=self.app())

    def aggregator(self) -> PartialAggregator | None:
        return PartialAggregator(self.strategy()) if self.strategy else None

    def profile(self) -> None: ...

    def estimate_cost(self) -> CostEstimate:
        return CostEstimate(seconds=self.seconds, cohort=self.clients)

    def cost(self, client: int) -> float:
        return 1.0 + client


def adding(folder: Path | None = None, trouble: str = "") -> ClientApp:
    """Add the client's number and a third to the model, from as many images and one.

    Args:
        folder: Where what has happened is noted, so that it happens once.
        trouble: What client 2 does: ``"raise"``, ``"exit"`` (its process dies), ``"exit once"``, ``"memory
            once"``, ``"nan"``, ``"huge"``.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if client == 2 and trouble:
            _trouble(trouble, folder)
        state = {
            name: tensor + client + 1 / 3
            for name, tensor in codec.decode_state(message.content.array_records["arrays"]).items()
        }
        if client == 2 and trouble == "nan":
            state["w"][0] = torch.nan
        if client == 2 and trouble == "huge":
            state = {name: tensor * 1e12 for name, tensor in state.items()}
        update = TrainResult(state=state, examples=client + 1, loss=float(client), steps=1)
        return Message(codec.encode_update(update), reply_to=message)

    return app


def _trouble(trouble: str, folder: Path | None) -> None:
    if trouble.endswith("once"):
        assert folder is not None
        try:
            (folder / "happened").touch(exist_ok=False)
        except FileExistsError:
            return
    if trouble == "raise":
        raise ValueError("no luck")
    if trouble.startswith("exit"):
        os._exit(9)
    if trouble.startswith("memory"):
        raise torch.OutOfMemoryError("torch.OutOfMemoryError: CUDA out of memory")


def adders(clients: int, folder: Path | None = None, trouble: str = "", add_update: bool = True) -> AppRecipe:
    """A recipe of ``adding`` apps whose updates are to be averaged."""
    return AppRecipe(
        app=partial(adding, folder, trouble), clients=clients, strategy=FedAvg if add_update else None
    )
