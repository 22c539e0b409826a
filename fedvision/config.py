"""The experiment: frozen dataclasses <-> one TOML file; every error names file and key.

A table that names a plug-in keeps its own keys; every other key in it is a keyword argument of the plug-in.
The canonical TOML (all keys, defaults written out, fixed order) is what travels to clients and stands in a run folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from fedvision.errors import ConfigError, nearest
from fedvision.types import PluginSpec

T = TypeVar("T")


def _require(holds: bool, key: str, problem: str) -> None:
    if not holds:
        raise ConfigError(f"{key} {problem}")


@dataclass(frozen=True, kw_only=True)
class PartitionConfig(PluginSpec):
    """How the training images are spread over clients."""

    use: str = "iid"
    """``iid``, ``dirichlet``, ``shards``, ``quantity``, ``column`` or ``"module:attr"``."""
    clients: int | None = None
    """Number of clients; may be left out only where the data settles it (``column``)."""
    imbalance: float = 1.0
    """Global long tail, before the split: images of the most frequent class / of the rarest one; 1 keeps all."""

    def __post_init__(self) -> None:
        _require(
            self.clients is None or self.clients >= 1,
            "partition.clients",
            f"must be >= 1, not {self.clients}",
        )
        _require(self.imbalance >= 1, "partition.imbalance", f"must be >= 1, not {self.imbalance}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(PluginSpec):
    """The network that every client trains."""

    use: str = "cnn"
    """``cnn``, ``resnet8``, ``rnn``, ``vit``, ``fusion``, ... or ``"module:attr"``."""
    travel: Literal["all", "no-batch-norm-statistics", "trainable"] = "all"
    """Which floating-point tensors leave a client; integer buffers never do."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(PluginSpec):
    """The training loss, built from class counts."""

    use: str = "cross-entropy"
    """``cross-entropy``, ``weighted``, ``focal``, ``ldam``, ``balanced-softmax``, ... or ``"module:attr"``."""
    prior: Literal["local", "global"] = "local"
    """Whose class counts the loss sees: the client's own, or the federation's sum."""


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Normalisation of every image and augmentation of training batches."""

    mean: tuple[float, ...] = (0.5,)
    """Mean per channel of pixels scaled to 0..1; one number serves all channels."""
    std: tuple[float, ...] = (0.25,)
    """Standard deviation per channel of pixels scaled to 0..1; one number serves all channels."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    crop: int = 0
    """Pad by this many pixels, then crop at random to the old size."""
    rotation: float = 0.0
    """Rotate by a random angle of at most this many degrees."""
    cutout: int = 0
    """Blank a random square of this many pixels a side."""
    mixup: float = 0.0
    """Beta parameter of mixup; 0 switches it off."""

    def __post_init__(self) -> None:
        _require(len(self.mean) >= 1, "transforms.mean", "must hold one number per channel, or one for all")
        _require(
            len(self.std) >= 1 and all(s > 0 for s in self.std),
            "transforms.std",
            f"must hold numbers > 0, one per channel or one for all, not {list(self.std)}",
        )
        for name in ("crop", "rotation", "cutout", "mixup"):
            value = getattr(self, name)
            _require(value >= 0, f"transforms.{name}", f"must be >= 0, not {value}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Local training on a client."""

    optimizer: PluginSpec = field(default_factory=lambda: PluginSpec(use="sgd"))
    """Any optimiser of ``torch.optim`` by name, or a table ``{ use = "adamw", betas = [0.9, 0.99] }``."""
    lr: float = 0.05
    """Learning rate of round 1."""
    schedule: PluginSpec = field(default_factory=lambda: PluginSpec(use="constant"))
    """Learning rate over rounds: ``constant``, ``cosine``, ``step``, ``exponential`` or a table with their keys."""
    epochs: int = 1
    """Passes over the client's images a round."""
    steps: int = 0
    """Optimiser steps a round instead of epochs; 0 counts epochs."""
    batch_size: int = 32
    """Images a step."""
    momentum: float = 0.0
    """Momentum, for optimisers that have it."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip_norm: float = 0.0
    """Largest norm of a step's gradient; 0 does not clip."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu) or a torch device."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass; float16 scales the loss on cuda."""
    channels_last: bool = True
    """Lay images out as [B, H, W, channels] in memory: 0.74 of a step's time for the CNN on a CPU."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            _require(value >= 1, f"training.{name}", f"must be >= 1, not {value}")
        _require(self.lr > 0, "training.lr", f"must be > 0, not {self.lr}")
        for name in ("steps", "momentum", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0, f"training.{name}", f"must be >= 0, not {value}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and on what the global model is measured."""

    every: int = 1
    """Rounds between measurements; the last round is always measured."""
    holdout: float = 0.0
    """Share of each client's images kept from training for a measurement on the client itself."""
    batch_size: int = 100
    """Images a forward pass."""
    metrics: tuple[str, ...] = ()
    """Further numbers from the confusion counts: ``geometric-mean``, ``kappa`` or ``"module:attr"``."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, "evaluation.every", f"must be >= 1, not {self.every}")
        _require(self.batch_size >= 1, "evaluation.batch_size", f"must be >= 1, not {self.batch_size}")
        _require(0 <= self.holdout < 1, "evaluation.holdout", f"must be >= 0 and < 1, not {self.holdout}")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One federated experiment, whatever carries it: a simulation engine or machines far apart."""

    name: str = "experiment"
    """Name of the run folder and title of the report."""
    seed: int = 0
    """Root of every random stream, >= 0."""
    rounds: int = 10
    """Federated rounds."""
    checkpoint_every: int = 1
    """Rounds between checkpoints; the last round always has one."""
    data: PluginSpec
    """Images and labels: ``digits``, ``fashion-mnist``, ``image-folder``, ... or ``"module:attr"``."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    """How a simulation spreads the training images over clients."""
    transforms: TransformConfig = field(default_factory=TransformConfig)
    """Normalisation and augmentation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Local training."""
    strategy: PluginSpec = field(default_factory=lambda: PluginSpec(use="fedavg"))
    """Selection and aggregation: ``fedavg``, ``scaffold``, ``flwr.serverapp.strategy:FedMedian``, ..."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurement."""

    def __post_init__(self) -> None:
        _require(bool(self.name) and "/" not in self.name, "name", "must be a non-empty name without '/'")
        _require(self.seed >= 0, "seed", f"must be >= 0, not {self.seed}")
        _require(self.rounds >= 1, "rounds", f"must be >= 1, not {self.rounds}")
        _require(self.checkpoint_every >= 1, "checkpoint_every", f"must be >= 1, not {self.checkpoint_every}")

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """Read one experiment from a TOML file.

        Args:
            path: The file.
            overrides: ``"key=value"`` pairs with dotted keys, such as ``"training.lr=0.1"``.

        Raises:
            ConfigError: The file is missing or no TOML, or a key is unknown, of another type or out of range.
        """
        variants = load_sweep(path, overrides)
        if len(variants) > 1:
            raise ConfigError(
                f"{path}: it has a [sweep] of {len(variants)} experiments; read it with load_sweep"
            )
        return variants[0]

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> ExperimentConfig:
        """Build an experiment from nested tables, as TOML gives them."""
        return _build(cls, table, "")

    @classmethod
    def from_toml(cls, text: str) -> ExperimentConfig:
        """Build an experiment from TOML text, such as ``to_toml`` wrote."""
        return cls.from_dict(tomllib.loads(text))

    def to_toml(self) -> str:
        """Return the canonical TOML: every key in a fixed order, so equal experiments are equal strings."""
        return tomli_w.dumps(_plain(self))

    def to_dict(self) -> dict[str, Any]:
        """Return nested tables, as ``from_dict`` takes them."""
        return _plain(self)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> list[ExperimentConfig]:
    """Read a TOML file with an optional ``[sweep]`` and return one experiment for each combination.

    A sweep lists values for dotted keys, ``loss = [{use = "focal"}, {use = "cross-entropy"}]`` or
    ``seed = [1, 2, 3]``; the experiments are all combinations, named ``name/value-value``.

    Raises:
        ConfigError: As for ``ExperimentConfig.load``.
    """
    table = _read(Path(path))
    try:
        sweep = table.pop("sweep", {})
        for override in overrides:
            _override(table, sweep, override)
        axes = _axes(sweep)
        return [_variant(table, axes, values) for values in itertools.product(*axes.values())]
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; name an experiment's TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: this is no TOML: {error}; correct that line") from error
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}") from error


