"""Pages from templates: those of this package, which others extend with folders of their own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedvision import formatting

_HERE = Path(__file__).parent


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package that has the style in it; all that is not ``Markup`` is escaped."""
    return environment().get_template(template).render(style=Markup(style()), **values)


def style() -> str:
    """Return the CSS of all pages."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


@cache
def environment(*folders: Path) -> jinja2.Environment:
    """Return what keeps each template as it was compiled: that takes longer than to fill it.

    Args:
        folders: Where else templates are, looked at first.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(formatting, name)
        for name in ("percent", "number", "ends", "whole", "size", "duration", "plural")
    }
    return environment
