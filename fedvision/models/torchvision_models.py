"""Every classification network of torchvision as backbone and head.

The head is the network's last linear layer (squeezenet: its last convolution and what follows); the backbone
is the network without it, under torchvision's own names of tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from fedvision.errors import PluginError
from fedvision.models.base import ImageModel, LibraryNames
from fedvision.models.pretrained import Preprocessing, Published, digest_in, download

_SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
"""The keyword for the images' size, of networks that are built for one."""
_AUXILIARY = {
    "googlenet": ("aux1.", "aux2."),
    "inception_v3": ("AuxLogits.",),
}
"""Prefixes of classifiers that only training from scratch uses."""
_RENAMED = (
    (r"(\.denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),
    (r"(\.mlp)\.linear_1\.", r"\1.0."),
    (r"(\.mlp)\.linear_2\.", r"\1.3."),
)
"""Old names of tensors in torchvision's files of densenet and vit, and those of today."""
_REFUSED = ("progress", "weights_backbone")


def names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    from torchvision import models

    found: list[str] = models.list_models(module=models)
    return found


def torchvision_model(*, name: str, num_classes: int, image_size: tuple[int, int], **keys: Any) -> ImageModel:
    """Build any classification network of torchvision; other keys, such as ``dropout``, go to it.

    googlenet and inception_v3 come without auxiliary classifiers. With ``transform_input``, as these two have
    it here, they expect images that are normalised as ImageNet's usually are.

    Args:
        name: Its name in ``torchvision.models``.
        num_classes: C.
        image_size: (H, W).
        keys: Keywords of its constructor.

    Raises:
        PluginError: A key is not for the experiment to set.
        ValueError: A key is out of range, or the network cannot be built for the images' size.
    """
    from torchvision import models

    if refused := [key for key in _REFUSED if key in keys]:
        raise PluginError(f"[model] use = 'torchvision/{name}': it takes no key {refused[0]!r}")
    if name in _AUXILIARY:
        keys = {"transform_input": True, **keys, "aux_logits": False, "init_weights": True}
    for prefix, keyword in _SIZED.items():
        if name.startswith(prefix):
            keys = {keyword: _side(image_size) if keyword == "image_size" else image_size, **keys}
    network = models.get_model(name, weights=None, num_classes=num_classes, **keys)
    if name.startswith("squeezenet"):
        return _squeezenet(network)
    return without_head(network, _AUXILIARY.get(name, ()))


def without_head(network: nn.Module, training_only: tuple[str, ...] = ()) -> ImageModel:
    """Return a network with its last linear layer as the head.

    Args:
        network: One whose outputs are those of its last linear layer.
        training_only: Prefixes of tensors that a file may have beside those of the network.
    """
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    head = network.get_submodule(last)
    network.set_submodule(last, nn.Identity())
    found = LibraryNames(head={f"{last}.": "head."}, renamed=_RENAMED, training_only=training_only)
    return ImageModel(network, head, library=found)


def _squeezenet(network: nn.Module) -> ImageModel:
    """Return features [B, D, h, w] and a head that scores each place and averages."""
    dropout, scores, relu, pool = network.get_submodule("classifier").children()
    backbone = nn.Sequential(OrderedDict(features=network.get_submodule("features"), dropout=dropout))
    found = LibraryNames(head={"classifier.1.": "head.0."})
    return ImageModel(backbone, nn.Sequential(scores, relu, pool, nn.Flatten()), library=found)


def _side(image_size: tuple[int, int]) -> int:
    if image_size[0] != image_size[1]:
        raise ValueError(
            f"it takes square images, not {image_size[0]} x {image_size[1]}; set transforms.size"
        )
    return image_size[0]


def published(name: str) -> Mapping[str, Published]:
    """Return torchvision's weights for a network, such as ``IMAGENET1K_V1``, by their name."""
    from torchvision import models

    return {
        member.name: Published(
            preprocessing=_preprocessing(member.transforms()),
            locate=partial(download, member.url),
            digest=digest_in(member.url.rpartition("/")[2]),
        )
        for member in models.get_model_weights(name)  # DEFAULT is another name of one, and changes
    }


def _preprocessing(preset: Any) -> Preprocessing:
    return Preprocessing(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        size=preset.crop_size[0],
        interpolation=preset.interpolation.value,
    )
