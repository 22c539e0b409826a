"""The client half of a federated algorithm: what it adds to the local loop.

Hooks, from the one that costs least to the one that sees most: ``correct_gradients`` changes gradients
between ``backward`` and the optimiser's step, so it needs no second graph and serves any optimiser; ``loss``
replaces the task's loss and may call the model; ``begin`` and ``finish`` exchange tensors with the server and
with the client's own memory. One object belongs to one client's training in one round.

A half may train in several passes over the client's images (``passes``), each with parameters of its own, and
may keep a second model, the client's personal one, beside the global one (``personal_model``).

``correct_gradients`` is a formula on tensors that is written once for a client alone and for K clients that
are trained together, whose tensors are stacked along a leading client dimension. A class that overrides
``loss``, ``survey``, ``after_backward`` or ``passes`` or that draws numbers is trained client by client on
every engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from fedvision.errors import ClientError, PluginError
from fedvision.inputs import Batch
from fedvision.types import LossFn, State, TrainRequest

Groups = Mapping[str, State]
"""Tensors by the name of what they are and that of their parameter."""
Numbers = Mapping[str, "float | torch.Tensor"]
"""Numbers of one client, or [K] of several."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A client's local steps over its images with one optimiser; most methods take one such pass a round."""

    stream: str = ""
    """Name of its random streams: passes of one name see the same batches, augmentation and dropout."""
    epochs: int = 0
    """How many; 0 takes as many epochs, or steps, as the experiment."""
    trained: frozenset[str] | None = None
    """Names of the parameters that are trained, as far as they are at all; None trains all."""
    counted: bool = True
    """Whether its losses are in the client's training loss."""

    def purpose(self, name: str) -> str:
        """Return the purpose of one of its random streams, as ``seeding`` takes it."""
        return f"{name}-{self.stream}" if self.stream else name


