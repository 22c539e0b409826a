"""The verb that writes a run's model for other programs, and measures what came of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.cli.model import check_writable, dataset_of, load_model, write_text
from fedvision.errors import ConfigError, DataError
from fedvision.files import json_page
from fedvision.formatting import percent, plural, size
from fedvision.streams import complain, show

if TYPE_CHECKING:
    from fedvision.export.exporter import Calibration, Export
    from fedvision.export.measurement import Labelled
    from fedvision.reporting.text_table import TextTable
    from fedvision.runs.model_versions import ModelVersion
    from fedvision.trained_model import TrainedModel

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_OF_A_RUN = {f"{name}.json" for name in ("model", "summary", "split", "data", "environment", "invocation")}
_SOURCES = "a folder of class folders, an .npz, .csv or .toml file, a name or a table, as for evaluate"


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    export = verbs.add_parser("export", description="write a run's model for other programs, also in int8")
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument(
        "--format", required=True, metavar="FORMAT", help="onnx, torch-export or safetensors (weights alone)"
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="(default: a file in RUN)")
    export.add_argument(
        "--fit",
        metavar="FIT",
        help="images of another size: crop, stretch, pad or exact (default: the run's)",
    )
    export.add_argument("--quantize", metavar="TYPE", help="int8: smaller and faster, with --calibration")
    export.add_argument("--calibration", metavar="SOURCE", help=f"images for int8's ranges: {_SOURCES}")
    export.add_argument(
        "--calibration-images", type=int, metavar="N", help="how many of them, classes in turn (default: 500)"
    )
    export.add_argument(
        "--calibration-method", metavar="METHOD", help="percentile, minmax or entropy (default: percentile)"
    )
    export.add_argument(
        "--data", metavar="SOURCE", help=f"labelled images to measure the model and the file on: {_SOURCES}"
    )
    export.add_argument(
        "--part", choices=("test", "train"), help="images of --data (default: test ones where it has any)"
    )
    export.add_argument(
        "--json", type=Path, metavar="FILE", help="(default with --data: the file's name and .json)"
    )
    export.add_argument(
        "--tolerance", type=float, help="a probability may differ by (default: 1e-5, of pixels 1e-4)"
    )
    export.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: 1)")
    export.set_defaults(call=_export, device="cpu", again="the same command begins anew")


def _export(options: argparse.Namespace) -> None:
    quantized = _check(options)
    check_writable(options.json, "--json")
    if options.json and options.json.exists() and options.json.name in _OF_A_RUN:
        raise ConfigError(f"--json {options.json}: this file is a run's own; name another one")
    from fedvision.export.exporter import FORMATS, checked_path, export

    if options.format not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {options.format!r}")
    if quantized and options.format != "onnx":
        raise ConfigError(
            f"--quantize int8 is for --format onnx, not {options.format}; leave one of them out"
        )
    model = load_model(options)
    out = checked_path(options.run, options.format, quantized, options.out)
    calibration: Calibration | None = None
    if quantized:
        calibration = _calibration(model, options)
    data = labelled(model, options) if options.data else None
    done = export(
        model,
        options.format,
        out,
        fit=options.fit,
        calibration=calibration,
        data=data,
        tolerance=options.tolerance,
    )
    for notice in done.notices:
        complain(f"note: {notice}")
    page = options.json or (done.file.with_name(f"{done.file.name}.json") if done.original else None)
    if page:
        versions = [one for one in (done.original, done.version) if one]
        write_text(page, json_page({"versions": [vars(one) for one in versions]}))
    show(_text(done, page), recorded=str(done.file))


def _check(options: argparse.Namespace) -> bool:
    """Refuse options that go ill together; return whether the file is quantized."""
    quantize, of_int8 = options.quantize, ("calibration", "calibration_images", "calibration_method")
    if quantize not in (None, "int8"):
        raise ConfigError(f"--quantize must be int8, not {quantize!r}")
    if quantize is None:
        for key in of_int8:
            if getattr(options, key) is not None:
                raise ConfigError(
                    f"--{key.replace('_', '-')} is for --quantize int8; leave it out or add that"
                )
    elif options.calibration is None:
        raise ConfigError(
            "--quantize int8 needs images from which ranges follow, best training images of the run; name "
            "them with --calibration SOURCE"
        )
    if options.calibration_images is not None and options.calibration_images < 1:
        raise ConfigError(f"--calibration-images must be >= 1, not {options.calibration_images}")
    if options.part and not options.data:
        raise ConfigError("--part is for --data; leave it out, or name labelled images")
    if options.format == "onnx":
        from fedvision.export.onnx_format import check_packages

        check_packages()
    if options.format == "safetensors" and options.data:
        raise ConfigError("--data measures a file that can be run; weights alone cannot, leave it out")
    return quantize is not None


def _calibration(model: TrainedModel, options: argparse.Namespace) -> Calibration:
    """Return the training images of the source: test images are left for the measurement."""
    from fedvision.export.exporter import Calibration
    from fedvision.export.quantization import METHODS

    method = options.calibration_method or "percentile"
    if method not in METHODS:
        raise ConfigError(f"--calibration-method must be one of {', '.join(METHODS)}, not {method!r}")
    try:
        shard, _ = model.labelled(dataset_of(model, options.calibration, "--calibration"), part="train")
    except DataError as error:
        raise DataError(f"--calibration {options.calibration}: {error}") from error
    return Calibration(shard, options.calibration_images or 500, method)


def labelled(model: TrainedModel, options: argparse.Namespace) -> Labelled:
    """Return the labelled images of ``--data``, and say what is missing in them."""
    from fedvision.export.measurement import Labelled

    try:
        dataset = dataset_of(model, options.data, "--data")
        shard, missing = model.labelled(dataset, part=options.part)
    except DataError as error:
        raise DataError(f"--data {options.data}: {error}") from error
    tested = options.part == "test" or (options.part is None and dataset.test is not None)
    if not len(shard):
        raise DataError(f"--data {options.data}: there are no images in it; name others")
    if getattr(options, "calibration", None) == options.data and not tested:
        complain("note: ranges are calibrated on images that are measured, too; measure others with --data")
    if missing:
        complain(f"note: there are no images of {', '.join(missing)}; the scores are without them")
    return Labelled(shard, f"{'test images' if tested else 'images'} of {options.data}")


def _text(done: Export, page: Path | None) -> str:
    """Return what the file is, and the table of what was measured."""
    from fedvision.reporting.render import versions_table
    from fedvision.reporting.text_table import plain_text

    parts: list[str | TextTable] = [f"{done.file}: {size(done.version.bytes or 0)}"]
    if done.agreement:
        found = done.agreement
        parts.append(
            f"beside PyTorch on {plural(found.images, 'image')}: the same decisions, probabilities differ by "
            f"at most {found.difference:.1g}" + (" (before int8)" if done.version.kind == "quantized" else "")
        )
    if (share := done.version.about.get("calibration_agreement")) is not None:
        parts.append(
            f"int8 beside float32 on {done.version.about['calibration_images']:,} calibration images: "
            f"{percent(share)} have the same decision"
        )
    if done.original:
        parts += ["", versions_table([done.original, done.version]), "", f"measured on {on(done.original)}"]
    if page:
        parts.append(f"figures: {page}")
    return plain_text(*parts)


def on(version: ModelVersion) -> str:
    """Return on what a version was measured, in words."""
    images = f"{plural(version.images or 0, 'image')} ({version.part})"
    return f"{images}, one thread of {version.machine['processor']}"
