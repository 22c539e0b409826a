"""Files of weights: safetensors, a state dict of ``torch.save``, or the final model of a run folder.

Nothing in a file is executed: a state dict is read by torch's restricted unpickler, which makes tensors and
plain containers alone. A checkpoint that holds its state dict under ``state_dict`` or ``model`` is taken as
that.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedvision import tables
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError
from fedvision.files import read_json
from fedvision.formatting import listed
from fedvision.models.part_config import PartConfig, parts
from fedvision.models.pretrained import published_of
from fedvision.types import State

_MODEL, _DESCRIPTION = "model.safetensors", "model.json"
"""The files of a run folder."""
_NESTED = ("state_dict", "model")
"""Keys under which checkpoints hold a state dict."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights, read."""

    where: str
    """The key and its value, for errors."""
    state: State
    """Its tensors by their names."""
    sha256: str
    """Of the file, hexadecimal."""
    description: Mapping[str, Any]
    """A run folder's ``model.json``; empty for other files."""
    other_features: bool = False
    """Whether its head is known to take other features than the experiment's."""


Named = ModelConfig | PartConfig
"""What names weights: ``[model]``, or a part of it."""


def named(model: ModelConfig) -> dict[str, Named]:
    """Return what names weights in ``[model]``: itself under an empty name, its parts under theirs.

    Raises:
        ConfigError: A part's table is wrong, or one names weights inside another that has them already.
    """
    found: dict[str, Named] = {"": model} if model.weights else {}
    for name, one in parts(model).items():
        if not one.weights:
            continue
        if around := [key_of(other) for other in found if not other or name.startswith(f"{other}.")]:
            raise ConfigError(f"{key_of(name)}: {around[0]} names weights for all around it; leave one out")
        found[name] = one
    return found


def key_of(name: str) -> str:
    """Return the dotted key of a part's weights; of the whole network's for an empty name."""
    return f"model.{name}.weights" if name else "model.weights"


def _key(model: Named) -> str:
    return key_of(model.name if isinstance(model, PartConfig) else "")


def locate(model: Named) -> Path:
    """Return the file that ``model.weights`` names: itself, a run folder's final model, or the library's own.

    Args:
        model: The experiment's ``[model]`` or a part; a library's weights, ``IMAGENET1K_V1``, are of its
            network.

    Raises:
        ConfigError: Nobody knows the home folder in it, or the library's weights cannot be downloaded.
    """
    own = published_of(model.use).get(model.weights)
    if own is not None and own.locate is not None:
        return own.locate()
    path = _expanded(model)
    return path / _MODEL if path.is_dir() else path


def _expanded(model: Named) -> Path:
    try:
        return Path(model.weights).expanduser()
    except RuntimeError as error:
        home = Path(model.weights).parts[0]
        raise ConfigError(
            f"{_key(model)} = {model.weights!r}: the home folder {home} cannot be found; write the path out"
        ) from error


def digest(model: Named) -> str:
    """Return the SHA-256 of the file that ``model.weights`` names, hexadecimal.

    Raises:
        ConfigError: It cannot be read.
    """
    path = locate(model)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(model, path, error, _key(model)) from error


def read(model: Named, *, key: str = "") -> WeightsFile:
    """Read the file that ``model.weights`` names.

    Args:
        model: What names it.
        key: The key for errors, where it stands elsewhere than in ``[model]``.

    Raises:
        ConfigError: It cannot be read, holds anything but tensors, or is not the one that its run folder
            describes.
    """
    key = key or _key(model)
    where, path = f"{key} = {model.weights!r}", locate(model)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(model, path, error, key) from error
    sha256 = hashlib.sha256(data).hexdigest()
    description = read_json(path.with_name(_DESCRIPTION)) if path.name == _MODEL else {}
    if description and description.get("sha256") != sha256:
        raise ConfigError(
            f"{where}: {_MODEL} is not the file that {_DESCRIPTION} beside it describes; restore it, or "
            "finish the run with --resume"
        )
    safe = path.suffix == ".safetensors" or data[8:9] == b"{"
    state = _safetensors(data, path, where) if safe else _state_dict(data, path, where)
    return WeightsFile(
        where=where,
        state=state,
        sha256=sha256,
        description=description,
        other_features=isinstance(model, ModelConfig)
        and bool(description)
        and _features(description.get("model", {})) != _features(model.__dict__),
    )


def _features(model: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what of a ``[model]`` settles which features its head takes, and what head it is."""
    head = tables.plain(model.get("head", {"use": ""}))
    layers, expand = list(model.get("feature_layers", ())), tables.plain(model.get("expand", {"use": ""}))
    return layers, expand, head["use"], head.get("sha256")


def read_all(model: ModelConfig) -> dict[str, WeightsFile]:
    """Read the files that a network and its parts begin with, by the part's name, as ``named`` has them.

    Raises:
        ConfigError: As ``named`` and ``read``.
    """
    return {name: read(one) for name, one in named(model).items()}


def _unreadable(model: Named, path: Path, error: OSError, key: str) -> ConfigError:
    known = [repr(name) for name in published_of(model.use) if name]
    library = f", or {' or '.join(known)}" if known else ""
    return ConfigError(
        f"{key} = {model.weights!r}: {path} cannot be read ({error.strerror}); name a file of "
        f"weights, the folder of a run that has reached its end{library}"
    )


def _safetensors(data: bytes, path: Path, where: str) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise ConfigError(
            f"{where}: {path} is a damaged safetensors file ({error}); copy it there again"
        ) from error


def _state_dict(data: bytes, path: Path, where: str) -> State:
    """Return the tensors of a file of ``torch.save``; no code in it is run."""
    import pickle
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on files that are refused or read all the same
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # What is no pickle at all fails in the same way as one that holds code.
        raise ConfigError(
            f"{where}: {path} is neither a safetensors file nor a state dict of torch.save with tensors "
            "alone; code and other objects in a file are not read: save model.state_dict()"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{where}: {path} is no whole file of torch.save ({type(error).__name__}); copy it there again, "
            "or save model.state_dict()"
        ) from error
    return _tensors(found, path, where)


def _tensors(found: Any, path: Path, where: str) -> State:
    """Return the one state dict in what a file holds."""
    nested = [key for key in _NESTED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
    if len(nested) > 1:
        raise ConfigError(
            f"{where}: {path} holds state dicts under {listed(nested)}; save the one that is meant alone"
        )
    table = found[nested[0]] if nested else found
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(
            f"{where}: {path} holds no tensors by name, but a value of type {type(table).__name__}; "
            "save model.state_dict()"
        )
    for name, value in table.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"{where}: {name!r} in {path} is no tensor, but of type {type(value).__name__}; save "
                "model.state_dict()"
            )
    return dict(table)
