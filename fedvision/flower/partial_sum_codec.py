"""Sums over several clients' updates on the wire: workers of a simulation take them for the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedvision.aggregation.summation import Distant, PartialSum
from fedvision.algorithms.mean import Sums
from fedvision.flower import codec
from fedvision.flower.internals import DistantArray

_SUMS, _SUM, _NUM_UPDATES, _WEIGHTS, _DTYPES = "sums", "sum.", "num-updates", "weights.", "dtypes."


def encode_sums(sums: Sums) -> RecordDict:
    """Return the records of sums over several clients; a folded reply carries them beside its own."""
    layout = ConfigRecord({_NUM_UPDATES: sums.num_updates})
    content = RecordDict({_SUMS: layout})
    for group, part in sums.parts().items():
        here = {name: total for name, total in part.totals.items() if isinstance(total, torch.Tensor)}
        content[_SUM + group] = codec.encode_state(here)
        layout[_WEIGHTS + group] = list(part.weights)
        layout[_DTYPES + group] = [str(dtype).removeprefix("torch.") for dtype in part.dtypes.values()]
    return content


def decode_sums(content: RecordDict, sums: Sums) -> None:
    """Merge the sums that a folded reply carries, if it does; large tensors are fetched at the end."""
    if _SUMS not in content:
        return
    layout = codec.record(content, _SUMS, ConfigRecord)
    parts = {
        group: PartialSum(
            totals=_LazyState(codec.record(content, _SUM + group, ArrayRecord)),
            weights=tuple(layout[key]),  # type: ignore[arg-type]
            dtypes={
                name: getattr(torch, str(dtype))
                for name, dtype in zip(
                    codec.record(content, _SUM + group, ArrayRecord),
                    layout[_DTYPES + group],  # type: ignore[arg-type]
                    strict=True,
                )
            },
        )
        for key in layout
        if (group := key.removeprefix(_WEIGHTS)) != key
    }
    sums.merge(parts, int(layout[_NUM_UPDATES]))  # type: ignore[arg-type]


class _LazyState(Mapping[str, "torch.Tensor | Distant"]):
    """The tensors of a record, each decoded on access; those that lie elsewhere stay there."""

    def __init__(self, record: Mapping[str, Array]) -> None:
        self._record = record

    def __getitem__(self, name: str) -> torch.Tensor | Distant:
        array = self._record[name]
        return cast("Distant", array) if isinstance(array, DistantArray) else codec.tensor_of(array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)
