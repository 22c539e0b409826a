"""Heads from embeddings of the classes' names: the class is the one whose embedding is nearest in direction.

A text encoder such as CLIP's (arXiv 2103.00020) makes an embedding of each class from its name, or several
from prompts; an image encoder of the same model makes features that lie near that of their class. So the
network classifies before anybody trains, and what federated learning then trains may be as little as a scale
and a bias. The encoder of texts is not needed here: its embeddings come in a file.

``.npy`` holds embeddings [C, E] or, of several prompts, [C, P, E], in the order of the classes. In
``.safetensors`` either one tensor is that, or each class has one by its name, [E] or [P, E]; others are left
out. Each is brought to length 1, and the mean of several prompts as well.

The embeddings are a part of the head and travel with it: clients across machines need no file.

Shape letters: B batch, C classes, D features, E numbers of an embedding, P prompts.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedvision import registry
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError
from fedvision.formatting import listed
from fedvision.models import weights
from fedvision.models.base import ImageModel
from fedvision.models.init import glorot
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.weights import LoadedWeights
from fedvision.models.weights_file import WeightsFile
from fedvision.ranges import check_range
from fedvision.types import PluginSpec

USE = "cosine"
EMBEDDINGS = "head.embeddings"
"""The tensor's name in the network."""
_WHERE = "model.head.embeddings"


class CosineHead(nn.Module):
    """Logits s cos(P x, e_c) + b_c of features x and of class embeddings e_c that a file has.

    Args:
        in_features: D.
        num_classes: C.
        embeddings: The file, as seen from where the run is started.
        scale: s at first, > 0; CLIP's is 100.
        learn: What training changes: ``"scale"``, which is s, b and P, or ``"all"``, the embeddings as well.
        project: Whether features pass a learned linear layer P first, which they must where E is not D.
        size: E, >= 0; 0 takes D. The file settles it.
        sha256: Of the file, hexadecimal; another file is refused. The file settles it.

    Raises:
        ValueError: An argument is out of range, or embeddings and features have different sizes.
    """

    embeddings: torch.Tensor

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        embeddings: str,
        scale: float = 100.0,
        learn: str = "scale",
        project: bool = False,
        size: int = 0,
        sha256: str = "",
    ) -> None:
        super().__init__()
        check_range(above=0, scale=scale)
        check_range(at_least=0, size=size)
        if learn not in ("scale", "all"):
            raise ValueError(f"learn must be 'scale' or 'all', not {learn!r}")
        size = size or in_features
        if size != in_features and not project:
            raise ValueError(
                f"the embeddings have {size} numbers and the backbone makes {in_features} features; set "
                "project = true to learn a projection, or take the encoder that belongs to the embeddings"
            )
        self.project = glorot(nn.Linear(in_features, size, bias=False)) if project else nn.Identity()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        found = torch.zeros(num_classes, size)
        if learn == "all":
            self.embeddings = nn.Parameter(found)
        else:
            self.register_buffer("embeddings", found)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C] of features [B, D]."""
        x = F.normalize(self.project(features), dim=-1)
        cosine = F.linear(x, F.normalize(self.embeddings, dim=-1))
        return self.log_scale.exp() * cosine + self.bias


def settled(config: ModelConfig, classes: Sequence[str]) -> ModelConfig:
    """Return ``[model]`` with what the file of embeddings settles: their size and its digest.

    Raises:
        ConfigError: The file cannot be read, does not fit the classes, or is another one.
    """
    if config.head.use != USE:
        return config
    registry.check("head", config.head, frozenset({"in_features", "num_classes"}))
    found, sha256 = _read(config, classes)
    facts = {"size": found.shape[1], "sha256": sha256}
    for key, value in facts.items():
        if config.head.args.get(key) not in (None, 0, "", value):
            raise ConfigError(
                f"{_WHERE}: the file's {key} is {value}, and model.head.{key} = {config.head.args[key]!r}; "
                "restore the file, or leave the key out"
            )
    return replace(config, head=PluginSpec(use=USE, args={**config.head.args, **facts}))


def load_embeddings(model: nn.Module, config: ModelConfig, classes: Sequence[str]) -> None:
    """Give a network with a cosine head its embeddings, in place; nothing where it has another head.

    Raises:
        ConfigError: The file cannot be read or does not fit, or the embeddings would not be sent.
    """
    if config.head.use != USE:
        return
    if EMBEDDINGS not in ParameterGroups.of(model, config).shared:
        raise ConfigError(
            f"{_WHERE}: clients get the embeddings with the model, and {EMBEDDINGS!r} is not shared; leave "
            'it out of model.personal and frozen, and set model.shared = "all"'
        )
    assert isinstance(model, ImageModel)
    assert isinstance(model.head, CosineHead)
    with torch.no_grad():
        model.head.embeddings.copy_(_read(config, classes)[0])


def begin(
    model: nn.Module,
    config: ModelConfig,
    files: Mapping[str, WeightsFile],
    classes: Sequence[str],
    notices: tuple[str, ...] = (),
) -> LoadedWeights | None:
    """Give a network its class embeddings, where it has such a head, then the numbers of its files.

    Arguments and errors are those of ``load_embeddings`` and ``weights.begin``.
    """
    load_embeddings(model, config, classes)
    return weights.begin(model, files, classes, notices)


def _read(config: ModelConfig, classes: Sequence[str]) -> tuple[torch.Tensor, str]:
    """Return embeddings [C, E] of length 1, and the file's SHA-256."""
    path = Path(str(config.head.args.get("embeddings", "")))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{_WHERE} = {str(path)!r}: it cannot be read ({error.strerror})") from error
    where = f"{_WHERE} = {str(path)!r}"
    arrays = _npy(data, where) if path.suffix == ".npy" else _safetensors(data, where)
    found = _chosen(arrays, classes, where).float()
    if found.dim() not in (2, 3) or len(found) != len(classes):
        raise ConfigError(
            f"{where}: its embeddings are {list(found.shape)}, and [C, E] or [C, prompts, E] of C = "
            f"{len(classes)} classes are needed, in the order of the classes"
        )
    if not bool(found.isfinite().all()) or not bool(found.abs().amax(-1).all()):
        raise ConfigError(f"{where}: an embedding holds NaN or infinity, or zeros alone; write it again")
    found = F.normalize(found, dim=-1)
    found = F.normalize(found.mean(1), dim=-1) if found.dim() == 3 else found
    return found, hashlib.sha256(data).hexdigest()


def _npy(data: bytes, where: str) -> dict[str, torch.Tensor]:
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
        return {"": torch.from_numpy(np.array(found, np.float32))}
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ConfigError(f"{where}: this is no .npy file of numbers; save it with numpy.save") from error


def _safetensors(data: bytes, where: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(data))
    except SafetensorError as error:
        raise ConfigError(f"{where}: this is neither a .safetensors nor a .npy file") from error


def _chosen(arrays: dict[str, torch.Tensor], classes: Sequence[str], where: str) -> torch.Tensor:
    """Return the embeddings of the classes, by their names where a file has them so."""
    if len(arrays) == 1 and not set(arrays) & set(classes):
        return next(iter(arrays.values()))
    if missing := [name for name in classes if name not in arrays]:
        raise ConfigError(
            f"{where}: it lacks embeddings of {listed(missing)}; it needs one tensor for all classes, or one "
            "for each by its name"
        )
    if len({arrays[name].shape for name in classes}) > 1:
        raise ConfigError(f"{where}: the classes' embeddings have different shapes; make them alike")
    return torch.stack([arrays[name] for name in classes])
