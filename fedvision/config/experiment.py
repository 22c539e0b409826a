"""The experiment: frozen dataclasses <-> one TOML file; every error names file and key.

A table that names a plug-in keeps its own keys; every other key in it is a keyword argument of the plug-in.
The canonical TOML (all keys, defaults written out, fixed order) is what travels to clients and stands in
a run folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvision.config.network import LossConfig, ModelConfig, PartitionConfig
from fedvision.config.rounds import ClockConfig, EvaluationConfig, PrivacyConfig, RoundConfig
from fedvision.config.training import TrainingConfig, TransformConfig
from fedvision.tables import Settings, at_least, require
from fedvision.types import PluginSpec


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Settings):
    """One federated experiment, whatever carries it: a simulation engine or machines far apart."""

    WHAT = "an experiment's TOML file"

    name: str = "experiment"
    """Name of the run folder and title of the report."""
    seed: int = 0
    """Root of every random stream, >= 0."""
    rounds: int = 10
    """Federated rounds."""
    checkpoint_every: int = 1
    """Rounds between checkpoints; the last round always has one."""
    task: PluginSpec = field(default_factory=lambda: PluginSpec(use="classification"))
    """What is learned: ``classification``, ``multi-label`` or ``"module:attr"``."""
    data: PluginSpec
    """Images and labels: ``digits``, ``fashion-mnist``, ``image-folder``, ... or ``"module:attr"``."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    """How a simulation spreads the training images over clients."""
    transforms: TransformConfig = field(default_factory=TransformConfig)
    """Normalisation and augmentation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Local training."""
    strategy: PluginSpec = field(default_factory=lambda: PluginSpec(use="fedavg"))
    """Selection and aggregation: ``fedavg``, ``scaffold``, ``flwr.serverapp.strategy:FedMedian``, ..."""
    update: tuple[PluginSpec, ...] = ()
    """What is done to the change of a client's model before it is sent, in this order, a ``[[update]]`` table
    each: ``clip``, ``float16``, ``top-k`` or ``"module:attr"``; without one, models are sent as they are."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurement."""
    round: RoundConfig = field(default_factory=RoundConfig)
    """Quorum, deadline, late and bad answers."""
    clock: ClockConfig = field(default_factory=ClockConfig)
    """Simulated time."""
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    """Noise for privacy."""

    def __post_init__(self) -> None:
        good = bool(self.name.strip(".")) and "/" not in self.name
        require(good, "name", f"must be a folder's name: not empty, no dots alone, no '/', not {self.name!r}")
        at_least(0, self, "", "seed")
        at_least(1, self, "", "rounds", "checkpoint_every")
        require(
            not (self.evaluation.with_training and self.round.buffer),
            "evaluation.with_training",
            f"needs round.buffer = 0, not {self.round.buffer}: a buffer's answers measured various models",
        )

    @property
    def timed(self) -> bool:
        """Whether a simulation needs simulated time: answers that come one after the other."""
        return self.round.buffer > 0 or self.clock.seconds_per_image > 0

    @classmethod
    def placed(cls, table: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a file's table; one of several experiments is refused."""
        require("sweep" not in table, "it", "is a [sweep] of several experiments; read it with load_sweep")
        return table
