"""Top-k sparsification with error feedback: the largest changes travel, the client keeps the rest.

Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with Memory", arXiv 1809.07599, with one local round in the
place of one step. With the residual e of the last update (zero first)::

    a = d + e        sent: the k elements of a that are largest by magnitude, with their positions
    e <- a - sent    so that nothing is lost, only late

Equal magnitudes go by position, the first one first, so that the same update has the same bytes everywhere.
Positions are int32 (int64 from 2^31 elements), so an element costs 8 bytes instead of 4: from ``fraction``
0.5 on nothing is saved. The head's rows of rare classes change less than others and are among the last to be
sent; watch the recall of rare classes beside the bytes. The residual is as large as the model, on each
client's disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from fedvision.ranges import check_range
from fedvision.types import State
from fedvision.updates.base import UpdateTransform
from fedvision.updates.clip import refuse_whole_numbers
from fedvision.updates.schema import ITEM_BYTES, TensorSpec, UpdateSchema

if TYPE_CHECKING:
    import numpy as np

_VALUES, _INDICES = "values", "indices"
_WHOLE = "top-k"


class TopK(UpdateTransform):
    """Sends the elements of an update that are largest by magnitude; what is left out is sent later.

    Args:
        fraction: Share of the elements that are sent, 0 < fraction <= 1; one at least.
        scope: ``"model"`` chooses among the elements of all parameters, ``"tensor"`` in each parameter apart.
        error_feedback: Whether a client keeps what is left out and adds it to its next update.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, *, fraction: float, scope: Literal["model", "tensor"] = "model", error_feedback: bool = True
    ) -> None:
        check_range(above=0, at_most=1, fraction=fraction)
        if scope not in ("model", "tensor"):
            raise ValueError(f'scope must be "model" or "tensor", not {scope!r}')
        self.fraction, self.scope, self.error_feedback = fraction, scope, error_feedback
        self.keeps_residual = error_feedback

    def schema(self, schema: UpdateSchema) -> UpdateSchema:
        """Return values and indices [k] of the whole model, or of each tensor.

        Raises:
            ValueError: A tensor is of whole numbers, such as the indices of another top-k.
        """
        refuse_whole_numbers(schema)
        specs: list[TensorSpec] = []
        for key, group in self._groups(schema).items():
            size = sum(spec.elements for spec in group)
            count = self._count(size)
            index = "int32" if size < 2**31 else "int64"
            specs += [TensorSpec(f"{key}.{_VALUES}", _common(group), (count,))]
            specs += [TensorSpec(f"{key}.{_INDICES}", index, (count,))]
        return UpdateSchema(tuple(specs))

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        """Return values and indices, and what was not sent, in float32 or wider."""
        sent: State = {}
        remainder: State = {}
        for key, group in self._groups(UpdateSchema.of(tensors)).items():
            dtype = getattr(torch, _common(group))
            parts = [tensors[spec.name].reshape(-1) for spec in group]
            change = torch.cat(parts).to(torch.promote_types(dtype, torch.float32))
            if self.error_feedback and key in residual:
                change = change + residual[key]
            count = self._count(len(change))
            places = largest(change, count)
            values = change[places].to(dtype)
            sent[f"{key}.{_VALUES}"] = values
            sent[f"{key}.{_INDICES}"] = places.to(torch.int32 if len(change) < 2**31 else torch.int64)
            if self.error_feedback:
                change[places] -= values.to(change.dtype)
                remainder[key] = change
        return sent, remainder

    def decode(self, tensors: State, schema: UpdateSchema) -> State:
        """Return whole tensors with zeros where nothing was sent.

        Raises:
            ValueError: Indices do not rise, or point outside.
        """
        found: State = {}
        for key, group in self._groups(schema).items():
            sizes = [spec.elements for spec in group]
            places, values = tensors[f"{key}.{_INDICES}"].long(), tensors[f"{key}.{_VALUES}"]
            rising = bool((places[1:] > places[:-1]).all())
            if len(places) and not (rising and int(places[0]) >= 0 and int(places[-1]) < sum(sizes)):
                raise ValueError(f"the indices of {key!r} do not rise within 0 to {sum(sizes) - 1}")
            whole = torch.zeros(sum(sizes), dtype=values.dtype)
            whole[places] = values
            for spec, part in zip(group, whole.split(sizes), strict=True):  # type: ignore[no-untyped-call]
                found[spec.name] = part.reshape(spec.shape).to(getattr(torch, spec.dtype))
        return found

    def _groups(self, schema: UpdateSchema) -> dict[str, list[TensorSpec]]:
        """Return by key the tensors among whose elements is chosen."""
        if self.scope == "tensor":
            return {spec.name: [spec] for spec in schema.tensors}
        return {_WHOLE: list(schema.tensors)} if schema.tensors else {}

    def _count(self, size: int) -> int:
        return min(size, max(1, round(self.fraction * size)))


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the rising positions of the ``count`` elements that are largest by magnitude.

    Of equal ones the first are taken. NaN counts as infinite: it travels, and the update is refused.

    Args:
        values: Numbers [n].
        count: 0 to n.
    """
    if not count:
        return torch.empty(0, dtype=torch.int64)
    magnitude = torch.nan_to_num(values.abs(), nan=torch.inf, posinf=torch.inf)
    threshold = torch.topk(magnitude, count, sorted=False).values.min()
    above = torch.nonzero(magnitude > threshold).reshape(-1)
    ties = torch.nonzero(magnitude == threshold).reshape(-1)[: count - len(above)]
    return torch.cat([above, ties]).sort().values


def _common(group: list[TensorSpec]) -> str:
    """Return the type that holds the elements of all tensors, all of them floats."""
    return max(group, key=lambda spec: ITEM_BYTES[spec.dtype]).dtype