def _override(table: dict[str, Any], sweep: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r}: write it as key=value, such as training.lr=0.1")
    key = key.strip()
    sweep.pop(key, None)
    _assign(table, key, _value(value.strip()))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(table: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{dotted}: {parent} is no table")
    table[last] = value


def _axes(sweep: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Flatten the sweep's nested tables to dotted keys."""
    axes: dict[str, list[Any]] = {}
    for key, values in sweep.items():
        if isinstance(values, Mapping):
            axes |= _axes(values, f"{prefix}{key}.")
        elif isinstance(values, list) and values:
            axes[prefix + key] = values
        else:
            raise ConfigError(f"sweep.{prefix}{key} must be a list of values, not {values!r}")
    return axes


def _variant(
    table: Mapping[str, Any], axes: Mapping[str, list[Any]], values: Sequence[Any]
) -> ExperimentConfig:
    merged = _copy(table)
    for key, value in zip(axes, values, strict=True):
        _assign(merged, key, _copy(value))
    config = ExperimentConfig.from_dict(merged)
    label = "-".join(_label(key, value) for key, value in zip(axes, values, strict=True))
    # A variant's name is a folder inside the sweep's folder.
    return dataclasses.replace(config, name=f"{config.name}.{label}") if label else config


def _label(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name", value.get("use", key)))
    return f"{key.rpartition('.')[2]}{value}" if not isinstance(value, str) else value


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def _build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table; keys it does not have go to ``args`` where it names a plug-in."""
    if isinstance(table, str) and issubclass(cls, PluginSpec):
        table = {"use": table}
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, not {table!r}")
    hints = typing.get_type_hints(cls)
    own = [f.name for f in dataclasses.fields(cls) if f.name != "args"]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{where}.{key}" if where else key
        if key in own:
            values[key] = _convert(hints[key], value, dotted)
        elif issubclass(cls, PluginSpec):
            extra[key] = value
        else:
            raise ConfigError(f"{dotted}: there is no such key{nearest(key, own)}")
    if issubclass(cls, PluginSpec):
        values["args"] = extra
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if (
            f.name not in values
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ):
            raise ConfigError(f"{f'{where}.' if where else ''}{f.name} is missing; add it")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return the value as the field's type, or say which type it must have."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, options))}, not {value!r}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(options[0], item, where) for item in items)
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {_spoken(hint)}, not {value!r}")
    return value


def _spoken(hint: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]


def _plain(value: Any) -> Any:
    """Return dataclasses as tables with plug-in arguments folded in and None left out."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if not dataclasses.is_dataclass(value):
        return value
    table: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if f.name != "args" and item is not None:
            table[f.name] = _plain(item)
    return table | _plain(getattr(value, "args", {}))
