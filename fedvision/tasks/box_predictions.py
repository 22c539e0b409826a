"""What a trained detector finds in images: boxes with a class and a score, in the pixels of their files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COLUMNS = ("file", "class", "score", "x", "y", "width", "height")


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxPredictions:
    """D boxes found in N images, by image, the best of each first."""

    classes: tuple[str, ...]
    """Class names [C]."""
    names: Sequence[str]
    """[N]: an image's file, or the place of it in an array."""
    images: NDArray[np.int64]
    """int64 [D]: number of the image, rising."""
    labels: NDArray[np.int64]
    """int64 [D]: number of the class."""
    scores: NDArray[np.float32]
    """float32 [D], from 0 to 1."""
    boxes: NDArray[np.float64]
    """float64 [D, 4]: x, y, width, height in pixels of the upright file, from its upper left corner."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files that are not among the N, each with the reason."""
    notices: tuple[str, ...] = ()
    """What a person should know of the images."""

    def __len__(self) -> int:
        return len(self.names)

    def rows(self) -> Iterator[tuple[str, str, np.float32, list[float]]]:
        """Yield of each box its image's name, its class, its score and its place."""
        columns = (self.images.tolist(), self.labels.tolist(), self.scores, self.boxes.tolist())
        for image, label, score, box in zip(*columns, strict=True):
            yield self.names[image], self.classes[label], score, box

    def table(self) -> Iterator[tuple[str, ...]]:
        """Yield the heading and a row of text for each box, and for each image without one, for people."""
        yield _COLUMNS
        found: dict[str, list[tuple[str, ...]]] = {}
        for name, predicted, score, box in self.rows():
            found.setdefault(name, []).append((predicted, f"{score:.3f}", *(f"{one:.1f}" for one in box)))
        for name in self.names:
            yield from ((name, *cells) for cells in found.get(name, [("none", "", "", "", "", "")]))

    def to_csv(self) -> str:
        """Return a CSV table with the columns ``file,class,score,x,y,width,height``, a row for each box."""
        page = io.StringIO()
        table = csv.writer(page, lineterminator="\n")
        table.writerow(_COLUMNS)
        # The shortest text that reads back as the same float32.
        table.writerows([name, predicted, str(score), *box] for name, predicted, score, box in self.rows())
        return page.getvalue()

    def to_jsonl(self) -> str:
        """Return a line of JSON for each box, with the keys of ``to_csv``, then for each unreadable file.

        The latter is ``{"file", "error"}``. An image without a box has no line.
        """
        lines: list[dict[str, Any]] = [
            dict(zip(_COLUMNS, (name, predicted, float(str(score)), *box), strict=True))
            for name, predicted, score, box in self.rows()
        ]
        lines += [{"file": name, "error": why} for name, why in self.unreadable.items()]
        return "".join(json.dumps(line) + "\n" for line in lines)
