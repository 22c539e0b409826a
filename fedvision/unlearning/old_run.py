"""The run whose model is changed: read and checked, and its experiment built once more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedvision import registry
from fedvision.algorithms.closed_form.strategy import ClosedForm
from fedvision.config import ExperimentConfig
from fedvision.data.identity import identity
from fedvision.errors import ConfigError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.files import read_json
from fedvision.flower.strategy import FlowerStrategy
from fedvision.models.weights import tensors_of
from fedvision.runs.checkpoint import Checkpoint
from fedvision.runs.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class OldRun:
    """A finished run whose sums are kept."""

    folder: RunFolder
    """Its folder, which stays as it is."""
    config: ExperimentConfig
    """Its experiment."""
    inside: tuple[int, ...]
    """Numbers of the clients that its model rests on."""
    deployed: bool
    """Whether its clients are on machines of their own."""

    @classmethod
    def read(cls, run: str | Path) -> OldRun:
        """Read a run folder.

        Raises:
            ConfigError: The run is not finished, or has another strategy.
            RunFolderError: There is no such run.
        """
        folder = RunFolder.read(Path(run))
        config = folder.config()
        if config.strategy.use != "closed-form":
            raise ConfigError(
                f"{folder.path}: its strategy is {config.strategy.use!r}, and clients can be taken out of a "
                "model or into it with [strategy] use = 'closed-form' alone"
            )
        if folder.summary().get("status") != "finished":
            raise ConfigError(f"{folder.path}: this run is not finished; go on with it first")
        return cls(
            folder=folder,
            config=config,
            inside=tuple(folder.rounds()[-1]["clients"]),
            deployed=bool(folder.members().members),
        )

    @property
    def path(self) -> Path:
        """Return its folder."""
        return self.folder.path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Return its last checkpoint.

        Raises:
            RunFolderError: There is none.
        """
        found = self.folder.checkpoints.load()
        if found is None:
            raise RunFolderError(
                f"{self.path}: it has no checkpoint, in which the sums are kept; run it again"
            )
        return found

    def build(self) -> Experiment:
        """Build its experiment.

        Raises:
            RunFolderError: Its data are others now.
        """
        if modules := self.folder.invocation().get("modules"):
            registry.allow_folder(Path(modules[0]))
        built = Experiment.build(self.config, split_here=not self.deployed)
        self._check_data(built)
        return built

    def _check_data(self, built: Experiment) -> None:
        """Refuse other images, or another split of them, than the run's."""
        before = read_json(self.path / "data.json")
        now = identity(built.dataset, train=not self.deployed)
        now |= tensors_of(built.weights)
        others = [part for part in now if before.get(part) != now[part]]
        if not self.deployed:
            digest = built.split.facts(built.dataset.classes)["digest"]
            others += ["split"] * (self.folder.split().get("digest") != digest)
        if others:
            raise RunFolderError(
                f"{self.path}: the data are not those of the run: other {' and '.join(others)}; restore them"
            )


def closed_form(built: Experiment) -> ClosedForm:
    """Return the strategy of an experiment in closed form."""
    assert isinstance(built.strategy, FlowerStrategy)
    assert isinstance(built.strategy.inner, ClosedForm)
    return built.strategy.inner
