"""Verbs that use a run's final model: predict the class of images, measure it on labelled ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision import registry
from fedvision.errors import ConfigError, DataError, RunError
from fedvision.files import json_page, replace_file
from fedvision.formatting import listed, plural
from fedvision.streams import complain, show

if TYPE_CHECKING:
    from fedvision.data.dataset import Dataset
    from fedvision.tasks.box_predictions import BoxPredictions
    from fedvision.tasks.class_predictions import ClassPredictions
    from fedvision.tasks.mask_predictions import MaskPredictions
    from fedvision.trained_model import TrainedModel

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verbs to the command line."""
    predict = verbs.add_parser(
        "predict", description="name the class of images with a run's model, or find the objects in them"
    )
    add_model(predict)
    predict.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders of them, .npz files of arrays, or .csv files with a column file",
    )
    predict.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write the probabilities of all classes"
    )
    predict.add_argument("--jsonl", type=Path, metavar="FILE", help="the same as lines of JSON")
    predict.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of segmentation: write the masks as PNG files"
    )
    predict.add_argument(
        "--workers", type=int, default=0, help="processes that decode files (default: as many as pay)"
    )
    predict.add_argument(
        "--score",
        type=float,
        metavar="S",
        help="of a detector: leave out boxes of a lower score (default: 0.3)",
    )
    predict.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="of a detector: write the images with their boxes drawn"
    )
    predict.set_defaults(call=_predict)

    evaluate = verbs.add_parser("evaluate", description="measure a run's model on labelled images")
    add_model(evaluate)
    evaluate.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="a folder of class folders, an .npz, .csv or an experiment's .toml file, a name of "
        '`fedvision list data`, or a table: \'use = "npz", path = "photos.npz"\'',
    )
    evaluate.add_argument(
        "--part", choices=("test", "train"), help="images of SOURCE (default: test ones where it has any)"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the scores and counts")
    evaluate.set_defaults(call=_evaluate)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the run folder, the device and the threads to a verb."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--device", default="auto", help="auto (cuda, mps or cpu) or a torch device")
    parser.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: 1)")


def load_model(options: argparse.Namespace) -> TrainedModel:
    """Return the model of ``options.run``, with the device and threads that the options name."""
    import torch

    from fedvision.trained_model import TrainedModel

    if options.threads < 1:
        raise ConfigError(f"--threads must be >= 1, not {options.threads}")
    torch.set_num_threads(options.threads)
    model = TrainedModel.load(options.run, device=options.device)
    for notice in model.notices:
        complain(f"note: {notice}")
    return model


def _predict(options: argparse.Namespace) -> None:
    from fedvision.tasks.mask_predictions import MaskPredictions

    check_writable(options.csv, "--csv")
    check_writable(options.jsonl, "--jsonl")
    if options.workers < 0:
        raise ConfigError(f"--workers must be >= 0, not {options.workers}")
    found = _found(load_model(options), options)
    for notice in found.notices:
        complain(f"note: {notice}")
    if options.csv:
        write_text(options.csv, found.to_csv())
    if options.jsonl:
        write_text(options.jsonl, found.to_jsonl())
    if options.out and isinstance(found, MaskPredictions):
        _write_masks(found, options.out)
    show(_table(found), recorded=str(options.out or options.csv or options.jsonl or ""))
    for name, why in found.unreadable.items():
        complain(f"{name}: {why}")
    if lost := found.unreadable:
        raise RunError(
            f"{plural(len(lost), 'image')} of {len(lost) + len(found):,} cannot be read: {listed(list(lost))}"
            "; the others are predicted"
        )


def _write_masks(found: MaskPredictions, out: Path) -> None:
    """Write a mask for each image, at the size of its file.

    Raises:
        ConfigError: Two would have one name, or one would overwrite its image.
        RunError: The disk is full or refuses.
    """
    from fedvision.data.decoding.mask_files import at_image_size, file_names, png

    for path, name, mask in zip(file_names(found.names, out), found.names, found.masks, strict=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, png(at_image_size(mask, name, found.fit), len(found.classes)))
        except OSError as error:
            raise RunError(
                f"{path}: it cannot be written: {error.strerror or error}; name another folder"
            ) from error


