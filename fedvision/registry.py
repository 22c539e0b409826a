"""Plug-ins by name: ``"name"`` | entry point | ``"module:attr"`` -> factory -> object.

The built-ins are the table of ``builtin_plugins``; they are found by the same code as any plug-in, so nothing
is registered by importing it. An entry point of group ``fedvision.<kind>`` (``fedvision.loss``, ...) adds the
name of an installed package; ``"my_file:thing"`` needs only a file in the experiment's folder.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from fedvision.builtin_plugins import BUILTINS as BUILTINS
from fedvision.builtin_plugins import Builtin as Builtin
from fedvision.errors import FedVisionError, PluginError, closest, nearest, with_kind
from fedvision.families import FAMILIES, check_name, family_of
from fedvision.plugin_folder import allow_folder as allow_folder
from fedvision.plugin_folder import allowed_folder as allowed_folder
from fedvision.plugin_folder import import_target
from fedvision.types import PluginSpec

_SEEDED = ("model", "head", "expansion", "optimizer")
"""Kinds that are built where the global generators are seeded from the experiment, or that draw nothing."""


class Factory(NamedTuple):
    """A resolved plug-in: what to call, arguments that are settled, and where it came from."""

    call: Callable[..., Any]
    preset: Mapping[str, Any]
    origin: str


def names(kind: str) -> dict[str, str]:
    """Return every option of ``use =`` for a kind, of a family one, with where it comes from."""
    from importlib.metadata import entry_points  # a tenth of a second that most commands do without

    found: dict[str, str] = {}
    if kind == "optimizer":
        found |= {name.lower(): f"torch.optim:{name}" for name in _optimizers()}
    found |= {name: builtin.target for name, builtin in BUILTINS[kind].items()}
    for prefix, family in FAMILIES.get(kind, {}).items():
        found[prefix + family.example] = family.target
    found |= {point.name: point.value for point in entry_points(group=f"fedvision.{kind}")}
    return found


def name_of(kind: str, thing: Callable[..., Any]) -> str:
    """Return the name by which ``resolve`` finds a class or function: a built-in's or ``"module:attr"``."""
    target = f"{thing.__module__}:{thing.__qualname__}"
    return next((name for name, builtin in BUILTINS[kind].items() if builtin == Builtin(target)), target)


def resolve(kind: str, use: str) -> Factory:
    """Find a plug-in's factory.

    Args:
        kind: A key of ``BUILTINS``: ``"data"``, ``"model"``, ``"loss"``, ...
        use: Built-in name, entry point, or ``"module:attr"``.

    Raises:
        PluginError: The name is unknown, or its module or attribute cannot be imported.
    """
    if builtin := BUILTINS[kind].get(use):
        return Factory(import_target(kind, use, builtin.target), builtin.preset, builtin.target)
    if ":" in use:
        return Factory(import_target(kind, use, use), {}, use)
    if found := family_of(kind, use):
        family, name = found
        check_name(kind, use, family, name)
        return Factory(import_target(kind, use, family.target), {"name": name}, family.target)
    known = names(kind)
    if target := known.get(use.lower() if kind == "optimizer" else use):
        return Factory(import_target(kind, use, target), {}, target)
    raise PluginError(f"[{kind}] use = {use!r}: there is no such {kind}{nearest(use, known)}")


def is_builtin(kind: str, use: str) -> bool:
    """Return whether a name is a built-in's or one of a family's."""
    return use in BUILTINS[kind] or (":" not in use and family_of(kind, use) is not None)


def tasks_of(kind: str, use: str) -> frozenset[str]:
    """Return for which tasks a plug-in is: its attribute ``tasks``; none where it does not say.

    Raises:
        PluginError: It is unknown.
    """
    if builtin := BUILTINS[kind].get(use):
        return builtin.tasks
    if ":" not in use and (found := family_of(kind, use)):
        return frozenset({found[0].task})
    return frozenset(getattr(resolve(kind, use).call, "tasks", ()))


def check_task(kind: str, use: str, task: str, *others: str) -> None:
    """Refuse a loss or metric of another task; of a plug-in without an attribute ``tasks`` any will do.

    Args:
        kind: ``"loss"`` or ``"metric"``.
        use: Its name.
        task: Name of the experiment's task.
        others: Names of tasks whose plug-ins serve it as well.

    Raises:
        PluginError: It is for other tasks, or unknown.
    """
    tasks, serving = tasks_of(kind, use) or {task}, {task, *others}
    if serving.isdisjoint(tasks):
        fitting = [name for name, other in BUILTINS[kind].items() if not serving.isdisjoint(other.tasks)]
        raise PluginError(
            f"[{kind}] use = {use!r} is for {', '.join(sorted(tasks))}, not for [task] use = {task!r}"
            f"{nearest(use, fitting)}"
        )


