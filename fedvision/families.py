"""Names of networks after a library's prefix, ``torchvision/resnet50``, of which there is no table here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from fedvision.errors import PluginError
from fedvision.plugin_folder import import_target


class Family(NamedTuple):
    """Names that a library gives its networks, after a prefix: ``torchvision/resnet50``."""

    module: str
    """Holds ``names() -> list[str]``, and ``published(name)``, which tells of the library's weights."""
    factory: str
    """In the module; also takes ``name``."""
    example: str
    """One of the names."""
    others: str = ""
    """What the others are."""
    package: str = ""
    """The package that has them, where it is not this one."""
    task: str = "classification"
    """What they are for."""

    @property
    def target(self) -> str:
        """``"module:attr"`` of the factory."""
        return f"{self.module}:{self.factory}"


FAMILIES: Mapping[str, Mapping[str, Family]] = {
    "model": {
        "torchvision/": Family(
            "fedvision.models.torchvision_models",
            "torchvision_model",
            "resnet50",
            "torchvision's other classification networks",
            "torchvision",
        ),
        "torchvision-segmentation/": Family(
            "fedvision.models.torchvision_segmentation",
            "torchvision_segmentation",
            "lraspp_mobilenet_v3_large",
            "torchvision's other networks for segmentation",
            "torchvision",
            "segmentation",
        ),
        "smp/": Family(
            "fedvision.models.smp_models",
            "smp_model",
            "Unet",
            "segmentation-models-pytorch's other networks",
            "segmentation-models-pytorch",
            "segmentation",
        ),
        "timm/": Family(
            "fedvision.models.timm_models",
            "timm_model",
            "vit_base_patch16_224",
            "timm's other networks",
            "timm",
        ),
        "efficientnet-lite": Family("fedvision.models.efficientnet_lite", "efficientnet_lite", "0"),
    },
}
"""By kind and prefix."""


def family_of(kind: str, use: str) -> tuple[Family, str] | None:
    """Return the family that a name begins with and the rest of the name; None where there is none."""
    for prefix, family in FAMILIES.get(kind, {}).items():
        if use.startswith(prefix):
            return family, use.removeprefix(prefix)
    return None


def check_name(kind: str, use: str, family: Family, name: str) -> None:
    """Refuse a name that a library has not.

    Raises:
        PluginError: The library is not installed, or has no such name.
    """
    known = import_target(kind, use, f"{family.module}:names")()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1) or [family.example]
        raise PluginError(
            f"[{kind}] use = {use!r}: there is no such {kind}; did you mean "
            f"{use.removesuffix(name) + close[0]!r}?"
        )
