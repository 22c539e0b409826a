"""Test images in which a task's worst mistakes are: which of them to show, and how they are kept.

For tasks of more than one class an image, beside ``misclassified``: the task says how wrong each class went
in each image, and draws those that are chosen. The rarest classes come first, and of each the worst images.

``misses.safetensors`` in the run folder has the pictures, the boxes on them and the classes for which they
are shown, and in its header as JSON what is written beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import MALFORMED, RunFolderError
from fedvision.files import recording, replace_file
from fedvision.runs.misclassified import in_turn
from fedvision.tasks.drawings import Drawings

FILE = "misses.safetensors"
_HEADER = "fedvision"


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstImages:
    """M test images, in the order in which they are shown.

    Raises:
        ValueError: The parts do not fit each other.
    """

    classes: NDArray[np.int64]
    """int64 [M]: the class for which each is shown; equal ones stand together."""
    drawings: Drawings
    """What is shown of them."""

    def __post_init__(self) -> None:
        if self.classes.dtype != np.int64 or self.classes.shape != (len(self.drawings.panels),):
            raise ValueError("each image needs the class for which it is shown")


def choose_worst(
    wrong: NDArray[np.float64], train_counts: NDArray[np.int64], *, limit: int = 12, classes: int = 3
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which images to show, rarest class first, and of each class the worst first.

    The rarest ``classes`` classes that went wrong anywhere take images in turn, each the one in which it went
    worst of those that no class has taken; of equal ones that in which all classes together went worst.

    Args:
        wrong: float64 [N, C]: how wrong each class went in each image; 0 or less is not at all.
        train_counts: What there is of each class in training [C]; ties go to the lower class number.
        limit: Images at most, >= 0.
        classes: Number of classes shown, >= 1.

    Returns:
        Indices int64 [M] and the class of each, int64 [M].
    """
    rarest_first = np.argsort(train_counts, kind="stable")
    shown = rarest_first[(wrong[:, rarest_first] > 0).any(axis=0)][:classes]
    order = np.argsort(-wrong.sum(axis=1), kind="stable")
    queues = []
    for c in shown:
        own = order[wrong[order, c] > 0]
        queues.append(own[np.argsort(-wrong[own, c], kind="stable")])
    taken = in_turn(queues, limit)
    nothing = np.empty(0, np.int64)
    return (
        np.concatenate([nothing, *taken]),
        np.repeat(shown, [len(one) for one in taken]).astype(np.int64),
    )


def write(folder: Path, worst: WorstImages) -> None:
    """Write images into a run folder.

    Raises:
        RecordError: The disk is full or refuses.
    """
    from safetensors.numpy import save

    drawn = worst.drawings
    texts = {
        "titles": list(drawn.titles),
        "captions": list(drawn.captions),
        "about": drawn.about,
        "key": dict(drawn.key),
    }
    tensors: dict[str, NDArray[Any]] = {
        "panels": np.ascontiguousarray(drawn.panels),
        "boxes": np.ascontiguousarray(drawn.boxes),
        "classes": worst.classes,
    }
    with recording(FILE, folder):
        replace_file(folder / FILE, save(tensors, metadata={_HEADER: json.dumps(texts)}))


def forget(folder: Path) -> None:
    """Remove what an earlier end of a run kept, where the model of its last round gets nothing wrong.

    Raises:
        RecordError: It cannot be removed.
    """
    with recording(FILE, folder):
        (folder / FILE).unlink(missing_ok=True)


def read(folder: Path) -> WorstImages | None:
    """Return the images that a run kept, or None where it kept none.

    Raises:
        RunFolderError: The file cannot be read or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / FILE
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            texts: Any = json.loads((opened.metadata() or {})[_HEADER])
            panels, boxes, classes = (opened.get_tensor(name) for name in ("panels", "boxes", "classes"))
        drawings = Drawings(
            panels=panels,
            boxes=boxes,
            titles=tuple(map(str, texts["titles"])),
            captions=tuple(map(str, texts["captions"])),
            about=str(texts["about"]),
            key={str(colour): str(name) for colour, name in texts["key"].items()},
        )
        return WorstImages(classes=classes, drawings=drawings)
    except OSError as error:
        raise RunFolderError(f"{file}: it cannot be read: {error.strerror}; restore access") from error
    except (SafetensorError, *MALFORMED) as error:
        raise RunFolderError(f"{file}: the file is damaged ({error}); delete it or run again") from error
