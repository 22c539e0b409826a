"""Types that packages share: plug-in specifications, requests, updates.

Shape letters used throughout the project: B batch, C classes, H height, W width, K clients, N examples,
D features.
Image tensors are [B, channels, H, W]; image arrays at rest are uint8 [N, H, W, channels].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

State: TypeAlias = "dict[str, torch.Tensor]"
"""Named tensors: a model, a control variate, a server optimiser's moment."""
LossFn: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
"""``loss(logits [B, C], labels [B]) -> [B]``: per example, not reduced."""
HeadForm: TypeAlias = 'Literal["sigmoid", "softmax"]'
"""What a detector says of a place: a sigmoid for each class, or a softmax over classes and background."""
Partitioner: TypeAlias = (
    "Callable[[NDArray[np.int64], int, np.random.Generator], Sequence[NDArray[np.int64]] | LazyClients]"
)
"""``partition(labels [N], clients, rng) -> one index array per client``: a list, disjoint and complete, or a
lazy sequence, of which neither is promised."""
MetricFn: TypeAlias = "Callable[[NDArray[np.int64]], float]"
"""``metric(confusion [C, C], rows true, columns predicted) -> number``."""


class LazyClients(Protocol):
    """A partitioner's result that makes each client's images on access.

    Client k must be a function of k alone, in any order of access, in any process. Clients may share
    images; within one client an image is there once. An attribute ``expected_counts``, numbers [C] or
    fewer, states how many images of each label 0, 1, ... all clients have together, and
    ``expected_distinct`` likewise how many different ones; without them both are estimated from some of the
    clients. A method ``size(k)`` returns how many images client k has without making them: a simulation asks
    for it of every client of a cohort, to begin with the largest.

    With ``evaluation.holdout``, no client trains on the images that are kept for measurement: bool [N],
    drawn once for all clients. A client's images are divided by it, and a client of which none is left is
    refused. A method ``with_holdout(held, share)`` that returns ``LazyHalves`` draws both halves itself;
    the attributes above are then its, of the images trained on.
    """

    def __len__(self) -> int:
        """Return the number of clients."""

    def __getitem__(self, client: int, /) -> NDArray[np.int64]:
        """Return the image numbers [n] of a client, from 0, in any order."""


class LazyHalves(Protocol):
    """Each client's images for training and for measurement, made on access."""

    def __getitem__(self, client: int, /) -> Sequence[NDArray[np.int64]]:
        """Return the numbers of the images that a client trains on, at least one, and measures on."""


Rejection = Literal["refused", "failed", "declined", "unused"]
"""Why a reply is not used: of what is in it; it is an error, or did not come; its owner's policy does not
allow the task; too few others came with it."""


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """A plug-in by name with its keyword arguments: a TOML table with ``use`` and the rest."""

    use: str
    """Built-in name, entry point, or ``"module:attr"``."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the plug-in's factory."""


@dataclass(frozen=True, kw_only=True)
class Query(PluginSpec):
    """A statistic that a strategy requests of clients, with what they need for it beside the model."""

    tensors: State = field(default_factory=dict, compare=False)
    """Named tensors that travel with the request: the statistic's parameter ``tensors``."""
    bits: int = 64
    """Bits that hold the totals in units (``aggregation.fixed_point``) and their signs: 8, 16, ... or 64.
    Fewer make messages smaller; a client whose own numbers do not fit refuses."""

    def __post_init__(self) -> None:
        if self.bits not in range(8, 65, 8):
            raise ValueError(f"bits must be 8, 16, ... or 64, not {self.bits}")


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """What the server half of an algorithm sends one client beside the model."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    """Scalars for the client half, such as ``{"mu": 0.01}``."""
    tensors: Mapping[str, State] = field(default_factory=dict)
    """Named groups of tensors for the client half, such as ``{"control": ...}``."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Named texts for the client half, such as how a network is built."""
    models: tuple[str, ...] = ()
    """Names of the networks that the client half builds beside the experiment's own, as ``[model] use``: an
    owner's machine builds those alone that he allows."""
    constants: Mapping[str, State] = field(default_factory=dict)
    """Named groups that stay the same in the whole run: a client's machine keeps them, so they travel to it
    once. ``RoundStrategy.constant_tensors`` gives them; ``configure`` leaves them empty."""
    lr_factor: float = 1.0
    """Factor on the client's learning rate of this round, > 0."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One client's work in one round, as decoded by the client."""

    round: int
    """Round number, from 1."""
    client: int
    """Partition number of the client, from 0."""
    state: State
    """The travelling tensors of the global model."""
    client_config: ClientConfig = field(default_factory=ClientConfig)
    """What the strategy sent beside the model."""
    algorithm: str | None = None
    """Registered name of the algorithm's client half; None adds nothing to the task's loss."""
    counts: tuple[int, ...] | None = None
    """Class counts [C] over the federation where they are shared, else None."""
    own_counts: tuple[int, ...] | None = None
    """Class counts [C] of the client's own training images, for its client half: its machine adds them, and
    the server's message does not have them."""
    own_loss: float | None = None
    """Mean training loss of ``state`` over the client's own training images, in evaluation mode and without
    augmentation, for a client half that needs it: its machine adds it."""
    silent_since: int | None = None
    """First round of this client since which none of its answers was used; None where the last one was."""
    measure: bool = False
    """Whether ``state`` is to be measured before training, on the images that the client keeps for it."""


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """One client's answer to one task."""

    client: int
    """Partition number of the client."""
    position: int
    """Place of the client in the round's cohort, from 0: who must see every update gets them by it."""
    examples: int
    """Number of training images behind the update, > 0."""
    state: State
    """The shared tensors after local training; where updates are transformed, the received ones plus the
    decoded change."""
    loss: float = 0.0
    """Mean training loss over the client's examples."""
    tensors: Mapping[str, State] = field(default_factory=dict)
    """Groups of tensors that the client half returned, such as ``{"control": ...}``."""

    def delta(self, received: State) -> State:
        """Return the change of each tensor, trained minus received, in float32 or wider.

        It is computed when it is asked for: most methods need models alone.

        Args:
            received: The round's model, on the update's device.
        """
        return {name: _wide(tensor) - received[name] for name, tensor in self.state.items()}


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype.itemsize > 4 else tensor.float()
