"""Pages from templates that need no network, and images as they stand inside a page."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from fedvision import formatting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


def png_uri(image: NDArray[np.uint8]) -> str:
    """Return an image [H, W, channels] as a PNG data URI: grey for one or two channels, else three."""
    import numpy as np
    from PIL import Image

    shown = image[:, :, 0] if image.shape[2] < 3 else image[:, :, :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
