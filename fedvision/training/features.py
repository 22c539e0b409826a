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
from fedvision.data.transforms import Draws, input_shape
from fedvision.errors import ConfigError
from fedvision.inputs import Batch, images_of, with_images
from fedvision.training.forward import ForwardSettings

_MOST, _PIXELS = 16, 2**18
"""Images of a forward pass on a CPU, and their pixels. What a pass makes of more pixels leaves the cache, and
EfficientNet-Lite0 was half as quick at 224 px with 8 images as with 4 (37 and 67 images a second on a core);
with fewer than 16 images torch does not use oneDNN for its 1x1 convolutions (152 and 332 at 128 px).
ResNet-18 lost at most a tenth, MobileNetV3 and Swin-T nothing by these sizes instead of 8 images."""
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
        batch = self._batch(images(numbers[:1]).shape[1:]) if len(numbers) else 1
        pieces = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]

        def work(piece: NDArray[np.int64]) -> torch.Tensor:
            return self._features(images(piece), piece, beside(piece), batch)

        if self._settings.device.type != "cpu":
            yield from ((piece, work(piece)) for piece in pieces)
            return
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(cores.available(), initializer=partial(torch.set_num_threads, 1)) as pool:
                yield from _in_order(pool, work, pieces)
        finally:
            torch.set_num_threads(threads)

    def _batch(self, image: tuple[int, ...]) -> int:
        """Return how many images (H, W, channels) a forward pass has, by nothing but their size as seen."""
        if self._settings.device.type != "cpu":
            return _BATCH_ELSEWHERE
        _, height, width = input_shape(self._settings.transform.config, image)
        fitting = max(1, _PIXELS // (height * width))
        return min(_MOST, 1 << (fitting.bit_length() - 1))

    @torch.no_grad()
    def _features(
        self,
        images: NDArray[np.uint8],
        numbers: NDArray[np.int64],
        further: NDArray[np.float32] | None,
        batch_size: int,
    ) -> torch.Tensor:
        count = len(images)
        if more := batch_size - count:
            images = np.concatenate([images, np.zeros((more, *images.shape[1:]), images.dtype)])
            if further is not None:
                further = np.concatenate([further, np.full((more, further.shape[1]), np.nan, np.float32)])
        batch = self._settings.inputs(torch.from_numpy(images), further)
        x, found = images_of(batch), [self._pass(batch)]
        for view in range(1, self._views + 1):
            drawn = self._draws(numbers, view, batch_size, (x.shape[2], x.shape[3]))
            found.append(self._pass(with_images(batch, self._settings.transform.apply(x, drawn))))
        return (torch.stack(found, 1) if self._views else found[0])[:count].float().cpu()

    def _draws(self, numbers: NDArray[np.int64], view: int, count: int, size: tuple[int, int]) -> Draws:
        """Return what makes a view of each image, the first one's again for those that fill up the batch."""
        transform = self._settings.transform
        each = [
            transform.draw(1, size, seeding.torch_stream(self._seed, "view", view, number))
            for number in numbers.tolist()
        ]
        each += [each[0]] * (count - len(each))
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
