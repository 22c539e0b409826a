"""Which training replies can be used: names, shapes, types, finite numbers, and a norm that is no absurdity.

A reply is measured against the model that its client was sent, alone: what is refused does not depend on who
else answered, on the order of the replies, or on the process that looks at them. The bound of the norm is
known before the round begins (see ``norm_bound``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedvision.aggregation.summation import accumulate_dtype
from fedvision.errors import MALFORMED, InvalidUpdate, first_line
from fedvision.flower import codec
from fedvision.flower.internals_message import values
from fedvision.flower.train_reply import TrainReply, decode_train_reply
from fedvision.types import State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.schema import TensorSpec, UpdateSchema

_SMALL, _SLICE = 1 << 14, 1 << 20
"""Elements up to which tensors are checked together, and by which large ones are checked."""
_PIECE = 1 << 16
"""Elements whose squares are added in their own type."""
_MOST_IMAGES = 1 << 40
"""Of one client: sums over all are exact, and a weight is a finite number."""
_REMEMBERED = 5
"""Rounds whose usual norm is remembered."""


class UpdateValidator:
    """Lets through the replies of clients that were sent one model.

    Args:
        state: The model as they got it.
        bound: Norm above which a change is refused.
        updates: Decodes what they send; None where they send models as they are.
        groups: The groups of tensors that they send beside it; None where any may come.
        accepts_sums: Whether the carrier is a part of this program and may answer with sums over its clients'
            updates.
    """

    def __init__(
        self,
        state: State,
        bound: float = math.inf,
        updates: UpdateChain | None = None,
        *,
        groups: Mapping[str, UpdateSchema] | None = None,
        accepts_sums: bool = False,
    ) -> None:
        self.state, self.bound, self._accepts_sums = state, bound, accepts_sums
        self.groups = groups
        """The groups that they send beside it, by name; None where any may come."""
        self.updates = UpdateChain(UpdateSchema.of(state)) if updates is None else updates
        """What their updates are made of."""
        small = {name: tensor for name, tensor in state.items() if tensor.numel() <= _SMALL}
        self._small = _Together(small) if small else None
        self._large = [name for name in state if name not in small]

    @property
    def bytes_saved(self) -> int:
        """Bytes by which a reply is smaller than the model."""
        return self.updates.bytes_saved

    def decode(self, message: Message, client: int) -> TrainReply:
        """Return a reply with the model that its update stands for and the norm of its change.

        Where only the sum of updates can be read, it has the update as it came, and no norm.

        Args:
            message: The reply; its content is taken out of it.
            client: Who sent it.

        Raises:
            InvalidUpdate: A record is missing, a tensor is missing, extra, of another shape or type, not a
                number or infinite, cannot be decoded, the reply rests on no images, or its norm is above the
                bound.
        """
        if self._accepts_sums and codec.is_folded(message.content):
            return decode_train_reply(message, client, in_sum=True)
        self._check_records(message.content, client)
        reply = decode_train_reply(message, client)
        if self.updates.sum_only:
            if reply.tensors:
                raise InvalidUpdate(client, "reply", "it has tensors beside an update that counts in a sum")
            return reply
        reply.state = update = self._decoded(reply.state or {}, client)
        self._check_values(reply, update, client)
        return reply

    def decode_sum(self, total: State, examples: int) -> State:
        """Return the mean model of clients of whose updates only the sum can be read.

        Args:
            total: The sum over all of them of what ``decode`` let through.
            examples: Training images of all of them.

        Raises:
            InvalidUpdate: It is none, or its change is not finite or above the bound.
        """
        try:
            mean = self.updates.decode_sum(total, self.state, examples)
        except (RuntimeError, *MALFORMED) as error:
            raise InvalidUpdate(-1, "sum", f"it cannot be decoded: {first_line(error)}") from error
        self._check_values(TrainReply(client=-1, examples=examples, loss=0.0, state=mean), mean, -1)
        return mean

    def _check_values(self, reply: TrainReply, update: State, client: int) -> None:
        """Note the norm of the change in a reply, and refuse numbers that are not finite or too large."""
        # One pass measures the change and finds what is not finite, tensor by tensor only where it must.
        reply.norm = norm = self._norm(update)
        if not math.isfinite(norm):
            _check_finite(client, update)
        for group, tensors in reply.tensors.items():
            _check_finite(client, {f"{group}.{name}": tensor for name, tensor in tensors.items()})
        if not norm <= self.bound or math.isinf(norm):
            raise InvalidUpdate(
                client, "reply", f"the norm of its change is {norm:.3g}, above the bound of {self.bound:.3g}"
            )

    def _check_records(self, content: RecordDict, client: int) -> None:
        """Refuse a reply whose records, or names, types and shapes of tensors are not as expected."""
        held = values(content)
        arrays, metrics = held.get(codec.ARRAYS), held.get(codec.METRICS)
        if not isinstance(arrays, ArrayRecord) or not isinstance(metrics, MetricRecord):
            lacking = codec.METRICS if codec.ARRAYS in held else codec.ARRAYS
            raise InvalidUpdate(client, "reply", f"it lacks the record {lacking!r}")
        reported = values(metrics)
        if reported.keys() != {codec.EXAMPLES, codec.TRAIN_LOSS}:
            known = f"{codec.EXAMPLES} and {codec.TRAIN_LOSS}"
            raise InvalidUpdate(client, "reply", f"its metrics are {sorted(reported)}, not {known}")
        examples, loss = reported[codec.EXAMPLES], reported[codec.TRAIN_LOSS]
        if not isinstance(examples, int) or examples < 1:
            raise InvalidUpdate(client, "reply", f"it rests on {examples} images")
        if examples > _MOST_IMAGES:
            raise InvalidUpdate(client, "reply", "it rests on more than 2^40 images")
        if not isinstance(loss, float) and not (isinstance(loss, int) and abs(loss) < 2**63):
            raise InvalidUpdate(client, "reply", f"its training loss is {str(loss)[:40]}, not a number")
        if wrong := self.updates.sent.mismatch(_specs(values(arrays))) or self._misplaced(held):
            raise InvalidUpdate(client, "reply", wrong)

    def _misplaced(self, held: Mapping[str, Any]) -> str | None:
        """Return how the groups of tensors beside an update differ from those that are expected."""
        if self.groups is None:
            return None
        found = codec.group_records(held)
        if extra := sorted(found.keys() - self.groups.keys()):
            return f"it has a group of tensors {extra[0]!r} beside its update, which nobody asked for"
        for group, schema in self.groups.items():
            if group not in found:
                return f"it lacks the group of tensors {group!r}; it must use the strategy's client half"
            if wrong := schema.mismatch(_specs(values(found[group]))):
                return f"in the group {group!r} {wrong}"
        return None

    def _decoded(self, update: State, client: int) -> State:
        """Return the model that an update stands for."""
        if not self.updates:
            return update
        try:
            return self.updates.decode(update, self.state)
        except (RuntimeError, *MALFORMED) as error:
            raise InvalidUpdate(client, "reply", f"it cannot be decoded: {first_line(error)}") from error

    def _norm(self, update: State) -> float:
        squares = []
        if self._small is not None:
            squares.append(self._small.square(update))
        for name in self._large:
            parts = zip(_slices(update[name]), _slices(self.state[name]), strict=True)
            squares += [_square(new - old.to(accumulate_dtype(old.dtype))) for new, old in parts]
        return math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.inf


class _Together:
    """Many small tensors as one vector in float64: a call costs more than their elements.

    Args:
        state: The tensors from which changes are measured.
    """

    def __init__(self, state: State) -> None:
        sizes = [tensor.numel() for tensor in state.values()]
        self._old, self._new = (torch.empty(sum(sizes), dtype=torch.float64) for _ in range(2))
        for name, place in self._places(state, self._old, sizes):
            place.copy_(state[name])
        self._named = self._places(state, self._new, sizes)

    @staticmethod
    def _places(state: State, vector: torch.Tensor, sizes: list[int]) -> list[tuple[str, torch.Tensor]]:
        parts = zip(state.items(), torch.split(vector, sizes), strict=True)
        return [(name, part.view(tensor.shape)) for (name, tensor), part in parts]

    def square(self, state: State) -> float:
        """Return the sum of squares of the changes."""
        for name, place in self._named:
            place.copy_(state[name])
        change = self._new.sub_(self._old)
        return float(torch.dot(change, change))


def norm_bound(limit: float, state: State, usual: Sequence[float]) -> float:
    """Return the norm above which a change of a model is refused.

    A change is absurd if its norm is ``limit`` times the usual one and above the model's own. The usual one
    is the median over past rounds, so that one client cannot shift it; before there is one, the model's own
    stands for it. A model's norm counts as 1 at least, as some begin at zero.

    Args:
        limit: How many times; 0 gives infinity.
        state: The global model of the round.
        usual: Median norms of past rounds.
    """
    if not limit:
        return math.inf
    own = max(1.0, math.sqrt(math.fsum(_square(t) for tensor in state.values() for t in _slices(tensor))))
    return max(own, limit * statistics.median(usual)) if usual else limit * own


def remember(usual: Sequence[float], norms: Iterable[float]) -> list[float]:
    """Return the median norms of past rounds with that of a round's accepted changes."""
    taken = list(norms)
    return [*usual, statistics.median(taken)][-_REMEMBERED:] if taken else list(usual)


