"""How a model is loaded in five lines by a program that has no fedvision, as a model card says it."""

from __future__ import annotations

from pathlib import Path

from fedvision.errors import RunFolderError
from fedvision.files import read_lines
from fedvision.inputs import width
from fedvision.reporting.markdown import code
from fedvision.runs.model_description import FILE, ModelDescription

EXPORTS = "exports.jsonl"
"""In a run folder, a line for each file that ``fedvision export`` wrote."""


def loading(run: Path) -> list[str]:
    """Return the paragraphs of a card on how to load a run's model.

    Args:
        run: The run folder.
    """
    try:
        described = ModelDescription.read(run)
    except RunFolderError:
        return ["The run has no final model yet."] if not (run / FILE).is_file() else []
    if described.personal:
        return ["A part of the network stayed on the clients, so there is no whole model to load."]
    file, there = exported(run, described.sha256)
    command = f"fedvision export {_word(run.name)} --format onnx"
    how = (
        f"`{code(file)}` is this model as an ONNX file"
        if there
        else f"`{command}` writes the model as an ONNX file"
    )
    return [
        f"{how}; it needs `pip install onnxruntime`, neither fedvision nor PyTorch. Pixels are those of the "
        "image, from 0 to 255: normalisation is inside.",
        f"```python\n{lines(described, file)}\n```",
    ]


def exported(run: Path, sha256: str) -> tuple[str, bool]:
    """Return the name of a run's ONNX file, and whether there is one; one of an earlier model is none.

    Args:
        run: The run folder.
        sha256: Digest of the run's model.
    """
    known = [one for one in read_lines(run / EXPORTS) if isinstance(one.get("about"), dict)]
    fitting = [
        one
        for one in known
        if one["about"].get("format") == "onnx" and one["about"].get("sha256") == sha256 and one.get("file")
    ]
    # One that computes what the run measured before one of fewer bits.
    fitting.sort(key=lambda one: one.get("kind") == "export")
    return (Path(str(fitting[-1]["file"])).name, True) if fitting else ("model.onnx", False)


def lines(described: ModelDescription, file: str) -> str:
    """Return the five lines."""
    image = described.image
    shape = f"(1, {image.height}, {image.width}, {image.channels})"
    beside = width(described.model.inputs)
    further = f', "further": np.full((1, {beside}), np.nan, np.float32)' if beside else ""
    several = described.task.use == "multi-label"
    named = (
        "print([[c for c, p in zip(classes, row) if p >= 0.5] for row in found])"
        if several
        else "print([classes[best] for best in found.argmax(1)])"
    )
    return "\n".join(
        [
            "import json, numpy as np, onnxruntime",
            f"model = onnxruntime.InferenceSession({file!r})",
            'classes = json.loads(model.get_modelmeta().custom_metadata_map["classes"])',
            f'found = model.run(None, {{"images": np.zeros({shape}, np.uint8){further}}})[0]  # your images',
            named,
        ]
    )


def _word(text: str) -> str:
    """Return a folder's name as it may stand in a command between backticks."""
    return text if text.replace("-", "").replace("_", "").replace(".", "").isalnum() else "RUN"
