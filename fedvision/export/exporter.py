"""A model as a file of another format, checked before it is written and measured if asked."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from fedvision.errors import ConfigError, RunError
from fedvision.export.measurement import Labelled, measured, original_of
from fedvision.export.resampling import Fit
from fedvision.files import replace_file
from fedvision.runs.model_versions import Kind, ModelVersion, append_version

if TYPE_CHECKING:
    from fedvision.data.shards import Shard
    from fedvision.export.checks import Agreement, Predictor
    from fedvision.export.graph import PredictionGraph
    from fedvision.export.quantization import Method
    from fedvision.trained_model import TrainedModel

Format: TypeAlias = Literal["onnx", "torch-export", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
FITS: tuple[Fit, ...] = get_args(Fit)
_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
_NAMES = {"onnx": "ONNX", "torch-export": "torch.export", "safetensors": "safetensors"}


class Calibration(NamedTuple):
    """What int8's ranges follow from."""

    shard: Shard
    """Images from which some are drawn."""
    images: int = 500
    """How many, at most."""
    method: Method = "percentile"
    """See ``quantization.quantize``."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A file that was written."""

    file: Path
    """The file."""
    version: ModelVersion
    """What is known of it."""
    original: ModelVersion | None
    """The same of the run's model, where both were measured."""
    agreement: Agreement | None
    """How far it is from PyTorch's model; None of weights alone."""
    notices: tuple[str, ...]
    """What a person should know of it."""


def export(
    model: TrainedModel,
    format: Format,
    out: Path | None = None,
    *,
    fit: Fit | None = None,
    calibration: Calibration | None = None,
    data: Labelled | None = None,
    tolerance: float | None = None,
) -> Export:
    """Write a model to a file and note it in the run's ``exports.jsonl``.

    Args:
        model: A trained model on the CPU.
        format: One of ``FORMATS``.
        out: The file; left out, ``model.onnx``, ``model-int8.onnx``, ``model.pt2`` or
            ``model-described.safetensors`` in the run folder.
        fit: How images of another size become the network's; left out, as the run's files did, or where its
            images were arrays ``"stretch"``.
        calibration: Quantize to int8 with these images (ONNX alone).
        data: Measure PyTorch's model and the file on these.
        tolerance: By how much a probability may differ from PyTorch's; left out, 1e-5, and 1e-4 where each of
            many pixels has some.

    Raises:
        ConfigError: An argument is wrong, a package is missing, or the network cannot be written so.
        RunFolderError: Tensors of the network stayed on the clients.
        RunError: The file computes something else than PyTorch, or cannot be written; nothing was.
    """
    if tolerance is None:
        tolerance = 1e-4 if model.task.dense else 1e-5
    _check(model, format, fit, calibration, tolerance)
    path = checked_path(model.path, format, calibration is not None, out)
    used, notices = _fit(model, fit)
    content, predict, agreement = _made(model, format, used, tolerance, data, path)
    about: dict[str, Any] = {"format": format, "fit": used, "sha256": model.description.sha256}
    if agreement:
        about |= {"checked_images": agreement.images, "greatest_difference": agreement.difference}
    if calibration:
        assert predict is not None
        content, predict, facts = _quantized(model, content, predict, used, calibration)
        about |= facts
    name = _NAMES[format] + (", int8" if calibration else "")
    kind: Kind = "quantized" if calibration else "export"
    version = ModelVersion(
        name=name, kind=kind, file=_inside(path, model.path), bytes=len(content), about=about
    )
    original = None
    if data and predict:
        original, version = _measured(model, version, predict, data)
    _write(path, content)
    for one in (original, version):
        if one:
            append_version(model.path, one)
    return Export(file=path, version=version, original=original, agreement=agreement, notices=notices)


def checked_path(run: Path, format: Format, quantized: bool, out: Path | None) -> Path:
    """Return where the file goes.

    Raises:
        ConfigError: Its folder is not there, its suffix is another format's, or it is a file of the run.
    """
    suffix = _SUFFIXES[format]
    stem = "model-int8" if quantized else "model-described" if format == "safetensors" else "model"
    path = run / f"{stem}{suffix}" if out is None else out
    if path.is_dir() or not path.absolute().parent.is_dir():
        why = "this is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ConfigError(f"--out {path}: {why}; name a file in a folder that is there")
    if path.suffix != suffix:
        raise ConfigError(f"--out {path}: a file of --format {format} ends in {suffix}; name such a one")
    own = ("model.safetensors", "mistakes.safetensors")
    if path.name in own and path.absolute().parent.resolve() == run.absolute().resolve():
        raise ConfigError(f"--out {path}: this file is the run's own; name another one")
    return path


def _check(
    model: TrainedModel, format: str, fit: str | None, calibration: Calibration | None, tolerance: float
) -> None:
    """Refuse what no work could make right."""
    from fedvision.training.evaluate import nothing_decided

    if format not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {format!r}")
    if fit is not None and fit not in FITS:
        raise ConfigError(f"--fit must be one of {', '.join(FITS)}, not {fit!r}")
    if calibration and format != "onnx":
        raise ConfigError(f"--quantize int8 is for --format onnx, not {format}; leave one of them out")
    if not 0 < tolerance < 1:
        raise ConfigError(f"--tolerance must be > 0 and < 1, not {tolerance}")
    model.require_whole()
    nothing_decided(model.task, len(model.classes), (1, 1))  # a task that predicts nothing is refused here
    if model.task.dense and calibration:
        raise ConfigError(
            "--quantize int8 is measured by images of one class each; leave it out for this task"
        )
    if model.settings.device.type != "cpu":
        raise ConfigError("a model is exported on the CPU; load it with device='cpu'")


