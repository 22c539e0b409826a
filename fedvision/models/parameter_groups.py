"""Who has which tensors of a network: all clients the same, each client its own, or nobody a changed one.

========  ================================================================================================
shared    are sent, averaged and sent back
personal  are trained or measured by each client, which keeps them between rounds and never sends them, as the
          head in FedPer (Arivazhagan et al. 2019, arXiv 1912.00818) and batch norm's statistics in SiloBN
frozen    stay as the network began, equal on all machines, so that they need not be sent
========  ================================================================================================

Patterns are those of file names, on the names of tensors: ``*`` stands for any letters, dots included, ``?``
for one, ``[ab]`` for one of these; in ``personal``, ``batch-norm`` stands for all tensors of batch norm that
are trained (FedBN; Li et al. 2021, arXiv 2102.07623). Whole numbers, such as batch norm's
``num_batches_tracked``, are in no group: they begin anew with each client's round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from fedvision.config import ModelConfig
from fedvision.errors import ConfigError, nearest
from fedvision.models.base import halves
from fedvision.models.lora import A, B, adapter_names, adapters
from fedvision.models.parts import Part, own_tensors, parts_of
from fedvision.models.state import batch_norm_names, floating, shared_names, size_in_bytes
from fedvision.models.units import last_units

BATCH_NORM = "batch-norm"
"""In ``model.personal``: the tensors of every batch norm that is trained, found by the layers' type."""


@dataclass(frozen=True)
class ParameterGroups:
    """Names of a network's floating-point tensors, each in one group and in the order of ``state_dict``."""

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    frozen: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, config: ModelConfig) -> ParameterGroups:
        """Sort a network's tensors.

        Args:
            model: The network.
            config: ``shared`` is what is averaged of what ``personal`` and ``frozen`` do not match.

        Raises:
            ConfigError: A pattern matches nothing, a tensor is to be personal and frozen, nothing would be
                shared, or nothing trained.
        """
        left = _untrained(model, config)
        frozen = _matching(model, config.frozen, "frozen") | left.keys()
        own = _personal(model, config.personal, frozen)
        tensors = floating(model)
        if idle := [name for name in tensors if name in own and name in left]:
            raise ConfigError(
                f"model.personal matches {idle[0]!r}, which {left[idle[0]]} leaves untrained and equal on "
                "all clients; narrow the pattern"
            )
        if both := [name for name in tensors if name in own & frozen]:
            raise ConfigError(
                f"model.personal and model.frozen both match {both[0]!r}, which is trained by each client or "
                "by nobody; narrow one of the patterns"
            )
        shared = tuple(name for name in shared_names(model, config.shared) if name not in own | frozen)
        trained = any(tensor.requires_grad for name, tensor in tensors.items() if name not in frozen)
        if not trained:
            raise ConfigError(
                f"{_keys(config, 'train', 'frozen')}: no tensor is left to train; leave some out"
            )
        if not shared:
            raise ConfigError(
                f"{_keys(config, 'train', 'personal', 'frozen')}: no tensor is left to share; leave some out"
            )
        return cls(
            shared=shared,
            personal=tuple(name for name in tensors if name not in frozen.union(shared)),
            frozen=tuple(name for name in tensors if name in frozen),
        )


def own_weights_needed(model: nn.Module, config: ModelConfig) -> tuple[str, ...]:
    """Return whose files of weights clients across machines need: of what not all tensors are sent.

    Returns:
        Names of parts; an empty one is the whole network.
    """
    groups = ParameterGroups.of(model, config)
    kept = (*groups.personal, *groups.frozen)
    files = {name: prefix for prefix, (name, part) in parts_of(model).items() if part.config.weights}
    if config.weights:
        files[""] = ""
    return tuple(name for name, prefix in files.items() if any(t.startswith(prefix) for t in kept))


def network_bytes(model: nn.Module) -> int:
    """Return the bytes of a network's floating-point tensors, adapters beside them left out."""
    beside = frozenset(adapter_names(model))
    return size_in_bytes({name: tensor for name, tensor in floating(model).items() if name not in beside})


