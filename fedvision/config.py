"""The experiment: frozen dataclasses <-> one TOML file; every error names file and key.

A table that names a plug-in keeps its own keys; every other key in it is a keyword argument of the plug-in.
The canonical TOML (all keys, defaults written out, fixed order) is what travels to clients and stands in
a run folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedvision.inputs import InputConfig
from fedvision.tables import Settings, at_least, require, within
from fedvision.types import PluginSpec


@dataclass(frozen=True, kw_only=True)
class PartitionConfig(PluginSpec):
    """How the training images are spread over clients."""

    use: str = "iid"
    """``iid``, ``dirichlet``, ``shards``, ``quantity``, ``column``, ``population`` or ``"module:attr"``."""
    clients: int | None = None
    """Number of clients; may be left out only where the data settles it (``column``)."""
    imbalance: float = 1.0
    """Global long tail, before the split: images of the most frequent class / the rarest one; 1 keeps all."""

    def __post_init__(self) -> None:
        require(
            self.clients is None or self.clients >= 1,
            "partition.clients",
            f"must be >= 1, not {self.clients}",
        )
        at_least(1, self, "partition.", "imbalance")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters with ``model.train = "lora"``: layers learn a change of low rank (arXiv 2106.09685)."""

    rank: int = 8
    """r: a layer of n inputs and m outputs learns r (n + m) numbers; one that has no more itself is left."""
    alpha: float = 16.0
    """The change counts alpha / rank times."""
    targets: tuple[str, ...] = ("*",)
    """Patterns of the linear layers, convolutions and attentions that learn, such as
    ``["*.attention.*"]``."""
    exact: bool = False
    """Only B is trained, A stays as the seed draws it: then the mean of the clients' adapters is the adapter
    of the mean change, and half as much is sent (FFA-LoRA, arXiv 2403.12313)."""

    def __post_init__(self) -> None:
        at_least(1, self, "model.lora.", "rank")
        require(0 < self.alpha < math.inf, "model.lora.alpha", f"must be > 0 and finite, not {self.alpha}")
        require(len(self.targets) > 0, "model.lora.targets", "must hold a pattern; leave the key out for all")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(PluginSpec):
    """The network that every client trains."""

    use: str = "cnn"
    """``cnn``, ``resnet8``, ``vit``, ..., ``torchvision/resnet50``, ``timm/vit_base_patch16_224``,
    ``efficientnet-lite0`` or ``"module:attr"``."""
    shared: Literal["all", "no-batch-norm-statistics", "trainable"] = "all"
    """Which floating-point tensors leave a client; integer buffers never do."""
    weights: str = ""
    """Begin with the tensors of this file (safetensors, or a state dict of ``torch.save``), of this run
    folder's final model, as seen from where the run is started, or with the library's own, such as
    ``IMAGENET1K_V2``; empty begins with random ones. A head for another number of classes begins anew. Across
    machines the server alone needs the file, but where a part of the network is not sent."""
    train: str = "all"
    """What is trained: ``all`` tensors, the ``head``, the head and the ``last:N`` units (blocks) of the
    backbone, or the head and an adapter beside each layer of the backbone (``lora``); what is not trained is
    frozen and not sent."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters."""
    mirrored: bool = False
    """Features are the mean of those of an image and of its mirror image, which doubles their cost."""
    feature_layers: tuple[str, ...] = ()
    """Layers of the backbone whose outputs, averaged over places, are further features behind its own, such
    as ``["features.4", "features.6"]``."""
    expand: PluginSpec = field(default_factory=lambda: PluginSpec(use=""))
    """What makes more features of a frozen backbone's for the head: ``random-relu``, ``bucket-groups``, or a
    table ``{ use = "random-relu", features = 4000 }``; empty leaves them."""
    head: PluginSpec = field(default_factory=lambda: PluginSpec(use=""))
    """Another head than the network's own: ``{ use = "cosine", embeddings = "names.safetensors" }``."""
    personal: tuple[str, ...] = ()
    """Patterns of tensors that each client trains and keeps for itself, such as ``["head.*"]``."""
    frozen: tuple[str, ...] = ()
    """Patterns of further tensors that nobody trains and nobody sends, such as ``["backbone.*"]``."""
    inputs: Mapping[str, InputConfig] = field(default_factory=dict)
    """What the network reads beside the pixels, a table for each (see below)."""

    def __post_init__(self) -> None:
        for name, given in self.inputs.items():
            given.check(f"model.inputs.{name}")
        require(
            self.train in ("all", "head", "lora")
            or re.fullmatch(r"last:[1-9][0-9]*", self.train) is not None,
            "model.train",
            f"must be 'all', 'head', 'last:N' with N >= 1, or 'lora', not {self.train!r}",
        )
        for key, spec in {"expand": self.expand, "head": self.head}.items():
            require(bool(spec.use or not spec.args), f"model.{key}", "needs a key use")


