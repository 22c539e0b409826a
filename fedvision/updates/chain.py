"""The transforms of an experiment's updates, in order on the client and in reverse on the server.

The chain works on the change of the model's parameters, trained minus received, in float32 or wider. Buffers,
such as the running statistics of batch normalisation, are measured and not learned: they travel as they are
after training, beside what the chain makes. Without transforms no change is computed: models travel as they
are, and nothing costs time, memory or a bit.

What a server decodes is the model that it sent plus the decoded change, in the types in which models travel:
sums, medians, norm bounds and late answers see what they see without transforms.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision import registry
from fedvision.errors import PluginError
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import floating
from fedvision.types import State
from fedvision.updates.base import UpdateTransform
from fedvision.updates.schema import TensorSpec, UpdateSchema

if TYPE_CHECKING:
    import numpy as np

    from fedvision.config import ExperimentConfig

_SEPARATOR = "."


class UpdateChain:
    """The transforms for the updates of one model; false where there is none.

    Args:
        received: The tensors that a client is sent, and trains.
        transforms: In the order of the client.
        learned: Names of the parameters among ``received``; the others travel as they are.

    Raises:
        ValueError: A transform cannot encode what the one before it makes.
    """

    def __init__(
        self,
        received: UpdateSchema,
        transforms: Sequence[UpdateTransform] = (),
        learned: Collection[str] = (),
    ) -> None:
        self.received = received
        """The model as it is sent to clients."""
        self.sent = received
        """The update as clients send it."""
        self.bytes_saved = 0
        """Bytes by which an update is smaller than the model; negative where it is larger."""
        self._transforms = tuple(transforms)
        if not self._transforms:
            return
        changes = (_widened(spec) for spec in received.tensors if spec.name in learned)
        self._schemas = [UpdateSchema(tuple(changes))]
        self._whole = tuple(spec for spec in received.tensors if spec.name not in learned)
        for transform in self._transforms:
            try:
                self._schemas.append(transform.schema(self._schemas[-1]))
            except ValueError as error:
                raise ValueError(f"{type(transform).__name__}: {error}") from error
        self.sent = UpdateSchema((*self._schemas[-1].tensors, *self._whole))
        self.bytes_saved = received.size - self.sent.size

    def __bool__(self) -> bool:
        """Say whether there are transforms."""
        return bool(self._transforms)

    @property
    def keeps_residual(self) -> bool:
        """Whether a client keeps something of an update for its next one."""
        return any(transform.keeps_residual for transform in self._transforms)

    def encode(
        self, trained: State, received: State, residual: State, rng: np.random.Generator
    ) -> tuple[State, State]:
        """Return what travels of a trained model, and what the client keeps.

        Args:
            trained: The shared tensors after training.
            received: The same before, as they were sent.
            residual: What the client kept of the last update that the server used; empty first.
            rng: A stream of this client and round.

        Returns:
            Tensors as ``sent`` says, and the residual by ``"place.name"``.

        Raises:
            ValueError: A transform refuses the values, or makes another thing than its schema.
        """
        tensors: State = {}
        for spec in self._schemas[0].tensors:
            kind = getattr(torch, spec.dtype)
            tensors[spec.name] = trained[spec.name].to(kind) - received[spec.name].to(kind)
        residuals: State = {}
        for place, transform in enumerate(self._transforms):
            prefix = f"{place}{_SEPARATOR}"
            own = {n.removeprefix(prefix): t for n, t in residual.items() if n.startswith(prefix)}
            tensors, left = transform.encode(tensors, own, rng)
            _check(transform, "encode", self._schemas[place + 1], tensors)
            if left and not transform.keeps_residual:
                name = type(transform).__name__
                raise ValueError(f"{name}.encode returned a residual and {name}.keeps_residual is false")
            residuals |= {f"{prefix}{name}": tensor for name, tensor in left.items()}
        return tensors | {spec.name: trained[spec.name] for spec in self._whole}, residuals

    def decode(self, tensors: State, received: State) -> State:
        """Return the trained model that an update stands for, in the types in which models travel.

        Args:
            tensors: As ``sent`` says.
            received: The model that the client was sent.

        Raises:
            ValueError: The values cannot be those of an update.
        """
        change = {spec.name: tensors[spec.name] for spec in self._schemas[-1].tensors}
        for place in reversed(range(len(self._transforms))):
            transform = self._transforms[place]
            change = transform.decode(change, self._schemas[place])
            _check(transform, "decode", self._schemas[place], change)
        state: State = {}
        for spec in self.received.tensors:
            if spec.name in change:
                moved = received[spec.name].to(change[spec.name].dtype) + change[spec.name]
                state[spec.name] = moved.to(getattr(torch, spec.dtype))
            else:
                state[spec.name] = tensors[spec.name]
        return state


def build(config: ExperimentConfig, model: nn.Module) -> UpdateChain:
    """Return the chain of an experiment's ``[[update]]`` tables for its model.

    Raises:
        PluginError: A transform is unknown, its arguments do not fit, it is none, or it cannot encode what
            comes before it.
    """
    transforms = [registry.build("update", spec) for spec in config.update]
    for spec, transform in zip(config.update, transforms, strict=True):
        if not isinstance(transform, UpdateTransform):
            raise PluginError(
                f"[[update]] use = {spec.use!r}: it made a {type(transform).__name__}, which is no "
                "fedvision.updates.base.UpdateTransform"
            )
    tensors = floating(model)
    names = ParameterGroups.of(model, config.model).shared
    learned = frozenset(name for name in names if isinstance(tensors[name], nn.Parameter))
    try:
        return UpdateChain(UpdateSchema.of({name: tensors[name] for name in names}), transforms, learned)
    except ValueError as error:
        raise PluginError(f"[[update]]: {error}") from error


def _widened(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, "float64" if spec.dtype == "float64" else "float32", spec.shape)


def _check(transform: UpdateTransform, method: str, schema: UpdateSchema, tensors: State) -> None:
    """Refuse what is not of the schema that a transform told."""
    if wrong := schema.mismatch(UpdateSchema.of(tensors).tensors):
        raise ValueError(f"{type(transform).__name__}.{method} made what its schema does not tell: {wrong}")