def _slices(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return a tensor in pieces: what is computed from one needs little memory."""
    parts: Sequence[torch.Tensor] = tensor.reshape(-1).split(_SLICE)  # type: ignore[no-untyped-call]
    return parts


def _square(values: torch.Tensor) -> float:
    """Return the sum of squares [N]; in float64 where float32 holds none of them.

    Products of short pieces, added in float64, take a third of the time of a norm in float64 and are as good
    to seven digits.
    """
    pieces: Sequence[torch.Tensor] = values.to(accumulate_dtype(values.dtype)).split(_PIECE)  # type: ignore[no-untyped-call]
    found = [float(torch.dot(piece, piece)) for piece in pieces]
    if all(map(math.isfinite, found)):
        return math.fsum(found)
    norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return norm * norm


def _specs(record: Mapping[str, Array]) -> list[TensorSpec]:
    return [TensorSpec(name, array.dtype, tuple(array.shape)) for name, array in record.items()]


def _check_float(client: int, name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        raise InvalidUpdate(client, "reply", f"the tensor {name!r} is {tensor.dtype}, not a float")


def _check_finite(client: int, state: State) -> None:
    """Refuse tensors that are not finite, or so large that their sum is not."""
    for name, tensor in state.items():
        _check_float(client, name, tensor)
        if not all(math.isfinite(part.sum(dtype=torch.float64).item()) for part in _slices(tensor)):
            raise InvalidUpdate(client, "reply", f"the tensor {name!r} holds NaN or infinity")