def parameters(kind: str, use: str) -> frozenset[str]:
    """Return the parameter names of a plug-in's factory."""
    return frozenset(inspect.signature(resolve(kind, use).call).parameters)


def build(kind: str, spec: PluginSpec, **runtime: Any) -> Any:
    """Build a plug-in from its specification.

    Args:
        kind: A key of ``BUILTINS``.
        spec: Name and keyword arguments, as written in the experiment.
        runtime: What only the program knows (class counts, round, ...): passed where the factory has a
            parameter of that name, never settable from the experiment.

    Raises:
        PluginError: The plug-in is unknown or its arguments do not fit.
    """
    return maker(kind, spec, frozenset(runtime))(**runtime)


def maker(kind: str, spec: PluginSpec, runtime: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """Find and check a plug-in once where it is built for every client: a look-up may read every package.

    Args:
        kind: A key of ``BUILTINS``.
        spec: Name and keyword arguments, as written in the experiment.
        runtime: Names of what only the program knows.

    Returns:
        ``make(**runtime) -> plug-in``, to be called with all of those names; it raises PluginError where the
        factory refuses a value.

    Raises:
        PluginError: The plug-in is unknown or its arguments do not fit.
    """
    factory = resolve(kind, spec.use)
    arguments = check(kind, spec, runtime, factory)
    accepted = runtime & inspect.signature(factory.call).parameters.keys()
    own = kind in _SEEDED or is_builtin(kind, spec.use)

    def make(**given: Any) -> Any:
        offered = {name: value for name, value in given.items() if name in accepted}
        try:
            with nullcontext() if own else _streams(kind):
                return factory.call(**{**arguments, **offered})
        except FedVisionError:
            raise
        except (TypeError, ValueError) as error:
            raise PluginError(f"[{kind}] use = {spec.use!r}: {error}") from error
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"[{kind}] use = {spec.use!r}: building it failed: {with_kind(error)}"
            ) from error

    return make


def _streams(kind: str) -> AbstractContextManager[None]:
    from fedvision import seeding  # most commands do without NumPy

    return seeding.global_streams(0, kind)


def check(
    kind: str, spec: PluginSpec, runtime: frozenset[str] = frozenset(), factory: Factory | None = None
) -> dict[str, Any]:
    """Check a specification's arguments against the factory's signature without building it.

    Returns:
        The keyword arguments to call the factory with, runtime ones left out.

    Raises:
        PluginError: An argument is unknown, missing, of another type, or not for the experiment to set.
    """
    factory = factory or resolve(kind, spec.use)
    where = f"[{kind}] use = {spec.use!r}"
    parameters = inspect.signature(factory.call).parameters
    settable = [name for name in parameters if name not in runtime and name not in factory.preset]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in spec.args.items():
        if name in settable:
            _check_type(where, name, value, parameters[name].annotation)
        elif not open_ended or name in runtime or name in factory.preset:
            # What is no key of the table was passed on to the factory: it may be either's, misspelt.
            own = [field.name for field in dataclasses.fields(spec) if field.name not in ("use", "args")]
            hint = closest(name, [*settable, *own]) or nearest(name, settable)
            raise PluginError(f"{where}: it takes no key {name!r}{hint}")
    given = {**factory.preset, **spec.args}
    for name, parameter in parameters.items():
        by_name = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        needed = parameter.default is parameter.empty and by_name
        if needed and name not in given and name not in runtime:
            raise PluginError(f"{where}: the key {name!r} is missing; add {name} = ... to its table")
    return given


_SCALARS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "Path": (str,),
    "None": (type(None),),
}


def _check_type(where: str, name: str, value: Any, annotation: Any) -> None:
    """Refuse a scalar of the wrong type; annotations that are not plain scalars are left to the factory."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    wanted = [part.strip() for part in text.split("|")]
    if not all(part in _SCALARS for part in wanted):
        return
    allowed = {kind for part in wanted for kind in _SCALARS[part]}
    if type(value) not in allowed:
        raise PluginError(f"{where}: {name} must be {text.replace('|', 'or')}, not {value!r}")


def _optimizers() -> list[str]:
    import torch

    base = torch.optim.Optimizer
    found = vars(torch.optim).items()
    return [name for name, kind in found if inspect.isclass(kind) and issubclass(kind, base) and kind != base]
