"""A device that holds no float64, emulated on the CPU: what a GPU or an Apple chip refuses is refused here.

Tensors of the device compute on the CPU, so that a run has the CPU's numbers; but none may be of float64,
work with a tensor that is elsewhere, draw from another device's generator or become an array. The program
runs experiments on it, as PyTorch takes up a kind of device for a whole process:

    python -m tests.emulated_device FOLDER

It runs each FOLDER/NAME.toml to FOLDER/NAME and prints a line of JSON: its name, and what went wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from fedvision import ExperimentConfig, devices, simulate
from fedvision.types import LossFn

KIND = "single"
_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_TAKES_PLACES_FROM_THE_CPU = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default}
"""Operations that take a tensor of positions from the CPU on every device."""


class _Module(backend_registration._DummyBackendModule):
    """What ``torch.single`` offers."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Its operations draw from the CPU's generator."""


class _Tensor(torch.Tensor):
    """A tensor of the device; ``on_cpu`` has its numbers."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls: type[_Tensor], on_cpu: torch.Tensor) -> _Tensor:
        made: _Tensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            layout=on_cpu.layout,
            device=torch.device(KIND, 0),
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        """Return the numbers, as of every device's tensor."""
        return self.on_cpu.tolist()

    def new_tensor(self, data: Any, **kwargs: Any) -> torch.Tensor:
        """Return a tensor beside this one, which PyTorch moves past every mode."""
        return _tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})


class EmulatedDevice(TorchDispatchMode):
    """The block in which there is the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU; what it makes is on the device if what it takes is, or if asked to."""
    tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, _Tensor)]
    said = kwargs.get("device")
    if func is _ATEN.copy_.default:
        here = isinstance(args[0], _Tensor)
    else:
        here = bool(there) if said is None else torch.device(said).type == KIND
    if there and func not in _COPIES | _TAKES_PLACES_FROM_THE_CPU:
        if any(one.dim() and not isinstance(one, _Tensor) for one in tensors):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cpu and {KIND}")
    if here and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a {KIND!r} device type for generator but found 'cpu'")
    result = func(*pytree.tree_map(_on_cpu, args), **pytree.tree_map(_on_cpu, kwargs))
    if not here:
        return result
    changed = {id(one.on_cpu): one for one in there}

    def placed(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        if one.dtype is torch.float64:
            raise TypeError(f"{func}: the device {KIND!r} does not hold float64")
        return changed.get(id(one)) if id(one) in changed else _Tensor(one)

    return pytree.tree_map(placed, result)


def _on_cpu(one: Any) -> Any:
    if isinstance(one, torch.device) and one.type == KIND:
        return torch.device("cpu")
    return one.on_cpu if isinstance(one, _Tensor) else one


def _tensor(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """Do as ``torch.tensor``, which moves what it made past every mode."""
    made = _MAKE(*args, **kwargs)
    return made if device is None else made.to(device)


_MAKE = torch.tensor


def faulty(counts: torch.Tensor, *, fault: str) -> LossFn:
    """Return a loss that works on the CPU alone: ``float64``, ``elsewhere``, ``generator`` or ``array``."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        if fault == "float64":
            return losses.double()
        if fault == "elsewhere":
            return losses * torch.ones(len(losses))
        if fault == "generator":
            source = torch.Generator().manual_seed(0)
            return losses + torch.rand(len(losses), device=losses.device, generator=source)
        return losses + float(losses.detach().numpy().mean())

    return loss


def main(folder: str) -> None:
    """Run the experiments of a folder on the device."""
    torch.tensor = _tensor
    backend_registration._setup_privateuseone_for_python_backend(KIND, backend_module=_Module())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    devices.WITHOUT_FLOAT64.add(KIND)
    for path in sorted(Path(folder).glob("*.toml")):
        wrong = ""
        try:
            with EmulatedDevice():
                simulate(ExperimentConfig.load(path), out=path.with_suffix(""))
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        print(json.dumps([path.stem, wrong]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
