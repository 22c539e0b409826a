"""What an exported file says of itself: texts by name, the same in every format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fedvision import __version__
from fedvision.inputs import width
from fedvision.runs.model_description import with_digest

if TYPE_CHECKING:
    from fedvision.export.resampling import Fit
    from fedvision.trained_model import TrainedModel

_OUTPUTS = {
    "classification": "probabilities [N, C], softmax: an image's class is the one with the largest",
    "multi-label": "probabilities [N, L], sigmoid of each label: an image has those of 1/2 or more",
    "segmentation": "probabilities [N, C, H, W], softmax: a pixel's class is the one with the largest",
}


def facts_of(model: TrainedModel, fit: Fit) -> dict[str, str]:
    """Return the texts; lists and tables are JSON.

    ``fedvision`` (version), ``classes`` [C] in the order of the output, ``task``, ``output``, ``image``
    (``height``, ``width``, ``channels`` of the network's images), ``fit`` (how images of another size become
    those), ``input``, ``sha256`` of the run's ``model.safetensors``, ``rounds``, ``probability_scale``, and
    ``further`` (``[model.inputs]``) where columns are read.

    Args:
        model: The trained model.
        fit: How images of another size become those of the network.
    """
    about, image = model.description, model.description.image
    task = about.task.use
    channels = f"{image.channels} channel{'s' * (image.channels > 1)}"
    sides = f"{image.height}, {image.width}" if fit == "exact" else "H, W"
    found = {
        "fedvision": __version__,
        "task": task,
        "classes": json.dumps(list(about.classes), ensure_ascii=False),
        "input": f"images uint8 [N, {sides}, {image.channels}], 0 to 255, {channels}",
        "output": _OUTPUTS.get(task, f"probabilities [N, C] of the task {task}"),
        "image": json.dumps(vars(image)),
        "fit": fit,
        "probability_scale": repr(about.probability_scale),
        "rounds": str(about.rounds),
        "sha256": about.sha256,
    }
    if wide := width(about.model.inputs):
        found["input"] += f"; further float32 [N, {wide}], NaN where absent"
        found["further"] = json.dumps(with_digest(about, about.sha256)["model"]["inputs"], ensure_ascii=False)
    return found
