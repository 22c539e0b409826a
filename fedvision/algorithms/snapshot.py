"""What a strategy remembers, as tensors and JSON and back: for checkpoints of any strategy.

A strategy is any object, ours or Flower's. One that has ``state_dict`` and ``load_state_dict``, as torch's
modules have, names its own state. Of any other one it is every attribute made of tensors, NumPy
arrays and numbers, plain values, and lists, tuples, sets, deques and dictionaries of these (``defaultdict``
and ``OrderedDict`` too), random generators, and objects with ``state_dict``. Bits, dtypes and structure
survive, and what was NumPy is NumPy again. A ``RoundStrategy`` inside another one is saved with it.

Functions, classes and modules are code: they come from the constructor. Anything else could come back as
another thing than it was, so it is refused by its name: such a strategy must have ``state_dict``.

Objects of Flower's classes are left out too. Stock strategies hold records only as the model of the round,
which they take anew from the arrays that the next round begins with; a wrapped strategy is saved on its own.

In the JSON a plain value stands for itself and a list for a list; a dictionary says by its key what it is::

    {"tensor": name}   {"array": name}   {"number": name}      torch; NumPy; a NumPy number
    {"float": "nan"}   {"tuple": [...]}  {"dict": [key, ...], "values": [...]}
    {"strategy": {attribute: value}}     {"own": what state_dict returned}      {"set": [...]}, ...
"""

from __future__ import annotations

import functools
import logging
import math
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from fedvision.algorithms.base import RoundStrategy
from fedvision.errors import PluginError, RunFolderError, with_kind
from fedvision.types import State

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""What ``json.dumps`` writes."""


_CODE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    functools.partial,
    np.ufunc,
    torch.dtype,
    torch.device,
    logging.Logger,
)
"""What a constructor makes anew: it does not change from round to round."""
_FACTORIES: dict[str, Any] = {f.__name__: f for f in (bool, dict, float, int, list, set, str, tuple)}


class _LeftOut(Exception):
    """A value that cannot be saved; carries the place and the value."""


def snapshot(strategy: object) -> tuple[State, dict[str, JSON]]:
    """Return copies of all that a strategy remembers.

    Args:
        strategy: Any object with attributes.

    Returns:
        Contiguous CPU tensors by name, which share no memory with anything, and a JSON dictionary by
        attribute that refers to them.

    Raises:
        PluginError: An attribute holds what could not be restored to the bit, or a ``state_dict`` fails.
    """
    tensors: State = {}
    if _is_explicit(strategy):
        return tensors, {_OWN: _write_own(strategy, _OWN, tensors)}
    return tensors, _write_object(strategy, "", tensors)


def restore(strategy: object, tensors: Mapping[str, torch.Tensor], values: Mapping[str, JSON]) -> None:
    """Give a newly built strategy what another one remembered.

    Args:
        strategy: An object built as the saved one was; its attributes are replaced.
        tensors: As ``snapshot`` returned them. They are copied and come back on the CPU.
        values: As ``snapshot`` returned them.

    Raises:
        RunFolderError: The values refer to a tensor that is missing, or were not written by ``snapshot``.
        PluginError: A ``load_state_dict`` fails.
    """
    if _is_explicit(strategy):
        if _OWN not in values:
            raise RunFolderError("the checkpoint was made before the strategy had a state_dict; start again")
        _restore_own(strategy, _read(values[_OWN], tensors))
        return
    for attribute, value in values.items():
        if isinstance(value, dict) and "own" in value:
            _restore_own(getattr(strategy, attribute, None), _read(value["own"], tensors))
        elif isinstance(value, dict) and "strategy" in value:
            inner, fields = getattr(strategy, attribute, None), value["strategy"]
            if not isinstance(inner, RoundStrategy) or not isinstance(fields, dict):
                raise RunFolderError(
                    f"the checkpoint holds a strategy in {attribute!r}, but this experiment's strategy has "
                    "none there; resume the experiment that was run"
                )
            restore(inner, tensors, fields)
        else:
            setattr(strategy, attribute, _read(value, tensors))


_OWN = "own state"


def _is_flowers(value: object) -> bool:
    """Return whether a value is a record of Flower's, or a wrapped strategy, which is saved apart."""
    return any(kind.__module__.startswith("flwr.") for kind in type(value).__mro__)


def _is_explicit(thing: object) -> bool:
    return all(callable(getattr(thing, name, None)) for name in ("state_dict", "load_state_dict"))


def _write_own(thing: Any, path: str, tensors: State) -> JSON:
    try:
        own = thing.state_dict()
    except (Exception, SystemExit) as error:
        raise _broken(thing, "state_dict", error) from error
    try:
        return _write(own, path, tensors)
    except _LeftOut as error:
        raise _refusal(type(thing).__name__, error) from None


def _restore_own(thing: Any, state: Any) -> None:
    if not _is_explicit(thing):
        raise RunFolderError(
            "the checkpoint holds an object's state_dict, and this strategy has a "
            f"{type(thing).__name__} there; resume the experiment that was run"
        )
    try:
        thing.load_state_dict(state)
    except (Exception, SystemExit) as error:
        raise _broken(thing, "load_state_dict", error) from error


