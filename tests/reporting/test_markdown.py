"""Markdown in which names stay names, and YAML that every reader understands."""

from __future__ import annotations

from typing import Any

import pytest
import yaml as reference
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fedvision.reporting.markdown import code, escaped, table, yaml

NASTY = [
    "a|b",
    "<script>alert(1)</script>",
    "two\nlines\r\n# heading",
    "`code` and ``more``",
    "[link](http://x.invalid)",
    "![picture](p.png)",
    "http://x.invalid www.x.invalid a@x.invalid",
    "**bold** _it_ ~~gone~~ $x$",
    "# heading",
    "- item",
    "1. first",
    "> quote",
    "&lt;b&gt; &amp;",
    "back\\slash\\|",
    "---",
    "***",
    "a\u202eb\u0000c",
    "</td></tr></table>",
]


def shown(markdown: str) -> list[Any]:
    """Return the inline tokens of a text, as GitHub reads it."""
    reader = MarkdownIt("gfm-like", {"linkify": False}).enable("table")
    return [child for token in reader.parse(markdown) for child in token.children or []]


@pytest.mark.parametrize("name", NASTY)
def test_a_name_in_a_cell_is_text_and_one_cell(name: str) -> None:
    page = table(["class", "n"], [[escaped(name), "1"], ["next", "2"]])
    tokens = MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(page)
    kinds = [token.type for token in tokens]
    assert kinds.count("tr_open") == 3
    assert kinds.count("td_open") == 4
    assert {child.type for child in shown(page)} <= {"text", "text_special"}
    cell = next(t for place, t in enumerate(tokens) if kinds[place - 1] == "td_open")
    text = "".join(child.content for child in cell.children or [])
    assert text == "".join(letter if letter.isprintable() else " " for letter in name).strip()


@pytest.mark.parametrize("name", NASTY)
def test_a_name_at_the_beginning_of_a_paragraph_is_text(name: str) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(escaped(name))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]


def test_addresses_do_not_become_links() -> None:
    assert escaped("http://x.org www.x.org WWW.y") == r"http\://x.org www\.x.org WWW\.y"
    assert escaped("mail a@x.org") == r"mail a\@x.org"


def test_code_stays_between_its_backticks() -> None:
    assert code("a`b\nc") == "a b c"


def test_long_names_are_cut() -> None:
    assert len(escaped("x" * 1000)) == 200


TREES: st.SearchStrategy[Any] = st.recursive(
    st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.from_regex(r"k[a-z_-]{0,8}", fullmatch=True), inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.from_regex(r"k[a-z_-]{0,8}", fullmatch=True), TREES, min_size=1, max_size=4))
def test_yaml_comes_back_as_it_was(value: dict[str, Any]) -> None:
    assert reference.safe_load(yaml(value)) == value


def test_only_what_begins_a_list_is_escaped_at_the_beginning() -> None:
    assert [escaped(text) for text in ("2.14.1", "0.5", "1.", "2. x", "- x", "---")] == [
        "2.14.1",
        "0.5",
        "1\\.",
        "2\\. x",
        "\\- x",
        "\\---",
    ]
