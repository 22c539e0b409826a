"""Keys that several plug-ins share: fields of a dataclass, which each of their factories takes one by one."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, TypeVar

T = TypeVar("T")
_GROUPS = "key_groups"


def takes_fields_of(*groups: type[Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Let a factory take the fields of dataclasses as arguments, in the place of those that hold one.

    ::

        @takes_fields_of(Reading)
        def photos(*, path: str, reading: Reading) -> Dataset: ...

        photos(path="here", size=64, validation=0.2)  # reading = Reading(size=64, validation=0.2)

    What a field is for stands in the string under it; where the factory's docstring says it too, that counts.

    Args:
        groups: Dataclasses, each with keyword fields and the annotation of one parameter.

    Raises:
        TypeError: A dataclass is not the annotation of exactly one parameter, or a key has that one's name.
        ValueError: Two of them, or one and the factory, have a key of one name.
    """

    def decorate(factory: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(factory)
        holders = {_holder(signature, group): group for group in groups}
        parameters = [p for name, p in signature.parameters.items() if name not in holders]
        parameters += [_parameter(field) for group in groups for field in dataclasses.fields(group)]
        if taken := holders.keys() & {p.name for p in parameters}:
            raise TypeError(f"a key and the parameter that holds keys are both called {min(taken)!r}")
        # Those without a default first, as they stand first in what is read of a factory's keys.
        flat = signature.replace(parameters=sorted(parameters, key=lambda p: p.default is not p.empty))

        @functools.wraps(factory)
        def build(**given: Any) -> T:
            flat.bind(**given)
            for name, group in holders.items():
                own = [field.name for field in dataclasses.fields(group) if field.name in given]
                given[name] = group(**{key: given.pop(key) for key in own})
            return factory(**given)

        vars(build).update({"__signature__": flat, _GROUPS: groups})
        return build

    return decorate


def key_texts(factory: Any) -> Mapping[str, str]:
    """Return what the fields are for that a factory takes as arguments, by name."""
    groups: tuple[type[Any], ...] = getattr(factory, _GROUPS, ())
    return {name: text for group in groups for name, text in field_texts(group).items()}


def field_texts(cls: type[Any]) -> Mapping[str, str]:
    """Return the string under each field of a dataclass, its bases included, by field name, on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = " ".join(ast.literal_eval(text.value).split()).replace("``", "`")
    return found


def _holder(signature: inspect.Signature, group: type[Any]) -> str:
    """Return the parameter that holds a dataclass."""
    found = [name for name, p in signature.parameters.items() if p.annotation in (group, group.__name__)]
    if len(found) != 1:
        raise TypeError(f"one parameter must have the annotation {group.__name__}, not {found or 'none'}")
    return found[0]


def _parameter(field: dataclasses.Field[Any]) -> Parameter:
    default = Parameter.empty if field.default is dataclasses.MISSING else field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
