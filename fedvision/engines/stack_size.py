"""How many clients a device trains at once: a number that is set, or what its memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ON_CPU = 16
FIRST = 4
LARGEST = 256
SHARE = 0.6


class StackSizeTuner:
    """The size of the next stack of clients.

    Args:
        device: Where they are trained. On a CPU memory is not what limits them: ``ON_CPU`` at once.
        fixed: Clients at once; 0 measures on cuda: a first stack of ``FIRST``, then as many as fill ``SHARE``
            of the free memory at the bytes that one of the first took, ``LARGEST`` at most.
    """

    def __init__(self, device: torch.device, fixed: int = 0) -> None:
        self._device = device
        self._to_measure = not fixed and device.type == "cuda"
        self.size = fixed or (FIRST if self._to_measure else ON_CPU)

    @contextmanager
    def watch(self, clients: int) -> Iterator[None]:
        """Measure, where that is still to be done, while so many clients are trained inside the block."""
        if not self._to_measure:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        yield
        taken = max(1, torch.cuda.max_memory_allocated(self._device) - before) / clients
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        free = torch.cuda.mem_get_info(self._device)[0] + held
        self.size = max(1, min(LARGEST, int(SHARE * free / taken)))
        self._to_measure = False

    def exceeded(self, clients: int) -> None:
        """Take half of so many clients from now on: the device's memory did not hold them."""
        self.size, self._to_measure = max(1, clients // 2), False
