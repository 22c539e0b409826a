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
        learned: Names of the trained parameters among ``received``; the others travel as they are.

    Raises:
        ValueError: A transform cannot encode what the one before it makes, or the sum of updates cannot be
            decoded.
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
        self.trained = UpdateSchema(tuple(spec for spec in received.tensors if spec.name in learned))
        """The parameters among ``received`` that clients train."""
        self.bytes_saved = 0
        """Bytes by which an update is smaller than the model; negative where it is larger."""
        self._transforms = tuple(transforms)
        if not self._transforms:
            return
        self._check_order()
        self._schemas = [UpdateSchema(tuple(map(_widened, self.trained.tensors)))]
        self._whole = tuple(spec for spec in received.tensors if spec.name not in learned)
        for transform in self._transforms:
            try:
                self._schemas.append(transform.schema(self._schemas[-1]))
            except ValueError as error:
                raise ValueError(f"{type(transform).__name__}: {error}") from error
        if self.sum_only:
            self._check_sum()
        self.sent = UpdateSchema((*self._schemas[-1].tensors, *self._whole))
        self.bytes_saved = received.size - self.sent.size

    def __bool__(self) -> bool:
        """Return whether there are transforms."""
        return bool(self._transforms)

    @property
    def keeps_residual(self) -> bool:
        """Whether a client keeps something of an update for its next one."""
        return any(transform.keeps_residual for transform in self._transforms)

    @property
    def sum_only(self) -> bool:
        """Whether the server can read only the sum over all clients of a round."""
        return bool(self._transforms) and self._transforms[-1].sum_only

    def _check_order(self) -> None:
        """Refuse an order of transforms in which the sum of updates could not be decoded."""
        place = next((n for n, transform in enumerate(self._transforms) if transform.sum_only), None)
        if place is None:
            return
        name, before = type(self._transforms[place]).__name__, self._transforms[:place]
        if place + 1 < len(self._transforms):
            after = type(self._transforms[place + 1]).__name__
            raise ValueError(
                f"{after} would change what {name} sends, of which only the sum over clients can be read; "
                f"make the table of {name} the last one"
            )
        if bad := next((type(one).__name__ for one in before if not one.linear), None):
            raise ValueError(
                f"{name} lets the server read only the sum over clients, and what {bad} makes of updates "
                f"cannot be decoded from their sum; take {bad} or {name} out"
            )

    def _check_sum(self) -> None:
        """Refuse tensors whose sum is not exact, or that would be sent beside it."""
        reason = f"{type(self._transforms[-1]).__name__} lets the server read only the sum over clients"
        if odd := next((spec.name for spec in self._schemas[-1].tensors if spec.is_float), None):
            raise ValueError(
                f"{reason}, and that of the floats {odd!r} depends on the order in which updates come; let "
                "it send whole numbers"
            )
        if self._whole:
            raise ValueError(
                f"{reason}, and {self._whole[0].name!r}, which is not trained, would be sent as it is; use "
                "a network without such tensors, as those with group norm, or set model.shared = "
                '"trainable"'
            )

    def encode(
        self,
        trained: State,
        received: State,
        residual: State,
        rng: np.random.Generator,
        examples: int = 1,
    ) -> tuple[State, State]:
        """Return what travels of a trained model, and what the client keeps.

        Args:
            trained: The shared tensors after training.
            received: The same before, as they were sent.
            residual: What the client kept of the last update that the server used; empty first.
            rng: A stream of this client and round.
            examples: The client's training images.

        Returns:
            Tensors by ``sent``, and the residual by ``"place.name"``.

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
            if transform.sum_only:
                tensors = {name: tensor * examples for name, tensor in tensors.items()}
            tensors, left = transform.encode(tensors, own, rng)
            tensors = _in_order(transform, "encode", self._schemas[place + 1], tensors)
            if left and not transform.keeps_residual:
                name = type(transform).__name__
                raise ValueError(f"{name}.encode returned a residual and {name}.keeps_residual is false")
            residuals |= {f"{prefix}{name}": tensor for name, tensor in left.items()}
        return tensors | {spec.name: trained[spec.name] for spec in self._whole}, residuals

    def decode(self, tensors: State, received: State) -> State:
        """Return the trained model that an update stands for, in the types in which models travel.

        Args:
            tensors: By ``sent``.
            received: The model that the client was sent.

        Raises:
            ValueError: The values cannot be those of an update.
        """
        return self._applied(self._change(tensors), tensors, received)

    def decode_sum(self, total: State, received: State, examples: int) -> State:
        """Return the mean of the trained models, weighted by images, of which a sum of updates is known.

        Args:
            total: The sum over all clients of what they sent, as ``sent`` says.
            received: The model that the clients were sent.
            examples: Training images of all of them.

        Raises:
            ValueError: The values cannot be those of a sum.
        """
        change = self._change(total)
        mean = {name: tensor / examples for name, tensor in change.items()}
        return self._applied(mean, total, received)

    def _change(self, tensors: State) -> State:
        """Return the decoded change of each parameter."""
        change = {spec.name: tensors[spec.name] for spec in self._schemas[-1].tensors}
        for place in reversed(range(len(self._transforms))):
            transform = self._transforms[place]
            decoded = transform.decode(change, self._schemas[place])
            change = _in_order(transform, "decode", self._schemas[place], decoded)
        return change

    def _applied(self, change: State, tensors: State, received: State) -> State:
        """Return the received model plus a change, and the tensors that travel as they are."""
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
    learned = [name for name in names if tensors[name].requires_grad]
    try:
        return UpdateChain(UpdateSchema.of({name: tensors[name] for name in names}), transforms, learned)
    except ValueError as error:
        raise PluginError(f"[[update]]: {error}") from error


def _widened(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, "float64" if spec.dtype == "float64" else "float32", spec.shape)


def _in_order(transform: UpdateTransform, method: str, schema: UpdateSchema, tensors: State) -> State:
    """Return what a transform made in the order of its declared schema; refuse what is not of it."""
    if wrong := schema.mismatch(UpdateSchema.of(tensors).tensors):
        raise ValueError(f"{type(transform).__name__}.{method} made what its schema does not have: {wrong}")
    return {spec.name: tensors[spec.name] for spec in schema.tensors}
