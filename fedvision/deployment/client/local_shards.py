"""A client machine's own images as a client's shards, and what it tells of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedvision import seeding
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.partition.group_holdout import held_out_groups
from fedvision.data.partition.groups import groups_of
from fedvision.data.shards import Shard
from fedvision.data.targets import strata
from fedvision.deployment.client.config import ClientMachineConfig, ShareConfig
from fedvision.deployment.client.local_data import open_own, under_classes
from fedvision.deployment.run_manifest import RunManifest
from fedvision.errors import ConfigError, DataError
from fedvision.files import replace_file


@dataclass(frozen=True, kw_only=True)
class OwnShards:
    """The images of this machine; whatever number the server gives it, they are the client's."""

    images: ImageSet
    """Training images under the experiment's labels."""
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
        held = held_out_groups(strata(self.images.labels), groups_of(self.images), self.share, rng)
        whole = Shard.whole(self.images)
        return whole.take(np.flatnonzero(~held)), whole.take(np.flatnonzero(held))


def read_own(client: ClientMachineConfig) -> Dataset:
    """Read this machine's images under its own labels.

    Raises:
        ConfigError: They cannot be read.
    """
    return open_own(client)


def own_shards(
    client: ClientMachineConfig, facts: RunManifest, experiment: ExperimentConfig, read: Dataset | None = None
) -> OwnShards:
    """Read this machine's images, unless they are ``read``, and give them the experiment's labels.

    Raises:
        ConfigError: Images cannot be read, have another size than the experiment's, or an unknown label.
    """
    dataset = under_classes(read_own(client) if read is None else read, client, facts.classes)
    size = tuple(dataset.train.images.shape[1:])
    if size != facts.image:
        raise DataError(
            f"[data] gives images of {_text(size)} and the experiment has {_text(facts.image)}; set "
            "size and color of the data source in the client's file"
        )
    return OwnShards(images=dataset.train, share=experiment.evaluation.holdout, seed=experiment.seed)


def _text(size: tuple[int, ...]) -> str:
    height, width, channels = size
    return f"{height} x {width} with {channels} channel{'s' * (channels > 1)}"


def on_this_machine(client: ClientMachineConfig, experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with what the machine's owner decides: the device."""
    return replace(experiment, training=replace(experiment.training, device=client.device))


def reported_counts(
    counts: tuple[int, ...], share: ShareConfig, memo: Path, *, needed: bool
) -> tuple[int, ...]:
    """Return the class counts [C] that the server is told, zeros where it is told nothing.

    Noise is drawn once for a run and kept: who asks twice must not be able to take the mean. With noise a
    class of few images may be told as a negative number; only the federation's sum is raised to 0.
    Laplace mechanism: Dwork et al. 2006, "Calibrating noise to sensitivity in private data analysis".

    Args:
        counts: The true ones [C].
        share: What the owner allows.
        memo: File that keeps what was told.
        needed: Whether the experiment's loss rests on the federation's counts.

    Raises:
        ConfigError: They are needed and not shared.
    """
    if share.counts == "none":
        if needed:
            raise ConfigError(
                "the experiment's loss needs the federation's class counts (loss.prior is global) and this "
                'client shares none; set share.counts to "masked", "noisy" or "plain" in its file, or leave '
                "the run"
            )
        return (0,) * len(counts)
    if share.counts == "masked":  # they come with others' in a sum
        return (0,) * len(counts)
    if share.counts == "plain":
        return counts
    if memo.exists():
        return tuple(json.loads(memo.read_text()))
    # Not from the experiment's seed, which the server knows.
    noise = np.random.default_rng().laplace(0, 1 / share.epsilon, len(counts))
    # A negative number stays: raised to 0 here it would pull the sum over many clients up.
    reported = tuple(round(count + more) for count, more in zip(counts, noise, strict=True))
    memo.parent.mkdir(parents=True, exist_ok=True)
    replace_file(memo, json.dumps(reported))
    return reported