class ClientAlgorithm:
    """FedAvg's client half: the task's loss and its gradients, nothing kept; every hook can be overridden."""

    sends: tuple[str, ...] = ()
    """Names of the groups that ``finish`` returns, each with a tensor of the shape and type of every trained
    shared parameter: the server refuses a reply with others. A class that overrides ``finish`` and not this
    may send whatever is finite."""
    sees_images: bool = False
    """Whether ``loss`` shows the images to another network or augments them: then what frozen layers make of
    them never takes their place."""
    sends_counts: bool = False
    """Whether ``finish`` returns the client's class counts as they are, or what reveals them: across machines
    only owners who share them so take part."""
    sends_generator: bool = False
    """Whether ``finish`` returns a network that generates images like the client's: across machines only
    owners who allow it take part."""
    rehearsed: bool = False
    """Whether ``begin`` is tried before a run starts, as it may refuse the network; where ``loss`` is
    overridden it always is."""
    draws: bool = False
    """Whether ``survey`` or ``loss`` draws numbers: ``generator`` is then there after ``begin``."""
    generator: torch.Generator
    """The client's own random stream of the round, on the CPU, where the class ``draws``."""
    labels: torch.Tensor | None = None
    """Other labels of the client's images for this round, int64 [N] in the order of ``survey``, which may set
    it; None leaves them."""
    needs_loss: bool = False
    """Whether ``begin`` finds ``TrainRequest.own_loss``, for which a client looks at its images once more."""
    personal_model: bool = False
    """Whether what ``finish`` has the client remember makes its personal model, as ``personal_state`` returns
    it: it is measured beside the global one, and a lost answer does not take it back."""
    lr: float = 0.0
    """The learning rate of the client's steps in this round; it is set before ``begin``."""
    further: Mapping[str, nn.Parameter] = MappingProxyType({})
    """Parameters beside the network's that the optimiser moves and whose gradients ``after_backward`` makes;
    ``begin`` sets it."""
    parameters: Mapping[str, nn.Parameter] = MappingProxyType({})
    """The parameters that take part in ``correct_gradients``; ``begin`` sets it."""
    groups: Groups = MappingProxyType({})
    """What the formula reads and writes beside them, each tensor of its parameter's shape, device and type;
    ``begin`` sets it. Among clients that are trained together all have the same names here."""
    numbers: Mapping[str, float] = MappingProxyType({})
    """Numbers that it reads beside them; ``begin`` sets it."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Prepare for the local steps, before the first one; called twice, it prepares anew.

        Args:
            model: The network in training mode. Where the client is trained alone it holds the global model's
                values and the client's personal ones; among several clients its values are nobody's, and
                ``parameters`` has the client's.
            parameters: The trained parameters by name, holding the global model's values.
            request: Round, client, global state and what the server half sent.
            memory: What ``finish`` returned for this client before; empty at first. It may lack names.

        Raises:
            ClientError: The request lacks what the algorithm needs.
        """

    def survey(self, model: nn.Module, batches: Iterable[tuple[Batch, torch.Tensor]]) -> None:
        """Go once through the client's training images between ``begin`` and the first step; by default not.

        It runs without gradients and only where a class overrides it: one forward pass over the images.

        Args:
            model: The network in evaluation mode, with the values that training begins with.
            batches: Images float [B, channels, H, W], normalised and not augmented, with further inputs where
                the network reads such, and labels [B, ...], on the model's device, each image once.
        """

    def passes(self) -> Sequence[Pass]:
        """Return the passes of a round in their order, at least one; asked once ``begin`` is over."""
        return (Pass(),)

    def begin_pass(self, place: int) -> None:
        """Prepare for a pass; by default nothing.

        Args:
            place: Its place in ``passes``.
        """

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the loss of each example [B] of a batch, to be averaged; by default the task's.

        The forward pass runs in the experiment's precision, and gradients are taken of the mean.

        Args:
            model: The network that is trained, in training mode; to be called once.
            x: float [B, channels, H, W], normalised and augmented, with further inputs where the network
                reads such.
            labels: int64 [B]. Under mixup these are the labels of the images themselves; ``task_loss`` also
                counts those of the images that are blended in.
            task_loss: ``(logits [B, C], labels [B]) -> [B]``.
        """
        return task_loss(model(x), labels)

    def after_backward(self) -> None:
        """Change the gradients in place: after backward (and unscaling), before clipping and the step.

        A class that overrides this is never trained together with other clients.
        """
        self.correct_gradients(self.parameters, self.groups, self.numbers)

    @staticmethod
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        """Change gradients and groups in place, by operations on tensors that look at no value.

        The same operations serve one client, and K whose tensors and numbers have a dimension [K] before all
        others; ``along`` lays the numbers beside a tensor. A parameter without gradient is left alone.

        Args:
            parameters: Those that take part, with their gradients.
            groups: As ``begin`` set them.
            numbers: As ``begin`` set them.
        """

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Close the round, while parameters and groups hold what the last step left.

        Args:
            steps: Local steps taken, those of all passes.
            lr: The round's learning rate.

        Returns:
            Groups of tensors for ``ClientUpdate.tensors``, and what this client remembers: contiguous, on
            the CPU.
        """
        return {}, {}

    @staticmethod
    def personal_state(memory: State, state: State) -> State:
        """Return a client's personal model; only that of a half with a ``personal_model`` is called.

        Args:
            memory: What ``finish`` returned for this client last, not empty.
            state: The global model that is measured now.

        Returns:
            Tensors by the names of ``state``.
        """
        return state


def finished(algorithm: ClientAlgorithm, steps: int, lr: float) -> tuple[dict[str, State], State]:
    """Close a client half's round; arguments and result as of ``ClientAlgorithm.finish``.

    Raises:
        PluginError: It returned something else.
    """
    found = algorithm.finish(steps, lr)
    if isinstance(found, tuple) and len(found) == 2:
        groups, memory = found
        if isinstance(groups, Mapping) and all(map(_are_tensors, (*groups.values(), memory))):
            return found
    raise PluginError(
        f"finish of the client half {type(algorithm).__name__} must return a pair: groups of tensors by "
        "name, and tensors by name that the client remembers"
    )


