"""The images that went worst in the report: self-contained, in order, and all text stays text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvision.reporting.html import write_report
from fedvision.reporting.worst_images import worst_section
from fedvision.runs import worst_images
from fedvision.runs.worst_images import WorstImages
from fedvision.tasks.drawings import NEITHER, RIGHT, WRONG, Drawings
from tests.reporting.conftest import MakeRun
from tests.reporting.test_html import EVIL, Page

NAN = float("nan")
BOXES = np.array(
    [
        [0, 1, 0.874, RIGHT, 10, 10, 20, 20],
        [0, 0, 0.5, WRONG, 30, 30, 49, 49],
        [0, 1, NAN, RIGHT, 10, 10, 20, 21],
        [0, 2, NAN, WRONG, 2, 0, 20, 20],
        [1, 0, NAN, NEITHER, 0, 0, 40, 40],
    ]
)


def boxed(**changes: Any) -> WorstImages:
    values: dict[str, Any] = {
        "panels": np.zeros((2, 1, 50, 50, 3), np.uint8),
        "titles": ("image",),
        "captions": ("1 missed", "nothing"),
        "about": "How they are chosen.",
        "boxes": BOXES,
    }
    return WorstImages(classes=np.array([2, 0]), drawings=Drawings(**values | changes))


def masked(**changes: Any) -> WorstImages:
    panels = np.zeros((2, 3, 5, 5, 3), np.uint8)
    titles = ("image", "true mask", "predicted mask")
    key = {"#000000": "ground", "#800000": EVIL}
    return boxed(panels=panels, titles=titles, boxes=np.empty((0, 8)), key=key, **changes)


def test_nothing_is_shown_where_nothing_was_kept() -> None:
    assert worst_section(None, ("a",)) is None


def test_boxes_have_names_scores_and_looks() -> None:
    section = worst_section(boxed(), ("ant", "bee", "cow"))
    assert section is not None
    assert [name for name, _ in section.groups] == ["cow", "ant"]
    assert (section.has_boxes, section.has_crowds, section.several) == (True, True, False)
    ((first,), (second,)) = (images for _, images in section.groups)
    assert [(box.look, box.text) for box in first.panels[0].boxes] == [
        ("found wrong", "ant 0.50"),
        ("found right", "bee 0.87"),
        ("annotated right", "bee"),
        ("annotated wrong", "cow, missed"),
    ]
    assert [(box.look, box.text) for box in second.panels[0].boxes] == [("annotated neither", "ant, crowd")]


def test_names_stand_inside_of_the_picture() -> None:
    """Text is 2 high in a picture of 50: above an annotated box, below a found one, else inside."""
    section = worst_section(boxed(), ("ant", "bee", "cow"))
    assert section is not None
    assert section.letter == 2
    found_low, found, annotated, annotated_high = section.groups[0][1][0].panels[0].boxes
    assert (found_low.x, found_low.y, found_low.anchor) == (49, 48.4, "end")
    assert (found.x, found.y, found.anchor) == (10, 21.9, "start")
    assert (annotated.y, annotated_high.y) == (9.4, 2.0)
    assert (found.left, found.top, found.width, found.height) == (10, 10, 10, 10)


@pytest.mark.slow
def test_the_report_shows_them_and_fetches_nothing(make_run: MakeRun) -> None:
    folder = make_run()
    assert "Worst images" not in write_report(folder).read_text(encoding="utf-8")
    worst_images.write(folder.path, boxed())
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    for expected in (
        "Worst images of the rarest classes",
        "How they are chosen.",
        "in blue both agree, in orange an object was missed (solid) or a box is false (dashed), and gray",
        "1 missed",
    ):
        assert expected in page.text, expected
    assert "Colours of the masks" not in page.text
    pictures = [attrs for tag, attrs in page.tags if tag == "image" and attrs.get("width") == "50"]
    assert len(pictures) == 2
    assert all((attrs["href"] or "").startswith("data:image/png;base64,") for attrs in pictures)
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert sum(tag == "rect" and attrs.get("class") == "under" for tag, attrs in page.tags) == len(BOXES)
    plain = boxed(boxes=BOXES[:4])
    worst_images.write(folder.path, plain)
    assert "gray is a crowd" not in Page(write_report(folder).read_text(encoding="utf-8")).text


def test_masks_stand_side_by_side_with_a_key(make_run: MakeRun) -> None:
    folder = make_run(classes=(EVIL, "ground", EVIL))
    worst_images.write(folder.path, masked(captions=(EVIL, "b"), about=EVIL))
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert page.text.count(EVIL) >= 4
    assert "in blue both agree" not in page.text
    swatches = [
        attrs["style"] for tag, attrs in page.tags if tag == "i" and "#" in (attrs.get("style") or "")
    ]
    assert swatches == ["background: #000000", "background: #800000"]
    assert "image, true mask, predicted mask; b" in page.text
    assert sum(tag == "image" and attrs.get("width") == "5" for tag, attrs in page.tags) == 6
