"""Who has which tensors of a network: all clients the same, each client its own, or nobody a changed one.

========  ================================================================================================
shared    are sent, averaged and sent back
personal  are trained or measured by each client, which keeps them between rounds and never sends them, as the
          head in FedPer (Arivazhagan et al. 2019, arXiv 1912.00818) and batch norm's statistics in SiloBN
frozen    stay as the network began, equal on all machines, so that they need not be sent
========  ================================================================================================

Patterns are those of file names, on the names of tensors: ``*`` stands for any letters, dots included, ``?``
for one, ``[ab]`` for one of these. Whole numbers, such as batch norm's ``num_batches_tracked``, are in no
group: they begin anew with each client's round.
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
from fedvision.models.state import floating, shared_names, size_in_bytes
from fedvision.models.units import last_units


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
        frozen = _matching(model, config.frozen, "frozen") | left
        own = _matching(model, config.personal, "personal")
        tensors = floating(model)
        if idle := [name for name in tensors if name in own & left]:
            raise ConfigError(
                f"model.personal matches {idle[0]!r}, which model.train = {config.train!r} leaves untrained "
                "and equal on all clients; narrow the pattern"
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


def needs_own_weights(model: nn.Module, config: ModelConfig) -> bool:
    """Return whether clients across machines need a file of weights: not all of the network is sent."""
    groups = ParameterGroups.of(model, config)
    return bool(config.weights) and bool(groups.personal or groups.frozen)


def network_bytes(model: nn.Module) -> int:
    """Return the bytes of a network's floating-point tensors, adapters beside them left out."""
    beside = frozenset(adapter_names(model))
    return size_in_bytes({name: tensor for name, tensor in floating(model).items() if name not in beside})


def _untrained(model: nn.Module, config: ModelConfig) -> frozenset[str]:
    """Return the names of the tensors that ``model.train`` leaves as they are.

    Raises:
        ConfigError: The network has no backbone and head, or the backbone has fewer units.
    """
    if config.train == "all":
        return frozenset()
    where = f"model.train = {config.train!r}"
    backbone = halves(model, where).backbone
    parts = (B,) if config.lora.exact else (A, B)
    trained = [f"{name}.{part}" for name, _ in adapters(model) for part in parts]
    if config.train.startswith("last:"):
        count = int(config.train.removeprefix("last:"))
        trained += [f"backbone.{name}." for name in last_units(backbone, count, where)]
    return frozenset(name for name in floating(model) if not name.startswith(("head.", *trained)))


def _keys(config: ModelConfig, *keys: str) -> str:
    """Return those of the keys that are set, with their values, else the network itself."""
    values = {key: getattr(config, key) for key in keys if getattr(config, key) not in ((), "all")}
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    set_keys = [f"model.{key} = {value!r}" for key, value in shown.items()]
    return " and ".join(set_keys) or f"[model] use = {config.use!r} with shared = {config.shared!r}"


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
