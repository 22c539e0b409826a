"""What is drawn from a run folder at the end of a run: the HTML report, TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError

if TYPE_CHECKING:
    from fedvision.runs.folder import RunFolder


def page_writer(*, tensorboard: bool = False) -> Callable[[RunFolder], None]:
    """Return ``write(folder)``, which imports what draws only then: it takes a second and 25 MB.

    Raises:
        ConfigError: TensorBoard is wanted and not installed: better said before a run than after it.
    """
    if tensorboard and find_spec("tensorboard") is None:
        from fedvision.reporting.tensorboard import NO_TENSORBOARD

        raise ConfigError(NO_TENSORBOARD)

    def write(folder: RunFolder) -> None:
        from fedvision.reporting.html import write_report
        from fedvision.reporting.tensorboard import write_scalars

        write_report(folder)
        if tensorboard:
            write_scalars(folder)

    return write
