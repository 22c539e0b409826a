"""A run folder's figures as TensorBoard scalars, for those who keep their runs there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError
from fedvision.reporting.scalars import scalars
from fedvision.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NO_TENSORBOARD = "TensorBoard is not installed; run pip install 'fedvision[tensorboard]', or leave it out"


def write_scalars(folder: RunFolder, logs: Path | None = None) -> Path:
    """Write the scalars of every round, and return their folder.

    Scalars that an earlier call wrote there are replaced.

    Args:
        folder: The run.
        logs: Where they go; ``tensorboard`` in the run folder by default.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    target = logs or folder.path / "tensorboard"
    with _writer(target) as writer:
        for round, found in scalars(folder):
            for name, value in found.items():
                writer.add_scalar(name, value, round)
    return target


def _writer(target: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(NO_TENSORBOARD) from error
    for old in target.glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(str(target))