def _untrained(model: nn.Module, config: ModelConfig) -> dict[str, str]:
    """Return the tensors that training leaves as they are by name, each with the key that says so.

    Raises:
        ConfigError: The network has no backbone and head, a backbone has fewer units, or the whole network
            and a part are both to be trained in part.
    """
    names, parts = floating(model), parts_of(model)
    if config.train == "all":
        return {
            tensor: f"model.{name}.train = {part.config.train!r}"
            for prefix, (name, part) in parts.items()
            for tensor in _untrained_of_part(model, prefix, name, part, config)
        }
    where = f"model.train = {config.train!r}"
    if told := [(name, part.config.train) for name, part in parts.values() if part.config.train != "all"]:
        name, train = told[0]
        raise ConfigError(
            f"{where} is for the whole network, and model.{name}.train = {train!r} for a part of it; leave "
            "one out"
        )
    backbone = halves(model, where).backbone
    trained = _adapters(model, config) if config.train == "lora" else []
    if config.train.startswith("last:"):
        trained += [f"backbone.{name}." for name in last_units(backbone, _count(config.train), where)]
    return {name: where for name in names if not name.startswith(("head.", *trained))}


def _untrained_of_part(
    model: nn.Module, prefix: str, name: str, part: Part, config: ModelConfig
) -> tuple[str, ...]:
    """Return the names of a part's tensors that ``train`` leaves as they are, those of its parts left out."""
    train = part.config.train
    if train == "all":
        return ()
    trained = _adapters(model, config) if train == "lora" else []
    if train.startswith("last:"):
        found = last_units(part.network, _count(train), f"model.{name}.train = {train!r}")
        trained = [f"{prefix}network.{unit}." for unit in found]
    own = own_tensors(model, floating(model), prefix)
    return tuple(tensor for tensor in own if not tensor.startswith(tuple(trained)))


def _adapters(model: nn.Module, config: ModelConfig) -> list[str]:
    """Return the names of the adapters' tensors that are trained."""
    return [
        f"{name}.{part}" for name, _ in adapters(model) for part in ((B,) if config.lora.exact else (A, B))
    ]


def _count(train: str) -> int:
    return int(train.removeprefix("last:"))


def _keys(config: ModelConfig, *keys: str) -> str:
    """Return those of the keys that are set, with their values, else the network itself."""
    values = {key: getattr(config, key) for key in keys if getattr(config, key) not in ((), "all")}
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    set_keys = [f"model.{key} = {value!r}" for key, value in shown.items()]
    return " and ".join(set_keys) or f"[model] use = {config.use!r} with shared = {config.shared!r}"


def _personal(model: nn.Module, patterns: Sequence[str], frozen: frozenset[str]) -> frozenset[str]:
    """Return the names of the tensors that stay with the clients.

    Raises:
        ConfigError: A pattern matches nothing.
    """
    found = _matching(model, [pattern for pattern in patterns if pattern != BATCH_NORM], "personal")
    if BATCH_NORM not in patterns:
        return found
    norms = frozenset(batch_norm_names(model)) - frozen
    if not norms:
        raise ConfigError(
            f"model.personal = [{BATCH_NORM!r}], as of [strategy] use = 'fedbn', keeps batch norm on the "
            "clients, and the network trains none; take one that does, such as 'resnet8' with norm = 'batch'"
        )
    return found | norms


def _matching(model: nn.Module, patterns: Sequence[str], key: str) -> frozenset[str]:
    """Return the first names of the floating-point tensors that match a pattern under any of their names."""
    first = {id(tensor): name for name, tensor in floating(model).items()}
    names = {
        name: first[id(tensor)]
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) in first
    }
    found = set[str]()
    for pattern in patterns:
        matched = {names[name] for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise ConfigError(
                f"model.{key}: {pattern!r} matches no tensor of the model{nearest(pattern, _patterns(names))}"
            )
        found |= matched
    return frozenset(found)


def _patterns(names: Iterable[str]) -> list[str]:
    """Return a pattern for each part of a network; the names of its tensors where it has no parts."""
    parts = {name.split(".")[0] for name in names if "." in name}
    return sorted(f"{part}.*" for part in parts) or list(names)
