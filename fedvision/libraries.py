"""The libraries that everything is built with, and how they are set before they are imported."""

from __future__ import annotations

import os
import sys

from fedvision.stages import stage


def load_libraries() -> None:
    """Prepare the process and import what everything else is built with: seconds, the first time."""
    if sys.modules.get("torch") is None:
        stage("loading PyTorch and Flower")
    prepare_process()
    import torch  # noqa: F401

    from fedvision.flower import strategy  # noqa: F401


def prepare_process() -> None:
    """Switch Flower's telemetry, update check and log lines off, and keep arithmetic threads from spinning.

    What the user set stays. Two OpenMP threads that spin at barriers made a run twice as slow on a machine
    that had other work. It takes effect where torch is not imported yet.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    from fedvision.flower.internals import quiet

    quiet()
