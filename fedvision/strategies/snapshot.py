"""What a strategy remembers, as tensors and JSON and back: for checkpoints of any strategy.

A strategy is any object, ours or Flower's. What it remembers is every attribute made of tensors, NumPy arrays
and numbers, plain values, and lists, tuples and dictionaries of these. Bits, dtypes and structure survive,
and what was NumPy is NumPy again. An attribute that holds anything else, such as a function, is left out as a
whole: it comes from the constructor. Subclasses of list, tuple and dict come back plain. A ``RoundStrategy``
inside another one is saved with it.

Flower's ArrayRecords are left out too. Stock strategies hold them only as the model of the round, which they
take anew from the arrays that the next round begins with.

In the JSON a plain value stands for itself and a list for a list; a dictionary says by its key what it is::

    {"tensor": name}   {"array": name}   {"number": name}      torch; NumPy; a NumPy number
    {"float": "nan"}   {"tuple": [...]}  {"dict": [key, ...], "values": [...]}
    {"strategy": {attribute: value}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from fedvision.errors import RunFolderError
from fedvision.strategies.base import RoundStrategy
from fedvision.types import State

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""What ``json.dumps`` writes."""


class _LeftOut(Exception):
    """A value that cannot be saved; its attribute is left to the constructor."""


def snapshot(strategy: object) -> tuple[State, dict[str, JSON]]:
    """Return copies of all that a strategy remembers.

    Args:
        strategy: Any object with attributes.

    Returns:
        Contiguous CPU tensors by name, which share no memory with anything, and a JSON dictionary by
        attribute that refers to them.
    """
    tensors: State = {}
    return tensors, _write_object(strategy, "", tensors)


def restore(strategy: object, tensors: Mapping[str, torch.Tensor], values: Mapping[str, JSON]) -> None:
    """Give a newly built strategy what another one remembered.

    Args:
        strategy: An object built as the saved one was; its attributes are replaced.
        tensors: As ``snapshot`` returned them. They are copied and come back on the CPU.
        values: As ``snapshot`` returned them.

    Raises:
        RunFolderError: The values refer to a tensor that is missing, or were not written by ``snapshot``.
    """
    for attribute, value in values.items():
        if isinstance(value, dict) and "strategy" in value:
            inner, fields = getattr(strategy, attribute, None), value["strategy"]
            if not isinstance(inner, RoundStrategy) or not isinstance(fields, dict):
                raise RunFolderError(
                    f"the checkpoint holds a strategy in {attribute!r}, but this experiment's strategy has "
                    "none there; resume the experiment that was run"
                )
            restore(inner, tensors, fields)
        else:
            setattr(strategy, attribute, _read(value, tensors))


def _write_object(strategy: object, where: str, tensors: State) -> dict[str, JSON]:
    values: dict[str, JSON] = {}
    for attribute, value in vars(strategy).items():
        path = f"{where}{attribute}"
        # An attribute is saved whole or not at all, so its tensors wait until all of it is written.
        mine: State = {}
        try:
            if isinstance(value, RoundStrategy):
                values[attribute] = {"strategy": _write_object(value, f"{path}/", mine)}
            else:
                values[attribute] = _write(value, path, mine)
        except _LeftOut:
            continue
        tensors.update(mine)
    return values


def _write(value: Any, path: str, tensors: State) -> JSON:
    """Return one value as JSON and put its tensors aside."""
    if type(value) is float and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[no-any-return]
    if isinstance(value, torch.Tensor):
        return {"tensor": _put(value, path, tensors)}
    if isinstance(value, np.ndarray):
        return {"array": _put(_as_tensor(value), path, tensors)}
    if isinstance(value, np.generic):
        return {"number": _put(_as_tensor(np.asarray(value)), path, tensors)}
    if isinstance(value, list | tuple):
        items: list[JSON] = [_write(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        keys = [_write_key(key) for key in value]
        return {
            "dict": keys,
            "values": [_write(item, f"{path}/{key}", tensors) for key, item in value.items()],
        }
    raise _LeftOut


def _write_key(key: object) -> JSON:
    if key is None or type(key) in (bool, int, str) or (type(key) is float and math.isfinite(key)):
        return key  # type: ignore[return-value]
    raise _LeftOut


def _put(tensor: torch.Tensor, path: str, tensors: State) -> str:
    """Keep a copy under its path; paths are equal where a key holds a slash or 1 and "1" are keys."""
    while path in tensors:
        path += "'"
    tensors[path] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return path


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError:
        raise _LeftOut from None


def _read(value: JSON, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the value that ``_write`` was given."""
    if isinstance(value, list):
        return [_read(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": str(name)}:
            return _get(name, tensors).clone()
        case {"array": str(name)}:
            return _get(name, tensors).numpy().copy()
        case {"number": str(name)}:
            return _get(name, tensors).numpy()[()]
        case {"float": str(text)}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(_read(item, tensors) for item in items)
        case {"dict": list(keys), "values": list(items)}:
            return {key: _read(item, tensors) for key, item in zip(keys, items, strict=True)}
        case _:
            raise RunFolderError(f"the checkpoint's strategy values cannot be read: {value!r}")


def _get(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise RunFolderError(f"the checkpoint is incomplete: the strategy's tensor {name!r} is missing")
    return tensors[name].detach().cpu()
