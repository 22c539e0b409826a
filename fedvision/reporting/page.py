"""Pages that need no network: templates of this package, and images as they stand inside a page."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from fedvision import formatting

_HERE = Path(__file__).parent


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package; everything that is not ``Markup`` is escaped."""
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(style=style, **values)


@cache
def _environment() -> jinja2.Environment:
    """Return what keeps each template as it was compiled: that takes longer than to fill it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
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
    shown = image[:, :, 0] if image.shape[2] < 3 else image[:, :, :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