def _fit(model: TrainedModel, given: Fit | None) -> tuple[Fit, tuple[str, ...]]:
    """Return how images of another size become the network's, and what is to be said of that."""
    notices = []
    if model.description.inference.precision != "float32":
        notices.append(
            f"the file computes in float32, the run measured in {model.description.inference.precision}"
        )
    if given is not None:
        return given, tuple(notices)
    if (how := model.description.decoding) is not None:
        return how.fit, tuple(notices)
    image = model.description.image
    notices.append(
        "the run's images were arrays, so it does not say what becomes of others: the file stretches them to "
        f"{image.height} x {image.width}; --fit names another way"
    )
    return "stretch", tuple(notices)


def _made(
    model: TrainedModel, format: Format, fit: Fit, tolerance: float, data: Labelled | None, path: Path
) -> tuple[bytes, Predictor | None, Agreement | None]:
    """Return a file in float32, checked, and what runs it."""
    from fedvision.export import checks, onnx_format, torch_format
    from fedvision.export.facts import facts_of
    from fedvision.export.graph import PredictionGraph

    facts = facts_of(model, fit)
    if format == "safetensors":
        return _weights(model, facts), None, None
    if format == "onnx":
        onnx_format.check_packages()
    network = copy.deepcopy(model.network).requires_grad_(False)
    graph: PredictionGraph = PredictionGraph(dataclasses.replace(model, network=network), fit)
    graph.eval()
    predict: Predictor
    if format == "onnx":
        content = onnx_format.encode(graph, graph.example(), facts)
        predict = onnx_format.OnnxPredictor(content)
    else:
        content = torch_format.encode(graph, graph.example(), facts)
        predict = torch_format.ProgramPredictor(content)
    agreement = checks.compare(model, predict, *checks.random_images(model), tolerance=tolerance)
    if data and len(data.shard):
        shown, rows, own = data.shard.images, data.shard.further, data.shard.indices
        other = checks.compare(model, predict, shown, rows, indices=own, tolerance=tolerance)
        agreement = checks.Agreement(
            agreement.images + other.images,
            max(agreement.difference, other.difference),
            agreement.decisions + other.decisions,
        )
    checks.require_agreement(agreement, str(path), tolerance)
    checks.require_other_sizes(graph, predict, str(path))
    return content, predict, agreement


def _weights(model: TrainedModel, facts: dict[str, str]) -> bytes:
    """Return the tensors and, as texts of the header, the facts and the whole of model.json."""
    from fedvision.runs.model_description import with_digest
    from fedvision.runs.tensor_file import pieces

    about = with_digest(model.description, model.description.sha256)
    described = {**facts, "format": "pt", "model.json": json.dumps(about, ensure_ascii=False)}
    return b"".join(bytes(one) for one in pieces(model.network.state_dict(), described))


def _quantized(
    model: TrainedModel, content: bytes, plain: Predictor, fit: Fit, calibration: Calibration
) -> tuple[bytes, Predictor, dict[str, Any]]:
    """Return the file in int8, what runs it, and how it was made.

    Args:
        model: The trained model.
        content: The file in float32.
        plain: What runs that.
        fit: How images of another size become the network's.
        calibration: What the ranges follow from.
    """
    from fedvision.export.comparison import measure
    from fedvision.export.facts import facts_of
    from fedvision.export.onnx_format import OnnxPredictor
    from fedvision.export.quantization import chosen_of, quantize

    shard, images, method = calibration
    used = dataclasses.replace(shard, indices=chosen_of(shard, images))
    facts: dict[str, Any] = {"calibration_images": len(used), "calibration_method": method}
    texts = {**facts_of(model, fit), "quantization": json.dumps({"bits": 8, **facts})}
    small = quantize(content, shard, texts, count=images, method=method)
    predict = OnnxPredictor(small)
    sizes = len(model.classes), model.description.inference.batch_size
    before, after = (measure(one, used, *sizes).decided for one in (plain, predict))
    same = (before == after).reshape(len(used), -1).all(axis=1)
    return small, predict, {**facts, "calibration_agreement": float(same.mean())}


def _measured(
    model: TrainedModel, version: ModelVersion, predict: Predictor, data: Labelled
) -> tuple[ModelVersion, ModelVersion]:
    """Return the run's model and a version of it with what both measured on the same images."""
    from fedvision.export.checks import reference

    first, second = measured(model, [(original_of(model), reference(model)), (version, predict)], data)
    return first, second


def _inside(path: Path, run: Path) -> str:
    """Return a path relative to the run folder where it lies in it."""
    try:
        return str(path.absolute().relative_to(run.absolute()))
    except ValueError:
        return str(path)


def _write(path: Path, content: bytes | Iterable[bytes]) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise RunError(
            f"{path}: it cannot be written: {error.strerror or error}; name another file"
        ) from error
