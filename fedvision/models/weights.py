"""``model.weights``: the numbers with which a network begins, from a file instead of from the seed.

All floating-point tensors are taken, by name and shape; whole numbers, such as batch norm's counter, keep the
network's first values, as they do between rounds. Nothing is left out and nothing is made up, with one
exception that is said: a head for another number of classes or for other features, or none, leaves the
network's head as it is, which is how a trained backbone begins on other classes. Adapters that a file does
not have begin as they are.

A part of the network (``models.parts``) that names weights of its own begins with these alone; a head in its
file has no use.

A file's names are the network's own, ``backbone.*`` and ``head.*``, or those of the library that it comes
from. A prefix ``module.`` that all of them have (``DataParallel``) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.formatting import listed
from fedvision.models.base import ImageModel, LibraryNames
from fedvision.models.gray import LEVEL
from fedvision.models.lora import adapter_names
from fedvision.models.parts import Part, parts_of
from fedvision.models.state import floating
from fedvision.models.weights_file import WeightsFile, key_of
from fedvision.types import State

_PARALLEL, _BACKBONE, _HEAD = "module.", "backbone.", "head."
_ADDED = ("head.expansion.", "head.embeddings", "head.log_scale", "head.project.")
"""Tensors that only a head has which ``[model]`` asks for: a file without them has another head."""


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """What a network began with."""

    files: Mapping[str, str]
    """SHA-256 of each file, hexadecimal, by the name of the part; an empty name is the whole network."""
    notices: tuple[str, ...] = ()
    """Sentences on what was not taken, and on the model from its run."""


def tensors_of(weights: LoadedWeights | None) -> dict[str, str]:
    """Return the digests of what a network began with, as a run's record of its data has them."""
    files = weights.files if weights else {}
    return {f"tensors of {key_of(name)}": sha256 for name, sha256 in files.items()}


def begin(
    model: nn.Module,
    files: Mapping[str, WeightsFile],
    classes: Sequence[str],
    notices: tuple[str, ...] = (),
) -> LoadedWeights | None:
    """Give a network and its parts the numbers of their files; None where there are none.

    Args:
        model: The network; its floating-point tensors are changed in place.
        files: By the name of the part, as ``weights_file.read_all`` has them.
        classes: Class names [C] of the experiment.
        notices: What else there is to say of the files.

    Raises:
        ConfigError: A file has other tensors than the network.
    """
    if not files:
        return None
    loaded = dict(parts_of(model).values())
    found = [
        _load_part(loaded[name], file) if name else load_weights(model, file, classes)
        for name, file in files.items()
    ]
    return LoadedWeights(
        files={name: file.sha256 for name, file in files.items()},
        notices=notices + tuple(sentence for one in found for sentence in one.notices),
    )


def _load_part(part: Part, file: WeightsFile) -> LoadedWeights:
    network = ImageModel(part.network, nn.Identity(), part.library) if part.halved else part.network
    outer = _BACKBONE if part.halved else ""
    unused = (*(outer + prefix for prefix in part.left_out), *((_HEAD,) if part.halved else ()))
    state = {
        name: tensor for name, tensor in _renamed(file.state, network).items() if not name.startswith(unused)
    }
    return load_weights(network, replace(file, state=state), ())


def load_weights(model: nn.Module, file: WeightsFile, classes: Sequence[str]) -> LoadedWeights:
    """Give a network the numbers of a file.

    Args:
        model: The network; its floating-point tensors are changed in place.
        file: What ``model.weights`` names, read.
        classes: Class names [C] of the experiment.

    Raises:
        ConfigError: The file has other tensors than the network.
    """
    own, state = floating(model), _renamed(file.state, model)
    # A file of the network without adapters leaves them as they begin.
    for name in adapter_names(model):
        if name not in state:
            del own[name]
    others = model.state_dict().keys() - own.keys()  # whole numbers, and second names of a tensor
    given = {name: tensor for name, tensor in state.items() if name not in others}
    head = [name for name in own if name.startswith(_HEAD)] if isinstance(model, ImageModel) else []
    anew = _head_begins_anew(file, {name: own[name] for name in head}, given)
    if anew:
        own = {name: tensor for name, tensor in own.items() if name not in head}
        given = {name: tensor for name, tensor in given.items() if not name.startswith(_HEAD)}
    _compare(file.where, own, given)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
    return LoadedWeights(files={"": file.sha256}, notices=anew + _described(file, () if anew else classes))


def _renamed(state: State, model: nn.Module) -> State:
    """Return a file's tensors under the network's names."""
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): tensor for name, tensor in state.items()}
    library = model.library if isinstance(model, ImageModel) else None
    if library is not None and _of_library(state, library):
        names = {name: library.here(name) for name in state}
        state = {own: state[name] for name, own in names.items() if own is not None}
    # The same network that sees gray images as colour has one level more.
    outer = _BACKBONE if isinstance(model, ImageModel) else ""
    inner = outer + LEVEL
    here, there = _has_level(floating(model), outer, inner), _has_level(state, outer, inner)
    if here == there:
        return state
    old, new = (outer, inner) if here else (inner, outer)
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: tensor
        for name, tensor in state.items()
    }


def _of_library(names: Iterable[str], library: LibraryNames) -> bool:
    """Return whether names of tensors are a library's and not a network's own."""
    names = list(names)
    marked = bool(library.mark) and any(name.startswith(library.mark) for name in names)
    return marked or not any(name.startswith(_BACKBONE) for name in names)


def _has_level(names: Iterable[str], outer: str, inner: str) -> bool:
    return all(name.startswith(inner) for name in names if name.startswith(outer))


def _head_begins_anew(file: WeightsFile, own: State, given: State) -> tuple[str, ...]:
    """Return a sentence where the file's head is for other classes, or it has none; nothing where it fits.

    Args:
        file: The file.
        own: The network's head.
        given: The file's tensors.
    """
    found = [name for name in own if name in given]
    if own and not found:
        return (f"{file.where}: it has no head, so the network's head begins with its first values",)
    usual = [name for name in own if not name.startswith(_ADDED)]
    if not own or (not file.other_features and any(name not in given for name in usual)):
        return ()
    # Outputs are the first dimension of weights and biases alike.
    there = {given[name].shape[0] for name in usual if name in given and given[name].dim()}
    here = {own[name].shape[0] for name in usual if own[name].dim()}
    differing = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if file.other_features or (differing and len(there) == 1):
        why = (
            f"its head has {max(there)} outputs and the network's {max(here)}"
            if there and there != here
            else "its head is another one or takes other features than the network's"
        )
        return (f"{file.where}: {why}, so the head begins with its first values",)
    return ()


def _described(file: WeightsFile, classes: Sequence[str]) -> tuple[str, ...]:
    """Return what a run folder's description gives to think about; nothing for a file without one.

    Args:
        file: The file.
        classes: Those of the network, where it got the file's head.
    """
    if not (facts := file.description):
        return ()
    sentences = []
    if classes and tuple(facts.get("classes", ())) != tuple(classes):
        sentences.append(
            f"{file.where}: it was trained for the classes {listed(list(facts.get('classes', ())))}, and "
            f"they are {listed(list(classes))} here"
        )
    if stayed := facts.get("personal"):
        sentences.append(
            f"{file.where}: its run never had {listed(list(stayed))}, which stayed on the clients; they "
            "begin with their first values"
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
