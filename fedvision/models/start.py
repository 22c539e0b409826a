"""``model.start``: the numbers with which a network begins, from a file instead of from the seed.

All floating-point tensors are taken, by name and shape; whole numbers, such as batch norm's counter, keep the
network's first values, as they do between rounds. Nothing is left out and nothing is made up: a file of
another network is refused, tensor by tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.files import read_json
from fedvision.formatting import listed
from fedvision.models.state import floating

if TYPE_CHECKING:
    from fedvision.types import State

_MODEL, _DESCRIPTION = "model.safetensors", "model.json"
"""The files of a run folder."""


@dataclass(frozen=True, kw_only=True)
class StartModel:
    """What a network began with."""

    sha256: str
    """Of the file, hexadecimal."""
    notices: tuple[str, ...] = ()
    """Notices on the model from its run."""


def start_file(start: str) -> Path:
    """Return the safetensors file that ``model.start`` names: itself, or the final model of a run folder.

    Raises:
        ConfigError: Nobody knows the home folder in it.
    """
    path = _expanded(start)
    return path / _MODEL if path.is_dir() else path


def _expanded(start: str) -> Path:
    try:
        return Path(start).expanduser()
    except RuntimeError as error:
        home = Path(start).parts[0]
        raise ConfigError(
            f"model.start = {start!r}: the home folder {home} cannot be found; write the path out"
        ) from error


def digest(start: str) -> str:
    """Return the SHA-256 of the file that ``model.start`` names, hexadecimal.

    Raises:
        ConfigError: It cannot be read.
    """
    return hashlib.sha256(_bytes(start)).hexdigest()


def load_start(model: nn.Module, start: str, classes: Sequence[str]) -> StartModel:
    """Give a network the numbers of a file.

    Args:
        model: The network; its floating-point tensors are changed in place.
        start: ``model.start``: a safetensors file, or a run folder.
        classes: Class names [C] of the experiment.

    Raises:
        ConfigError: The file cannot be read or is no safetensors file, is not the one that its run folder
            describes, or has other tensors than the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    where, data = f"model.start = {start!r}", _bytes(start)
    try:
        given = load(data)
    except SafetensorError as error:
        raise ConfigError(
            f"{where}: {start_file(start)} is no safetensors file ({error}); name one, or a run folder"
        ) from error
    sha256 = hashlib.sha256(data).hexdigest()
    notices = _described(where, _expanded(start) / _DESCRIPTION, sha256, classes)
    own = floating(model)
    others = model.state_dict().keys() - own.keys()  # whole numbers, and second names of a tensor
    _compare(where, own, {name: tensor for name, tensor in given.items() if name not in others})
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
    return StartModel(sha256=sha256, notices=notices)


def _bytes(start: str) -> bytes:
    try:
        return start_file(start).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"model.start = {start!r}: {start_file(start)} cannot be read ({error.strerror}); name a "
            "safetensors file, or the folder of a run that has reached its end"
        ) from error


def _described(where: str, page: Path, sha256: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return what a run folder's description gives to think about; nothing for a file without one.

    Raises:
        ConfigError: It is damaged, or of another file.
    """
    if not (facts := read_json(page)):
        return ()
    if facts.get("sha256") != sha256:
        raise ConfigError(
            f"{where}: {_MODEL} is not the file that {_DESCRIPTION} beside it describes; restore it, or "
            "finish the run with --resume"
        )
    sentences = []
    if tuple(facts.get("classes", ())) != tuple(classes):
        sentences.append(
            f"{where}: it was trained for the classes {listed(list(facts.get('classes', ())))}, and they "
            f"are {listed(list(classes))} here"
        )
    if stayed := facts.get("personal"):
        sentences.append(
            f"{where}: its run never had {listed(list(stayed))}, which stayed on the clients; they begin "
            "with their first values"
        )
    return tuple(sentences)


def _compare(where: str, own: State, given: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are not the network's.

    Raises:
        ConfigError: One is missing, unknown, of another shape or type, or not finite.
    """
    if missing := [name for name in own if name not in given]:
        raise ConfigError(f"{where}: it lacks {_some(missing)} of the network; name one of the same network")
    if unknown := [name for name in given if name not in own]:
        raise ConfigError(f"{where}: the network has no {_some(unknown)}; name one of the same network")
    for name, tensor in own.items():
        found = given[name]
        if found.shape != tensor.shape:
            raise ConfigError(
                f"{where}: the tensor {name!r} is {list(found.shape)} there and {list(tensor.shape)} in the "
                "network; build the network as it was built for that file"
            )
        if not found.is_floating_point() or not found.isfinite().all():
            raise ConfigError(f"{where}: the tensor {name!r} does not hold finite floating-point numbers")


def _some(names: Sequence[str]) -> str:
    """Name a few tensors."""
    shown, rest = ", ".join(map(repr, names[:3])), len(names) - 3
    return f"tensor{'s' if len(names) > 1 else ''} {shown}" + (f" and {rest} more" if rest > 0 else "")
