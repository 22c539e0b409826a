"""What the values of a mask stand for: a table from values, or colours, to classes.

By default a pixel's value is its class. ``values`` lists the value of each class instead, ``regions`` gives
each class any number of values and makes a background of all others, ``colours`` lists the colour of each
class of masks that are pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.decoding.file_list import resolve_classes
from fedvision.data.masks import IGNORED, MOST_CLASSES
from fedvision.data.naming import composed
from fedvision.errors import DataError

BACKGROUND = "background"
"""The class of pixels that are in no region."""
_UNKNOWN = -1
_TABLE = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskCode:
    """Values or colours -> classes."""

    classes: tuple[str, ...]
    """Class names; empty where they are the values that masks hold."""
    numbers: Mapping[int, int]
    """Value, or colour as red x 65536 + green x 256 + blue -> class, or ``IGNORED``."""
    others: int
    """The class of all other values, ``IGNORED``, or -1 where there must be none."""
    coloured: bool = False
    """Whether masks are pictures."""

    @property
    def meaning(self) -> tuple[object, ...]:
        """What decoding depends on, the same in every process."""
        return tuple(sorted(self.numbers.items())), self.others, self.coloured

    def decode(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel.

        Args:
            values: Whole numbers [...], or colours uint8 [..., 3] where masks are pictures.

        Raises:
            ValueError: A value stands for no class; the sentence ends one that begins with the file.
        """
        if self.coloured:
            red, green, blue = np.moveaxis(values.astype(np.int64), -1, 0)
            values = (red << 16) + (green << 8) + blue
        tabled = values.dtype == np.uint8 or self.coloured or 0 <= values.min() <= values.max() < _TABLE
        meant = self._table[values] if tabled else self._looked_up(values)
        if self.others == _UNKNOWN and (wrong := values[meant == _UNKNOWN]).size:
            raise ValueError(self._unknown(int(wrong.min())))
        classes: NDArray[np.uint8] = meant.astype(np.uint8)
        return classes

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """The class of each colour, or of each value of 16 bits: sorting a mask takes ten times as long."""
        table = np.full(1 << 24 if self.coloured else _TABLE, self.others, np.int16)
        for value, number in self.numbers.items():
            if value < len(table):
                table[value] = number
        return table

    def _looked_up(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """Return the class of each value, or -1, where some are of no table."""
        found, places = np.unique(values, return_inverse=True)
        meant = np.array([self.numbers.get(int(value), self.others) for value in found], np.int16)
        return meant[places].reshape(values.shape)

    def _unknown(self, value: int) -> str:
        if self.coloured:
            shown = [value >> 16, value >> 8 & 255, value & 255]
            return f"the colour {shown} is none of data.colours; add it, or correct the mask"
        known = len(self.classes)
        if not known:
            void = ", ".join(str(one) for one, meant in self.numbers.items() if meant == IGNORED)
            return (
                f"the value {value} is no class, which are 0 to {MOST_CLASSES - 1} (ignored: {void}); say "
                "what values stand for with data.values"
            )
        given = "data.values and data.ignore" if set(self.numbers) != {*range(known), IGNORED} else ""
        named = f"is none of {given}" if given else f"is no class: {known} are named, so 0 to {known - 1}"
        return f"the value {value} {named}; add it, or correct the mask"


def mask_code(
    classes: Sequence[str] | None,
    values: Sequence[int] = (),
    colours: Sequence[Sequence[int]] = (),
    regions: Mapping[str, Sequence[int]] | None = None,
    ignore: int | Sequence[int] = IGNORED,
) -> MaskCode:
    """Return what values stand for.

    Args:
        classes: Class names in the order of their numbers, or None.
        values: The value of each class in their order; empty where value and number are the same.
        colours: The colour [red, green, blue] of each class, each 0..255.
        regions: Class -> its values; all other values are the class ``background``, which comes first.
        ignore: The value, or values, of pixels without a class, unless a class has it.

    Raises:
        ValueError: The keys contradict each other, or hold what is no value.
    """
    listed = ignore if isinstance(ignore, list | tuple) else [ignore]
    ignored = dict.fromkeys((_value(one, "ignore") for one in listed), IGNORED)
    if sum(map(bool, (values, colours, regions))) > 1:
        raise ValueError("values, colours and regions each say what masks hold; leave one of them")
    if regions:
        return _of_regions(regions, classes, ignored)
    coded = [_colour(one) for one in colours] if colours else [_value(one) for one in values]
    names = () if classes is None else resolve_classes(classes, classes, "data.classes")
    if coded and names and len(coded) != len(names):
        key = "colours" if colours else "values"
        raise ValueError(f"{key} has {len(coded)} entries, and classes names {len(names)}; give each one")
    if len(set(coded)) < len(coded):
        raise ValueError(f"{'colours' if colours else 'values'} must be different from each other")
    if coded and not names:
        names = tuple(map(str, range(len(coded)) if colours else coded))
    if len(names) > MOST_CLASSES:
        raise ValueError(f"there are {len(names)} classes; a mask holds {MOST_CLASSES} at most")
    if colours and set(ignored) - {IGNORED}:
        raise ValueError("ignore lists values, and masks with colours have none; leave it out")
    if coded:
        numbers = dict(zip(coded, range(len(coded)), strict=True))
    else:
        if (number := next((one for one in range(len(names)) if one in ignored), None)) is not None:
            raise ValueError(
                f"ignore has {number}, which is the number of class {names[number]!r}; list the value of "
                "each class in values"
            )
        numbers = {one: one for one in range(len(names) or MOST_CLASSES) if one not in ignored}
    taken = {} if colours else ignored
    return MaskCode(classes=names, numbers={**taken, **numbers}, others=_UNKNOWN, coloured=bool(colours))


def _of_regions(
    regions: Mapping[str, Sequence[int]], classes: Sequence[str] | None, ignored: Mapping[int, int]
) -> MaskCode:
    if not isinstance(regions, Mapping) or not all(isinstance(one, list | tuple) for one in regions.values()):
        raise ValueError(
            "regions must be a table of lists of values, such as { liver = [1], tumour = [2, 3] }"
        )
    names = tuple(map(composed, regions))
    if BACKGROUND in names:
        raise ValueError(f"regions: {BACKGROUND!r} is all that is in no region; leave it out")
    if classes is not None and tuple(map(composed, classes)) != (BACKGROUND, *names):
        raise ValueError(
            f"classes must be {[BACKGROUND, *names]} as regions gives them, or be left out, not "
            f"{list(classes)}"
        )
    numbers = dict(ignored)
    seen = dict[int, str]()
    for number, (name, values) in enumerate(regions.items(), 1):
        for value in map(_value, values):
            if value in seen:
                raise ValueError(f"regions: {value} is in {seen[value]!r} and in {name!r}; name it once")
            seen[value], numbers[value] = name, number
    return MaskCode(classes=(BACKGROUND, *names), numbers=numbers, others=0)


def _value(one: Any, what: str = "the value of a mask") -> int:
    if type(one) is not int or one < 0:
        raise ValueError(f"{what} must be a whole number >= 0, not {one!r}")
    return one


def _colour(one: Any) -> int:
    whole = isinstance(one, list | tuple) and len(one) == 3
    if not whole or not all(type(part) is int and 0 <= part <= 255 for part in one):
        raise ValueError(f"colours must be [red, green, blue], each from 0 to 255, not {one!r}")
    red, green, blue = map(int, one)
    return (red << 16) + (green << 8) + blue


def with_classes(code: MaskCode, masks: Iterable[NDArray[np.uint8]], where: str) -> tuple[str, ...]:
    """Return the class names of decoded masks: those named, else the numbers up to the highest one.

    Args:
        code: What their values stood for.
        masks: uint8 [H, W] each.
        where: Their place, for the sentence of an error.

    Raises:
        DataError: No mask has any class, or one that is ignored is among the numbers.
    """
    if code.classes:
        return code.classes
    present = np.zeros(256, bool)
    for mask in masks:
        present[mask] = True
    present = present[:IGNORED]
    if not present.any():
        raise DataError(f"{where}: all pixels of all masks are ignored; correct the masks or data.ignore")
    numbers = range(int(np.flatnonzero(present)[-1]) + 1)
    if void := [number for number in numbers if code.numbers.get(number) == IGNORED]:
        shown = [number for number in numbers if number not in void]
        raise DataError(
            f"{where}: data.ignore has {void[0]}, below the highest class, so that a class without any pixel "
            f"would be numbered {void[0]}; list the value of each class in data.values, such as {shown[:3]}"
        )
    return tuple(map(str, numbers))
