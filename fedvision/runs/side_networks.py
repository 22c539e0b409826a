"""Networks that a strategy trains beside the model, in the run's folder: one safetensors file each.

``NAME.safetensors`` has the tensors, and in its header under ``fedvision`` as JSON what the network is built
of: ``{"numbers": {...}, "classes": [C names]}``. It says all that is needed to use the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision.algorithms.base import RoundStrategy
from fedvision.errors import MALFORMED, RunFolderError
from fedvision.files import recording, replace_file
from fedvision.flower.guard import guarded
from fedvision.runs.tensor_file import pieces

if TYPE_CHECKING:
    from fedvision.types import State

_HEADER = "fedvision"


def write(folder: Path, strategy: object, classes: Sequence[str]) -> None:
    """Write the networks that a strategy has beside the model; most have none.

    Args:
        folder: The run folder.
        strategy: The strategy that trained them.
        classes: Class names [C].

    Raises:
        RunError: The strategy fails.
        RecordError: The disk is full or refuses.
    """
    if not isinstance(strategy, RoundStrategy):
        return
    with guarded(f"side_networks of the strategy {type(strategy).__name__}"):
        beside = {name: (state, dict(numbers)) for name, (state, numbers) in strategy.side_networks().items()}
    for name, (state, numbers) in beside.items():
        header = json.dumps({"numbers": numbers, "classes": list(classes)}, sort_keys=True)
        with recording(f"{name}.safetensors", folder):
            replace_file(folder / f"{name}.safetensors", pieces(state, {_HEADER: header}))


def read(folder: Path, name: str) -> tuple[State, dict[str, float], tuple[str, ...]]:
    """Return a network's tensors, the numbers that it is built of, and the class names [C].

    Raises:
        RunFolderError: The file is missing or damaged.
    """
    import safetensors
    from safetensors.torch import load_file

    file = folder / f"{name}.safetensors"
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            described: Any = json.loads((opened.metadata() or {})[_HEADER])
        numbers = {str(key): float(value) for key, value in described["numbers"].items()}
        return load_file(file), numbers, tuple(map(str, described["classes"]))
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{file}: there is no such file; a finished run with a strategy that trains a {name} has one"
        ) from error
    except (OSError, safetensors.SafetensorError, *MALFORMED) as error:
        raise RunFolderError(f"{file}: it is damaged ({error}); take it from a copy of the run") from error
