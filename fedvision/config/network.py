"""``[partition]``, ``[model]`` and ``[loss]``: which images a client has, the network, what it minimises."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedvision.inputs import InputConfig
from fedvision.tables import at_least, require, within
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
    tail_clients: int = 0
    """Clients that have all images of the rare classes, the tail of the reports: these are exchanged for
    others, so that each client keeps its number of images; 0 leaves the split as it is."""

    def __post_init__(self) -> None:
        require(
            self.clients is None or self.clients >= 1,
            "partition.clients",
            f"must be >= 1, not {self.clients}",
        )
        at_least(1, self, "partition.", "imbalance")
        at_least(0, self, "partition.", "tail_clients")


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
    """Patterns of tensors that each client trains and keeps for itself, such as ``["head.*"]``;
    ``"batch-norm"`` are those of every batch norm."""
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
    prior: Literal["local", "global", "mixed"] = "local"
    """Whose class counts the loss sees: the client's own, the federation's sum, or a mixture of both."""
    local_share: float = 0.5
    """Share g of the client's own prior in ``mixed``: (1 - g) p_federation + g p_client; 0 is ``global``, 1
    is ``local`` (arXiv 2503.06916)."""

    def __post_init__(self) -> None:
        within(0, 1, self, "loss.", "local_share")

    @property
    def needs_federation(self) -> bool:
        """Whether the loss sees the federation's class counts, so that clients must report theirs."""
        return self.prior != "local"
