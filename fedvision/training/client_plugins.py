"""Which plug-ins of an experiment a client builds, and whether any of them is not the package's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedvision import registry
from fedvision.config import ExperimentConfig, ModelConfig
from fedvision.models.part_config import parts


def network_plugins(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what a network is made of."""
    yield "model", model.use
    for kind, spec in {"expansion": model.expand, "head": model.head}.items():
        if spec.use:
            yield kind, spec.use
    for part in parts(model).values():
        yield "model", part.use


def client_plugins(experiment: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what a client builds; data and partition are its own affair."""
    yield "task", experiment.task.use
    yield from network_plugins(experiment.model)
    yield "loss", experiment.loss.use
    yield "optimizer", experiment.training.optimizer.use
    yield "schedule", experiment.training.schedule.use
    yield "sampler", experiment.training.sampler.use
    for spec in experiment.update:
        yield "update", spec.use


def may_draw(plugins: Iterable[tuple[str, str]]) -> bool:
    """Return whether a plug-in is neither the package's nor of a library that it names.

    Such code may draw from the global generators of torch, NumPy and Python.

    Args:
        plugins: Kind and name of each.
    """
    return any(not (registry.is_builtin(kind, use) or _is_torchs(kind, use)) for kind, use in plugins)


def _is_torchs(kind: str, use: str) -> bool:
    return kind == "optimizer" and registry.names(kind).get(use.lower(), "").startswith("torch.optim:")
