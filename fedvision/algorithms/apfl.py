"""APFL: each client's personal model is a mixture of a model of its own and the global one.

Deng, Kamani, Mahdavi 2020, "Adaptive Personalized Federated Learning", arXiv 2003.13461. The global model is
FedAvg's: in each step client k moves its copy w as FedAvg does. On the same batch it moves its own model v by
the gradient of the loss at the mixture, both taken before the step::

    m = alpha v + (1 - alpha) w        g = grad loss(m)
    w <- w - lr grad loss(w)           v <- v - lr alpha g
    alpha <- clip(alpha - lr <v - w, g>, 0, 1)      in the first step of a round, where ``adaptive``

g is taken at m's parameters; alpha g is the gradient in v by the chain rule, and <v - w, g> that in alpha.
With alpha = 0 the personal model is the global one, with alpha = 1 the client's alone.

The authors' code mixes the logits of both models in place of their parameters, adds 0.02 alpha to alpha's
gradient, and takes alpha g_v + (1 - alpha) g_w for g; here it is the gradient of the mixture, and nothing is
added. v moves by the experiment's optimiser and schedule (its weight decay is on v), alpha by plain steps of
the same learning rate. v begins as the global model of the first round in which the client works. Batch norm
measures the mixture's batches apart from the global model's. The global model is weighted by images.

v and alpha never leave the client; its personal model, measured on the images that it holds out, is alpha v +
(1 - alpha) x with the newest global model x. Until a client has worked once it is x. A lost answer takes
neither back.

Costs: each step takes a second forward and backward pass; a client holds the network's tensors four times and
keeps one model on its disk. Traffic is FedAvg's. Training in float16 would need a scale for the second loss
and is refused, as is ``model.personal``, which has nothing to add.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.devices import widest_float
from fedvision.errors import ConfigError
from fedvision.inputs import Batch
from fedvision.models.state import get_state, load_state
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import (
    ClientAlgorithm,
    copy_like,
    numbers_sent,
    shared_parameters,
    to_storage,
)
from fedvision.types import ClientConfig, LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_ALPHA, _OWN, _MEASURED = "alpha", "own.", "measured."
"""In a client's memory: alpha; before the names of v's parameters, and of what the mixture measures."""


class APFLClient(ClientAlgorithm):
    """Trains the global model as FedAvg does, and the client's own part of the mixture beside it."""

    personal_model = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Recall v and alpha, and make a network for the mixture.

        Raises:
            ClientError: The request has no number ``alpha`` or ``adaptive``.
        """
        numbers = numbers_sent(request, "APFL", "alpha", "adaptive")
        self._alpha = float(memory[_ALPHA]) if _ALPHA in memory else numbers["alpha"]
        self._adapts = bool(numbers["adaptive"])
        self._global, self._memory = shared_parameters(parameters, request), memory
        self._mixture = copy.deepcopy(model)
        self._measured = [name for name in request.state if name not in self._global]
        kept = {name: memory.get(_MEASURED + name) for name in self._measured}
        load_state(self._mixture, {name: tensor for name, tensor in kept.items() if tensor is not None})
        mixed = dict(self._mixture.named_parameters())
        self._mixed = {name: mixed[name] for name in self._global}
        self.further = {
            name: nn.Parameter(copy_like(memory.get(_OWN + name, request.state[name]), p))
            for name, p in self._global.items()
        }
        self._mixture.zero_grad(set_to_none=True)
        self._images = 0

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the task's loss of the global model [B]; that of the mixture is differentiated here."""
        losses = task_loss(model(x), labels)
        if not self._images:
            self._mix()
        # The global model's dropout goes on as if this pass had not been.
        device = losses.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
            own = task_loss(self._mixture(x), labels)
        own.sum().backward()  # type: ignore[no-untyped-call]
        self._images += len(own)
        return losses

    @torch.no_grad()
    def _mix(self) -> None:
        """Set the mixture to alpha v + (1 - alpha) w."""
        for name, mixed in self._mixed.items():
            torch.lerp(self._global[name], self.further[name], self._alpha, out=mixed.data)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Give v its gradient, and move alpha in the round's first step."""
        slope, alpha = 0.0, self._alpha
        for name, mixed in self._mixed.items():
            if mixed.grad is None:
                continue
            gradient = mixed.grad.div_(self._images)
            if self._adapts:
                apart = (self.further[name] - self._global[name]).to(widest_float(gradient.device))
                slope += float((apart * gradient).sum())
            self.further[name].grad = gradient * alpha
        self._mixture.zero_grad(set_to_none=True)
        self._images = 0
        if self._adapts:
            self._alpha = min(1.0, max(0.0, alpha - self.lr * slope))
            self._adapts = False

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return v, alpha and what the mixture measured; what was kept before where a number is lost."""
        state = {_ALPHA: torch.tensor(self._alpha, dtype=torch.float64)}
        state |= {_OWN + name: p.detach().clone() for name, p in self.further.items()}
        state |= {_MEASURED + name: t for name, t in get_state(self._mixture, self._measured).items()}
        sound = all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
        return {}, to_storage(state) if sound else self._memory

    @staticmethod
    def personal_state(memory: State, state: State) -> State:
        """Return alpha v + (1 - alpha) x; what is measured is the mixture's own."""
        alpha, found = float(memory[_ALPHA]), dict(state)
        for name, tensor in state.items():
            if (own := memory.get(_OWN + name)) is not None:
                found[name] = torch.lerp(tensor, own.to(tensor), alpha)
            elif (measured := memory.get(_MEASURED + name)) is not None:
                found[name] = measured
        return found


class APFL(FedAvg):
    """FedAvg beside which each client keeps a model of its own, mixed with the global one.

    Args:
        alpha: Share of the client's own model at first, 0 to 1.
        adaptive: Whether each client moves its share in every round.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = APFLClient

    def __init__(
        self, *, alpha: float = 0.5, adaptive: bool = True, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, at_most=1, alpha=alpha)
        self.alpha, self.adaptive = alpha, adaptive

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Look at the precision.

        Raises:
            ConfigError: It is float16.
        """
        if config.training.precision == "float16":
            raise ConfigError(
                "[strategy] use = 'apfl' takes a second backward pass, which float16 would need to scale; "
                "set training.precision = 'bfloat16'"
            )

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send alpha and whether it moves."""
        return ClientConfig(numbers={"alpha": self.alpha, "adaptive": float(self.adaptive)})
