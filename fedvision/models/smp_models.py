"""Every network of segmentation-models-pytorch (an optional package) as backbone and head.

Iakubovskii 2019, "Segmentation Models Pytorch", github.com/qubvel-org/segmentation_models.pytorch (MIT
licence): U-Net, U-Net++, FPN, PSPNet, DeepLabV3+, SegFormer and others over many encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fedvision.errors import PluginError
from fedvision.models.base import ImageModel, LibraryNames
from fedvision.models.dense import Enlarged, Padded
from fedvision.models.pretrained import Published, colours

_REFUSED = ("encoder_weights", "encoder_name", "classes", "activation", "aux_params", "weights")
"""Keywords that download files, that have another name here, or make another thing than logits."""


def _smp() -> Any:
    try:
        return import_module("segmentation_models_pytorch")
    except ModuleNotFoundError as error:
        raise PluginError(
            "[model] use = 'smp/...' needs the package segmentation-models-pytorch, which is not installed: "
            "pip install 'fedvision[segmentation]'"
        ) from error


def names() -> list[str]:
    """Return the names of the library's networks.

    Raises:
        PluginError: It is not installed.
    """
    return sorted(kind.__name__ for kind in _smp().MODEL_ARCHITECTURES_MAPPING.values())


def smp_model(
    *,
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    encoder: str = "resnet18",
    **keys: Any,
) -> ImageModel:
    """Build any network of the library; other keys, such as ``decoder_channels``, go to its constructor.

    Images whose sides the encoder's stride does not divide are padded with their edges repeated, and the
    logits are cut to the image's size. The encoder begins with numbers that the seed draws; a file of weights
    of the whole network is ``model.weights``.

    Args:
        name: Its name in the library, such as ``Unet``.
        num_classes: C.
        in_channels: Channels of the images; it is built for colour where they are gray.
        image_size: (H, W).
        encoder: The library's name of its encoder.
        keys: Keywords of its constructor.

    Raises:
        PluginError: The package is not installed, or a key is not for the experiment to set.
        ValueError: There is no such encoder, or a key does not fit.
    """
    smp = _smp()
    if refused := [key for key in _REFUSED if key in keys]:
        raise PluginError(
            f"[model] use = 'smp/{name}': it takes no key {refused[0]!r}; the encoder is model.encoder, and "
            "a file of numbers to begin with model.weights"
        )
    try:
        network = getattr(smp, name)(
            encoder_name=encoder,
            encoder_weights=None,
            in_channels=colours(in_channels),
            classes=num_classes,
            **keys,
        )
    except KeyError as error:
        raise ValueError(f"encoder = {encoder!r}: {error.args[0] if error.args else error}") from error
    stride = int(getattr(network.encoder, "output_stride", 32))
    backbone = Padded(_Decoded(network), image_size, max(stride, 32))
    head = Enlarged(network.segmentation_head, image_size, backbone.padded)
    library = LibraryNames(
        head={"segmentation_head.": "head.logits."}, renamed=((r"^(encoder|decoder)\.", r"network.\1."),)
    )
    return ImageModel(backbone, head, library=library)


class _Decoded(nn.Module):
    """Encoder and decoder, images -> features [B, D, h, w]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder: nn.Module
        self.decoder: nn.Module
        self.encoder, self.decoder = network.encoder, network.decoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.decoder(self.encoder(images))
        return features


def published(name: str) -> Mapping[str, Published]:
    """Return no weights: what the library has is of encoders alone, and is not downloaded."""
    return {}
