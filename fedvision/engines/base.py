"""What an engine is: something that opens a Flower Grid for a ClientApp, and nothing more."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid


class Engine(Protocol):
    """Carries messages between one ServerApp and many clients."""

    def open(self, client_app: ClientApp, clients: int, run_id: int = 1) -> AbstractContextManager[Grid]:
        """Open a Grid of ``clients`` nodes that run ``client_app``; leaving the block closes it."""
