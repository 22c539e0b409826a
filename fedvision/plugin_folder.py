"""The experiment's folder, whose modules are found by their bare names before any other of that name.

Python keeps one module of a name in a process. Two experiments in different folders may each have a
``my_loss.py``, with helpers beside it: only one folder is in use at a time, and its modules leave
``sys.modules`` with it. They are kept, so that a folder that is used again has the same classes. A program's
own module of such a name steps aside as long as the folder is in use. Modules of Python itself and of
installed packages stay: most others rest on them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fedvision.errors import PluginError, nearest, with_kind


@dataclass
class _Use:
    """A folder, and what it changed in the process."""

    path: str
    present: frozenset[str]
    """Names of modules that were there before: none of the folder's, even if they lie in it."""
    displaced: dict[str, ModuleType] = field(default_factory=dict)
    """The program's own modules that have a name of one in the folder."""


_current: _Use | None = None
_modules: dict[str, dict[str, ModuleType]] = {}
"""Modules of folders that were in use before, by folder."""


def allow_folder(folder: Path | None) -> None:
    """Let ``"module:attr"`` find modules in a folder, before all others, and in none that was allowed before.

    Args:
        folder: The experiment's folder; None for what Python finds without one.
    """
    global _current
    path = None if folder is None else str(folder.resolve())
    if _current is not None and _current.path != path:
        _leave(_current)
        _current = None
    if path is None:
        return
    _current = _current or _Use(path, frozenset(sys.modules))
    if sys.path[:1] != [path]:
        sys.path.insert(0, path)
    importlib.invalidate_caches()
    entries = os.listdir(path) if os.path.isdir(path) else []
    for name in {entry.partition(".")[0] for entry in entries} & sys.modules.keys():
        if (file := _beside(path, name)) and _replaceable(name) and not _is_from(name, file):
            _current.displaced |= _take(name)
    sys.modules.update(_modules.pop(path, {}))


def allowed_folder() -> Path | None:
    """Return the folder in which plug-ins are found first."""
    return None if _current is None else Path(_current.path)


def other_module(name: str) -> str | None:
    """Say which module would be had in the place of one in the folder, which Python or a package holds.

    Args:
        name: A module's dotted name.

    Returns:
        Its file, or that it is built in; None where the folder's own, or none of that name in it, is found.
    """
    top = name.partition(".")[0]
    file = None if _current is None else _beside(_current.path, top)
    if _current is None or file is None:
        return None
    if top in sys.modules and not _is_from(top, file) and _replaceable(top):
        allow_folder(Path(_current.path))  # the program imported its own since
    if top not in sys.modules or _is_from(top, file):
        return None
    return getattr(sys.modules[top], "__file__", None) or "Python itself"


def _leave(use: _Use) -> None:
    if use.path in sys.path:
        sys.path.remove(use.path)
    tops = {name.partition(".")[0] for name in sys.modules.keys() - use.present}
    own = [top for top in tops if (file := _beside(use.path, top)) and _is_from(top, file)]
    _modules[use.path] = {}
    for top in own:
        if top not in use.present or top in use.displaced:
            _modules[use.path] |= _take(top)
    sys.modules.update(use.displaced)


def _beside(folder: str, name: str) -> str | None:
    """Return the file of a module or package in a folder."""
    for file in (os.path.join(folder, name, "__init__.py"), os.path.join(folder, f"{name}.py")):
        if os.path.isfile(file):
            return file
    return None


def _is_from(name: str, file: str) -> bool:
    found = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(found, str) and os.path.realpath(found) == os.path.realpath(file)


def _replaceable(name: str) -> bool:
    """Return whether a module is a program's own, not Python's, a package's or this one's."""
    if name in sys.stdlib_module_names or name in ("__main__", __name__.partition(".")[0]):
        return False
    module = sys.modules[name]
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return not any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)


def _take(top: str) -> dict[str, ModuleType]:
    """Take a module and those below it out of ``sys.modules``."""
    names = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
    return {name: sys.modules.pop(name) for name in names}


def _public(thing: Any) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def import_target(kind: str, use: str, target: str) -> Callable[..., Any]:
    """Import a plug-in's function or class.

    Args:
        kind: Its kind, for errors.
        use: Its name, for errors.
        target: ``"module:attr"``.

    Raises:
        PluginError: Its module or attribute cannot be imported.
    """
    module_name, _, attribute = target.partition(":")
    if other := other_module(module_name):
        raise PluginError(
            f"[{kind}] use = {use!r}: {module_name!r} beside the experiment has the name of a module that "
            f"the program rests on ({other}); rename the file"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise PluginError(
                f"[{kind}] use = {use!r}: there is no module {module_name!r}; put {module_name}.py beside "
                "the experiment or install its package"
            ) from error
        raise PluginError(
            f"[{kind}] use = {use!r}: its module {module_name!r} needs {error.name!r}, which is not installed"
        ) from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"[{kind}] use = {use!r}: importing {module_name!r} failed: {with_kind(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PluginError(
                f"[{kind}] use = {use!r}: {module_name} has no {part!r}{nearest(part, _public(found))}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise PluginError(f"[{kind}] use = {use!r}: {target} is no function or class")
    return found  # type: ignore[no-any-return]


def sources(table: Mapping[str, Any]) -> dict[str, str]:
    """Return SHA-256 digests of the source files of all modules that an experiment names by ``module:attr``.

    Args:
        table: The experiment as nested tables; its plug-ins were built before.
    """
    import hashlib

    found: dict[str, str] = {}
    for name in sorted(_named_modules(table)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and os.path.isfile(file):
            with open(file, "rb") as source:
                found[name] = hashlib.file_digest(source, "sha256").hexdigest()
    return found


def _named_modules(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set().union(*(_named_modules(item) for item in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_named_modules, value))
    return {value.partition(":")[0]} if isinstance(value, str) and ":" in value else set()