def _broken(thing: object, method: str, error: BaseException) -> PluginError:
    return PluginError(
        f"{method} of the strategy's {type(thing).__name__} raised {with_kind(error)}; correct it and go on "
        "with --resume"
    )


def _refusal(owner: str, error: _LeftOut) -> PluginError:
    path, value = error.args
    return PluginError(
        f"the strategy {owner} keeps a {type(value).__name__} in {path!r}, which a checkpoint cannot restore "
        "to the bit; keep tensors, numbers and plain containers, or give the strategy state_dict and "
        "load_state_dict"
    )


def _write_object(strategy: object, where: str, tensors: State) -> dict[str, JSON]:
    values: dict[str, JSON] = {}
    for attribute, value in vars(strategy).items():
        path = f"{where}{attribute}"
        if isinstance(value, _CODE) or _is_flowers(value):
            continue
        try:
            if isinstance(value, RoundStrategy) and not _is_explicit(value):
                values[attribute] = {"strategy": _write_object(value, f"{path}/", tensors)}
            elif _is_explicit(value):
                values[attribute] = {"own": _write_own(value, path, tensors)}
            else:
                values[attribute] = _write(value, path, tensors)
        except _LeftOut as error:
            raise _refusal(type(strategy).__name__, error) from None
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
    if isinstance(value, np.random.Generator | random.Random | torch.Generator):
        return _write_random(value, path, tensors)
    if type(value) in (bytes, complex):
        return {"bytes": value.hex()} if isinstance(value, bytes) else {"complex": repr(value)}
    return _write_container(value, path, tensors)


def _write_random(value: Any, path: str, tensors: State) -> JSON:
    if isinstance(value, np.random.Generator):
        state = _write(value.bit_generator.state, path, tensors)
        return {"numpy-random": type(value.bit_generator).__name__, "state": state}
    if isinstance(value, torch.Generator):
        return {"torch-random": _put(value.get_state(), path, tensors), "device": str(value.device)}
    if type(value) is not random.Random:
        raise _LeftOut(path, value)
    return {"python-random": _write(value.getstate(), path, tensors)}


def _write_container(value: Any, path: str, tensors: State) -> JSON:
    kind = type(value)
    if kind in (list, tuple, set, frozenset, deque):
        items: list[JSON] = [_write(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]
        if kind is deque:
            return {"deque": items, "longest": value.maxlen}
        return items if kind is list else {kind.__name__: items}
    if kind not in (dict, OrderedDict, Counter, defaultdict):
        raise _LeftOut(path, value)
    written: dict[str, JSON] = {
        "dict": [_write_key(key, path) for key in value],
        "values": [_write(item, f"{path}/{key}", tensors) for key, item in value.items()],
    }
    if kind is defaultdict:
        factory = value.default_factory
        if factory is not None and _FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
            raise _LeftOut(path, value)
        written["default"] = factory.__name__ if factory else None
    return written if kind is dict else {**written, "kind": kind.__name__}


def _write_key(key: object, path: str) -> JSON:
    if isinstance(key, torch.Tensor | np.ndarray | np.generic):
        raise _LeftOut(path, key)
    return _write(key, path, {})


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
        raise _LeftOut("an array", array) from None


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
            pairs = [(_read(k, tensors), _read(v, tensors)) for k, v in zip(keys, items, strict=True)]
            return _dictionary(value, pairs)
        case {"set": list(items)}:
            return {_read(item, tensors) for item in items}
        case {"frozenset": list(items)}:
            return frozenset(_read(item, tensors) for item in items)
        case {"deque": list(items), "longest": longest}:
            return deque((_read(item, tensors) for item in items), longest)  # type: ignore[arg-type]
        case {"bytes": str(text)}:
            return bytes.fromhex(text)
        case {"complex": str(text)}:
            return complex(text)
        case _:
            return _read_random(value, tensors)


def _dictionary(value: Mapping[str, JSON], pairs: list[tuple[Any, Any]]) -> Any:
    match value.get("kind"):
        case "OrderedDict":
            return OrderedDict(pairs)
        case "Counter":
            return Counter(dict(pairs))
        case "defaultdict":
            return defaultdict(_FACTORIES.get(str(value["default"])), pairs)
        case _:
            return dict(pairs)


def _read_random(value: dict[str, JSON], tensors: Mapping[str, torch.Tensor]) -> Any:
    match value:
        case {"numpy-random": str(name), "state": state}:
            bits = getattr(np.random, name)()
            bits.state = _read(state, tensors)
            return np.random.Generator(bits)
        case {"torch-random": str(name), "device": str(device)}:
            return torch.Generator(device).set_state(_get(name, tensors))
        case {"python-random": state}:
            source = random.Random()
            source.setstate(_read(state, tensors))
            return source
        case _:
            raise RunFolderError(f"the checkpoint's strategy values cannot be read: {value!r}")


def _get(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise RunFolderError(f"the checkpoint is incomplete: the strategy's tensor {name!r} is missing")
    return tensors[name].detach().cpu()
