"""A run's generator in use: images of a class, and how near they come to images that it was trained on.

A generator may reproduce training images, above all those of a class of which there are few, and whoever has
it then has them. The test is that of Meehan, Chaudhuri, Dasgupta 2020, "A Non-Parametric Test to Detect
Data-Copying in Generative Models", arXiv 2004.05675, here class by class and in pixels: each generated
image's distance to the nearest training image of its class stands beside the same distance of real images
that were not trained on::

    d(x) = min_{t in T} sqrt(mean over pixels (x - t)^2)        pixels / 255, T training images of the class

The ratio of the medians is 1 where generated images are as far from the training images as unseen real ones
are, and 0 where they are copies. ``nearer`` is the share of pairs in which the generated image is the nearer
one (the Mann-Whitney statistic): 1/2 without copying, 1 where all are copies. The paper divides space into
cells and works on features; in pixels a blurred image is near to many others, so a ratio below 1 is a reason
to look, and one above 1 does not prove that nothing was learned by heart: an image that differs by a shift
or in its brightness is far in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.data.identity import identity
from fedvision.errors import ConfigError, DataError, RunFolderError
from fedvision.files import read_json
from fedvision.runs import side_networks
from fedvision.runs.folder import RunFolder

if TYPE_CHECKING:
    import torch

    from fedvision.data.dataset import Dataset
    from fedvision.data.partition.split import Split
    from fedvision.data.targets import Targets
    from fedvision.models.generator import Generator

_CHUNK = 256
"""Images whose distances are computed at a time."""


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """How near generated images of one class come to training images, beside real images not trained on."""

    name: str
    """The class."""
    training: int
    """Training images."""
    generated: float
    """Median distance of generated images to the nearest training image."""
    held_out: float
    """The same of real images that were not trained on."""
    nearer: float
    """Share of pairs of a generated and a held-out image in which the generated one is nearer, ties half."""

    @property
    def ratio(self) -> float:
        """The first distance over the second; infinite where only the second is 0, NaN where both are."""
        return (
            float(np.divide(self.generated, self.held_out)) if self.held_out else _over_zero(self.generated)
        )


def leakage(name: str, generated: torch.Tensor, training: torch.Tensor, held_out: torch.Tensor) -> Leakage:
    """Compare distances to the nearest training image.

    Args:
        name: What is compared, a class.
        generated: Generated images [G, ...], pixels / 255.
        training: Images that were trained on [T, ...].
        held_out: Real images that were not [H, ...].

    Raises:
        DataError: There is no image of one kind.
    """
    for kind, images in (("generated", generated), ("training", training), ("held-out", held_out)):
        if not len(images):
            raise DataError(f"{name}: there are no {kind} images; leakage needs some of each kind")
    made, unseen = nearest(generated, training), nearest(held_out, training)
    difference = unseen[None, :] - made[:, None]
    return Leakage(
        name=name,
        training=len(training),
        generated=float(made.median()),
        held_out=float(unseen.median()),
        nearer=float(((difference > 0).double() + 0.5 * (difference == 0)).mean()),
    )


def nearest(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the root mean square difference of pixels from each image [N, ...] to the nearest other [N]."""
    import torch

    flat, there = images.flatten(1).float(), others.flatten(1).float()
    # Differences are taken, not products: a copy has a distance of exactly 0.
    found = [
        torch.cdist(part, there, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        for part in torch.split(flat, _CHUNK)
    ]
    distances: torch.Tensor = torch.cat(found) / flat.shape[1] ** 0.5
    return distances


class ImageGenerator:
    """A finished run's generator.

    Args:
        run: The run folder, of which ``generator.safetensors`` is read.

    Raises:
        RunFolderError: It is missing or damaged.
    """

    def __init__(self, run: Path) -> None:
        from fedvision.models.generator import GanShape, Generator

        state, numbers, self.classes = side_networks.read(run, "generator")
        try:
            self._network: Generator = Generator(GanShape.of(numbers))
            self._network.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise RunFolderError(
                f"{run / 'generator.safetensors'}: its tensors are of another network than it says; take it "
                "from a copy of the run"
            ) from error

    def pixels(self, labels: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        """Return an image of each class float32 [N, channels, H, W], pixels / 255.

        Args:
            labels: int64 [N].
            seed: Another one gives other images.
        """
        import torch

        source = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(labels), self._network.shape.noise), generator=source)
        with torch.no_grad():
            parts = zip(torch.split(noise, _CHUNK), torch.split(labels, _CHUNK), strict=True)
            made = [self._network(*part) for part in parts]
        return torch.cat(made)

    def images(self, each: int, *, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return ``each`` images of every class, uint8 [N, H, W, channels], and their labels int64 [N].

        Raises:
            ConfigError: ``each`` is below 1.
        """
        import torch

        if each < 1:
            raise ConfigError(f"the number of images of each class must be >= 1, not {each}")
        labels = torch.arange(len(self.classes)).repeat_interleave(each)
        pixels = self.pixels(labels, seed=seed).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()


def leakage_of_run(run: Path, *, each: int = 100, seed: int = 0) -> list[Leakage]:
    """Measure a simulated run's generator, class by class.

    Training images are those that its clients trained on, found anew from the run's experiment; held-out ones
    are its test images, or where it has none those that clients kept out of training.

    Args:
        run: The run folder.
        each: Images generated of each class, and held-out ones taken at most.
        seed: Of the generated images.

    Raises:
        RunFolderError: The run has no generator, or its images are others now.
        ConfigError: Its images are on other machines, or it kept none out of training.
    """
    import torch

    from fedvision.data.transforms import prepare
    from fedvision.experiment import Experiment

    generator = ImageGenerator(run)
    if (run / "deployment.json").exists():
        raise ConfigError(
            f"{run}: its images are on the clients' machines; an owner measures his with "
            "fedvision.generated.leakage"
        )
    folder = RunFolder.read(run)
    if modules := folder.invocation().get("modules"):
        registry.allow_folder(Path(modules[0]))  # where the run found its own plug-ins
    experiment = Experiment.build(ExperimentConfig.load(run / "config.toml"))
    data, split = experiment.dataset, experiment.split
    before, now = read_json(run / "data.json"), identity(data, train=True)
    same = all(before.get(part) == digest for part, digest in now.items())
    if not same or folder.split().get("digest") != split.facts(data.classes)["digest"]:
        raise RunFolderError(f"{run}: its images or their split are others now; put the data back")
    if split.lazy:
        raise ConfigError(f"{run}: its clients are made on access; leakage needs a list of clients")
    trained = np.unique(np.concatenate(list(split.clients)))
    unseen_images, unseen_labels = _unseen(data, split, run)
    transform = prepare(experiment.config.transforms, data.train.images.shape[3])
    scale, shift = (one.view(1, -1, 1, 1) for one in transform.constants())

    def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
        return (transform.inputs(torch.from_numpy(np.ascontiguousarray(images))) - shift) / (255 * scale)

    found = []
    for label, name in enumerate(generator.classes):
        own = trained[data.train.labels[trained] == label]
        unseen = np.flatnonzero(np.asarray(unseen_labels) == label)[:each]
        if len(own) and len(unseen):
            made = generator.pixels(torch.full((each,), label), seed=seed)
            real = pixels(data.train.images[own]), pixels(unseen_images[unseen])
            found.append(leakage(name, made, *real))
    return found


def _unseen(data: Dataset, split: Split, run: Path) -> tuple[NDArray[np.uint8], Targets]:
    """Return images and labels that the run did not train on: test images, or those its clients held out."""
    if data.test is not None:
        return data.test.images, data.test.labels
    if split.held:
        held = np.unique(np.concatenate(split.held))
        return data.train.images[held], data.train.labels[held]
    raise ConfigError(f"{run}: it kept no images out of training; set evaluation.holdout in its experiment")


def _over_zero(value: float) -> float:
    return float("inf") if value > 0 else float("nan")
