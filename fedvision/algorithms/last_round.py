"""Methods that change the last round's model alone, and what may not be asked of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedvision.errors import ConfigError

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig


def check_last_round(config: ExperimentConfig, needed_by: str, otherwise: str = "") -> None:
    """Refuse a run that may end with the model of a round before the last, which has no such head.

    Args:
        config: The experiment.
        needed_by: The method, for the error: ``"[strategy] use = 'creff'"``.
        otherwise: Another way out, such as ``"set strategy.steps = 0"``.

    Raises:
        ConfigError: ``evaluation.patience`` or ``evaluation.keep = "best"`` is set.
    """
    if config.evaluation.patience or config.evaluation.keep == "best":
        raise ConfigError(
            f"{needed_by} puts its head into the last round's model alone; leave out evaluation.patience and "
            f"set evaluation.keep = 'last'{', or ' + otherwise if otherwise else ''}"
        )