@dataclass(frozen=True, kw_only=True)
class LossConfig(PluginSpec):
    """The training loss, built from class counts."""

    use: str = "cross-entropy"
    """``cross-entropy``, ``weighted``, ``focal``, ``ldam``, ``logit-adjusted``, ... or ``"module:attr"``."""
    prior: Literal["local", "global"] = "local"
    """Whose class counts the loss sees: the client's own, or the federation's sum."""


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Normalisation and size of every image and augmentation of training batches."""

    mean: tuple[float, ...] = ()
    """Mean per channel of pixels scaled to 0..1; one number serves all channels, three show gray images as
    colour. Empty takes what ``model.weights`` were trained with, else 0.5."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel of pixels scaled to 0..1, as ``mean``; empty takes what
    ``model.weights`` were trained with, else 0.25."""
    size: int = 0
    """Pixels a side to which images are resized on the device, after normalisation and before augmentation;
    others than square ones are stretched. 0 leaves them as they are."""
    interpolation: Literal["", "bilinear", "bicubic", "nearest"] = ""
    """How ``size`` finds values between pixels, the first two with antialiasing; empty takes what
    ``model.weights`` were trained with, else ``bilinear``."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    crop: int = 0
    """Pad by this many pixels of the colour ``mean``, then crop at random to the old size."""
    rotation: float = 0.0
    """Rotate by a random angle of at most this many degrees; corners get the colour ``mean``."""
    cutout: int = 0
    """Give a random square of this many pixels a side the colour ``mean``."""
    mixup: float = 0.0
    """Beta parameter of mixup; 0 switches it off."""
    views: int = 0
    """Behind frozen layers: augmented views of each image whose features are computed once; training
    draws one of them for each image of a step. At 0 augmentation is drawn anew, and nothing is kept."""

    def __post_init__(self) -> None:
        # Statistics of pixels from 0 to 255, as some tables print them, are above 1 but for black images.
        bounds = {"mean": "from 0 to 1", "std": "above 0, at most 1"}
        for name, values in (("mean", self.mean), ("std", self.std)):
            low = all(value > 0 if name == "std" else value >= 0 for value in values)
            require(
                low and all(value <= 1 for value in values),
                f"transforms.{name}",
                f"must hold numbers {bounds[name]}, one per channel or one for all, not {list(values)}; "
                "pixels are scaled to 0..1 first, so divide by 255 what was measured on pixels to 255",
            )
        at_least(0, self, "transforms.", "size", "crop", "cutout", "views")
        within(0, 180, self, "transforms.", "rotation")
        within(0, 1000, self, "transforms.", "mixup")
        require(not (self.views and self.mixup), "transforms.mixup", "must be 0 where there are views")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Local training on a client."""

    optimizer: PluginSpec = field(default_factory=lambda: PluginSpec(use="sgd"))
    """Any optimiser of ``torch.optim`` by name, or a table ``{ use = "adamw", betas = [0.9, 0.99] }``."""
    lr: float = 0.05
    """Learning rate of round 1."""
    schedule: PluginSpec = field(default_factory=lambda: PluginSpec(use="constant"))
    """Learning rate over rounds: ``constant``, ``cosine``, ``step``, ``exponential``, or a table."""
    epochs: int = 1
    """Passes over the client's images a round."""
    steps: int = 0
    """Optimiser steps a round instead of epochs; 0 counts epochs."""
    batch_size: int = 32
    """Images a step."""
    accumulate: int = 1
    """Parts of about equal size in which a step's images go through the network one after the other, to save
    memory; their gradients add up to those of all at once. Batch norm measures each part by itself, and parts
    have two images or more where it needs them; dropout draws in another order."""
    checkpoint_activations: bool = False
    """Keep of each of a backbone's blocks its input alone and compute the rest anew in the backward pass: the
    same bits with less memory and a second forward pass (arXiv 1604.06174)."""
    compile: bool = False
    """Let ``torch.compile`` make kernels for the network: pays off in long runs of large networks. Results
    differ by rounding."""
    momentum: float = 0.0
    """Momentum, for optimisers that have it."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip_norm: float = 0.0
    """Largest norm of a step's gradient; 0 does not clip."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu) or a torch device."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass; float16 scales the loss on cuda. On a CPU that computes in it, bfloat16
    took 0.75 of a step's time for the CNN."""
    channels_last: bool = True
    """Lay images out as [B, H, W, channels] in memory: 0.74 of a step's time for the CNN on a CPU."""
    cache_features: bool = True
    """Where layers are frozen before the first trained one (``model.train = "head"`` or ``"last:N"``) and no
    augmentation is drawn, pass each image through them once and train the rest on what they make of it: in
    the folder of decoded images, 4 bytes for each number, 20 GB at most."""

    def __post_init__(self) -> None:
        at_least(1, self, "training.", "epochs", "batch_size", "accumulate")
        require(0 < self.lr < math.inf, "training.lr", f"must be > 0, not {self.lr}")
        at_least(0, self, "training.", "steps", "weight_decay", "clip_norm")
        require(
            not (self.compile and self.checkpoint_activations),
            "training.compile",
            "cannot go with training.checkpoint_activations; set one of them to false",
        )
        require(0 <= self.momentum < 1, "training.momentum", f"must be >= 0 and < 1, not {self.momentum}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and on what the global model is measured."""

    every: int = 1
    """Rounds between measurements; the last round is always measured."""
    holdout: float = 0.0
    """Share of each client's images kept from training for a measurement on the client itself."""
    fraction: float = 1.0
    """Share of the clients that measure on what they kept, drawn anew each time; not for stock strategies."""
    calibrate: bool = False
    """Give the final model the temperature that makes what clients held out most likely, from their sums."""
    with_training: bool = False
    """Clients that train measure first, the model that they receive, and report it with their update: a
    round has no messages for measuring, but the last one, whose model goes out once more to all clients."""
    batch_size: int = 100
    """Images a forward pass."""
    metrics: tuple[str, ...] = ()
    """Further numbers from what is counted: ``geometric-mean``, ``kappa`` or ``"module:attr"``."""
    statistics: tuple[str, ...] = ()
    """Sums over the clients' training images in the run's record: ``class-counts`` or ``"module:attr"``."""

    def __post_init__(self) -> None:
        at_least(1, self, "evaluation.", "every", "batch_size")
        require(0 < self.fraction <= 1, "evaluation.fraction", f"must be > 0 and <= 1, not {self.fraction}")
        require(0 <= self.holdout < 1, "evaluation.holdout", f"must be >= 0 and < 1, not {self.holdout}")
        if self.calibrate:
            require(self.holdout > 0, "evaluation.calibrate", "needs evaluation.holdout > 0 to judge by")
        if self.with_training:
            key, share = "evaluation.with_training", self.fraction
            require(self.holdout > 0, key, "needs evaluation.holdout > 0: clients keep nothing to measure on")
            require(share == 1, key, f"needs evaluation.fraction = 1, not {share}: who trains measures")


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """What a round waits for, and what becomes of answers that are late or bad.

    Buffer and weight by age: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation",
    arXiv 2106.06639; Xie, Koyejo, Gupta 2019, "Asynchronous Federated Optimization", arXiv 1903.03934.
    """

    min_clients: int = 1
    """Quorum: a round with fewer usable answers leaves the model as it was, and counts as failed."""
    deadline: float = 0.0
    """Seconds that a round's training may take, and then its measurement on clients; 0 waits for all."""
    wait_after_quorum: float = 0.0
    """Seconds to wait for the rest once the quorum is there; 0 waits until the deadline."""
    late: Literal["discard", "next-round"] = "discard"
    """An answer that comes after its round is discarded, or used in the round in which it comes."""
    staleness: float = 0.5
    """a: a change of the model that is s rounds old counts (1 + s)^-a; 0 counts all in full."""
    max_staleness: int = 10
    """Rounds after which an answer is discarded in any case."""
    buffer: int = 0
    """K: a round ends with K usable answers, new or late; late ones are used; 0 waits for all."""
    concurrency: int = 0
    """M: clients at work at a time where there is a buffer; 0 takes all that the strategy selects."""
    norm_limit: float = 1000.0
    """A change of the model is refused if its norm is so many times the usual one; 0 takes all of them."""
    set_aside_after: int = 3
    """Refused replies after which a client is not selected again in this run; 0: no limit."""
    failed_rounds: int = 3
    """Failed rounds in a row that end the run."""

    def __post_init__(self) -> None:
        at_least(1, self, "round.", "min_clients", "max_staleness", "failed_rounds")
        at_least(0, self, "round.", "deadline", "wait_after_quorum", "staleness", "norm_limit")
        at_least(0, self, "round.", "buffer", "concurrency", "set_aside_after")
        require(
            not self.buffer or self.min_clients <= self.buffer,
            "round.min_clients",
            f"must be <= round.buffer, which is {self.buffer}, not {self.min_clients}",
        )
        require(
            not self.concurrency or 0 < self.buffer <= self.concurrency,
            "round.concurrency",
            f"is {self.concurrency} and needs a round.buffer of 1 to as many, not {self.buffer}",
        )

    @property
    def uses_late(self) -> bool:
        """Whether answers that come after their round are used."""
        return self.late == "next-round" or self.buffer > 0


@dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """Simulated time: how long clients take to train. Machines far apart have a clock of their own."""

    seconds_per_image: float = 0.0
    """Of a client of middling speed, for each image of each epoch; at 0 all answer at once."""
    spread: float = 0.0
    """Deviation of the logarithm of the clients' speeds: at 1 one client in six is 2.7 times slower."""
    jitter: float = 0.0
    """The same for one client from round to round."""

    def __post_init__(self) -> None:
        at_least(0, self, "clock.", "seconds_per_image")
        within(0, 10, self, "clock.", "spread", "jitter")


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Where the noise comes from that a strategy adds for privacy."""

    noise: Literal["secret", "reproducible"] = "secret"
    """What a strategy draws from global generators while it combines updates: from the operating system, so
    that nobody can take it off again and no two runs are alike; or from ``seed``, which every client knows:
    the same bits in every run, and NO privacy."""


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
