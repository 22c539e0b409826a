"""What is made of a run folder at the end of a run: HTML report, model card, scalars for other programs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError, RunError
from fedvision.streams import complain

if TYPE_CHECKING:
    from fedvision.runs.folder import RunFolder


def page_writer(*, tensorboard: bool = False, mlflow: str = "") -> Callable[[RunFolder], None]:
    """Return ``write(folder)``, which imports what draws only then: it takes a second and 25 MB.

    Args:
        tensorboard: Whether scalars are written into the run folder.
        mlflow: The MLflow store that gets them; none where it is empty.

    Raises:
        ConfigError: What is wanted is not installed, or the store does not answer: better said before a run
            than after it.
    """
    if tensorboard and find_spec("tensorboard") is None:
        from fedvision.reporting.tensorboard import NO_TENSORBOARD

        raise ConfigError(NO_TENSORBOARD)
    if mlflow:
        from fedvision.reporting.mlflow_store import open_store

        open_store(mlflow)

    def write(folder: RunFolder) -> None:
        from fedvision.reporting.card_file import update_card
        from fedvision.reporting.html import write_report
        from fedvision.reporting.tensorboard import write_scalars

        write_report(folder)
        update_card(folder)
        if tensorboard:
            write_scalars(folder)
        if mlflow:
            from fedvision.reporting.mlflow_store import write_to_mlflow

            try:
                write_to_mlflow(folder, mlflow)
            except RunError as error:  # the run itself is done
                complain(f"note: {error}")

    return write
