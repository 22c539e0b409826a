"""Tiny annotated folders for the tests of everything that reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedvision.data.boxes import COUNT
from fedvision.data.dataset import ImageSet

CATEGORIES = ({"id": 7, "name": "cat"}, {"id": 2, "name": "dog"})


def picture(path: Path, width: int = 8, height: int = 8, shade: int = 0) -> Path:
    """Write one image of one shade; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), shade).save(path)
    return path


def image(number: int, **fields: Any) -> dict[str, Any]:
    """Return COCO's entry of an image of 8 x 8 pixels."""
    return {"id": number, "file_name": f"{number}.png", "width": 8, "height": 8} | fields


def box(number: int, of: int, bbox: Sequence[float], category: int = 2, **fields: Any) -> dict[str, Any]:
    """Return COCO's entry of an object."""
    return {"id": number, "image_id": of, "category_id": category, "bbox": list(bbox)} | fields


def document(
    images: Sequence[Any], annotations: Sequence[Any], categories: Sequence[Any] = CATEGORIES
) -> dict[str, Any]:
    return {"images": list(images), "annotations": list(annotations), "categories": list(categories)}


def coco_folder(here: Path, content: Mapping[str, Any], name: str = "boxes.json") -> Path:
    """Write a JSON file, and images of 8 x 8 pixels and shades 0, 1, ... beside it where there are none."""
    for shade, entry in enumerate(content["images"]):
        file = entry.get("file_name") if isinstance(entry, dict) else None
        if file and not (here / file).exists():
            picture(here / file, shade=shade)
    (here / name).write_text(json.dumps(content))
    return here / name


def voc_xml(
    path: Path,
    filename: str,
    objects: Sequence[tuple[str, Sequence[float]]] = (),
    size: tuple[int, int] = (8, 8),
    extra: str = "",
) -> Path:
    """Write one of VOC's files; ``extra`` goes into each object."""
    rows = "".join(
        f"<object><name>{name}</name>{extra}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for name, (a, b, c, d) in objects
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"</size>{rows}</annotation>"
    )
    return path


def rows_of(images: ImageSet) -> dict[str, list[list[float]]]:
    """Return the boxes of each image by its file."""
    found = {}
    for name, target in zip(images.names, np.asarray(images.labels), strict=True):
        found[name] = target[1 : 1 + int(target[0, COUNT])].tolist()
    return found
