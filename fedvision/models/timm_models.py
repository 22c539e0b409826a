"""Every network of timm (PyTorch Image Models, an optional package) as backbone and linear head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fedvision.errors import ConfigError, PluginError, first_line
from fedvision.models.base import ImageModel, LibraryNames
from fedvision.models.init import glorot
from fedvision.models.pretrained import Preprocessing, Published, colours, digest_in, download

_REFUSED = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("scriptable", "exportable", "no_jit", "features_only"),
)
"""Keywords that name files or make another thing than a network for images."""


def _timm(module: str = "timm") -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise PluginError(
            "[model] use = 'timm/...' needs the package timm, which is not installed: "
            'pip install "fedvision[timm]"'
        ) from error


def names() -> list[str]:
    """Return the names of timm's networks.

    Raises:
        PluginError: timm is not installed.
    """
    found: list[str] = _timm().list_models()
    return found


def timm_model(
    *, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], **keys: Any
) -> ImageModel:
    """Build any network of timm; other keys, such as ``drop_path_rate``, go to its constructor.

    A network that is made for one size of images is built for the experiment's.

    Args:
        name: Its name in ``timm.list_models()``.
        num_classes: C.
        in_channels: Channels of the images; it is built for colour where they are gray.
        image_size: (H, W).
        keys: Keywords of its constructor.

    Raises:
        PluginError: timm is not installed, or a key is not for the experiment to set.
    """
    timm = _timm()
    if refused := [key for key in _REFUSED if key in keys]:
        raise PluginError(f"[model] use = 'timm/{name}': it takes no key {refused[0]!r}; see model.weights")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        keys = {"img_size": image_size, **keys}
    backbone = timm.create_model(name, num_classes=0, in_chans=colours(in_channels), **keys)
    features = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    heads = None if config is None else config.classifier
    known = {f"{heads}.": "head."} if isinstance(heads, str) else {}
    # A distilled network has two heads, whose outputs are averaged: neither is the one here.
    both = () if isinstance(heads, str) or not heads else tuple(f"{head}." for head in heads)
    return ImageModel(
        backbone,
        glorot(nn.Linear(features, num_classes)),
        library=LibraryNames(head=known, training_only=both),
    )


def published(name: str) -> Mapping[str, Published]:
    """Return timm's weights for a network by their tag, such as ``augreg_in21k_ft_in1k``.

    Raises:
        PluginError: timm is not installed.
    """
    configs: Mapping[str, Any] = _timm("timm.models._registry").get_arch_pretrained_cfgs(name)
    return {
        full.partition(".")[2]: Published(
            preprocessing=Preprocessing(
                mean=tuple(config.mean),
                std=tuple(config.std),
                size=config.input_size[1],
                interpolation=config.interpolation,
            ),
            locate=partial(_locate, full, config),
            digest=digest_in(config.url.rpartition("/")[2]) if config.url else "",
        )
        for full, config in configs.items()
    }


def _locate(full: str, config: Any) -> Path:
    """Return the file of published weights, from the Hugging Face hub or a URL.

    Raises:
        ConfigError: It cannot be downloaded.
    """
    if not config.hf_hub_id:
        return download(config.url)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
    except Exception as error:
        raise ConfigError(
            f"model.weights: the weights {full} of timm cannot be downloaded ({first_line(error)}); set it "
            "to a file that was copied here"
        ) from error
