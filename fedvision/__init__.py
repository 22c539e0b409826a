"""fedvision: federated learning for images whose rare classes work.

Importing this package loads neither torch nor flwr nor ray; each name loads what it needs when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedvision.api import RunResult as RunResult
    from fedvision.api import simulate as simulate
    from fedvision.config import ExperimentConfig as ExperimentConfig
    from fedvision.sweep import load_sweep as load_sweep
    from fedvision.sweep_runner import simulate_sweep as simulate_sweep
    from fedvision.trained_model import TrainedModel as TrainedModel
    from fedvision.trained_model import load as load

__version__ = "0.2.0"

_LAZY = {
    "ExperimentConfig": "fedvision.config",
    "TrainedModel": "fedvision.trained_model",
    "load": "fedvision.trained_model",
    "load_sweep": "fedvision.sweep",
    "RunResult": "fedvision.api",
    "simulate": "fedvision.api",
    "simulate_sweep": "fedvision.sweep_runner",
}
__all__ = [
    "ExperimentConfig",
    "RunResult",
    "TrainedModel",
    "__version__",
    "load",
    "load_sweep",
    "simulate",
    "simulate_sweep",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fedvision' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
