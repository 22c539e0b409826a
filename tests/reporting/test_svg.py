"""Pictures belong to the page: nothing from outside, ids of their own, equal bytes for equal figures."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from matplotlib.axes import Axes

from fedvision.reporting.svg import BLUE, draw


def _paint(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], "o-", color=BLUE)
    axes.set_title("$5 </svg><script> 猫 & co")
    axes.imshow([[0, 1]], extent=(0, 1, 0, 1))


def _draw(name: str = "one") -> str:
    return draw(_paint, name=name, alt='a "line" <b>', width=100, height=80)


def test_the_picture_is_well_formed_with_a_description() -> None:
    root = ElementTree.fromstring(_draw().replace("xlink:", ""))
    assert root.tag.endswith("svg")
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'a "line" <b>'
    assert root.attrib["viewBox"] == "0 0 100 80"
    assert "width" not in root.attrib


def test_nothing_comes_from_outside() -> None:
    assert "http" not in _draw()
    assert "<metadata" not in _draw()


def test_user_text_is_text() -> None:
    svg = _draw()
    assert "<script>" not in svg
    assert "$5 &lt;/svg&gt;&lt;script&gt; 猫 &amp; co" in svg


def test_colours_and_fonts_are_the_pages() -> None:
    svg = _draw()
    assert "var(--blue)" in svg
    assert "var(--muted)" in svg
    assert "var(--sans)" in svg
    assert BLUE not in svg
    assert "DejaVu" not in svg


def test_ids_are_the_pictures_own_and_every_reference_has_its_target() -> None:
    svg = _draw("one")
    ids = re.findall(r'\sid="([^"]+)"', svg)
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', svg)
    assert used
    assert set(used) == set(ids)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids)


def test_equal_pictures_are_equal_bytes() -> None:
    assert _draw() == _draw()
    assert _draw("one") != _draw("two")


def test_a_picture_has_no_style_sheet_for_the_whole_page() -> None:
    assert "<style" not in _draw()
