"""What a frozen backbone makes of images: computed once, with the same bits wherever an image is.

A convolution or a matrix product of another batch size adds up in another order, so the features of an image
would differ in their last bits by the batch that it came in. They are computed in batches of one size, the
last one filled up with black images without columns, and by one thread each: then no bit of an image's
features depends on its place or on its neighbours (measured with torch 2.14 on ResNet-18, EfficientNet-B0,
MobileNetV3, ViT-B/16 and Swin-T; another batch size changed 92 % of the numbers of a ResNet-18).

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

from fedvision import cores, seeding
from fedvision.data.transforms import Draws
from fedvision.errors import ConfigError
from fedvision.inputs import Batch, images_of, with_images
from fedvision.training.forward import ForwardSettings

_BATCH = {"cpu": 8}
"""Images a forward pass by the type of the device: 8 were the quickest on one core, with channels last."""
_BATCH_ELSEWHERE = 128


class FeatureExtractor:
    """Computes features with a backbone.

    Args:
        backbone: Images [B, channels, H, W] -> features [B, D], on the settings' device; it is put into
            evaluation mode.
        settings: Normalisation, augmentation, device and precision.
        views: V, augmented views of each image whose features are computed after those of the image itself.
        seed: From which an image's views are drawn, by its number.
    """

    def __init__(self, backbone: nn.Module, settings: ForwardSettings, views: int = 0, seed: int = 0) -> None:
        self._backbone, self._settings = backbone.eval(), settings
        self._views, self._seed = views, seed
        self._batch = _BATCH.get(settings.device.type, _BATCH_ELSEWHERE)

    def each(
        self,
        images: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
        numbers: NDArray[np.int64],
        beside: Callable[[NDArray[np.int64]], NDArray[np.float32] | None] = lambda numbers: None,
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Yield the features of many images, batch by batch, computed by as many threads as there are cores.

        Args:
            images: Returns some images, uint8 [B, H, W, channels], by their numbers [B].
            numbers: int64 [N].
            beside: Returns what is read beside their pixels, float32 [B, W], by their numbers; None where
                nothing is.

        Yields:
            Numbers [B], in the order given, and features float32 [B, D] on the CPU; [B, 1 + V, D] where there
            are views.

        Raises:
            ConfigError: The backbone does not return [B, D].
        """
        pieces = [numbers[start : start + self._batch] for start in range(0, len(numbers), self._batch)]

        def work(piece: NDArray[np.int64]) -> torch.Tensor:
            return self._features(images(piece), piece, beside(piece))

        if self._settings.device.type != "cpu":
            yield from ((piece, work(piece)) for piece in pieces)
            return
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(cores.available(), initializer=partial(torch.set_num_threads, 1)) as pool:
                yield from _in_order(pool, work, pieces)
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _features(
        self, images: NDArray[np.uint8], numbers: NDArray[np.int64], further: NDArray[np.float32] | None
    ) -> torch.Tensor:
        count = len(images)
        if more := self._batch - count:
            images = np.concatenate([images, np.zeros((more, *images.shape[1:]), images.dtype)])
            if further is not None:
                further = np.concatenate([further, np.full((more, further.shape[1]), np.nan, np.float32)])
        batch = self._settings.inputs(torch.from_numpy(images), further)
        x, found = images_of(batch), [self._pass(batch)]
        for view in range(1, self._views + 1):
            drawn = self._draws(numbers, view, (x.shape[2], x.shape[3]))
            found.append(self._pass(with_images(batch, self._settings.transform.apply(x, drawn))))
        return (torch.stack(found, 1) if self._views else found[0])[:count].float().cpu()

    def _draws(self, numbers: NDArray[np.int64], view: int, size: tuple[int, int]) -> Draws:
        """Return what makes a view of each image, the first one's again for those that fill up the batch."""
        transform = self._settings.transform
        each = [
            transform.draw(1, size, seeding.torch_stream(self._seed, "view", view, number))
            for number in numbers.tolist()
        ]
        each += [each[0]] * (self._batch - len(each))
        return {name: torch.cat([one[name] for one in each], dim=-1) for name in each[0]}

    def _pass(self, x: Batch) -> torch.Tensor:
        with self._settings.one_model():
            features = self._backbone(x)
        if not isinstance(features, torch.Tensor) or features.dim() != 2:
            shape = (
                list(features.shape[1:]) if isinstance(features, torch.Tensor) else type(features).__name__
            )
            raise ConfigError(
                f"the features of an image must be one row of numbers, and the backbone makes {shape} of it; "
                "let the backbone flatten or average them"
            )
        return features


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
