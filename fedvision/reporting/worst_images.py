"""The test images that went worst as a report shows them: pictures side by side, boxes as vectors on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedvision.reporting.page import png_uri
from fedvision.runs.worst_images import WorstImages
from fedvision.tasks import drawings
from fedvision.tasks.drawings import Drawings

_LETTERS = 25
"""Lines of text that fit into the longer side of a picture."""
_LOOKS = {drawings.WRONG: "wrong", drawings.RIGHT: "right", drawings.NEITHER: "neither"}


class Box(NamedTuple):
    """A box on a picture and its name, in pixels of the picture."""

    look: str
    """Words of its style: ``found`` or ``annotated``, and the verdict."""
    left: float
    top: float
    width: float
    height: float
    text: str
    x: float
    """Where the text is."""
    y: float
    anchor: str
    """``start`` or ``end``, whichever of the text is at ``x``."""


class Panel(NamedTuple):
    """A picture."""

    title: str
    source: str
    boxes: list[Box]


class Shown(NamedTuple):
    """An image."""

    caption: str
    panels: list[Panel]


@dataclass(frozen=True, kw_only=True)
class WorstSection:
    """What a report shows of the images that went worst."""

    about: str
    width: int
    """Of all pictures, pixels."""
    height: int
    letter: float
    """Height of the text in the pictures, pixels of theirs."""
    several: bool
    """Whether an image has panels side by side."""
    has_boxes: bool
    has_crowds: bool
    key: Mapping[str, str]
    """What colours mean."""
    groups: list[tuple[str, list[Shown]]]
    """Images by the class for which they are shown, the rarest first."""


def worst_section(worst: WorstImages | None, classes: Sequence[str]) -> WorstSection | None:
    """Return what is shown of a run's worst images; None where it kept none.

    Args:
        worst: What the run kept.
        classes: Class names [C].
    """
    if worst is None or not len(worst.classes):
        return None
    drawn = worst.drawings
    height, width = drawn.panels.shape[2:4]
    letter = max(height, width) / _LETTERS
    groups: dict[str, list[Shown]] = {}
    for number, label in enumerate(worst.classes.tolist()):
        panels = [
            Panel(title, png_uri(picture), _boxes(drawn, number, classes, letter) if not place else [])
            for place, (title, picture) in enumerate(zip(drawn.titles, drawn.panels[number], strict=True))
        ]
        groups.setdefault(_name(classes, label), []).append(Shown(drawn.captions[number], panels))
    return WorstSection(
        about=drawn.about,
        width=width,
        height=height,
        letter=letter,
        several=len(drawn.titles) > 1,
        has_boxes=len(drawn.boxes) > 0,
        has_crowds=bool((drawn.boxes[:, drawings.VERDICT] == drawings.NEITHER).any()),
        key=drawn.key,
        groups=list(groups.items()),
    )


def _boxes(drawn: Drawings, number: int, classes: Sequence[str], letter: float) -> list[Box]:
    """Return the boxes of an image; those annotated come last and so lie on top.

    The name of an annotated box stands above it and that of one found below, as they often lie on each other,
    or within it where that would be outside of the picture.
    """
    height, width = drawn.panels.shape[2:4]
    own = drawn.boxes[drawn.boxes[:, drawings.IMAGE] == number]
    annotated = np.isnan(own[:, drawings.SCORE])
    found = []
    for row in [*own[~annotated][::-1], *own[annotated]]:
        score, verdict = float(row[drawings.SCORE]), int(row[drawings.VERDICT])
        left, top, right, bottom = row[drawings.LEFT :].tolist()
        name = _name(classes, int(row[drawings.LABEL]))
        if np.isnan(score):
            kind = "annotated"
            text = name + {drawings.WRONG: ", missed", drawings.NEITHER: ", crowd"}.get(verdict, "")
            y = top - 0.3 * letter if top > 1.2 * letter else top + letter
        else:
            kind, text = "found", f"{name} {score:.2f}"
            y = bottom + 0.95 * letter if bottom < height - 1.2 * letter else bottom - 0.3 * letter
        at_end = left + right > width
        x, anchor = (right, "end") if at_end else (left, "start")
        found.append(
            Box(
                look=f"{kind} {_LOOKS[verdict]}",
                left=round(left, 2),
                top=round(top, 2),
                width=round(right - left, 2),
                height=round(bottom - top, 2),
                text=text,
                x=round(x, 2),
                y=round(y, 2),
                anchor=anchor,
            )
        )
    return found


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)
