"""FedGAN beside a classifier: clients train a conditional GAN together and fill rare classes with its images.

Rasouli, Sun, Rajagopal 2020, "FedGAN: Federated Generative Adversarial Networks for Distributed Data", arXiv
2006.07228: clients take steps on a generator G and a discriminator D of their own, and the server averages
them by the clients' images. Here the classifier is trained beside them, as in FedAvg. On each mini-batch the
client takes ``gan_steps`` steps of Adam on the logistic losses (Goodfellow et al. 2014, arXiv 1406.2661, the
form that does not saturate)::

    D: mean log(1 + e^-D(x, y)) + log(1 + e^D(G(u, y), y))        G: mean log(1 + e^-D(G(u, y), y))

with u ~ N(0, I), and images x of the batch that are drawn with replacement in proportion to 1 / n_ky, so
that rare classes have a part in it. From round ``warmup`` + 1 on the classifier's batch of B images gets
generated ones besides, as if an epoch had

    m_kc = max(0, share max_c' n_kc' - n_kc)

generated images of class c beside its n_kc real ones: B sum_c m_kc / n_k images on average, their classes
drawn in proportion to m_kc, and the loss is the mean over all. A class that the client lacks is filled where
the federation's counts are known (``loss.prior = "global"`` or ``"mixed"``) and some client has it; else it
is left alone, as nobody has said that the generator ever saw it.

The paper averages D as well and trains no classifier. Here each client keeps its own D, which is never sent:
it has seen real images alone of this client, and on Fashion-MNIST with a long tail at ten clients the
classifier's rare classes gained more than with an averaged one. All begin with the same D. ``share = 0``
trains the classifier as FedAvg does, to the bit. A loss that corrects the prior (``logit-adjusted``)
corrects it twice where rare classes are filled as well. The generator learns augmented images as the
classifier sees them. The optimisers start anew in every round. A GAN that is no longer finite is not sent:
the client returns the generator that it got and keeps its former D.

What it tells: a generator can reproduce images that it was trained on, above all those of a class of which
there are few. ``fedvision generate RUN --leakage`` measures it on the run folder's
``generator.safetensors``.

Costs: on a client for each step two passes of G and three of D, with gradients, several times the work of a
small classifier; G travels both ways beside the model, for 28 x 28 x 1 about 60,000 numbers, and D, half as
large, to each client once and stays on its disk. Clients are trained one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fedvision import seeding
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import WeightedTensors
from fedvision.data.transforms import input_shape, prepare
from fedvision.errors import ClientError, ConfigError, RunError
from fedvision.inputs import Batch, images_of
from fedvision.models.generator import Discriminator, GanShape, Generator
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent, to_storage
from fedvision.types import ClientConfig, ClientUpdate, LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'fedgan'"
_GENERATOR, _DISCRIMINATOR, _SCALE = "generator", "discriminator", "scale"
_NUMBERS = ("share", "warmup", "gan_steps", "gan_lr")
_BETAS = (0.5, 0.99)
"""Adam's, the first as Radford et al. 2016 found it."""


