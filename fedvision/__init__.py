"""fedvision: federated learning for images whose rare classes work.

Importing this package loads neither torch nor flwr nor ray; each name below loads what it needs when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig as ExperimentConfig
    from fedvision.config import load_sweep as load_sweep
    from fedvision.federation import RunResult as RunResult
    from fedvision.federation import simulate as simulate

__version__ = "0.1.0"

_LAZY = {
    "ExperimentConfig": "fedvision.config",
    "load_sweep": "fedvision.config",
    "RunResult": "fedvision.federation",
    "simulate": "fedvision.federation",
}
__all__ = ["ExperimentConfig", "RunResult", "__version__", "load_sweep", "simulate"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fedvision' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
