"""Keys that factories share: a dataclass's fields taken one by one."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import dataclass, field

import pytest

from fedvision import registry
from fedvision.cli.reference import plugin_arguments
from fedvision.errors import PluginError
from fedvision.shared_keys import field_texts, key_texts, takes_fields_of
from fedvision.types import PluginSpec

HERE = __name__


@dataclass(frozen=True, kw_only=True)
class Square:
    """What is read."""

    size: int
    """Side in pixels."""
    fit: str = "crop"
    """How it fits:
    ``"crop"``."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be >= 1, not {self.size}")


@dataclass(frozen=True, kw_only=True)
class Padded(Square):
    """With another default."""

    fit: str = "pad"
    bars: int = 0
    """Their shade."""
    sides: list[str] = field(default_factory=lambda: ["left"])
    """Where they are."""


@takes_fields_of(Padded)
def picture(*, path: str, shade: int = 7, how: Padded) -> tuple[str, int, Padded]:
    """Make a picture.

    Args:
        path: Where it is.
        shade: Its shade.
        how: What it shares.
    """
    return path, shade, how


def test_fields_are_arguments() -> None:
    assert picture(path="a", size=4, bars=2) == ("a", 7, Padded(size=4, bars=2))
    assert picture(path="a", size=4, fit="crop", shade=1) == ("a", 1, Padded(size=4, fit="crop"))


def test_keys_stand_with_the_needed_ones_first() -> None:
    parameters = inspect.signature(picture).parameters
    assert list(parameters) == ["path", "size", "shade", "fit", "bars", "sides"]
    assert parameters["size"].default is inspect.Parameter.empty
    assert (parameters["fit"].default, parameters["sides"].default) == ("pad", ["left"])
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


def test_texts_of_bases_stay_where_a_field_has_none_of_its_own() -> None:
    assert field_texts(Padded) == {
        "size": "Side in pixels.",
        "fit": 'How it fits: `"crop"`.',
        "bars": "Their shade.",
        "sides": "Where they are.",
    }
    assert key_texts(picture) == field_texts(Padded)
    assert key_texts(len) == {}


def test_an_experiment_sets_them() -> None:
    use = f"{HERE}:picture"
    spec = PluginSpec(use=use, args={"path": "a", "size": 4})
    assert registry.build("data", spec) == ("a", 7, Padded(size=4))
    described = {argument.name: argument.text for argument in plugin_arguments("data", use)}
    assert described == {"path": "Where it is.", "shade": "Its shade.", **field_texts(Padded)}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"path": "a"}, "the key 'size' is missing"),
        ({"path": "a", "size": "4"}, "size must be int, not '4'"),
        ({"path": "a", "size": 4, "sise": 4}, "it takes no key 'sise'"),
        ({"path": "a", "size": 4, "how": 4}, "it takes no key 'how'"),
        ({"path": "a", "size": 0}, "size must be >= 1, not 0"),
    ],
)
def test_wrong_keys_are_told_as_those_of_a_plain_factory(args: dict[str, object], told: str) -> None:
    with pytest.raises(PluginError, match=told):
        registry.build("data", PluginSpec(use=f"{HERE}:picture", args=args))


def test_calls_are_checked_as_those_of_a_plain_function() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'size'"):
        picture(path="a")
    with pytest.raises(TypeError, match="unexpected keyword argument 'how'"):
        picture(path="a", size=4, how=Padded(size=4))


def test_a_factory_needs_one_place_for_them() -> None:
    def none(*, path: str) -> None: ...
    def two(*, one: Square, other: Square) -> None: ...

    for factory in (none, two):
        with pytest.raises(TypeError, match="one parameter must have the annotation Square"):
            takes_fields_of(Square)(factory)


def test_keys_of_one_name_are_refused() -> None:
    def beside(*, size: int, how: Square) -> None: ...
    def holder(*, size: Square) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'size'"):
        takes_fields_of(Square)(beside)
    with pytest.raises(TypeError, match="are both called 'size'"):
        takes_fields_of(Square)(holder)


def test_a_factory_is_found_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(picture)) is picture
    assert registry.name_of("data", picture) == f"{HERE}:picture"