def _are_tensors(found: object) -> bool:
    return isinstance(found, Mapping) and all(isinstance(one, torch.Tensor) for one in found.values())


def numbers_sent(request: TrainRequest, method: str, *names: str) -> dict[str, float]:
    """Return the numbers that a strategy's ``configure`` sent.

    Args:
        request: The request.
        method: What they are for, in words.
        names: Those that must be there.

    Raises:
        ClientError: One is missing.
    """
    sent = request.client_config.numbers
    for name in names:
        if name not in sent:
            why = f"{method} got no number {name!r}; the strategy's configure must send it"
            raise ClientError(request.client, "training", why)
    return {name: sent[name] for name in names}


def pulls(
    weights: list[torch.Tensor], anchors: list[torch.Tensor], strength: float | torch.Tensor
) -> list[torch.Tensor]:
    """Return ``strength (w - anchor)`` of each parameter; of K clients together the strength is [K]."""
    found = list(torch._foreach_sub(weights, anchors))
    if isinstance(strength, torch.Tensor):
        torch._foreach_mul_(found, [along(strength, pull) for pull in found])
    else:
        torch._foreach_mul_(found, strength)
    return found


def along(numbers: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return K clients' numbers [K] in a shape that lies beside a tensor [K, ...]."""
    return numbers.view(-1, *[1] * (tensor.dim() - 1))


def unstackable_reason(kind: type[ClientAlgorithm]) -> str | None:
    """Return in one line why clients of an algorithm are not trained together; None where they can be."""
    if kind.loss is not ClientAlgorithm.loss:
        return f"the loss of {kind.__name__} calls the model, which several clients do not share"
    if kind.after_backward is not ClientAlgorithm.after_backward:
        return f"{kind.__name__} overrides after_backward, which has no form for several clients"
    if kind.survey is not ClientAlgorithm.survey:
        return f"{kind.__name__} goes through a client's images, for which it needs the model alone"
    if kind.draws:
        return f"{kind.__name__} draws numbers, and each client has a stream of its own"
    if kind.passes is not ClientAlgorithm.passes:
        return f"{kind.__name__} trains in passes of its own, which have no form for several clients"
    return None


def groups_sent(kind: type[ClientAlgorithm]) -> tuple[str, ...] | None:
    """Return the names of the groups that clients of an algorithm send; None where its class does not say."""
    places = [
        next(place for place, one in enumerate(kind.__mro__) if name in vars(one))
        for name in ("sends", "finish")
    ]
    return kind.sends if places[0] <= places[1] else None


def shared_parameters(
    parameters: Mapping[str, nn.Parameter], request: TrainRequest
) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained and shared with the server.

    What is frozen has no gradient, what stays on the client has no counterpart in the global model, and
    buffers are measured, not learned.
    """
    return {name: p for name, p in parameters.items() if p.requires_grad and name in request.state}


def copy_like(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return a copy of a tensor with the parameter's device, dtype and memory layout.

    Raises:
        ValueError: It has another shape.
    """
    if tensor.shape != parameter.shape:
        raise ValueError(f"a tensor for a parameter {list(parameter.shape)} is {list(tensor.shape)}")
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def to_storage(state: State) -> State:
    """Return tensors as a message and a file hold them: contiguous, on the CPU."""
    return {name: tensor.contiguous().cpu() for name, tensor in state.items()}


def gradient_columns(parameters: Mapping[str, nn.Parameter], *groups: State) -> list[list[torch.Tensor]]:
    """Return, of the parameters that have a gradient: these, the gradients, and each group's tensors."""
    rows = [
        [p, p.grad, *(group[name] for group in groups)]
        for name, p in parameters.items()
        if p.grad is not None
    ]
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(2 + len(groups))]
