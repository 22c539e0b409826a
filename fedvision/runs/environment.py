"""On what a run was made: versions, processor and device. A number without them is no measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedvision.config import ModelConfig
from fedvision.families import family_of


def environment(device: str = "auto", model: ModelConfig | None = None) -> dict[str, Any]:
    """Return what a run's numbers and times depend on beside its configuration; no name of the machine.

    Args:
        device: ``training.device`` of the experiment.
        model: The experiment's ``[model]``, whose ``weights`` and library are noted.

    Raises:
        ConfigError: The file with which the model began cannot be read.
    """
    import torch

    from fedvision.models.part_config import parts
    from fedvision.models.weights_file import digest, key_of, named

    sources = named(model) if model else {}
    began = {f"{key_of(name)}, sha256": digest(one) for name, one in sources.items()}
    networks = [model, *parts(model).values()] if model else []
    families = [found[0].package for one in networks if (found := family_of("model", one.use))]
    library = {package: _version(package) for package in families if package}
    return {
        "fedvision": _version("fedvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "device": _device(device),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "flwr": _version("flwr"),
        "numpy": _version("numpy"),
        **library,
        **began,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name: /proc/cpuinfo has it on Linux, where ``platform`` is often empty."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device(name: str) -> str:
    """Return the device in words; the name of a GPU is only read where the run may use it."""
    import torch

    from fedvision.devices import choose_device

    if name == "auto":
        name = choose_device(name).type
    if name.startswith("cuda") and torch.cuda.is_available():
        index = int(name.partition(":")[2] or 0)
        if index < torch.cuda.device_count():
            return f"{name} ({torch.cuda.get_device_name(index)})"
    return name
