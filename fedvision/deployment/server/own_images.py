"""What a server across machines measures its model with: the experiment's own images, of no client."""

from __future__ import annotations

from dataclasses import dataclass

from fedvision.data.shards import Shard
from fedvision.experiment import Experiment
from fedvision.runs.folder import RunFolder
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer


@dataclass(frozen=True, kw_only=True)
class OneShard:
    """The server's own images, where a worker needs a client's."""

    shard: Shard

    def train(self, client: int) -> Shard:
        """Return the images."""
        return self.shard

    def test(self, client: int) -> Shard:
        """Return the images."""
        return self.shard


def server_trainer(experiment: Experiment, folder: RunFolder) -> ClientTrainer:
    """Return what measures a state on the server's test images."""
    config, dataset = experiment.config, experiment.dataset
    memory = ClientStateStore(folder.path / "clients", config.checkpoint_every)
    shards = OneShard(shard=Shard.whole(dataset.train))
    return ClientTrainer.open(config, experiment.model, len(dataset.classes), shards, memory, trains=False)