def _found(
    model: TrainedModel, options: argparse.Namespace
) -> ClassPredictions | MaskPredictions | BoxPredictions:
    """Return what the options' model says of their images; boxes are drawn where that is wanted."""
    from fedvision.detecting import detect, draw
    from fedvision.tasks.detection import Detection

    if options.out and not model.task.dense:
        raise ConfigError(
            f"--out writes masks, and the task {model.task.name!r} has none; take --csv or --jsonl"
        )
    if not isinstance(model.task, Detection):
        for option in ("score", "draw"):
            if getattr(options, option) is not None:
                raise ConfigError(
                    f"--{option} is for a detector, and the task of {options.run} is {model.task.name!r}; "
                    "leave it out"
                )
        return model.predict(options.images, workers=options.workers)
    given = {} if options.score is None else {"score": options.score}
    found = detect(model, options.images, workers=options.workers, **given)
    if options.draw is not None:
        draw(found, options.draw)
    return found


def _table(found: ClassPredictions | MaskPredictions | BoxPredictions) -> str:
    """Return a row an image; a line is never folded."""
    rows = list(found.table())
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(wide) - 1
    numbers = rows[0][last] in ("probability", "height")
    return "\n".join(
        "  ".join(
            cell.rjust(wide[place]) if numbers and place == last else cell.ljust(wide[place] * (place < last))
            for place, cell in enumerate(row)
        )
        for row in rows
    )


def _evaluate(options: argparse.Namespace) -> None:
    from fedvision.reporting.render import score_table

    check_writable(options.json, "--json")
    model = load_model(options)
    try:
        dataset = dataset_of(model, options.data, "--data")
        scores = model.evaluate(dataset, part=options.part)
    except DataError as error:
        raise DataError(f"--data {options.data}: {error}") from error
    tested = options.part == "test" or (options.part is None and dataset.test is not None)
    part = "test images" if tested else "training images" if options.part else "images, none kept for a test"
    if options.json:
        write_text(options.json, json_page(scores.to_record()))
    rounds = plural(model.description.rounds, "round")
    counted = "" if scores.counted == "image" else f"{scores.counted}s of "
    images = f"{scores.examples:,} {counted}{part} of {options.data}"
    show(score_table(f"{options.run}, {rounds}: {images}", scores), recorded=str(options.json or ""))


def dataset_of(model: TrainedModel, source: str, option: str) -> Dataset:
    """Return the labelled images that an option names, decoded as the model's own.

    Raises:
        DataError: They cannot be read.
        ConfigError: There is no such source, or its keys are wrong.
    """
    from fedvision.config import ExperimentConfig
    from fedvision.data.sources.build import build_dataset
    from fedvision.data.sources.shorthand import spelled_table

    if source.endswith(".toml"):
        registry.allow_folder(Path(source).parent)
    table = _named_masks(spelled_table(source, model.files_as, option), model)
    return build_dataset(ExperimentConfig.from_dict({"data": table}).data)


def _named_masks(table: dict[str, Any], model: TrainedModel) -> dict[str, Any]:
    """Return ``[data]`` with the model's classes where masks hold numbers and nothing says what they are."""
    masks = table["use"] == "mask-folder" or (table["use"] == "manifest" and "mask" in table)
    if not (model.task.dense and masks) or {"classes", "values", "colours"} & set(table):
        return table
    return {**table, "classes": list(model.classes)}


def check_writable(file: Path | None, option: str) -> None:
    """Refuse a file that cannot be written before the work is done."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        why = "this is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise ConfigError(f"{option} {file}: {why}; name a file in a folder that is there")


def write_text(file: Path, text: str) -> None:
    """Write a file that a person named.

    Raises:
        RunError: The disk is full or refuses.
    """
    try:
        replace_file(file, text)
    except OSError as error:
        raise RunError(
            f"{file}: it cannot be written: {error.strerror or error}; name another file"
        ) from error
