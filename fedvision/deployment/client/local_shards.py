"""A client machine's own images as a client's shards, and what it reports of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedvision import seeding
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.partition.group_holdout import held_out_groups
from fedvision.data.partition.groups import groups_of
from fedvision.data.shards import Shard
from fedvision.data.sources.inputs import CellError, with_inputs
from fedvision.deployment.client import local_data
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.run_manifest import RunManifest
from fedvision.errors import DataError
from fedvision.tasks.base import build_task

log = logging.getLogger("fedvision.deployment")


@dataclass(frozen=True, kw_only=True)
class OwnShards:
    """The images of this machine; whatever number the server gives it, they are the client's."""

    images: ImageSet
    """Training images under the experiment's labels."""
    strata: NDArray[np.int64]
    """int64 [N]: by what the holdout spreads them."""
    share: float
    """Share kept from training for measurement."""
    seed: int
    """The experiment's root seed."""

    def train(self, client: int) -> Shard:
        """Return the images that the client trains on."""
        return self._halves(client)[0]

    def test(self, client: int) -> Shard:
        """Return the images that the client measures on."""
        return self._halves(client)[1]

    def _halves(self, client: int) -> tuple[Shard, Shard]:
        rng = seeding.numpy_stream(self.seed, "holdout", client)
        held = held_out_groups(self.strata, groups_of(self.images), self.share, rng)
        whole = Shard.whole(self.images)
        return whole.take(np.flatnonzero(~held)), whole.take(np.flatnonzero(held))


def own_shards(
    client: ClientMachineConfig, facts: RunManifest, experiment: ExperimentConfig, read: Dataset | None = None
) -> OwnShards:
    """Read this machine's images, unless they are ``read``, and give them the experiment's labels.

    Raises:
        ConfigError: Images cannot be read, have another size than the experiment's, an unknown label, or
            labels of another form than its task.
    """
    own, task = local_data.open_own(client) if read is None else read, build_task(experiment.task)
    local_data.check_form(own, client, task)
    dataset = local_data.under_classes(own, client, facts.classes)
    size = tuple(dataset.train.images.shape[1:])
    if size != facts.image:
        raise DataError(
            f"[data] gives images of {_text(size)} and the experiment has {_text(facts.image)}; set "
            "size and color of the data source in the client's file"
        )
    return OwnShards(
        images=with_own_columns(dataset, experiment).train,
        strata=task.strata(dataset.train.labels),
        share=experiment.evaluation.holdout,
        seed=experiment.seed,
    )


def with_own_columns(dataset: Dataset, experiment: ExperimentConfig) -> Dataset:
    """Return this machine's images with the numbers of their columns that the experiment's network reads.

    Raises:
        DataError: A column is missing, or a cell is not as the experiment needs it; as the sentence may be
            sent to the server, it says neither the cell nor the image, which the machine's own log does.
    """
    try:
        return with_inputs(dataset, experiment.model.inputs)
    except CellError as error:
        log.warning("%s", error)
        raise DataError(
            f"{error.key}: this client has not the column that the experiment needs, or a cell is not as it "
            "must be; its own log says which"
        ) from None


def _text(size: tuple[int, ...]) -> str:
    height, width, channels = size
    return f"{height} x {width} with {channels} channel{'s' * (channels > 1)}"


def on_this_machine(client: ClientMachineConfig, experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with what the machine's owner decides: the device."""
    return replace(experiment, training=replace(experiment.training, device=client.device))
