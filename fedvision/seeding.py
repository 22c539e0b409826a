"""Random streams: one for each (root seed, purpose, round, client), never a global one.

Two runs with the same root seed draw the same numbers whatever engine, worker or order computes them, because
a stream depends on what it is for and not on what was drawn before it.
"""

from __future__ import annotations

import random
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.random import mtrand

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def derive(root: int, purpose: str, *ids: int) -> int:
    """Return a 63-bit seed for one purpose.

    Args:
        root: The experiment's seed, >= 0.
        purpose: What the stream is for, such as ``"partition"`` or ``"batches"``.
        ids: Numbers that distinguish streams of one purpose, such as round and client, each >= 0.
    """
    # Their number goes in too: SeedSequence takes trailing zeros for nothing.
    entropy = [root, zlib.crc32(purpose.encode()), len(ids), *ids]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def numpy_stream(root: int, purpose: str, *ids: int) -> np.random.Generator:
    """Return a NumPy generator of its own for one purpose."""
    return np.random.default_rng(derive(root, purpose, *ids))


def torch_stream(root: int, purpose: str, *ids: int) -> torch.Generator:
    """Return a CPU torch generator of its own for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(root, purpose, *ids))


@contextmanager
def torch_global(root: int, purpose: str, *ids: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    Dropout and ``nn.init`` take no generator of their own.
    """
    import torch

    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    elsewhere = cuda or torch.backends.mps.is_available() or torch.xpu.is_initialized()  # type: ignore[no-untyped-call]
    # On a machine that computes on its CPU, torch.manual_seed takes a stack trace for each kind of device
    # that might wake up later: 15 times the work, for every client.
    seed = torch.manual_seed if elsewhere else torch.default_generator.manual_seed
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        seed(derive(root, purpose, *ids))
        yield


@contextmanager
def global_streams(root: int, purpose: str, *ids: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block and restore them after it.

    Flower's stock strategies sample clients with ``random`` and draw noise with ``numpy.random``, and any
    plug-in may use either. What it draws must depend neither on its process nor on what ran there before.
    Nothing of ours uses these two, and to seed them takes 140 us, so ``torch_global`` does without plug-ins.
    """
    seed = derive(root, purpose, *ids)
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch_global(root, purpose, *ids):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def evaluation_streams() -> AbstractContextManager[None]:
    """Seed the global generators for a batch that is measured: alike for every batch, wherever it is."""
    return global_streams(0, "evaluation")


class SecretGlobals:
    """Global generators (Python, NumPy, torch on the CPU) that nobody can predict, inside a ``with`` block.

    Noise for privacy hides nothing from whoever can draw it again, and every client knows the experiment's
    seed. Keys come from the operating system. NumPy draws from Philox (Salmon et al. 2011) under a secret key
    of 128 bits: from Mersenne Twister's own output, which coordinates that nobody trained show bare, all of
    its noise could be computed. Outside the block, and inside ``paused``, the generators are as they were.
    """

    def __enter__(self) -> SecretGlobals:
        import torch

        self._python: object = random.Random(secrets.randbits(256)).getstate()
        self._numpy: np.random.BitGenerator = np.random.Philox(key=secrets.randbits(128))
        self._half: Any = None
        self._torch = torch.Generator().manual_seed(secrets.randbits(63)).get_state()
        self._swap()
        return self

    def __exit__(self, *error: object) -> None:
        self._swap()

    def _swap(self) -> None:
        """Exchange the generators in force and those that are kept here."""
        import torch

        python, numpy, tensors = random.getstate(), mtrand.get_bit_generator(), torch.get_rng_state()
        # NumPy draws normal numbers in pairs; to change generators drops the second one.
        half = np.random.get_state() if isinstance(numpy, np.random.MT19937) else None  # noqa: NPY002
        random.setstate(self._python)  # type: ignore[arg-type]
        mtrand.set_bit_generator(self._numpy)
        if self._half is not None:
            np.random.set_state(self._half)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        self._python, self._numpy, self._torch, self._half = python, numpy, tensors, half

    def paused(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items; while each is made, the generators are as they were outside the block."""
        iterator = iter(items)
        while True:
            self._swap()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._swap()
            yield item
            # Let go before the next one is made, or two models are in memory.
            del item