class FedGANClient(ClientAlgorithm):
    """The task's loss on real and generated images, and steps of a GAN beside it."""

    sees_images = True
    sends_generator = True
    draws = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Build the GAN that the server sent, and say how many images of each class are to be generated.

        Raises:
            ClientError: The request lacks numbers, tensors or counts.
        """
        names = tuple(GanShape.__dataclass_fields__)
        numbers = numbers_sent(request, "FedGAN", *_NUMBERS, *names)
        sent = {**request.client_config.tensors, **request.client_config.constants}
        if request.own_counts is None or not {_GENERATOR, _DISCRIMINATOR, _SCALE} <= sent.keys():
            why = "FedGAN got no networks, or no class counts of the client's images"
            raise ClientError(request.client, "training", why)
        device = next(model.parameters()).device
        self._sent = dict(sent[_GENERATOR])
        self._kept = {name: memory.get(name, tensor) for name, tensor in sent[_DISCRIMINATOR].items()}
        shape = GanShape.of(numbers)
        with torch.random.fork_rng(devices=[]):  # values are loaded, and torch's stream is the classifier's
            generator, discriminator = Generator(shape), Discriminator(shape)
        try:
            generator.load_state_dict(self._sent)
            discriminator.load_state_dict(self._kept)
        except RuntimeError as error:
            why = "the networks of FedGAN that it got do not have the shape that it was told"
            raise ClientError(request.client, "training", why) from error
        self._generator, self._discriminator = generator.to(device), discriminator.to(device)
        self._scale, self._shift = (
            sent[_SCALE][name].to(device).view(1, -1, 1, 1) for name in ("scale", "shift")
        )
        self._steps = int(numbers["gan_steps"])
        self._optimizers = [
            torch.optim.Adam(one.parameters(), lr=numbers["gan_lr"], betas=_BETAS)
            for one in (self._generator, self._discriminator)
        ]
        counts = torch.tensor(request.own_counts, dtype=torch.float64)
        known = None if request.counts is None else torch.tensor(request.counts, dtype=torch.float64)
        self._rarity = 1 / counts.clamp(min=1)
        share = numbers["share"] if request.round > numbers["warmup"] else 0.0
        self._fill = images_to_fill(counts, known, share)
        self._images = float(counts.sum())

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return, for each image, its loss and its part in that of the generated ones [B]."""
        images = images_of(x)
        if labels.dim() != 1:
            raise ConfigError(f"{_NEEDED_BY} needs one label an image; use another strategy for this task")
        with torch.autocast(images.device.type, enabled=False):
            for _ in range(self._steps):
                self._train_gan(images.float(), labels)
            made, made_labels = self._generated(len(labels), images)
        if not len(made_labels):
            return task_loss(model(x), labels)
        logits = model(torch.cat([images, made]))
        real = task_loss(logits[: len(labels)], labels)
        return (real * len(labels) + task_loss(logits[len(labels) :], made_labels).sum()) / len(logits)

    @torch.enable_grad()
    def _train_gan(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take a step of the discriminator and one of the generator."""
        rarity = self._rarity[labels.cpu()]
        picked = torch.multinomial(rarity, len(labels), replacement=True, generator=self.generator)
        picked = picked.to(images.device)
        real, labels = self._pixels(images[picked]), labels[picked]
        made = self._generator(self._noise(len(labels), images.device), labels)
        generator, discriminator = self._optimizers
        judged = self._discriminator(real, labels), self._discriminator(made.detach(), labels)
        discriminator.zero_grad()
        (F.softplus(-judged[0]) + F.softplus(judged[1])).mean().backward()  # type: ignore[no-untyped-call]
        discriminator.step()
        generator.zero_grad()
        F.softplus(-self._discriminator(made, labels)).mean().backward()  # type: ignore[no-untyped-call]
        generator.step()

    @torch.no_grad()
    def _generated(self, batch: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images beside a batch as the classifier sees them, and their classes; perhaps none."""
        total = float(self._fill.sum())
        wanted = batch * total / max(self._images, 1.0)
        count = math.floor(wanted)
        if total:
            count += int(torch.rand((), generator=self.generator) < wanted - count)
        if not count:
            return like[:0], torch.zeros(0, dtype=torch.int64, device=like.device)
        labels = torch.multinomial(self._fill, count, replacement=True, generator=self.generator)
        labels = labels.to(like.device)
        pixels = self._generator(self._noise(count, like.device), labels)
        made = torch.addcmul(self._shift, 255 * pixels, self._scale).to(like.dtype)
        # A GAN that has diverged must not take the classifier with it.
        if not bool(torch.isfinite(made).all()):
            return like[:0], labels[:0]
        return made, labels

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return a network's input as pixels / 255."""
        return (images - self._shift) / (255 * self._scale)

    def _noise(self, count: int, device: torch.device) -> torch.Tensor:
        shape = (count, self._generator.shape.noise)
        return torch.randn(shape, generator=self.generator).to(device)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the generator, and keep the discriminator; as they were where one is no longer finite."""
        made, kept = self._generator.state_dict(), self._discriminator.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in [*made.values(), *kept.values()]):
            made, kept = self._sent, self._kept
        return {_GENERATOR: to_storage(made)}, to_storage(kept)


class FedGAN(FedAvg):
    """FedAvg with a conditional GAN that fills each client's rare classes with generated images.

    Args:
        share: Images up to which a client's rare classes are filled, as a share of its largest class,
            0 <= share <= 1; 0 trains the GAN alone.
        warmup: Rounds before generated images are used, >= 0.
        gan_steps: Steps of the GAN for each mini-batch, >= 1.
        gan_lr: Learning rate of both networks, > 0; Adam.
        noise: Numbers that an image is generated of, >= 1.
        maps: Feature maps of the GAN's layers next to the image, a multiple of 4.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedGANClient

    def __init__(
        self,
        *,
        share: float = 0.5,
        warmup: int = 5,
        gan_steps: int = 1,
        gan_lr: float = 0.001,
        noise: int = 32,
        maps: int = 8,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, at_most=1, share=share)
        check_range(at_least=0, warmup=warmup)
        check_range(at_least=1, gan_steps=gan_steps, noise=noise, maps=maps)
        check_range(above=0, gan_lr=gan_lr)
        if maps % 4:
            raise ValueError(f"maps must be a multiple of 4, not {maps}")
        self.share, self.warmup, self.gan_steps, self.gan_lr = share, warmup, gan_steps, gan_lr
        self.noise, self.maps = noise, maps
        self.generator: State = {}
        """The mean generator; ``check`` makes the first one."""
        self._fixed: dict[str, float] = {}
        self._constants: dict[str, State] = {}

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Make the networks for the experiment's images.

        Raises:
            ConfigError: Images are too small, are mixed or read with other inputs.
        """
        channels, height, width = input_shape(config.transforms, image)
        if min(height, width) < 4:
            raise ConfigError(f"{_NEEDED_BY} generates images of 4 x 4 pixels or more; set transforms.size")
        if config.transforms.mixup:
            raise ConfigError(
                f"{_NEEDED_BY} mixes generated images in, not with mixup; set transforms.mixup = 0"
            )
        if config.model.inputs:
            raise ConfigError(f"{_NEEDED_BY} generates images alone; leave out [model.inputs]")
        shape = GanShape(
            classes=len(classes),
            channels=channels,
            height=height,
            width=width,
            noise=self.noise,
            maps=self.maps,
        )
        with seeding.torch_global(config.seed, "gan"):
            generator, discriminator = Generator(shape), Discriminator(shape)
        self.generator = to_storage(generator.state_dict())
        scale, shift = prepare(config.transforms, image[2]).constants()
        self._constants = {
            _DISCRIMINATOR: to_storage(discriminator.state_dict()),
            _SCALE: {"scale": scale, "shift": shift},
        }
        self._fixed = shape.numbers()

    def constant_tensors(self) -> Mapping[str, State]:
        """Send the discriminator that all begin with, and how pixels are normalised, once."""
        return self._constants

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send the generator and what both networks are built of."""
        return ClientConfig(
            numbers={
                "share": self.share,
                "warmup": float(self.warmup),
                "gan_steps": float(self.gan_steps),
                "gan_lr": self.gan_lr,
                **self._fixed,
            },
            tensors={_GENERATOR: self.generator},
        )

    def side_networks(self) -> Mapping[str, tuple[State, Mapping[str, float]]]:
        """Return the generator, for the run's folder."""
        return {_GENERATOR: (self.generator, self._fixed)}

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the model and the generator, by images.

        Raises:
            RunError: The update lacks a generator, or has one of another form.
        """
        sent = update.tensors.get(_GENERATOR, {})
        if not sent or (self.generator and _form(sent) != _form(self.generator)):
            raise RunError(
                f"client {update.client} sent no generator of the experiment's form; its training must use "
                "the client half of 'fedgan'"
            )
        own = WeightedTensors(state=dict(sent), weight=float(update.examples))
        return {**super().contribute(state, update), _GENERATOR: own}

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Keep the mean generator; return the mean model."""
        self.generator = dict(means[_GENERATOR])
        return super().finalize(state, means, num_updates)


def images_to_fill(counts: torch.Tensor, known: torch.Tensor | None, share: float) -> torch.Tensor:
    """Return how many images of each class are generated for an epoch, float64 [C].

    Args:
        counts: The client's images of each class [C].
        known: The federation's [C], or None: then classes that the client lacks are not filled.
        share: Of its largest class, up to which classes are filled.
    """
    missing = (share * counts.max() - counts).clamp(min=0)
    return torch.where((counts if known is None else known) > 0, missing, 0.0)


def _form(state: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
