"""Recipes of tests: a ClientApp made by a function, with nothing of fedvision behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.clientapp import ClientApp

from fedvision.flower.folding import Folding
from fedvision.flower.hosting import Host
from fedvision.strategies.mean import MeanStrategy


@dataclass(frozen=True, kw_only=True)
class AppRecipe:
    """Opens a host of the app that a function makes."""

    app: Callable[[], ClientApp]
    clients: int
    strategy: Callable[[], MeanStrategy] | None = None

    def open(self) -> Host:
        return Host(app=self.app(), folding=Folding(self.strategy()) if self.strategy else None)

    def cost(self, client: int) -> float:
        return 1.0
