"""A trained detector used: boxes of objects in new images, and pictures with these drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import ConfigError, DataError, RunError
from fedvision.formatting import listed
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.data.boxes import Placement
    from fedvision.data.decoding.process_pool import PixelFormat
    from fedvision.tasks.box_predictions import BoxPredictions
    from fedvision.trained_model import TrainedModel

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def detect(
    model: TrainedModel,
    images: str | Path | Sequence[str | Path] | NDArray[np.uint8],
    *,
    score: float = 0.3,
    workers: int = 0,
) -> BoxPredictions:
    """Find objects in images.

    Args:
        model: A trained detector.
        images: As of ``TrainedModel.predict``.
        score: Boxes of a lower score are left out, 0 <= score < 1.
        workers: Processes that decode files; 0 is one per CPU core where that pays.

    Returns:
        The boxes, in pixels of the upright files; of arrays, in theirs.

    Raises:
        RunFolderError: Tensors of the network stayed on the clients.
        ConfigError: The run's task is another one, or the score out of range.
        DataError: There is no image that can be read, or an array does not fit the network.
    """
    import torch

    from fedvision.data.boxes import packed
    from fedvision.tasks.box_predictions import BoxPredictions
    from fedvision.tasks.detection import in_files
    from fedvision.training.evaluate import outputs_of

    _check(model, score)
    source, rows = model.read(images, None, workers)
    names, found = list[str](), []
    for batch in source:
        outputs = outputs_of(model.network, batch.images, model.settings, rows(batch.names))
        places = _placements(batch.names, batch.images, model.pixel_format())
        targets = packed([np.zeros((0, 7))] * len(batch.names), places)
        own = in_files(outputs.detections(), torch.from_numpy(targets))
        kept = own.scores >= score
        found.append((own.images[kept] + len(names), own.classes[kept], own.scores[kept], own.boxes[kept]))
        names += batch.names
    if source.unreadable and not names:
        reasons = listed([f"{name} ({why})" for name, why in source.unreadable.items()])
        raise DataError(f"none of {len(source.unreadable):,} images can be read: {reasons}")
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, 4)))
    numbers, labels, scores, boxes = (np.concatenate(parts) for parts in zip(empty, *found, strict=True))
    return BoxPredictions(
        classes=model.classes,
        names=names,
        images=numbers,
        labels=labels,
        scores=scores,
        boxes=boxes,
        unreadable=source.unreadable,
        notices=tuple(source.notices),
    )


def _check(model: TrainedModel, score: float) -> None:
    from fedvision.tasks.detection import Detection

    if not isinstance(model.task, Detection):
        raise ConfigError(f"{model.path}: the task of this run is {model.task.name!r}, which finds no boxes")
    try:
        check_range(at_least=0, below=1, score=score)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _placements(names: Sequence[str], images: NDArray[np.uint8], how: PixelFormat | None) -> list[Placement]:
    """Return how the pixels of files became those of images [B, H, W, channels]; of arrays they are the same.

    Raises:
        DataError: The header of a file cannot be read.
    """
    from fedvision.data.boxes import Placement
    from fedvision.data.decoding.decode import Decoding
    from fedvision.data.decoding.placement import locate_all

    height, width = images.shape[1:3]
    as_it_is = Placement(width=width, height=height)
    files = [name for name in names if Path(name).is_file()]
    if how is None or not files:
        return [as_it_is] * len(names)
    decoding = Decoding(size=how.size, channels=how.channels, fit=how.fit, range=how.white)
    found: dict[str, Placement] = {}
    for name, where in zip(files, locate_all(Path(), files, decoding), strict=True):
        if isinstance(where, str):  # it could be decoded, so this is no fault of the file
            raise DataError(f"{name}: its size cannot be read: {where}")
        found[name] = where.placement
    return [found.get(name, as_it_is) for name in names]


def draw(found: BoxPredictions, folder: Path) -> list[Path]:
    """Write a PNG of each image file with its boxes drawn, ``NUMBER-STEM.png`` in the order of the images.

    Args:
        found: What was found; images that are no files (arrays) are left out.
        folder: Where to; it is made.

    Raises:
        RunError: It cannot be written.
    """
    from PIL import Image, ImageDraw, ImageOps

    written = []
    for number, name in enumerate(found.names):
        if not Path(name).is_file():
            continue
        with Image.open(name) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        pen, line = ImageDraw.Draw(picture), max(1, min(picture.size) // 200)
        for place in np.flatnonzero(found.images == number)[::-1]:
            x, y, width, height = found.boxes[place]
            label = int(found.labels[place])
            colour = _COLOURS[label % len(_COLOURS)]
            pen.rectangle((x, y, x + width, y + height), outline=colour, width=line)
            text = f"{found.classes[label]} {found.scores[place]:.2f}"
            left, top, right, bottom = pen.textbbox((x + line, y), text)
            pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
            pen.text((x + line, y), text, fill="white")
        path = folder / f"{number:05}-{Path(name).stem}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except OSError as error:
            raise RunError(f"{path}: it cannot be written: {error.strerror or error}") from error
        written.append(path)
    return written
