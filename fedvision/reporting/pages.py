"""What is drawn from a run folder at the end of a run: the HTML report, TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedvision.runs.folder import RunFolder


def page_writer(*, tensorboard: bool = False) -> Callable[[RunFolder], None]:
    """Return ``write(folder)``, which imports what draws only then: it takes a second and 25 MB."""

    def write(folder: RunFolder) -> None:
        from fedvision.reporting.html import write_report
        from fedvision.reporting.tensorboard import write_scalars

        if tensorboard:
            write_scalars(folder)
        write_report(folder)

    return write
