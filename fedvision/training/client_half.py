"""The client half that a request names, and where what it remembers is kept."""

from __future__ import annotations

from fedvision import registry
from fedvision.errors import PluginError
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.client_state import ALGORITHM, MODEL
from fedvision.types import TrainRequest


def client_algorithm(request: TrainRequest) -> ClientAlgorithm:
    """Return a new object of the client half that a request names; raises as ``client_half``."""
    return client_half(request)()


def memory_group(request: TrainRequest) -> str:
    """Return the group of what a client keeps in which its client half finds what it returned."""
    return MODEL if client_half(request).personal_model else ALGORITHM


def client_half(request: TrainRequest) -> type[ClientAlgorithm]:
    """Return the client half that a request names.

    Raises:
        PluginError: There is none of this name, or it is no ``ClientAlgorithm``.
    """
    name = request.algorithm
    if name is None:
        return ClientAlgorithm
    kind = registry.resolve("client_algorithm", name).call
    # A server chooses the name: nothing but a client half may be called by it.
    if not (isinstance(kind, type) and issubclass(kind, ClientAlgorithm)):
        raise PluginError(
            f"the client half {name!r} of the strategy is no class of "
            "fedvision.training.client_algorithm.ClientAlgorithm; set the strategy's `client` to one"
        )
    return kind
